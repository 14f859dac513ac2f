"""The subject bar at the top of a page: model, checkpoint, prompt. The same on every page; its state is the URL."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from app import notes, subject_sets, url, widgets
from app.asking import finish
from app.links import link
from backend.contract import Corpus, EnergyWeights, ModelCard, Pairs, Problems, Prompt, Subject, Weights, parse_spec
from backend.errors import NotFound, PhasescopeError

TEXTS = {
    "A sentence": "When Mary and John went to the store, John gave a drink to Mary",
    "A few words": "the cat sat on the mat",
    "A repeated phrase": "the cat sat on the mat and the dog ran; the cat sat on the mat and the dog ran",
    "Python": "def add(a, b):\n    return a + b\n",
}

FIRST_MODEL = "run:induction-demo"  # what a first visit shows
FIRST_ENERGY = "run:inverse-5"

#: of a family: the fields of the address, the word at the picker, what a first visit shows
PICKED: dict[str, tuple[str, str, str, str]] = {"transformer": ("model", "step", "Model", FIRST_MODEL),
                                                "energy": ("energy", "energy_step", "Energy model", FIRST_ENERGY)}
#: model, checkpoint, and what the question is about
WIDTHS: dict[type[Subject], list[int]] = {Prompt: [4, 4, 5], Pairs: [4, 4, 6], Corpus: [4, 4, 6], Weights: [4, 7, 1],
                                          EnergyWeights: [4, 7, 1], Problems: [3, 3, 7]}
#: rows of a corpus on a first visit: of curvature fewer, a spectrum takes some hundred products over them
ROWS, ROWS_OF_GROUP = 64, {"Spectra": 16}


def first_rows(group: str) -> int:
    """Return the rows of a corpus that the pages of a group of analyses start with."""
    return ROWS_OF_GROUP.get(group, ROWS)


@dataclass
class Bar:
    """What the bar chose; `card` and `subject` are there, else the bar has stopped the page."""

    spec: str
    step: int | None
    card: dict[str, Any]
    subject: Subject
    labels: list[str] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)

    @property
    def most(self) -> dict[str, int]:
        """Upper bounds that an energy model and its problems set to fields of a form: a rank under the side leaves an
        outside."""
        if not isinstance(self.subject, Problems):
            return {}
        told = self.card["energy"]
        return {"rank": int(told["side"]) - 1, "problem": self.subject.n - 1, "level": int(told["levels"]) - 1}


def begin(house: Any, analysis: str, caption: str) -> Bar:
    """Draw heading, caption and bar of an analysis' page; stop it with the reason where the model is unfit."""
    one = house.analysis(analysis)
    st.markdown(f"### {one.title}")
    st.caption(caption)
    bar = subject_bar(house, one.subject, first_rows(one.group))
    reason = one.unfit(bar.card["capabilities"])
    if reason:
        widgets.empty_state("Not possible for this model", f"{reason}. Choose another model above.")
        st.stop()
    return bar


def subject_bar(house: Any, kind: type[Subject] = Prompt, rows: int = ROWS) -> Bar:
    """Draw the bar and return its choice; where something is missing say so and stop the page.

    `rows` of a corpus stand there where the URL names none.
    """
    name, at, label, first = PICKED[kind.family]
    known_runs = {f"run:{r['name']}": r for r in house.runs()}
    runs = {spec: r for spec, r in known_runs.items() if openable(r) and family_of(r) == kind.family}
    linked = url.get("model") if url.get("model") in runs else ""  # a link may name an energy model like any other
    spec = url.get(name) or linked or default_model(runs, house, first)
    if made_for := (known_runs.get(spec) or {}).get("companion"):
        trained_for(known_runs[spec]["name"], made_for)
        st.stop()
    with st.container(key="subject-bar"):
        left, middle, right = st.columns(WIDTHS[kind], vertical_alignment="top")
        with left:
            model_picker(house, runs, spec, label, name, at)
        steps = (known_runs.get(spec) or {}).get("checkpoints", [])  # also of the other family: it is told apart below
        with middle:
            step = checkpoint_of(steps, at) if steps else None
            if not steps and (spec in known_runs or not spec.startswith("run:")):
                _no_slider(spec)
        card = opened(house, spec, step)
        _other_family(card, kind, step)
        subject = _subject(house, card, kind, right, rows)
    labels = house.tokenizer(card).labels(list(subject.tokens)) if isinstance(subject, Prompt) else []
    if isinstance(subject, Pairs):
        subject_sets.shown_pair(house, card, subject)
    return Bar(spec, step, card, subject, labels, steps)


def family_of(run: Mapping[str, Any]) -> str:
    """Return the family of the model that a run trains."""
    return "energy" if (run.get("model") or {}).get("kind") == "energy" else "transformer"


