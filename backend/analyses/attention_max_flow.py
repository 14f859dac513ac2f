"""Attention only: how much could flow from each token to one position, every route used to its capacity?

The layers are a network: an edge from a position above layer l to one below has the capacity
A_l[query_pos, key_pos] = (mean over heads of P_l + identity) / 2, as in rollout. `flow` = the maximum flow from `query`
above the last layer to each token at the bottom, one problem per token. `rollout` = the product of the A_l, beside it:
the share when each position passes on its own shares. flow >= rollout, for rollout is one of the possible flows; and
flow <= `bound`, the smaller of two cuts (all that leaves the query, all that can enter the token). With one layer the
two agree. Flows to different tokens share edges, so they do not sum to 1. `flow_uniform`: the same for heads that
attend to all visible keys alike, the null: the causal mask alone lets early tokens flow.

It is a picture of routes, not of information: OV circuits and MLPs play no part. Exact up to capacities rounded to
2^-24; nothing is estimated, so there is no error bar.
Cost: one forward with patterns, and two flow problems per token of n_layers * pos^2 / 2 edges; refused beyond `most`.
Source: Abnar and Zuidema (2020), Quantifying Attention Flow in Transformers, section 3 (attention flow).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import patterns, prompt_tokens
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, label, lines

#: seconds per layer and tokens^3 of one set of flows, measured: 1.2e-7 to 4.3e-7, from many layers to few
STEP = 2e-7


class AttentionMaxFlowParams(Params):
    """Which position receives, and how long a prompt may be."""

    query: int | None = Field(None, ge=0, le=8191, description="position that receives, 0-based; empty: the last one")
    most: int = Field(96, ge=2, le=512, description="most tokens up to the query; the cost grows with their cube")


@analysis(
    version=1, group="Attention", title="Attention max-flow", subject=Prompt, params=AttentionMaxFlowParams,
    asks="Attention only: how much could flow from each token to one position?", needs=["attention_patterns"],
    axes=[Axis("key_pos", "token that is reached, 0-based", "token")],
    values=[
        Value("flow", "maximum flow from the query to this token (attention only: ignores OV and MLPs)", "share"),
        Value("rollout", "attention rollout to this token, the same mixing", "share"),
        Value("flow_uniform", "maximum flow, were all attention uniform", "share"),
        Value("bound", "what no flow exceeds: the smaller of the cuts at the query and at the token", "share"),
        Value("query_pos", "the position that receives, the same in every row", "token", kind="int"),
    ],
)  # fmt: skip
def attention_max_flow(
    model: Model, subject: Prompt, params: AttentionMaxFlowParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per token up to the query (per token where the model looks ahead)."""
    from backend.maths import max_flow

    tokens, query = _cut(model, subject, params)
    mixing, even = _mixing(model, tokens)
    found = {}
    for done, (name, network) in enumerate({"flow": mixing, "flow_uniform": even}.items()):
        progress(0.5 * done, f"{tokens.shape[1]} flow problems ({name})")
        found[name] = max_flow.max_flow(network, query)
    rollout = np.linalg.multi_dot([*mixing[::-1], np.eye(len(mixing[0]))])[query]
    progress(1.0, "done")
    return pd.DataFrame({"key_pos": np.arange(len(rollout)), "flow": found["flow"], "rollout": rollout,
                         "flow_uniform": found["flow_uniform"], "bound": max_flow.cut_bound(mixing, query),
                         "query_pos": query})  # fmt: skip


def _cut(model: Model, subject: Prompt, params: AttentionMaxFlowParams) -> tuple[Any, int]:
    """Return the tokens that may reach the query, and the query."""
    kept, query = _reaching(model.card, len(subject.tokens), params)
    return prompt_tokens(model, subject)[:, :kept], query


def _reaching(card: ModelCard, length: int, params: AttentionMaxFlowParams) -> tuple[int, int]:
    """Return (how many tokens may reach the query, the query). Raises BadInput where there is no such or too many."""
    query = length - 1 if params.query is None else params.query
    if query >= length:
        raise BadInput(f"Position {query}", f"the prompt has {length} tokens", f"Give 0 to {length - 1}")
    kept = query + 1 if "causal" in card.capabilities else length
    if kept > params.most:
        found = f"{kept} tokens may reach position {query}, the cost grows with their cube"
        raise BadInput("Attention max-flow", found, "Choose an earlier query, shorten the text, or raise most")
    return kept, query


def _mixing(model: Model, tokens: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return (A_l per layer, the same of uniform attention), each [query, key] in float64."""
    from backend.maths import attending

    length = tokens.shape[1]
    one = np.eye(length)
    even = attending.uniform_rows(length, "causal" in model.card.capabilities).numpy()
    mixing = [(p[0].double().mean(0).cpu().numpy() + one) / 2 for _, p in patterns(model, tokens)]
    return mixing, [(even + one) / 2] * len(mixing)


@attention_max_flow.costs
def work(card: ModelCard, subject: Prompt, params: AttentionMaxFlowParams) -> Work:
    """A forward per group of layers whose patterns fit, then a flow problem per token, twice: about, by its growth."""
    plan, length = Plan(card), _reaching(card, len(subject.tokens), params)[0]
    captured = plan.patterns(1, length)
    networks = 2 * card.n_layers * 40 * length**2  # mixing, and edges as integers
    return plan.total(captured + networks, knobs=SHORTER, solver_seconds=2 * STEP * card.n_layers * length**3)


# ---------------------------------------------------------------- figures


@attention_max_flow.figure("Flow beside uniform attention (attention only)")
def tokens_flow(table: pd.DataFrame, view: View) -> Any:
    """Maximum flow to each token, uniform attention in grey behind."""
    names = [f"{n} {label(view.tokens[n], 8)}" if n < len(view.tokens) else str(n) for n in table["key_pos"]]
    hover = [f"{name}<br>flow {r.flow:.3g} (uniform {r.flow_uniform:.3g}, bound {r.bound:.3g})<br>rollout "
             f"{r.rollout:.3g}" for name, r in zip(names, table.itertuples(), strict=True)]  # fmt: skip
    return bars(names, table["flow"], null=table["flow_uniform"], hover=hover, x_title="token",
                y_title="maximum flow (share)", names_of=("flow", "uniform attention"))  # fmt: skip


@attention_max_flow.figure("Flow, rollout and bound")
def compared(table: pd.DataFrame, view: View) -> Any:
    """Rollout below, the bound of the cuts above: where flow leaves rollout, many routes share an early edge."""
    at = table["key_pos"]
    drawn = [Line("bound", at, table["bound"], colour=NULL_GREY), Line("flow", at, table["flow"], colour=CATEGORIES[0]),
             Line("rollout", at, table["rollout"], colour=CATEGORIES[1])]  # fmt: skip
    return lines(drawn, x_title=f"position of the token (to position {int(table['query_pos'].iloc[0])})",
                 y_title="share (attention only)")  # fmt: skip
