"""The local learning coefficient: how fast the volume of low loss grows around a minimum, lambda = d / 2 where regular.

lambda = n beta (E[L] - L(w*)) under the density exp(-n beta L(w) - gamma / 2 |w - w*|^2), beta = 1 / log n. Sampled by
Metropolis-adjusted Langevin steps (MALA), accepted so that the density is exact at any step size. The localiser's pull
is taken half at the end of a step (semi-implicit), so that its noise alone is never refused: plain MALA needs steps
that shrink with d^(-1/3) and takes thousands of them in 46,000 dimensions. Several chains from w*; what has not mixed
is not reported: `trouble` says why.
A minimum with multiplicity m > 1 is shifted by -(m - 1) / log n at finite n (w1^2 w2^2 reads .38, not .5).
Source: Watanabe (2013), A widely applicable Bayesian information criterion, theorem 4; Lau et al. (2023), The local
learning coefficient; Roberts and Tweedie (1996) for MALA; Cotter et al.
(2013), MCMC methods for functions, section 4 (semi-implicit: pCNL); Gelman and Rubin (1992) for R-hat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
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

    def interval(self, share: float = 0.95) -> tuple[float, float]:
        """Return the t interval of lambda over chains; NaN for one chain."""
        reach = float(student.ppf((1 + share) / 2, max(1, len(self.losses) - 1))) * self.error
        return self.value - reach, self.value + reach


def estimate(
    loss: Callable[[Tensor], Tensor], start: Tensor, n: int, chains: int = 8, draws: int = 1000, burn: int = 300,
    localisation: float = 1.0, seed: int = 0, said: Callable[[int], None] = lambda step: None,
) -> Coefficient:  # fmt: skip
    """Estimate lambda at w* = `start` [d].

    Args:
        loss: of many points [chain, d] -> [chain], differentiable: the mean over n samples; n: those samples, > 2.
        localisation: gamma. The step size is tuned to an acceptance near .6 while burning in, at most to 4 / gamma (a
            draw of the localiser that forgets where it was), then fixed.
    """
    dice = torch.Generator(device=start.device).manual_seed(seed)
    base, heat = float(loss(start[None]).detach()), n / math.log(n)

    def potential(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w = w.detach().requires_grad_()
        each = loss(w)
        return heat * each.detach(), heat * torch.autograd.grad(each.sum(), w)[0], each.detach()

    away, step, cap = start.new_zeros(chains, len(start)), 1e-2 / heat, 4 / max(localisation, 1e-30)
    now = potential(start + away)
    found, accepted = [], []
    for turn in range(burn + draws):
        away, now, taken = _moved(away, now, step, localisation, lambda u: potential(start + u), dice)
        if turn < burn:
            step = min(cap, step * math.exp((float(taken.mean()) - AIM) / math.sqrt(turn + 1)))
        else:
            found.append(now[2] - base)
            accepted.append(taken)
        said(turn + 1)
    return _told(torch.stack(found, 1), float(torch.stack(accepted).mean()), heat, step, step >= cap)


def _moved(u: Tensor, now: tuple, step: float, gamma: float, potential: Callable, dice: torch.Generator) -> tuple:
    """Propose and accept: u [chain, d] from w*, now = (Phi, its gradient, loss) there with Phi = n beta L.

    (1 + a) v = (1 - a) u - (eps / 2) grad Phi(u) + sqrt(eps) noise with a = eps gamma / 4: plain MALA where gamma = 0.
    """
    noise = torch.randn(u.shape, generator=dice, dtype=u.dtype, device=u.device)
    a = step * gamma / 4
    v = ((1 - a) * u - step / 2 * now[1] + step**0.5 * noise) / (1 + a)
    then = potential(v)
    chance = torch.rand(len(u), generator=dice, dtype=u.dtype, device=u.device)
    taken = chance.log() < _side(u, v, now, step, a) - _side(v, u, then, step, a)
    keep = lambda new, old: torch.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
    return keep(v, u), tuple(keep(x, y) for x, y in zip(then, now, strict=True)), taken.to(u.dtype)


def _side(u: Tensor, v: Tensor, at: tuple, step: float, a: float) -> Tensor:
    """Return what the acceptance compares, Phi and the asymmetry of the proposal from u to v [chain]."""
    slope = at[1]
    return at[0] + ((v - u) * slope).sum(1) / 2 + a / 2 * ((u + v) * slope).sum(1) + step / 8 * slope.square().sum(1)


def _told(losses: Tensor, acceptance: float, heat: float, step: float, widest: bool) -> Coefficient:
    each = heat * losses.mean(1)
    error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else float("nan")
    value, mixed = float(each.mean()), r_hat(losses)
    return Coefficient(value, error, acceptance, mixed, step, losses, _trouble(value, acceptance, mixed, widest))


def _trouble(value: float, acceptance: float, mixed: float, widest: bool) -> str:
    if not math.isfinite(value):
        return "the chains left for infinity"
    if value < 0:
        return "negative: the start is no minimum"
    if acceptance < WELL_ACCEPTED[0] or (acceptance > WELL_ACCEPTED[1] and not widest):
        return f"acceptance {acceptance:.2f}"
    return "" if mixed <= MIXED else f"not mixed: R-hat {mixed:.2f}"


def slopes(gammas: np.ndarray, values: np.ndarray, errors: np.ndarray, chains: int) -> list[tuple[float, float, float]]:
    """Return (slope, low, high) of ln lambda by ln gamma between neighbours, with its 95 % interval over chains.

    Args: gammas ascending, lambda > 0 and its standard errors, each [n]; errors of neighbours taken as independent.
    Of a quadratic loss with curvatures h far above gamma the slope is 0; of a flat loss, held by the localiser, -1.
    """
    logs, relative = np.log(values), (errors / values) ** 2
    apart, rise = np.diff(np.log(gammas)), np.diff(logs)
    reach = float(student.ppf(0.975, max(1, chains - 1))) * np.sqrt(relative[1:] + relative[:-1])
    return [(float(r / a), float((r - w) / a), float((r + w) / a)) for r, a, w in zip(rise, apart, reach, strict=True)]


def r_hat(values: Tensor) -> float:
    """Return how much wider all chains [chain, draw] lie together than each half of one: 1 where they have mixed."""
    half = values.shape[1] // 2
    parts = torch.cat([values[:, :half], values[:, half : 2 * half]]).double()
    within, between = parts.var(1).mean(), parts.mean(1).var()
    return float(((half - 1) / half + between / within).sqrt()) if within else float("nan")
