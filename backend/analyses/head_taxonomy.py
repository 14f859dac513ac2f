"""Which habits does each head have: previous or duplicate token, induction, first token, offset, uniform, syntax?

The analysis makes its own rows (subject: the weights), for in a text the habits cannot be told apart: a head that looks
n - 1 tokens back on rows that repeat every n tokens looks like an induction head. Kinds of rows: fresh ones, in which
no token comes twice (as far as the vocabulary allows), and repeated ones [A; A] with A of n, n - 1 and 3n/4 different
tokens. A score is the mean over rows, and of the kinds of rows on which a label is defined the **least** counts: a
habit holds on all of them. With P the attention pattern:
`previous-token` mean of P[i, i-1]; `self` mean of P[i, i], i >= 1; `first-token` mean of P[i, 0], i >= 2 (sink; the
previous token of i = 1 is the first); `positional` mean of P[i, i-k], k in 2..n/2 the one with the largest score;
`uniform` mean of entropy / ln(visible keys); all on every kind. On repeated rows only: `duplicate-token` mean of
P[i, i-n], i = n..2n-1; `induction` mean of P[i, i-n+1], i = n..2n-2 (prefix matching).
`delimiter`, `bracket`, `line-start` take a model whose tokenizer has such tokens, and rows of their own: random tokens
among which punctuation and newlines, brackets, and newlines once more are sown at random, about a tenth of each; mean
attention to the delimiters, brackets, or tokens behind a newline, over the queries that see one.
`null` is the same score after every query's visible keys were shuffled, `z` = (score - null) / sqrt(se^2 + null's
se^2); both on the kind of rows that counts. A label is `earned` where score > threshold and score > null + 5 of those
errors. A head may earn several, or none. Entropy does not change under a shuffle, so `uniform` has no z and is earned
by its own threshold. `stable`: earned or not alike on two halves of the rows with tokens of their own; `stability`: of
all labels that at least one half earned, the share that both did (NULL where there are none).

Name movers have no label here: it takes names and what the head copies, not a pattern alone (see Name movers). Exact
given the rows; errors are over rows. A label says what a head attends to, not what the model does with it.
Cost: one forward with patterns per batch of rows, four kinds of rows, five with those of syntax.
Source: Olsson et al. (2022), In-context Learning and Induction Heads, "Head activation evaluators"; Voita et al.
(2019), Analyzing Multi-Head Self-Attention, section 4 (positional heads); Xiao et al. (2023), Efficient Streaming
Language Models with Attention Sinks, section 3 (first token); Clark et al. (2019), What Does BERT Look At?, section 3
(delimiters).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import patterns, row_batches
from backend.analyses._scores import SIGMAS, names, over_rows, z_score
from backend.analyses._syntax import keys_of, kinds_of, sown_rows
from backend.analyses._work import SHORTER_ROWS, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, Panel, bars, panels

SYNTAX = ("delimiter", "bracket", "line-start")  # of models whose tokenizer has such tokens
LABELS = ("induction", "previous-token", "duplicate-token", "first-token", "positional", "self", "uniform", *SYNTAX)
MOST_BARS = 24
Table = dict[str, np.ndarray]


class HeadTaxonomyParams(Params):
    """The rows, and what earns a label."""

    block_length: int = Field(24, ge=4, le=512, description="n, tokens in the repeated block; cut to n_ctx / 2")
    rows: int = Field(32, ge=4, le=1024, description="rows of each kind, half in each half; errors are over these")
    threshold: float = Field(0.4, ge=0.0, le=1.0, description="least score (mean attention) that earns a label")
    uniform_threshold: float = Field(0.95, ge=0.0, le=1.0, description="least entropy / ln(visible keys) of `uniform`")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the rows and of the shuffled null")


@analysis(
    version=2, group="Attention",
    title="Head taxonomy", asks="Which habits does each head have, beyond chance and on fresh tokens?",
    subject=Weights, params=HeadTaxonomyParams, needs=["attention_patterns"],
    axes=[Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based"),
          Axis("label", "the habit in question", kind="str")],
    values=[
        Value("score", "mean attention of this habit (uniform: entropy / ln n), least over the kinds of rows"),
        Value("se", "standard error over rows of score"),
        Value("null", "score after shuffling the visible keys of every query; NULL for uniform"),
        Value("z", "score minus null, in standard errors; NULL where both errors are 0, and for uniform"),
        Value("threshold", "what score must exceed"),
        Value("offset", "how many tokens back, for positional; else NULL", "tokens", "int"),
        Value("earned", "score exceeds the threshold and its null by 5 standard errors", kind="bool"),
        Value("earned_first", "earned on the first half of the rows alone", kind="bool"),
        Value("earned_second", "earned on the second half alone", kind="bool"),
        Value("stable", "both halves say the same", kind="bool"),
        Value("stability", "of all labels that a half earned, the share that both did; the same in every row"),
    ],
)
def head_taxonomy(model: Model, subject: Weights, params: HeadTaxonomyParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head, label)."""
    import torch

    n = min(params.block_length, model.card.n_ctx // 2)
    if n < 4 or model.card.d_vocab < 4:
        found = f"{model.card.spec} reads {model.card.n_ctx} tokens of {model.card.d_vocab} kinds"
        raise BadInput("Head taxonomy", found, "Choose a model with a context of 8 or more")
    dice = torch.Generator().manual_seed(params.seed)
    kinds, measured = _kinds(n, model.card.d_vocab), []
    for i, block in enumerate(kinds):
        length = 2 * (block or n)
        rows = torch.stack([_row(model.card.d_vocab, block, length, dice) for _ in range(params.rows)])
        measured.append(_measure(model, rows, block, n // 2, dice))
        progress((i + 1) / (len(kinds) + 1), f"rows of kind {i + 1} of {len(kinds)}")
    if syntax := kinds_of(getattr(model.card, "tokenizer", {}), model.card.d_vocab):
        measured.append(_measure(model, sown_rows(syntax, params.rows, 2 * n, dice), 0, n // 2, dice, syntax))
    return _table(measured, params)


def _kinds(n: int, d_vocab: int) -> list[int]:
    """Return the block lengths of the kinds of rows, 0 for fresh rows; a block repeats no token."""
    most = min(n, d_vocab)
    return [0, *sorted({most, most - 1, max(2, 3 * most // 4)}, reverse=True)]


def _row(d_vocab: int, block: int, length: int, dice: Any) -> Any:
    """Draw one row: [A; A], or `length` fresh tokens, which come twice only where the vocabulary is too small."""
    import torch

    if block:
        return torch.randperm(d_vocab, generator=dice)[:block].repeat(2)
    times = -(-length // d_vocab)
    return torch.cat([torch.randperm(d_vocab, generator=dice) for _ in range(times)])[:length]


def _measure(model: Model, rows: Any, block: int, most: int, dice: Any,
             syntax: dict[str, list[int]] | None = None) -> dict[str, np.ndarray]:  # fmt: skip
    """Return {label: [layer, row, head]} and `<label>_null`; `positional` holds one score per offset 2..most.

    With `syntax`, the kinds of tokens sown in these rows, the labels are those of SYNTAX alone.
    """
    import torch

    from backend.maths import attending

    causal = "causal" in model.card.capabilities
    found: dict[str, list] = {}
    for _, batch in row_batches(model, rows):
        shuffle = attending.shuffled_keys(batch.shape[0], batch.shape[1], causal, dice).to(batch.device)[:, None]
        layers: dict[str, list] = {}
        keys = keys_of(syntax, batch) if syntax else {}

        def score(pattern: Any, keys: dict[str, Any] = keys) -> dict[str, Any]:
            if not syntax:
                return _scores(pattern, causal, block, most)
            return {label: attending.mass_on(pattern, marked, causal) for label, marked in keys.items()}

        for _, pattern in patterns(model, batch):
            shuffled = pattern.gather(-1, shuffle.expand_as(pattern))
            parts = score(pattern) | {f"{k}_null": v for k, v in score(shuffled).items()}
            for name, values in parts.items():
                layers.setdefault(name, []).append(values)
        for name, per_layer in layers.items():
            found.setdefault(name, []).append(torch.stack(per_layer).double().cpu().numpy())
    return {name: np.concatenate(parts, 1) for name, parts in found.items()}


def _scores(pattern: Any, causal: bool, block: int, most: int) -> dict[str, Any]:
    """Return the scores of one layer's pattern [row, head, query, key]: [row, head], offsets [row, head, k]."""
    from backend.maths import attending, heads

    found = {
        "previous-token": heads.previous_token(pattern), "self": attending.at_offset(pattern, 0),
        "first-token": pattern[..., 2:, 0].mean(-1), "positional": attending.offset_masses(pattern, 2, most),
        "uniform": heads.normalised_entropy(pattern, causal).mean(-1),
    }  # fmt: skip
    if block:
        found["induction"] = heads.prefix_matching(pattern, block)
        found["duplicate-token"] = heads.duplicate_token(pattern, block)
    return found


def _table(measured: list[dict[str, np.ndarray]], params: HeadTaxonomyParams) -> pd.DataFrame:
    """Judge all rows and both halves; `measured` has one entry per kind of rows."""
    half = params.rows // 2
    whole, first, second = (_judged([{k: v[:, part] for k, v in kind.items()} for kind in measured], params)
                            for part in (slice(None), slice(half), slice(half, None)))  # fmt: skip
    n_layers, n_heads = whole["score"].shape[:2]
    labels = _labels(measured)
    layer, head, label = (axis.ravel() for axis in np.indices((n_layers, n_heads, len(labels))))
    columns: dict[str, Any] = {"layer": layer, "head": head, "label": [labels[i] for i in label]}
    columns |= {name: values.ravel() for name, values in whole.items()}
    columns["earned_first"], columns["earned_second"] = (x["earned"].ravel() for x in (first, second))
    both, either = (op(columns["earned_first"], columns["earned_second"]) for op in (np.logical_and, np.logical_or))
    columns["stable"] = columns["earned_first"] == columns["earned_second"]
    columns["stability"] = both.sum() / either.sum() if either.any() else np.nan
    return pd.DataFrame(columns)


def _labels(measured: list[dict[str, np.ndarray]]) -> list[str]:
    return [label for label in LABELS if any(label in kind for kind in measured)]


def _judged(measured: list[dict[str, np.ndarray]], params: HeadTaxonomyParams) -> Table:
    """Return [layer, head, label] of score, se, null, z, threshold, offset and earned."""
    labels = _labels(measured)
    columns = [_least([k for k in measured if label in k], label) for label in labels]
    found = {name: np.stack([c[name] for c in columns], -1) for name in columns[0]}
    free = np.array([label == "uniform" for label in labels])
    found["z"] = np.where(free, np.nan, z_score(found["score"], found["se"], found["null"], found["null_se"]))
    error = np.hypot(found["se"], found.pop("null_se"))
    found["threshold"] = np.broadcast_to(np.where(free, params.uniform_threshold, params.threshold), error.shape)
    beyond = free | (found["score"] - found["null"] > SIGMAS * error)
    found["earned"] = (found["score"] > found["threshold"]) & beyond
    found["null"] = np.where(free, np.nan, found["null"])
    return {name: found[name] for name in ("score", "se", "null", "z", "threshold", "offset", "earned")}


def _least(kinds: list[dict[str, np.ndarray]], label: str) -> Table:
    """Return score, se, null and its se [layer, head] on the kind of rows with the least score."""
    kept = [(*over_rows(kind[label]), *over_rows(kind[f"{label}_null"])) for kind in kinds]
    stacked = [np.stack(part) for part in zip(*kept, strict=True)]  # each [kind, layer, head], positional [..., offset]
    least = stacked[0].argmin(0)[None]
    found = [np.take_along_axis(part, least, 0)[0] for part in stacked]
    if label != "positional":
        return dict(zip(("score", "se", "null", "null_se", "offset"),
                        (*found, np.full(found[0].shape, np.nan)), strict=True))  # fmt: skip
    best = found[0].argmax(-1)[..., None]
    score, se = (np.take_along_axis(part, best, -1)[..., 0] for part in found[:2])
    chance = found[2].argmax(-1)[..., None]  # the null may choose its offset, too
    null, null_se = (np.take_along_axis(part, chance, -1)[..., 0] for part in found[2:])
    return {"score": score, "se": se, "null": null, "null_se": null_se, "offset": best[..., 0] + 2.0}


@head_taxonomy.costs
def work(card: ModelCard, subject: Weights, params: HeadTaxonomyParams) -> Work:
    """The rows of each kind once, or once per group of layers whose patterns fit."""
    plan, n = Plan(card), max(1, min(params.block_length, card.n_ctx // 2))
    blocks = [*_kinds(n, card.d_vocab), *([n] if kinds_of(card.tokenizer, card.d_vocab) else [])]
    held = [plan.rows_of_patterns(params.rows, 2 * (block or n)) for block in blocks]
    offsets = 2 * 16 * len(held) * card.n_layers * card.n_heads * params.rows * (10 + n // 2)
    return plan.total(max(held) + offsets, knobs=SHORTER_ROWS)


# ---------------------------------------------------------------- figures


@head_taxonomy.figure("Scores of all heads; earned labels are marked")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head, one map per label on one scale; • earned, ◦ earned but not on both halves."""
    table, drawn = _floats(table), {}
    for label in [label for label in LABELS if (table["label"] == label).any()]:
        mine = table[table["label"] == label].set_index(["layer", "head"])
        sure = np.where(mine["earned"], np.where(mine["earned_first"] & mine["earned_second"], "•", "◦"), "")
        mark = pd.Series(sure, mine.index)
        if label == "positional":
            mark = mark.where(mark == "", [f"−{k:.0f}" for k in mine["offset"]])
        hover = pd.Series([_words(r) for r in mine.reset_index().itertuples()], mine.index)
        drawn[label] = Panel(mine["score"].unstack("head").to_numpy(), (0.0, 1.0),
                             marks=mark.unstack("head").to_numpy(), hover=hover.unstack("head").to_numpy())  # fmt: skip
    return panels(drawn, x_title="head", y_title="layer", value="score (0 to 1)")


@head_taxonomy.figure("Earned labels beside their null")
def earned(table: pd.DataFrame, view: View) -> Any:
    """The 24 highest scores among earned labels (where none was: among all), with standard errors; null in grey."""
    table = _floats(table)
    mine = table[table["earned"]] if table["earned"].any() else table[table["label"] != "uniform"]
    best = mine.nlargest(MOST_BARS, "score")
    which = [f"{n} {label}" for n, label in zip(names(best["layer"], best["head"]), best["label"], strict=True)]
    colours = [CATEGORIES[LABELS.index(label) % 7] for label in best["label"]]
    said = "earned labels" if table["earned"].any() else "no label was earned; the highest scores"
    return bars(which, best["score"], errors=best["se"], null=best["null"], colours=colours,
                hover=[_words(r) for r in best.itertuples()], x_title=said,
                y_title="score (0 to 1; error: standard error)")  # fmt: skip


def _floats(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with NaN for what the store calls NULL."""
    return table.assign(**{n: table[n].to_numpy(float, na_value=np.nan) for n in ("offset", "null", "z")})


def _words(row: Any) -> str:
    where = f"L{row.layer}H{row.head} {row.label}" + (f" {row.offset:.0f} back" if row.offset == row.offset else "")
    against = "" if row.null != row.null else f"<br>shuffled keys: {row.null:.3g}, z {row.z:.3g}"
    halves = "both halves agree" if row.stable else "the halves disagree"
    verdict = "earned" if row.earned else f"not earned (needs {row.threshold:g})"
    return f"{where}: {row.score:.3g} ± {row.se:.2g}{against}<br>{verdict}; {halves}"
