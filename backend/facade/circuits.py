"""Two kept circuits beside each other: what they share, what only one has, and what chance alone would give."""

from __future__ import annotations

from typing import Any

import pandas as pd

from backend.errors import BadInput
from backend.facade.asking import Asking
from backend.maths import overlap

KINDS = ("circuit_nodes", "circuit_edges")


class Circuits(Asking):
    """The part of the facade that compares circuits."""

    def circuit_overlap(self, a: str, b: str) -> dict[str, Any]:
        """Compare the circuits of two kept results of one analysis, by their keys.

        Returns {rows, distance}: one row per `of` (heads and MLPs; edges) with its number in `a`, in `b`, `shared`,
        `jaccard`, `distance` (to add or take away), what random sets of these sizes among `among` would give
        (`chance_jaccard`, `chance_distance`, `chance`: to share at least as many), and the names `only_a`, `only_b`.
        `distance` sums them. Names are places: L0H3 of one model is L0H3 of the other, whatever it does there.
        Raises NotFound for an unknown key, BadInput where the two are no circuits over the same parts.
        """
        tables = [self.table(key, arrays=False) for key in (a, b)]
        sets = [_sets(table) for table in tables]
        if not sets[0] or sets[0].keys() != sets[1].keys():
            found = "they are not two results of one analysis of circuits"
            raise BadInput("Comparing circuits", found, f"Choose two of {' or of '.join(KINDS)}")
        if any(sets[0][of][1] != sets[1][of][1] for of in sets[0]):
            found = "the two models have different parts, so their names do not correspond"
            raise BadInput("Comparing circuits", found, "Choose models of as many layers, heads and MLPs")
        pair = [overlap.Circuit(s["heads and MLPs"][0], s.get("edges", (frozenset(), 0))[0]) for s in sets]
        rows = [_row(of, sets[0][of][0], sets[1][of][0], len(sets[0][of][1])) for of in sets[0]]
        return {"rows": rows, "distance": overlap.edit_distance(*pair)}


def _sets(table: pd.DataFrame) -> dict[str, tuple[frozenset[Any], frozenset[Any]]]:
    """Return {of: (what the circuit holds, all there is)}; {} for no circuit."""
    if "in_circuit" not in table:
        return {}
    inside = table["in_circuit"].astype(bool).to_numpy()
    if "component" in table:
        names = [_name(r.layer, r.head) for r in table.itertuples()]
        return {"heads and MLPs": (_some(names, inside), frozenset(names))}
    senders = [_name(r.sender_layer, r.sender_head) for r in table.itertuples()]
    reads = [_name(r.receiver_layer, r.receiver_head) if r.reads != "logits" else "logits" for r in table.itertuples()]
    ends = [f"{n}.{r}" if r in "qkv" else n for n, r in zip(reads, table["reads"], strict=True)]
    edges = list(zip(senders, ends, strict=True))
    nodes = frozenset({*senders, *reads} - {"embed", "logits"})
    used = frozenset(n for s, r, kept in zip(senders, reads, inside, strict=True) if kept for n in (s, r)) & nodes
    return {"heads and MLPs": (used, nodes), "edges": (_some(edges, inside), frozenset(edges))}


def _some(names: list[Any], inside: Any) -> frozenset[Any]:
    return frozenset(n for n, kept in zip(names, inside, strict=True) if kept)


def _name(layer: Any, head: Any) -> str:
    if layer < 0:
        return "embed"
    return f"L{layer}H{head}" if head >= 0 else f"L{layer} mlp"


def _row(of: str, a: frozenset[Any], b: frozenset[Any], among: int) -> dict[str, Any]:
    null = overlap.chance(among, len(a), len(b), len(a & b))
    return {"of": of, "a": len(a), "b": len(b), "shared": len(a & b), "jaccard": overlap.jaccard(a, b),
            "chance_jaccard": null.jaccard, "distance": len(a ^ b), "chance_distance": null.distance,
            "chance": null.as_many, "among": among, "only_a": _words(a - b), "only_b": _words(b - a)}  # fmt: skip


def _words(names: frozenset[Any]) -> list[str]:
    return sorted(n if isinstance(n, str) else " > ".join(n) for n in names)
