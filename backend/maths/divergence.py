"""Entropy and divergences of distributions, in nats. Inputs may be any float dtype; the last axis sums to 1.

Source: Cover and Thomas (2006), Elements of Information Theory, chapter 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(p: Tensor) -> Tensor:
    """Return H(p) = -sum p ln p over the last axis, with 0 ln 0 = 0. Shape [...] of p [..., n], nats.

    ln n for the uniform distribution, 0 for a one-hot.
    """
    return torch.special.entr(p).sum(-1)


def normalised_entropy(p: Tensor, visible: Tensor) -> Tensor:
    """Return H(p) / ln(visible), NaN where only one outcome is visible. 1 for uniform, 0 for one-hot, no unit.

    Args: p [..., n]; visible [...] (or broadcastable): the number of outcomes that could have been chosen.
    """
    return torch.where(visible > 1, entropy(p) / visible.clamp(min=2).to(p.dtype).log(), math.nan)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) = sum p (ln p - ln q) over the last axis, nats, from log-probabilities [..., n].

    Outcomes with p = 0 count 0; infinite where q = 0 < p. Rounding below 0 is cut to 0 (Gibbs: KL >= 0).
    """
    gap = torch.where(log_p == -math.inf, 0.0, log_p - log_q)
    return (log_p.exp() * gap).sum(-1).clamp(min=0)


def js(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (KL(p || m) + KL(q || m)) / 2 with m = (p + q)/2: 0 to ln 2 nats.

    Source: Lin (1991), Divergence measures based on the Shannon entropy, section IV.
    """
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kl(log_p, log_m) + kl(log_q, log_m)) / 2
