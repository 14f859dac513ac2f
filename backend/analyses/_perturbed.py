"""Perturbations of solutions that keep or raise their rank, all of one length, and paths between the solutions' spaces:
their energies at one level, as rows of a table.

What each kind is: see exp004_grassmann.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.analyses import _low_rank
from backend.contract import Energies, Matrices

Tensor = Any  # torch's
ANGLES = (0.05, 0.1, 0.2, 0.4, 0.8)  # radians that `turned` moves; the others are as long
TIMES = 11  # points of a path
KINDS = ("turned", "raised", "any")
PATHS = ("geodesic", "straight", "rescaled")
MEASURES = ("angle", "distance", "size")
COLUMNS = ("energy", *MEASURES, "norm")
DRAWS = 400  # of the bootstrap over problems
EQUAL = 1e-5  # relative difference of energies below which they tie


class Perturbed:
    """What is measured at one level: solutions Y [n, side, side] in float64 and their energies."""

    def __init__(self, model: Energies, problems: Matrices, rank: int, seed: int, k: int):
        import torch

        from backend.maths import low_rank

        self.model, self.problems, self.rank, self.seed, self.k = model, problems, rank, seed, k
        self.dice = torch.Generator().manual_seed(seed)  # the same directions at every level
        self.y = float(model.schedule.abar[k]) ** 0.5 * _low_rank.as_matrices(problems.y.double(), problems.side)
        self.spaces = low_rank.spaces(self.y, rank)
        self.zero = self.energies(self.y)

    def energies(self, y: Tensor) -> np.ndarray:
        """Return the energies [n] of matrices [n, side, side], or of several of each problem [m, n, ..]: [m, n]."""
        import torch

        flat = y.flatten(-2).to(self.problems.y.dtype)
        x = self.problems.x.expand(*flat.shape[:-1], -1).flatten(0, -2)
        with torch.no_grad():
            found = self.model.net(x, flat.flatten(0, -2), self.model.level(self.k, len(x)))
        return found.double().cpu().numpy().reshape(flat.shape[:-1])

    def drawn(self) -> Tensor:
        import torch

        return torch.randn(self.y.shape, generator=self.dice, dtype=torch.float64).to(self.y.device)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows of the level."""
        points: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for at, angle in enumerate(ANGLES):
            for kind, y in self.perturbed(angle).items():
                points[kind].append(self.point(at, kind, y))
        found = [*self.correlations(points), *(p for each in points.values() for p in each), *self.dearer(points),
                 *self.paths(), self.tail()]  # fmt: skip
        return self.estimated(found)

    def row(self, at: int, what: str, x: float = np.nan, **more: Any) -> dict[str, Any]:
        """Return a row; `of` are the values [n] of problems whose mean it is, until `estimated`."""
        blank = dict.fromkeys(("energies", "angles", "distances", "sizes"), np.full(len(self.y), np.nan, np.float32))
        return {"level": self.k, "at": at, "what": what, "x": x, "value": np.nan, "low": np.nan, "high": np.nan,
                **blank, **more}  # fmt: skip

    def estimated(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Fill in mean and 95 % interval over problems where a row is one: the same resamples for all."""
        from backend.maths.ranks import bootstrap_means, interval

        means = [r for r in rows if "of" in r]
        values = np.stack([r.pop("of") for r in means], -1)
        ends = interval(bootstrap_means(values, DRAWS, self.seed))
        for row, value, low, high in zip(means, values.mean(0), *ends, strict=True):
            row |= {"value": float(value), "low": float(low), "high": float(high)}
        return rows

    def tail(self) -> dict[str, Any]:
        from backend.maths.ranks import median_interval

        low, mid, high = median_interval(_low_rank.tails(self.problems, self.rank))
        return self.row(0, "tail", value=mid, low=low, high=high)

    def perturbed(self, angle: float) -> dict[str, Tensor]:
        """Return matrices of each kind, all as far from Y as turning by the angle takes it."""
        import torch

        base = self.spaces.u
        tangent = self.drawn()[..., : base.shape[-1]]
        tangent = tangent - base @ (base.mT @ tangent)
        turned = _turn(base, angle * tangent / tangent.norm(dim=(-2, -1), keepdim=True)) @ self.y
        size = (turned - self.y).norm(dim=(-2, -1), keepdim=True)
        steps = {"raised": self.spaces.normal(self.drawn()), "any": self.drawn()}
        moved = {n: self.y + size * s / torch.linalg.matrix_norm(s, keepdim=True) for n, s in steps.items()}
        return {"turned": turned, **moved}

    def point(self, at: int, kind: str, y: Tensor) -> dict[str, Any]:
        from backend.maths import grassmann, low_rank

        above = self.energies(y) - self.zero
        size = (y - self.y).norm(dim=(-2, -1))
        relative = float((size / self.y.norm(dim=(-2, -1)).clamp_min(1e-30)).mean())
        return self.row(
            at, kind, relative, of=above, energies=above,
            angles=grassmann.distance(self.spaces.u, grassmann.leading(y, self.rank)).square().cpu().numpy(),
            distances=low_rank.squared_distance(y, self.rank).cpu().numpy(), sizes=size.cpu().numpy(),
            norm=y.norm(dim=(-2, -1)).cpu().numpy(),
        )  # fmt: skip

    def correlations(self, points: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return rank correlations with the energy over all perturbations, raw and at equal size or norm."""
        from backend.maths.ranks import interval, partial, spearman_matrix

        every = [p for kind in KINDS for p in points[kind]]
        table = np.stack(
            [np.stack([p["energies"], p["angles"], p["distances"], p["sizes"], p.pop("norm")], -1) for p in every], 1
        )  # [n, points, columns]
        table[..., :4] = _snapped(table[..., :4])
        whole, drawn = spearman_matrix(table, DRAWS, self.seed)
        rows = []
        for a, given in ((a, g) for a in MEASURES for g in ("", "size", "norm") if a != g):
            at = COLUMNS.index(a)
            one, many = ((m[..., 0, at] if not given else partial(m, 0, at, COLUMNS.index(given)))
                         for m in (whole, drawn))  # fmt: skip
            low, high = interval(many)
            what = f"{a} | {given}" if given else a
            rows.append(self.row(0, what, value=float(one), low=float(low), high=float(high)))
        return rows

    def dearer(self, points: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return how often raising the rank costs more than turning as far, by size and overall; ties count half."""
        pairs = [(r["energies"], t["energies"]) for r, t in zip(points["raised"], points["turned"], strict=True)]
        more = [np.where(np.abs(r - t) <= EQUAL * np.maximum(np.abs(r), np.abs(t)), 0.5, r > t) for r, t in pairs]
        each = [self.row(at, "cost more", points["raised"][at]["x"], of=m) for at, m in enumerate(more)]
        return [*each, self.row(0, "cost more overall", of=np.mean(more, 0))]

    def paths(self) -> list[dict[str, Any]]:
        """Return the energies along the three paths to another solution's spaces, and how high each middle lies."""
        import torch

        rows = []
        times = torch.linspace(0, 1, TIMES, dtype=torch.float64)
        geodesic = torch.stack([self.along(float(t)) for t in times])
        straight = torch.lerp(geodesic[0], geodesic[-1], times.to(self.y.device)[:, None, None, None])
        norm = self.y.norm(dim=(-2, -1), keepdim=True)
        rescaled = straight * norm / straight.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-30)
        for name, path in zip(PATHS, (geodesic, straight, rescaled), strict=True):
            above = self.energies(path) - self.zero
            rows += [self.row(i, name, float(times[i]), of=e, energies=e) for i, e in enumerate(above)]
            height = above[TIMES // 2] - (above[0] + above[-1]) / 2
            rows.append(self.row(0, f"{name} middle", of=height, energies=height))
        return rows

    def along(self, time: float) -> Tensor:
        """Return Y with its r leading spans moved on geodesics towards those of the next problem's solution."""
        from backend.maths import grassmann

        u, v = self.spaces.u, self.spaces.v
        left, right = (grassmann.logarithm(q, q.roll(-1, 0)) if len(q) > 1 else 0 * q for q in (u, v))
        return _turn(u, time * left) @ self.y @ _turn(v, time * right).mT


def _turn(base: Tensor, tangent: Tensor) -> Tensor:
    """Return the rotations [.., n, n] that carry the span of `base` along the geodesic of `tangent` for unit time."""
    import torch

    skew = tangent @ base.mT
    return torch.linalg.matrix_exp(skew - skew.mT)


def _snapped(values: np.ndarray) -> np.ndarray:
    """Return values with the digits that are only rounding taken away, so that what is equal ties in rank."""
    scale = np.abs(values).max((0, 1), keepdims=True)
    return np.round(values / np.where(scale > 0, scale, 1), 9)
