"""The loss that an energy model was trained on, over its parameters, as a fixed function whose curvature is at hand.

L = mean over problems, levels k and entries of (dE/dy(x, y_k, k) - eps)^2 at y_k = sqrt(abar_k) y0 + sigma_k eps: every
problem at every level with one fixed noise, where training drew a level and a noise anew for each update. Its Hessian
takes third derivatives of E, one by y and two by the parameters. A contrastive term of the training is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.analyses import _energy
from backend.analyses._at_weights import LossesAt, own_of
from backend.analyses._curving import Curved, Handed, cut, leaves, slices
from backend.analyses._work import BYTES
from backend.contract import Energies, Matrices, ModelCard
from backend.costs import MATRIX_OPERATIONS, Calls
from backend.errors import BadInput

GRAPH = 110  # floats per row and unit of width, of a graph ready to be walked (measured: 99 to 103)
WALK = 10.0  # forwards that one product takes (measured: 5 to 15)


class Denoising(Curved):
    """The loss of an energy model on fixed problems, noise and levels, over the parameters `names`.

    `null`, drawn with `seed`: "shuffled weights" (entries of every tensor) or "shuffled noise" (each noise the target
    of another problem). Rows go level by level.
    """

    def __init__(
        self, model: Energies, problems: Matrices, levels: Sequence[int], names: Sequence[str], matrix: str,
        null: str = "", seed: int = 0,
    ):  # fmt: skip
        import torch

        self.model, self.matrix = model, matrix
        shuffled = seed if null == "shuffled weights" else None
        self.parameters = leaves(model.card, dict(model.net.named_parameters()), names, shuffled)
        n = len(problems.y)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if null == "shuffled noise" else None
        noise = problems.noise if order is None else problems.noise[order.to(problems.noise.device)]
        self.x, self.y, self.level = inputs(model, problems, levels)
        self.right = noise.repeat(len(levels), 1)
        step, self.kept = cut(graph_bytes(model.card), len(self.y))
        self.chunks = slices(len(self.y), step)
        self._built(len(self.y))

    def _graph(self, chunk: slice) -> tuple[Any, Any]:
        found = self.model.gradient_at(self.parameters, self.x[chunk], self.y[chunk], self.level[chunk])
        return found, (found - self.right[chunk]).square().mean()

    def handed(self, names: Sequence[str]) -> Handed:
        """Return the field, the mean squared error, parameters and (which rows, their noise)."""
        import torch

        def field(tensors: Sequence[Any], rows: Any) -> Any:
            return self.model.gradient_at(self._given(names, tensors), self.x[rows], self.y[rows], self.level[rows])

        rows = torch.arange(len(self.y), device=self.y.device)
        return field, torch.nn.functional.mse_loss, [self.parameters[name] for name in names], (rows, self.right)


class Denoised(LossesAt):
    """The same loss of every problem, mean over its levels and entries, at any weights: rows are problems."""

    def __init__(self, model: Energies, problems: Matrices, levels: Sequence[int]):
        self.model, self.problems, self.levels = model, problems, list(levels)
        self.count, self.own = len(problems.y), own_of(model.card, dict(model.net.named_parameters()))

    def graph(self, parameters: Mapping[str, Any], piece: Any = None) -> Any:
        """Return the loss of every problem [problem] with its graph; of all unless a slice of them is given."""
        some = self.problems if piece is None else taken(self.problems, piece)
        found = self.model.gradient_at(parameters, *inputs(self.model, some, self.levels))
        off = found - some.noise.repeat(len(self.levels), 1)
        return off.square().unflatten(0, (len(self.levels), -1)).mean((0, 2))

    def pieces(self, twice: bool = False) -> Sequence[slice]:
        """Return slices of the problems: the field is a derivative, so that a graph is held in any case."""
        return _pieces(self.model.card, self.count, len(self.levels))


def taken(problems: Matrices, piece: slice) -> Matrices:
    """Return some of the problems."""
    return replace(problems, x=problems.x[piece], y=problems.y[piece], noise=problems.noise[piece])


def inputs(model: Energies, problems: Matrices, levels: Sequence[int]) -> tuple[Any, Any, Any]:
    """Return (x, noised y, level) of every problem at every level, level by level."""
    import torch

    y = torch.cat([_energy.noised(model, problems, k) for k in levels])
    level = torch.cat([model.level(k, len(problems.y)) for k in levels])
    return problems.x.repeat(len(levels), 1), y, level


def _pieces(card: ModelCard, problems: int, levels: int) -> list[slice]:
    return slices(problems, cut(graph_bytes(card) * levels, problems)[0])


def levels_of(card: ModelCard, level: int) -> list[int]:
    """Return the levels that are asked about: one, or all for -1. Raises BadInput where the model has no such level."""
    known = int(card.energy["levels"])
    if level >= known:
        raise BadInput(f"Level {level}", f"the model has levels 0 to {known - 1}", "Choose one of them, or -1 for all")
    return list(range(known)) if level < 0 else [level]


def graph_bytes(card: ModelCard) -> int:
    """Return about what the graph of one row holds, ready to be walked."""
    return BYTES.get(card.dtype, 4) * GRAPH * int(card.energy["width"])


def plan_products(card: ModelCard, rows: int, products: int) -> tuple[list[Calls], float, float]:
    """Return (gradients of a Denoising on so many rows with its products, bytes held, operations)."""
    each = graph_bytes(card)
    step, kept = cut(each, rows)
    sizes = [s.stop - s.start for s in slices(rows, step)]
    calls = [Calls(some, 1, gradients=True, n=1 if kept else 1 + products) for some in sizes]
    held = each * (rows if kept else 2 * step)
    return calls, float(held), product_operations(card, rows, products)


def plan_denoised(card: ModelCard, problems: int, levels: int, n: int) -> list[Calls]:
    """Return n times the gradients that a Denoised makes for the loss of all problems."""
    sizes = [(piece.stop - piece.start) * levels for piece in _pieces(card, problems, levels)]
    return [Calls(rows, 1, gradients=True, n=n) for rows in sizes]


def product_operations(card: ModelCard, rows: int, products: int) -> float:
    """Return the operations of products with the Hessian over so many rows."""
    return products * WALK * MATRIX_OPERATIONS * card.n_params * rows
