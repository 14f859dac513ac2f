"""What the library's tools fit on a model or on activations, in the house's words (checked: benchmarks/library.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backend.errors import BadInput
from backend.models import bridge


@dataclass(frozen=True)
class Probe:
    """A k-sparse linear probe: its coordinates (strongest first) and weights on standardised features, which examples
    were held out and whether each was told right, F1 and area under ROC there, and `accuracy, f1, auc` [draw] of
    probes on random coordinates."""

    k: int
    chosen: list[int]
    weights: list[float]
    held_out: torch.Tensor
    right: torch.Tensor
    f1: float
    auc: float
    random: dict[str, list[float]]


def aligned_subspace(
    view: Any, hook: str, base: torch.Tensor, source: torch.Tensor, targets: torch.Tensor, position: int,
    lengths: torch.Tensor, *, rank: int, epochs: int, lr: float, seed: int, rows: int,
) -> tuple[torch.Tensor, list[float]]:  # fmt: skip
    """Learn the subspace at one position of a hook whose interchange makes the last position say `targets` [row].

    Returns an orthonormal basis [width, rank] and the loss of every epoch in nats. `rows` of base and source tokens
    [row, pos] are in a step; the first `lengths` [row] of each count (a causal model does not see what follows). The
    weights, and whether they ask for gradients, stay as they were.
    Source: Geiger et al. (2023), Finding Alignments Between Interpretable Causal Variables and Distributed Neural
    Representations; transformer_lens.tools.analysis.fit_das.
    """
    at = position % lengths
    base, source = (torch.cat([tokens, lengths[:, None]], 1) for tokens in (base, source))  # the tool tells no row

    def last(rows: torch.Tensor) -> torch.Tensor:
        return view(rows[:, :-1])[torch.arange(len(rows), device=rows.device), rows[:, -1] - 1]

    with torch.enable_grad():
        found = bridge.analysis_tools().fit_das(
            view.eval(), hook, base, source, targets, last, rank=rank, epochs=epochs,
            base_positions=at, source_positions=at, lr=lr, seed=seed, batch_size=rows,
        )  # fmt: skip
    return found.basis.detach(), list(found.losses)


def sparse_probes(
    features: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor, ks: Sequence[int], *,
    held_out: float, l2: float, random: int, seed: int,
) -> list[Probe]:  # fmt: skip
    """Fit a linear probe on k coordinates of features [example, feature] for each k; labels [example] are bool.

    Whole groups [example] are held out. Coordinates are chosen on the rest by the size of the difference of the class
    means in standard deviations of that rest (the library's own choice does not standardise), and fitted by logistic
    regression with balanced classes. Raises BadInput where the labels do not split or a fit does not converge.
    Source: Gurnee et al. (2023), Finding Neurons in a Haystack; transformer_lens.tools.analysis.sweep_sparse_probe.
    """
    tools = bridge.analysis_tools()
    more = {"test_fraction": held_out, "groups": groups, "seed": seed, "l2_strength": l2}
    features, y = features.double().cpu(), labels.bool().cpu()
    try:
        train = tools.fit_sparse_probe(features[:, :1], y, k=1, **more).train_indices  # the split alone
        scale = features[train].std(0)
        features = (features - features[train].mean(0)) / scale.clamp_min(1e-9 + 1e-6 * scale.max())
        found = tools.sweep_sparse_probe(features, y, ks=list(ks), n_random_subsets=random, **more)
    except (ValueError, tools.SparseProbeConvergenceError) as error:
        todo = "Choose a label that occurs in more rows, more rows, or a larger l2"
        raise BadInput("A sparse probe of these labels", str(error).split(". ")[0], todo) from None
    return [_probe(features, y, fit, control) for fit, control in
            zip(found.results, found.random_coordinate_controls or [None] * len(ks), strict=True)]  # fmt: skip


def _probe(features: torch.Tensor, y: torch.Tensor, fit: Any, control: Any) -> Probe:
    """Read one fit: its predictions on what was held out, and those on random coordinates."""
    said = features[fit.test_indices][:, fit.selected_features] @ fit.coefficients + fit.intercept > 0
    drawn = {} if control is None else {"accuracy": control.accuracy, "f1": control.f1, "auc": control.roc_auc}
    return Probe(
        fit.k, fit.selected_features.tolist(), fit.coefficients.tolist(), fit.test_indices,
        said == y[fit.test_indices], fit.metrics.f1, fit.metrics.roc_auc, {n: v.tolist() for n, v in drawn.items()},
    )  # fmt: skip
