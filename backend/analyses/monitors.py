"""What do the training monitors say of this model: losses, scores of heads, norms, dimensions?

The very functions that a training loop logs (backend/monitors), taken of any checkpoint on `rows` sequences [A; A],
A of n random tokens (uniform over the vocabulary). `se` is the jackknife over rows (leaving out one row at a time; for
a mean it is the usual standard error), NULL where nothing is estimated (weights). `null` is the same monitor where the
link it looks for is cut: predictions judged on another row's tokens, every query's visible keys shuffled, W_E's tokens
shuffled for the copying score; NULL where there is no such link. A checkpoint of modular addition is shown inputs
(a, b, '=') instead, drawn among all p^2, and judged by (a + b) mod p; what asks for a repeated block is left out.

Layer and head are -1 where a number is of the whole model or the whole layer. Exact given the sequences; numbers in a
run's curves come from its own held-out rows, so they agree within the errors, not bit for bit.
Cost: one forward; the monitors once per row.
Source: Olsson et al. (2022), In-context Learning and Induction Heads; Elhage et al. (2021), A Mathematical Framework.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend import monitors as room
from backend.analyses._modular import own_params
from backend.analyses._work import SHORTER_ROWS, Plan
from backend.contract import Axis, Model, ModelCard, Observation, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, bars
from backend.figures import grid as maps

PREDICTIONS = ("right_answers", "icl_score", "repeated_block")
PATTERNS = ("induction_score", "previous_token_score", "duplicate_token_score")
PLAIN = ("prediction_entropy", "attention_entropy", "effective_dimension")
OF_WEIGHTS = ("weight_norms", "head_norms", "copying_score")
SHARED = ("loss", "accuracy", "first_half_loss", "second_half_loss", "second_copy_accuracy", "icl_score",
          "prediction_entropy")  # fmt: skip


class MonitorsParams(Params):
    """The random sequences."""

    block_length: int = Field(32, ge=2, le=512, description="tokens in the repeated block A; cut to half of n_ctx")
    rows: int = Field(16, ge=3, le=256, description="random sequences; errors are over these")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random tokens and of the nulls")


@analysis(
    version=2, group="Training", title="Monitors", asks="What do the training monitors say of this model?",
    subject=Weights, params=MonitorsParams, needs=["next_token"],
    axes=[Axis("metric", "which monitor; the Glossary has its words", kind="str"),
          Axis("layer", "layer, 0-based; -1: the whole model"), Axis("head", "head, 0-based; -1: the whole layer")],
    values=[Value("value", "the monitor's number; losses and entropies of predictions in nats"),
            Value("se", "standard error over rows (jackknife); NULL where it is of weights alone"),
            Value("null", "the same with the link cut: other tokens, shuffled keys; NULL where there is none")],
)
def monitors(model: Model, subject: Weights, params: MonitorsParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (metric, layer, head)."""
    import torch

    dice = torch.Generator().manual_seed(params.seed)
    progress(0.05, "Forward")
    p = own_params(model).get("p")
    seen = _sums(model, int(p), params.rows, dice) if p else _repeated(model, params, dice)
    values = room.measure((*PREDICTIONS, *PATTERNS, *PLAIN, *OF_WEIGHTS), seen)
    errors = _jackknife(seen, progress)
    null = room.measure((*PREDICTIONS, *PATTERNS, "copying_score"), _cut(seen, dice))
    return pd.DataFrame([(*_place(k), v, errors.get(k), null.get(k)) for k, v in values.items()],
                        columns=["metric", "layer", "head", "value", "se", "null"])


