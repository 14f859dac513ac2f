"""Attention only: which tokens reach each position through all layers so far? (ignores OV circuits and MLPs)

Rollout: R_l = (mean over heads of P_l / 2 + identity / 2) R_{l-1}, R before the first layer the identity.
R_l[query_pos, key_pos] is the share of what stands at query_pos after layer l that came from key_pos, if every head
moved all it attends to and weighed as much as the others, and the residual stream as much as attention. Rows sum to 1.
It is a picture of routes, not of information: a head that attends to a token may write nothing of it, and one head may
matter more than all others. Beside it the same for heads that attend to all visible keys alike (`_uniform`): the causal
mask alone spreads rollout and draws it to the beginning.
`self` = R[query_pos, query_pos]; `first_token` = R[query_pos, 0]; `distance` = sum R |query_pos - key_pos|;
`effective_keys` = exp(-sum R ln R).

Exact for its definition (the kept rows are float16: relative error at most 2^-11). There is nothing estimated, so no
error bar. Max-flow, the other half of the source, is an analysis of its own (Attention max-flow): it costs a flow
problem per token.
Cost: one forward with patterns, more where all patterns exceed 256 MiB, and n_layers products of [pos, pos].
Source: Abnar and Zuidema (2020), Quantifying Attention Flow in Transformers, section 3 (attention rollout).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from backend.analyses._asking import patterns, prompt_tokens
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, Line, lines, pixels
from backend.figures.cells import seen

SCALARS = {
    "self": ("share that came from the position itself", "share"),
    "first_token": ("share that came from position 0", "share"),
    "distance": ("mean distance to where it came from", "tokens"),
    "effective_keys": ("exp of the rollout row's entropy", "tokens"),
}


class AttentionFlowParams(Params):
    """Nothing to turn: the prompt says it all."""


@analysis(
    version=1, group="Attention",
    title="Attention flow", subject=Prompt, params=AttentionFlowParams, needs=["attention_patterns"],
    asks="Attention only: which tokens reach each position through all layers so far?",
    axes=[Axis("layer", "rollout up to and with this layer, 0-based"),
          Axis("query_pos", "position that receives, 0-based", "token")],
    values=[
        *(Value(n + s, w + t, unit) for n, (w, unit) in SCALARS.items()
          for s, t in (("", ""), ("_uniform", ", were all attention uniform"))),
        Value("rollout", "share that came from each key position (attention only: ignores OV and MLPs)", "share",
              kind="array", limits=(0.0, 1.0)),
    ],
)  # fmt: skip
def attention_flow(model: Model, subject: Prompt, params: AttentionFlowParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, query_pos)."""
    import torch

    from backend.maths import attending

    tokens = prompt_tokens(model, subject)
    length, n_layers = tokens.shape[1], model.card.n_layers
    even = attending.uniform_rows(length, "causal" in model.card.capabilities).to(tokens.device)
    flow = uniform = torch.eye(length, dtype=torch.float64, device=tokens.device)
    parts = []
    for layer, pattern in patterns(model, tokens):
        flow = attending.rollout_step(flow, pattern[0].double())
        uniform = attending.rollout_step(uniform, even[None])
        parts.append(_rows(layer, flow, uniform))
        progress((layer + 1) / n_layers, f"layer {layer + 1} of {n_layers}")
    return pd.concat(parts, ignore_index=True)


def _rows(layer: int, flow: Any, uniform: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {"layer": layer, "query_pos": np.arange(len(flow))}
    real, even = _scalars(flow), _scalars(uniform)
    for name in SCALARS:
        columns |= {name: real[name], f"{name}_uniform": even[name]}
    columns["rollout"] = list(flow.half().cpu().numpy())
    return pd.DataFrame(columns)


def _scalars(flow: Any) -> dict[str, np.ndarray]:
    from backend.maths import attending, divergence

    found = {"self": flow.diagonal(), "first_token": flow[:, 0], "distance": attending.distance(flow),
             "effective_keys": divergence.entropy(flow).exp()}  # fmt: skip
    return {name: values.cpu().numpy() for name, values in found.items()}


@attention_flow.costs
def work(card: ModelCard, subject: Prompt, params: AttentionFlowParams) -> Work:
    """A forward per group of layers whose patterns fit; per layer two products of [pos, pos] and the kept rows."""
    plan, length = Plan(card), len(subject.tokens)
    held = plan.patterns(1, length) + (8 * card.n_heads + 2 * card.n_layers + 64) * length**2
    return plan.total(held, 2 * 2 * card.n_layers * length**3, SHORTER)


# ---------------------------------------------------------------- figures


@attention_flow.figure("Rollout: attention only, ignores OV and MLPs", choose=("layer",))
def tokens(table: pd.DataFrame, view: View) -> Any:
    """Query by key after one layer, tokens on both axes; from 0 to 1."""
    rows = table[table["rollout"].notna()] if "rollout" in table else table[:0]
    layer = int(view.chosen.get("layer", rows["layer"].iloc[0]))
    rows = rows[rows["layer"] == layer].sort_values("query_pos")
    block = np.stack(list(rows["rollout"])).astype(np.float32)
    words = view.tokens or [str(i) for i in range(len(block))]
    return pixels(seen(block), x=words, y=words, x_title="key position (token)", y_title="query position (token)",
                  value="share (attention only)", limits=(0.0, 1.0), title=f"after layer {layer}",
                  rank="row", blank="reaches no such query")


@attention_flow.figure("Spread over layers, beside uniform attention")
def spread(table: pd.DataFrame, view: View) -> Any:
    """Effective tokens that reach a position, mean over positions and at the last one; uniform attention in grey."""
    mean = table.groupby("layer")[["effective_keys", "effective_keys_uniform"]].mean()
    last = table[table["query_pos"] == table["query_pos"].max()].set_index("layer")
    curves = [
        Line("uniform, mean", mean.index, mean["effective_keys_uniform"], colour=NULL_GREY),
        Line("uniform, last position", last.index, last["effective_keys_uniform"], colour="#c4c4c4"),
        Line("measured, mean", mean.index, mean["effective_keys"], colour=CATEGORIES[0]),
        Line("measured, last position", last.index, last["effective_keys"], colour=CATEGORIES[1]),
    ]
    figure = lines(curves, x_title="after layer", y_title="effective tokens (attention only)")
    return figure.update_xaxes(tickmode="array", tickvals=sorted(table["layer"].unique()))
