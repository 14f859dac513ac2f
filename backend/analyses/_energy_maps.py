"""Maps that an energy has learnt and what its hidden units do: for exp009_circuit."""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.analyses import _energy
from backend.contract import Energies, Matrices

ROWS = 4096  # rows of a gradient with units taken out


def implicit_maps(model: Energies, problems: Matrices, k: int) -> tuple[Any, np.ndarray]:
    """Return (-H_yy^-1 H_yx [n, d_y, d_x] in float64 at the solutions of level k, the smallest eigenvalues of H_yy)."""
    import torch

    n, d_x = problems.x.shape
    mean = _energy.posterior_mean(problems)
    y = float(model.schedule.abar[k]) ** 0.5 * (problems.y if mean is None else mean)
    both, net, maps, low = torch.cat([problems.x, y], 1), model.net.joint(), [], []
    for some in _energy.slices(n):
        z = both[some]
        whole = _energy.hessian(net, z[:, :0], z, model.level(k, len(z))).double()
        bent = whole[:, d_x:, d_x:]
        maps.append(-torch.linalg.solve(bent, whole[:, d_x:, :d_x]))
        low.append(torch.linalg.eigvalsh(bent)[:, 0].cpu().numpy())
    return torch.cat(maps), np.concatenate(low)


def known_maps(problems: Matrices) -> Any:
    """Return d E[y | x] / d x [n or 1, d_y, d_x] in float64, None where no closed form is known."""
    import torch

    from backend.maths import gaussian_task

    n, (count, d) = problems.side, problems.y.shape
    eye = torch.eye(d, dtype=torch.float64, device=problems.y.device)
    if problems.task == "addition":
        return torch.cat([eye, eye], 1).expand(count, -1, -1)
    if problems.task == "gauss":
        prior = torch.as_tensor(gaussian_task.prior(n)).to(eye)
        return (eye * prior / (prior + gaussian_task.NOISE**2)).expand(count, -1, -1)
    if problems.task != "inverse":
        return None
    inverse = problems.y.double().reshape(-1, n, n)  # d(A^-1) = -A^-1 dA A^-1
    return -torch.einsum("bij,bkl->biljk", inverse, inverse).reshape(-1, n * n, n * n)


def symmetric(problems: Matrices) -> Any:
    """Return the projector on changes of x that occur [d_x, d_x]: for inverse the symmetric ones, else all."""
    import torch

    d_x, n = problems.x.shape[1], problems.side
    eye = torch.eye(d_x, dtype=torch.float64, device=problems.x.device)
    if problems.task != "inverse":
        return eye
    return (eye + eye.reshape(-1, n, n).mT.reshape(-1, n * n)) / 2


def linear_map(problems: Matrices) -> Any:
    """Return the slopes [d_y, d_x] of the best linear map of x; None without x."""
    from backend.maths import trivial_answers

    if not problems.x.shape[1]:
        return None
    fit = problems.more(_energy.FIT_PROBLEMS, 0)
    return trivial_answers.slopes(fit.x, fit.y)[:-1].mT


def ablated(model: Energies, problems: Matrices, k: int, n: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what energy and squared error of the guess gain without each unit of a hidden layer: [unit, problem]."""
    import torch

    y0, y = problems.y[:n], _energy.noised(model, problems, k)[:n]
    width = model.net.width
    energy, slope = kept(model, problems.x[:n], y, k, None)
    before = guess_error(model, y, slope, y0, k)
    energies, errors = [], []
    for units in torch.arange(width).split(max(1, ROWS // n)):
        out = torch.ones(len(units), width, dtype=y.dtype, device=y.device)
        out[torch.arange(len(units)), units] = 0
        x_s, y_s, y0_s = (t.repeat(len(units), 1) for t in (problems.x[:n], y, y0))
        keep = [out.repeat_interleave(n, 0) if i == layer else torch.ones_like(out[:1]) for i in range(3)]
        then, slope = kept(model, x_s, y_s, k, keep)
        energies.append((then.view(-1, n) - energy).double().cpu().numpy())
        errors.append((guess_error(model, y_s, slope, y0_s, k).view(-1, n) - before).double().cpu().numpy())
    return np.concatenate(energies), np.concatenate(errors)


def kept(model: Energies, x: Any, y: Any, k: int, keep: Any, film: Any = None) -> tuple[Any, Any]:
    """Return (energies [n], dE/dy [n, d]) with hidden units multiplied by `keep`, or the level's `film` replaced."""
    import torch

    with torch.enable_grad():
        y = y.detach().requires_grad_()
        energy = model.net.run(x, y, model.level(k, len(y)), keep, film).output.square().sum(-1)
        return energy.detach(), torch.autograd.grad(energy.sum(), y)[0]


def guess_error(model: Energies, y: Any, slope: Any, y0: Any, k: int) -> Any:
    """Return the squared error per entry [n] of the guess that dE/dy [n, d] gives at y, against solutions y0."""
    guess = (y - float(model.schedule.sigma[k]) * slope) / float(model.schedule.abar[k]) ** 0.5
    return (guess - y0).square().mean(-1)
