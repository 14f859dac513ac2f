"""How widely and how far does each head look, over many rows?

With P the attention row of a query, n the number of keys that it may see:
`normalised_entropy` = -sum P ln P / ln n (1 uniform, 0 one key); `effective_keys` = exp(-sum P ln P);
`top_mass` = mass on the `top_keys` largest entries (sparsity), over queries with n > top_keys (NULL where there are
none), `top_mass_uniform` = what a uniform row has there; `distance` = sum P |query_pos - key_pos| in tokens,
`relative_distance` = the same over the distance to the farthest visible key; `first_token` = P[0] (sink share);
`diagonal` = P[query_pos]; `offset_mass` = mean of P[i, i - k] for the fixed offset k in 0..max_offset that has most of
it (`best_offset`, cut to half a row, so that at least half of the queries have that key).
Each is the mean over queries with n >= 2, then over rows; `_se` is its standard error over rows. `_null` is the same
after every query's visible keys were shuffled (`offset_mass_null`: at the null's own best offset), and
`_z` = (value - null) / sqrt(se^2 + null's se^2), NULL where both are 0. Entropy, effective keys and top mass are the
same for a shuffled row: their yardsticks are the uniform row and one key.

Exact for these rows. A large z says that a place is preferred beyond chance, not that the head does something with it.
Cost: one forward with patterns per batch of rows.
Source: Clark et al. (2019), What Does BERT Look At?, sections 3 and 4 (entropy, offsets, first token); Vig and Belinkov
(2019), Analyzing the Structure of Attention in a Transformer Language Model, section 4 (distance).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import patterns, row_batches
from backend.analyses._scores import names, over_rows, places, z_score
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, Panel, bars, panels

#: name -> (words for the panel, help, unit, limits of its colours)
SPREAD = {
    "normalised_entropy": ("entropy / ln n", "entropy of a row over ln(visible keys)", "", (0.0, 1.0)),
    "effective_keys": ("effective keys", "exp of a row's entropy", "keys", None),
    "top_mass": ("mass on top keys", "mass on the top_keys largest entries", "probability", (0.0, 1.0)),
}
PLACE = {
    "distance": ("distance (tokens)", "mean distance from query to key", "tokens", None),
    "relative_distance": ("distance / farthest", "distance over that to the farthest visible key", "", (0.0, 1.0)),
    "first_token": ("first token", "attention to position 0 (sink share)", "probability", (0.0, 1.0)),
    "diagonal": ("own position", "attention to the query's own position", "probability", (0.0, 1.0)),
    "offset_mass": ("best fixed offset", "attention to the key best_offset positions back", "probability", (0.0, 1.0)),
}


class AttentionStatisticsParams(Params):
    """What counts as sparse and as a fixed offset."""

    top_keys: int = Field(5, ge=1, le=64, description="keys whose mass says how sparse a row is")
    max_offset: int = Field(32, ge=0, le=512, description="largest fixed offset tried; cut to half a row")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the shuffled null")


def _columns(name: str, words: str, unit: str, null: bool) -> list[Value]:
    found = [Value(name, f"{words}; mean over queries and rows", unit),
             Value(f"{name}_se", f"standard error over rows of {name}", unit)]  # fmt: skip
    if null:
        found += [Value(f"{name}_null", f"{name} after shuffling the visible keys of every query", unit),
                  Value(f"{name}_z", f"{name} minus its null, in standard errors; NULL where both errors are 0")]
    return found


@analysis(
    version=1, group="Attention",
    title="Attention statistics", asks="How widely and how far does each head look, over many rows?",
    subject=Corpus, params=AttentionStatisticsParams, needs=["attention_patterns"],
    axes=[Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based")],
    values=[
        *(c for n, (_, words, unit, _) in SPREAD.items() for c in _columns(n, words, unit, False)),
        Value("top_mass_uniform", "top_mass of uniform rows", "probability"),
        *(c for n, (_, words, unit, _) in PLACE.items() for c in _columns(n, words, unit, True)),
        Value("best_offset", "the fixed offset with most attention: 0 itself, 1 the token before", "tokens", "int"),
    ],
)  # fmt: skip
def attention_statistics(
    model: Model, subject: Rows, params: AttentionStatisticsParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (layer, head)."""
    import torch

    rows, length = subject.tokens.shape
    if length < 2:
        raise BadInput("Attention statistics", "rows of one token: there is nothing to choose", "Use longer rows")
    dice = torch.Generator().manual_seed(params.seed)
    found: dict[str, list] = {}  # name -> per batch [layer, row, head, ...]
    for start, batch in row_batches(model, torch.as_tensor(subject.tokens)):
        for name, values in _measure(model, batch, params, dice).items():
            found.setdefault(name, []).append(values)
        progress((start + len(batch)) / rows, f"row {start + len(batch)} of {rows}")
    uniform = _top_of_uniform(model, params.top_keys, length)
    return _table({name: np.concatenate(parts, 1) for name, parts in found.items()}, uniform)


