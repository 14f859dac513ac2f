"""Slices of a loss through its parameters, and what lies between two sets of them.

Directions for a slice are filter-normalised: each row of a matrix (a neuron's weights) gets the norm of the model's own
row, so that slices of models with other scales compare; vectors (biases, norms) stay where they are.
Barrier of a path: max over t of L(path(t)) - [(1 - t) L(0) + t L(1)], at least 0.
Source: Li et al. (2018), Visualizing the loss landscape of neural nets, section 4; Garipov et al. (2018), Loss
surfaces, mode connectivity, section 3.1 (Bezier); Frankle et al. (2020), Linear mode connectivity and the lottery
ticket hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def direction(at: Parameters, dice: torch.Generator) -> dict[str, Tensor]:
    """Draw a filter-normalised random direction; zero for parameters of fewer than two axes."""
    found = {}
    for name, weights in at.items():
        if weights.ndim < 2:
            found[name] = torch.zeros_like(weights)
            continue
        drawn = torch.randn(weights.shape, generator=dice, dtype=torch.float64).to(weights)
        rows, own = drawn.flatten(1), weights.flatten(1)
        scale = own.norm(dim=1) / rows.norm(dim=1).clamp_min(1e-12)
        found[name] = (rows * scale[:, None]).reshape(weights.shape)
    return found


def moved(at: Parameters, directions: Sequence[Parameters], lengths: Sequence[float]) -> dict[str, Tensor]:
    """Return at + sum_i lengths_i directions_i."""
    return {
        name: weights + sum((t * d[name] for t, d in zip(lengths, directions, strict=True)), torch.zeros_like(weights))
        for name, weights in at.items()
    }


def between(first: Parameters, second: Parameters, t: float) -> dict[str, Tensor]:
    """Return (1 - t) first + t second."""
    return {name: (1 - t) * first[name] + t * second[name] for name in first}


def bezier(first: Parameters, bend: Parameters, second: Parameters, t: float) -> dict[str, Tensor]:
    """Return the point of the quadratic Bezier curve (1 - t)^2 first + 2 t (1 - t) bend + t^2 second."""
    return {n: (1 - t) ** 2 * first[n] + 2 * t * (1 - t) * bend[n] + t**2 * second[n] for n in first}


def barrier(times: Sequence[float], losses: Sequence[float]) -> float:
    """Return how far the losses along a path rise above the straight line between its ends; 0 where they do not.

    times ascend from 0 to 1.
    """
    line = [(1 - t) * losses[0] + t * losses[-1] for t in times]
    return max(0.0, *(loss - base for loss, base in zip(losses, line, strict=True)))


def bent(
    loss: Callable[[Parameters], Tensor], first: Parameters, second: Parameters, steps: int, lr: float,
    dice: torch.Generator, said: Callable[[int], None] = lambda step: None,
) -> dict[str, Tensor]:  # fmt: skip
    """Train the bend of a Bezier curve between two ends so that the loss along it is low.

    Adam on the loss at one random point a step. Returns the bend; the ends stay.
    """
    bend = {name: w.clone().requires_grad_() for name, w in between(first, second, 0.5).items()}
    optimizer = torch.optim.Adam(bend.values(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(bezier(first, bend, second, float(torch.rand((), generator=dice)))).backward()
        optimizer.step()
        said(step + 1)
    return {name: w.detach() for name, w in bend.items()}
