"""EXP-009: maps against derivatives that are known, units that do nothing, and the addition that was learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.analyses import _energy, _energy_maps, registry
from backend.analyses import exp009_circuit as code
from tests.energy_kit import problems, shipped_energy, tiny_energy
from tests.tiny_models import quiet

EXP = registry()["exp009_circuit"]


def test_the_map_is_that_of_autograds_hessians(tmp_path):
    model = tiny_energy(tmp_path, "float64", task="gauss", side=2)
    some = problems(model, 3)
    found, low = _energy_maps.implicit_maps(model, some, 2)
    y = model.schedule.abar[2] ** 0.5 * _energy.posterior_mean(some)
    for i in range(3):
        energy = lambda v, i=i: model.net(v[None, :4], v[None, 4:], model.level(2, 1))[0]  # noqa: E731
        whole = torch.func.hessian(energy)(torch.cat([some.x[i], y[i]]))
        torch.testing.assert_close(found[i], -torch.linalg.inv(whole[4:, 4:]) @ whole[4:, :4], rtol=1e-7, atol=1e-9)
        assert low[i] == pytest.approx(float(torch.linalg.eigvalsh(whole[4:, 4:])[0]))


@pytest.mark.parametrize("task", ["inverse", "addition", "gauss"])
def test_the_known_maps_are_derivatives_of_the_answers(tmp_path, task):
    some = problems(tiny_energy(tmp_path, "float64", task=task, side=3), 2)
    known, occurs = _energy_maps.known_maps(some), _energy_maps.symmetric(some)
    push = 1e-6 * (occurs @ torch.randn(some.x.shape[1], generator=torch.Generator().manual_seed(0)).double())

    def answer(x):
        from backend.maths.gaussian_task import NOISE, prior

        if task == "gauss":
            v = torch.tensor(prior(3))
            return x * v / (v + NOISE**2)
        return torch.linalg.inv(x.view(-1, 3, 3)).flatten(1) if task == "inverse" else x[:, :9] + x[:, 9:]

    slope = (answer(some.x + push) - answer(some.x - push)) / 2
    torch.testing.assert_close(slope, known @ push, rtol=1e-5, atol=1e-11)


def test_a_unit_that_is_not_read_has_no_effect_and_another_has_that_of_its_weights(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 4)
    with torch.no_grad():
        model.net.fc2.weight[:, 5] = 0
    energy, error = _energy_maps.ablated(model, some, 3, 4, 0)
    assert (energy[5] == 0).all() and (error[5] == 0).all() and (abs(error[[0, 7]]) > 0).all()
    before = _energy.squared_error(_energy.guess(model, some, 3), some)
    with torch.no_grad():
        model.net.fc2.weight[:, 7] = 0
    np.testing.assert_allclose(error[7], _energy.squared_error(_energy.guess(model, some, 3), some) - before, rtol=1e-9)


def test_effective_units_are_those_of_equal_effect():
    assert code.effective(np.array([2.0, -2.0, 2.0, 0.0])) == pytest.approx(3)
    dice = np.random.default_rng(0).normal(size=100_000)
    assert code.effective(dice) / 100_000 == pytest.approx(2 / np.pi, rel=0.01)


def test_addition_was_learnt_as_addition():
    model = shipped_energy("add-8")
    table = EXP.compute(model, problems(model, 4), EXP.params(ablated=2), quiet)
    mine = table[table.what == "problem"].groupby("level")[["error", "null_error", "linear_error"]].mean()
    assert mine.error.min() < 0.05 < 1.3 < mine.null_error.min() and mine.linear_error.max() < 1e-6
    rows = table[(table.what == "row") & (table.level == 0)]
    assert rows.cosine.mean() > 0.8 and abs(rows.cosine_null.mean()) < 0.1
    map_ = np.stack(rows.slopes.to_list())
    root = model.schedule.abar[0] ** 0.5
    assert np.diag(map_).mean() == pytest.approx(root, rel=0.03), "reference: .946 against .948 at level 1"
    np.testing.assert_allclose(table.groupby("level").share.sum(), 1, rtol=1e-5)
    assert {c.criterion[:9]: c.verdict for c in EXP.judge(table, None)}["the first"] == "holds"
