"""What the Training page works out from plain records and tables: no widgets, no drawing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from app import theme
from backend.contract import Metric

LIVE = ("running", "queued")
COMPARED = 8
CHARTS = 8  # rows of one figure; a ninth would push the first off the screen
SHOWN_FIRST = 4
BUDGET = 12_000  # points in one figure: each redraw sends it whole
GRID = 400  # steps of a band
_FAMILY = re.compile(r"^(.+)_w(\d+)$")
#: shown first where a recipe does not say; then whatever is there
USUAL = ("loss", "train_loss", "test_loss", "train_accuracy", "test_accuracy", "second_copy_accuracy",
         "induction_score", "previous_token_score", "val_loss")  # fmt: skip


# ---------------------------------------------------------------- runs


def fits(run: Mapping[str, Any], text: str) -> bool:
    """Say whether every word of a filter occurs in the run's name, recipe, state or group."""
    told = " ".join(str(run.get(k) or "") for k in ("name", "recipe", "state", "group")).lower()
    return all(word in told for word in text.lower().split())


def configuration(run: Mapping[str, Any]) -> str:
    """Return what runs share that differ by their seed alone; a run without a recipe is its own."""
    if not run.get("recipe"):
        return f"run {run['name']}"
    params = {k: v for k, v in (run.get("params") or {}).items() if k not in ("seed", "device")}
    return json.dumps([run["recipe"], params], sort_keys=True, default=str)


