"""Gradient descent on a product of matrices finds matrices of low rank: the simplest implicit bias.

W = W_L ... W_1 [n, n] is fitted to the shown entries of a matrix from a small start; depth 1 fits entry by entry and
leaves the others as they were.
Source: Gunasekar et al. (2017), Implicit regularization in matrix factorization; Arora et al. (2019), Implicit
regularization in deep matrix factorization, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """What came out: the product [n, n], and by noted step its singular values [step, n] and errors [step]."""

    product: Tensor
    steps: list[int]
    singular: Tensor
    shown_error: list[float]
    hidden_error: list[float]


def complete(
    target: Tensor, shown: Tensor, depth: int, size: float, steps: int, lr: float, seed: int = 0, note: int = 50,
    said: Callable[[int], None] = lambda step: None,
) -> Fit:  # fmt: skip
    """Fit a product of `depth` square matrices to the shown entries [n, n] of bool of a target, by Adam.

    The start is `size` times a random orthogonal matrix for each factor. Errors are relative: |.| over that of the
    target on the same entries.
    """
    n, dice = len(target), torch.Generator().manual_seed(seed)
    factors = [
        (size * torch.linalg.qr(torch.randn(n, n, generator=dice, dtype=torch.float64)).Q).to(target).requires_grad_()
        for _ in range(depth)
    ]
    optimizer = torch.optim.Adam(factors, lr=lr)
    noted: tuple[list, list, list, list] = ([], [], [], [])
    for step in range(steps + 1):
        product = _product(factors)
        if step % note == 0 or step == steps:
            for kept, value in zip(noted, _read(product.detach(), target, shown, step), strict=True):
                kept.append(value)
        said(step)
        optimizer.zero_grad()
        (product - target)[shown].square().mean().backward()
        optimizer.step()
    return Fit(product.detach(), noted[0], torch.stack(noted[1]), noted[2], noted[3])


def _product(factors: list[Tensor]) -> Tensor:
    found = factors[0]
    for factor in factors[1:]:
        found = factor @ found
    return found


def _read(product: Tensor, target: Tensor, shown: Tensor, step: int) -> tuple[int, Tensor, float, float]:
    off = product - target
    relative = [float(off[m].norm() / target[m].norm()) if m.any() else float("nan") for m in (shown, ~shown)]
    return step, torch.linalg.svdvals(product), relative[0], relative[1]
