"""Which heads and MLPs make up the circuit of a task, and how much of the behaviour do they carry by themselves?

Nodes are heads (z) and MLP layers (mlp_out), at all positions. On the clean prompts every node outside a circuit is
ablated: `mean` puts the mean of its values on the corrupted prompts there, position by position over the pairs of one
length, `corrupted` its value on the pair's own corrupted prompt, `zero` zeros. With m = mean logit_diff,
`faithfulness` = (m(circuit) - m(nothing)) / (m(whole) - m(nothing)) and `completeness` = (m(whole) - m(whole without
the circuit)) / (m(whole) - m(nothing)): both 0 without nodes and 1 with all of them, neither bounded in between.
Nothing means that all nodes are ablated; the embedding and b_O stay clean. All NULL where |m(whole) - m(nothing)| is
below its standard error.

`by score`: nodes enter by |score|; `exact`: what logit_diff loses when the node alone is ablated, or `integrated
gradients` of that (toward the corrupted values). The circuit is the smallest size with faithfulness >= `least`.
`greedy exact` (as ACDC, on nodes): from the last layer back a node is left out where logit_diff then changes by less
than `threshold` of m(whole) - m(nothing); the score is that loss, the circuit is what is kept. Both depend on the
order: of two nodes that replace each other one alone looks idle.

Exact runs throughout but for integrated gradients, which estimate. `exact` stands beside: what logit_diff loses when
this node alone is ablated. It is the score itself for `exact`; else the `exact_top` nodes of largest |score| are
ablated, and as a control `exact_others` of the rest at random. `rank_correlation` is Spearman's of score against exact
over those. Of a greedy search it compares two exact losses, in the search and alone: apart where nodes replace each
other.

**The pairs that choose flatter what they chose**: a share of
`held_out` pairs, drawn at random, chooses nothing and says what the circuit is worth on fresh ones, with the means of
their own corrupted prompts. Intervals are 95 % bootstraps over the pairs of either part, for circuits as found.
Control: `random` circuits of the same size. **Truth is relative to the pairs**: what does not differ between clean and
corrupted prompts has no effect under `corrupted` (on pairs of one length a head that measures length), and little
under `mean`.
Cost: (3 nodes + random x at most 24 sizes) forwards per pair, batched; integrated gradients `steps` per layer and a
forward per node that is checked.
Source: Wang et al. (2022), Interpretability in the Wild, sections 3-4; Conmy et al. (2023), Towards Automated Circuit
Discovery (ACDC); Hanna et al. (2024), Have Faith in Faithfulness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _checking
from backend.analyses._causal import Batch, Place, batches
from backend.analyses._circuit_curves import CURVES, apart, curves, ends, grown, held_out, random_band, smallest
from backend.analyses._circuits import KINDS, Tensors, name_of, nodes_of, outside_values, run_circuits
from backend.analyses._effects import records
from backend.analyses._work import Plan
from backend.analyses.attribution_patching import integrated
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures.circuit import Node, diagram

MOST_SIZES = 24  # sizes at which random circuits are drawn


class CircuitNodesParams(Params):
    """How nodes are scored and chosen, and what stands for those outside."""

    ablate: Literal["mean", "corrupted", "zero"] = Field(
        "mean", description="what stands outside: the mean over corrupted prompts, the pair's corrupted value, or zero"
    )
    search: Literal["by score", "greedy exact"] = Field(
        "by score", description="grow by score, or leave out node by node from the last layer back (ACDC)"
    )
    score: Literal["exact", "integrated gradients"] = Field(
        "exact", description="how by score ranks nodes; integrated gradients only with corrupted values"
    )
    steps: int = Field(5, ge=1, le=50, description="midpoints of integrated gradients")
    exact_top: int = Field(8, ge=0, le=4096, description="nodes with the largest |score| that are ablated exactly as "
                           "well, where the score is not that already")  # fmt: skip
    exact_others: int = Field(4, ge=0, le=4096, description="nodes of the rest, at random, ablated exactly as well")
    least: float = Field(0.9, ge=0, le=1, description="faithfulness that the circuit by score must reach")
    threshold: float = Field(0.02, ge=0, le=1, description="greedy: what may be lost per node, a share of the whole")
    held_out: float = Field(0.5, ge=0, le=0.9, description="share of pairs that choose nothing and test the circuit")
    random: int = Field(16, ge=1, le=256, description="random circuits per size, the control")
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the halves, random circuits and bootstrap")


@dataclass(frozen=True)
class Task:
    """A model, its nodes, and what stands in the place of those outside a circuit."""

    model: Model
    groups: list[Batch]
    nodes: list[Place]
    values: list[Tensors]

    def metric(self, kept: np.ndarray, said: Any = lambda share: None) -> np.ndarray:
        """Return logit_diff [circuit, pair] of circuits [circuit, node]."""
        return run_circuits(self.model, self.groups, self.nodes, kept, self.values, said)


@analysis(
    version=3, group="Causal", title="Circuit of heads and MLPs",
    asks="Which heads and MLPs make up the circuit of a task, and how much do they carry by themselves?",
    subject=Pairs, params=CircuitNodesParams,
    axes=[Axis("component", "head or mlp", kind="str"), Axis("layer", "layer, 0-based"),
          Axis("head", "head within the layer, 0-based; -1: the MLP")],
    values=[
        *_checking.values("score", "what logit_diff loses without the node, mean over the pairs that chose: exact; by "
                          "integrated gradients an estimate, even of its sign; greedy: when the search tried it",
                          "what logit_diff loses when the node alone is ablated", "nodes"),
        Value("order", "when the node enters the growing circuit, from 1: the size of the circuit then", kind="int"),
        Value("in_circuit", "whether the node is in the chosen circuit", kind="bool"),
        *CURVES,
    ],
)  # fmt: skip
def circuit_nodes(model: Model, subject: Pairs, params: CircuitNodesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per node, in the model's order."""
    choosing, others = apart(subject, params.held_out, params.seed)
    task, held = task_of(model, choosing, params.ablate), others and task_of(model, others, params.ablate)
    n = len(task.nodes)
    sizes, metric = np.arange(1, n + 1), held.metric if held else None
    whole, nothing = ends(task.metric, n)
    score, order, kept = _searched(task, params, whole, nothing, lambda f: progress(0.3 * f, "Scores of nodes"))
    checked = _checked(task, score, whole, params, lambda f: progress(0.3 + 0.1 * f, "Exact effects"))
    found = grown(task.metric, order, sizes, params.draws, params.seed,
                  said=lambda f: progress(0.4 + 0.2 * f, "Growing the circuit"))  # fmt: skip
    found |= held_out(metric, order, sizes, params.draws, params.seed,
                      lambda f: progress(0.6 + 0.2 * f, "The circuit on pairs held out"))  # fmt: skip
    size = len(kept) if kept is not None else smallest(found, sizes, params.least)
    some = np.unique([*np.linspace(1, n, MOST_SIZES).round().astype(int), max(1, size)])
    found |= random_band(metric or task.metric, n, some, params.random, params.seed,
                         lambda f: progress(0.8 + 0.2 * f, "Random circuits"))  # fmt: skip
    table = pd.DataFrame({"node": order, "order": sizes, "in_circuit": sizes <= size, **found}).sort_values("node")
    table = table.reset_index(drop=True).assign(**checked, whole=whole.mean(), nothing=nothing.mean(), n=len(whole),
                                                n_held_out=len(others.pairs) if others else 0)  # fmt: skip
    return _worded(task.nodes, table)


