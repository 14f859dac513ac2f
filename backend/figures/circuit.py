"""The diagram of a circuit: layers from bottom to top, heads and MLPs as nodes, edges in width and colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from backend.figures.style import DIVERGING, NULL_GREY, finish, rgba

LEAST, MOST = 1.0, 7.0  # widths of edges in pixels
POSITIVE, NEGATIVE = "#b2182b", "#2166ac"  # the ends of DIVERGING
NAMED = 64  # nodes that can carry their names


@dataclass(frozen=True)
class Node:
    """A head (head >= 0), an MLP (head -1), or what stands below and above: `layer` -1 or the number of layers."""

    name: str
    layer: int
    head: int
    score: float
    chosen: bool
    hover: str


@dataclass(frozen=True)
class Edge:
    """A drawn edge between two nodes by name."""

    sender: str
    receiver: str
    score: float
    hover: str
    bend: float = 0.0  # sideways, where several edges join the same two nodes


def positions(nodes: Sequence[Node]) -> dict[str, tuple[float, float]]:
    """Return {name: (x, y)}: heads of a layer side by side, its MLP in a row of its own above, centred."""
    wide = max([n.head for n in nodes] + [0])
    apart = 2.0 if with_mlps(nodes) else 1.0
    return {n.name: (float(n.head), apart * n.layer) if n.head >= 0 else (wide / 2, apart * n.layer + _above(nodes, n))
            for n in nodes}  # fmt: skip


def with_mlps(nodes: Sequence[Node]) -> bool:
    """Say whether a layer has an MLP beside its heads."""
    return any(n.head < 0 and _above(nodes, n) for n in nodes)


def _above(nodes: Sequence[Node], node: Node) -> float:
    heads = any(n.layer == node.layer and n.head >= 0 for n in nodes)
    return 1.0 if heads else 0.0


def diagram(nodes: Sequence[Node], edges: Sequence[Edge] = (), *, value: str, told: str) -> go.Figure:
    """Draw nodes coloured around 0 by score (a ring where chosen) over edges as wide as |score|, coloured by sign."""
    at, figure = positions(nodes), go.Figure()
    strongest = max([abs(e.score) for e in edges] + [1e-30])
    for edge in sorted(edges, key=lambda e: abs(e.score)):
        _draw_edge(figure, _bent(at[edge.sender], at[edge.receiver], edge.bend), edge, abs(edge.score) / strongest)
    if edges:
        _hover_points(figure, at, edges, strongest)
    most = max([abs(n.score) for n in nodes if np.isfinite(n.score)] + [1e-12])
    ring = [3.0 if n.chosen else 1.0 for n in nodes]
    figure.add_scatter(
        x=[at[n.name][0] for n in nodes], y=[at[n.name][1] for n in nodes], mode="markers+text",
        text=[n.name if n.chosen or len(nodes) <= NAMED else "" for n in nodes], textposition="middle right",
        textfont={"size": 11}, customdata=[n.hover for n in nodes], hovertemplate="%{customdata}<extra></extra>",
        marker={"size": [20 if n.chosen else 12 for n in nodes], "color": [n.score for n in nodes], "cmin": -most,
                "cmax": most, "opacity": 1, "colorscale": DIVERGING, "line": {"width": ring, "color": _rings(nodes)},
                "colorbar": {"title": {"text": value, "side": "right"}, "thickness": 12}},
    )  # fmt: skip
    _axes(figure, nodes, at, told)
    figure.update_layout(showlegend=False)
    return finish(figure, _height(at))


def _rings(nodes: Sequence[Node]) -> list[str]:
    return ["#009e73" if n.chosen else NULL_GREY for n in nodes]


def _height(at: dict[str, tuple[float, float]]) -> int:
    return int(min(1100, 160 + 55 * len({y for _, y in at.values()})))


def _axes(figure: go.Figure, nodes: Sequence[Node], at: dict[str, tuple[float, float]], told: str) -> None:
    """Name layers at the left and say below what a ring is."""
    layers = {n.layer: at[n.name][1] for n in sorted(nodes, key=lambda n: -n.head)}
    for n in nodes:
        if n.head >= 0:
            layers[n.layer] = at[n.name][1]
    shown = {k: y for k, y in layers.items() if any(n.layer == k and n.head >= 0 for n in nodes)} or layers
    wide = max([n.head for n in nodes] + [0])
    figure.update_yaxes(title={"text": "layer"}, tickvals=list(shown.values()), ticktext=[str(k) for k in shown],
                        showgrid=False)  # fmt: skip
    rows = "heads" + (", the MLP above" if with_mlps(nodes) else "")
    figure.update_xaxes(title={"text": f"{rows}; {told}"}, showticklabels=False,
                        showgrid=False, range=[-0.5, wide + 0.9])  # fmt: skip


def _draw_edge(figure: go.Figure, way: tuple[list[float], list[float]], edge: Edge, share: float) -> None:
    colour = POSITIVE if edge.score > 0 else NEGATIVE
    figure.add_scatter(x=way[0], y=way[1], mode="lines", hoverinfo="skip",
                       line={"width": LEAST + (MOST - LEAST) * share, "shape": "spline",
                             "color": rgba(colour, 0.25 + 0.6 * share)})  # fmt: skip


def _bent(a: tuple[float, float], b: tuple[float, float], bend: float) -> tuple[list[float], list[float]]:
    """Bend an edge sideways where it would run straight up through other nodes."""
    straight = abs(a[0] - b[0]) < 0.3 and abs(a[1] - b[1]) > 1.5
    return [a[0], (a[0] + b[0]) / 2 - (0.3 if straight else 0) + bend, b[0]], [a[1], (a[1] + b[1]) / 2, b[1]]


def _hover_points(figure: go.Figure, at: dict[str, Any], edges: Sequence[Edge], strongest: float) -> None:
    """Lines have no hover between their ends: points in their middle carry the words."""
    ways = [_bent(at[e.sender], at[e.receiver], e.bend) for e in edges]
    figure.add_scatter(
        x=[x[1] for x, _ in ways], y=[y[1] for _, y in ways], mode="markers", customdata=[e.hover for e in edges],
        hovertemplate="%{customdata}<extra></extra>",
        marker={"size": [3 + 6 * abs(e.score) / strongest for e in edges], "opacity": 1,
                "color": [POSITIVE if e.score > 0 else NEGATIVE for e in edges]},
    )  # fmt: skip
