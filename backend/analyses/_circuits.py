"""What the analyses of circuits share: nodes, values that stand for what is outside, and runs of many circuits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backend.analyses._causal import Batch, Edits, Place, copies
from backend.analyses.ablation import components
from backend.contract import Described, Model

Tensors = dict[tuple[str, int], Any]
KINDS = {"z": "head", "mlp_out": "mlp"}


def nodes_of(model: Described) -> list[Place]:
    """Return every head and every MLP layer."""
    return [p for p in components(model) if p.point in KINDS]


def name_of(layer: int, head: int) -> str:
    """Return L1H3, or L1 mlp for head -1."""
    return f"L{layer}H{head}" if head >= 0 else f"L{layer} mlp"


def outside_values(model: Model, groups: list[Batch], nodes: list[Place], ablate: str) -> list[Tensors]:
    """Return per batch what stands at a node outside the circuit, [pair or 1, pos, ...].

    `corrupted`: its value on the pair's corrupted prompt; `mean`: the mean of those over the pairs of one length;
    `zero`: zeros.
    """
    points = list(dict.fromkeys(p.point for p in nodes))
    found = [model.capture(batch.corrupted, points) for batch in groups]
    if ablate == "zero":
        return [{key: 0 * t[:1] for key, t in values.items()} for values in found]
    return _means(groups, found) if ablate == "mean" else found


def _means(groups: list[Batch], found: list[Tensors]) -> list[Tensors]:
    lengths = [batch.clean.shape[1] for batch in groups]
    count = {n: sum(len(b.which) for b in groups if b.clean.shape[1] == n) for n in lengths}
    means: dict[int, Tensors] = {}
    for n, values in zip(lengths, found, strict=True):
        mine = means.setdefault(n, {})
        for key, t in values.items():
            mine[key] = mine.get(key, 0) + t.double().sum(0, keepdim=True) / count[n]
    return [{key: t.to(found[i][key].dtype) for key, t in means[n].items()} for i, n in enumerate(lengths)]


def circuit_edits(model: Model, nodes: list[Place], kept: np.ndarray, n: int, values: Tensors) -> Edits:
    """Return edits that put `values` at every node outside circuit i in rows i * n .. i * n + n - 1.

    Args:
        kept: [circuit, node] of bool; values: {(point, layer): [n or 1, pos, ...]}.
    """
    import torch

    def edit_of(keep: Any, value: Any) -> Callable[[Any], Any]:
        def edit(tensor: Any) -> Any:
            rows = tensor.reshape(len(keep), n, *tensor.shape[1:])
            mask = keep[:, None, None] if tensor.ndim == 3 else keep[:, None, None, :, None]
            return torch.where(mask, rows, value[None]).reshape(tensor.shape)

        return edit

    edits: Edits = {}
    for key in dict.fromkeys((p.point, p.layer) for p in nodes):
        mine = [i for i, p in enumerate(nodes) if (p.point, p.layer) == key]
        keep = torch.tensor(kept[:, mine], device=model.card.device)
        edits[key] = edit_of(keep, values[key])
    return edits


def run_circuits(model: Model, groups: list[Batch], nodes: list[Place], kept: np.ndarray, values: list[Tensors],
                 said: Callable[[float], None] = lambda share: None) -> np.ndarray:  # fmt: skip
    """Return logit_diff [circuit, pair] of the clean prompts with only the nodes `kept` [circuit, node] intact."""
    out = np.empty((len(kept), sum(len(b.which) for b in groups)))
    for i, batch in enumerate(groups):
        n = len(batch.which)
        for start, some in copies(model, batch, range(len(kept))):
            edits = circuit_edits(model, nodes, kept[list(some)], n, values[i])
            logits = model.run_with(batch.clean.repeat(len(some), 1), edits, last=True)
            found = batch.logit_diff(logits).reshape(len(some), n).cpu().numpy()
            out[start : start + len(some), batch.which] = found
            said((i + (start + len(some)) / len(kept)) / len(groups))
    return out
