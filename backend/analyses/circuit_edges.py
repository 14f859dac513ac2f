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

Circuits grow by |score|. On the clean prompts every edge outside carries what its sender writes on the corrupted one,
exactly, all at once: with m = mean logit_diff, `faithfulness` = (m(circuit) - m(corrupted)) / (m(clean) - m(corrupted))
and `completeness` = (m(clean) - m(all edges but the circuit)) / (m(clean) - m(corrupted)), measured at no more than 24
sizes. The circuit is the smallest of these with faithfulness >= `least`, less its edges on no path from the embedding
to the logits, which carry nothing. **The pairs that choose flatter what they chose**: scores, sizes and exact effects
come from one part of the pairs; a share of `held_out` pairs, drawn at random, says what the circuit is worth on fresh
ones. Control: `random` sets of as many edges; few join embedding and logits, so at small sizes it is a weak one.
Cost: K forwards with gradients per pair, with one backward per receiver through its own layer; exact: two forwards; a
circuit: as many forwards as a layer has different readings (at most 3 n_heads).
Needs the weights by name (native, GPT-2) and as many key as query heads; others are refused.
Source: Hanna et al. (2024), Have Faith in Faithfulness (EAP-IG); Syed et al. (2023), Attribution Patching Outperforms
Automated Circuit Discovery; Conmy et al. (2023), Towards Automated Circuit Discovery.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._causal import batches
from backend.analyses._circuit_curves import CURVES, apart, curves, ends, grown, held_out, random_band, smallest
from backend.analyses._circuits import name_of, some_and_others
from backend.analyses._edge_circuits import TOGETHER, most_slots, run_edge_circuits
from backend.analyses._edges import Receiver, Sender, count_edges, edge_scores, edges_of, exact_effects, output_weights
from backend.analyses._effects import records
from backend.analyses._work import Plan, parts
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY
from backend.figures.agreement import agreement
from backend.figures.circuit import Edge, Node, diagram

MOST_SIZES = 24  # sizes at which circuits are measured
DRAWN = 40  # edges that a diagram can show
FAINT = 0.01  # of the strongest edge: what is not drawn
BENDS = {"q": -0.12, "v": 0.12}  # so that q, k and v of one head lie apart


class CircuitEdgesParams(Params):
    """How finely gradients are integrated, and how many edges are checked exactly."""

    steps: int = Field(5, ge=1, le=50, description="midpoints between the corrupted and the clean embedding")
    exact_top: int = Field(16, ge=0, le=4096, description="edges with the largest |score| that are patched exactly")
    exact_others: int = Field(8, ge=0, le=4096, description="edges of the rest, at random, patched exactly as well")
    least: float = Field(0.9, ge=0, le=1, description="faithfulness that the circuit must reach")
    held_out: float = Field(0.5, ge=0, le=0.9, description="share of pairs that choose nothing and test the circuit")
    random: int = Field(4, ge=1, le=256, description="random sets of edges per size, the control")
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the halves, random edges and bootstrap")


