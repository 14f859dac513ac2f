"""Do the heads with a high induction score carry the continuation of a repeated block?

On `rows` sequences [A; A], A of n random tokens, the heads whose induction score (mean of P[i, i-n+1], i = n..2n-2)
exceeds `threshold` are mean-ablated: their output z is replaced by its mean over rows, position by position, taken on
the same rows. The accuracy on the second copy (positions n..2n-2 against the next token) and the loss there are set
beside those of the intact model and of as many heads drawn at random from the others, `draws` times (all choices
where there are no more; all others at once where these are fewer, which `heads` then says). The same is done one head
at a time: the suspects are several ways to one answer, so each alone matters less. Others may belong to the circuit,
too (a previous-token head feeds the induction heads): `heads` names the other head that costs most. `drop` is the
accuracy of the intact model minus that of the row. Where no head exceeds the threshold nothing is ablated, and `heads`
says so.

Exact given the sequences. `se` is over rows (intact, suspects, one named head), draws (random) or heads (one ...).
Mean-ablation leaves what a head does on average; on a small number of rows that mean still holds a little (1 / rows)
of each row itself.
Cost: draws + heads + 3 forwards.
Source: Olsson et al. (2022), In-context Learning and Induction Heads, argument 3 (ablations).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._work import SHORTER_ROWS, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, bars

Head = tuple[int, int]
MOST_BARS = 24
#: grey: the null; orange: suspects
COLOURS = {"intact": CATEGORIES[0], "random": NULL_GREY, "one other": NULL_GREY}


class InductionAblationParams(Params):
    """The random sequences, which heads are suspects, and how many random choices stand beside them."""

    block_length: int = Field(32, ge=2, le=512, description="tokens in the repeated block A; cut to half of n_ctx")
    rows: int = Field(64, ge=2, le=512, description="random sequences; means are over these")
    threshold: float = Field(0.5, ge=0, le=1, description="heads with a higher induction score are ablated")
    draws: int = Field(10, ge=1, le=100, description="random choices of as many other heads")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the tokens and of the random heads")


@analysis(
    version=2, group="Attention", title="Ablation of induction heads",
    asks="Do the heads with a high induction score carry the continuation of a repeated block?",
    subject=Weights, params=InductionAblationParams, needs=["attention_patterns", "next_token"],
    axes=[Axis("condition", "intact; ablated: suspects, random others, one suspect, one other, this head", kind="str")],
    values=[
        Value("second_copy_accuracy", "share of tokens of the second copy foretold"),
        Value("second_copy_accuracy_se", "its standard error, over n; NULL for n = 1"),
        Value("second_half_loss", "loss on the second copy", "nats"),
        Value("second_half_loss_se", "its standard error, over n; NULL for n = 1", "nats"),
        Value("drop", "accuracy of the intact model minus this one"),
        Value("n_heads", "heads ablated at once", kind="int"),
        Value("n", "rows, draws or heads that the error is over", kind="int"),
        Value("heads", "the suspects, or what there is to say", kind="str"),
    ],
)
def induction_ablation(
    model: Model, subject: Weights, params: InductionAblationParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per condition; only `intact` where there is no suspect."""
    import torch

    n = min(params.block_length, model.card.n_ctx // 2)
    if n < 2:
        raise BadInput("Ablation", f"{model.card.spec} reads {model.card.n_ctx} tokens, [A; A] needs 4",
                       "Choose a model with a longer context")
    dice = torch.Generator().manual_seed(params.seed)
    block = torch.randint(model.card.d_vocab, (params.rows, n), generator=dice)
    tokens = torch.cat([block, block], 1).to(model.card.device)
    score, mean = _scores_and_means(model, tokens, n)
    suspects = [h for h, s in score.items() if s > params.threshold]
    progress(0.2, "Intact and ablated")
    best = max(score, key=lambda h: score[h])
    said = (", ".join(f"L{x}H{y} {score[x, y]:.2f}" for x, y in suspects)
            or f"no head above {params.threshold:g}; the highest is L{best[0]}H{best[1]} with {score[best]:.2f}")
    table = [_over_rows("intact", model, tokens, n, mean, [], said)]
    if suspects:
        table.append(_over_rows("suspects", model, tokens, n, mean, suspects, said))
        others = [h for h in score if h not in suspects]
        table += [_random(model, tokens, n, mean, others, len(suspects), params, progress)] if others else []
        progress(0.8, "One head at a time")
        summary, *alone = _one_by_one("one suspect", model, tokens, n, mean, suspects)
        table += [summary, *_one_by_one("one other", model, tokens, n, mean, others)[:1], *alone]
    frame = pd.DataFrame(table)
    frame.insert(5, "drop", frame["second_copy_accuracy"][0] - frame["second_copy_accuracy"])
    return frame


def _scores_and_means(model: Model, tokens: Any, n: int) -> tuple[dict[Head, float], list[Any]]:
    """Return the induction score of every head, and per layer z's mean over rows [pos, head, d_head]."""
    from backend.maths.heads import prefix_matching

    score: dict[Head, float] = {}
    means = []
    for layer in range(model.card.n_layers):
        seen = model.capture(tokens, ["pattern", "z"], [layer])
        means.append(seen["z", layer].mean(0))
        for head, value in enumerate(prefix_matching(seen["pattern", layer].float(), n).mean(0).tolist()):
            score[layer, head] = value
    return score, means


def ablated_logits(model: Model, tokens: Any, means: list[Any], heads: list[Head]) -> Any:
    """Return the logits [row, pos, d_vocab_out] with z of these heads replaced by its mean at every position."""

    def mean_at(layer: int) -> Any:
        chosen = [head for at, head in heads if at == layer]

        def edit(z: Any) -> Any:
            z[:, :, chosen] = means[layer][:, chosen]
            return z

        return edit

    return model.run_with(tokens, {("z", layer): mean_at(layer) for layer in sorted({at for at, _ in heads})})


def _by_row(model: Model, tokens: Any, n: int, means: list[Any], heads: list[Head]) -> tuple[Any, Any]:
    """Return accuracy and loss on the second copy of every row."""
    import torch.nn.functional as F

    logits = ablated_logits(model, tokens, means, heads) if heads else model.logits(tokens)
    logits, right = logits[:, n : 2 * n - 1].float(), tokens[:, n + 1 : 2 * n]
    loss = F.cross_entropy(logits.transpose(1, 2), right, reduction="none").mean(1)
    return (logits.argmax(-1) == right).double().mean(1).cpu().numpy(), loss.double().cpu().numpy()


def _over_rows(condition: str, model: Model, tokens: Any, n: int, means: list[Any], heads: list[Head],
               said: str) -> dict[str, Any]:  # fmt: skip
    return _row(condition, *_by_row(model, tokens, n, means, heads), len(heads), said)


def _random(model: Model, tokens: Any, n: int, means: list[Any], others: list[Head], k: int,
            params: InductionAblationParams, progress: Progress) -> dict[str, Any]:  # fmt: skip
    """Ablate `draws` random choices of k other heads; every choice gives one mean over rows."""
    asked, k, found = k, min(k, len(others)), []
    choices = _choices(others, k, params.draws, params.seed)
    for draw, chosen in enumerate(choices):
        progress(0.3 + 0.5 * draw / len(choices), f"Random heads, {draw + 1} of {len(choices)}")
        found.append([part.mean() for part in _by_row(model, tokens, n, means, chosen)])
    accuracies, losses = np.array(found).T
    fewer = f"; fewer than the {asked} suspects" if k < asked else ""
    return _row("random", accuracies, losses, k, f"{k} of the other {len(others)}{fewer}")


def _choices(others: list[Head], k: int, draws: int, seed: int) -> list[list[Head]]:
    """Return all choices of k where there are at most `draws`, else as many drawn at random."""
    if math.comb(len(others), k) <= draws:
        return [list(chosen) for chosen in itertools.combinations(others, k)]
    dice = np.random.default_rng(seed)
    return [[others[i] for i in dice.choice(len(others), k, replace=False)] for _ in range(draws)]


def _one_by_one(condition: str, model: Model, tokens: Any, n: int, means: list[Any],
                heads: list[Head]) -> list[dict[str, Any]]:  # fmt: skip
    """Ablate each of these heads alone: first a row over all of them, naming the costliest, then one per head."""
    if not heads:
        return []
    names = [f"L{layer}H{head}" for layer, head in heads]
    found = [_by_row(model, tokens, n, means, [head]) for head in heads]
    accuracies, losses = np.array([[part.mean() for part in parts] for parts in found]).T
    said = f"{names[int(accuracies.argmin())]} costs most: accuracy {accuracies.min():.2f} without it"
    alone = [_row(name, *parts, 1, f"{name} alone") for name, parts in zip(names, found, strict=True)]
    return [_row(condition, accuracies, losses, 1, said), *alone]


def _row(condition: str, accuracy: Any, loss: Any, k: int, said: str) -> dict[str, Any]:
    def error(values: Any) -> float:
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")

    return {"condition": condition, "second_copy_accuracy": float(accuracy.mean()),
            "second_copy_accuracy_se": error(accuracy), "second_half_loss": float(loss.mean()),
            "second_half_loss_se": error(loss), "n_heads": k, "n": len(loss), "heads": said}  # fmt: skip


@induction_ablation.costs
def work(card: ModelCard, subject: Weights, params: InductionAblationParams) -> Work:
    """The rows once per layer for the scores, then per condition: how many these are is not known before. At most they
    are intact, all suspects, the random choices, and each head alone."""
    plan, length = Plan(card), 2 * max(1, min(params.block_length, card.n_ctx // 2))
    plan.call(params.rows, length, card.n_layers + 2 + params.draws + card.n_layers * card.n_heads)
    logits = 4 * params.rows * length * card.d_vocab_out
    pattern = 4 * params.rows * card.n_heads * length**2
    return plan.total(plan.bytes(length, ["z"]) + pattern + 2 * logits, knobs=SHORTER_ROWS)


# ---------------------------------------------------------------- figures


@induction_ablation.figure("Accuracy on the second copy")
def accuracy(table: pd.DataFrame, view: View) -> Any:
    """Intact, suspects ablated, random heads ablated."""
    return _drawn(table, "second_copy_accuracy", "accuracy on the second copy (0 to 1)")


@induction_ablation.figure("Loss on the second copy")
def loss(table: pd.DataFrame, view: View) -> Any:
    """Intact, suspects ablated, random heads ablated."""
    return _drawn(table, "second_half_loss", "loss on the second copy (nats)")


def _drawn(table: pd.DataFrame, name: str, words: str) -> Any:
    shown = table.head(MOST_BARS)
    hover = [f"{c}: {v:.3g} ± {e:.2g}<br>{h}" for c, v, e, h in
             zip(shown["condition"], shown[name], shown[f"{name}_se"], shown["heads"], strict=True)]
    colours = [COLOURS.get(condition, CATEGORIES[1]) for condition in shown["condition"]]
    return bars(shown["condition"].tolist(), shown[name], errors=shown[f"{name}_se"], hover=hover, colours=colours,
                x_title="what is ablated", y_title=words)
