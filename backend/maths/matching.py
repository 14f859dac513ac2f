"""Hidden units of two models matched one to one, so that what differs by a mere order of units does not differ.

For units with incoming and outgoing weights, the permutation P that maximises <W_in, P W_in'> + <W_out, W_out' P'>;
layers in turn until nothing changes. The permuted model is the same function: only the order of its units changes.
Source: Ainsworth, Hayase and Srinivasa (2023), Git Re-Basin, section 3.2 (weight matching).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """One set of units: (parameter, axis) of every tensor whose axis counts them, incoming or outgoing.

    Where a unit is more than one index (a head), or the axis counts others too, a third says which are unit i's:
    indices [unit, k].
    """

    places: tuple[tuple[Any, ...], ...]


def matched(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], groups: Sequence[Group], seed: int = 0, most: int = 100
) -> tuple[dict[str, Tensor], list[np.ndarray]]:
    """Return (`second` with its units in the order that fits `first` best, the order of each group).

    Coordinate ascent over groups in random order: a local optimum where groups meet in one matrix.
    """
    dice = np.random.default_rng(seed)
    orders = [np.arange(_size(second, g)) for g in groups]
    now = dict(second)
    for _ in range(most):
        changed = False
        for i in dice.permutation(len(groups)):
            order = _best(first, now, groups[i])
            if (order != np.arange(len(order))).any():
                now, orders[i], changed = permuted(now, groups[i], order), orders[i][order], True
        if not changed:
            break
    return now, orders


def permuted(model: Mapping[str, Tensor], group: Group, order: np.ndarray) -> dict[str, Tensor]:
    """Return the model with the group's units in another order: unit i is what was unit order[i]."""
    found = dict(model)
    for name, axis, *which in group.places:
        whole = np.arange(found[name].shape[axis])
        units = which[0] if which else whole[:, None]
        whole[np.ravel(units)] = np.ravel(units[np.asarray(order)])
        found[name] = found[name].index_select(axis, torch.as_tensor(whole, device=found[name].device))
    return found


def _size(model: Mapping[str, Tensor], group: Group) -> int:
    name, axis, *which = group.places[0]
    return len(which[0]) if which else model[name].shape[axis]


def _best(first: Mapping[str, Tensor], second: Mapping[str, Tensor], group: Group) -> np.ndarray:
    likeness = sum(
        _units(first[name], axis, *which).double() @ _units(second[name], axis, *which).double().T
        for name, axis, *which in group.places
    )
    assert isinstance(likeness, Tensor)
    gained = likeness.diagonal().sum()
    _, order = linear_sum_assignment(likeness.cpu().numpy(), maximize=True)
    better = likeness[np.arange(len(order)), order].sum() > gained * (1 + 1e-12)
    return order if better else np.arange(len(order))


def _units(weights: Tensor, axis: int, which: np.ndarray | None = None) -> Tensor:
    units = weights.movedim(axis, 0)
    return units[:, None].flatten(1) if which is None else units[torch.as_tensor(which)].flatten(1)
