"""The energy net against autograd, the schedule against published numbers, closed forms against sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.maths import annealing
from backend.models.energy_net import EnergyNet, Sinusoid


def test_the_schedule_is_the_published_one() -> None:
    found = annealing.cosine(10)
    np.testing.assert_allclose(
        found.abar, [0.972, 0.899, 0.787, 0.647, 0.494, 0.341, 0.203, 0.094, 0.024, 2e-5], atol=6e-4
    )
    np.testing.assert_allclose(
        found.sigma, [0.167, 0.318, 0.462, 0.594, 0.711, 0.812, 0.893, 0.952, 0.988, 1.0], atol=6e-4
    )
    np.testing.assert_allclose(
        found.step, [0.167, 0.237, 0.270, 0.298, 0.334, 0.382, 0.453, 0.564, 0.753, 0.999], atol=6e-4
    )


def test_the_gaussian_posterior_and_its_curvature_are_what_sampling_and_differences_give() -> None:
    abar, prior, noise = 0.6, 1.7, 0.5
    sigma = np.sqrt(1 - abar)
    dice = np.random.default_rng(0)
    y0 = dice.normal(0, np.sqrt(prior), 2_000_000)
    x, y_t = y0 + dice.normal(0, noise, y0.size), np.sqrt(abar) * y0 + dice.normal(0, sigma, y0.size)
    design = np.stack([x, y_t], 1)
    slopes, *_ = np.linalg.lstsq(design, y0)  # the posterior mean of Gaussians is linear
    variance = annealing.gaussian_variance(np.array(abar), np.array(prior), noise)
    assert np.mean((y0 - design @ slopes) ** 2) == pytest.approx(variance, rel=5e-3)
    curvature = (1 - np.sqrt(abar) * slopes[1]) / sigma  # d/dy_t of (y_t - sqrt(abar) E[y0 | x, y_t]) / sigma
    ideal = annealing.ideal_eigenvalue(np.array(abar), variance)
    assert curvature == pytest.approx(float(ideal), rel=5e-3)
    assert annealing.implied_mse(4 * ideal, 4, np.array(abar)) == pytest.approx(float(variance), rel=1e-12)
    assert annealing.ideal_eigenvalue(np.array(abar), np.array(0.0)) == pytest.approx(1 / sigma)


def drawn_net(seed: int = 0) -> tuple[EnergyNet, list[torch.Tensor]]:
    torch.manual_seed(seed)
    net = EnergyNet(3, 4, 6).double()
    dice = torch.Generator().manual_seed(seed)
    return net, [
        torch.randn(5, 3, generator=dice).double(),
        torch.randn(5, 4, generator=dice).double(),
        torch.tensor([0, 1, 4, 7, 9]),
    ]


def test_the_layered_hessian_is_autograds_and_its_output_part_has_no_negative_direction() -> None:
    net, (x, y, level) = drawn_net()
    parts = net.hessian(x, y, level)
    whole = sum(parts.values())
    for i in range(len(x)):
        one = lambda v, i=i: net(x[i : i + 1], v[None], level[i : i + 1])[0]  # noqa: E731
        torch.testing.assert_close(whole[i], torch.autograd.functional.hessian(one, y[i]), rtol=1e-10, atol=1e-12)
    assert torch.linalg.eigvalsh(parts["output"]).min() > -1e-12
    torch.testing.assert_close(whole, whole.mT)


def test_levels_are_embedded_as_in_the_official_code() -> None:
    """SinusoidalPosEmb(128): sin(k 10000^(-i / 63)) for i = 0 .. 63, then the cosines."""
    found = Sinusoid()(torch.tensor([0.0, 1.0, 3.0, 9.0], dtype=torch.float64))
    for row, k in zip(found, (0, 1, 3, 9), strict=True):
        angles = k * 10_000.0 ** (-np.arange(64) / 63)
        np.testing.assert_allclose(row, np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-6)


def test_the_gradient_is_that_of_the_energy_and_may_keep_its_graph() -> None:
    net, (x, y, level) = drawn_net(1)
    gradient, h = net.gradient(x, y, level), 1e-6
    for j in range(4):
        push = h * torch.eye(4).double()[j]
        with torch.no_grad():
            moved = (net(x, y + push, level) - net(x, y - push, level)) / (2 * h)
        torch.testing.assert_close(gradient[:, j], moved, rtol=1e-6, atol=1e-8)
    kept = net.gradient(x, y, level, create_graph=True)
    kept.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (net.fc1.weight, net.t_map_fc3.weight))


def test_sizes_and_names_are_the_official_ones() -> None:
    net = EnergyNet(400, 400, 512)
    assert sum(p.numel() for p in net.parameters()) == 1_437_840
    assert {n.rsplit(".", 1)[0] for n in net.state_dict()} == {
        "time_mlp.1",
        "time_mlp.3",
        "fc1",
        "fc2",
        "fc3",
        "fc4",
        "t_map_fc2",
        "t_map_fc3",
    }
