"""What do the predictions lose when neurons are ablated?

mlp_post of the chosen neurons is replaced by its mean over rows, position by position, on the same rows (`mean`), or
by 0 (`zero`). Chosen is the neuron `neuron`, or the `top` neurons of the layer with the largest standard deviation
(`std`), activation (`max`) or mean activation (`mean`). `loss_change` is the loss of a row minus that of the intact
model, mean over rows: cross-entropy of the next token, or of (a + b) mod p for a run of modular addition; NULL where
no right answer is known. `kl` is KL(intact || ablated) of the predictions, never negative: it moves where the loss
happens not to. The control `random` ablates as many other neurons of the layer, drawn `draws` times.

Exact given the rows. [low, high] is a 95 % bootstrap interval of the mean over rows (for `random` over draws). Mean
ablation leaves what a neuron does on average; on few rows that mean still holds a little (1 / rows) of each row
itself. Cost: (2 + chosen + draws) forwards over the corpus.
Source: Wang et al. (2023), Interpretability in the Wild, section 2 (mean ablation); Olsson et al. (2022), In-context
Learning and Induction Heads, argument 3.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _ablating
from backend.analyses._units import batches, layer_of, neuron_of, neurons_at
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, View, analysis
from backend.costs import Work


class NeuronAblationParams(Params):
    """Which neurons, what is put in their place, and the control."""

    layer: int = Field(0, ge=0, le=1000, description="layer of the neurons")
    neuron: int = Field(-1, ge=-1, le=1_000_000, description="the neuron; -1: the top neurons of the layer")
    top: int = Field(8, ge=1, le=65_536, description="how many top neurons, where no neuron is named")
    by: Literal["std", "max", "mean"] = Field("std", description="what makes a neuron a top one")
    kind: Literal["mean", "zero"] = Field("mean", description="what is put in place of the activation")
    draws: int = Field(10, ge=1, le=200, description="random choices of as many other neurons")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random neurons and of the bootstrap")


@analysis(
    version=1, group="Neurons & features",
    title="Ablation of neurons", asks="What do the predictions lose when neurons are ablated?",
    subject=Corpus, params=NeuronAblationParams, needs=["mlp"],
    axes=[Axis("condition", "intact; ablated: chosen, random others, one neuron alone", kind="str")],
    values=_ablating.values("neurons"),
)
def neuron_ablation(model: Model, subject: Rows, params: NeuronAblationParams, progress: Progress) -> pd.DataFrame:
    """Return one row per condition."""
    layer = layer_of(model, params.layer, "Neurons")
    mean, score = _means(model, subject, layer, params.by)
    chosen = np.argsort(-score, kind="stable")[: params.top] if params.neuron < 0 else np.array(
        [neuron_of(model, layer, params.neuron)])  # fmt: skip
    alone = chosen[: _ablating.ALONE] if len(chosen) > 1 else chosen[:0]
    draws = _draws(model.card.d_mlp, chosen, params.draws, params.seed)
    fill = mean if params.kind == "mean" else mean * 0
    edits = [None, *(_edit(which, fill) for which in (chosen, *draws, *([i] for i in alone)))]
    losses, kls = _ablating.sweep(model, subject, ("mlp_post", layer), lambda _: edits, model.card.d_mlp, progress)
    conditions = _conditions(layer, chosen, draws, len(alone), model.card.d_mlp)
    return _ablating.table(losses, kls, conditions, "neurons", params.seed)


def _means(model: Model, subject: Rows, layer: int, by: str) -> tuple[Any, Any]:
    """Return (mean over rows [pos, neuron] as a tensor, score of every neuron [neuron])."""
    from backend.maths.streaming import Moments, Top

    total: Any = 0
    moments, top = Moments(), Top(1)
    for _, tokens in batches(model, subject, 2 * model.card.d_mlp):
        acts = neurons_at(model, tokens, layer)
        total = total + acts.double().sum(0)
        moments.update(acts.flatten(0, 1).cpu())
        top.update(acts.flatten(0, 1).cpu())
    scores = {"std": moments.m2.sqrt(), "max": top.values[0], "mean": moments.mean}
    return total / len(subject.tokens), scores[by].double().numpy()


def _draws(width: int, chosen: Any, draws: int, seed: int) -> list[Any]:
    """Return `draws` random choices of as many other neurons; none where there are no others."""
    others = np.setdiff1d(np.arange(width), chosen)
    k, dice = min(len(chosen), len(others)), np.random.default_rng(seed)
    return [dice.choice(others, k, replace=False) for _ in range(draws)] if k else []


def _edit(chosen: Any, fill: Any) -> _ablating.Edit:
    """Return the change that puts `fill` [pos, neuron] in place of these neurons; None for none."""
    which = [int(i) for i in chosen]

    def edit(acts: Any) -> Any:
        acts[..., which] = fill[: acts.shape[1]].to(acts)[:, which]
        return acts

    return edit if which else None


def _conditions(layer: int, chosen: Any, draws: list[Any], n_alone: int, width: int) -> list[_ablating.Condition]:
    names = [f"L{layer}N{i}" for i in chosen]
    found: list[_ablating.Condition] = [("intact", 0, 0, "none"), ("chosen", 1, len(chosen), _ablating.listed(names))]
    if draws:
        k, fewer = len(draws[0]), f"; fewer than the {len(chosen)} chosen" if len(draws[0]) < len(chosen) else ""
        words = f"{k} of the other {width - len(chosen)}{fewer}"
        found.append(("random", slice(2, 2 + len(draws)), k, words))
    return found + [(name, 2 + len(draws) + i, 1, f"{name} alone") for i, name in enumerate(names[:n_alone])]


@neuron_ablation.costs
def work(card: ModelCard, subject: Corpus, params: NeuronAblationParams) -> Work:
    """The corpus once for the means, once intact, and once per set of neurons that is ablated."""
    plan, chosen = Plan(card), min(params.top, card.d_mlp) if params.neuron < 0 else 1
    alone, draws = min(_ablating.ALONE, chosen) if chosen > 1 else 0, params.draws if chosen < card.d_mlp else 0
    plan.corpus(subject, 2 * card.d_mlp)
    plan.corpus(subject, card.d_mlp + 3 * card.d_vocab_out, n=2 + draws + alone)
    return plan.total(16 * subject.rows * (2 + draws + alone), knobs=FEWER_ROWS)


# ---------------------------------------------------------------- figures


@neuron_ablation.figure("Change of the loss")
def loss_change(table: pd.DataFrame, view: View) -> Any:
    """Loss minus the intact model's, with its interval; grey: as many random neurons."""
    return _drawn(table, "loss_change", _ablating.loss_words(table))


@neuron_ablation.figure("Change of the predictions")
def kl(table: pd.DataFrame, view: View) -> Any:
    """KL of the ablated from the intact predictions, with its interval; grey: as many random neurons."""
    return _drawn(table, "kl", "KL(intact || ablated) (nats)")


def _drawn(table: pd.DataFrame, name: str, words: str) -> Any:
    return _ablating.drawn(table, name, words, "neurons", controls=["random"], chosen="chosen")
