"""Gradient descent on a product of matrices finds matrices of low rank: the simplest implicit bias.

W = W_L ... W_1 [n, n] is fitted to the shown entries of a matrix from a small start; depth 1 fits entry by entry and
leaves the others as they were.
Source: Gunasekar et al. (2017), Implicit regularization in matrix factorization; Arora et al. (2019), Implicit
regularization in deep matrix factorization, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 0.99  # of the gradient's size, over steps


@dataclass(frozen=True)
class Fit:
    """What came out: the products [.., n, n], and by noted step singular values [step, .., n] and errors [step, ..]."""

    product: Tensor
    steps: list[int]
    singular: Tensor
    shown_error: Tensor
    hidden_error: Tensor


def complete(
    target: Tensor, shown: Tensor, depth: int, size: float, steps: int, lr: float, seed: int = 0, note: int = 50,
    said: Callable[[int], None] = lambda step: None,
) -> Fit:  # fmt: skip
    """Fit a product of `depth` square matrices to the shown entries [.., n, n] of bool of targets, each by itself.

    Gradient descent with one rate for all factors: `lr`, falling to 0 over the steps, over the running size of the
    gradient. That is the path of plain descent, only faster over the flat start. Adam scales
    each entry by itself and loses the bias: 20 x 20 of rank 2, half shown, depth 2: hidden entries off by 0.2 to 0.4.

    The start is `size` times a random orthogonal matrix for each factor. Errors are relative: |.| over that of the
    target on the same entries.
    """
    dice, counts = torch.Generator().manual_seed(seed), shown.sum((-1, -2))
    drawn = (torch.randn(target.shape, generator=dice, dtype=torch.float64) for _ in range(depth))
    factors = [(size * torch.linalg.qr(one).Q).to(target).requires_grad_() for one in drawn]
    square = torch.zeros_like(counts, dtype=torch.float64)
    noted: tuple[list, ...] = ([], [], [], [])
    for step in range(steps + 1):
        product = _product(factors)
        if step % note == 0 or step == steps:
            for kept, value in zip(noted, _read(product.detach(), target, shown, step), strict=True):
                kept.append(value)
        said(step)
        loss = (((product - target) * shown).square().sum((-1, -2)) / counts).sum()
        _descend(factors, torch.autograd.grad(loss, factors), square, lr * (1 - step / (steps + 1)), step)
    return Fit(product.detach(), noted[0], *(torch.stack(one) for one in noted[1:]))


def _descend(factors: list[Tensor], slopes: Sequence[Tensor], square: Tensor, lr: float, step: int) -> None:
    """Take one step down in place; `square` [..] is the running mean of the squared gradient's norm of each target."""
    square.lerp_(sum(slope.square().sum((-1, -2)) for slope in slopes).to(square), 1 - MEMORY)  # type: ignore[union-attr]
    rate = lr / ((square / (1 - MEMORY ** (step + 1))).sqrt() + 1e-6)
    with torch.no_grad():
        for factor, slope in zip(factors, slopes, strict=True):
            factor -= rate[..., None, None] * slope


def _product(factors: list[Tensor]) -> Tensor:
    found = factors[0]
    for factor in factors[1:]:
        found = factor @ found
    return found


def _read(product: Tensor, target: Tensor, shown: Tensor, step: int) -> tuple[int, Tensor, Tensor, Tensor]:
    off = product - target
    shares = [(off * m).norm(dim=(-1, -2)) / (target * m).norm(dim=(-1, -2)) for m in (shown, ~shown)]
    return step, torch.linalg.svdvals(product), shares[0], shares[1]