def task_of(model: Model, subject: Pairs, ablate: str) -> Task:
    """Return the task: pairs in batches, nodes, and the values outside."""
    groups, nodes = batches(model, subject), nodes_of(model)
    return Task(model, groups, nodes, outside_values(model, groups, nodes, ablate))


def _searched(task: Task, params: CircuitNodesParams, whole: np.ndarray, nothing: np.ndarray,
              said: Any) -> tuple[np.ndarray, np.ndarray, list[int] | None]:  # fmt: skip
    """Return (score [node, pair], the order in which nodes enter, the circuit where the search itself chose one)."""
    from backend.maths import circuits

    if params.search == "by score":
        score = scores(task, params, whole, said)
        return score, circuits.by_score(score.mean(1)), None
    share = params.threshold * abs(float((whole - nothing).mean()))
    back = sorted(range(len(task.nodes)), key=lambda i: (-task.nodes[i].layer, task.nodes[i].head))
    tried = iter(range(1, len(back) + 2))

    def metric(mask: np.ndarray) -> np.ndarray:
        said(next(tried) / (len(back) + 1))
        return task.metric(mask[None])[0]

    mask, loss, gone = circuits.prune(back, metric, share)
    kept = [i for i in circuits.by_score(loss.mean(1)).tolist() if mask[i]]
    return loss, np.array([*kept, *reversed(gone)], int), kept


def scores(task: Task, params: CircuitNodesParams, whole: np.ndarray, said: Any = lambda share: None) -> np.ndarray:
    """Return what logit_diff loses without each node [node, pair]; exact or by integrated gradients."""
    if params.score == "exact":
        return lost_alone(task, whole, range(len(task.nodes)), said)
    if params.ablate != "corrupted":
        found = f"their path leads to the corrupted values, the ablation is {params.ablate}"
        raise BadInput("Integrated gradients", found, "Ablate by corrupted, or score exactly")
    lost = np.empty((len(task.nodes), len(whole)))
    for i, batch in enumerate(task.groups):
        part = lambda f, i=i: said((i + f) / len(task.groups))  # noqa: E731
        moved = integrated(task.model, batch, task.nodes, "noising", params.steps, False, part)
        lost[:, batch.which] = -moved
    return lost


def lost_alone(task: Task, whole: np.ndarray, which: Sequence[int], said: Any = lambda share: None) -> np.ndarray:
    """Return what logit_diff loses [node of which, pair] when one node is ablated and no other."""
    return whole - task.metric(~np.eye(len(task.nodes), dtype=bool)[list(which)], said)