def _measure(model: Model, tokens: Any, params: AttentionStatisticsParams, dice: Any) -> dict[str, np.ndarray]:
    """Return {name: [layer, row, head, ...]}; `<name>_null` are those of shuffled keys."""
    import torch

    from backend.maths import attending

    rows, length = tokens.shape
    causal = "causal" in model.card.capabilities
    shuffle = attending.shuffled_keys(rows, length, causal, dice).to(tokens.device)
    found: dict[str, list] = {}
    for _, pattern in patterns(model, tokens):
        shuffled = pattern.gather(-1, shuffle[:, None].expand_as(pattern))
        parts = _spread(pattern, causal, params.top_keys) | _place(pattern, causal, params.max_offset)
        parts |= {f"{n}_null": v for n, v in _place(shuffled, causal, params.max_offset).items()}
        for name, values in parts.items():
            found.setdefault(name, []).append(values)
    return {name: torch.stack(layers).double().cpu().numpy() for name, layers in found.items()}


def _spread(pattern: Any, causal: bool, top: int) -> dict[str, Any]:
    """Return what a shuffle of keys leaves as it is: [row, head] each, over queries with at least two visible keys."""
    from backend.maths import attending, divergence

    start = 1 if causal else 0
    visible = attending.visible_keys(pattern.shape[-1], causal).to(pattern.device)
    return {
        "normalised_entropy": divergence.normalised_entropy(pattern, visible)[..., start:].mean(-1),
        "effective_keys": divergence.entropy(pattern)[..., start:].exp().mean(-1),
        "top_mass": attending.top_mass(pattern, top)[..., visible > top].mean(-1),
    }


