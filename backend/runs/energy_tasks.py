"""Problems with solutions for energy models: (x, y0) as flattened matrices, drawn fresh.

- inverse: R ~ U(-1, 1), A = 2 R R' + c 1, y = A^-1. c = .5; harder: c = .1.
- addition: x = two matrices U(-s, s), y their sum; s = 1; harder: 2.5.
- completion: U V' / n + .1 noise, U and V [n, rank] Gaussian; about half of the entries are shown, the others are 0
  in x (which ones is not told); harder: n / 4 divides it (at 20 x 20 the official 20 and 5).
- gauss: y ~ N(0, v_i) with v log-spaced from .25 to 1, x = y + N(0, NOISE^2): every answer is known in closed form.
- rank1: y = u v' with Gaussian u, v, no x at all: the solutions are a manifold.
Source: Du, Mao and Tenenbaum (2024), the official `dataset.py` (inverse, addition, lowrank).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from backend.contract import Matrices, Problems
from backend.errors import Unfit
from backend.maths.gaussian_task import NOISE, prior
from backend.subjects import HARDER, entries

Task = Literal["inverse", "addition", "completion", "gauss", "rank1"]


MORE = 1_000_003  # added to the seed of other problems of the same kind
STREAM = 4_000_003  # of the problems that are asked about: another than those of training


@dataclass(frozen=True)
class Drawn:
    """x [n, d_x], y [n, d_y], of matrices with `side` rows and columns."""

    x: Tensor
    y: Tensor
    side: int


def matrices(card: Any, asked: Problems) -> Matrices:
    """Draw what is asked of a model with this card, and a noise; the same asked gives the same matrices.

    `more(n, seed)` of what is returned draws others of the same kind: to fit trivial answers, to train what reads them.

    Raises Unfit where the sizes of the task are not the model's, or the task has nothing harder.
    """
    told = card.energy
    task = asked.task or told["task"]
    if entries(task, told["side"]) != (told["d_x"], told["d_y"]):
        found = f"they have {entries(task, told['side'])} entries, the model takes {(told['d_x'], told['d_y'])}"
        raise Unfit(f"Problems of {task} for {card.spec}", found, f"Choose {told['task']}")
    if asked.harder and task not in HARDER:
        raise Unfit(f"Harder problems of {task}", "there are none", f"Only {', '.join(HARDER)} have them")
    dice = torch.Generator().manual_seed(asked.seed + STREAM)
    drawn = draw(task, told["side"], asked.n, dice, told["rank"], asked.harder)
    noise = torch.randn(drawn.y.shape, generator=dice)
    x, y, noise = (t.to(card.device, getattr(torch, card.dtype)) for t in (drawn.x, drawn.y, noise))
    return Matrices(x, y, noise, drawn.side, task, asked, partial(_more, card, asked))


def _more(card: Any, asked: Problems, n: int, seed: int) -> Matrices:
    """Another stream than that of what was asked, also where the seeds agree."""
    return matrices(card, asked.model_copy(update={"n": n, "seed": asked.seed + MORE + seed}))


def draw(task: Task, side: int, n: int, dice: torch.Generator, rank: int = 1, harder: bool = False) -> Drawn:
    """Draw n problems in float32; `harder` is the distribution that nothing was trained on (inverse, addition,
    completion)."""
    return Drawn(*_DRAW[task](side, n, dice, rank, harder), side)


def _inverse(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    r = 2 * torch.rand(n, side, side, generator=dice) - 1
    a = 2 * r @ r.mT + (0.1 if harder else 0.5) * torch.eye(side)
    return a.flatten(1), torch.linalg.inv(a).flatten(1)


def _addition(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    x = (2 * torch.rand(n, 2, side * side, generator=dice) - 1) * (2.5 if harder else 1.0)
    return x.flatten(1), x.sum(1)


def _completion(side: int, n: int, dice: torch.Generator, rank: int, harder: bool) -> tuple[Tensor, Tensor]:
    u, v = (torch.randn(n, side, rank, generator=dice) for _ in range(2))
    y = u @ v.mT / (side / 4 if harder else side) + 0.1 * torch.randn(n, side, side, generator=dice)
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
