"""Pickers for the part of a result that a figure shows; their state is the URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import url

SLIDERS = ("level",)  # axes that are moved along rather than picked from


def part_pickers(house: Any, key: str, axes: Sequence[str]) -> dict[str, int]:
    """Draw one picker per axis and return the chosen part; a picker offers what goes with those before it.

    An axis without a URL field keeps its state by itself.
    """
    if not axes:
        return {}
    table = house.table(key, arrays=False)
    chosen: dict[str, int] = {}
    wide = 1 if set(axes) <= set(SLIDERS) else 4
    for axis, place in zip(axes, st.columns(max(wide, len(axes))), strict=False):
        options = sorted(int(v) for v in table[axis].unique())
        with place:
            if axis in SLIDERS and len(options) > 1:
                chosen[axis] = url.bound(st.select_slider, f"Annealing {axis} (0 is the sharpest)", axis, options[0],
                                         options=options)  # fmt: skip
            elif axis in url.FIELDS:
                chosen[axis] = url.bound(st.selectbox, axis, axis, options[0], options=options)
            else:
                chosen[axis] = st.selectbox(axis, options, key=f"part:{key}:{axis}")
        table = table[table[axis] == chosen[axis]]
    return chosen
