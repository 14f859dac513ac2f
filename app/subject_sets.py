"""The subject bar's right side where the question is about pairs of prompts or about a corpus; pairs for people."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import url, widgets
from backend.contract import Corpus, Pair, Pairs, Problems
from backend.errors import PhasescopeError
from backend.facade.prompt_sets import OWN
from backend.subjects import HARDER, TASKS, entries

SOURCES = {"training": "what it was trained on", "python": "Python's standard library", "random": "random tokens",
           "file": "a text file"}  # fmt: skip


def pairs_field(house: Any, card: dict[str, Any], place: Any) -> Pairs:
    """Draw task, number and seed of pairs and the first pair; stops the page with the reason where none fits."""
    tasks = house.tasks(card)
    fitting = [name for name, task in tasks.items() if not task["reason"]]
    with place:
        if not fitting:
            reasons = "; ".join(f"{t['title']}: {t['reason']}" for t in tasks.values())
            widgets.empty_state("No pairs of prompts fit this model", f"{reasons}. Choose another model.")
            st.stop()
        left, middle, right = st.columns([5, 2, 2], vertical_alignment="bottom", gap="small")
        _say_unfit(tasks)
        with left:
            name = url.bound(st.selectbox, "Pairs of prompts", "task", fallback=fitting[0], options=fitting,
                             format_func=lambda t: tasks[t]["title"], help=_help(tasks))  # fmt: skip
        n, seed = _whole_set(tasks[name], middle) if name.startswith(OWN) else _drawn(middle, right)
        try:
            subject = house.pairs(card, name, n, seed)
        except PhasescopeError as error:
            widgets.error_panel(error)
            st.stop()
    return subject


def _drawn(middle: Any, right: Any) -> tuple[int, int]:
    with middle:
        n = url.bound(st.number_input, "Pairs", "n_pairs", fallback=16, min_value=1, max_value=512, step=1)
    with right:
        seed = url.bound(st.number_input, "Seed", "pairs_seed", fallback=0, min_value=0, step=1)
    return int(n), int(seed)


def _whole_set(task: dict[str, str], middle: Any) -> tuple[int, int]:
    """A set of the user's own has no number and no seed: all of it is asked."""
    middle.caption(task["help"])
    return 1, 0


def _say_unfit(tasks: dict[str, dict[str, str]]) -> None:
    """Say why the task of the address is not the one that is shown."""
    asked = url.get("task")
    if asked and asked not in tasks:
        st.caption(f":material/info: No pairs are known here as `{asked}`; the first that fit are shown.")
    elif asked and tasks[asked]["reason"]:
        st.caption(f":material/info: {tasks[asked]['title']}: not for this model, {tasks[asked]['reason']}.")


def _help(tasks: dict[str, dict[str, str]]) -> str:
    lines = [f"**{t['title']}**: " + (f"not for this model, {t['reason']}" if t["reason"] else t["help"])
             for t in tasks.values()]  # fmt: skip
    return "\n\n".join(lines)


def chip(label: str, differs: bool) -> str:
    """Return one token as HTML, marked where it differs from its counterpart."""
    return f'<span class="ps-chip{" ps-differs" if differs else ""}">{html.escape(label)}</span>'


def shown_pair(house: Any, card: dict[str, Any], subject: Pairs) -> None:
    """Show the first pair: what differs is marked, and the two answers behind it."""
    words, pair = house.tokenizer(card), subject.pairs[0]
    answer, distractor = (html.escape(words.label(t)) for t in (pair.answer, pair.distractor))
    lengths = sorted(subject.by_length())
    most = f" to {lengths[-1]}" if len(lengths) > 1 else ""
    told = f"{len(subject.pairs)} pairs of {lengths[0]}{most} tokens"
    lines = [f'<div class="ps-pair"><span class="ps-what">{title}</span>{said}</div>'
             for title, said in chips(words, pair).items()]  # fmt: skip
    st.html("".join(lines) + f'<div class="ps-pair"><span>{told}; answer <b>{answer}</b>, distractor '
            f"<b>{distractor}</b>; logit_diff = answer − distractor at the last token</span></div>")  # fmt: skip


def chips(words: Any, pair: Pair, most: int = 0) -> dict[str, str]:
    """Return {clean, corrupted: the prompt as HTML}; tokens that differ are marked.

    Above `most` tokens (0: never) what lies far from a difference and from both ends is left out, and counted.
    """
    found = {}
    shown = _near(pair) if 0 < most < len(pair.clean) else range(len(pair.clean))
    for title, ids, other in (("clean", pair.clean, pair.corrupted), ("corrupted", pair.corrupted, pair.clean)):
        said, last = "", -1
        for i in shown:
            said += f'<span class="ps-gap">… {i - last - 1} …</span>' if i - last > 1 else ""
            said += chip(words.label(ids[i]), ids[i] != other[i])
            last = i
        found[title] = f'<span class="ps-chips">{said}</span>'
    return found