@analysis(
    version=2, group="Causal", title="Circuit of edges",
    asks="Which direct connections between components carry a task, and does exact patching agree?",
    subject=Pairs, params=CircuitEdgesParams, needs=["gradients", "separate_heads"],
    axes=[Axis("sender", "embed, head or mlp", kind="str"), Axis("sender_layer", "its layer, 0-based; -1: embed"),
          Axis("sender_head", "its head; -1: none"), Axis("reads", "q, k or v of a head, mlp, or logits", kind="str"),
          Axis("receiver_layer", "layer of the receiver; n_layers: the logits"),
          Axis("receiver_head", "head of the receiver; -1: none")],
    values=[
        Value("score", "approximate logit_diff that the edge carries (EAP-IG), mean over pairs", "logits"),
        Value("score_low", "lower end of its 95 % bootstrap interval over pairs", "logits"),
        Value("score_high", "upper end of its 95 % bootstrap interval over pairs", "logits"),
        Value("exact", "what logit_diff loses when the edge alone is corrupted; NULL where not checked", "logits"),
        Value("exact_low", "lower end of its 95 % bootstrap interval over pairs", "logits"),
        Value("exact_high", "upper end of its 95 % bootstrap interval over pairs", "logits"),
        Value("checked", "why it was patched exactly: top (by score), random, or no", kind="str"),
        Value("rank_correlation", "Spearman's, score against exact, over all edges checked; NULL below 3"),
        Value("order", "when the edge enters the growing circuit, from 1: the size of the circuit then", kind="int"),
        Value("kept", "whether it is among the first edges that reach `least`", kind="bool"),
        Value("in_circuit", "kept, and on a path from the embedding to the logits", kind="bool"),
        *CURVES,
    ],
)  # fmt: skip
def circuit_edges(model: Model, subject: Pairs, params: CircuitEdgesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per edge."""
    from backend.maths import circuits

    choosing, others = apart(subject, params.held_out, params.seed)
    w_o, edges = output_weights(model), edges_of(model)
    table = _scored(model, choosing, edges, w_o, params, progress)
    order = circuits.by_score(table["score"].to_numpy())
    found, size = _grown(model, (choosing, others), edges, w_o, order, params, progress)
    by_edge = pd.DataFrame(found, index=order).sort_index()
    joined = np.zeros(len(edges), bool)
    joined[order[:size]] = circuits.on_a_path([(_node(edges[i][0]), _node(edges[i][1])) for i in order[:size]],
                                              "embed", "logits")  # fmt: skip
    rank = np.empty(len(edges), int)
    rank[order] = np.arange(1, len(edges) + 1)
    table = table.assign(order=rank, kept=rank <= size, in_circuit=joined, **by_edge,
                         n_held_out=len(others.pairs) if others else 0)  # fmt: skip
    columns: list[Axis | Value] = [*circuit_edges.axes, *circuit_edges.values]
    return table[[c.name for c in columns]]


def _node(end: Sender | Receiver) -> str:
    kind = end.kind if isinstance(end, Sender) else end.reads
    return kind if kind in ("embed", "logits") else name_of(end.layer, end.head)


def _scored(model: Model, subject: Pairs, edges: list[Any], w_o: list[Any], params: CircuitEdgesParams,
            progress: Progress) -> pd.DataFrame:  # fmt: skip
    """Return axes, scores, and exact effects of those checked, by edge."""
    from backend.maths import patching

    score, groups = np.empty((len(edges), len(subject.pairs))), batches(model, subject, gradients=True)
    for i, batch in enumerate(groups):
        score[:, batch.which] = edge_scores(model, batch, edges, w_o, params.steps)
        progress(0.3 * (i + 1) / len(groups), "Gradients")
    chosen, why = some_and_others(score.mean(1), params.exact_top, params.exact_others, params.seed)
    exact = np.full(score.shape, np.nan)
    for i, batch in enumerate(batches(model, subject)):
        exact[np.ix_(chosen, batch.which)] = exact_effects(model, batch, [edges[j] for j in chosen], w_o)
        progress(0.3 + 0.1 * (i + 1) / len(groups), "Exact patching")
    weights = patching.draw_weights(score.shape[1], params.draws, params.seed)
    found, true = patching.mean_estimate(score, weights), np.full((3, len(edges)), np.nan)
    if chosen:
        known = patching.mean_estimate(exact[chosen], weights)
        true[:, chosen] = known.value, known.low, known.high
    return pd.DataFrame({
        "sender": [s.kind for s, _ in edges], "sender_layer": [s.layer for s, _ in edges],
        "sender_head": [s.head for s, _ in edges], "reads": [r.reads for _, r in edges],
        "receiver_layer": [r.layer for _, r in edges], "receiver_head": [r.head for _, r in edges],
        "score": found.value, "score_low": found.low, "score_high": found.high, "exact": true[0],
        "exact_low": true[1], "exact_high": true[2], "checked": why,
        "rank_correlation": patching.rank_correlation(found.value[chosen], true[0][chosen]), "n": score.shape[1],
    })  # fmt: skip


def _grown(model: Model, halves: tuple[Pairs, Pairs | None], edges: list[Any], w_o: list[Any], order: np.ndarray,
           params: CircuitEdgesParams, progress: Progress) -> tuple[dict[str, Any], int]:  # fmt: skip
    """Return (curves [edge by order], the size of the chosen circuit)."""

    def metric_of(subject: Pairs) -> Any:
        groups = batches(model, subject)
        return lambda kept, said=lambda share: None: run_edge_circuits(model, groups, edges, w_o, kept, said)

    metric, n = metric_of(halves[0]), len(order)
    held = metric_of(halves[1]) if halves[1] else None
    sizes = _sizes(n)
    found = grown(metric, order, sizes, params.draws, params.seed,
                  said=lambda f: progress(0.4 + 0.2 * f, "Growing the circuit"))  # fmt: skip
    size = smallest(found, sizes, params.least)
    found |= held_out(held, order, sizes, params.draws, params.seed,
                      lambda f: progress(0.6 + 0.2 * f, "The circuit on pairs held out"))  # fmt: skip
    some = np.unique([*sizes[::3], n, max(1, size)])
    found |= random_band(held or metric, n, some, params.random, params.seed,
                         lambda f: progress(0.8 + 0.2 * f, "Random circuits"))  # fmt: skip
    whole, nothing = ends(metric, n)
    return {**found, "whole": whole.mean(), "nothing": nothing.mean()}, size


def _sizes(edges: int) -> np.ndarray:
    """Return the sizes at which circuits are measured."""
    return np.unique(np.geomspace(1, edges, MOST_SIZES).round().astype(int))


@circuit_edges.costs
def work(card: ModelCard, subject: Pairs, params: CircuitEdgesParams) -> Work:
    """A gradient per midpoint, with a product per edge; two rows per edge that is patched exactly and pair; and the
    circuits. How many copies of the pairs these take depends on their edges: as many count as they could take."""
    plan, held, products = Plan(card), 0, 0
    choosing, others = apart(subject, params.held_out, params.seed)
    edges, points = count_edges(plan), ["z", *(["mlp_out"] if "mlp" in card.capabilities else [])]
    for n, length in plan.batches(choosing, gradients=True):
        plan.call(n, length, 4)
        plan.call(n, length, params.steps, gradients=True, last=True)
        held = max(held, 3 * plan.bytes(n * length, points))
        products += n * length * edges * params.steps
    top = min(params.exact_top, edges)
    checked = top + min(params.exact_others, edges - top)
    for n, length in plan.batches(choosing):
        plan.call(n, length, 4)
        plan.call(n, length, last=True)
        plan.sweep(n, length, checked, n=2)
    grown = 2 * len(_sizes(edges))
    drawn = params.random * (len(_sizes(edges)[::3]) + 2)
    runs = [(choosing, [2, grown, 2]), *([(others, [2, grown])] if others else []), (others or choosing, [2, drawn])]
    circuits = [_circuits(plan, half, n) for half, asked in runs for n in asked]
    operations = products * 2 * card.d_model * (card.d_head + 1) + sum(done for _, done in circuits)
    return plan.total(max(held, *(b for b, _ in circuits)) + 16 * edges * len(subject.pairs), operations)


def _circuits(plan: Plan, subject: Pairs, circuits: int) -> tuple[int, int]:
    """Add the runs of so many circuits, two being the whole and nothing; return (bytes held, operations) beside."""
    card, held, operations = plan.card, 0, 0
    mlp = "mlp" in card.capabilities
    points = ["z", "resid_pre", "resid_post", *(["mlp_out", "resid_mid"] if mlp else [])]
    slots, senders = 1 if circuits == 2 else most_slots(plan), 1 + card.n_layers * (card.n_heads + mlp)
    for n, length in plan.batches(subject):
        plan.call(n, length, 3)
        for together in parts(circuits, TOGETHER):
            for some in plan.copies(n * slots, length, together):
                rows = some * slots * n
                plan.call(rows, length)
                streams = (3 * rows + senders * some * n) * length  # the stream, two sums on the way; writes
                held = max(held, plan.bytes(n * length, points) + plan.bytes(streams, ["resid_pre"], layers=1))
                operations += 2 * rows * length * card.d_model * senders * card.n_layers
    return held, operations


# ---------------------------------------------------------------- figures


def _names(r: Any) -> tuple[str, str]:
    sender = "embed" if r.sender == "embed" else name_of(r.sender_layer, r.sender_head)
    return sender, "logits" if r.reads == "logits" else name_of(r.receiver_layer, r.receiver_head)


def _words(table: pd.DataFrame) -> list[str]:
    out = []
    for r in records(table):
        sender, receiver = _names(r)
        reads = f" ({r.reads})" if r.reads in "qkv" else ""
        checked = f"exact {r.exact:+.3g} ({r.exact_low:.3g} to {r.exact_high:.3g})"
        exact = "not checked" if np.isnan(r.exact) else checked
        out.append(f"{sender} → {receiver}{reads}: score {r.score:+.3g} logits ({r.score_low:.3g} to "
                   f"{r.score_high:.3g})<br>{exact}")  # fmt: skip
    return out


@circuit_edges.figure("Faithfulness and completeness by size")
def by_size(table: pd.DataFrame, view: View) -> Any:
    """Growing circuits with 95 % intervals; grey: random sets of as many edges, mean and range."""
    entering = [words.split(":")[0] for words in _words(table.sort_values("order"))]
    ticks = [m * 10**k for k in range(6) for m in (1, 2, 5) if m * 10**k <= len(table)]
    figure = curves(table, entering, int(table["kept"].sum()), "edges")
    return figure.update_xaxes(type="log", tickvals=ticks, range=[-0.05, np.log10(1.1 * len(table))])


@circuit_edges.figure("The circuit")
def drawing(table: pd.DataFrame, view: View) -> Any:
    """The circuit's edges (at most 40, none below 1 % of the strongest): red for the answer, blue against.

    Nodes: sum of their edges' scores. Where no circuit reaches `least`, the strongest edges.
    """
    whole, table = table, table[table["in_circuit"]] if table["in_circuit"].any() else table
    kept = table.loc[table["score"].abs().sort_values(ascending=False, kind="stable").index[:DRAWN]]
    kept = kept[kept["score"].abs() > max(1e-9, FAINT * float(kept["score"].abs().max()))]
    edges = [Edge(*_names(r), r.score, h, BENDS.get(r.reads, 0.0))
             for r, h in zip(records(kept), _words(kept), strict=True)]  # fmt: skip
    top = int(whole["receiver_layer"].max())
    sent: dict[tuple[str, int, int], float] = {}
    for r in records(whole):
        sender = _names(r)[0]
        sent[sender, r.sender_layer, r.sender_head] = sent.get((sender, r.sender_layer, r.sender_head), 0) + r.score
    used = {e.sender for e in edges} | {e.receiver for e in edges}
    nodes = [Node(name, layer, head, s, name in used, f"{name}: its edges sum to {s:+.3g} logits")
             for (name, layer, head), s in sent.items()]  # fmt: skip
    nodes.append(Node("logits", top, -1, 0.0, "logits" in used, "logits"))
    return diagram(nodes, edges, value="sum of its edges' scores (logits)",
                   told=f"the strongest {len(edges)} of {len(table)} edges"
                   + (" of the circuit" if len(table) < len(whole) else ""))  # fmt: skip


@circuit_edges.figure("Approximate against exact")
def check(table: pd.DataFrame, view: View) -> Any:
    """The edges patched exactly, with intervals; grey: those drawn at random. On the dotted line both agree."""
    table = table.assign(hover=_words(table))
    groups = []
    for why, colour, words in (("random", NULL_GREY, "random others"), ("top", CATEGORIES[0], "largest scores")):
        g = table[table["checked"] == why]
        groups.append((words, colour, g["score"], g["exact"], g["exact_low"].fillna(g["exact"]),
                       g["exact_high"].fillna(g["exact"]), [" "] * len(g), g["hover"].tolist()))  # fmt: skip
    rho = table["rank_correlation"].iloc[0]
    told = "too few to rank" if np.isnan(rho) else f"rank correlation {rho:.2g}"
    n = int((table["checked"] != "no").sum())
    figure = agreement(groups, x_title=f"score (logits; {n} edges checked, {told})",
                       y_title="exact effect (logits; 95 % interval)")  # fmt: skip
    return figure.update_traces(mode="markers", selector={"mode": "markers+text"})  # names of edges would overlap
