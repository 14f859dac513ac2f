"""How degenerate is the minimum that an energy model's training found: its local learning coefficient?

The denoising loss as a likelihood: every entry of the noise eps is a sample, Gaussian around the field dE/dy with unit
variance, so that L = 1/2 (dE/dy - eps)^2 is its negative log-likelihood up to a constant, and n = problems x levels x
entries. L is the mean over these samples of one fixed noise, half of what the training reports. Entries of one problem
share its y and levels share its noise: they are counted as n samples all the same, which sets the temperature alone.
lambda = n beta (E[L] - L(w*)), beta = 1 / log n, w ~ exp(-n beta L(w) - gamma / 2 |w - w*|^2) around the weights w*, of
all parameters or one `block` (the others are held): half the number of parameters where the loss is regular. In the
bias of fc4 the field is linear and L a parabola with curvatures h: there lambda = sum of n beta h / (2 (n beta h +
gamma)), d / 2 for gamma far below n beta h, where the bias is at its minimum. Sampling, its interval, what is refused
and why, the scan over gamma and the null (`free`, the localiser alone) are those of Learning coefficient.

Cost: a gradient by w of the field on all problems and levels per chain, draw and step of burn-in.
Source: Watanabe (2013), A widely applicable Bayesian information criterion; Lau et al. (2023), The local learning
coefficient; Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import Field

from backend.analyses import _learning
from backend.analyses._curving import names_of, size_of
from backend.analyses._denoising import (
    Denoised,
    graph_bytes,
    levels_of,
    plan_denoised,
    product_operations,
    taken,
)
from backend.analyses._energy import FEWER
from backend.analyses._work import BYTES
from backend.contract import Energies, Matrices, ModelCard, Problems, Progress, View, analysis
from backend.costs import Calls, Work


class EnergyLearningCoefficientParams(_learning.LearningParams):
    """The sampling, of which parameters, at which levels and on how many problems."""

    block: str = Field("all", max_length=200, description="all, a module (fc2), or one parameter by its name")
    level: int = Field(-1, ge=-1, le=999, description="annealing level of the loss, 0 the sharpest; -1: all of them")
    problems_used: int = Field(8, ge=1, le=1024, description="problems that the loss is the mean over, at most")


class Likelihood(Denoised):
    """Half the squared error over the parameters `names`, the others held: -log p of an entry up to a constant."""

    def __init__(self, model: Energies, problems: Matrices, levels: Sequence[int], names: Sequence[str]):
        super().__init__(model, problems, levels)
        self.held, self.own = self.own, {name: self.own[name] for name in names}

    def graph(self, parameters: Mapping[str, Any], piece: Any = None) -> Any:
        """Return the loss of every problem [problem] with its graph; of all unless a slice of them is given."""
        return super().graph({**self.held, **parameters}, piece) / 2


@analysis(
    version=1, group="Spectra", title="Energy learning coefficient",
    asks="How degenerate is the minimum that an energy model's training found?",
    subject=Problems, params=EnergyLearningCoefficientParams,
    axes=_learning.AXES, values=_learning.VALUES,
)  # fmt: skip
def energy_learning_coefficient(
    model: Energies, problems: Matrices, params: EnergyLearningCoefficientParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (localisation, chain, draw)."""
    names, levels = (
        names_of(list(model.card.parameters), params.block, layered=False),
        levels_of(model.card, params.level),
    )
    some = taken(problems, slice(params.problems_used))
    losses = Likelihood(model, some, levels, names)
    return _learning.estimated(losses, some.y.numel() * len(levels), params, progress)


@energy_learning_coefficient.costs
def work(card: ModelCard, subject: Problems, params: EnergyLearningCoefficientParams) -> Work:
    """A gradient by the parameters per chain and step; all chains' graphs are held at once."""
    n, levels, size = (
        min(params.problems_used, subject.n),
        len(levels_of(card, params.level)),
        size_of(card, params.block),
    )
    rows, times = n * levels, len(_learning.gammas_of(params))
    steps = times * (1 + params.chains * (1 + params.burn + params.draws))
    calls = [Calls(rows, 1, gradients=True, n=steps), *plan_denoised(card, n, levels, times * (_learning.FREE + 1))]
    held = 10.0 * params.chains * size * BYTES.get(card.dtype, 4) + params.chains * rows * graph_bytes(card)
    return Work(tuple(calls), held, product_operations(card, rows, steps) / 2,
                knobs=f"{FEWER} (problems_used), chains or draws, or no scan")  # fmt: skip


# ---------------------------------------------------------------- figures


@energy_learning_coefficient.figure("Estimate of every chain")
def chains(table: pd.DataFrame, view: View) -> Any:
    """Lambda from each chain, their mean with its interval; dotted: the localiser alone, which no loss holds."""
    return _learning.of_chains(table)


@energy_learning_coefficient.figure("Traces")
def traces(table: pd.DataFrame, view: View) -> Any:
    """The loss above that of the model, draw by draw: chains that have mixed cannot be told apart."""
    return _learning.of_draws(table, "nats per entry")


@energy_learning_coefficient.figure("Estimate by localisation")
def by_localisation(table: pd.DataFrame, view: View) -> Any:
    """Lambda at each gamma with its interval, refused ones left out; grey: the localiser alone, which no loss holds."""
    return _learning.of_gammas(table)
