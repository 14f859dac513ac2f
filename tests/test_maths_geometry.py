"""Subspaces and low-rank matrices: angles near both ends, geodesics, projectors, dimensions, order of retraction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from backend.maths import grassmann, low_rank


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planes(angles: list[float], n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Two orthonormal bases with exactly these principal angles, turned at random."""
    r, turn = len(angles), grassmann.span(drawn(n, n, seed=5))
    first, second = torch.zeros(n, r).double(), torch.zeros(n, r).double()
    for i, angle in enumerate(angles):
        first[i, i], second[i, i], second[r + i, i] = 1, np.cos(angle), np.sin(angle)
    return turn @ first @ grassmann.span(drawn(r, r)), turn @ second @ grassmann.span(drawn(r, r, seed=1))


@pytest.mark.parametrize("angles", [[1e-9, 1e-5, 0.3], [0.7, 0.8, 1.2], [1.0, np.pi / 2 - 1e-9, np.pi / 2], [0, 0, 0]])
def test_angles_are_right_at_both_ends(angles: list[float]) -> None:
    first, second = planes(angles)
    mine = grassmann.principal_angles(first, second)
    np.testing.assert_allclose(mine, angles, atol=2e-15, rtol=1e-6)
    np.testing.assert_allclose(mine, np.sort(subspace_angles(first.numpy(), second.numpy())), atol=1e-13)
    assert grassmann.distance(first, second) == pytest.approx(float(np.linalg.norm(angles)), abs=1e-14)


def test_distances_are_those_of_geomstats_but_for_its_root_of_two_and_its_cut_locus() -> None:
    pytest.importorskip("geomstats", reason="of requirements-dev.txt: run make setup")
    from benchmarks.curvature_peers import geomstats_distance

    first, second = grassmann.span(drawn(30, 9, 2)), grassmann.span(drawn(30, 9, 2, seed=3))
    np.testing.assert_allclose(geomstats_distance(9, 2)(first, second), grassmann.distance(first, second), rtol=1e-10)
    apart = [grassmann.span(planes([0.3, np.pi / 2])[i])[None] for i in (0, 1)]
    assert grassmann.distance(*apart) == pytest.approx(np.hypot(0.3, np.pi / 2))
    assert geomstats_distance(8, 2)(*apart) != pytest.approx(np.hypot(0.3, np.pi / 2), rel=0.1)  # its issue 2052


def test_batches_and_bases_do_not_matter() -> None:
    many = grassmann.span(drawn(20, 9, 2))
    turned = many @ grassmann.span(drawn(20, 2, 2, seed=2))
    assert grassmann.distance(many, turned).max() < 1e-12
    each = [grassmann.distance(a, b) for a, b in zip(many[:-1], many[1:], strict=True)]
    torch.testing.assert_close(grassmann.distance(many[:-1], many[1:]), torch.stack(each))


def test_exponential_and_logarithm_undo_each_other_at_constant_speed() -> None:
    first, second = grassmann.span(drawn(4, 9, 3)), grassmann.span(drawn(4, 9, 3, seed=1))
    velocity = grassmann.logarithm(first, second)
    assert (first.mT @ velocity).abs().max() < 1e-12
    torch.testing.assert_close(velocity.flatten(1).norm(dim=1), grassmann.distance(first, second))
    assert grassmann.distance(grassmann.exponential(first, velocity), second).max() < 1e-12
    times = torch.linspace(0, 1, 5).double()
    path = grassmann.geodesic(first[0], second[0], times)
    steps = grassmann.distance(path[:-1], path[1:])
    torch.testing.assert_close(steps, grassmann.distance(first[0], second[0]).expand(4) / 4, rtol=1e-9, atol=1e-12)


