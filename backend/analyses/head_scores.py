"""Which heads are induction, previous-token, duplicate-token or first-token heads?

On `rows` sequences [A; A], A of n random tokens (uniform over the vocabulary), with P the attention pattern:
`induction_score` = mean of P[i, i-n+1] over i = n..2n-2 (prefix matching); `previous_token_score` = mean of P[i, i-1];
`duplicate_token_score` = mean of P[i, i-n] over i = n..2n-1; `first_token_score` = mean of P[i, 0] over i >= 1;
`entropy` = mean entropy of a row (nats). Each is the mean over rows, `_se` its standard error over rows.
`_null` is the same score after every query's visible keys were shuffled, and `_z` = (score - null) / sqrt(se^2 + null's
se^2), NULL where both are 0. A head gets the `label` of its strongest score among those that exceed both `threshold`
and null + 5 standard errors, else "none": a label says what the head attends to, not what the model does with it.

Exact given the random sequences; a standard error speaks of rows, not of other kinds of text. n is cut to n_ctx // 2.
With a small vocabulary A repeats tokens, which lowers the best induction score a little below 1.
Cost: one forward with patterns per batch of rows.
Source: Olsson et al. (2022), In-context Learning and Induction Heads, "Head activation evaluators".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import patterns, row_batches
from backend.analyses._work import SHORTER_ROWS, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, bars
from backend.figures import grid as maps

LABELS = {"induction": "induction", "previous_token": "previous-token", "duplicate_token": "duplicate-token",
          "first_token": "first-token"}
SHORT = {"induction": "ind", "previous-token": "prev", "duplicate-token": "dup", "first-token": "first", "none": ""}
SIGMAS = 5.0  # standard errors above the null: about 3e-7 one-sided for a normal error, far beyond 1e4 heads tried


class HeadScoresParams(Params):
    """The random sequences, and when a head earns a label."""

    block_length: int = Field(25, ge=2, le=512, description="tokens in the repeated block A; cut to half of n_ctx")
    rows: int = Field(16, ge=2, le=1024, description="random sequences; standard errors are over these")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random tokens and of the shuffled null")
    threshold: float = Field(0.3, ge=0.0, le=1.0, description="least score that earns a label")


def _columns(name: str, words: str) -> list[Value]:
    return [
        Value(f"{name}_score", f"mean attention {words}", "probability"),
        Value(f"{name}_score_se", f"standard error over rows of {name}_score", "probability"),
        Value(f"{name}_null", f"{name}_score after shuffling the visible keys of every query", "probability"),
        Value(f"{name}_z", f"{name}_score minus its null, in standard errors; NULL where both errors are 0"),
    ]


@analysis(
    version=1, group="Attention",
    title="Head scores", asks="Which heads are induction, previous-token or duplicate-token heads?",
    subject=Weights, params=HeadScoresParams, needs=["attention_patterns"],
    axes=[Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based")],
    values=[
        *_columns("induction", "to the token after the earlier occurrence of the query token"),
        *_columns("previous_token", "to the position just before"),
        *_columns("duplicate_token", "to the earlier occurrence of the query token"),
        *_columns("first_token", "to position 0"),
        Value("entropy", "mean entropy of the attention rows", "nats"),
        Value("entropy_se", "standard error over rows of entropy", "nats"),
        Value("label", "strongest score that exceeds the threshold and its null; else none", kind="str"),
    ],
)
def head_scores(model: Model, subject: Weights, params: HeadScoresParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head)."""
    import torch

    if model.card.n_ctx < 4:
        raise BadInput("Head scores", f"{model.card.spec} reads {model.card.n_ctx} tokens, [A; A] needs 4",
                       "Choose a model with a longer context")
    n = min(params.block_length, model.card.n_ctx // 2)
    dice = torch.Generator().manual_seed(params.seed)
    block = torch.randint(model.card.d_vocab, (params.rows, n), generator=dice)
    scores: dict[str, list] = {}  # name -> per batch [layer, row, head]
    for start, batch in row_batches(model, torch.cat([block, block], 1)):
        measured = _measure(model, batch, n, dice)
        for name, values in measured.items():
            scores.setdefault(name, []).append(values)
        progress((start + len(batch)) / params.rows, f"row {start + len(batch)} of {params.rows}")
    return _table({name: np.concatenate(parts, 1) for name, parts in scores.items()}, params.threshold)


def _measure(model: Model, tokens: Any, n: int, dice: Any) -> dict[str, np.ndarray]:
    """Return {score: [layer, row, head]} of the patterns, `<score>_null` of the shuffled ones, and the entropy."""
    import torch

    from backend.maths import attending, heads

    rows, length = tokens.shape
    shuffle = attending.shuffled_keys(rows, length, "causal" in model.card.capabilities, dice).to(tokens.device)
    found: dict[str, list] = {}
    for _, pattern in patterns(model, tokens):
        shuffled = pattern.gather(-1, shuffle[:, None].expand_as(pattern))
        for suffix, p in (("", pattern), ("_null", shuffled)):
            found.setdefault("induction" + suffix, []).append(heads.prefix_matching(p, n))
            found.setdefault("previous_token" + suffix, []).append(heads.previous_token(p))
            found.setdefault("duplicate_token" + suffix, []).append(heads.duplicate_token(p, n))
            found.setdefault("first_token" + suffix, []).append(p[..., 1:, 0].mean(-1))
        found.setdefault("entropy", []).append(heads.attention_entropy(pattern).mean(-1))
    return {name: torch.stack(layers).double().cpu().numpy() for name, layers in found.items()}


def _table(scores: dict[str, np.ndarray], threshold: float) -> pd.DataFrame:
    """Average over rows; scores are [layer, row, head]."""
    n_layers, rows, n_heads = scores["entropy"].shape
    mean = {name: values.mean(1).ravel() for name, values in scores.items()}
    se = {name: values.std(1, ddof=1).ravel() / math.sqrt(rows) for name, values in scores.items()}
    columns: dict[str, Any] = {"layer": np.repeat(np.arange(n_layers), n_heads),
                               "head": np.tile(np.arange(n_heads), n_layers)}
    earned = {}
    for name in LABELS:
        error = np.hypot(se[name], se[f"{name}_null"])
        gap = mean[name] - mean[f"{name}_null"]
        z = np.divide(gap, error, out=np.full_like(gap, np.nan), where=error > 0)
        columns |= {f"{name}_score": mean[name], f"{name}_score_se": se[name],
                    f"{name}_null": mean[f"{name}_null"], f"{name}_z": z}
        earned[name] = np.where((mean[name] > threshold) & (gap > SIGMAS * error), mean[name], -1.0)
    columns |= {"entropy": mean["entropy"], "entropy_se": se["entropy"], "label": _labels(earned)}
    return pd.DataFrame(columns)


def _labels(earned: dict[str, np.ndarray]) -> list[str]:
    """Return the name of the largest earned score of each head, "none" where none was earned (-1)."""
    stacked = np.stack(list(earned.values()))
    words = list(LABELS.values())
    return [words[best] if top >= 0 else "none" for best, top in zip(stacked.argmax(0), stacked.max(0), strict=True)]


@head_scores.costs
def work(card: ModelCard, subject: Weights, params: HeadScoresParams) -> Work:
    """Every random row once, or once per group of layers whose patterns fit."""
    plan = Plan(card)
    held = plan.rows_of_patterns(params.rows, 2 * min(params.block_length, card.n_ctx // 2)) if card.n_ctx > 1 else 0
    return plan.total(held, knobs=SHORTER_ROWS)


# ---------------------------------------------------------------- figures


@head_scores.figure("Scores of all heads")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head, one map per score; a head's label stands in the map of the score that earned it."""
    drawn, marks = {}, {}
    for name, words in LABELS.items():
        by_head = table.set_index(["layer", "head"])
        panel = words.removesuffix("-token")
        drawn[panel] = by_head[f"{name}_score"].unstack("head").to_numpy()
        mine = by_head["label"].where(by_head["label"] == words, "none").map(SHORT)
        marks[panel] = mine.unstack("head").to_numpy().tolist()
    return maps(drawn, x_title="head", y_title="layer", value="score (mean attention, 0 to 1)", limits=(0.0, 1.0),
                marks=marks)


@head_scores.figure("Strongest heads beside their null")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The 24 heads with the largest `view.chosen["score"]`, with standard errors; the null in grey."""
    name = str(view.chosen.get("score", "induction"))
    if name not in LABELS:
        raise BadInput(f"Score {name!r}", "not a score of heads", f"Use one of {sorted(LABELS)}")
    best = table.nlargest(24, f"{name}_score")
    heads = [f"L{layer}H{head}" for layer, head in zip(best["layer"], best["head"], strict=True)]
    colours = [CATEGORIES[list(SHORT).index(label)] if label != "none" else CATEGORIES[4] for label in best["label"]]
    score, error, null, z = (best[f"{name}_{part}"] for part in ("score", "score_se", "null", "z"))
    hover = [f"{h}: {s:.3g} ± {e:.2g}<br>null {o:.3g}, z {t:.3g}<br>label: {w}"
             for h, s, e, o, t, w in zip(heads, score, error, null, z, best["label"], strict=True)]
    return bars(heads, score, errors=error, null=null, colours=colours, hover=hover, x_title="head",
                y_title=f"{LABELS[name]} score (0 to 1; error: standard error)")