def _repeated(model: Model, params: MonitorsParams, dice: Any) -> Observation:
    """Observe the model on random rows [A; A]."""
    import torch

    n = min(params.block_length, model.card.n_ctx // 2)
    if n < 2:
        raise BadInput("Monitors", f"{model.card.spec} reads {model.card.n_ctx} tokens, [A; A] needs 4",
                       "Choose a model with a longer context")
    block = torch.randint(model.card.d_vocab, (params.rows, n), generator=dice)
    return seen_of(model, torch.cat([block, block], 1).to(model.card.device), n)


def _sums(model: Model, p: int, rows: int, dice: Any) -> Observation:
    """Observe the model on inputs (a, b, '=') of modular addition, with their sums as the right answers."""
    import torch

    from backend.maths import modular_addition as task

    pairs = torch.randint(p, (rows, 2), generator=dice)
    seen = seen_of(model, torch.nn.functional.pad(pairs, (0, 1), value=p).to(model.card.device), 0)
    seen.targets = task.answers(pairs, p).to(seen.tokens.device)
    return seen


def seen_of(model: Model, tokens: Any, block: int) -> Observation:
    """Observe a model on rows [A; A] just as its training loop would."""
    seen = model.observe(tokens)
    seen.block, seen.extra = block, {**seen.extra, "causal": "causal" in model.card.capabilities}
    return seen


def _jackknife(seen: Observation, progress: Progress) -> dict[str, float]:
    """Return sqrt((R - 1) / R * sum_r (value without row r - their mean)^2) of every number that rows estimate."""
    names, rows = (*PREDICTIONS, *PATTERNS, *PLAIN), len(seen.tokens)
    found = []
    for r in range(rows):
        progress(0.2 + 0.7 * r / rows, f"Error over rows, {r + 1} of {rows}")
        found.append(room.measure(names, _only(seen, [i for i in range(rows) if i != r])))
    spread = {name: np.array([one[name] for one in found]) for name in found[0]}
    return {name: float(np.sqrt((rows - 1) * values.var())) for name, values in spread.items()}


def _only(seen: Observation, rows: list[int]) -> Observation:
    targets = None if seen.targets is None else seen.targets[rows]
    return replace(seen, tokens=seen.tokens[rows], targets=targets, logits=seen.logits[rows],
                   patterns=[p[rows] for p in seen.patterns],
                   resid=None if seen.resid is None else seen.resid[rows])


def _cut(seen: Observation, dice: Any) -> Observation:
    """Judge every row by the next row's tokens; shuffle the visible keys of every query, and the tokens of W_E."""
    import torch

    from backend.maths.attending import shuffled_keys

    rows, length = seen.tokens.shape
    keys = shuffled_keys(rows, length, seen.extra["causal"], dice).to(seen.tokens.device)
    weights = dict(seen.weights)
    if "W_E" in weights:
        order = torch.randperm(len(weights["W_E"]), generator=dice).to(seen.tokens.device)
        weights["W_E"] = weights["W_E"][order]
    shuffled = [p.gather(-1, keys[:, None].expand_as(p)) for p in seen.patterns]
    targets = None if seen.targets is None else seen.targets.roll(1, 0)
    return replace(seen, tokens=seen.tokens.roll(1, 0), targets=targets, patterns=shuffled, weights=weights)


def _place(name: str) -> tuple[str, int, int]:
    """Read `name`, `name/L1` or `name/L1H2`."""
    metric, _, place = name.partition("/L")
    layer, _, head = place.partition("H")
    return metric, int(layer or -1), int(head or -1)


@monitors.costs
def work(card: ModelCard, subject: Weights, params: MonitorsParams) -> Work:
    """The rows once (of an architecture that is read through its view up to three times), every number again without
    each row, and what each head writes of a token to that token."""
    plan, p = Plan(card), own_params(Plan(card)).get("p")
    length = 3 if p else 2 * min(params.block_length, card.n_ctx // 2)
    plan.call(params.rows, length, 1 if "named_weights" in card.capabilities else 3)
    kept = card.n_layers * card.n_heads * length + card.d_vocab_out + card.d_model
    heads = 8 * card.n_layers * card.n_heads * card.d_model * card.d_head * min(card.d_vocab, 1000)
    return plan.total(3 * 4 * params.rows * length * kept, heads, SHORTER_ROWS)


# ---------------------------------------------------------------- figures


@monitors.figure("Scores and norms of all heads")
def heads(table: pd.DataFrame, view: View) -> Any:
    """Layer by head, a map for the chosen metric (induction score at first)."""
    per_head = table[table["head"] >= 0]
    if per_head.empty:
        raise BadInput("Heads", "this model shows neither patterns nor weights by name", "Look at the other figure")
    known = list(dict.fromkeys(per_head["metric"]))
    name = str(view.chosen.get("metric") or ("induction_score" if "induction_score" in known else known[0]))
    if name not in known:
        raise BadInput(f"Metric {name!r}", "no monitor of heads here", f"Use one of {', '.join(known)}")
    drawn = per_head[per_head["metric"] == name].pivot(index="layer", columns="head", values="value").to_numpy()
    limits = (0.0, 1.0) if name in (*PATTERNS, "attention_entropy") else (float(drawn.min()), float(drawn.max()))
    return maps({name.replace("_", " "): drawn}, x_title="head", y_title="layer", value=name.replace("_", " "),
                limits=limits)


@monitors.figure("Predictions on a repeated block")
def predictions(table: pd.DataFrame, view: View) -> Any:
    """Losses, accuracies and entropy of the whole model; the null (another row's tokens) in grey."""
    whole = table[table["metric"].isin(SHARED)].set_index("metric")
    whole = whole.loc[[name for name in SHARED if name in whole.index]]
    colours = [CATEGORIES["accuracy" in name] for name in whole.index]
    return bars([n.replace("_", " ") for n in whole.index], whole["value"], errors=whole["se"], null=whole["null"],
                colours=colours, x_title="metric", y_title="nats, or share of tokens (accuracies)")