def _near(pair: Pair) -> list[int]:
    """Return the positions at most 3 from a difference, the first 3 and the last 8."""
    n = len(pair.clean)
    differs = [i for i in range(n) if pair.clean[i] != pair.corrupted[i]]
    near = {j for i in differs for j in range(i - 3, i + 4)} | set(range(3)) | set(range(n - 8, n))
    return sorted(i for i in near if 0 <= i < n)


def corpus_field(
    house: Any, card: dict[str, Any], place: Any, other: dict[str, Any] | None = None, rows: int = 64
) -> Corpus:
    """Draw source, rows, length and seed of a corpus; stops the page with the reason where it cannot be read.

    With an `other` model only what both read is offered, in rows that fit both. `rows`: where the URL names none.
    """
    reasons = house.sources(card)
    if other:
        reasons = {source: why or house.sources(other)[source] for source, why in reasons.items()}
        card = min((card, other), key=lambda c: c["n_ctx"])
    fitting = [s for s, why in reasons.items() if not why and s != "file"]
    with place:
        left, many, length, seed = st.columns([5, 2, 2, 2], vertical_alignment="bottom", gap="small")
        with left:
            source = url.bound(st.selectbox, "Corpus", "source", fallback=fitting[0], options=fitting,
                               format_func=lambda s: SOURCES[s].capitalize(),
                               help="\n\n".join(f"{SOURCES[s]}: {why}" for s, why in reasons.items() if why) or None)
        with many:
            n = url.bound(st.number_input, "Rows", "n_rows", fallback=rows, min_value=1, max_value=65_536, step=1)
        with length:
            most = url.bound(st.number_input, "Tokens a row", "row_length", fallback=min(64, card["n_ctx"]),
                             min_value=1, max_value=card["n_ctx"], step=1)  # fmt: skip
        with seed:
            dice = url.bound(st.number_input, "Seed", "corpus_seed", fallback=0, min_value=0, step=1)
        try:
            return house.corpus(card, source=source, rows=int(n), length=int(most), seed=int(dice))
        except PhasescopeError as error:
            widgets.error_panel(error)
            st.stop()
    raise AssertionError


def problems_field(house: Any, card: dict[str, Any], place: Any) -> Problems:
    """Draw how many problems, their seed, and of which task or distribution; stops the page where they do not fit."""
    own = card["energy"]["task"]
    fitting = [own, *(t for t in TASKS if t != own and _same_sizes(t, card["energy"]))]
    with place:
        left, n_at, seed_at, harder_at = st.columns([4, 2, 2, 4], vertical_alignment="bottom", gap="small")
        with left:
            task = url.bound(st.selectbox, "Problems", "problem_task", fallback=own, options=fitting,
                             help="What is asked; the first is what the model was trained on.")  # fmt: skip
        drawn = drawn_problems(n_at, seed_at, harder_at, harder=task in HARDER)
        try:
            return house.problems(card, task="" if task == own else task, **drawn)
        except PhasescopeError as error:
            widgets.error_panel(error)
            st.stop()
    raise AssertionError


def drawn_problems(
    n_at: Any, seed_at: Any, harder_at: Any, harder: bool = True, many: str = "Number"
) -> dict[str, Any]:
    """Draw how many problems, their seed and distribution, a column each: {n, seed, harder}.

    `harder`: there is such a distribution; `many`: what the first is called.
    """
    with n_at:
        n = url.bound(st.number_input, many, "n_problems", fallback=64, min_value=1, max_value=4096, step=1)
    with seed_at:
        seed = url.bound(st.number_input, "Seed", "problem_seed", fallback=0, min_value=0, step=1)
    with harder_at:
        words = {"no": "as in training", "yes": "harder"}
        chosen = url.bound(st.selectbox, "Distribution", "harder", fallback="no", options=list(words),
                           format_func=lambda o: words[o], disabled=not harder,
                           help="Harder: nearer to singular, larger or thinner than in training.")  # fmt: skip
    return {"n": int(n), "seed": int(seed), "harder": harder and chosen == "yes"}


def _same_sizes(task: str, told: Mapping[str, Any]) -> bool:
    return entries(task, told["side"]) == (told["d_x"], told["d_y"])
