"""Pickers for the part of a result that a figure shows; their state is the URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st
from pydantic import BaseModel

from app import url

SLIDERS = ("level",)  # axes that are moved along rather than picked from


def part_pickers(house: Any, key: str, axes: Sequence[str]) -> dict[str, int]:
    """Draw one picker per axis and return the chosen part; a picker offers what goes with those before it.

    An axis without a URL field of numbers keeps its state by itself.
    """
    if not axes:
        return {}
    table, called = house.table(key, arrays=False), _words(house, key)
    chosen: dict[str, int] = {}
    wide = 1 if set(axes) <= set(SLIDERS) else 4
    for axis, place in zip(axes, st.columns(max(wide, len(axes))), strict=False):
        options = sorted(int(v) for v in table[axis].unique())
        with place:
            if axis in SLIDERS and len(options) > 1:
                chosen[axis] = slider(axis, options)
            elif axis in url.FIELDS and isinstance(url.FIELDS[axis].decode("0"), int):
                chosen[axis] = url.bound(st.selectbox, axis, axis, options[0], options=options)
            else:
                words = dict(enumerate(called.get(axis, ())))
                chosen[axis] = st.selectbox(axis, options, key=f"part:{key}:{axis}",
                                            format_func=partial(_worded, words)) or 0  # fmt: skip
        table = table[table[axis] == chosen[axis]]
    return chosen


def _worded(words: Mapping[int, str], value: int) -> str:
    return words.get(value, str(value))


def slider(axis: str, options: Sequence[int]) -> int:
    """Draw the page's one slider along an axis of SLIDERS and return where it stands."""
    return url.bound(st.select_slider, f"Annealing {axis} (0 is the sharpest)", axis, options[0], options=options)


def by_slider(params: type[BaseModel]) -> tuple[str, ...]:
    """Return the fields that the page's slider gives; where all levels at once are usual (-1) the form does."""
    return tuple(n for n in SLIDERS if n in params.model_fields and params.model_fields[n].default != -1)


def asked_level(params: type[BaseModel], card: Mapping[str, Any]) -> dict[str, int]:
    """Draw the same slider for an analysis that computes one level alone, before it is asked; {} for the others."""
    if "level" not in by_slider(params) or not card.get("energy"):
        return {}
    return {"level": slider("level", range(int(card["energy"]["levels"])))}


def _words(house: Any, key: str) -> dict[str, tuple[str, ...]]:
    """Return what the values of each axis of a kept result are called, where they are words."""
    return {a.name: a.words for a in house.analysis(house.record(key)["analysis"]).axes if a.words}
