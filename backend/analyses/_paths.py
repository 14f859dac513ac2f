"""What paths between two models share, whatever the model: the other end, the paths, the table and the figures.

Formulas, errors and sources: mode_connectivity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._at_weights import LossesAt
from backend.contract import Axis, Params, Progress, Value, View
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines

DRAWS = 1000
PATHS = ("straight", "matched", "curved", "copy", "copy, matched")
UNMATCHED = ("straight", "curved")  # where no order of units is known
Weights = Mapping[str, Any]
#: (name, [(parameter, axis, indices [unit, k])]) of units that may change places
Units = Sequence[tuple[str, Sequence[tuple[str, int, Any]]]]


class PathParams(Params):
    """The other end, and how finely the way is looked at."""

    sibling: ClassVar[tuple[str, ...]] = ("other", "other_step")

    other: str = Field(
        "", max_length=1000, title="Other run", description="run of the other model; empty: this model's own run"
    )
    other_step: int = Field(
        0, ge=-1, le=2**31 - 1, title="Its checkpoint", description="its checkpoint; -1: the newest"
    )
    points: int = Field(11, ge=3, le=201, description="points along each path, both ends among them")
    bend_steps: int = Field(60, ge=1, le=5000, description="steps of Adam for the bend; many on few rows overfit")
    bend_lr: float = Field(0.003, gt=0.0, ge=1e-6, le=1.0, description="their learning rate")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of matching, bend, copy and bootstrap")

    def siblings(self, spec: str) -> tuple[tuple[str, int | None], ...]:
        """The other model."""
        run = self.other or (spec.removeprefix("run:") if spec.startswith("run:") else "")
        return ((run, None if self.other_step < 0 else self.other_step),) if run else ()


AXES = (
    Axis("path", "straight, matched, curved, or to a copy with shuffled units", kind="str"),
    Axis("t", "0: this model, 1: the other end", kind="float"),
)


def values_in(loss: str, unit: str, over: str) -> list[Value]:
    """Return the columns of values of a loss in such a unit, errors `over` rows or problems."""
    return [
        Value("loss", f"{loss} there, on {over} that the bend was not trained on", unit),
        Value("line", "(1 - t) L(0) + t L(1)", unit),
        Value("excess_se", f"standard error over {over} of loss - line; NULL for one", unit),
        Value("barrier", "largest loss - line on this path, at least 0 (the same in every row)", unit),
        Value("barrier_low", f"lower end of its 95 % interval over {over}", unit),
        Value("barrier_high", "upper end", unit),
        Value("distance", "norm of the difference of both ends' weights"),
    ]


def named_other(params: PathParams, spec: str) -> tuple[str, int | None]:
    """Return (run, step) of the other model. Raises BadInput where none is named and the model is no run's."""
    siblings = params.siblings(spec)
    if not siblings:
        raise BadInput("Which other model", f"none is named, and {spec} is no run", "Name a run of the same shape")
    return siblings[0]


def halves(rows: Any) -> tuple[Any, Any]:
    """Return (rows that train the bend, rows that the loss is measured on); of one row both are that row."""
    cut = len(rows) // 2
    return (rows[:cut], rows[cut:]) if cut else (rows, rows)