def _place(pattern: Any, causal: bool, most: int) -> dict[str, Any]:
    """Return what depends on where the keys are: [row, head] each; `offsets` [row, head, offset]."""
    from backend.maths import attending

    length = pattern.shape[-1]
    start = 1 if causal else 0
    far = attending.farthest(length, causal).to(pattern.device)[start:]
    distance = attending.distance(pattern)[..., start:]
    return {
        "distance": distance.mean(-1), "relative_distance": (distance / far).mean(-1),
        "first_token": pattern[..., 1:, 0].mean(-1), "diagonal": attending.at_offset(pattern, 0),
        "offsets": attending.offset_masses(pattern, 0, min(most, length // 2)),
    }  # fmt: skip


def _table(found: dict[str, np.ndarray], top_mass_uniform: float) -> pd.DataFrame:
    """Average over rows; the best offset is that of the mean over rows."""
    n_layers, _, n_heads = found["distance"].shape
    measured: dict[str, Any] = {name: over_rows(values) for name, values in found.items()}
    for suffix in ("", "_null"):
        offsets, se = measured[f"offsets{suffix}"]
        best = offsets.argmax(-1)[..., None]
        measured[f"offset_mass{suffix}"] = tuple(np.take_along_axis(v, best, -1)[..., 0] for v in (offsets, se))
    columns: dict[str, Any] = places(n_layers, n_heads)
    for name in SPREAD:
        columns |= {name: measured[name][0].ravel(), f"{name}_se": measured[name][1].ravel()}
    columns["top_mass_uniform"] = top_mass_uniform
    for name in PLACE:
        (value, se), (null, null_se) = measured[name], measured[f"{name}_null"]
        columns |= {name: value.ravel(), f"{name}_se": se.ravel(), f"{name}_null": null.ravel(),
                    f"{name}_z": z_score(value, se, null, null_se).ravel()}  # fmt: skip
    columns["best_offset"] = measured["offsets"][0].argmax(-1).ravel()
    return pd.DataFrame(columns)


def _top_of_uniform(model: Model, top: int, length: int) -> float:
    from backend.maths import attending

    causal = "causal" in model.card.capabilities
    return float(_spread(attending.uniform_rows(length, causal), causal, top)["top_mass"])


@attention_statistics.costs
def work(card: ModelCard, subject: Corpus, params: AttentionStatisticsParams) -> Work:
    """Every row once, or once per group of layers whose patterns fit."""
    plan, length = Plan(card), min(subject.length, card.n_ctx)
    offsets = 16 * card.n_layers * card.n_heads * subject.rows * (20 + min(params.max_offset, length // 2))
    return plan.total(plan.rows_of_patterns(subject.rows, length) + offsets, knobs=FEWER_ROWS)


# ---------------------------------------------------------------- figures


@attention_statistics.figure("All heads, one map per statistic")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head; every map has limits of its own. The best offset stands in its cells."""
    drawn = {}
    by_head = table.set_index(["layer", "head"])
    for name, (words, _, _unit, limits) in (SPREAD | PLACE).items():
        maps = {n: by_head[n].unstack("head") for n in (name, f"{name}_se")}
        null = by_head[f"{name}_null"].unstack("head") if name in PLACE else None
        marks = by_head["best_offset"].unstack("head").to_numpy() if name == "offset_mass" else None
        drawn[words] = Panel(maps[name].to_numpy(), limits, marks=marks, hover=_hover(words, maps[name],
                             maps[f"{name}_se"], null))  # fmt: skip
    return panels(drawn, x_title="head", y_title="layer")


def _hover(words: str, value: pd.DataFrame, se: pd.DataFrame, null: pd.DataFrame | None) -> list[list[str]]:
    """Return the words of every cell: value, error, null."""
    def cell(v: float, e: float, o: float | None) -> str:
        return f"{words}: {v:.3g} ± {e:.2g}" + ("" if o is None else f"<br>shuffled keys: {o:.3g}")

    nulls = np.full(value.shape, None) if null is None else null.to_numpy()
    return [[cell(*c) for c in zip(*r, strict=True)] for r in
            zip(value.to_numpy(), se.to_numpy(), nulls, strict=True)]  # fmt: skip


@attention_statistics.figure("Heads with most attention on one fixed offset, beside shuffled keys")
def offsets(table: pd.DataFrame, view: View) -> Any:
    """The 24 heads with the largest offset_mass, with standard errors; the null in grey."""
    best = table.nlargest(24, "offset_mass")
    back = [f"{n} −{k}" for n, k in zip(names(best["layer"], best["head"]), best["best_offset"], strict=True)]
    hover = [f"{n}: {v:.3g} ± {e:.2g}<br>null {o:.3g}, z {z:.3g}" for n, v, e, o, z in zip(
        back, *(best[f"offset_mass{s}"] for s in ("", "_se", "_null", "_z")), strict=True)]
    return bars(back, best["offset_mass"], errors=best["offset_mass_se"], null=best["offset_mass_null"], hover=hover,
                colours=[CATEGORIES[0]] * len(best), x_title="head and how many tokens back it looks",
                y_title="attention (probability; error: standard error)")  # fmt: skip
