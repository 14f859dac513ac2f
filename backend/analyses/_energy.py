"""What the experiments on energy models share: axes, noised points, exact Hessians in pieces, errors, costs.

Level 0 is the sharpest everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from backend.analyses._work import BYTES, parts
from backend.contract import Axis, Energies, Matrices, ModelCard
from backend.costs import MATRIX_OPERATIONS, Calls, Work

Tensor = Any  # torch's; this room imports it inside functions only
LEVEL = Axis("level", "annealing level; 0 is the sharpest")
PROBLEM = Axis("problem", "problem, 0-based")
AT_ONCE = 64  # points whose Hessians are made in one go
DETERMINISTIC = ("inverse", "addition")  # tasks whose x decides y
FIT_PROBLEMS = 20_000  # of the best linear answer
FEWER = "Use fewer problems"


def noised(model: Energies, problems: Matrices, k: int) -> Tensor:
    """Return sqrt(abar_k) y0 + sigma_k noise, [n, d_y]."""
    schedule = model.schedule
    return float(schedule.abar[k]) ** 0.5 * problems.y + float(schedule.sigma[k]) * problems.noise


def slices(n: int) -> Iterator[slice]:
    """Yield slices of at most AT_ONCE rows that cover n: `_work.parts` as places."""
    sizes = parts(n, AT_ONCE)
    for size, stop in zip(sizes, accumulate(sizes), strict=True):
        yield slice(stop - size, stop)


def layered_hessian(net: Any, x: Tensor, y: Tensor, level: Tensor) -> dict[str, Tensor]:
    """Return d2E/dy2 by the layer whose bend it is, each symmetrised: {"output", "fc1", "fc2", "fc3"} of [n, d, d]."""
    return {name: (h + h.mT) / 2 for name, h in net.hessian(x, y, level).items()}


def hessian(net: Any, x: Tensor, y: Tensor, level: Tensor) -> Tensor:
    """Return d2E/dy2 exactly, symmetrised: [n, d, d]."""
    return sum(layered_hessian(net, x, y, level).values())  # type: ignore[return-value]


def hessians(model: Energies, problems: Matrices, k: int, y: Tensor | None = None, net: Any = None) -> Iterator[Tensor]:
    """Yield the Hessians [<= AT_ONCE, d, d] at the noised points of level k, or at `y`."""
    y = noised(model, problems, k) if y is None else y
    for some in slices(len(y)):
        level = model.level(k, some.stop - some.start)
        yield hessian(net or model.net, problems.x[some], y[some], level)


def guess(model: Energies, problems: Matrices, k: int, y: Tensor | None = None, net: Any = None) -> Tensor:
    """Return the model's guess of the solution at level k, (y - sigma grad E) / sqrt(abar): [n, d_y], not cut."""
    y = noised(model, problems, k) if y is None else y
    slope = (net or model.net).gradient(problems.x, y, model.level(k, len(y))).detach()
    return (y - float(model.schedule.sigma[k]) * slope) / float(model.schedule.abar[k]) ** 0.5


def squared_error(answer: Tensor, problems: Matrices) -> np.ndarray:
    """Return the squared error per entry, [n] float64."""
    return (answer - problems.y).double().square().mean(-1).cpu().numpy()


def ideal_eigenvalues(model: Energies, task: str, k: int) -> np.ndarray | None:
    """Return the ascending eigenvalues [d] of an ideal energy at level k where they are known, else None.

    1/sigma where x decides y; the Gaussian task's closed form. See maths/annealing.py.
    """
    from backend.maths import annealing, gaussian_task

    abar, side = model.schedule.abar[k], int(model.card.energy["side"])
    if task in DETERMINISTIC:
        return np.full(side * side, 1 / model.schedule.sigma[k])
    if task != "gauss":
        return None
    variance = annealing.gaussian_variance(abar, gaussian_task.prior(side), gaussian_task.NOISE)
    return np.sort(annealing.ideal_eigenvalue(abar, variance))


def posterior_mean(problems: Matrices) -> Tensor | None:
    """Return E[y0 | x] [n, d_y], which inference without noise gives at best; None where no closed form is known."""
    from backend.maths import gaussian_task

    if problems.task in DETERMINISTIC:
        return problems.y
    if problems.task == "rank1":  # u v' and -u v' are as likely, and there is no x
        return 0 * problems.y
    if problems.task != "gauss":
        return None
    prior = problems.y.new_tensor(gaussian_task.prior(problems.side))
    return problems.x * prior / (prior + gaussian_task.NOISE**2)


def work(
    card: ModelCard, energies: int = 0, gradients: int = 0, hessians: int = 0, held_numbers: float = 0.0,
    solver_seconds: float = 0.0, operations: float = 0.0, at_once: int = 0,
) -> Work:
    """Price rows of energies and gradients (one call each, or `at_once` rows a call), and exact Hessians at so many
    points.

    `held_numbers` in the model's dtype lie beside.
    """
    told = card.energy
    width, d = int(told["width"]), int(told["d_y"])
    each = MATRIX_OPERATIONS * (2 * width * width * d + 4 * width * d * d)  # two Jacobians, four products J'J
    asked = [(n, min(n, at_once or n), kind) for n, kind in ((energies, False), (gradients, True)) if n]
    calls = [Calls(rows, 1, gradients=kind, n=-(-n // rows)) for n, rows, kind in asked]
    held = BYTES[card.dtype] * (held_numbers + min(hessians, AT_ONCE) * (4 * width * d + 5 * d * d))
    return Work(tuple(calls), held, hessians * each + operations, solver_seconds, FEWER)
