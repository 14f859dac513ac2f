"""The exact search for a circuit of edges, from the logits back (ACDC), and what of a circuit is joined up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from backend.analyses._causal import Batch
from backend.analyses._circuits import name_of
from backend.analyses._edge_circuits import Cut, most_slots, plan_cuts, plan_runs
from backend.analyses._edges import Receiver, Sender, edges_of
from backend.analyses._work import Plan
from backend.contract import Model, Pairs

Edges = Sequence[tuple[Sender, Receiver]]


def node_of(end: Sender | Receiver) -> str:
    """Return embed, L1H3, L0 mlp or logits: an end of an edge, whatever it reads."""
    kind = end.kind if isinstance(end, Sender) else end.reads
    return kind if kind in ("embed", "logits") else name_of(end.layer, end.head)


def joined(edges: Edges, kept: np.ndarray) -> np.ndarray:
    """Return which edges [edge] of a circuit `kept` lie on a path in it from the embedding to the logits."""
    from backend.maths import circuits

    out = np.zeros(len(edges), bool)
    ends = [(node_of(edges[i][0]), node_of(edges[i][1])) for i in np.flatnonzero(kept)]
    out[kept] = circuits.on_a_path(ends, "embed", "logits")
    return out


def greedy(model: Model, groups: Sequence[Batch], edges: Edges, w_o: list[Any], threshold: float,
           said: Callable[[float], None]) -> tuple[np.ndarray, np.ndarray, list[int]]:  # fmt: skip
    """Cut edge by edge from the logits back wherever mean logit_diff then changes by less than a share of it all.

    Receivers from the last to the first, the senders of each likewise; an edge on no path is cut without a run, since
    it changes nothing.

    Args:
        edges: as `edges_of` lists them; threshold: share of m(whole) - m(nothing).
    Returns:
        (kept [edge] of bool, loss when it was tried [edge, pair] in logits, what was cut, in this order).
    """
    from backend.maths import circuits

    cuts, known = [Cut(model, batch, edges, w_o) for batch in groups], dict[bytes, np.ndarray]()

    def metric(kept: np.ndarray) -> np.ndarray:
        mask = joined(edges, kept)
        key = np.packbits(mask).tobytes()
        if key not in known:
            known[key] = _run(cuts, mask, sum(len(b.which) for b in groups))
        return known[key]

    def told(kept: np.ndarray) -> np.ndarray:
        said(1 - int(kept[: np.argmin(kept)].sum()) / len(edges))  # edges before the first one cut are untried
        return metric(kept)

    gap = metric(np.ones(len(edges), bool)) - metric(np.zeros(len(edges), bool))
    return circuits.prune(list(reversed(range(len(edges)))), told, threshold * abs(float(gap.mean())))


def _run(cuts: Sequence[Cut], kept: np.ndarray, n: int) -> np.ndarray:
    """Return logit_diff [pair] of one circuit."""
    out = np.empty(n)
    for cut in cuts:
        out[cut.batch.which] = cut.logit_diff(kept[None])[0]
    return out


def plan_greedy(plan: Plan, subject: Pairs) -> tuple[int, int]:
    """Add the search's runs, none being spared; return (bytes held, operations) beside.

    A layer's heads read alike until their own edges are tried: from the last layer's first one on there is at most one
    reading more per receiver, beside that of all and that of nothing.
    """
    last, most, receivers = plan.card.n_layers - 1, most_slots(plan), dict[Receiver, int]()
    for _, receiver in edges_of(plan):
        receivers[receiver] = receivers.get(receiver, 0) + 1
    held, operations = plan_runs(plan, subject, [1] * 2, 1)
    done = 0
    for receiver, tries in reversed(receivers.items()):
        heads = receiver.reads in "qkv"
        slots = 1 if not heads and receiver.layer >= last else min(most, done + 3) if receiver.layer == last else most
        done += heads and receiver.layer == last
        more = plan_runs(plan, subject, [1] * tries, slots)
        held, operations = max(held, more[0]), operations + more[1]
    return held + plan_cuts(plan, subject, together=True), operations
