"""Which direct connections between components carry a task, by gradients, and what does exact patching say of them?

A sender writes to the residual stream: the embedding, a head (z W_O of that head), an MLP (mlp_out). A receiver reads
it: q, k or v of a later head, a later MLP, the logits. The score of an edge (EAP-IG) is the change of logit_diff that
it carries, sum over positions of (clean - corrupted write of the sender) . mean_k gradient at the receiver's input,
K = `steps` midpoints with the embedding on the way from the corrupted to the clean prompt. The gradient at an input is
that of this receiver alone, through its norm and weights, not of the stream. Positive: the edge speaks for the answer.

Approximate, in logits: exact where logit_diff is linear in the receiver's input (edges to the logits of a model
without a final norm, which then sum to clean - corrupted). **Attention that is decided hides edges**: where a softmax
is saturated along the whole path its gradient is 0, whatever the edge carries. `exact` therefore patches the
`exact_top` edges of largest |score|, and `exact_others` at random as a control: in the clean run this receiver alone
reads the sender's corrupted write, all else runs on freely; exact = clean - patched. `rank_correlation` is Spearman's
of score against exact over the edges checked. 95 % bootstrap intervals over the pairs. An edge that matters together
with others only (a backup) has no exact effect of its own.

Circuits grow `by score`, by |score|. On the clean prompts every edge outside carries what its sender writes on the
corrupted one, exactly, all at once: with m = mean logit_diff, `faithfulness` = (m(circuit) - m(corrupted)) / (m(clean)
- m(corrupted)) and `completeness` = (m(clean) - m(all edges but the circuit)) / (m(clean) - m(corrupted)), measured at
no more than 24 sizes. The circuit is the smallest of these with faithfulness >= `least`, less its edges on no path from
the embedding to the logits, which carry nothing. `greedy exact` (ACDC) asks no gradient: from the logits back each edge
is cut, those cut before staying cut, and stays so where logit_diff then changes by less than `threshold` of m(clean) -
m(corrupted); `loss` is that change, the circuit is what stays. It sees through saturated attention, but depends on the
order (of two edges that replace each other the one tried first goes), and small losses add up: see its faithfulness.
**The pairs that choose flatter what they chose**: scores, sizes and exact effects come from one part of the pairs; a
share of `held_out` pairs, drawn at random, says what the circuit is worth on fresh ones.
Control: `random` sets of as many edges; few join embedding and logits, so at small sizes it is a weak one.
Cost: K forwards with gradients per pair, with one backward per receiver through its own layer; exact: two forwards; a
circuit: as many forwards as a layer has different readings (at most 3 n_heads); greedy exact: a circuit per edge.
Needs the weights by name (native, GPT-2) and as many key as query heads; others are refused.
Source: Hanna et al. (2024), Have Faith in Faithfulness (EAP-IG); Syed et al. (2023), Attribution Patching Outperforms
Automated Circuit Discovery; Conmy et al. (2023), Towards Automated Circuit Discovery.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _checking, _edge_pictures
from backend.analyses._causal import batches
from backend.analyses._circuit_curves import CURVES, apart, ends, grown, held_out, random_band, smallest
from backend.analyses._edge_circuits import plan_circuits, run_edge_circuits
from backend.analyses._edge_search import greedy, joined, plan_greedy
from backend.analyses._edges import count_edges, edge_scores, edges_of, exact_effects, output_weights
from backend.analyses._work import Plan
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, analysis
from backend.costs import Work

MOST_SIZES = 24  # sizes at which circuits are measured


class CircuitEdgesParams(Params):
    """How edges are scored, checked and chosen."""

    search: Literal["by score", "greedy exact"] = Field(
        "by score", description="grow by score, or cut edge by edge from the logits back (ACDC)"
    )
    steps: int = Field(5, ge=1, le=50, description="midpoints between the corrupted and the clean embedding")
    exact_top: int = Field(16, ge=0, le=4096, description="edges with the largest |score| that are patched exactly")
    exact_others: int = Field(8, ge=0, le=4096, description="edges of the rest, at random, patched exactly as well")
    least: float = Field(0.9, ge=0, le=1, description="faithfulness that the circuit by score must reach")
    threshold: float = Field(0.02, ge=0, le=1, description="greedy: what may be lost per edge, a share of the whole")
    held_out: float = Field(0.5, ge=0, le=0.9, description="share of pairs that choose nothing and test the circuit")
    random: int = Field(4, ge=1, le=256, description="random sets of edges per size, the control")
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the halves, random edges and bootstrap")


@analysis(
    version=3, group="Causal", title="Circuit of edges",
    asks="Which direct connections between components carry a task, and does exact patching agree?",
    subject=Pairs, params=CircuitEdgesParams, needs=["gradients", "separate_heads"],
    axes=[Axis("sender", "embed, head or mlp", kind="str"), Axis("sender_layer", "its layer, 0-based; -1: embed"),
          Axis("sender_head", "its head; -1: none"), Axis("reads", "q, k or v of a head, mlp, or logits", kind="str"),
          Axis("receiver_layer", "layer of the receiver; n_layers: the logits"),
          Axis("receiver_head", "head of the receiver; -1: none")],
    values=[
        *_checking.values("score", "approximate logit_diff that the edge carries (EAP-IG), mean over pairs",
                          "what logit_diff loses when the edge alone is corrupted", "edges"),
        Value("loss", "what logit_diff lost when the greedy search tried the edge, mean over pairs; NULL by score",
              "logits"),
        Value("loss_low", "lower end of its 95 % bootstrap interval over pairs", "logits"),
        Value("loss_high", "upper end of its 95 % bootstrap interval over pairs", "logits"),
        Value("order", "when the edge enters the growing circuit, from 1: the size of the circuit then", kind="int"),
        Value("kept", "whether it is of the first edges that reach `least`, or stayed in the search", kind="bool"),
        Value("in_circuit", "kept, and on a path from the embedding to the logits", kind="bool"),
        *CURVES,
    ],
)  # fmt: skip
def circuit_edges(model: Model, subject: Pairs, params: CircuitEdgesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per edge."""
    choosing, others = apart(subject, params.held_out, params.seed)
    w_o, edges = output_weights(model), edges_of(model)
    table = _scored(model, choosing, edges, w_o, params, progress)
    loss, order, size = _searched(model, choosing, edges, w_o, table["score"].to_numpy(), params, progress)
    found, size = _grown(model, (choosing, others), edges, w_o, order, size, params, progress)
    rank = np.empty(len(edges), int)
    rank[order] = np.arange(1, len(edges) + 1)
    table = table.assign(**loss, order=rank, kept=rank <= size, in_circuit=joined(edges, rank <= size),
                         **pd.DataFrame(found, index=order).sort_index(),
                         n_held_out=len(others.pairs) if others else 0)  # fmt: skip
    columns: list[Axis | Value] = [*circuit_edges.axes, *circuit_edges.values]
    return table[[c.name for c in columns]]


