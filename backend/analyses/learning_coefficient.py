"""How degenerate is the minimum that training found: the local learning coefficient of the weights?

lambda = n beta (E[L] - L(w*)), beta = 1 / log n, n predicted tokens, the mean over w ~ exp(-n beta L(w) - gamma / 2
|w - w*|^2) around the model's weights w*: half the number of parameters where the loss is regular, less where
directions do not matter. Sampled by `chains` chains of Metropolis-adjusted Langevin steps (exact at any step size);
[low, high] is the 95 % t interval over chains. It is of these rows, and of gamma (`localisation`): of a quadratic loss
with curvatures h it is the sum of n beta h / (2 (n beta h + gamma)), so compare at one gamma only, and scan it: `scan`
asks at a tenth to ten times of it, five times the work, each gamma with a seed of its own. A plateau, where the slope
d ln lambda / d ln gamma between neighbours (of those asked: none beyond a refused one) is within 0.1 of 0 with its
interval, is a property of the loss where there is one alone; a slope of -1 is the localiser's own.

An estimate is refused (NULL, with the reason and the knob in `trouble`) where chains have not mixed (R-hat of the loss
above 1.2), acceptance is out of hand, or it is negative: then w* is no minimum. The trace plot shows every chain.
The null: `free`, n beta (L - L(w*)) of draws from the localiser alone, which the loss did not hold back: an estimate
near it says nothing of the loss but at random places.
Cost: a forward and a backward of all rows per chain, draw and step of burn-in.
Source: Watanabe (2013), A widely applicable Bayesian information criterion; Lau et al. (2023), The local learning
coefficient; Hoogland et al. (2024), The developmental landscape of in-context learning; Cotter et al. (2013).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from backend.analyses import _at_weights, _learning
from backend.analyses._units import answers
from backend.analyses._work import BYTES, Plan
from backend.contract import Corpus, Model, ModelCard, Progress, Rows, View, analysis
from backend.costs import Work


class LearningCoefficientParams(_learning.LearningParams):
    """The sampling, and on how many rows."""

    rows_used: int = Field(8, ge=1, le=1024, description="rows of the corpus that the loss is the mean over, at most")


@analysis(
    version=3, group="Spectra",
    title="Learning coefficient", asks="How degenerate is the minimum that training found?",
    subject=Corpus, params=LearningCoefficientParams, needs=["gradients"],
    axes=_learning.AXES, values=_learning.VALUES,
)  # fmt: skip
def learning_coefficient(
    model: Model, subject: Rows, params: LearningCoefficientParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (localisation, chain, draw)."""
    losses = _at_weights.Losses(model, _at_weights.used(subject, params.rows_used))
    return _learning.estimated(losses, _tokens(losses), params, progress)


def _tokens(losses: _at_weights.Losses) -> int:
    """Return n."""
    known = answers(losses.model, losses.tokens)
    return int(known[1].numel()) if known else 0


@learning_coefficient.costs
def work(card: ModelCard, subject: Corpus, params: LearningCoefficientParams) -> Work:
    """A gradient of all rows per chain and step; all chains' graphs are held at once."""
    plan, rows = Plan(card), min(params.rows_used, subject.rows)
    length = min(subject.length, card.n_ctx)
    times = len(_learning.gammas_of(params))
    plan.call(rows, length, times, gradients=True)  # L(w*)
    plan.call(rows, length, times * params.chains * (1 + params.burn + params.draws), gradients=True)
    _at_weights.plan_rows(plan, subject, rows, times * (_learning.FREE + 1))
    width = BYTES.get(card.dtype, 4)
    graphs = params.chains * rows * length * (card.n_layers * 12 * card.d_model + 4 * card.d_vocab_out) * width
    return plan.total(10 * params.chains * card.n_params * width + graphs, 0.0,
                      "Use fewer chains, draws or rows (rows_used), or no scan")  # fmt: skip


# ---------------------------------------------------------------- figures


@learning_coefficient.figure("Estimate of every chain")
def chains(table: pd.DataFrame, view: View) -> Any:
    """Lambda from each chain, their mean with its interval; dotted: the localiser alone, which no loss holds."""
    return _learning.of_chains(table)


@learning_coefficient.figure("Traces")
def traces(table: pd.DataFrame, view: View) -> Any:
    """The loss above that of the model, draw by draw: chains that have mixed cannot be told apart."""
    return _learning.of_draws(table, "nats")


@learning_coefficient.figure("Estimate by localisation")
def by_localisation(table: pd.DataFrame, view: View) -> Any:
    """Lambda at each gamma with its interval, refused ones left out; grey: the localiser alone, which no loss holds."""
    return _learning.of_gammas(table)
