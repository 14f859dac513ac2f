"""What the level tells an energy through FiLM: energies and guesses with it taken away, layer by layer: for
exp009_circuit.

A layer's modulation at a level is the pair (gain, bias), 2 width numbers that are the same for every problem. It is set
to its mean over all levels (the layer no longer knows the level), or to 0, which is the identity. Control: the same
pair moved as far in a random direction, another for every problem.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.analyses import _energy
from backend.analyses._energy_maps import guess_error, kept
from backend.contract import Energies, Matrices

LAYERS = ("fc2", "fc3")
INSTEAD = ("mean over levels", "identity")
#: what the rows of one level are, by their index
PARTS = tuple(f"{layer}: {instead}" for layer in LAYERS for instead in INSTEAD)
CALLS = 1 + 2 * len(PARTS)  # gradients of every problem at a level


def ablated(model: Energies, problems: Matrices, k: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Return for each of PARTS what energy and squared error of the guess gain [problem] at level k, and in `_null`
    with the modulation moved as far in a random direction."""
    import torch

    dice = torch.Generator().manual_seed(1000 * seed + k)
    y = _energy.noised(model, problems, k)
    before = _read(model, problems, y, k, None)
    found = []
    for at in range(len(LAYERS)):
        own = _pair(model, k, at)
        mean = torch.stack([_pair(model, j, at) for j in range(model.schedule.levels)]).mean(0)
        for instead in (mean, torch.zeros_like(own)):
            chance = moved(own, instead, len(y), dice)
            rows: dict[str, np.ndarray] = {}
            for name, pair in (("", instead.expand_as(chance)), ("_null", chance)):
                after = _read(model, problems, y, k, _with(model, k, at, pair))
                rows |= {f"d_energy{name}": after[0] - before[0], f"d_mse{name}": after[1] - before[1]}
            found.append(rows)
    return found


def moved(own: Any, instead: Any, n: int, dice: Any) -> Any:
    """Return `own` [size] moved n times in random directions, each as far as `instead` [size] lies away: [n, size]."""
    import torch

    drawn = torch.randn(n, len(own), generator=dice, dtype=torch.float64).to(own)
    return own + (instead - own).norm() * drawn / drawn.norm(dim=1, keepdim=True)


def _pair(model: Energies, k: int, at: int) -> Any:
    """Return the modulation of a layer at level k: [2 width], gains before biases."""
    import torch

    return torch.cat([t[0] for t in model.net.film(model.level(k, 1))[at]]).detach()


def _with(model: Energies, k: int, at: int, pair: Any) -> Any:
    """Return what the level gives to n problems, that of one layer replaced by `pair` [n, 2 width]."""
    film = list(model.net.film(model.level(k, len(pair))))
    film[at] = pair.chunk(2, -1)
    return tuple(film)


def _read(model: Energies, problems: Matrices, y: Any, k: int, film: Any) -> tuple[np.ndarray, np.ndarray]:
    energy, slope = kept(model, problems.x, y, k, None, film)
    return tuple(t.double().cpu().numpy() for t in (energy, guess_error(model, y, slope, problems.y, k)))  # type: ignore[return-value]
