"""What do the predictions lose when features of a sparse autoencoder are taken out of the stream?

At the autoencoder's point, on every token of the corpus, x becomes x - sum over the features i of (f_i - a_i) W_dec[i]:
what the features contribute is taken out, what the autoencoder leaves over (its error) stays. a_i is 0 (`zero`) or the
mean of f_i over rows, position by position (`mean`). Chosen is the feature `feature`, or the `top` features by `norm`
(root mean square of f_i |W_dec[i]|), `density` or `max`. `loss_change` and `kl` are as in neuron_ablation.

Controls, `draws` times each: `random features` takes out as many others, each among the 12 closest to a chosen one in
density; `random directions` takes the same amounts (f_i - a_i) |W_dec[i]| out along random directions. For scale: `all
features`; `error` puts the reconstruction in the point's place; `all and error` leaves b_dec (and the means).

Exact given the rows. [low, high] is a 95 % bootstrap interval of the mean over rows (for controls over draws). A
feature's direction may carry more than the feature: what is taken out is what the dictionary says it wrote.
Cost: (5 + 2 draws + chosen) forwards over the corpus, two encodings per token.
Source: Bricken et al. (2023), Towards Monosemanticity (feature ablation); Marks et al. (2024), Sparse Feature Circuits,
section 3.1 (the error stays).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _ablating, _saes
from backend.analyses._units import batches
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, View, analysis
from backend.costs import Work

LIKE = 12  # others of the closest density among which a control draws
SCALE = ("all features", "error", "all and error")


class FeatureAblationParams(Params):
    """Which features of which autoencoder, what stays of them, and the controls."""

    sae: str = Field("", max_length=1000, description="run of the autoencoder (recipe sae), or a SAELens folder")
    sae_step: int = Field(-1, ge=-1, le=2**31 - 1, description="its checkpoint; -1: the last of its training")
    feature: int = Field(-1, ge=-1, le=1_000_000, description="the feature; -1: the top features")
    top: int = Field(8, ge=1, le=4096, description="how many top features, where none is named")
    by: Literal["norm", "density", "max"] = Field("norm", description="what makes a feature a top one")
    kind: Literal["zero", "mean"] = Field("zero", description="what stays of the activation")
    draws: int = Field(8, ge=1, le=200, description="random choices of other features, and of directions")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the controls and of the bootstrap")

    named: ClassVar = {"sae": "sae"}

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """The autoencoder."""
        return _saes.named((self.sae, self.sae_step))


@analysis(
    version=1,
    group="Neurons & features",
    title="Ablation of features",
    asks="What do the predictions lose when features of an autoencoder are taken out?",
    subject=Corpus,
    params=FeatureAblationParams,
    axes=[Axis("condition", "intact; taken out: chosen, controls, all, the error, one feature alone", kind="str")],
    values=_ablating.values("features"),
)
def feature_ablation(model: Model, subject: Rows, params: FeatureAblationParams, progress: Progress) -> pd.DataFrame:
    """Return one row per condition."""
    made, sae = _saes.opened(model, params.sae, params.sae_step)
    mean, scores = _statistics(model, subject, made, sae)
    chosen = np.array([_saes.feature_of(sae, params.sae, params.feature)]) if params.feature >= 0 else np.argsort(
        -scores[params.by], kind="stable")[: params.top]  # fmt: skip
    alone = chosen[: _ablating.ALONE] if len(chosen) > 1 else chosen[:0]
    others = like(scores["density"], chosen, params.draws, params.seed)
    stays = mean if params.kind == "mean" else mean * 0
    directions = _directions(sae.W_dec.detach()[chosen], params.draws, params.seed)

    def edits_of(tokens: Any) -> list[_ablating.Edit]:
        moved = _saes.encoded(model, made, sae, tokens) - stays[: tokens.shape[1]]
        out = [_taken(moved, sae, which) for which in (chosen, *others)]
        out += [_minus(moved[..., chosen] @ rows) for rows in directions]
        return [None, *out, *_scale(moved, sae), *(_taken(moved, sae, [i]) for i in alone)]

    place = made["point"], made["layer"]
    losses, kls = _ablating.sweep(model, subject, place, edits_of, 3 * len(sae.W_dec), progress)
    conditions = _conditions(chosen, others, params.draws, len(alone), len(sae.W_dec))
    return _ablating.table(losses, kls, conditions, "features", params.seed)


def _statistics(model: Model, subject: Rows, made: dict[str, Any], sae: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Return (mean over rows [pos, feature], {density, max, norm} of every feature [feature])."""
    import torch

    total: Any = 0
    count = square = most = torch.zeros(len(sae.W_dec), dtype=torch.float64, device=sae.W_dec.device)
    for _, tokens in batches(model, subject, 3 * len(sae.W_dec)):
        features = _saes.encoded(model, made, sae, tokens)
        total, wide = total + features.sum(0), features.flatten(0, 1).double()
        count, square = count + (wide > 0).sum(0), square + wide.square().sum(0)
        most = torch.maximum(most, wide.max(0).values)
    n, length = subject.tokens.size, sae.W_dec.detach().double().norm(dim=1)
    found = {"density": count / n, "max": most, "norm": (square / n).sqrt() * length}
    return total / len(subject.tokens), {name: x.cpu().numpy() for name, x in found.items()}


