"""Are two energy models one basin: does the loss rise on the way to the weights of another checkpoint or run?

The loss is the denoising loss that they were trained on (squared error of the field dE/dy against one fixed noise, mean
over problems, levels or one, and entries), on problems of this model's task. Paths, barrier, its interval and the null
are those of Mode connectivity: `straight` (1 - t) w_0 + t w_1; `matched`, to the other with its units in the order that
fits this model best (hidden units of fc1 to fc3 with their FiLM gains and shifts, outputs of fc4, both layers of the
level's embedding: no order of them changes the energy); `curved`, a quadratic Bezier curve to the matched other whose
bend was trained on half of the problems. The barrier is max over t of L(path) - [(1 - t) L(0) + t L(1)] on the other
half; [barrier_low, barrier_high] its 95 % bootstrap interval over these problems.

The null: `copy`, to this very model with its units in random order, which has the barrier that order alone makes, and
`copy, matched`, whose barrier is 0 where the matching finds all units again. A model beside itself has barrier 0.
The energy is the same too where the outputs of fc4 are turned or change sign, and in any basis of the embedding: these
are not matched, so `matched` is an upper bound of what separates two models.
Exact but for problems and bend. Cost: a gradient of the energy on the held-out problems and levels per point.
Source: Frankle et al. (2020), Linear mode connectivity and the lottery ticket hypothesis; Garipov et al. (2018), Loss
surfaces, mode connectivity; Ainsworth, Hayase and Srinivasa (2023), Git Re-Basin; Du, Mao and Tenenbaum (2024).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from backend.analyses import _paths
from backend.analyses._denoising import Denoised, graph_bytes, levels_of, plan_denoised, taken
from backend.analyses._energy import FEWER
from backend.contract import Energies, Matrices, ModelCard, Problems, Progress, View, analysis
from backend.costs import Calls, Work

UNIT = "squared error"


class EnergyConnectivityParams(_paths.PathParams):
    """The other end, how finely the way is looked at, at which levels and on how many problems."""

    level: int = Field(-1, ge=-1, le=999, description="annealing level of the loss, 0 the sharpest; -1: all of them")
    problems_used: int = Field(32, ge=1, le=4096, description="problems at most; half train the bend")


@analysis(
    version=1, group="Spectra", title="Energy connectivity",
    asks="Does an energy model's own loss rise on the way to another checkpoint or run?",
    subject=Problems, params=EnergyConnectivityParams,
    axes=_paths.AXES, values=_paths.values_in("mean squared error of the field", UNIT, "problems"),
)  # fmt: skip
def energy_connectivity(
    model: Energies, problems: Matrices, params: EnergyConnectivityParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (path, t)."""
    named, levels = _paths.named_other(params, model.card.spec), levels_of(model.card, params.level)
    some = range(min(params.problems_used, len(problems.y)))
    parts = (taken(problems, slice(half.start, half.stop)) for half in _paths.halves(some))
    training, held_out = (Denoised(model, part, levels) for part in parts)
    other = {name: p.detach() for name, p in model.sibling(*named).named_parameters()}
    return _paths.walked(training, held_out, other, model.exchangeable(), params, progress)


@energy_connectivity.costs
def work(card: ModelCard, subject: Problems, params: EnergyConnectivityParams) -> Work:
    """A gradient per point of every path and per step of the bend. Raises BadInput where no other is named."""
    _paths.named_other(params, card.spec)
    n, levels = min(params.problems_used, subject.n), len(levels_of(card, params.level))
    step = plan_denoised(card, max(1, n // 2), levels, params.bend_steps)[0]
    calls = [step, *plan_denoised(card, n - n // 2, levels, params.points * len(_paths.PATHS))]
    matching = 20.0 * int(card.energy["width"]) * card.n_params
    held = 8.0 * card.n_params * 12 + graph_bytes(card) * _widest(calls)
    return Work(tuple(calls), held, matching, knobs=f"{FEWER} (problems_used), points or steps")


def _widest(calls: list[Calls]) -> int:
    return max(call.rows for call in calls)


# ---------------------------------------------------------------- figures


@energy_connectivity.figure("Loss along each path")
def along(table: pd.DataFrame, view: View) -> Any:
    """The loss from this model (t = 0) to the other end (t = 1), with its error; grey: to shuffled copies."""
    return _paths.along_each(table, view, UNIT)


@energy_connectivity.figure("Barriers")
def barriers(table: pd.DataFrame, view: View) -> Any:
    """The barrier of each path with its interval; grey: copies of this model with units in another order."""
    return _paths.barrier_of_each(table, view, UNIT, "problems")
