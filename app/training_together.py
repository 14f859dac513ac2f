"""What the compared runs of one recipe say together: the step over seeds with its interval, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme
from app.training_data import whole
from backend.errors import NotFound

LIVE = ("running", "queued")


def together(house: Any, chosen: Sequence[str], runs: Mapping[str, Any]) -> None:
    """One line per recipe of which two compared runs or more have ended."""
    groups: dict[str, list[str]] = {}
    for name in chosen:
        run = runs.get(name) or {}
        if run.get("recipe") and run.get("state") not in LIVE:
            groups.setdefault(run["recipe"], []).append(name)
    for recipe, names in groups.items():
        if len(names) < 2:
            continue
        try:
            st.caption(f"**{recipe}, {len(names)} runs together.** {words(house.verdict(names))}")
        except NotFound:  # one was deleted meanwhile: the next look is without it
            continue


def words(said: Mapping[str, Any]) -> str:
    """Return the verdict over runs in words; of each run the strongest change counts."""
    if said["step"] is None:
        return "None of them changed."
    step, low, high = (theme.count(whole(said[k])) for k in ("step", "step_low", "step_high"))
    over = f"Median step {step}, 90 % over runs {low} to {high}" if len(said["runs"]) > 1 else f"Step {step}"
    return f"{over}: {said['verdict']}. {said['words']}{offline(said)}"


def offline(said: Mapping[str, Any]) -> str:
    """Return what the segmentation of the whole curves says beside it, '' where it finds no change."""
    if said.get("offline") is None:
        return ""
    step, low, high = (theme.count(whole(said[k])) for k in ("offline", "offline_low", "offline_high"))
    return f" Offline, by segments of the whole curves: {step}, 90 % over runs {low} to {high}."
