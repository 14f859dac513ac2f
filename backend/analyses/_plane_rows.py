"""One level of a slice through an energy as rows of a table: the planes, curvatures, the path, points and matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.analyses import _plane

Tensor = Any  # torch's
ARRAYS = ("along", "matrix", "singular", "coordinates")
POINTS = ("noised solution", "solution", "answer")


def level_rows(spot: _plane.Spot, params: Any) -> list[dict[str, Any]]:
    """Return the rows of one level; `params` are those of exp002_landscape."""
    centre = spot.noised if params.centre == "noised" else spot.answer
    hessian = spot.hessian(centre)
    plane = _plane.directions(params.plane, spot, hessian, params.rank)
    chance = _plane.random_directions(plane, params.seed)
    row = _Blank(spot, params.resolution)
    path = spot.root * spot.path
    inside, off = _plane.projected(path, centre, plane)
    held, _ = _plane.projected(spot.noised_and_solution, centre, plane)
    half = _plane.reach(
        params.reach * spot.sigma, np.concatenate([held, inside if params.plane == "trajectory" else held])
    )
    at = np.linspace(-half, half, params.resolution)
    return [
        *_grid(row, "plane", _plane.grid(spot, centre, plane, at), at),
        *_grid(row, "random plane", _plane.grid(spot, centre, chance, at), at),
        *_bends(row, "direction", _plane.bends(spot, centre, plane, hessian)),
        *_bends(row, "random direction", _plane.bends(spot, centre, chance, hessian)),
        *_path(row, spot, path, inside, off), *_points(row, spot, centre, plane),
        *_matrices(row, spot, centre, plane),
    ]  # fmt: skip


class _Blank:
    """Makes rows of a level in which all is absent but what is named."""

    def __init__(self, spot: _plane.Spot, resolution: int):
        side = spot.problem.side
        lengths = zip(ARRAYS, (resolution, side * side, side, 2), strict=True)
        self.level, self.arrays = spot.k, {name: np.full(n, np.nan, np.float32) for name, n in lengths}

    def __call__(self, part: str, item: str, **known: Any) -> dict[str, Any]:
        numbers = dict.fromkeys(("at", "energy", "second_difference", "curvature", "off_plane"), np.nan)
        return {"level": self.level, "item": item, "part": part, **numbers, **self.arrays, **known}


def _grid(row: _Blank, part: str, energies: np.ndarray, at: np.ndarray) -> list[dict[str, Any]]:
    return [row(part, f"{part} {i:03d}", at=b, along=e) for i, (b, e) in enumerate(zip(at, energies, strict=True))]


def _bends(row: _Blank, part: str, found: list[tuple[float, float]]) -> list[dict[str, Any]]:
    return [row(part, f"{part} {i}", second_difference=a, curvature=b) for i, (a, b) in enumerate(found, start=1)]


def _path(row: _Blank, spot: _plane.Spot, path: Tensor, inside: np.ndarray, off: np.ndarray) -> list[dict[str, Any]]:
    """Return the path's points after each level and as many on the straight line from the first to the last."""
    import torch

    share = torch.linspace(0, 1, len(path), dtype=path.dtype, device=path.device)[:, None]
    line = path[:1] + share * (path[-1:] - path[:1])  # as the path, level 0 first
    energies, straight = np.split(spot.energies(torch.cat([path, line])), 2)
    found = [row("path", f"path {k}", at=k, energy=e, coordinates=c, off_plane=o)
             for k, (e, c, o) in enumerate(zip(energies, inside, off, strict=True))]  # fmt: skip
    return [*found, *(row("straight", f"straight {k}", at=k, energy=e) for k, e in enumerate(straight))]


def _points(row: _Blank, spot: _plane.Spot, centre: Tensor, plane: Tensor) -> list[dict[str, Any]]:
    import torch

    found = torch.cat([spot.noised_and_solution, spot.answer[None]])
    inside, off = _plane.projected(found, centre, plane)
    return [row("point", name, coordinates=c, off_plane=o) for name, c, o in zip(POINTS, inside, off, strict=True)]


def _matrices(row: _Blank, spot: _plane.Spot, centre: Tensor, plane: Tensor) -> list[dict[str, Any]]:
    """Return x (each of its matrices), y*, the noised one, the answer, the gradient and the two directions."""
    side, d = spot.problem.side, spot.problem.side**2
    given = spot.problem.x[0].split(d) if spot.problem.x.shape[1] else ()
    found = {f"x {i}" if len(given) > 1 else "x": x for i, x in enumerate(given, start=1)}
    found |= {"y*": spot.problem.y[0], "y_t, noised": spot.noised, "answer": spot.path[0],
              "gradient": spot.gradient(centre), "direction 1": plane[0],
              "direction 2": plane[1]}  # fmt: skip
    flat = {name: m.double().cpu().numpy() for name, m in found.items()}
    return [row("matrix", f"matrix {n}", matrix=m, singular=np.linalg.svd(m.reshape(side, side), compute_uv=False))
            for n, m in flat.items()]  # fmt: skip
