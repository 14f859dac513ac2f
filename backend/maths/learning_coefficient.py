"""The local learning coefficient: how fast the volume of low loss grows around a minimum, lambda = d / 2 where regular.

lambda = n beta (E[L] - L(w*)) under the density exp(-n beta L(w) - gamma / 2 |w - w*|^2), beta = 1 / log n. Sampled by
Metropolis-adjusted Langevin steps (MALA): a proposal w + (eps / 2) grad log p + sqrt(eps) noise, accepted so that the
density is exact at any step size. Several chains from w*; what has not mixed is not reported: `trouble` says why.
A minimum with multiplicity m > 1 is shifted by -(m - 1) / log n at finite n (w1^2 w2^2 reads .38, not .5).
Source: Watanabe (2013), A widely applicable Bayesian information criterion, theorem 4; Lau et al. (2023), The local
learning coefficient; Roberts and Tweedie (1996) for MALA; Gelman and Rubin (1992) for R-hat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WELL_ACCEPTED = (0.3, 0.99)  # MALA's optimum is .574; above, steps are so small that chains hardly move
MIXED = 1.2  # R-hat of the loss above which chains still remember where they are
AIM = 0.6


@dataclass(frozen=True)
class Coefficient:
    """lambda with its standard error over chains, and how the sampling went.

    losses [chain, draw]: L(w) - L(w*), for trace plots; `trouble` is empty where the number may be believed.
    """

    value: float
    error: float
    acceptance: float
    r_hat: float
    step: float
    losses: Tensor
    trouble: str


def estimate(
    loss: Callable[[Tensor], Tensor], start: Tensor, n: int, chains: int = 8, draws: int = 1000, burn: int = 300,
    localisation: float = 1.0, seed: int = 0, said: Callable[[int], None] = lambda step: None,
) -> Coefficient:  # fmt: skip
    """Estimate lambda at w* = `start` [d].

    Args:
        loss: of many points [chain, d] -> [chain], differentiable: the mean over n samples; n: those samples, > 2.
        localisation: gamma. The step size is tuned to an acceptance near .6 while burning in, then fixed.
    """
    dice = torch.Generator(device=start.device).manual_seed(seed)
    base, heat = float(loss(start[None])), n / math.log(n)

    def log_density(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w = w.detach().requires_grad_()
        each = loss(w)
        value = -heat * each - localisation / 2 * (w - start).square().sum(1)
        return value.detach(), torch.autograd.grad(value.sum(), w)[0], each.detach()

    w, step = start.expand(chains, -1).clone(), 1e-2 / heat
    now = log_density(w)
    found, accepted = [], []
    for turn in range(burn + draws):
        w, now, taken = _moved(w, now, step, log_density, dice)
        if turn < burn:
            step *= math.exp((float(taken.mean()) - AIM) / math.sqrt(turn + 1))
        else:
            found.append(now[2] - base)
            accepted.append(taken)
        said(turn + 1)
    return _told(torch.stack(found, 1), float(torch.stack(accepted).mean()), heat, step)


def _moved(w: Tensor, now: tuple, step: float, log_density: Callable, dice: torch.Generator) -> tuple:
    noise = torch.randn(w.shape, generator=dice, dtype=w.dtype, device=w.device)
    there = w + step / 2 * now[1] + step**0.5 * noise
    then = log_density(there)
    back = w - there - step / 2 * then[1]
    ratio = then[0] - now[0] + (noise.square().sum(1) - back.square().sum(1) / step) / 2
    chance = torch.rand(len(w), generator=dice, dtype=w.dtype, device=w.device)
    taken = chance.log() < ratio
    keep = lambda new, old: torch.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
    return keep(there, w), tuple(keep(a, b) for a, b in zip(then, now, strict=True)), taken.to(w.dtype)


def _told(losses: Tensor, acceptance: float, heat: float, step: float) -> Coefficient:
    each = heat * losses.mean(1)
    error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else float("nan")
    value, mixed = float(each.mean()), r_hat(losses)
    return Coefficient(value, error, acceptance, mixed, step, losses, _trouble(value, acceptance, mixed))


def _trouble(value: float, acceptance: float, mixed: float) -> str:
    if not math.isfinite(value):
        return "the chains left for infinity"
    if value < 0:
        return "negative: the start is no minimum"
    if not WELL_ACCEPTED[0] <= acceptance <= WELL_ACCEPTED[1]:
        return f"acceptance {acceptance:.2f}"
    return "" if mixed <= MIXED else f"not mixed: R-hat {mixed:.2f}"


def r_hat(values: Tensor) -> float:
    """Return how much wider all chains [chain, draw] lie together than each half of one: 1 where they have mixed."""
    half = values.shape[1] // 2
    parts = torch.cat([values[:, :half], values[:, half : 2 * half]]).double()
    within, between = parts.var(1).mean(), parts.mean(1).var()
    return float(((half - 1) / half + between / within).sqrt()) if within else float("nan")
