"""Inference with the ideal energy gives the posterior mean; steps that raise the energy are not kept; tasks hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.maths import annealed_inference as inference
from backend.maths import annealing
from backend.runs import energy_tasks as tasks
from backend.subjects import TASKS, entries

SCHEDULE = annealing.cosine(10)


class Ideal:
    """The energy of the Gaussian task with everything known: its gradient is (y - sqrt(abar) E[y0 | x, y]) / sigma."""

    def __init__(self, side: int):
        self.prior = torch.tensor(tasks.prior(side))

    def gradient(self, x: torch.Tensor, y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        abar = torch.tensor(SCHEDULE.abar)[level][:, None]
        variance = 1 / (1 / self.prior + 1 / tasks.NOISE**2 + abar / (1 - abar))
        mean = variance * (x / tasks.NOISE**2 + abar.sqrt() / (1 - abar) * y)
        return (y - abar.sqrt() * mean) / (1 - abar).sqrt()

    def __call__(self, x: torch.Tensor, y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros_like(y)  # the energy of a linear gradient a y + b, up to what does not depend on y
        at, rise = self.gradient(x, zero, level), self.gradient(x, y, level)
        return ((rise + at) / 2 * y).sum(1)


def gauss(n: int = 400) -> tasks.Drawn:
    drawn = tasks.draw("gauss", 2, n, torch.Generator().manual_seed(0))
    return tasks.Drawn(drawn.x.double(), drawn.y.double(), drawn.side)


@pytest.mark.parametrize("inner", [0, 5])
def test_the_ideal_energy_gives_the_posterior_mean(inner: int) -> None:
    some = gauss()
    start = torch.randn(some.y.shape, generator=torch.Generator().manual_seed(1)).double()
    found = inference.infer(Ideal(2), some.x, start, SCHEDULE, inner)
    ideal = Ideal(2)
    mean = some.x / (1 + tasks.NOISE**2 / ideal.prior)
    inside = (mean.abs() < 1.5).all(1)
    error = (found.solutions[0] - mean)[inside].square().mean()
    assert inside.float().mean() > 0.8 and float(error) < 2e-4
    bayes = float((1 / (1 / ideal.prior + 1 / tasks.NOISE**2)).mean())
    assert float((found.solutions[0] - some.y).square().mean()) == pytest.approx(bayes, rel=0.1)
    # at the bottom of the bowl rounding decides, so not every step is kept
    assert ((found.accepted > 0.3) & (found.accepted <= 1)).all() if inner else found.accepted.isnan().all()


def test_a_step_that_raises_the_energy_is_not_kept() -> None:
    class Wrong(Ideal):
        def gradient(self, x: torch.Tensor, y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return torch.full_like(y, -1e-3)  # small: no jump reaches the cut, where nothing moves

        def __call__(self, x: torch.Tensor, y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return y.sum(1)

    some = gauss(5)
    found = inference.infer(Wrong(2), some.x, torch.zeros_like(some.y), SCHEDULE, 3)
    assert (found.accepted == 0).all() and found.solutions.abs().max() < 1


@pytest.mark.parametrize("inner", [0, 3])
def test_no_answer_leaves_the_cut_at_any_level(inner: int) -> None:
    """An energy that falls outwards for ever: jumps and steps both end at +-2 in units of the solution."""

    class Outwards(Ideal):
        def gradient(self, x: torch.Tensor, y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return torch.full_like(y, -1e3)

        def __call__(self, x: torch.Tensor, y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return -1e3 * y.sum(1)

    some, model = gauss(4), Outwards(2)
    torch.testing.assert_close(inference.infer(model, some.x, some.y, SCHEDULE, inner).solutions,
                               torch.full((10, 4, 4), 2.0).double())  # fmt: skip
    guessed = inference.guess(model, some.x, some.y, torch.zeros(4, dtype=torch.long), SCHEDULE, 0)
    assert (guessed == inference.CUT).all()


def test_the_implied_error_of_the_ideal_curvature_is_the_true_one() -> None:
    some, ideal = gauss(4000), Ideal(2)
    dice = torch.Generator().manual_seed(3)
    for k in (0, 3, 6):
        y_t = inference.noised(some.y, torch.randn(some.y.shape, generator=dice).double(), SCHEDULE, k)
        level = torch.full((len(y_t),), k)
        guessed = (y_t - float(SCHEDULE.sigma[k]) * ideal.gradient(some.x, y_t, level)) / SCHEDULE.abar[k] ** 0.5
        true = float((guessed - some.y).square().mean())
        trace = annealing.ideal_eigenvalue(
            SCHEDULE.abar[k], annealing.gaussian_variance(SCHEDULE.abar[k], tasks.prior(2), tasks.NOISE)
        ).sum()
        assert true == pytest.approx(float(annealing.implied_mse(trace, 4, SCHEDULE.abar[k])), rel=0.05)


@pytest.mark.parametrize("task", TASKS)
def test_problems_are_what_they_say(task: tasks.Task) -> None:
    side, n = 3, 50
    drawn = tasks.draw(task, side, n, torch.Generator().manual_seed(0), rank=1)
    again = tasks.draw(task, side, n, torch.Generator().manual_seed(0), rank=1)
    assert torch.equal(drawn.y, again.y) and (drawn.x.shape[1], drawn.y.shape[1]) == entries(task, side)
    x, y = drawn.x.reshape(n, -1, side, side), drawn.y.reshape(n, side, side)
    if task == "inverse":
        torch.testing.assert_close(x[:, 0] @ y, torch.eye(side).expand(n, -1, -1), atol=1e-4, rtol=0)
    elif task == "addition":
        torch.testing.assert_close(x.sum(1), y)
    elif task == "completion":
        assert ((x[:, 0] == y) | (x[:, 0] == 0)).all() and 0.3 < float((x[:, 0] == 0).float().mean()) < 0.7
    elif task == "gauss":
        assert float((drawn.x - drawn.y).std()) == pytest.approx(tasks.NOISE, rel=0.1)
    else:
        s = torch.linalg.svdvals(y)
        assert (s[:, 1] < 1e-5 * s[:, 0]).all()


def test_harder_problems_are_harder() -> None:
    dice = torch.Generator().manual_seed(0)
    easy, hard = (tasks.draw("inverse", 4, 400, dice, harder=h) for h in (False, True))
    assert hard.y.std() > 1.5 * easy.y.std()
    np.testing.assert_allclose(tasks.draw("addition", 4, 4000, dice, harder=True).x.abs().max(), 2.5, rtol=1e-2)


def test_the_official_completion_is_as_hard_as_published() -> None:
    """At 20 x 20 and rank 10, copying what is shown is off by half of the entries' variance: .0175, harder .205."""
    for harder, want in ((False, 0.0175), (True, 0.205)):
        drawn = tasks.draw("completion", 20, 2000, torch.Generator().manual_seed(0), 10, harder)
        assert float((drawn.x - drawn.y).square().mean()) == pytest.approx(want, rel=0.02)
