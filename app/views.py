"""Any analysis of a checkpoint as a panel: one checkpoint, or two side by side with their difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import asking, circuits_view, notes, theme, url, widgets
from app.subject import presets, short_name
from backend.contract import Pairs, Prompt
from backend.errors import PhasescopeError
from backend.figures import label
from backend.figures.cells import seen
from backend.figures.compare import WORDY, compared, differences, share_limits

PATIENCE = 0.6  # s a panel waits in place; then it watches its job alone and the page goes on
#: shown first where they fit
FIRST = {"energy": ["exp010_annealing", "exp001_hessian"],
         "modular_addition": ["attention", "logit_lens"], "induction": ["attention", "logit_lens"]}


# ---------------------------------------------------------------- what can be asked of a checkpoint


def opened(house: Any, run: str, step: int) -> dict[str, Any] | None:
    """Return the card of a checkpoint, opening it by a job where needed; None while that goes on or where it fails."""
    spec = f"run:{run}"
    try:
        card = house.card(spec, step)
        if card is not None:
            return card.model_dump()
        answer = house.open(spec, step)
        if answer["card"] is None and asking.finish(house, answer["job"], lambda: house.open(spec, step), PATIENCE):
            answer = house.open(spec, step)
        return answer["card"]
    except PhasescopeError as error:
        widgets.error_panel(error)
        return None


def fitting(house: Any, card: Mapping[str, Any], named: bool = False) -> dict[str, str]:
    """Return {name: title} of the analyses that this model can be asked; with `named` also those that want a word of
    the user's own (`Params.named`)."""
    paired = not card["energy"] and any(not task["reason"] for task in house.tasks(card).values())
    return {n: a.title for n, a in house.analyses().items()
            if not a.unfit(card["capabilities"]) and (paired or a.subject is not Pairs)
            and (named or not a.params.named)}


def first_views(card: Mapping[str, Any], known: Sequence[str], n: int = 2) -> list[str]:
    """Return the views of a first visit: those of the run's recipe, else attention and lens."""
    wanted = FIRST.get(card.get("training", {}).get("recipe", ""), []) + ["attention", "logit_lens"]
    return [v for v in dict.fromkeys(wanted) if v in known][:n]


def prompt_of(house: Any, card: dict[str, Any]) -> Prompt | None:
    """Draw the prompt's field and return the prompt; None after saying what is wrong with it."""
    ids = card["tokenizer"].get("kind", "ids") == "ids"
    known = presets(house, card)
    text, tokens = _task_prompt(card) or known[list(known)[min(1, len(known) - 1)] if ids else list(known)[0]]
    name, fallback = ("tokens", tokens) if ids else ("text", text)
    asked = url.get(name)
    try:  # what another model was asked may not be words of this one
        house.prompt(card, ids=asked) if ids and asked else house.prompt(card, text=asked) if asked else None
    except PhasescopeError:
        url.put(**{name: None})
    value = url.bound(st.text_input, "Prompt (token ids)" if ids else "Prompt (text)", name, fallback=fallback,
                      help=f"At most {card['n_ctx']} tokens; ids from 0 to {card['d_vocab'] - 1}.")  # fmt: skip
    try:
        return house.prompt(card, ids=value) if ids else house.prompt(card, text=value)
    except PhasescopeError as error:
        widgets.error_panel(error)
        return None


