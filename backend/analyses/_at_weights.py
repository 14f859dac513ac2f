"""A model's loss at other weights than its own: what slices, paths and learning coefficients ask for.

The loss is the mean cross-entropy of the right answers over rows, in nats: the next token's, or a task's own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backend.analyses._units import answers, log_probs, row_losses, rows_at_once
from backend.analyses._work import Plan, graph_floats, parts
from backend.contract import Corpus, Described, Model, ModelCard, Rows
from backend.errors import Unfit

FEWER = "Use fewer rows (rows_used), points or directions"


class LossesAt:
    """A loss per row at any weights for its model: `own` are the model's, `count` the rows that there are.

    One who fills it in gives the loss of some rows with its graph (`graph`), and how all are cut (`pieces`).
    """

    own: dict[str, Any]
    count: int

    def graph(self, parameters: Mapping[str, Any], piece: Any = None) -> Any:
        """Return the loss of every row [row] with its graph; of all rows unless a piece of them is given."""
        raise NotImplementedError

    def pieces(self, twice: bool = False) -> Sequence[Any]:
        """Return all rows in pieces that fit, where its graph is to be differentiated `twice` too."""
        raise NotImplementedError

    def rows(self, parameters: Mapping[str, Any]) -> np.ndarray:
        """Return the loss of every row [row], float64, without a graph."""
        import torch

        with torch.no_grad():
            found = (self.graph(parameters, piece).detach().double().cpu().numpy() for piece in self.pieces())
            return np.concatenate(list(found))

    def curvatures(self, directions: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return u'Hu of the mean loss at the model's own weights for every direction u, exactly."""
        from backend.maths.products import flat, hessian_product

        found = np.zeros(len(directions))
        at = {name: tensor.clone().requires_grad_() for name, tensor in self.own.items()}
        tensors = list(at.values())
        for piece in self.pieces(twice=True):
            product = hessian_product(self.graph(at, piece).sum() / self.count, tensors)
            for i, u in enumerate(directions):
                vector = flat([u[name] for name in at], tensors)
                found[i] += float(vector @ product(vector))
        return found.tolist()


def own_of(card: ModelCard, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's parameters without their graph. Raises Unfit where they are too coarse to be moved a little."""
    import torch

    found = {name: tensor.detach() for name, tensor in known.items()}
    coarse = [t.dtype for t in found.values() if t.dtype not in (torch.float32, torch.float64)]
    if coarse:
        words = f"its weights are {str(coarse[0]).removeprefix('torch.')}"
        raise Unfit(f"Other weights for {card.spec}", words, "Open it in float32 (PHASESCOPE_DTYPE)")
    return found


class Losses(LossesAt):
    """The loss of a model on rows [row, pos] of tokens, at any weights for it.

    Raises Unfit where no right answer is known, or the weights are too coarse to be moved a little.
    """

    def __init__(self, model: Model, tokens: Any):
        import torch

        self.model, self.tokens = model, torch.as_tensor(tokens, device=model.card.device)
        self.count, self.own = len(self.tokens), own_of(model.card, model.parameters())
        if answers(model, self.tokens) is None:
            raise Unfit(f"The loss of {model.card.spec}", "no right answer is known", "Choose a model of next tokens")

    def graph(self, parameters: Mapping[str, Any], piece: Any = None) -> Any:
        """Return the loss of every row [row] with its graph; of all rows unless tokens are given."""
        tokens = self.tokens if piece is None else piece
        return row_losses(self.model, tokens, log_probs(self.model.logits_at(parameters, tokens)))

    def pieces(self, twice: bool = False) -> Sequence[Any]:
        """Return runs of rows of tokens."""
        length = self.tokens.shape[1]
        fit = graph_rows(self.model, length) if twice else rows_at_once(self.model, length, width(self.model.card))
        return self.tokens.split(fit)


def used(subject: Rows, rows: int) -> Any:
    """Return the first rows of tokens [row, pos]."""
    return subject.tokens[:rows]


def width(card: ModelCard) -> int:
    """Return the floats that a token takes in a forward of the plain module."""
    return max(3 * card.d_vocab_out, 6 * card.d_model + 2 * card.d_mlp)


def graph_rows(model: Described, length: int) -> int:
    """Return of how many rows one graph holds that is differentiated twice."""
    return rows_at_once(model, length, graph_floats(model.card, length))


def plan_rows(plan: Plan, subject: Corpus, rows: int, n: int) -> None:
    """Add n times `Losses.rows` on at most `rows` rows of a corpus."""
    length = min(subject.length, plan.card.n_ctx)
    plan.call_parts(min(rows, subject.rows), rows_at_once(plan, length, width(plan.card)), length, n)


def plan_curvatures(plan: Plan, subject: Corpus, rows: int, directions: int) -> float:
    """Add the forwards of `Losses.curvatures`; return the operations of the products (2.5 forwards each)."""
    length, rows = min(subject.length, plan.card.n_ctx), min(rows, subject.rows)
    for some in parts(rows, graph_rows(plan, length)):
        plan.call(some, length, gradients=True)
    return directions * 2.5 * 2 * plan.card.n_params * rows * length
