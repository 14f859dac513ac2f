"""Statistics of many units over more samples than fit into memory, gathered batch by batch.

Every class takes batches [sample, unit] by `update` and keeps what it needs in float64. `Moments`, `Joint` and `Top`
give what the whole sample at once would give, to rounding; `Reservoir` is exact while it holds all samples and a
uniform sample without replacement afterwards.
Source: Pébay (2008), Formulas for Robust, One-Pass Parallel Computation of Covariances and Arbitrary-Order Statistical
Moments, section 3; Vitter (1985), Random Sampling with a Reservoir (here: the samples of the largest random keys).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Count, mean, variance, kurtosis and the share above a threshold of each unit.

    Two parts a, b with delta = mean_b - mean_a join by Pébay's formulas for the centred power sums M2, M3, M4.
    """

    def __init__(self, threshold: float = 0.0):
        self.threshold, self.n = threshold, 0
        self.mean = self.m2 = self.m3 = self.m4 = self.above = torch.zeros(())

    def update(self, batch: Tensor) -> None:
        """Add a batch [sample, unit]."""
        x = batch.double()
        a, b = self.n, x.shape[0]
        n, mean = a + b, x.mean(0)
        if a == 0:
            zero = torch.zeros_like(mean)
            self.mean, self.m2, self.m3, self.m4, self.above = zero, zero, zero, zero, zero
        off = x - mean
        m2, m3, m4 = (off.pow(power).sum(0) for power in (2, 3, 4))
        d = mean - self.mean
        self.m4 = (
            self.m4 + m4 + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d**2 * (a * a * m2 + b * b * self.m2) / n**2 + 4 * d * (a * m3 - b * self.m3) / n
        )  # fmt: skip
        self.m3 = self.m3 + m3 + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * m2 - b * self.m2) / n
        self.m2 = self.m2 + m2 + d**2 * (a * b / n)
        self.mean, self.n = self.mean + d * (b / n), n
        self.above = self.above + (x > self.threshold).sum(0)

    @property
    def density(self) -> Tensor:
        """Share of samples above the threshold [unit]."""
        return self.above / self.n

    def variance(self) -> Tensor:
        """Variance with n - 1 below [unit]; NaN for one sample."""
        return self.m2 / (self.n - 1) if self.n > 1 else torch.full_like(self.m2, float("nan"))

    def standard_error(self) -> Tensor:
        """Standard error of the mean, samples taken as independent [unit]."""
        return (self.variance() / self.n).sqrt()

    def kurtosis(self) -> Tensor:
        """Excess kurtosis n M4 / M2^2 - 3 [unit]; NaN where the unit is constant."""
        still = self.m2 <= self.n * (1e-12 * self.mean).square()  # what is left of a constant is rounding
        return (self.n * self.m4 / self.m2.square() - 3).masked_fill(still, float("nan"))


class Joint:
    """Covariance of all pairs of units: M += M_b + delta delta' n_a n_b / n. Holds one matrix [unit, unit]."""

    def __init__(self) -> None:
        self.n = 0
        self.mean = self.m2 = torch.zeros(())

    def update(self, batch: Tensor) -> None:
        """Add a batch [sample, unit]."""
        x = batch.double()
        a, b = self.n, x.shape[0]
        mean = x.mean(0)
        off = x - mean
        d = mean - self.mean
        self.m2 = self.m2 + off.T @ off + torch.outer(d, d) * (a * b / (a + b))
        self.mean, self.n = self.mean + d * (b / (a + b)), a + b

    def covariance(self) -> Tensor:
        """[unit, unit], with n - 1 below."""
        return self.m2 / max(self.n - 1, 1)

    def correlation(self) -> Tensor:
        """Pearson's r [unit, unit]; 0 where either unit is constant."""
        scale = self.m2.diagonal().clamp_min(0).sqrt()
        alive = scale > 1e-12 * scale.max()  # a constant unit's variance is rounding
        r = self.m2 / torch.outer(scale, scale).clamp_min(1e-300)
        return torch.where(torch.outer(alive, alive), r, torch.zeros_like(r)).clamp(-1, 1)


class Top:
    """The k largest samples of each unit, largest first; of equal ones the earlier stands first, as in a stable sort.

    `values` and `samples` (running number of the sample) are [k, unit]; fewer rows until k samples came.
    """

    def __init__(self, k: int):
        self.k, self.n = k, 0
        self.values = self.samples = torch.zeros(0)

    def update(self, batch: Tensor) -> None:
        """Add a batch [sample, unit]."""
        places = torch.arange(self.n, self.n + len(batch), device=batch.device)[:, None].expand_as(batch)
        values, samples = (batch, places) if self.n == 0 else (
            torch.cat([self.values, batch]), torch.cat([self.samples, places]))  # fmt: skip
        order = values.sort(dim=0, descending=True, stable=True).indices[: self.k]
        self.values, self.samples = values.gather(0, order), samples.gather(0, order)
        self.n += len(batch)


class Reservoir:
    """A uniform sample of at most `size` samples, the same ones for every unit, for quantiles."""

    def __init__(self, size: int, seed: int = 0):
        self.size, self.n = size, 0
        self.dice = torch.Generator().manual_seed(seed)
        self.kept = self.keys = torch.zeros(0)

    def update(self, batch: Tensor) -> None:
        """Add a batch [sample, unit]."""
        keys = torch.rand(len(batch), generator=self.dice, dtype=torch.float64)
        kept = batch if self.n == 0 else torch.cat([self.kept, batch])
        keys = keys if self.n == 0 else torch.cat([self.keys, keys])
        chosen = keys.argsort(descending=True)[: self.size]
        self.kept, self.keys, self.n = kept[chosen.to(kept.device)], keys[chosen], self.n + len(batch)

    def quantile(self, q: float) -> Tensor:
        """The q quantile of each unit [unit], linear between neighbours."""
        return torch.quantile(self.kept.double(), q, dim=0)


def shuffled(batch: Tensor, dice: torch.Generator) -> Tensor:
    """Shuffle the samples [sample, unit] of every unit by itself: what is left of a correlation is chance."""
    order = torch.rand(batch.shape, generator=dice).argsort(0).to(batch.device)
    return batch.gather(0, order)


def strongest_other(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest |r| with another unit [unit], and which one it is [unit]; 0 where there is no other."""
    return closest_other(correlation.abs())


def closest_other(likeness: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest entry of each row off the diagonal of [unit, unit], and where; 0 where there is no other."""
    if len(likeness) < 2:
        return torch.zeros(len(likeness)), torch.zeros(len(likeness), dtype=torch.long)
    others = likeness.masked_fill(torch.eye(len(likeness), dtype=torch.bool, device=likeness.device), -torch.inf)
    return others.max(1).values, others.max(1).indices
