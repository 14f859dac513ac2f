"""PyHessian, curvlinops and geomstats as they are called by their own documents; each behind a function, each optional.

PyHessian and curvlinops are in no requirement: the licence of one is in conflict with itself, the other would move
torch; geomstats is one of requirements-dev.txt (and needs a shim on numpy 2.4). benchmarks/README.md has the commands
that make an environment with them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def missing(name: str) -> bool:
    """Say whether a package cannot be imported here."""
    return importlib.util.find_spec(name) is None


class Point(nn.Module):
    """The energy of one problem as a function of its answer, which is the parameter: what PyHessian can take."""

    def __init__(self, net: Any, x: Tensor, y: Tensor, level: Tensor):
        super().__init__()
        self.y = nn.Parameter(y.clone())
        self.energy = lambda answer: net(x, answer, level)

    def forward(self, nothing: Tensor) -> Tensor:
        return self.energy(self.y)


def pyhessian_inputs(net: Any, x: Tensor, y: Tensor, level: Tensor, k: int, seed: int = 0) -> np.ndarray:
    """Return PyHessian's top k of d2E/dy2 at one problem (x, y, level each [1, ..])."""
    from pyhessian import hessian

    torch.manual_seed(seed)
    found = hessian(Point(net, x, y, level), lambda out, target: out.sum(), data=(x, x), cuda=False)
    return np.array(found.eigenvalues(top_n=k)[0], float)


def curvlinops_top(
    forward: Callable[[Sequence[Tensor], Tensor], Tensor], parameters: Sequence[Tensor], data: tuple[Tensor, Tensor],
    k: int, tol: float,
) -> np.ndarray:  # fmt: skip
    """Return the k largest eigenvalues by curvlinops' HessianLinearOperator under scipy's eigsh (its own example)."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    from backend.maths.pyhessian_column import _Module

    model = _Module(forward, parameters)
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [data], check_deterministic=False
    )
    values = eigsh(operator.to_scipy(), k=k, which="LA", tol=tol, return_eigenvectors=False)
    return np.sort(values)[::-1].astype(float)


def geomstats_distance(n: int, r: int) -> Callable[[Tensor, Tensor], np.ndarray]:
    """Return its Grassmannian distance between bases [pair, n, r], its sqrt(2) taken off."""
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # type: ignore[attr-defined]
    from geomstats.geometry.grassmannian import Grassmannian

    metric = Grassmannian(n, r).metric

    def distance(first: Tensor, second: Tensor) -> np.ndarray:
        one, two = ((q @ q.mT).numpy() for q in (first, second))
        return np.asarray(metric.dist(one, two)) / 2**0.5

    return distance
