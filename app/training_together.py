"""What the compared runs of one recipe say together: the step over seeds with its interval, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme
from app.training_data import whole

LIVE = ("running", "queued")


def together(house: Any, chosen: Sequence[str], runs: Mapping[str, Any]) -> None:
    """One line per recipe of which two compared runs or more have ended."""
    groups: dict[str, list[str]] = {}
    for name in chosen:
        run = runs.get(name) or {}
        if run.get("recipe") and run.get("state") not in LIVE:
            groups.setdefault(run["recipe"], []).append(name)
    for recipe, names in groups.items():
        if len(names) > 1:
            st.caption(f"**{recipe}, {len(names)} runs together.** {words(house.verdict(names))}")


def words(said: Mapping[str, Any]) -> str:
    """Return the verdict over runs in words; of each run the strongest change counts."""
    if said["step"] is None:
        return "None of them changed."
    step, low, high = (theme.count(whole(said[k])) for k in ("step", "step_low", "step_high"))
    over = f"Median step {step}, 90 % over runs {low} to {high}" if len(said["runs"]) > 1 else f"Step {step}"
    return f"{over}: {said['verdict']}. {said['words']}"