def _scored(model: Model, subject: Pairs, edges: list[Any], w_o: list[Any], params: CircuitEdgesParams,
            progress: Progress) -> pd.DataFrame:  # fmt: skip
    """Return axes, scores, and exact effects of those checked, by edge."""
    score, groups = np.empty((len(edges), len(subject.pairs))), batches(model, subject, gradients=True)
    for i, batch in enumerate(groups):
        score[:, batch.which] = edge_scores(model, batch, edges, w_o, params.steps)
        progress(0.2 * (i + 1) / len(groups), "Gradients")

    def exact(chosen: list[int]) -> np.ndarray:
        out, some = np.empty((len(chosen), len(subject.pairs))), batches(model, subject)
        for i, batch in enumerate(some):
            out[:, batch.which] = exact_effects(model, batch, [edges[j] for j in chosen], w_o)
            progress(0.2 + 0.1 * (i + 1) / len(some), "Exact patching")
        return out

    found = _checking.compared("score", score, exact, params.exact_top, params.exact_others, params.draws, params.seed)
    return pd.DataFrame({
        "sender": [s.kind for s, _ in edges], "sender_layer": [s.layer for s, _ in edges],
        "sender_head": [s.head for s, _ in edges], "reads": [r.reads for _, r in edges],
        "receiver_layer": [r.layer for _, r in edges], "receiver_head": [r.head for _, r in edges],
        **found, "n": score.shape[1],
    })  # fmt: skip


