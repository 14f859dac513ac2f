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
with others only (a backup) has no exact effect of its own. No circuit is cut out of the edges here.
Cost: K forwards with gradients per pair, with one backward per receiver through its own layer; exact: two forwards.
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
from backend.analyses._circuits import name_of, some_and_others
from backend.analyses._edges import count_edges, edge_scores, edges_of, exact_effects, output_weights
from backend.analyses._effects import records
from backend.analyses._work import Plan
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY
from backend.figures.agreement import agreement
from backend.figures.circuit import Edge, Node, diagram

DRAWN = 40  # edges that a diagram can show
FAINT = 0.01  # of the strongest edge: what is not drawn
BENDS = {"q": -0.12, "v": 0.12}  # so that q, k and v of one head lie apart


class CircuitEdgesParams(Params):
    """How finely gradients are integrated, and how many edges are checked exactly."""

    steps: int = Field(5, ge=1, le=50, description="midpoints between the corrupted and the clean embedding")
    exact_top: int = Field(16, ge=0, le=4096, description="edges with the largest |score| that are patched exactly")
    exact_others: int = Field(8, ge=0, le=4096, description="edges of the rest, at random, patched exactly as well")
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the bootstrap and of the random edges")


@analysis(
    version=1, group="Causal", title="Circuit of edges",
    asks="Which direct connections between components carry a task, and does exact patching agree?",
    subject=Pairs, params=CircuitEdgesParams, needs=["gradients"],
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
        Value("n", "pairs of prompts", kind="int"),
    ],
)  # fmt: skip
def circuit_edges(model: Model, subject: Pairs, params: CircuitEdgesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per edge."""
    from backend.maths import patching

    w_o, edges = output_weights(model), edges_of(model)
    score, groups = np.empty((len(edges), len(subject.pairs))), batches(model, subject, gradients=True)
    for i, batch in enumerate(groups):
        score[:, batch.which] = edge_scores(model, batch, edges, w_o, params.steps)
        progress(0.7 * (i + 1) / len(groups), "Gradients")
    chosen, why = some_and_others(score.mean(1), params.exact_top, params.exact_others, params.seed)
    exact = np.full(score.shape, np.nan)
    for i, batch in enumerate(batches(model, subject)):
        exact[np.ix_(chosen, batch.which)] = exact_effects(model, batch, [edges[j] for j in chosen], w_o)
        progress(0.7 + 0.3 * (i + 1) / len(groups), "Exact patching")
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


@circuit_edges.costs
def work(card: ModelCard, subject: Pairs, params: CircuitEdgesParams) -> Work:
    """A gradient per midpoint, with a product per edge; two rows per edge that is patched exactly and pair."""
    plan, held, products = Plan(card), 0, 0
    edges, points = count_edges(plan), ["z", *(["mlp_out"] if "mlp" in card.capabilities else [])]
    for n, length in plan.batches(subject, gradients=True):
        plan.call(n, length, 4)
        plan.call(n, length, params.steps, gradients=True)
        held = max(held, 3 * plan.bytes(n * length, points))
        products += n * length * edges * params.steps
    top = min(params.exact_top, edges)
    checked = top + min(params.exact_others, edges - top)
    for n, length in plan.batches(subject):
        plan.call(n, length, 5)
        plan.sweep(n, length, checked, n=2)
    operations = products * 2 * card.d_model * (card.d_head + 1)
    return plan.total(held + 16 * edges * len(subject.pairs), operations)


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


@circuit_edges.figure("The strongest edges")
def drawing(table: pd.DataFrame, view: View) -> Any:
    """The 40 edges of largest |score|, none below 1 % of it: red for the answer, blue against; nodes: sum of theirs."""
    kept = table.loc[table["score"].abs().sort_values(ascending=False, kind="stable").index[:DRAWN]]
    kept = kept[kept["score"].abs() > max(1e-9, FAINT * float(kept["score"].abs().max()))]
    edges = [Edge(*_names(r), r.score, h, BENDS.get(r.reads, 0.0))
             for r, h in zip(records(kept), _words(kept), strict=True)]  # fmt: skip
    top = int(table["receiver_layer"].max())
    sent: dict[tuple[str, int, int], float] = {}
    for r in records(table):
        sender = _names(r)[0]
        sent[sender, r.sender_layer, r.sender_head] = sent.get((sender, r.sender_layer, r.sender_head), 0) + r.score
    used = {e.sender for e in edges} | {e.receiver for e in edges}
    nodes = [Node(name, layer, head, s, name in used, f"{name}: its edges sum to {s:+.3g} logits")
             for (name, layer, head), s in sent.items()]  # fmt: skip
    nodes.append(Node("logits", top, -1, 0.0, "logits" in used, "logits"))
    return diagram(nodes, edges, value="sum of its edges' scores (logits)",
                   told=f"the strongest {len(edges)} of {len(table)} edges")  # fmt: skip


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
