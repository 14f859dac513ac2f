"""How an energy model answers: from noise down the levels, a jump and some gradient steps at each.

From y ~ N(0, 1) at the smoothest level; at every level k the model's guess x0 = (y - sigma grad E) / sqrt(abar) is cut
to +-2 and y jumps to sqrt(abar) x0 (no noise is added); then `inner` steps y - step_k grad E, each kept, row by row,
where the energy does not rise, cut to +-2 sqrt(abar); then y is scaled to the next level.
Without noise this gives the posterior mean, not a sample: where several solutions fit, their average.
Source: Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, algorithm 2 and its code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backend.maths.annealing import Schedule

CUT = 2.0  # the official code's clamp of solutions


class Energy(Protocol):
    """What is asked of a model: energies [n] and gradients [n, d] of problems x, solutions y and levels [n]."""

    def __call__(self, x: Tensor, y: Tensor, level: Tensor) -> Tensor: ...

    def gradient(self, x: Tensor, y: Tensor, level: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Answer:
    """solutions [K, n, d]: the answer as it stands after each level (level 0 is the last one reached).

    accepted [K]: the share of gradient steps that were kept; NaN without any.
    """

    solutions: Tensor
    accepted: Tensor


def infer(
    model: Energy, x: Tensor, start: Tensor, schedule: Schedule, inner: int = 5,
    said: Callable[[int], None] = lambda level: None,
) -> Answer:  # fmt: skip
    """Answer problems x [n, d_x] from `start` [n, d] (noise of unit variance). No gradients are kept."""
    y = start
    solutions, accepted = start.new_empty((schedule.levels, *start.shape)), start.new_empty(schedule.levels)
    for k in reversed(range(schedule.levels)):
        level, root = torch.full((len(start),), k, device=start.device), float(schedule.abar[k]) ** 0.5
        y = root * guess(model, x, y, level, schedule, k)
        y, accepted[k] = _descended(model, x, y, level, float(schedule.step[k]), CUT * root, inner)
        solutions[k] = y / root
        y = solutions[k] * (float(schedule.abar[k - 1]) ** 0.5 if k else 1.0)
        said(k)
    return Answer(solutions, accepted)


def guess(model: Energy, x: Tensor, y: Tensor, level: Tensor, schedule: Schedule, k: int) -> Tensor:
    """Return the model's guess of the solution at level k, (y - sigma grad E) / sqrt(abar), cut to +-2: [n, d]."""
    noise = model.gradient(x, y, level).detach()
    return ((y - float(schedule.sigma[k]) * noise) / float(schedule.abar[k]) ** 0.5).clamp(-CUT, CUT)


def noised(y0: Tensor, noise: Tensor, schedule: Schedule, k: int) -> Tensor:
    """Return sqrt(abar_k) y0 + sigma_k noise."""
    return float(schedule.abar[k]) ** 0.5 * y0 + float(schedule.sigma[k]) * noise


def _descended(
    model: Energy, x: Tensor, y: Tensor, level: Tensor, step: float, most: float, inner: int
) -> tuple[Tensor, Tensor]:
    kept = y.new_zeros(())
    with torch.no_grad():
        now = model(x, y, level)
        for _ in range(inner):
            moved = (y - step * model.gradient(x, y, level).detach()).clamp(-most, most)
            then = model(x, moved, level)
            better = then <= now
            y, now = torch.where(better[:, None], moved, y), torch.where(better, then, now)
            kept = kept + better.to(y.dtype).mean() / inner
    return y, kept if inner else torch.full_like(kept, float("nan"))
