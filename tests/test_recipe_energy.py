"""The energy recipe: its loss by hand, a short training that beats doing nothing, the same bits after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backend.errors import Cancelled
from backend.maths import annealing
from backend.runs import layout
from backend.runs.recipes import energy as recipe
from backend.runs.recipes import registry
from backend.runs.train import train

SMALL = {"task": "gauss", "side": 2, "width": 32, "steps": 300, "batch_size": 64, "log_every": 50, "monitor_every": 100,
         "n_checkpoints": 4, "device": "cpu"}  # fmt: skip


def silent(fraction: float, words: str) -> None: ...


def lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / layout.METRICS).read_text().splitlines()]
    return [row["values"] for row in rows if "values" in row]


def test_the_loss_is_the_error_of_the_gradient_and_the_contrastive_term_tells_energies_apart() -> None:
    params = recipe.EnergyParams(**{**SMALL, "contrastive": 0.7})
    net, levels = recipe.build(params).double(), annealing.cosine(10)
    some = recipe.problems(params, 6, torch.Generator().manual_seed(0))
    given = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    plain = recipe.objective(recipe.EnergyParams(**SMALL), net, levels, some, given())
    dice = given()
    level, noise = torch.randint(10, (6,), generator=dice), torch.randn(6, 4, generator=dice).double()
    errors = []
    for i in range(6):
        y = (levels.abar[level[i]] ** 0.5 * some.y[i].double() + levels.sigma[level[i]] * noise[i]).requires_grad_()
        (net(some.x[i : i + 1].double(), y[None], level[i : i + 1])).sum().backward()
        errors.append((y.grad - noise[i]).square().mean())
    torch.testing.assert_close(plain.detach(), torch.stack(errors).mean(), rtol=1e-6, atol=1e-9)
    assert recipe.objective(params, net, levels, some, given()) > plain


def test_negatives_are_cut_and_rates_warm_up_and_fall() -> None:
    params = recipe.EnergyParams(**SMALL)
    some = recipe.problems(params, 50, torch.Generator().manual_seed(0))
    wrong = recipe.negatives(recipe.build(params), annealing.cosine(10), some.x, some.y, torch.full((50,), 9),
                             torch.Generator().manual_seed(1))  # fmt: skip
    assert float(wrong.abs().max()) == 2 and (wrong - some.y).square().mean() > 1
    assert recipe.rate(0, 100) == pytest.approx(0.2) and recipe.rate(4, 100) == 1 == recipe.rate(5, 100)
    assert recipe.rate(100, 100) == pytest.approx(0)


def test_a_short_training_learns_and_trivial_answers_are_right(tmp_path: Path) -> None:
    train("energy", SMALL, tmp_path / "run", False, silent)
    told = [line for line in lines(tmp_path / "run") if "mse" in line]
    first, last = told[0], told[-1]
    assert last["mse"] < 0.5 * min(first["mse"], last["mse_zero"]) and last["loss"] < 0.7 * first["loss"]
    info = json.loads((tmp_path / "run" / layout.RUN).read_text())
    assert info["model"] == {"kind": "energy", "config": {"task": "gauss", "side": 2, "rank": 1, "d_x": 4, "d_y": 4,
                                                          "width": 32, "levels": 10}}  # fmt: skip
    # the best linear map of a Gaussian is its posterior mean: 1 / (1 / v + 1 / noise^2), mean over entries
    from backend.maths.gaussian_task import NOISE, prior

    bayes = (1 / (1 / prior(2) + 1 / NOISE**2)).mean()
    assert last["mse_linear"] == pytest.approx(bayes, rel=0.1) and last["mse_zero"] == pytest.approx(
        prior(2).mean(), rel=0.1
    )


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    def stops(fraction: float, words: str) -> None:
        if fraction >= 0.5:
            raise Cancelled("The run", "stopped", "Resume it")

    params = {**SMALL, "steps": 20, "log_every": 5, "monitor_every": 10}
    train("energy", params, tmp_path / "whole", False, silent)
    with pytest.raises(Cancelled):
        train("energy", params, tmp_path / "cut", False, stops)
    train("energy", params, tmp_path / "cut", True, silent)
    one, two = (layout.file_of(tmp_path / n, layout.CHECKPOINTS, 20).read_bytes() for n in ("whole", "cut"))
    assert one == two


def test_presets_are_allowed() -> None:
    declared = registry()["energy"]
    assert [declared.params(**run) for preset in declared.presets for run in preset.runs]
