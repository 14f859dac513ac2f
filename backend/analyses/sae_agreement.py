"""Do two sparse autoencoders of one point find the same features?

Their directions (rows of W_dec) are paired one to one so that the sum of cosines is largest. `cosine` is that of each
feature of `a` with its partner; their mean over the smaller dictionary is the MCC (mean correlation coefficient).
The null: `b` replaced by as many random directions, paired in the same way, `n_null` times; `null` is its cosine at the
same place of the order (largest first), mean over draws. `b` may have been trained for another checkpoint of the same
run: the agreement then says which features were there already, or still are. Features that both seeds find are more
likely the model's than the autoencoder's; what a surrogate finds (recipe sae with `surrogate`) is neither.

Exact given the two. `mcc_low` and `mcc_high`: 95 % bootstrap interval over the paired features. Random directions are
isotropic: data of low dimension makes even unrelated dictionaries agree better than that, so compare with a surrogate,
too. Autoencoders of one seed start from the same directions: what agrees may be that start, so compare other seeds.
Cost: no forward; one assignment of size d_sae, 1 + n_null times (seconds up to 2,000 features).
Source: Paulo and Belrose (2025), Sparse Autoencoders Trained on the Same Data Learn Different Features; Sharkey et al.
(2022), Taking features out of superposition with sparse autoencoders (MMCS).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _saes
from backend.analyses._units import bootstrap
from backend.contract import Axis, Model, ModelCard, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.errors import Unfit
from backend.figures import CATEGORIES, NULL_GREY, Line, lines

#: seconds of an assignment per n^2 m, measured: 3e-11 to 1.1e-10 of 500 to 2000 directions
STEP = 6e-11
MOST = 8192  # features above which the assignment takes minutes


class SaeAgreementParams(Params):
    """Which two, and the null."""

    a: str = Field("", max_length=1000, description="run of the first autoencoder (recipe sae, for this model)")
    b: str = Field("", max_length=1000, description="run of the second one, at the same point; also one of another "
                   "checkpoint of the same run")  # fmt: skip
    step_a: int = Field(-1, ge=-1, le=2**31 - 1, description="its checkpoint; -1: the last of its training")
    step_b: int = Field(-1, ge=-1, le=2**31 - 1, description="the second one's checkpoint")
    n_null: int = Field(3, ge=1, le=50, description="random dictionaries of the null")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null and of the bootstrap")

    named: ClassVar = {"a": "sae", "b": "sae"}

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """Both."""
        return _saes.named((self.a, self.step_a), (self.b, self.step_b))


@analysis(
    version=1, group="Neurons & features",
    title="Agreement of two SAEs", asks="Do two sparse autoencoders of one point find the same features?",
    subject=Weights, params=SaeAgreementParams,
    axes=[Axis("feature", "feature of the first")],
    values=[
        Value("partner", "its partner in the second; NULL where none is left", kind="int"),
        Value("cosine", "cosine of the two directions; NULL without a partner"),
        Value("order", "0 for the pair that agrees best", kind="int"),
        Value("null", "cosine at this place of the order with random directions"),
        Value("mcc", "mean cosine over all pairs (the same in every row)"),
        Value("mcc_low", "lower end of its 95 % interval"),
        Value("mcc_high", "upper end of its 95 % interval"),
        Value("mcc_null", "mean cosine with random directions"),
    ],
)
def sae_agreement(model: Model, subject: Weights, params: SaeAgreementParams, progress: Progress) -> pd.DataFrame:
    """Return one row per feature of the first autoencoder, the paired ones first."""
    made, a = _saes.opened(model, params.a, params.step_a)
    other, b = _saes.opened(model, params.b, params.step_b, own=False)
    if (made["point"], made["layer"]) != (other["point"], other["layer"]):
        found = f"{params.a} reads {_saes.point_of(made)}, {params.b} {_saes.point_of(other)}"
        raise Unfit("Agreement of two autoencoders", found, "Choose two of one point")
    if max(len(a.W_dec), len(b.W_dec)) > MOST:
        found = f"more than {MOST} features: the assignment takes minutes"
        raise Unfit("Agreement of two autoencoders", found, "Choose smaller dictionaries")
    return agreement(a.W_dec.detach().cpu(), b.W_dec.detach().cpu(), params.n_null, params.seed, progress)


def agreement(a: Any, b: Any, n_null: int, seed: int, progress: Progress) -> pd.DataFrame:
    """Return the table for directions a [n, d] and b [m, d]."""
    import torch

    from backend.maths.sae import match

    partner, cosine = match(a, b)
    dice, nulls = _saes.dice(seed), []
    for draw in range(n_null):
        progress((1 + draw) / (1 + n_null), f"Random directions, {draw + 1} of {n_null}")
        null = match(a, torch.randn(b.shape, generator=dice, dtype=torch.float64))
        nulls.append(null[1][null[0] >= 0].sort(descending=True).values.numpy())
    paired = partner.numpy() >= 0
    frame = pd.DataFrame({"feature": range(len(a)), "partner": pd.Series(partner.numpy(), dtype="Int64").where(paired),
                          "cosine": np.where(paired, cosine.numpy(), np.nan)})  # fmt: skip
    frame = frame.sort_values("cosine", ascending=False, kind="stable", ignore_index=True)
    low, high = bootstrap(frame["cosine"].dropna(), seed)
    null_at = np.full(len(frame), np.nan)
    null_at[: int(paired.sum())] = np.mean(nulls, axis=0)
    return frame.assign(order=range(len(frame)), null=null_at, mcc=frame["cosine"].mean(), mcc_low=low, mcc_high=high,
                        mcc_null=float(np.mean(nulls)))  # fmt: skip


@sae_agreement.costs
def work(card: ModelCard, subject: Weights, params: SaeAgreementParams, *made: Mapping[str, Any]) -> Work:
    """No call: per pair of dictionaries the cosines of all features, and an assignment, about, by its growth."""
    for run in (params.a, params.b):
        _saes.check_named(run)
    (n, d_in), (m, _) = (_saes.sizes(run, one) for run, one in zip((params.a, params.b), made, strict=True))
    times, held = 1 + params.n_null, 8 * (3 * n * m + 4 * (n + m) * d_in)
    solving = times * STEP * min(n, m) ** 2 * max(n, m)
    return Work((), held, 2 * times * n * m * d_in, solving, "Choose smaller dictionaries")


@sae_agreement.figure("Cosine of each pair")
def cosines(table: pd.DataFrame, view: View) -> Any:
    """Cosines in order, the best pair first; grey: random directions."""
    shown, first = table.dropna(subset=["cosine"]), table.iloc[0]
    share = (shown["order"] + 1) / len(shown)
    hover = [f"feature {f} and {p}: {c:.3f}" for f, p, c in
             zip(shown["feature"], shown["partner"], shown["cosine"], strict=True)]
    words = (f"share of the pairs, best first (MCC {first['mcc']:.2f} [{first['mcc_low']:.2f}, "
             f"{first['mcc_high']:.2f}], random {first['mcc_null']:.2f})")  # fmt: skip
    return lines([Line("random directions", share, shown["null"], colour=NULL_GREY),
                  Line("the two autoencoders", share, shown["cosine"], colour=CATEGORIES[0], hover=hover)],
                 x_title=words, y_title="cosine of the directions")  # fmt: skip