def _other_family(card: Mapping[str, Any], kind: type[Subject], step: int | None) -> None:
    """Stop a page of tokens on an energy model, and the other way round, with the way to a page that fits."""
    if ModelCard(**card).family == kind.family:
        return
    if card["energy"]:
        widgets.empty_state("This is an energy model", "It answers matrix problems and knows no tokens, so this page "
                            "has nothing to ask it. Choose a transformer above, or see its landscapes.")  # fmt: skip
        link("energy_landscapes", "Energy landscapes", icon="landscape",
             query=url.query(energy=card["spec"], energy_step=step))  # fmt: skip
    else:
        widgets.empty_state("This is a transformer", "This page asks an energy model about matrix problems: choose one "
                            "above, or train one on the Training page.")  # fmt: skip
        link("training", "Train an energy model", icon="monitoring", query={"recipe": "energy"})
    st.stop()


def _subject(house: Any, card: dict[str, Any], kind: type[Subject], place: Any, rows: int) -> Subject:
    if kind is Prompt:
        return _prompt_field(house, card, place)
    if kind is Pairs:
        return subject_sets.pairs_field(house, card, place)
    if kind is Problems:
        return subject_sets.problems_field(house, card, place)
    if kind is Corpus:
        return subject_sets.corpus_field(house, card, place, rows=rows)
    return EnergyWeights() if kind is EnergyWeights else Weights()


def trained_for(name: str, made_for: Mapping[str, Any]) -> None:
    """Say that a run holds a tuned lens or SAE, no model, and lead to the page that shows it on its model."""
    kind, spec = str(made_for.get("kind")), str(made_for.get("spec"))
    where = {"model": spec, **({"step": str(made_for["step"])} if made_for.get("step") is not None else {})}
    words = {"sae": "An SAE", "tuned_lens": "A tuned lens"}.get(kind, kind)
    widgets.empty_state(f"{words} for {spec}", "It is no model of its own: it is looked at on the "
                        "model that it was trained for, on the pages of lenses or features.")  # fmt: skip
    if kind == "sae":
        link("sae_features", label="Features of this SAE", icon="scatter_plot", query={**where, "sae": name})
    else:
        link("logit_lens", label=f"Open {spec}", icon="layers", query=where)


def openable(run: Mapping[str, Any]) -> bool:
    """Say whether a run has checkpoints of a model: one that was trained for a model (a lens, an SAE) has none."""
    return bool(run["checkpoints"]) and isinstance(run.get("model"), dict)


def default_model(runs: dict[str, Any], house: Any, first: str = FIRST_MODEL) -> str:
    """Return the model of a first visit: a shipped run, else any run, else the last opened model."""
    shipped = sorted((s for s, r in runs.items() if r.get("shipped")), key=lambda s: s != first)
    opened = list(house.models()["spec"]) if not runs and first == FIRST_MODEL else []
    found = next(iter([*shipped, *runs, *opened]), "")
    if not found:
        widgets.empty_state("No model yet", "Open one on the Models page, or train one on the Training page.")
        link("models", label="Open a model", icon="folder_open")
        st.stop()
    return found


def model_picker(
    house: Any, runs: dict[str, Any], spec: str, label: str = "Model", name: str = "model", step: str = "step"
) -> None:
    """Draw the picker of a model, bound to the URL field `name`; another model lets go of what belonged to the last."""
    energies = name == PICKED["energy"][0]
    facts = {r.spec: f"{r.n_layers} x {r.n_heads} heads" if r.n_heads else f"{r.d_model} wide"
             for r in house.models().itertuples() if bool(r.energy) == energies}  # fmt: skip
    options = list(dict.fromkeys([spec, *runs, *(s for s in facts if s not in runs)]))
    url.bound(
        st.selectbox,
        label,
        name,
        fallback=spec,
        options=options,
        format_func=lambda s: short_name(s) + (f"  ·  {facts[s]}" if s in facts else ""),
        also=lambda _: {step: None, "layer": None, "head": None, "query": None, "pos": None, "target": None},
        help="Runs and models opened so far. Open another on the Models page.",
    )


def short_name(spec: str) -> str:
    """Return a spec for people: the last part of a path, the scheme behind."""
    scheme, _, place = spec.partition(":")
    name = place.rstrip("/").rsplit("/", 1)[-1] if scheme in ("dir", "nanogpt", "tl", "energy") else place
    return f"{name} ({scheme})" if place else spec


def checkpoint_of(steps: Sequence[int], name: str = "step", first: bool = False) -> int:
    """Draw the checkpoint slider with its previous/next keys, bound to the URL field `name`, and return the step.

    Without one in the URL it stands at the last checkpoint, or at the `first`.
    """
    now = url.get(name)
    if now not in steps:
        asked, now = now, steps[0 if first else -1] if now is None else min(steps, key=lambda s: abs(s - now))
        wrong = f"The address asks for step {asked}, which is no checkpoint here: step {now}, the nearest, is shown."
        notes.keep(name, now, wrong if asked is not None else "")
        url.put(**{name: now if url.get(name) is not None else None})
    notes.keep(name, now)
    at = list(steps).index(now)
    back, slider, on = st.columns([1, 8, 1], vertical_alignment="bottom", gap="small")
    back.button(
        "",
        icon=":material/chevron_left:",
        key=f"{name}-back",
        help="Previous checkpoint",
        disabled=at == 0,
        on_click=lambda: url.put(**{name: steps[max(at - 1, 0)]}),
        type="tertiary",
    )
    with slider:
        if len(steps) > 1:
            url.bound(
                st.select_slider,
                f"Checkpoint (step, {at + 1} of {len(steps)})",
                name,
                fallback=now,
                options=list(steps),
            )
        else:
            st.caption(f"One checkpoint: step {now}")
    on.button(
        "",
        icon=":material/chevron_right:",
        key=f"{name}-on",
        help="Next checkpoint",
        disabled=at == len(steps) - 1,
        on_click=lambda: url.put(**{name: steps[min(at + 1, len(steps) - 1)]}),
        type="tertiary",
    )
    return now