def _task_prompt(card: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the input of a task that has a fixed form: a, b, '=' of modular addition."""
    training = card.get("training") or {}
    if training.get("recipe") != "modular_addition":
        return None
    p = int(training["params"]["p"])
    return "", f"{min(5, p - 1)} {min(7, p - 1)} {p}"


def subject_of(house: Any, name: str, prompt: Prompt | None, card: Mapping[str, Any]) -> Any:
    """Return what an analysis is asked about, None where it wants a prompt and there is none.

    Pairs and corpora are those of a first visit to the analysis' own page.
    """
    kind = house.analysis(name).subject
    return prompt if kind is Prompt else house.subject(kind, card, {})


def params_of(name: str, card: Mapping[str, Any], prompt: Prompt | None) -> dict[str, Any]:
    """Return the params of a view: the lens follows the target of the address, or the task's own answer."""
    if name != "logit_lens" or prompt is None:
        return {}
    target, training = url.get("target"), card.get("training") or {}
    if target is not None and 0 <= target < card["d_vocab_out"]:
        return {"target": target}
    if training.get("recipe") == "modular_addition" and len(prompt.tokens) == 3:
        return {"target": (prompt.tokens[0] + prompt.tokens[1]) % int(training["params"]["p"])}
    return {}


# ---------------------------------------------------------------- one checkpoint


def single(house: Any, name: str, card: dict[str, Any], prompt: Prompt | None) -> str | None:
    """Draw every figure of one analysis at one checkpoint, or how far it is; return the key where it is there."""
    subject = subject_of(house, name, prompt, card)
    if subject is None:
        return None
    key = asking.answer(house, name, card, subject, params_of(name, card, prompt), patience=PATIENCE)
    if key is None:
        return None
    if name == "attention":
        layer, head = heads(card)
        st.plotly_chart(house.figure(key, "head", {"layer": layer, "head": head}), key=f"view:{name}")
        return key
    for figure in list(house.analysis(name).figures.values())[:2]:
        chosen = _part(house, key, figure.choose, card)
        st.plotly_chart(house.figure(key, figure.name, chosen), key=f"view:{name}:{figure.name}")
    return key


def heads(card: Mapping[str, Any]) -> tuple[int, int]:
    """Return layer and head of the address, within the model."""
    return _within("layer", card["n_layers"]), _within("head", card["n_heads"])


def _within(name: str, n: int) -> int:
    """Return the address's layer or head, the nearest there is where the model has only `n`, which is said."""
    asked = url.get(name)
    shown = max(0, min(asked, n - 1))
    if shown != asked:
        notes.say(name, f"The address asks for {name} {asked}; this model has 0 to {n - 1}. Shown: {name} {shown}.")
    return int(shown)


def _part(house: Any, key: str, axes: Sequence[str], card: Mapping[str, Any]) -> dict[str, int]:
    """Return the part that a figure shows: layer and head of the address, the last position, else the first value."""
    if not axes:
        return {}
    chosen = dict(zip(("layer", "head"), heads(card), strict=True))
    table = house.table(key, arrays=False)
    part = {}
    for axis in axes:
        there = sorted(int(v) for v in table[axis].unique())
        wanted = chosen.get(axis, there[-1] if axis == "pos" else there[0])
        part[axis] = wanted if wanted in there else there[0]
    return part


# ---------------------------------------------------------------- two checkpoints


def two(house: Any, name: str, cards: Sequence[dict[str, Any]], prompt: Prompt | None,
        subjects: Mapping[type, Any] | None = None, params: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Draw before | after | difference of one analysis at two checkpoints of a run.

    `subjects` {kind: what questions of this kind are asked of}; without one, that of a first visit. `params` are asked
    of both.
    """
    subject = (subjects or {}).get(house.analysis(name).subject) or subject_of(house, name, prompt, cards[0])
    if subject is None:
        return
    told = params_of(name, cards[0], prompt) | dict(params or {})
    keys = [asking.answer(house, name, card, subject, told, patience=PATIENCE) for card in cards]
    if None in keys:
        return
    titles = titles_of(cards)
    alike = cards[0]["n_layers"] == cards[1]["n_layers"]
    if name == "attention":
        _attention(house, keys, cards, prompt, titles)
    elif name == "logit_lens" and alike:
        _lens(house, keys, cards, prompt, titles)
    else:
        if name in circuits_view.CIRCUITS:
            circuits_view.overlap(house, keys, titles)
        _any(house, name, keys, cards, titles)


def titles_of(cards: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return what tells the two apart: the step, and the model where it differs."""
    one, two = (f"step {c['step']}" if c["step"] is not None else "" for c in cards)
    if cards[0]["spec"] == cards[1]["spec"]:
        return one, two
    names = [short_name(c["spec"]) for c in cards]
    return f"{names[0]} {one}".strip(), f"{names[1]} {two}".strip()


def _attention(house: Any, keys: Any, cards: Any, prompt: Any, titles: tuple[str, str]) -> None:
    layer, head = heads(cards[0])
    before, after = (house.array(k, "pattern", {"layer": layer, "head": head}) for k in keys)
    words = house.tokenizer(cards[0]).labels(list(prompt.tokens))
    st.plotly_chart(
        compared(seen(before), seen(after), x=words, y=words, x_title="key position (token)", rank="row",
                 y_title="query position (token)", value="attention", limits=(0.0, 1.0), titles=titles),
        key="two:attention")  # fmt: skip
    change = np.abs(np.asarray(after, float) - np.asarray(before, float))
    q, k = np.unravel_index(int(np.nanargmax(change)), change.shape)
    st.caption(f"L{layer}H{head}. The largest change: query {q} ({label(words[q])}) gives key {k} ({label(words[k])}) "
               f"{theme.number(before[q, k])} before and {theme.number(after[q, k])} after.")


def lens_maps(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return [layer, pos] of the target's log-prob, the target, and the top token of a kept logit lens."""
    top = table[table["rank"] == 0]
    one, two, three = (top.pivot(index="layer", columns="pos", values=c)
                       for c in ("target_log_prob", "target_id", "token_id"))  # fmt: skip
    return one, two, three


def _lens(house: Any, keys: Any, cards: Any, prompt: Any, titles: tuple[str, str]) -> None:
    """Colour: log-prob of the followed token. Where the two follow different tokens there is no difference."""
    tables = [lens_maps(house.table(k, arrays=False)) for k in keys]
    same = (tables[0][1] == tables[1][1]).to_numpy()
    words = house.tokenizer(cards[0])
    text = [[[label(words.label(int(t)), 5) for t in row] for row in top.to_numpy()] for _, _, top in tables]
    values = [np.where(same, logs.to_numpy(float), np.nan) for logs, _, _ in tables]
    if not same.any():
        st.info("The two checkpoints follow different tokens at every position, so their probabilities cannot be "
                "compared. Choose a target on the Logit lens page.", icon=":material/info:")  # fmt: skip
        return
    layers = ["embed" if i == -1 else str(i) for i in tables[0][0].index]
    lowest = -2 * math.log(max(int(cards[0]["d_vocab_out"]), 2))
    st.plotly_chart(
        compared(values[0], values[1], x=words.labels(list(prompt.tokens)), y=layers, x_title="position (token)",
                 y_title="layer", value="log-prob of the target (nats)", limits=(lowest, 0.0), titles=titles,
                 text=tuple(text), reverse_y=False, numbered_y=False),
        key="two:logit_lens")  # fmt: skip
    final = values[1][-1] - values[0][-1]
    worded = " Words in the cells: each layer's top token." if len(prompt.tokens) <= WORDY else ""
    st.caption(gain_words(final) + worded)


def gain_words(final: Any) -> str:
    """Say what the followed token gains or loses after the last layer; `final` is its change in nats [pos]."""
    mean, n = float(np.nanmean(final)), int(np.isfinite(final).sum())
    change = f"{'loses' if mean < 0 else 'gains'} {theme.number(abs(mean))} nats"
    return f"After the last layer the target (next token, or the task's answer) {change} in the mean of {n} positions."


def _any(house: Any, name: str, keys: Any, cards: Any, titles: tuple[str, str]) -> None:
    """Figures side by side with shared limits, then the difference of one value over the axes."""
    one = house.analysis(name)
    for figure in list(one.figures.values())[:2]:
        chosen = _part(house, keys[0], figure.choose, cards[0])
        pair = [house.figure(k, figure.name, chosen) for k in keys]
        share_limits(pair)
        for column, drawn, title, side in zip(st.columns(2), pair, titles, ("before", "after"), strict=True):
            with column:
                st.markdown(f"**{title}** · {figure.title}")
                st.plotly_chart(drawn, key=f"two:{name}:{figure.name}:{side}")
    axes = [a.name for a in one.axes]
    values = [v.name for v in one.values if v.kind in ("float", "int")]
    before, after = (house.table(k, arrays=False) for k in keys)
    joined = joined_tables(before, after, axes, values)
    if len(joined) == 0 or not values:
        st.info("The two tables share no rows, so there is no difference to show.", icon=":material/info:")
        return
    value = st.selectbox("Difference of", values, key=f"difference:{name}") if len(values) > 1 else values[0]
    unit = next(v.unit for v in one.values if v.name == value)
    _difference(joined, axes, value, unit, name)


def joined_tables(before: pd.DataFrame, after: pd.DataFrame, axes: list[str], values: list[str]) -> pd.DataFrame:
    """Return [axes..., value before, value after, value difference ...] of the rows that both tables have."""
    keep = [c for c in (*axes, *values) if c in before and c in after]
    joined = before[keep].merge(after[keep], on=axes, suffixes=(" before", " after"))
    for value in values:
        if f"{value} before" in joined:
            joined[f"{value} difference"] = joined[f"{value} after"] - joined[f"{value} before"]
    return joined


def _difference(joined: pd.DataFrame, axes: list[str], value: str, unit: str, name: str) -> None:
    before, after = joined[f"{value} before"], joined[f"{value} after"]
    said = f"{value}" + (f" ({unit})" if unit else "")
    varying = [a for a in axes if joined[a].nunique() > 1]
    if len(varying) == 2 and len(joined) <= 20_000 and not joined.duplicated(varying).any():
        maps = [joined.pivot(index=varying[0], columns=varying[1], values=f"{value} {end}")
                for end in ("before", "after")]  # fmt: skip
        st.plotly_chart(
            compared(maps[0], maps[1], x=[str(c) for c in maps[0].columns], y=[str(r) for r in maps[0].index],
                     x_title=varying[1], y_title=varying[0], value=said, numbered_y=False),
            key=f"two:{name}:difference")  # fmt: skip
    elif len(varying) <= 1 and len(joined) <= 300:
        names = [str(v) for v in joined[varying[0]]] if varying else ["all"]
        st.plotly_chart(differences(names, before, after, x_title=varying[0] if varying else "", y_title=f"Δ {said}"),
                        key=f"two:{name}:difference")  # fmt: skip
    columns = [*axes, f"{value} before", f"{value} after", f"{value} difference"]
    largest = joined[columns].sort_values(columns[-1], key=np.abs, ascending=False).head(200)
    st.dataframe(largest, hide_index=True, height=220, column_config={
        c: st.column_config.NumberColumn(format="%.4g") for c in columns[-3:]})
    if len(largest) < len(joined):
        st.caption(f"The {len(largest)} largest of {len(joined)} differences")
