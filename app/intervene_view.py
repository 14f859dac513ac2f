"""The page Intervene: the list and its builder, the answer before and after, over prompts and checkpoints."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import asking, over_checkpoints, subject_sets, theme, url, widgets
from app.intervene_builder import builder
from app.over_checkpoints import Over
from app.subject import Bar, begin
from backend.contract import Prompt
from backend.errors import PhasescopeError
from backend.figures.over_steps import effect_over_steps

WRITTEN = """
- `zero L1H2` · `mean L0.mlp_out at 3,-1` · `resample L1H2 seed 3` · `scale L0.attn_out 0.5` · `set L0N17 4`
- `add L1.resid_pre 3 token 5` · `add L1.resid_pre 3 token 5 minus 7`
- `add L1.resid_pre 3 prompt 4,9,1 minus 4,8,1`: two prompts as token ids, read at the last one (or `read -2`)
- `add L1.resid_pre 2 neuron L0N17`: along what a neuron writes
- `add L1.resid_pre 2 random 7`: along a direction drawn with a seed
- `add L1.resid_pre 2 feature my-sae 12`: of an SAE, or of a set kept on the page Directions by PCA
- `patch L1H2 at -1`
"""


def show(house: Any) -> None:
    """Draw the page."""
    bar = begin(house, "intervene", "Ablate, scale, steer or patch parts of the model, and see what it then says. The "
                "list is in the address: a link shows the same view.")  # fmt: skip
    side, main = st.columns([4, 8], gap="medium")
    with side:
        edits = _list(house, bar)
        builder(house, bar)
        _kept(house, edits or "")
    if edits is not None:
        pairs = _pairs_of_patch(house, bar, edits, main)
        with main:
            _answer(house, bar, edits, pairs)
        _effect(house, bar, edits, pairs)


def _pairs_of_patch(house: Any, bar: Bar, edits: str, place: Any) -> Any:
    """Draw the pairs that `patch` takes its values from; None where the list does not patch or none fit."""
    if not any(line.startswith("patch ") for line in edits.split("; ")):
        return None
    if not any(not task["reason"] for task in house.tasks(bar.card).values()):
        return None
    pairs = subject_sets.pairs_field(house, bar.card, place)
    with place:
        subject_sets.shown_pair(house, bar.card, pairs)
    return pairs


# ---------------------------------------------------------------- the list


def _list(house: Any, bar: Bar) -> str | None:
    """Draw the list with a button per line; return it as it is understood, None where this model cannot be asked it."""
    st.markdown("##### Interventions")
    lines, fits = _read(house, bar)
    for i, line in enumerate(lines):
        words, button = st.columns([6, 1], vertical_alignment="center", gap="small")
        words.code(line, language=None, wrap_lines=True)
        button.button("", icon=":material/close:", key=f"drop:{i}:{line}", help="Take it off the list", type="tertiary",
                      on_click=lambda i=i: url.put(edits="; ".join(lines[:i] + lines[i + 1 :]) or None))  # fmt: skip
    if not lines and fits:
        widgets.empty_state("Nothing is changed yet", "Add an intervention below, or write one: "
                            f"{_example(bar)}. The page then shows what the model says with it.")  # fmt: skip
    with st.popover("Write the list", icon=":material/edit:"):
        url.bound(st.text_area, "One intervention a line", "edits", fallback="", height=140,
                  help=WRITTEN)
    return "; ".join(lines) if fits else None


def _read(house: Any, bar: Bar) -> tuple[list[str], bool]:
    """Return the lines and whether this model can be asked them; says why not, once for the page."""
    asked, lines = url.get("edits") or "", []
    try:
        lines = house.read_interventions(asked)
        return house.check_interventions(asked, bar.card), True
    except PhasescopeError as error:
        widgets.error_panel(error)
        return lines, False


def _example(bar: Bar) -> str:
    return f"zero L{bar.card['n_layers'] - 1}H0"


def _kept(house: Any, edits: str) -> None:
    """Lists kept by name: open, keep, drop."""
    try:
        kept = house.kept_interventions()
    except PhasescopeError as error:
        widgets.error_panel(error)
        return
    with st.popover(f"Kept lists ({len(kept)})", icon=":material/bookmark:"):
        for name, listed in kept.items():
            row = st.columns([5, 1], vertical_alignment="center")
            row[0].button(name, key=f"open-list:{name}", help=listed, on_click=lambda v=listed: url.put(edits=v))
            row[1].button("", icon=":material/delete:", key=f"drop-list:{name}", type="tertiary",
                          on_click=widgets.act, args=(house.forget_interventions, name))  # fmt: skip
        name = st.text_input("Name", key="iv-name", placeholder="a name for this list")
        st.button("Keep this list", disabled=not edits or not name.strip(), on_click=widgets.act,
                  args=(house.keep_interventions, name, edits))  # fmt: skip


# ---------------------------------------------------------------- one prompt


def _answer(house: Any, bar: Bar, edits: str, pairs: Any) -> None:
    """What the model says after the prompt, and how it goes on, before and after; a patch is asked of a pair."""
    subject, params = bar.subject, {"edits": edits}
    if pairs is not None:
        subject = Prompt(tokens=pairs.pairs[0].clean)
        params["corrupted"] = ",".join(map(str, pairs.pairs[0].corrupted))
        st.caption("A patch takes its values from a corrupted prompt, so the first pair is asked instead of the prompt "
                   "above: its clean prompt, before and after.")  # fmt: skip
    elif any(line.startswith("patch ") for line in edits.split("; ")):
        st.caption("A patch takes its values from a corrupted prompt, and no pairs of prompts fit this model.")
        return
    key = asking.answer(house, "intervene", bar.card, subject, params)
    if not key:
        return
    table = house.table(key)
    st.plotly_chart(house.figure(key, "next_token"), key="intervene:next")
    st.caption(f"KL(before ‖ after) at the last token: {theme.number(table['kl'].iloc[0])} nats.")
    words, written = house.tokenizer(bar.card), table[table["what"] == "written"]
    for title, column in (("before", "token_before"), ("after", "token_after")):
        other = written["token_after" if column == "token_before" else "token_before"]
        chips = "".join(subject_sets.chip(words.label(int(a)), a != b)
                        for a, b in zip(written[column], other, strict=True))  # fmt: skip
        st.html(f'<div class="ps-pair"><span class="ps-what">{title}</span>'
                f'<span class="ps-chips">{chips}</span></div>')
    st.caption("How it goes on, greedily; tokens that differ are marked.")
    asking.provenance(house, key)


# ---------------------------------------------------------------- many prompts, all checkpoints


def _effect(house: Any, bar: Bar, edits: str, pairs: Any = None) -> None:
    """The same list over a set of pairs, and over the checkpoints of the run."""
    st.markdown("##### Over many prompts")
    if not edits:
        st.caption("With a list above, its effect on the logit difference over a set of prompt pairs is measured here.")
        return
    if not any(not task["reason"] for task in house.tasks(bar.card).values()):
        st.caption("No pairs of prompts fit this model.")
        return
    left, right = st.columns([6, 6], gap="medium")
    if pairs is None:
        pairs = subject_sets.pairs_field(house, bar.card, left)
        with left:
            subject_sets.shown_pair(house, bar.card, pairs)
    with left:
        key = asking.answer(house, "intervention_effect", bar.card, pairs, {"edits": edits})
        if key:
            mean = house.table(key).set_index("pair").loc[-1]
            st.caption(f"Effect {theme.number(mean['effect'])} logits (95 %: {theme.number(mean['effect_low'])} to "
                       f"{theme.number(mean['effect_high'])}, {len(pairs.pairs)} pairs); effect size "
                       f"{theme.number(mean['effect_size'])}.")  # fmt: skip
            _beside_control(mean)
    with right:
        if key:
            st.plotly_chart(house.figure(key, "before_and_after"), key="intervene:effect")
    if bar.checkpoints:
        _replay(house, bar, edits, pairs)


def _beside_control(mean: Any) -> None:
    """Say what the control did, and where it did as much or more."""
    control, effect = float(mean["control"]), float(mean["effect"])
    if control != control:
        st.caption("No control: the list names no head, neuron or direction that another could stand in for.")
        return
    st.caption(f"Control (other heads or neurons of the layers, random directions as long): {theme.number(control)} "
               "logits.")  # fmt: skip
    if abs(control) >= abs(effect) > 0:
        words = ("The control changes the answer as much as the interventions or more: what is seen may come from any "
                 "change of that size there, not from the part that was chosen.")  # fmt: skip
        st.warning(words, icon=":material/warning:")


def _replay(house: Any, bar: Bar, edits: str, pairs: Any) -> None:
    """The effect at every checkpoint; what is missing is computed when asked for."""
    st.markdown("##### Over all checkpoints")
    over = Over("intervention_effect", bar.spec, bar.checkpoints, pairs, {"edits": edits}, "iv-replay")
    found = over_checkpoints.kept(house, over)
    if len(found) > 1:
        table = house.sweep_table(found)
        st.plotly_chart(effect_over_steps(table[table["pair"] == -1], bar.step), key="intervene:replay")
        st.caption("The interval is 95 %, over pairs; effect size: mean effect over its standard deviation over pairs.")
    st.caption(f"{len(found)} of {len(bar.checkpoints)} checkpoints are computed.")
