"""Are two models one basin: does the loss rise on the way from these weights to those of another checkpoint or run?

Paths from this model w_0 to the other w_1: `straight` (1 - t) w_0 + t w_1; `matched`, the same to the other with its
units in the order that fits this model best (coordinates of the stream, heads, neurons: no order changes what a model
computes); `curved`, a quadratic Bezier curve to the matched other (the plain one where units are not known by name)
whose bend was trained on half of the rows. The barrier is max over t of L(path) - [(1 - t) L(0) + t L(1)], measured on
the other half of the rows; [barrier_low, barrier_high] its 95 % bootstrap interval over these rows.

The null: `copy`, to this very model with its units in random order, which has the barrier that order alone makes, and
`copy, matched`, whose barrier is 0 where the matching finds all units again. A model beside itself has barrier 0.
Inner bases of heads are not matched, so `matched` is an upper bound of what separates two models.
Exact but for rows and bend. Cost: a forward on the held-out rows per point, a gradient per step of the bend.
Source: Frankle et al. (2020), Linear mode connectivity and the lottery ticket hypothesis; Garipov et al. (2018), Loss
surfaces, mode connectivity; Ainsworth, Hayase and Srinivasa (2023), Git Re-Basin; Entezari et al. (2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _at_weights
from backend.analyses._work import Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines

DRAWS = 1000
PATHS = ("straight", "matched", "curved", "copy", "copy, matched")
UNMATCHED = ("straight", "curved")  # where no order of units is known


class ModeConnectivityParams(Params):
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
    rows_used: int = Field(16, ge=1, le=4096, description="rows of the corpus, at most; half train the bend")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of matching, bend, copy and bootstrap")

    def siblings(self, spec: str) -> tuple[tuple[str, int | None], ...]:
        """The other model."""
        run = self.other or (spec.removeprefix("run:") if spec.startswith("run:") else "")
        return ((run, None if self.other_step < 0 else self.other_step),) if run else ()


@analysis(
    version=1, group="Spectra",
    title="Mode connectivity", asks="Does the loss rise on the way from this model to another checkpoint or run?",
    subject=Corpus, params=ModeConnectivityParams, needs=["gradients"],
    axes=[Axis("path", "straight, matched, curved, or to a copy with shuffled units", kind="str"),
          Axis("t", "0: this model, 1: the other end", kind="float")],
    values=[
        Value("loss", "mean cross-entropy there, on rows that the bend was not trained on", "nats"),
        Value("line", "(1 - t) L(0) + t L(1)", "nats"),
        Value("excess_se", "standard error over rows of loss - line; NULL for one row", "nats"),
        Value("barrier", "largest loss - line on this path, at least 0 (the same in every row)", "nats"),
        Value("barrier_low", "lower end of its 95 % interval over rows", "nats"),
        Value("barrier_high", "upper end", "nats"),
        Value("distance", "norm of the difference of both ends' weights"),
    ],
)  # fmt: skip
def mode_connectivity(model: Model, subject: Rows, params: ModeConnectivityParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (path, t)."""
    named = named_other(params, model.card.spec)
    rows = _at_weights.used(subject, params.rows_used)
    training, held_out = (_at_weights.Losses(model, part) for part in halves(rows))
    other = model.sibling(*named)
    progress(0.05, "Matching units")
    ends = _ends(model, training.own, other, params.seed)
    ways = {name: _straight(training.own, end) for name, end in ends.items()}
    far = ends.get("matched", other)
    ways["curved"] = _bezier(training, far, params, progress)
    ends["curved"] = far
    found, times = [], np.linspace(0, 1, params.points)
    for i, name in enumerate(n for n in PATHS if n in ways):
        progress(0.6 + 0.4 * i / len(ways), f"Along the path: {name}")
        losses = np.stack([held_out.rows(ways[name](float(t))) for t in times])
        found.append(_table(name, times, losses, params.seed).assign(distance=_distance(training.own, ends[name])))
    declared: Any = mode_connectivity
    return pd.concat(found, ignore_index=True)[[c.name for c in (*declared.axes, *declared.values)]]


def named_other(params: ModeConnectivityParams, spec: str) -> tuple[str, int | None]:
    """Return (run, step) of the other model. Raises BadInput where none is named and the model is no run's."""
    siblings = params.siblings(spec)
    if not siblings:
        raise BadInput("Which other model", f"none is named, and {spec} is no run", "Name a run of the same shape")
    return siblings[0]


def halves(rows: Any) -> tuple[Any, Any]:
    """Return (rows that train the bend, rows that the loss is measured on); of one row both are that row."""
    cut = len(rows) // 2
    return (rows[:cut], rows[cut:]) if cut else (rows, rows)


