"""Where does each head look?

For every layer, head and query_pos: the row of the attention pattern over the key positions, and five numbers that
sum it up. With P the row, n the number of keys that the query may see and x the tokens:
`entropy` = -sum P ln P (nats); `normalised_entropy` = entropy / ln n (1 uniform, 0 one-hot; NULL where n = 1);
`previous_token` = P[query_pos - 1] (NULL at position 0); `first_token` = P[0];
`induction` = sum of P[p + 1] over all earlier p with x[p] = x[query_pos] (NULL where the token is new).

Exact up to float32 rounding; the kept row is float16 (relative error at most 2^-11). A row that does not sum to 1 is
refused. Cost: one forward with patterns captured, more where all patterns exceed 256 MiB.
Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits; Olsson et al. (2022), In-context
Learning and Induction Heads, section "Model Analysis Table" (prefix matching).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from backend.analyses._asking import patterns, prompt_tokens
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.figures import grid, pixels
from backend.figures.cells import seen


class AttentionParams(Params):
    """Nothing to turn: the prompt says it all."""


@analysis(
    version=1, group="Attention", title="Attention", asks="Where does each head look, token by token?", subject=Prompt,
    params=AttentionParams, needs=["attention_patterns"],
    axes=[Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based"),
          Axis("query_pos", "position of the query token, 0-based", "token")],
    values=[
        Value("entropy", "entropy of the attention row", "nats"),
        Value("normalised_entropy", "entropy / ln(number of visible keys); NULL where one key is visible"),
        Value("previous_token", "attention to the token just before; NULL at position 0", "probability"),
        Value("first_token", "attention to position 0", "probability"),
        Value("induction", "attention to the tokens that followed earlier occurrences of the query token; "
              "NULL where the token is new", "probability"),
        Value("pattern", "the attention row over key positions", "probability", kind="array", limits=(0.0, 1.0)),
    ],
)
def attention(model: Model, subject: Prompt, params: AttentionParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head, query_pos)."""
    tokens = prompt_tokens(model, subject)
    after = _after_earlier(tokens[0])
    parts = []
    for layer, pattern in patterns(model, tokens):
        parts.append(_rows(layer, pattern[0], after, "causal" in model.card.capabilities))
        progress((layer + 1) / model.card.n_layers, f"layer {layer + 1} of {model.card.n_layers}")
    return pd.concat(parts, ignore_index=True)


def _after_earlier(tokens: Any) -> Any:
    """Return the mask [query_pos, key_pos] of keys that follow an earlier occurrence of the query token."""
    same = (tokens[:, None] == tokens[None, :]).tril(-1)
    return same.roll(1, 1)  # p -> p + 1; nothing wraps, as same[:, -1] is empty


def _rows(layer: int, pattern: Any, after: Any, causal: bool) -> pd.DataFrame:
    import torch

    from backend.maths import divergence

    n_heads, length, _ = pattern.shape
    visible = torch.full((length,), length, device=pattern.device)
    if causal:
        visible = torch.arange(1, length + 1, device=pattern.device)
    before = torch.full_like(pattern[..., 0], math.nan)
    before[:, 1:] = pattern.diagonal(-1, -2, -1)
    induction = torch.where(after.any(-1), (pattern * after).sum(-1), math.nan)
    scores = {
        "entropy": divergence.entropy(pattern), "normalised_entropy": divergence.normalised_entropy(pattern, visible),
        "previous_token": before, "first_token": pattern[..., 0], "induction": induction,
    }
    columns: dict[str, Any] = {"layer": layer, "head": np.repeat(np.arange(n_heads), length),
                               "query_pos": np.tile(np.arange(length), n_heads)}
    columns |= {name: score.flatten().double().cpu().numpy() for name, score in scores.items()}
    columns["pattern"] = list(pattern.half().cpu().numpy().reshape(-1, length))
    return pd.DataFrame(columns)


@attention.costs
def work(card: ModelCard, subject: Prompt, params: AttentionParams) -> Work:
    """A forward per group of layers whose patterns fit; the table holds every row of every head."""
    plan, length = Plan(card), len(subject.tokens)
    captured = plan.patterns(1, length)
    return plan.total(captured + card.n_layers * card.n_heads * length * (4 * length + 250), knobs=SHORTER)


# ---------------------------------------------------------------- figures


@attention.figure("Pattern of one head", choose=("layer", "head"))
def head(table: pd.DataFrame, view: View) -> Any:
    """Query by key, tokens on both axes; viridis from 0 to 1."""
    rows = table[table["pattern"].notna()] if "pattern" in table else table[:0]
    rows = rows[(rows["layer"] == _part(rows, view, "layer"))]
    rows = rows[rows["head"] == _part(rows, view, "head")].sort_values("query_pos")
    block = np.stack(list(rows["pattern"])).astype(np.float32)
    tokens = view.tokens or [str(i) for i in range(len(block))]
    return pixels(seen(block), x=tokens, y=tokens, x_title="key position (token)", y_title="query position (token)",
                  value="attention (probability)", limits=(0.0, 1.0), rank="row", blank="not seen by this query",
                  title=f"L{rows['layer'].iloc[0]}H{rows['head'].iloc[0]}")


def _part(rows: pd.DataFrame, view: View, axis: str) -> int:
    return int(view.chosen[axis]) if axis in view.chosen else int(rows[axis].iloc[0])


@attention.figure("All heads")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head: mean over positions of entropy / ln(n visible keys), previous-token and induction attention."""
    names = {"normalised_entropy": "entropy / ln n", "previous_token": "previous", "induction": "induction"}
    mean = table.groupby(["layer", "head"])[list(names)].mean()
    maps = {words: mean[name].unstack("head") for name, words in names.items()}
    return grid({w: m.to_numpy() for w, m in maps.items()}, x_title="head", y_title="layer",
                value="mean over positions (0 to 1)", limits=(0.0, 1.0))
