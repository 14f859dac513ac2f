"""Problems with solutions for energy models: (x, y0) as flattened matrices, drawn fresh.

- inverse: R ~ U(-1, 1), A = 2 R R' + c 1, y = A^-1. c = .5; harder: c = .1.
- addition: x = two matrices U(-s, s), y their sum; s = 1; harder: 2.5.
- completion: U V' / n + .1 noise, U and V [n, rank] Gaussian; about half of the entries are shown, the others are 0
  in x (which ones is not told); harder: a fifth of n divides it.
- gauss: y ~ N(0, v_i) with v log-spaced from .25 to 1, x = y + N(0, NOISE^2): every answer is known in closed form.
- rank1: y = u v' with Gaussian u, v, no x at all: the solutions are a manifold.
Source: Du, Mao and Tenenbaum (2024), the official `dataset.py` (inverse, addition, lowrank).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Task = Literal["inverse", "addition", "completion", "gauss", "rank1"]
TASKS: tuple[Task, ...] = ("inverse", "addition", "completion", "gauss", "rank1")
NOISE = 0.25  # standard deviation of what gauss's x adds to y


@dataclass(frozen=True)
class Problems:
    """x [n, d_x], y [n, d_y], of matrices with `side` rows and columns."""

    x: Tensor
    y: Tensor
    side: int


def sizes(task: Task, side: int) -> tuple[int, int]:
    """Return (d_x, d_y)."""
    d = side * side
    return {"inverse": d, "addition": 2 * d, "completion": d, "gauss": d, "rank1": 0}[task], d


def draw(task: Task, side: int, n: int, dice: torch.Generator, rank: int = 1, harder: bool = False) -> Problems:
    """Draw n problems in float32; `harder` is the distribution that nothing was trained on (inverse, addition,
    completion)."""
    return Problems(*_DRAW[task](side, n, dice, rank, harder), side)


def prior(side: int) -> np.ndarray:
    """Return the variances [d] of gauss's y."""
    return np.geomspace(0.25, 1.0, side * side)


def _inverse(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    r = 2 * torch.rand(n, side, side, generator=dice) - 1
    a = 2 * r @ r.mT + (0.1 if harder else 0.5) * torch.eye(side)
    return a.flatten(1), torch.linalg.inv(a).flatten(1)


def _addition(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    x = (2 * torch.rand(n, 2, side * side, generator=dice) - 1) * (2.5 if harder else 1.0)
    return x.flatten(1), x.sum(1)


def _completion(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    u, v = (torch.randn(n, side, rank, generator=dice) for _ in range(2))
    y = u @ v.mT / (side / 5 if harder else side) + 0.1 * torch.randn(n, side, side, generator=dice)
    shown = torch.rand(n, side, side, generator=dice).round()
    return (y * shown).flatten(1), y.flatten(1)


def _gauss(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    spread = torch.as_tensor(prior(side) ** 0.5, dtype=torch.float32)
    y = spread * torch.randn(n, side * side, generator=dice)
    return y + NOISE * torch.randn(n, side * side, generator=dice), y


def _rank1(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    u, v = (torch.randn(n, side, 1, generator=dice) for _ in range(2))
    return torch.empty(n, 0), (u @ v.mT).flatten(1)


_DRAW: dict[str, Callable[[int, int, torch.Generator, int, bool], tuple[Tensor, Tensor]]] = {
    "inverse": _inverse, "addition": _addition, "completion": _completion, "gauss": _gauss, "rank1": _rank1,
}  # fmt: skip