def configurations(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the runs' names, those of one configuration together, in order of appearance."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(configuration(run), []).append(str(run["name"]))
    return list(found.values())


def is_control(run: Mapping[str, Any]) -> bool:
    """Say whether a run is the one-layer induction control."""
    return run.get("recipe") == "induction" and int((run.get("params") or {}).get("n_layers", 2)) == 1


# ---------------------------------------------------------------- metrics


def families(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Return {family: {frequency: metric}} of the names `family_w14`; two of a kind make a family."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _FAMILY.match(name):
            found.setdefault(match[1], {})[int(match[2])] = name
    return {family: dict(sorted(members.items())) for family, members in found.items() if len(members) > 1}


def charts_of(names: Iterable[str]) -> list[str]:
    """Return what can be charted: families once, all else by itself, in alphabetical order."""
    names = set(names)
    grouped = families(names)
    return sorted((names - {m for members in grouped.values() for m in members.values()}) | set(grouped))


def chosen_charts(
    charts: Sequence[str], main: Sequence[str], asked: Sequence[str], runs: Sequence[Sequence[str]] = ()
) -> list[str]:
    """Return which charts to draw: those asked for, else the recipe's main ones, else the first; at most CHARTS.

    `runs` are the charts that each run has: where nothing was asked for every one of them is in some chart.
    """
    wanted = [c for c in asked if c in charts]
    if not wanted:
        wanted = [c for c in dict.fromkeys([*main, *USUAL]) if c in charts][:SHOWN_FIRST] or list(charts)[:SHOWN_FIRST]
        wanted = next(w for n in range(len(wanted), -1, -1) if len(w := _cover(wanted[:n], runs, main)) <= CHARTS
                      or n == 0)  # fmt: skip
    return wanted[:CHARTS]


def _cover(wanted: Sequence[str], runs: Sequence[Sequence[str]], main: Sequence[str]) -> list[str]:
    """Return the charts, and the headline of every run that none of them shows."""
    found = list(wanted)
    for own in runs:
        if own and not set(own) & set(found):
            found.append(str(headline(own, main)))
    return found


def words(known: Mapping[str, Metric], name: str) -> Metric:
    """Return a metric's words; one that nobody declared is called by its own name."""
    return known.get(name) or Metric(name, name.replace("_", " ").capitalize())


def headline(names: Iterable[str], main: Sequence[str]) -> str | None:
    """Return the metric of the sparkline: the recipe's first that is logged, else a usual one, else any."""
    names = set(names)
    return next((n for n in [*main, *USUAL, *sorted(names)] if n in names), None)


# ---------------------------------------------------------------- several lines as one


def on_grid(lines: Sequence[pd.DataFrame], at_most: int = GRID) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps [n], values [line, n]) of lines [step, value] on the union of their steps.

    Between its own points a line is interpolated, outside of them and in NaN alone it is NaN. Above `at_most` steps
    every k-th stays: the band then loses spikes narrower than that, which the thin lines keep.
    """
    if not lines:
        return np.empty(0), np.empty((0, 0))
    steps = np.unique(np.concatenate([line["step"].to_numpy(float) for line in lines]))
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, at_most).astype(int))] if len(steps) > at_most else steps
    values = np.full((len(lines), len(steps)), np.nan)
    for row, line in zip(values, lines, strict=True):
        good = line[np.isfinite(line["value"].to_numpy(float))].sort_values("step")
        if len(good):
            row[:] = np.interp(steps, good["step"], good["value"], left=np.nan, right=np.nan)
    return steps, values


def band(lines: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return [step, median, low, high] over lines, where all that have any value have one.

    Past the end of the shortest the median would jump to that of the others: there the thin lines alone go on.
    """
    steps, values = on_grid([line for line in lines if np.isfinite(line["value"].to_numpy(float)).any()])
    some = np.isfinite(values).all(0) if len(steps) else np.empty(0, bool)
    values = values[:, some] if len(steps) else np.empty((1, 0))
    found = {"median": np.nanmedian(values, 0), "low": np.nanmin(values, 0), "high": np.nanmax(values, 0)}
    return pd.DataFrame({"step": steps[some], **found}) if values.size else pd.DataFrame({"step": [], **found})


def strongest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return [step, value]: at each step the largest of a metric's series (its strongest head or layer)."""
    lines = [line for _, line in rows.groupby(["layer", "head"], dropna=False)]
    if len(lines) < 2:
        return rows[["step", "value"]]
    steps, values = on_grid(lines, 2000)
    some = np.isfinite(values).any(0)
    return pd.DataFrame({"step": steps[some], "value": np.nanmax(values[:, some], 0)})


# ---------------------------------------------------------------- steps


def bracket(checkpoints: Sequence[int], low: float, high: float) -> tuple[int, int, str] | None:
    """Return (before, after, words) of the checkpoints around [low, high]; None where there are not two.

    Before: the last at or before `low`; after: the first at or after `high`. Where there is none the nearest that is
    left stands in, and the words say so.
    """
    steps = sorted(checkpoints)
    if len(steps) < 2:
        return None
    below, above = [s for s in steps if s <= low], [s for s in steps if s >= high]
    before, after = (below or steps)[-1 if below else 0], (above or steps)[0 if above else -1]
    said = [] if below else [f"no checkpoint lies before the interval; step {before} is the first"]
    said += [] if above else [f"none lies after it yet; step {after} is the last"]
    if before == after:  # the interval is a point on a checkpoint, or lies outside of them all
        at = steps.index(before)
        before, after = (steps[at - 1], after) if at else (before, steps[1])
    return before, after, "; ".join(said)


def whole(step: Any) -> int:
    """Return a step as everything shows it: the estimate of a transition lies between logged steps."""
    return round(float(step))


def at_marker(found: Sequence[Mapping[str, Any]], marker: int) -> Mapping[str, Any] | None:
    """Return the transition that a marker means: the one at this step, else the nearest whose interval holds it.

    While a run lives its estimates move a little, and an address with them would lose its transition.
    """
    holding = [t for t in found if whole(t["step"]) == marker or
               (t.get("low") is not None and float(t["low"]) - 1 <= marker <= float(t["high"]) + 1)]
    return min(holding, key=lambda t: abs(float(t["step"]) - marker), default=None)


def interval_words(found: Mapping[str, Any]) -> str:
    """Return "low to high" in whole steps."""
    low, high = (found.get(k) if found.get(k) is not None else found["step"] for k in ("low", "high"))
    return f"{theme.count(whole(low))} to {theme.count(whole(high))}"


def located(found: Mapping[str, Any]) -> bool:
    """Say whether the interval is not much wider than the change: more than twice its width and half a ln step."""
    low, high = found.get("low"), found.get("high")
    if low is None or high is None or float(high) <= float(low):
        return True
    return math.log(float(high) / max(float(low), 1.0)) <= max(2 * float(found.get("width") or 0.0), 0.5)


_CHANNEL = re.compile(r"^(.+?)(?:/(L\d+(?:H\d+)?))?$")


def carried_by(channels: Sequence[str], known: Mapping[str, Metric], most: int = 2) -> str:
    """Return the quantities in words, the heads of one together: "Induction score L1H0, L1H2; Loss; 4 more"."""
    grouped: dict[str, list[str]] = {}
    for channel in channels:
        name, place = _CHANNEL.match(str(channel)).groups()  # type: ignore[union-attr]
        grouped.setdefault(name, []).extend([place] if place else [])
    said = []
    for name, places in list(grouped.items())[:most]:
        more = f" and {len(places) - most} more" if len(places) > most else ""
        title = words(known, name).title.split(" (")[0]  # what stands in brackets explains
        said.append(f"{title} {', '.join(places[:most])}{more}".strip())
    return "; ".join([*said, *([f"{len(grouped) - most} more"] if len(grouped) > most else [])])


def nearest(steps: Sequence[int], wanted: float | None) -> int:
    """Return the step nearest to `wanted`, the last where nothing is wanted."""
    return steps[-1] if wanted is None else min(steps, key=lambda s: abs(s - wanted))


def clip(frame: pd.DataFrame, last: int | None) -> pd.DataFrame:
    """Return the rows up to a step: what was there when somebody pressed pause."""
    if last is None:
        return frame
    kept = frame[frame["step"] <= last]
    kept.attrs = frame.attrs
    return kept


def thinning(frames: Iterable[pd.DataFrame]) -> str:
    """Say "n of N points" where anything was thinned, else nothing."""
    counts = [c for f in frames for c in f.attrs.get("thinned", {}).values()]
    shown, total = sum(n for n, _ in counts), sum(t for _, t in counts)
    return f"{shown:,} of {total:,} points of the longest curves; minima and maxima are kept" if shown < total else ""