def _no_slider(spec: str) -> None:
    st.caption(
        "A single set of weights: no checkpoints to move through."
        if not spec.startswith("run:")
        else "This run has no checkpoint yet."
    )


def opened(house: Any, spec: str, step: int | None) -> dict[str, Any]:
    """Return the card, opening the model by a job where needed; stops the page until it is open."""
    try:
        parse_spec(spec, step)
        answer = house.open(spec, step)
        if answer["card"] is None and finish(house, answer["job"], lambda: house.open(spec, step)):
            answer = house.open(spec, step)
    except PhasescopeError as error:
        widgets.error_panel(error)
        link("models", label="Open another model", icon="folder_open")
        st.stop()
    if answer["card"] is None:
        st.stop()
    return answer["card"]


# ---------------------------------------------------------------- the prompt


def presets(house: Any, card: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return {name: (text, token ids)}: texts that this model can read, or repeated random ids."""
    if card["tokenizer"].get("kind") == "words":
        return _sentences(house, card)
    if card["tokenizer"].get("kind", "ids") != "ids":
        readable = {name: (text, "") for name, text in TEXTS.items() if _fits(house, card, text)}
        return readable or {"One token": (house.tokenizer(card).label(0).replace("·", " ").replace("⏎", "\n"), "")}
    found = {}
    for n in (8, 16, 32):
        if 2 * n <= card["n_ctx"]:
            block = random.Random(n).sample(range(card["d_vocab"]), n) if card["d_vocab"] >= n else []
            found[f"{n} random tokens, twice"] = ("", " ".join(map(str, block * 2)))
    small = min(card["n_ctx"], card["d_vocab"], 8)
    return {k: v for k, v in found.items() if v[1]} or {"First tokens": ("", " ".join(map(str, range(small))))}


def _sentences(house: Any, card: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return sentences of a model that reads words: its task's own, else its first word."""
    words = house.tokenizer(card)
    try:
        pairs = house.pairs(card, "synthetic_ioi", 3, 0).pairs
    except PhasescopeError:
        return {"One word": (words.label(0), "")}
    return {f"Sentence {i}": (" ".join(words.labels(p.clean)), "") for i, p in enumerate(pairs, 1)}


def _fits(house: Any, card: dict[str, Any], text: str) -> bool:
    try:
        return bool(house.prompt(card, text=text))
    except PhasescopeError:
        return False


def _prompt_field(house: Any, card: dict[str, Any], place: Any) -> Prompt:
    known = presets(house, card)
    as_ids = card["tokenizer"].get("kind", "ids") == "ids" or bool(url.get("tokens"))
    first = known[list(known)[min(1, len(known) - 1)] if as_ids else list(known)[0]]
    with place:
        left, right = st.columns([6, 1], vertical_alignment="bottom", gap="small")
        with left:
            if as_ids:
                url.bound(
                    st.text_input,
                    "Prompt (token ids)",
                    "tokens",
                    fallback=first[1],
                    help=f"Whole numbers from 0 to {card['d_vocab'] - 1}, at most {card['n_ctx']} of them.",
                )
            else:
                url.bound(
                    st.text_input,
                    "Prompt (text)",
                    "text",
                    fallback=first[0],
                    help=f"At most {card['n_ctx']} tokens.",
                    live=True,
                )
        with right.popover("", icon=":material/edit_note:", help="Examples and the link to this view"):
            for name, (text, ids) in known.items():
                st.button(
                    name, key=f"preset:{name}", on_click=lambda t=text, i=ids: url.put(text=t or None, tokens=i or None)
                )
            if card["tokenizer"].get("kind", "ids") != "ids":
                st.button("Type token ids instead", on_click=lambda: url.put(tokens="0 1 2 3", text=None))
                st.button("Type text again", on_click=lambda: url.put(tokens=None))
            st.caption("The address in your browser is a link to this very view.")
        return _checked_prompt(house, card, as_ids)


def _checked_prompt(house: Any, card: dict[str, Any], as_ids: bool) -> Prompt:
    value = st.session_state["url:tokens" if as_ids else "url:text"]
    try:
        subject = house.prompt(card, ids=value) if as_ids and value.strip() else house.prompt(card, text=value)
    except NotFound:
        raise
    except PhasescopeError as error:
        widgets.error_panel(error)
        st.stop()
    st.caption(f"{len(subject.tokens)} of at most {card['n_ctx']} tokens")
    return subject
