"""The page Compare: two models or checkpoints, one question, both answers on shared scales, and the difference."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import auto_page, fields, subject_sets, url, views, widgets
from app.subject import checkpoint_of, default_model, model_picker, openable, opened
from backend.contract import Corpus, Pairs, Prompt


def show(house: Any) -> None:
    """Draw the page."""
    st.markdown("### Compare")
    st.caption("One question to two models, or to two checkpoints of a run: before is A, after is B, on the same axes "
               "and colours; the difference is B − A.")
    with st.container(key="subject-bar"):
        left, right = st.columns(2, gap="large")
    with left:
        first = _side(house, "A", "model", "step")
    with right:
        second = _side(house, "B", "model_b", "step_b")
    if (first["spec"], first["step"]) == (second["spec"], second["step"]):
        widgets.empty_state("A and B are the same", "Choose another model or another checkpoint on one of the sides.")
        return
    known = views.fitting(house, first, named=True)
    able = views.fitting(house, second, named=True)
    both = {n: t for n, t in known.items() if n in able and not _unlike(house, n, first, second)}
    if not both:
        widgets.empty_state("Nothing can be asked of both", "The two models have no analysis in common: they differ in "
                            "what they can do or in their vocabulary.")  # fmt: skip
        return
    picked = url.bound(st.multiselect, "Compare in", "compare", fallback=views.first_views(first, list(both)),
                       options=list(both), format_func=lambda n: both[n],
                       help=_left_out(house, first, second))  # fmt: skip
    prompt = None
    if any(house.analysis(n).subject is Prompt for n in picked):
        prompt = views.prompt_of(house, first)
        if prompt is None or _too_long(prompt, second):
            return
    kinds = {house.analysis(n).subject for n in picked}
    subjects = {kind: draw(house, first, second) for kind, draw in ((Pairs, _pairs), (Corpus, _corpus))
                if kind in kinds}  # fmt: skip
    _heads(first, second)
    for name in picked:
        st.markdown(f"##### {both[name]}")
        _asked(house, name, first, second, prompt, subjects)
    if not picked:
        st.caption("Choose an analysis above.")


def _side(house: Any, title: str, model: str, step: str) -> dict[str, Any]:
    """Draw the pickers of one side and return its card; stops the page until the model is open."""
    runs = {f"run:{r['name']}": r for r in house.runs() if openable(r)}
    spec = url.get(model) or (url.get("model") if model != "model" else "") or default_model(runs, house)
    model_picker(house, runs, spec, f"Model {title}", model, step)
    steps = runs[spec]["checkpoints"] if spec in runs else []
    at = checkpoint_of(steps, step, first=model == "model") if steps else None
    return opened(house, spec, at)


def _asked(house: Any, name: str, first: Any, second: Any, prompt: Any, subjects: Any) -> None:
    """One analysis: the form that both sides share, then both answers."""
    one = house.analysis(name)
    params: dict[str, Any] | None = {}
    if one.params.model_fields:
        with st.expander("Settings, the same for both sides", expanded=bool(one.params.named)):
            params = auto_page.form(one, shared=True, columns=3)
    if params is None:
        return
    missing = [fields.label_of(one.params, f) for f in one.params.named if not params.get(f)]
    if missing:
        widgets.empty_state("Something must be named first", f"Fill in {' and '.join(missing)} in the settings above.")
        return
    views.two(house, name, [first, second], prompt, subjects, widgets.changed(one.params, params))


def _corpus(house: Any, first: dict[str, Any], second: dict[str, Any]) -> Corpus:
    """Draw the field of a corpus that both can read; both sides are asked the same rows."""
    corpus = subject_sets.corpus_field(house, first, st.container(), other=second)
    if corpus.source == "training" and first["spec"] != second["spec"]:
        st.caption("Each model is asked rows of its own training data.")
    return corpus


def _pairs(house: Any, first: dict[str, Any], second: dict[str, Any]) -> Pairs:
    """Draw the field of pairs and the first of them; both sides are asked the same."""
    pairs = subject_sets.pairs_field(house, first, st.container())
    subject_sets.shown_pair(house, first, pairs)
    return pairs


def _unlike(house: Any, name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    """Return why a question about tokens cannot be put to both, or ''."""
    if house.analysis(name).subject.model_fields["kind"].default == "weights":
        return ""
    same = first["tokenizer"] == second["tokenizer"] and first["d_vocab"] == second["d_vocab"]
    return "" if same else "their vocabularies differ"


def _left_out(house: Any, first: dict[str, Any], second: dict[str, Any]) -> str | None:
    if any(_unlike(house, n, first, second) for n in house.analyses()):
        return "Questions about tokens are left out: the two vocabularies differ."
    return None


def _too_long(prompt: Prompt, card: dict[str, Any]) -> bool:
    over = len(prompt.tokens) - card["n_ctx"]
    if over > 0:
        widgets.empty_state("Too long for B", f"It reads {card['n_ctx']} tokens: shorten the prompt by {over}.")
    return over > 0


def _heads(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Pickers of layer and head, within what both have."""
    left, right, _ = st.columns([1, 1, 6])
    for place, axis, size in ((left, "layer", "n_layers"), (right, "head", "n_heads")):
        with place:
            url.bound(st.selectbox, axis.capitalize(), axis, 0, options=list(range(min(first[size], second[size]))))