def walked(
    training: LossesAt, held_out: LossesAt, other: Weights, units: Units, params: PathParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (path, t) from the model of both losses to `other`; units [] where no order is known."""
    progress(0.05, "Matching units")
    own, ends = training.own, ends_of(training.own, other, units, params.seed)
    ways = {name: _straight(own, end) for name, end in ends.items()}
    far = ends.get("matched", other)
    ways["curved"] = _bezier(training, far, params, progress)
    ends["curved"] = far
    found, times = [], np.linspace(0, 1, params.points)
    for i, name in enumerate(n for n in PATHS if n in ways):
        progress(0.6 + 0.4 * i / len(ways), f"Along the path: {name}")
        losses = np.stack([held_out.rows(ways[name](float(t))) for t in times])
        found.append(table_of(name, times, losses, params.seed).assign(distance=_distance(own, ends[name])))
    return pd.concat(found, ignore_index=True)


def ends_of(own: Weights, other: Weights, units: Units, seed: int) -> dict[str, Weights]:
    """Return the far end of every straight path."""
    from backend.maths import matching

    found = {"straight": other}
    if units:
        groups = [matching.Group(tuple(places)) for _, places in units]
        dice, copy = np.random.default_rng(seed), own
        for group in groups:
            copy = matching.permuted(copy, group, dice.permutation(len(group.places[0][2])))
        found |= {"matched": matching.matched(own, other, groups, seed)[0], "copy": copy,
                  "copy, matched": matching.matched(own, copy, groups, seed)[0]}  # fmt: skip
    return found


def _straight(first: Weights, second: Weights) -> Callable[[float], Weights]:
    from backend.maths import landscape

    return lambda t: landscape.between(first, second, t)


def _bezier(losses: LossesAt, far: Weights, params: PathParams, progress: Progress) -> Callable[[float], Weights]:
    """Return the curve to the far end, its bend trained on as many of the rows as one graph holds."""
    import torch

    from backend.maths import landscape

    piece = losses.pieces(twice=True)[0]

    def said(step: int) -> None:
        progress(0.1 + 0.5 * step / params.bend_steps, f"Bend, step {step} of {params.bend_steps}")

    bend = landscape.bent(lambda at: losses.graph(at, piece).mean(), losses.own, far, params.bend_steps,
                          params.bend_lr, torch.Generator().manual_seed(params.seed), said)  # fmt: skip
    return lambda t: landscape.bezier(losses.own, bend, far, t)


def table_of(name: str, times: np.ndarray, losses: np.ndarray, seed: int) -> pd.DataFrame:
    """Return the rows of a path from its losses [t, row]."""
    from backend.maths import landscape

    line = (1 - times)[:, None] * losses[0] + times[:, None] * losses[-1]
    excess, n = losses - line, losses.shape[1]
    low, high = np.nan, np.nan
    if n > 1:
        chosen = np.random.default_rng(seed).integers(n, size=(DRAWS, n))
        low, high = np.quantile(excess[:, chosen].mean(2).max(0).clip(0), [0.025, 0.975])
    return pd.DataFrame({
        "path": name, "t": times, "loss": losses.mean(1), "line": line.mean(1),
        "excess_se": excess.std(1, ddof=1) / n**0.5 if n > 1 else np.nan,
        "barrier": landscape.barrier(times.tolist(), losses.mean(1).tolist()), "barrier_low": low, "barrier_high": high,
    })  # fmt: skip


def _distance(first: Weights, second: Weights) -> float:
    return float(sum((first[name] - second[name]).double().square().sum() for name in first) ** 0.5)


# ---------------------------------------------------------------- figures


def along_each(table: pd.DataFrame, view: View, unit: str) -> Any:
    """Draw the loss from this model (t = 0) to the other end (t = 1), with its error; grey: to a shuffled copy."""
    curves = []
    for at, (name, rows) in enumerate(table.groupby("path", sort=False)):
        error, copy = rows["excess_se"].fillna(0), str(name).startswith("copy")
        hover = [f"{name}, t = {r['t']:.2f}: loss {r['loss']:.4g} ({unit})<br>{r['loss'] - r['line']:+.3g} "
                 f"over the straight line of both ends" for r in rows.to_dict("records")]  # fmt: skip
        colour = NULL_GREY if copy else CATEGORIES[at % len(CATEGORIES)]
        curves.append(Line(str(name), rows["t"], rows["loss"], rows["loss"] - error, rows["loss"] + error, colour,
                           hover))  # fmt: skip
    figure = lines(curves, x_title=f"t (0: this model, 1: {_other(view)})", y_title=f"loss ({unit}; band: ± s.e.)",
                   height=400)  # fmt: skip
    figure.update_traces(line={"dash": "dot"}, selector={"name": "copy, matched"})
    return figure


def barrier_of_each(table: pd.DataFrame, view: View, unit: str, over: str) -> Any:
    """Draw the barrier of each path with its interval; grey: copies of this model with units in another order."""
    each = table.groupby("path", sort=False).first()
    colours = [NULL_GREY if name.startswith("copy") else CATEGORIES[i] for i, name in enumerate(each.index)]
    hover = [f"{name}: {r['barrier']:.4g} ({unit}) [{r['barrier_low']:.3g}, {r['barrier_high']:.3g}]<br>ends are "
             f"{r['distance']:.3g} apart" for name, r in each.iterrows()]  # fmt: skip
    missing = "" if "matched" in each.index else "; matching needs weights known by name (native and GPT-2 models)"
    return bars(list(each.index), each["barrier"], errors=(each["barrier_high"] - each["barrier"]).clip(lower=0),
                errors_below=(each["barrier"] - each["barrier_low"]).clip(lower=0), colours=colours, hover=hover,
                x_title=f"path to {_other(view)}{missing}", y_title=f"barrier ({unit}; 95 % over {over})")  # fmt: skip


def _other(view: View) -> str:
    run, step = view.params.get("other") or "this run", view.params.get("other_step", 0)
    return f"{run}, {'its newest checkpoint' if step < 0 else f'step {step}'}"