def like(density: np.ndarray, chosen: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    """Return `draws` choices of other features, each among the LIKE closest in log density to one of the chosen.

    None is drawn twice in a choice; fewer than chosen where there are no others left.
    """
    others = np.setdiff1d(np.arange(len(density)), chosen)
    least = density[density > 0].min() / 2 if (density > 0).any() else 1.0
    rate, dice = np.log(np.maximum(density, least)), np.random.default_rng(seed)
    found = []
    for _ in range(draws if len(others) else 0):
        left = list(others)
        for i in chosen[: len(others)]:
            near = sorted(left, key=lambda o: abs(rate[o] - rate[i]))[:LIKE]  # noqa: B023 - used at once
            left.remove(near[dice.integers(len(near))])
        found.append(np.setdiff1d(others, left))
    return found


def _directions(rows: Any, draws: int, seed: int) -> list[Any]:
    """Return `draws` times random directions as long as the rows [feature, d_in]."""
    import torch

    from backend.maths.sae import unit

    dice = _saes.dice(seed)
    drawn = [torch.randn(rows.shape, generator=dice, dtype=torch.float64).to(rows.device) for _ in range(draws)]
    return [(unit(d) * rows.double().norm(dim=1, keepdim=True)).to(rows.dtype) for d in drawn]


def _minus(contribution: Any) -> _ablating.Edit:
    """Return the change that takes [row, pos, d_in] out; nothing to take out changes no bit."""
    return lambda x: x - contribution.to(x.dtype).view_as(x)


def _taken(moved: Any, sae: Any, which: Any) -> _ablating.Edit:
    return _minus(moved[..., which] @ sae.W_dec.detach()[which])


def _scale(moved: Any, sae: Any) -> list[_ablating.Edit]:
    """Return the three changes that say how much there is to lose."""
    import torch

    def error(x: Any) -> Any:
        flat = x.flatten(2).to(sae.W_dec.dtype)
        with torch.no_grad():
            return sae(flat).to(x.dtype).view_as(x)

    everything = _taken(moved, sae, slice(None))
    return [everything, error, lambda x: everything(error(x))]  # type: ignore[misc]


def _conditions(chosen: Any, others: list[Any], draws: int, n_alone: int, d_sae: int) -> list[_ablating.Condition]:
    names = [f"F{i}" for i in chosen]
    found: list[_ablating.Condition] = [("intact", 0, 0, "none"), ("chosen", 1, len(chosen), _ablating.listed(names))]
    at = 2 + len(others)
    if others:
        words = f"{len(others[0])} of the other {d_sae - len(chosen)}, of like density"
        found.append(("random features", slice(2, at), len(others[0]), words))
    words = f"as much as {len(chosen)} chosen, along random directions"
    found.append(("random directions", slice(at, at + draws), len(chosen), words))
    said = ("every feature", "what the autoencoder leaves over", "both: b_dec is left")
    found += [(name, at + draws + i, d_sae * (i != 1), said[i]) for i, name in enumerate(SCALE)]
    return found + [(name, at + draws + 3 + i, 1, f"{name} alone") for i, name in enumerate(names[:n_alone])]


@feature_ablation.costs
def work(card: ModelCard, subject: Corpus, params: FeatureAblationParams, *made: Mapping[str, Any]) -> Work:
    """The corpus once for the statistics, once encoded again, once intact and once per set of features taken out."""
    plan = Plan(card)
    n, d_in, batch, encoding = _saes.passed(plan, subject, params.sae, made)
    chosen = 1 if params.feature >= 0 else min(params.top, n)
    alone, draws = min(_ablating.ALONE, chosen) if chosen > 1 else 0, params.draws if chosen < n else 0
    changes = 1 + draws + params.draws + 3 + alone
    plan.corpus(subject, 3 * n + 3 * card.d_vocab_out, n=2 + changes)
    return plan.total(16 * n * d_in + 32 * batch * n, 5 * encoding, FEWER_ROWS)


# ---------------------------------------------------------------- figures


@feature_ablation.figure("Change of the loss")
def loss_change(table: pd.DataFrame, view: View) -> Any:
    """Loss minus the intact model's, with its interval; grey: the two controls."""
    return _drawn(table, "loss_change", _ablating.loss_words(table))


@feature_ablation.figure("Change of the predictions")
def kl(table: pd.DataFrame, view: View) -> Any:
    """KL of the ablated from the intact predictions, with its interval; grey: the two controls."""
    return _drawn(table, "kl", "KL(intact || ablated) (nats)")


def _drawn(table: pd.DataFrame, name: str, words: str) -> Any:
    """What there is to lose stands in words: as bars it would dwarf the rest."""
    scale = table.set_index("condition")[name]
    figure = _ablating.drawn(table[~table["condition"].isin(SCALE)], name, words, "features",
                             controls=["random features", "random directions"], chosen="chosen")  # fmt: skip
    said = ", ".join(f"{c} {scale[c]:.3g}" for c in SCALE if np.isfinite(scale[c]))
    return figure.update_xaxes(title={"text": "what is taken out" + (f" (for scale: {said})" if said else "")})
