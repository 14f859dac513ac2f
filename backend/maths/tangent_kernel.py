"""The empirical neural tangent kernel: K_ij = <d f(x_i)/d w, d f(x_j)/d w>, and what it says of learning.

Outputs of several numbers give K [n o, n o]. Its drift from a first kernel tells how far training leaves the linear
regime; its alignment with targets how fast they are learnt first.
Source: Jacot, Gabriel and Hongler (2018), Neural Tangent Kernel; Cortes, Mohri and Rostamizadeh (2012), Algorithms for
learning kernels based on centered alignment, section 2; Cho and Saul (2009), Kernel methods for deep learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.maths.products import flat


def jacobian(outputs: Tensor, parameters: Sequence[Tensor], said: Callable[[int], None] = lambda row: None) -> Tensor:
    """Return d outputs / d parameters [number of outputs, P], from one graph; a backward per output."""
    rows = []
    for i, value in enumerate(outputs.reshape(-1)):
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        rows.append(flat(found, parameters))
        said(i + 1)
    return torch.stack(rows)


def kernel(rows: Tensor) -> Tensor:
    """Return J J' of a jacobian [k, P], in float64: [k, k]."""
    rows = rows.double()
    return rows @ rows.mT


def of_layers(layers: Iterable[Any]) -> Tensor:
    """Return the kernel [n, n] in float64 from the gradients of linear layers, without a row of P numbers per point.

    Each layer has `out` and `into`, lists of [n, size]: d f_i / d W is the sum of their outer products, d f_i / d b the
    first `out`. <a b', c d'> = (a.c)(b.d), so all is inner products of layers' sizes.
    Source: Goodfellow (2015), Efficient per-example gradient computations.
    """
    found: Any = 0
    for layer in layers:
        out, into = [t.double() for t in layer.out], [t.double() for t in layer.into]
        for a, b in zip(out, into, strict=True):
            for c, d in zip(out, into, strict=True):
                found = found + (a @ c.mT) * (b @ d.mT)
        found = found + out[0] @ out[0].mT
    return found


def centred(k: Tensor) -> Tensor:
    """Take the mean function from a kernel [n, n]: rows and columns then sum to 0."""
    return k - k.mean(0, keepdim=True) - k.mean(1, keepdim=True) + k.mean()


def alignment(one: Tensor, other: Tensor) -> float:
    """Return the centred alignment <A, B> / (|A| |B|), 0 to 1 for positive kernels; NaN where one is flat."""
    a, b = centred(one), centred(other)
    size = a.norm() * b.norm()
    return float((a * b).sum() / size) if size else float("nan")


def drift(now: Tensor, first: Tensor) -> float:
    """Return |K - K_0| / |K_0| (Frobenius)."""
    return float((now - first).norm() / first.norm())


def effective_rank(k: Tensor) -> float:
    """Return (tr K)^2 / tr K^2: how many equal eigenvalues would have these moments."""
    return float(k.trace() ** 2 / k.square().sum())


def arc_cosine(x: np.ndarray) -> np.ndarray:
    """Return the kernel [n, n] of the infinitely wide f(x) = sqrt(2/m) sum_j a_j relu(w_j . x), x [n, d].

    a and w are standard normal and both trained: K = k1 + (x . x') k0 with k0 = (pi - t) / pi and
    k1 = |x| |x'| (sin t + (pi - t) cos t) / pi, t the angle between x and x'.
    """
    norms, inner = np.linalg.norm(x, axis=1), x @ x.T
    t = np.arccos(np.clip(inner / np.outer(norms, norms), -1, 1))
    return (np.outer(norms, norms) * (np.sin(t) + (np.pi - t) * np.cos(t)) + inner * (np.pi - t)) / np.pi
