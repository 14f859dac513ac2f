"""Random matrices, tangent kernels, landscapes, matching, learning coefficients, implicit bias: closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from backend.maths import factorisation, landscape, learning_coefficient, matching, random_matrix, tangent_kernel
from backend.maths.matching import Group


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- random matrices


def test_noise_fills_the_marchenko_pastur_bulk_and_a_spike_stands_out() -> None:
    n, m, variance = 400, 160, 0.3
    noise = np.random.default_rng(0).normal(0, variance**0.5, (n, m))
    squared = np.linalg.svd(noise, compute_uv=False) ** 2 / n
    low, high = random_matrix.edges(n, m, variance)
    assert low * 0.9 < squared.min() and squared.max() < high * 1.05
    grid = np.linspace(0, high * 1.2, 4000)
    assert np.trapezoid(random_matrix.density(grid, n, m, variance), grid) == pytest.approx(1, abs=1e-3)
    share = np.trapezoid(np.where(grid < 0.3, random_matrix.density(grid, n, m, variance), 0), grid)
    assert (squared < 0.3).mean() == pytest.approx(share, abs=0.03)
    assert random_matrix.noise_variance(squared, n, m) == pytest.approx(variance, rel=0.03)
    spiked = noise + 40 * np.outer(np.eye(n)[0], np.eye(m)[0])
    with_spike = np.linalg.svd(spiked, compute_uv=False) ** 2 / n
    assert (with_spike > high * 1.1).sum() == 1
    assert random_matrix.noise_variance(with_spike, n, m) == pytest.approx(variance, rel=0.03)


def test_a_power_law_is_recovered_and_its_start_found() -> None:
    drawn = np.random.default_rng(1)
    tail = (1 - drawn.random(600)) ** (-1 / 1.5)  # exponent 2.5 from 1 on
    found = random_matrix.power_tail(np.concatenate([tail, drawn.uniform(0, 1, 300)]))
    assert found.exponent == pytest.approx(2.5, abs=3 * found.error) and found.error < 0.1
    assert 0.8 < found.start < 1.6 and found.distance < 0.05
    with pytest.raises(ValueError, match="3 positive"):
        random_matrix.power_tail(np.array([1.0, 2.0, 0.0, 3.0]))


def test_effective_rank_counts_equal_values() -> None:
    assert random_matrix.effective_rank(np.array([2.0] * 7 + [0.0] * 5)) == pytest.approx(7)
    assert math.isnan(random_matrix.effective_rank(np.zeros(3)))


# ---------------------------------------------------------------- tangent kernels


def test_the_kernel_of_a_linear_model_is_exact() -> None:
    x = torch.randn(6, 3, generator=dice(), dtype=torch.float64)
    weight, bias = (torch.randn(s, generator=dice(1), dtype=torch.float64, requires_grad=True) for s in (3, 1))
    rows = tangent_kernel.jacobian(x @ weight + bias, [weight, bias])
    torch.testing.assert_close(tangent_kernel.kernel(rows), x @ x.T + 1)


def test_a_wide_net_comes_near_the_arc_cosine_kernel_as_one_over_root_width() -> None:
    x = torch.randn(8, 5, generator=dice(), dtype=torch.float64)
    ideal = torch.tensor(tangent_kernel.arc_cosine(x.numpy()))

    def error(width: int) -> float:
        w, a = (
            torch.randn(s, generator=dice(2), dtype=torch.float64, requires_grad=True) for s in ((5, width), (width,))
        )
        rows = tangent_kernel.jacobian((2 / width) ** 0.5 * (x @ w).relu() @ a, [w, a])
        return tangent_kernel.drift(tangent_kernel.kernel(rows), ideal)

    narrow, wide = error(64), error(16384)
    assert wide < 0.03 and -0.75 < math.log(wide / narrow) / math.log(256) < -0.25


def test_alignment_and_effective_rank() -> None:
    k = torch.diag(torch.tensor([1.0, 1, 1, 1, 0]).double())
    assert tangent_kernel.effective_rank(k) == pytest.approx(4)
    target = torch.tensor([1.0, 1, -1, -1]).double()
    outer = torch.outer(target, target)
    assert tangent_kernel.alignment(3 * outer + 7, outer) == pytest.approx(1)  # a constant and a scale do not matter
    assert math.isnan(tangent_kernel.alignment(torch.ones(4, 4).double(), outer))


# ---------------------------------------------------------------- landscapes


def net(seed: int, width: int = 8) -> dict[str, torch.Tensor]:
    drawn = [torch.randn(*s, generator=dice(seed), dtype=torch.float64) for s in ((width, 2), (width,), (1, width))]
    return dict(zip(("w1", "b1", "w2"), drawn, strict=True))


X = torch.randn(64, 2, generator=dice(9), dtype=torch.float64)
UNITS = Group((("w1", 0), ("b1", 0), ("w2", 1)))


def output(at: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.tanh(X @ at["w1"].T + at["b1"]) @ at["w2"].T


def loss_to(target: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    return lambda at: (output(at) - target).square().mean()


def test_a_direction_has_the_models_own_norms_row_by_row() -> None:
    at = net(0)
    found = landscape.direction(at, dice(1))
    for name in ("w1", "w2"):
        torch.testing.assert_close(found[name].norm(dim=1), at[name].norm(dim=1))
    assert (found["b1"] == 0).all()
    there = landscape.moved(at, [found, at], [0.5, -1.0])
    torch.testing.assert_close(there["w1"], 0.5 * found["w1"])


def test_a_permuted_copy_has_a_barrier_until_it_is_matched() -> None:
    first = net(3)
    order = np.random.default_rng(0).permutation(8)
    second = matching.permuted(first, UNITS, order)
    torch.testing.assert_close(output(second), output(first))
    loss, times = loss_to(output(first)), np.linspace(0, 1, 11)
    apart = landscape.barrier(times, [float(loss(landscape.between(first, second, t))) for t in times])
    back, orders = matching.matched(first, second, [UNITS])
    after = landscape.barrier(times, [float(loss(landscape.between(first, back, t))) for t in times])
    assert apart > 0.05 and after < 1e-12
    np.testing.assert_array_equal(order[orders[0]], np.arange(8))


def test_orders_found_in_several_rounds_add_up() -> None:
    """Two layers that meet in one matrix: whatever the rounds, the orders say how `second` was rearranged."""
    layers = (Group((("w1", 0), ("w2", 1))), Group((("w2", 0), ("w3", 1))))
    shapes = {"w1": (12, 3), "w2": (12, 12), "w3": (2, 12)}
    first, second = ({k: torch.randn(*s, generator=dice(100 * i + j)) for j, (k, s) in enumerate(shapes.items())}
                     for i in (1, 2))  # fmt: skip
    _, once = matching.matched(first, second, layers, most=1)
    back, orders = matching.matched(first, second, layers)
    assert all((a != b).any() for a, b in zip(once, orders, strict=True)), "one round is not enough here"
    mine = matching.permuted(matching.permuted(second, layers[0], orders[0]), layers[1], orders[1])
    assert all(torch.equal(mine[name], back[name]) for name in shapes)


def test_a_bent_path_goes_round_a_barrier_and_the_barrier_is_over_the_line() -> None:
    assert landscape.barrier([0, 0.5, 1], [1, 3.5, 2]) == pytest.approx(2)
    assert landscape.barrier([0, 0.5, 1], [1, 0.5, 2]) == 0
    ring = lambda at: (at["w"].square().sum() - 1).square()  # noqa: E731
    ends = [{"w": torch.tensor(v).double()} for v in ([1.0, 0.0], [-1.0, 0.1])]
    bend = landscape.bent(ring, *ends, steps=300, lr=0.05, dice=dice(4))
    times = np.linspace(0, 1, 21)
    straight, round_ = (
        [float(ring(p)) for p in path]
        for path in (
            [landscape.between(*ends, t) for t in times],
            [landscape.bezier(ends[0], bend, ends[1], t) for t in times],
        )
    )
    assert landscape.barrier(times, straight) > 0.9 and landscape.barrier(times, round_) < 0.2


# ---------------------------------------------------------------- learning coefficients


@pytest.mark.parametrize(("loss", "dims", "expected"), [
    (lambda w: w.square().sum(1) / 2, 10, 5.0),
    (lambda w: w.pow(4).sum(1), 1, 0.25),
    (lambda w: w[:, 0].square() * w[:, 1].square(), 2, 0.38),  # 1/2, shifted by multiplicity 2 at this n
])  # fmt: skip
def test_coefficients_of_known_singularities(loss: Callable, dims: int, expected: float) -> None:
    found = learning_coefficient.estimate(loss, torch.zeros(dims).double(), 10_000, chains=100, draws=400)
    assert found.value == pytest.approx(expected, rel=0.12) and found.error < 0.1 * expected
    assert found.trouble == "" and 0.4 < found.acceptance < 0.8 and found.losses.shape == (100, 400)


@pytest.mark.parametrize(("curved", "gamma"), [
    (torch.logspace(-3, 1, 2000).double(), 500.0), (torch.ones(10).double(), 145.0),
])  # fmt: skip
def test_a_localiser_takes_its_part_in_many_dimensions_and_still_mixes(curved: torch.Tensor, gamma: float) -> None:
    """Half the sum of n beta h / (n beta h + gamma) for curvatures h, 300 steps in 2000 dimensions."""
    start, n = torch.zeros_like(curved), 1000
    heat = n / math.log(n)
    found = learning_coefficient.estimate(lambda w: (curved * w.square()).sum(1) / 2, start, n, 12, 200, 100, gamma)
    expected = float((heat * curved / (heat * curved + gamma)).sum() / 2)
    assert found.trouble == "" and found.value == pytest.approx(expected, rel=0.04)


def test_the_interval_is_students() -> None:
    """Quantiles of tables: 2.7764 at 97.5 % and 2.1318 at 95 % for 5 chains."""
    found = learning_coefficient.Coefficient(3.0, 0.5, 0.6, 1.0, 0.1, torch.zeros(5, 9), "")
    assert found.interval() == pytest.approx((3 - 0.5 * 2.7764, 3 + 0.5 * 2.7764), abs=1e-4)
    assert found.interval(0.9) == pytest.approx((3 - 0.5 * 2.1318, 3 + 0.5 * 2.1318), abs=1e-4)


def test_what_is_no_minimum_or_has_not_mixed_is_not_believed() -> None:
    slope = learning_coefficient.estimate(lambda w: w.sum(1), torch.zeros(1).double(), 1000, chains=4, draws=50)
    assert "no minimum" in slope.trouble
    apart = torch.arange(4.0)[:, None] + 0.01 * torch.randn(4, 100, generator=dice())
    assert learning_coefficient.r_hat(apart) > 5
    assert learning_coefficient.r_hat(torch.randn(4, 4000, generator=dice())) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("value", "acceptance", "mixed", "widest", "trouble"), [
    (1.0, 0.6, 1.1, False, ""), (1.0, 0.6, 1.21, False, "not mixed: R-hat 1.21"),
    (1.0, 0.6, math.nan, False, "not mixed"),
    (1.0, 0.29, 1.0, False, "acceptance 0.29"), (1.0, 0.29, 1.0, True, "acceptance 0.29"),
    (1.0, 0.995, 1.0, False, "acceptance 0.9"), (1.0, 0.995, 1.0, True, ""),
    (-0.1, 0.6, 1.0, False, "negative"), (math.inf, 0.6, 1.0, False, "the chains left"),
])  # fmt: skip
def test_what_is_refused_and_why(value: float, acceptance: float, mixed: float, widest: bool, trouble: str) -> None:
    found = learning_coefficient._trouble(value, acceptance, mixed, widest)
    assert found.startswith(trouble) and bool(found) == bool(trouble)


def test_chains_that_lie_apart_are_refused_by_their_own_losses() -> None:
    apart = 1 + torch.arange(4.0)[:, None] + 0.01 * torch.randn(4, 100, generator=dice())
    assert learning_coefficient._told(apart, 0.6, 1.0, 0.1, False).trouble.startswith("not mixed: R-hat")
    mixed = 1 + 0.1 * torch.randn(4, 1000, generator=dice())
    assert learning_coefficient._told(mixed, 0.6, 1.0, 0.1, False).trouble == ""


def test_a_slopes_interval_holds_both_neighbours_errors_at_students_quantile() -> None:
    """Relative errors .3 and .4 add up to .5 in ln lambda; 2.7764 at 97.5 % for 5 chains, over an ln gamma of 2."""
    one, two = learning_coefficient.slopes(np.exp([0.0, 2.0, 4.0]), np.exp([3.0, 1.0, 1.0]),
                                           np.exp([3.0, 1.0, 1.0]) * [0.3, 0.4, 0.0], 5)  # fmt: skip
    assert one == pytest.approx((-1, -1 - 0.25 * 2.7764, -1 + 0.25 * 2.7764), abs=1e-4)
    assert two == pytest.approx((0, -0.2 * 2.7764, 0.2 * 2.7764), abs=1e-4)


# ---------------------------------------------------------------- implicit bias


def test_a_fit_starts_from_the_seed_that_is_asked() -> None:
    target = torch.eye(3, dtype=torch.float64)
    a, again, b = (factorisation.complete(target, target > 0, 2, 0.1, 1, 0.01, seed).product for seed in (3, 3, 4))
    assert torch.equal(a, again) and (a - b).norm() > 1e-3


def test_depth_finds_the_low_rank_matrix_as_published_and_a_large_start_or_depth_one_does_not() -> None:
    """The reference's table: 20 x 20 of rank 2, half shown: rank 11.8, 1.98, 1.94, 9-11; off by 1, .006, .000, > .8.

    Here, two matrices: 12, 2.2, 1.98 (their own rank), 9-11; off by 1.00, .07, .000, .7 after 700 steps.
    """
    n, r = 20, 2
    u, v = (torch.randn(2, n, r, generator=dice(), dtype=torch.float64) for _ in range(2))
    target, shown = u @ v.mT / r**0.5, torch.rand(2, n, n, generator=dice(2)) < 0.5
    flat_, two, three, large = (
        factorisation.complete(target, shown, depth, size, 700, 0.1)
        for depth, size in ((1, 1e-3), (2, 1e-3), (3, 1e-3), (2, 1.0))
    )
    ranks = [[random_matrix.effective_rank(s) for s in fit.singular[-1].numpy()] for fit in (flat_, two, three, large)]
    own = [random_matrix.effective_rank(s) for s in torch.linalg.svdvals(target).numpy()]
    assert flat_.hidden_error[-1].min() > 0.99 and flat_.shown_error[-1].max() < 0.05 and min(ranks[0]) > 9
    assert two.hidden_error[-1].max() < 0.15 and max(ranks[1]) < 1.15 * max(own)
    assert three.hidden_error[-1].max() < 0.005 and ranks[2] == pytest.approx(own, rel=0.01)
    assert large.hidden_error[-1].min() > 0.5 and min(ranks[3]) > 8
    assert two.steps[0] == 0 and two.steps[-1] == 700 and two.singular.shape == (len(two.steps), 2, n)
