"""Tables of what the app detects in run folders, beside the offline reference: what is looked up is what a page shows.

Reference step: `segmentation.reference_step` of one curve per recipe, fixed beforehand: the induction score of the head
that ends strongest, and the test accuracy of modular addition. Of a run's transitions the one with the highest score
over threshold counts (`house.verdict` takes the same), never the one nearest to the reference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from backend import Backend
from backend.facade.detected import series_of
from backend.maths import segmentation, verdicts
from backend.settings import Settings
from benchmarks.experiments.milestones import curves
from benchmarks.experiments.plan import Run

Curve = tuple[np.ndarray, np.ndarray]


@contextmanager
def house_of(place: Path) -> Iterator[Backend]:
    """Give a house without workers on the runs below `place`, all of them read, with a cache that is thrown away."""
    with tempfile.TemporaryDirectory() as cache:
        house = Backend(Settings(cache=Path(cache), runs=place, device="cpu"), inline=True)
        try:
            while house.follower.poll() or not house.follower.runs():
                pass
            yield house
        finally:
            house.close()


def strongest_head(rows: pd.DataFrame) -> Curve:
    """Return the induction score of the head that has the largest at the end."""
    scores = {n: s for n, s in series_of(rows).items() if n.startswith("induction_score/")}
    return scores[max(scores, key=lambda n: scores[n][1][-1])]


def test_accuracy(rows: pd.DataFrame) -> Curve:
    """Return the accuracy on test pairs."""
    return series_of(rows)["test_accuracy"]


REFERENCES: dict[str, Callable[[pd.DataFrame], Curve]] = {
    "induction": strongest_head, "modular_addition": test_accuracy,
}  # fmt: skip


def reference(run: Run, place: Path) -> float | None:
    """Return the offline reference step of a run folder, None where its curve has no knot."""
    return segmentation.reference_step(*REFERENCES[run.recipe](curves(place / run.name)))


def detection(runs: Sequence[Run], place: Path) -> pd.DataFrame:
    """Return one row per run in which a transition is expected: the reference, and the transition found beside it."""
    asked = [r for r in runs if not r.control]
    steps = {r.name: reference(r, place) for r in asked}
    spread = {group: _spread([s for r in asked if r.group == group and (s := steps[r.name])])
              for group in {r.group for r in asked}}  # fmt: skip
    with house_of(place) as house:
        return pd.DataFrame([{**_named(r, steps[r.name], spread[r.group]),
                              **_found(house.transitions(r.name), steps[r.name])} for r in asked])  # fmt: skip


def controls(runs: Sequence[Run], place: Path) -> pd.DataFrame:
    """Return one row per control: the alarms that rang while it trained, and what is left of them at its end."""
    with house_of(place) as house:
        return pd.DataFrame([_control(r, house.alarms(r.name), house.transitions(r.name)) for r in runs if r.control])


def score(rows: pd.DataFrame) -> pd.DataFrame:
    """Return per group: runs, with a reference, with a transition, within 5 % by either reading."""
    return rows.groupby("group", sort=False).agg(
        runs=("run", "size"), with_reference=("reference", "count"), with_transition=("step", "count"),
        within_absolute=("within_absolute", "sum"), within_relative=("within_relative", "sum"),
    ).reset_index()  # fmt: skip


def _spread(steps: list[float]) -> tuple[float | None, float | None]:
    return verdicts.over_seeds(np.array(steps))[1:] if len(steps) > 1 else (None, None)


def _named(run: Run, step: float | None, spread: tuple[float | None, float | None]) -> dict[str, Any]:
    low, high = (None if x is None else round(x, 1) for x in spread)
    return {"run": run.name, "group": run.group, "seed": run.seed,
            "reference": None if step is None else round(step, 1),
            "reference_low": low, "reference_high": high}  # fmt: skip


def _found(transitions: Sequence[dict[str, Any]], step: float | None) -> dict[str, Any]:
    main = max(transitions, key=lambda t: t["score"] / t["threshold"], default=None)
    row: dict[str, Any] = {"transitions": len(transitions)}
    numbers = {k: None if main is None else round(main[k], 3 if k == "width" else 1)
               for k in ("step", "low", "high", "width", "alarm_step", "delay")}  # fmt: skip
    words = {"verdict": main["verdict"] if main else "", "channels": " ".join(main["channels"][:3]) if main else ""}
    met = segmentation.within(main["step"], step) if main and step else {"absolute": False, "relative": False}
    apart = round(abs(float(np.log(main["step"] / step))), 3) if main and step else None
    return {**row, **numbers, **words, "abs_ln_error": apart, **{f"within_{k}": v for k, v in met.items()}}


def _control(run: Run, rung: Sequence[dict[str, Any]], left: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"run": run.name, "group": run.group, "seed": run.seed, "alarms_rung": len(rung), "transitions": len(left),
            "alarm_steps": " ".join(str(r["alarm_step"]) for r in rung),
            "verdicts": "; ".join(r["verdict"] for r in left),
            "channels": "; ".join(" ".join(r["channels"][:3]) for r in rung)}  # fmt: skip