def test_parallel_transport_keeps_products_and_stays_tangent() -> None:
    base = grassmann.span(drawn(9, 3))
    tangent = lambda seed: (g := drawn(9, 3, seed=seed)) - base @ (base.T @ g)  # noqa: E731
    velocity, one, two = tangent(1), tangent(2), tangent(3)
    end = grassmann.exponential(base, velocity)
    moved = [grassmann.transport(base, velocity, t) for t in (one, two)]
    assert (end.T @ moved[0]).abs().max() < 1e-12
    torch.testing.assert_close((moved[0] * moved[1]).sum(), (one * two).sum())
    # a geodesic's own velocity is carried into its velocity at the end
    h = 1e-6
    after = (grassmann.exponential(base, (1 + h) * velocity) - grassmann.exponential(base, (1 - h) * velocity)) / (
        2 * h
    )
    torch.testing.assert_close(grassmann.transport(base, velocity, velocity), after, atol=1e-8, rtol=1e-6)


# ---------------------------------------------------------------- low rank

N, M, R = 6, 5, 2


def point(seed: int = 0) -> torch.Tensor:
    return drawn(N, R, seed=seed) @ drawn(R, M, seed=seed + 100)


def test_projectors_have_their_identities_and_dimensions() -> None:
    found = low_rank.spaces(point(), R)
    units = torch.eye(N * M).double().reshape(-1, N, M)
    along, across = found.tangent(units).flatten(1), found.normal(units).flatten(1)
    torch.testing.assert_close(along @ along, along)
    torch.testing.assert_close(along + across, torch.eye(N * M).double())
    assert (along @ across.T).abs().max() < 1e-12
    assert found.dims == (round(float(along.trace())), round(float(across.trace()))) == (R * (N + M - R), 12)
    inside = point() @ drawn(M, M) + drawn(N, N) @ point()  # A V' + U B'
    torch.testing.assert_close(found.tangent(inside), inside)
    assert found.gap > 1e10


def test_retraction_leaves_the_manifold_only_across() -> None:
    y, g = point(), drawn(N, M, seed=9)
    found = low_rank.spaces(y, R)

    def error(direction: torch.Tensor, t: float) -> float:
        return float((low_rank.retracted(y + t * direction, R) - y - t * direction).norm())

    along, across = ([error(d, t) for t in (1e-2, 1e-3)] for d in (found.tangent(g), found.normal(g)))
    assert along[0] / along[1] == pytest.approx(100, rel=0.05) and across[0] / across[1] == pytest.approx(10, rel=0.05)
    torch.testing.assert_close(low_rank.squared_distance(y + 1e-3 * found.normal(g), R).sqrt(),
                               1e-3 * found.normal(g).norm())  # fmt: skip


def test_traces_are_those_of_the_projected_hessian_and_isotropy_gives_one() -> None:
    some = torch.stack([point(0), point(1)])
    found = low_rank.spaces(some, R)
    hessian = drawn(2, N * M, N * M, seed=3)
    hessian = hessian + hessian.mT
    units = torch.eye(N * M).double().reshape(1, -1, N, M)
    for i in range(2):
        one = low_rank.spaces(some[i], R)
        dense = [(f(units[0]).flatten(1) @ hessian[i]).trace() for f in (one.tangent, one.normal)]
        torch.testing.assert_close(torch.stack([t[i] for t in found.traces(hessian)]), torch.stack(dense))
    torch.testing.assert_close(
        found.curvature_ratio(3 * torch.eye(N * M).double().expand(2, -1, -1)), torch.ones(2).double()
    )
    stiff = torch.stack([low_rank.spaces(y, R).normal(units[0]).flatten(1) for y in some])
    torch.testing.assert_close(
        found.curvature_ratio(torch.eye(N * M).double() + 9 * stiff), torch.full((2,), 10.0).double()
    )


def test_the_null_of_the_raw_ratio_is_what_noise_gives() -> None:
    noise, found = drawn(20_000, N, M, seed=4), low_rank.spaces(point(), R)
    ratio = found.normal(noise).square().sum().sqrt() / found.tangent(noise).square().sum().sqrt()
    assert float(ratio) == pytest.approx(low_rank.noise_ratio(N, M, R), rel=0.01)
    assert low_rank.noise_ratio(20, 20, 2) == pytest.approx(2.06, abs=0.01)


@pytest.mark.parametrize("r", [0, 5])
def test_a_rank_without_a_normal_space_is_refused(r: int) -> None:
    with pytest.raises(ValueError, match="1 <= r < 5"):
        low_rank.spaces(point(), r)
