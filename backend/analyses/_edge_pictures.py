"""Pictures of a circuit of edges: its curves by size, its diagram, and scores against exact effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from backend.analyses import _checking
from backend.analyses._circuit_curves import curves
from backend.analyses._circuits import name_of
from backend.analyses._effects import records
from backend.contract import View
from backend.figures.circuit import Edge, Node, diagram

DRAWN = 40  # edges that a diagram can show
FAINT = 0.01  # of the strongest edge: what is not drawn
BENDS = {"q": -0.12, "v": 0.12}  # so that q, k and v of one head lie apart


def by_size(table: pd.DataFrame, view: View) -> Any:
    """Growing circuits with 95 % intervals; grey: random sets of as many edges, mean and range."""
    entering = [words.split(":")[0] for words in _words(table.sort_values("order"))]
    ticks = [m * 10**k for k in range(6) for m in (1, 2, 5) if m * 10**k <= len(table)]
    figure = curves(table, entering, int(table["kept"].sum()), "edges")
    return figure.update_xaxes(type="log", tickvals=ticks, range=[-0.05, np.log10(1.1 * len(table))])


def drawing(table: pd.DataFrame, view: View) -> Any:
    """The circuit's edges (at most 40, none below 1 % of the strongest): red for the answer, blue against.

    By score as wide as that, by greedy exact as what was lost; nodes: the sum of their edges. Where no circuit reaches
    `least`, the strongest edges.
    """
    of, words = ("score", "scores") if table["loss"].isna().all() else ("loss", "losses")
    whole, table = table, table[table["in_circuit"]] if table["in_circuit"].any() else table
    kept = table.loc[table[of].abs().sort_values(ascending=False, kind="stable").index[:DRAWN]]
    kept = kept[kept[of].abs() > max(1e-9, FAINT * float(kept[of].abs().max()))]
    edges = [Edge(*_names(r), getattr(r, of), h, BENDS.get(r.reads, 0.0))
             for r, h in zip(records(kept), _words(kept), strict=True)]  # fmt: skip
    used = {e.sender for e in edges} | {e.receiver for e in edges}
    nodes = [Node(name, layer, head, s, name in used, f"{name}: its edges sum to {s:+.3g} logits")
             for (name, layer, head), s in _sent(whole, of).items()]  # fmt: skip
    nodes.append(Node("logits", int(whole["receiver_layer"].max()), -1, 0.0, "logits" in used, "logits"))
    return diagram(nodes, edges, value=f"sum of its edges' {words} (logits)",
                   told=f"the strongest {len(edges)} of {len(table)} edges"
                   + (" of the circuit" if len(table) < len(whole) else ""))  # fmt: skip


def check(table: pd.DataFrame, view: View) -> Any:
    """The edges patched exactly, with intervals; grey: those drawn at random. On the dotted line both agree."""
    figure = _checking.picture(table, "score", [" "] * len(table), _words(table), x="score", y="exact effect",
                               what="edges")  # fmt: skip
    return figure.update_traces(mode="markers", selector={"mode": "markers+text"})  # names of edges would overlap


def _sent(table: pd.DataFrame, of: str) -> dict[tuple[str, int, int], float]:
    """Return {(sender, its layer, its head): the sum over its edges}."""
    sent: dict[tuple[str, int, int], float] = {}
    for r in records(table):
        key = _names(r)[0], r.sender_layer, r.sender_head
        sent[key] = sent.get(key, 0.0) + getattr(r, of)
    return sent


def _names(r: Any) -> tuple[str, str]:
    sender = "embed" if r.sender == "embed" else name_of(r.sender_layer, r.sender_head)
    return sender, "logits" if r.reads == "logits" else name_of(r.receiver_layer, r.receiver_head)


def _words(table: pd.DataFrame) -> list[str]:
    return [_word(r) for r in records(table)]


def _word(r: Any) -> str:
    sender, receiver = _names(r)
    reads = f" ({r.reads})" if r.reads in "qkv" else ""
    tried = "" if np.isnan(r.loss) else f"<br>when tried: {r.loss:+.3g} ({r.loss_low:.3g} to {r.loss_high:.3g}) lost"
    return (f"{sender} → {receiver}{reads}: score {r.score:+.3g} logits ({r.score_low:.3g} to {r.score_high:.3g})<br>"
            f"{_checking.told(r)}{tried}")  # fmt: skip