def _checked(task: Task, score: np.ndarray, whole: np.ndarray, params: CircuitNodesParams,
             said: Any) -> dict[str, Any]:  # fmt: skip
    """Return the columns of the score and of the exact effects beside it."""
    if _exact(params):
        return _checking.exact_already("score", score, params.draws, params.seed)
    exact = lambda chosen: lost_alone(task, whole, chosen, said)  # noqa: E731
    return _checking.compared("score", score, exact, params.exact_top, params.exact_others, params.draws, params.seed)


def _exact(params: CircuitNodesParams) -> bool:
    """Say whether the score is what logit_diff loses when the node alone is ablated."""
    return params.search == "by score" and params.score == "exact"


def _worded(nodes: list[Place], table: pd.DataFrame) -> pd.DataFrame:
    """Put the columns in the declared order."""
    table = table.assign(
        component=[KINDS[p.point] for p in nodes], layer=[p.layer for p in nodes], head=[p.head for p in nodes],
    )
    columns: list[Axis | Value] = [*circuit_nodes.axes, *circuit_nodes.values]
    return table[[c.name for c in columns]]


@circuit_nodes.costs
def work(card: ModelCard, subject: Pairs, params: CircuitNodesParams) -> Work:
    """A row per circuit that is run and pair: on the pairs that choose nodes alone, growing and shrinking circuits, on
    those held out the same circuits and random ones. The chosen size may be one more than those of random circuits."""
    plan = Plan(card)
    choosing, others = apart(subject, params.held_out, params.seed)
    nodes = nodes_of(plan)
    n_nodes = len(nodes)
    sizes = min(n_nodes, MOST_SIZES + 1)
    exact, greedy = _exact(params), params.search == "greedy exact"
    checked = n_nodes if exact else _checking.checked_at_most(n_nodes, params.exact_top, params.exact_others)
    for n, length in plan.batches(choosing):
        plan.call(n, length)
        plan.call(n, length, (n_nodes + 1) * greedy, last=True)
        plan.sweep(n, length, 2, n=2)  # both ends: for the scores and the table, for the growing circuits
        plan.sweep(n, length, checked)
        plan.sweep(n, length, 2 * n_nodes)
        if not exact and not greedy:
            plan.call(n, length, 2)
            plan.sweep(n, length, params.steps, gradients=True, n=len({(p.point, p.layer) for p in nodes}))
    halves = [half for half in (choosing, others) if half]
    for n, length in plan.batches(others) if others else []:
        plan.call(n, length)
        plan.sweep(n, length, 2)
        plan.sweep(n, length, 2 * n_nodes)
    for n, length in plan.batches(others or choosing):
        plan.sweep(n, length, 2)
        plan.sweep(n, length, sizes * params.random)
    points = {p.point for p in nodes}
    held = sum(plan.bytes(n * length, points) for half in halves for n, length in plan.batches(half))
    return plan.total(held + 8 * sizes * params.random * (n_nodes + 2 * len(subject.pairs)))


# ---------------------------------------------------------------- figures


@circuit_nodes.figure("Faithfulness and completeness by size")
def by_size(table: pd.DataFrame, view: View) -> Any:
    """Growing circuits with 95 % intervals; grey: random circuits of the same size, mean and range."""
    names = [name_of(r.layer, r.head) for r in records(table.sort_values("order"))]
    return curves(table, names, int(table["in_circuit"].sum()), "nodes")


@circuit_nodes.figure("The circuit")
def drawing(table: pd.DataFrame, view: View) -> Any:
    """Layers from bottom to top; colour: score; a ring: in the chosen circuit. Edges are not measured here."""
    kind = _kind(table, view)
    nodes = [Node(name_of(r.layer, r.head), r.layer, r.head, r.score, bool(r.in_circuit), _words(r, kind))
             for r in records(table)]  # fmt: skip
    return diagram(nodes, value=f"{kind} (logits)",
                   told=f"ring: in the circuit ({int(table['in_circuit'].sum())} of {len(table)})")  # fmt: skip


@circuit_nodes.figure("Score against exact")
def check(table: pd.DataFrame, view: View) -> Any:
    """The nodes ablated alone, with intervals; grey: those drawn at random. On the dotted line both agree."""
    kind = _kind(table, view)
    names, words = zip(*((name_of(r.layer, r.head), _words(r, kind)) for r in records(table)), strict=True)
    return _checking.picture(table, "score", names, words, x=kind, y="lost when ablated alone", what="nodes")


def _kind(table: pd.DataFrame, view: View) -> str:
    """Say what the score of this table is."""
    if (table["checked"] == "all").all():
        return "score"
    return "loss in the search" if view.params.get("search") == "greedy exact" else "estimated score"


def _words(r: Any, kind: str) -> str:
    place = "in the circuit" if r.in_circuit else "outside"
    exact = "" if r.checked == "all" else f"<br>alone: {_checking.told(r)}"
    return (f"{name_of(r.layer, r.head)}: {kind} {r.score:+.3g} logits ({r.score_low:.3g} to {r.score_high:.3g}), "
            f"{place}{exact}<br>enters at {r.order}: faithfulness {r.faithfulness:.3g}, completeness "
            f"{r.completeness:.3g}")  # fmt: skip