def _searched(model: Model, subject: Pairs, edges: list[Any], w_o: list[Any], score: np.ndarray,
              params: CircuitEdgesParams, progress: Progress,
) -> tuple[dict[str, Any], np.ndarray, int | None]:  # fmt: skip
    """Return (columns of the loss, the order in which edges enter, the size of what the greedy search kept)."""
    from backend.maths import circuits, patching

    names = ("loss", "loss_low", "loss_high")
    if params.search == "by score":
        return dict.fromkeys(names, np.nan), circuits.by_score(score), None
    kept, lost, gone = greedy(model, batches(model, subject), edges, w_o, params.threshold,
                              lambda f: progress(0.3 + 0.4 * f, "Cutting edge by edge"))  # fmt: skip
    found = patching.mean_estimate(lost, patching.draw_weights(lost.shape[1], params.draws, params.seed))
    stay = [i for i in circuits.by_score(found.value).tolist() if kept[i]]
    order = np.array([*stay, *reversed(gone)], int)
    return dict(zip(names, (found.value, found.low, found.high), strict=True)), order, len(stay)


def _grown(model: Model, halves: tuple[Pairs, Pairs | None], edges: list[Any], w_o: list[Any], order: np.ndarray,
           size: int | None, params: CircuitEdgesParams, progress: Progress) -> tuple[dict[str, Any], int]:  # fmt: skip
    """Return (curves [edge by order], the size of the circuit: as given, or the smallest that is faithful)."""

    def metric_of(subject: Pairs) -> Any:
        groups = batches(model, subject)
        return lambda kept, said=lambda share: None: run_edge_circuits(model, groups, edges, w_o, kept, said)

    metric, n = metric_of(halves[0]), len(order)
    held = metric_of(halves[1]) if halves[1] else None
    sizes = np.unique([*_sizes(n), size or n])
    found = grown(metric, order, sizes, params.draws, params.seed,
                  said=lambda f: progress(0.7 + 0.1 * f, "Growing the circuit"))  # fmt: skip
    size = smallest(found, sizes, params.least) if size is None else size
    found |= held_out(held, order, sizes, params.draws, params.seed,
                      lambda f: progress(0.8 + 0.1 * f, "The circuit on pairs held out"))  # fmt: skip
    some = np.unique([*sizes[::3], n, max(1, size)])
    found |= random_band(held or metric, n, some, params.random, params.seed,
                         lambda f: progress(0.9 + 0.1 * f, "Random circuits"))  # fmt: skip
    whole, nothing = ends(metric, n)
    return {**found, "whole": whole.mean(), "nothing": nothing.mean()}, size


def _sizes(edges: int) -> np.ndarray:
    """Return the sizes at which circuits are measured, beside that of the greedy search."""
    return np.unique(np.geomspace(1, edges, MOST_SIZES).round().astype(int))


@circuit_edges.costs
def work(card: ModelCard, subject: Pairs, params: CircuitEdgesParams) -> Work:
    """A gradient per midpoint, with a product per edge; two rows per edge that is patched exactly and pair; and the
    circuits, of the greedy search one per edge."""
    plan, held, products = Plan(card), 0, 0
    choosing, others = apart(subject, params.held_out, params.seed)
    edges, points = count_edges(plan), ["z", *(["mlp_out"] if "mlp" in card.capabilities else [])]
    for n, length in plan.batches(choosing, gradients=True):
        plan.call(n, length, 4)
        plan.call(n, length, params.steps, gradients=True, last=True)
        held = max(held, 3 * plan.bytes(n * length, points))
        products += n * length * edges * params.steps
    checked = _checking.checked_at_most(edges, params.exact_top, params.exact_others)
    for n, length in plan.batches(choosing):
        plan.call(n, length, 4)
        plan.call(n, length, last=True)
        plan.sweep(n, length, checked, n=2)
    exact = params.search == "greedy exact"
    sizes = len(_sizes(edges)) + exact
    drawn = params.random * (-(-sizes // 3) + 2)
    runs = [(choosing, [2, 2 * sizes, 2]), *([(others, [2, 2 * sizes])] if others else []),
            (others or choosing, [2, drawn])]  # fmt: skip
    circuits = [plan_circuits(plan, half, n) for half, asked in runs for n in asked]
    circuits += [plan_greedy(plan, choosing)] if exact else []
    operations = products * 2 * card.d_model * (card.d_head + 1) + sum(done for _, done in circuits)
    return plan.total(max(held, *(b for b, _ in circuits)) + 16 * edges * len(subject.pairs), operations)


# ---------------------------------------------------------------- figures

for picture, title in ((_edge_pictures.by_size, "Faithfulness and completeness by size"),
                       (_edge_pictures.drawing, "The circuit"),
                       (_edge_pictures.check, "Approximate against exact")):  # fmt: skip
    circuit_edges.figure(title)(picture)