def _ends(model: Model, own: dict[str, Any], other: dict[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """Return the far end of every straight path."""
    from backend.maths import matching

    found = {"straight": other}
    if "named_weights" in model.card.capabilities:
        groups = [matching.Group(tuple(places)) for _, places in model.exchangeable()]
        dice, copy = np.random.default_rng(seed), own
        for group in groups:
            copy = matching.permuted(copy, group, dice.permutation(len(group.places[0][2])))
        found |= {"matched": matching.matched(own, other, groups, seed)[0], "copy": copy,
                  "copy, matched": matching.matched(own, copy, groups, seed)[0]}  # fmt: skip
    return found


def _straight(first: dict[str, Any], second: dict[str, Any]) -> Callable[[float], dict[str, Any]]:
    from backend.maths import landscape

    return lambda t: landscape.between(first, second, t)


def _bezier(losses: Any, far: dict[str, Any], params: ModeConnectivityParams, progress: Progress) -> Callable:
    """Return the curve to the far end, its bend trained on as many of the rows as one graph holds."""
    import torch

    from backend.maths import landscape

    tokens = losses.tokens[: _at_weights.graph_rows(losses.model, losses.tokens.shape[1])]

    def said(step: int) -> None:
        progress(0.1 + 0.5 * step / params.bend_steps, f"Bend, step {step} of {params.bend_steps}")

    bend = landscape.bent(lambda at: losses.graph(at, tokens).mean(), losses.own, far, params.bend_steps,
                          params.bend_lr, torch.Generator().manual_seed(params.seed), said)  # fmt: skip
    return lambda t: landscape.bezier(losses.own, bend, far, t)


def _table(name: str, times: np.ndarray, losses: np.ndarray, seed: int) -> pd.DataFrame:
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


def _distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    return float(sum((first[name] - second[name]).double().square().sum() for name in first) ** 0.5)


@mode_connectivity.costs
def work(card: ModelCard, subject: Corpus, params: ModeConnectivityParams) -> Work:
    """A forward per point of every path; a gradient per step of the bend. Raises BadInput where no other is named."""
    named_other(params, card.spec)
    plan, rows = Plan(card), min(params.rows_used, subject.rows)
    length, training = min(subject.length, card.n_ctx), max(1, rows // 2)
    paths = PATHS if "named_weights" in card.capabilities else UNMATCHED
    plan.call(min(training, _at_weights.graph_rows(plan, length)), length, params.bend_steps, gradients=True)
    _at_weights.plan_rows(plan, subject, rows - rows // 2, params.points * len(paths))
    matching = 20 * card.d_model * card.n_params if len(paths) == len(PATHS) else 0
    return plan.total(4 * card.n_params * 12, matching, _at_weights.FEWER)


# ---------------------------------------------------------------- figures


@mode_connectivity.figure("Loss along each path")
def along(table: pd.DataFrame, view: View) -> Any:
    """The loss from this model (t = 0) to the other end (t = 1), with the error over rows; grey: to a shuffled copy."""
    curves = []
    for at, (name, rows) in enumerate(table.groupby("path", sort=False)):
        error, copy = rows["excess_se"].fillna(0), str(name).startswith("copy")
        hover = [f"{name}, t = {r['t']:.2f}: loss {r['loss']:.4g} nats<br>{r['loss'] - r['line']:+.3g} "
                 f"over the straight line of both ends" for r in rows.to_dict("records")]  # fmt: skip
        colour = NULL_GREY if copy else CATEGORIES[at % len(CATEGORIES)]
        curves.append(Line(str(name), rows["t"], rows["loss"], rows["loss"] - error, rows["loss"] + error, colour,
                           hover))  # fmt: skip
    figure = lines(curves, x_title=f"t (0: this model, 1: {_other(view)})", y_title="loss (nats; band: ± s.e.)",
                   height=400)  # fmt: skip
    figure.update_traces(line={"dash": "dot"}, selector={"name": "copy, matched"})
    return figure


@mode_connectivity.figure("Barriers")
def barriers(table: pd.DataFrame, view: View) -> Any:
    """The barrier of each path with its interval over rows; grey: copies of this model with units in another order."""
    each = table.groupby("path", sort=False).first()
    colours = [NULL_GREY if name.startswith("copy") else CATEGORIES[i] for i, name in enumerate(each.index)]
    hover = [f"{name}: {r['barrier']:.4g} nats [{r['barrier_low']:.3g}, {r['barrier_high']:.3g}]<br>ends are "
             f"{r['distance']:.3g} apart" for name, r in each.iterrows()]  # fmt: skip
    missing = "" if "matched" in each.index else "; matching needs weights known by name (native and GPT-2 models)"
    return bars(list(each.index), each["barrier"], errors=(each["barrier_high"] - each["barrier"]).clip(lower=0),
                errors_below=(each["barrier"] - each["barrier_low"]).clip(lower=0), colours=colours, hover=hover,
                x_title=f"path to {_other(view)}{missing}", y_title="barrier (nats; 95 % over rows)")  # fmt: skip


def _other(view: View) -> str:
    run, step = view.params.get("other") or "this run", view.params.get("other_step", 0)
    return f"{run}, {'its newest checkpoint' if step < 0 else f'step {step}'}"
