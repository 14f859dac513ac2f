"""Hidden units of two models matched one to one, so that what differs by a mere order of units does not differ.

For units with incoming and outgoing weights, the permutation P that maximises <W_in, P W_in'> + <W_out, W_out' P'>;
layers in turn until nothing changes. The permuted model is the same function: only the order of its units changes.
Source: Ainsworth, Hayase and Srinivasa (2023), Git Re-Basin, section 3.2 (weight matching).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """One set of units: (parameter, axis) of every tensor whose axis counts them, incoming or outgoing."""

    places: tuple[tuple[str, int], ...]


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
    found, index = dict(model), torch.as_tensor(np.asarray(order))
    for name, axis in group.places:
        found[name] = found[name].index_select(axis, index.to(found[name].device))
    return found


def _size(model: Mapping[str, Tensor], group: Group) -> int:
    name, axis = group.places[0]
    return model[name].shape[axis]


def _best(first: Mapping[str, Tensor], second: Mapping[str, Tensor], group: Group) -> np.ndarray:
    likeness = sum(
        _units(first[name], axis).double() @ _units(second[name], axis).double().T for name, axis in group.places
    )
    assert isinstance(likeness, Tensor)
    gained = likeness.diagonal().sum()
    _, order = linear_sum_assignment(likeness.cpu().numpy(), maximize=True)
    better = likeness[np.arange(len(order)), order].sum() > gained * (1 + 1e-12)
    return order if better else np.arange(len(order))


def _units(weights: Tensor, axis: int) -> Tensor:
    return weights.movedim(axis, 0).flatten(1) if weights.ndim > 1 else weights[:, None]
