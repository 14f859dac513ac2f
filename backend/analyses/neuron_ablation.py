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

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._units import batches, bootstrap, layer_of, log_probs, neuron_of, neurons_at, row_kl, row_losses
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, bars

ALONE = 24  # neurons of the choice that are ablated one by one, too


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
    values=[
        Value("loss", "mean loss; NULL where no right answer is known", "nats"),
        Value("loss_change", "loss minus the intact model's", "nats"),
        Value("loss_change_low", "lower end of its 95 % interval", "nats"),
        Value("loss_change_high", "upper end of its 95 % interval", "nats"),
        Value("kl", "KL(intact || ablated) of the predictions", "nats"),
        Value("kl_low", "lower end of its 95 % interval", "nats"),
        Value("kl_high", "upper end of its 95 % interval", "nats"),
        Value("n_neurons", "neurons ablated at once", kind="int"),
        Value("n", "rows (random: draws) that the interval is over", kind="int"),
        Value("neurons", "which neurons, or how they were drawn", kind="str"),
    ],
)
def neuron_ablation(model: Model, subject: Rows, params: NeuronAblationParams, progress: Progress) -> pd.DataFrame:
    """Return one row per condition."""
    layer = layer_of(model, params.layer, "Neurons")
    mean, score = _means(model, subject, layer, params.by)
    chosen = np.argsort(-score, kind="stable")[: params.top] if params.neuron < 0 else np.array(
        [neuron_of(model, layer, params.neuron)])  # fmt: skip
    alone = chosen[:ALONE] if len(chosen) > 1 else chosen[:0]
    draws = _draws(model.card.d_mlp, chosen, params.draws, params.seed)
    sets = [np.array([], int), chosen, *draws, *([i] for i in alone)]
    fill = mean if params.kind == "mean" else mean * 0
    losses, kls = _sweep(model, subject, layer, [np.asarray(s) for s in sets], fill, progress)
    return _table(losses, kls, layer, chosen, draws, alone, model.card.d_mlp, params.seed)


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


def _sweep(model: Model, subject: Rows, layer: int, sets: list[Any], fill: Any, progress: Progress) -> tuple[Any, Any]:
    """Return (loss, kl), each [set, row]; the loss is NaN where no answer is known."""
    shape = len(sets), len(subject.tokens)
    losses, kls = np.full(shape, np.nan), np.zeros(shape)
    for start, tokens in batches(model, subject, model.card.d_mlp + 3 * model.card.d_vocab_out):
        rows = slice(start, start + len(tokens))
        intact = log_probs(model.run_with(tokens, {}))
        for at, chosen in enumerate(sets):
            progress((start + len(tokens) * at / len(sets)) / shape[1], f"Ablation {at + 1} of {len(sets)}")
            told = log_probs(ablated_logits(model, tokens, layer, chosen, fill)) if len(chosen) else intact
            loss = row_losses(model, tokens, told)
            losses[at, rows] = np.nan if loss is None else loss.cpu().numpy()
            kls[at, rows] = row_kl(model, intact, told).cpu().numpy()
    return losses, kls


def ablated_logits(model: Model, tokens: Any, layer: int, chosen: Iterable[int], fill: Any) -> Any:
    """Return the logits with mlp_post of these neurons replaced by `fill` [pos, neuron]."""
    import torch

    which = torch.as_tensor(np.asarray(chosen), device=tokens.device)

    def edit(acts: Any) -> Any:
        acts[..., which] = fill[: acts.shape[1]].to(acts)[:, which]
        return acts

    return model.run_with(tokens, {("mlp_post", layer): edit})


def _table(losses: Any, kls: Any, layer: int, chosen: Any, draws: list[Any], alone: Any, width: int,
           seed: int) -> pd.DataFrame:  # fmt: skip
    change = losses - losses[0]
    names = [f"L{layer}N{i}" for i in chosen]
    said = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    rows = [_row("intact", losses[0], change[0], kls[0], 0, "none", seed),
            _row("chosen", losses[1], change[1], kls[1], len(chosen), said, seed)]  # fmt: skip
    if draws:
        part = slice(2, 2 + len(draws))
        k, fewer = len(draws[0]), f"; fewer than the {len(chosen)} chosen" if len(draws[0]) < len(chosen) else ""
        words = f"{k} of the other {width - len(chosen)}{fewer}"
        rows.append(_row("random", losses[part].mean(1), change[part].mean(1), kls[part].mean(1), k, words, seed))
    first = 2 + len(draws)
    for at, name in enumerate(names[: len(alone)], start=first):
        rows.append(_row(name, losses[at], change[at], kls[at], 1, f"{name} alone", seed))
    return pd.DataFrame(rows)


def _row(condition: str, loss: Any, change: Any, kl: Any, k: int, said: str, seed: int) -> dict[str, Any]:
    (low, high), (kl_low, kl_high) = bootstrap(change, seed), bootstrap(kl, seed)
    return {"condition": condition, "loss": float(loss.mean()), "loss_change": float(change.mean()),
            "loss_change_low": low, "loss_change_high": high, "kl": float(kl.mean()), "kl_low": kl_low,
            "kl_high": kl_high, "n_neurons": k, "n": len(kl), "neurons": said}  # fmt: skip


@neuron_ablation.costs
def work(card: ModelCard, subject: Corpus, params: NeuronAblationParams) -> Work:
    """The corpus once for the means, once intact, and once per set of neurons that is ablated."""
    plan, chosen = Plan(card), min(params.top, card.d_mlp) if params.neuron < 0 else 1
    alone, draws = min(ALONE, chosen) if chosen > 1 else 0, params.draws if chosen < card.d_mlp else 0
    plan.corpus(subject, 2 * card.d_mlp)
    plan.corpus(subject, card.d_mlp + 3 * card.d_vocab_out, n=2 + draws + alone)
    return plan.total(16 * subject.rows * (2 + draws + alone), knobs=FEWER_ROWS)


# ---------------------------------------------------------------- figures


@neuron_ablation.figure("Change of the loss")
def loss_change(table: pd.DataFrame, view: View) -> Any:
    """Loss minus the intact model's, with its interval; grey: as many random neurons."""
    unit = "nats" if table["loss_change"].notna().any() else "no right answer is known here"
    return _drawn(table, "loss_change", f"change of the loss ({unit})")


@neuron_ablation.figure("Change of the predictions")
def kl(table: pd.DataFrame, view: View) -> Any:
    """KL of the ablated from the intact predictions, with its interval; grey: as many random neurons."""
    return _drawn(table, "kl", "KL(intact || ablated) (nats)")


def _drawn(table: pd.DataFrame, name: str, words: str) -> Any:
    shown = table[table["condition"] != "intact"]
    hover = [f"{r['condition']}: {r[name]:.3g} [{r[f'{name}_low']:.3g}, {r[f'{name}_high']:.3g}]<br>{r['neurons']}"
             for r in shown.to_dict("records")]
    special = {"random": NULL_GREY, "chosen": CATEGORIES[1]}
    errors = (shown[f"{name}_high"] - shown[name], shown[name] - shown[f"{name}_low"])
    return bars(shown["condition"].tolist(), shown[name], errors=errors[0], errors_below=errors[1], hover=hover,
                colours=[special.get(c, CATEGORIES[0]) for c in shown["condition"]],
                x_title="what is ablated", y_title=words)
