"""EXP-009: maps against derivatives that are known, units that do nothing, and the addition that was learnt."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _energy, _energy_maps, _film, registry
from backend.analyses import exp009_circuit as code
from backend.contract import Problems
from backend.maths import participation, ranks
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
    before_7 = model.net.fc2.weight[:, 7].clone()
    with torch.no_grad():
        model.net.fc2.weight[:, 7] = 0
        gone = model.net(some.x, _energy.noised(model, some, 3), model.level(3, 4)).numpy()
        model.net.fc2.weight[:, 7] = before_7
        was = model.net(some.x, _energy.noised(model, some, 3), model.level(3, 4)).numpy()
        model.net.fc2.weight[:, 7] = 0
    np.testing.assert_allclose(energy[7], gone - was, rtol=1e-9)
    np.testing.assert_allclose(error[7], _energy.squared_error(_energy.guess(model, some, 3), some) - before, rtol=1e-9)


def test_a_modulation_that_is_not_there_has_no_effect_and_the_identity_is_the_net_without_it(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 4)
    found = _film.ablated(model, some, 3, 0)
    assert all(abs(f[n]).min() > 0 for f in found for n in ("d_energy", "d_mse", "d_energy_null", "d_mse_null"))
    before = _energy.squared_error(_energy.guess(model, some, 3), some)
    with torch.no_grad():
        model.net.t_map_fc3.weight.zero_()
        constant = _film.ablated(model, some, 3, 0)[_film.PARTS.index("fc3: mean over levels")]
        np.testing.assert_allclose([constant["d_mse"], constant["d_energy"]], 0, atol=1e-12, err_msg="no level in it")
        model.net.t_map_fc3.bias.zero_()
    gone = _energy.squared_error(_energy.guess(model, some, 3), some) - before
    np.testing.assert_allclose(found[_film.PARTS.index("fc3: identity")]["d_mse"], gone, rtol=1e-9)
    for name, values in {n: v for f in _film.ablated(model, some, 3, 0)[2:] for n, v in f.items()}.items():
        assert (values == 0).all(), name
    own, instead = torch.zeros(6), torch.tensor([3.0, 4.0, 0, 0, 0, 0])
    chance = _film.moved(own, instead, 50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(chance.norm(dim=1), torch.full((50,), 5.0))
    assert (chance[0] - chance[1]).norm() > 1
    chance = _film.moved(instead, own, 50, torch.Generator().manual_seed(0))
    torch.testing.assert_close((chance - instead).norm(dim=1), torch.full((50,), 5.0), msg="from where it was")


def test_the_mean_over_levels_is_over_all_and_a_rise_is_what_is_gained(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 3)
    y, films = _energy.noised(model, some, 4), [model.net.film(model.level(k, 3)) for k in range(10)]
    found = _film.ablated(model, some, 4, 0)
    for at, part in enumerate(("fc2: mean over levels", "fc3: mean over levels")):
        mean = tuple(sum(f[at][i] for f in films) / 10 for i in range(2))
        instead = tuple(mean if i == at else films[4][i] for i in range(2))
        with torch.no_grad():
            after, before = (model.net.run(some.x, y, model.level(4, 3), None, f).output.square().sum(1)
                             for f in (instead, films[4]))  # fmt: skip
        assert abs(after - before).min() > 1e-6
        np.testing.assert_allclose(found[_film.PARTS.index(part)]["d_energy"], after - before, rtol=1e-6)


def test_standard_errors_and_intervals_are_students():
    np.testing.assert_allclose(code._se(np.array([[1.0, 0], [2, 0], [3, 0], [4, 8]])), [(5 / 12) ** 0.5, 2])
    assert np.isnan(code._se(np.ones((1, 2)))).all()
    assert ranks.half_widths(2) == pytest.approx(12.706, rel=1e-4) and ranks.half_widths(10**6, 2) == pytest.approx(
        2.2414, rel=1e-4)  # fmt: skip
    assert ranks.half_widths(3, 10) > ranks.half_widths(3, 2) > ranks.half_widths(3) and np.isnan(ranks.half_widths(1))


def test_every_problem_costs_its_films(tmp_path):
    card, params = tiny_energy(tmp_path).card, EXP.params(ablated=2)
    rows = [sum(c.n * c.rows for c in EXP.work(card, Problems(n=n), params).calls if c.gradients) for n in (5, 6)]
    assert rows[1] - rows[0] == 10 * (1 + 2 * 4), "ten levels; as it is, two layers twice, and each at random"


def test_film_is_needed_only_beyond_zero_and_beyond_a_random_move():
    def verdict(d, se=0.01, null=0.0, n=500, smooth=0.0, other=0.0):
        rows = [{"level": k, "what": "film", "index": i, "d_energy": 0.0, "d_mse": d if i == 2 else other,
                 "d_mse_se": se, "d_mse_null": null, "d_mse_null_se": se, "problems": n}
                for k, d in enumerate((d, smooth)) for i in range(4)]  # fmt: skip
        return code._film_claim(pd.DataFrame(rows)).verdict

    assert verdict(0.1) == "holds" and verdict(0.1, null=0.09) == verdict(0.1, null=0.3) == "met by its null"
    rows = [{"level": 0, "what": "film", "index": i, "d_energy": 0.0, "d_mse": d, "d_mse_se": 0.001, "d_mse_null": null,
             "d_mse_null_se": 0.001, "problems": 500} for i, d, null in ((0, 0.14, 0.17), (2, 0.07, 0.03))]  # fmt: skip
    claim = code._film_claim(pd.DataFrame(rows))
    assert claim.verdict == "holds" and "fc3" in claim.value, "the larger one is below its null"
    assert verdict(0.1, smooth=-1.0) == "holds" and verdict(-0.1, smooth=1.0, other=-0.2) == "fails", "of level 0"
    told = verdict(0.1, n=2), verdict(0.2, n=2), verdict(0.02), verdict(0.0)
    assert set(told) == {"cannot be tested here"}, "an interval that reaches 0; of two problems 25 standard errors"
    assert verdict(0.0, se=0.0) == "fails" and verdict(0.1, se=float("nan")) == "cannot be tested here"


def test_effective_units_are_those_of_equal_effect_and_noise_in_the_others_is_allowed_for():
    assert participation.effective(np.array([2.0, -2.0, 2.0, 0.0])) == pytest.approx(3)
    assert participation.effective(np.zeros(3)) == 0
    dice = np.random.default_rng(0)
    assert participation.effective(dice.normal(size=100_000)) / 100_000 == pytest.approx(2 / np.pi, rel=0.01)
    few, equal = np.r_[np.ones(10), np.zeros(290)], np.ones(300)
    assert participation.effective_range(np.tile(few, (12, 1)), 50, 0) == pytest.approx((10, 10))
    assert np.isnan(participation.effective_range(np.tile(few, (3, 1)), 50, 0)).all()
    inside = 0
    for at, (truth, noise, n) in enumerate([(few, 1.0, 12), (few, 0.2, 64), (equal, 0.5, 12)] * 7):
        low, high = participation.effective_range(truth + noise * dice.normal(size=(n, 300)), 100, at)
        inside += low <= participation.effective(truth) <= high
    assert inside >= 19, "of 21"


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


@pytest.mark.parametrize("task", ["inverse", "gauss"])
def test_the_null_is_the_map_of_another_problem_or_turned_rows(tmp_path, task):
    """Another problem's where each has its own map; where all share one, the reading of another entry."""
    model = tiny_energy(tmp_path, "float64", task=task, side=2)
    some = problems(model, 3)
    told = pd.DataFrame(code._maps(model, some, 2, torch.zeros(4, 4).double())).query("what == 'problem'")
    occurs, root = _energy_maps.symmetric(some), float(model.schedule.abar[2]) ** 0.5
    truth = root * _energy_maps.known_maps(some) @ occurs
    found = _energy_maps.implicit_maps(model, some, 2)[0] @ occurs
    for i, row in told.iterrows():
        other = truth[i - 1] if task == "inverse" else truth[i][[3, 0, 1, 2]]
        assert (other - truth[i]).norm() > 0.1 * truth[i].norm()
        assert row.null_error == pytest.approx(float((found[i] - other).norm() / truth[i].norm()))
        assert row.error == pytest.approx(float((found[i] - truth[i]).norm() / truth[i].norm()))
        assert row.linear_error == pytest.approx(1), "a map of zeros"


def test_the_first_layer_of_shares_is_gauss_newtons(tmp_path):
    """E = |out|^2 has the Hessian 2 J'J + ..., J = d out / d y: the part that needs no layer's bend."""
    model = tiny_energy(tmp_path, "float64", task="gauss", side=2)
    some, y = problems(model, 3), _energy.noised(model, problems(model, 3), 4)
    told = pd.DataFrame(code._shares(model, some, 4)).set_index("index").share
    shares = []
    for i in range(3):
        out = lambda v, i=i: model.net.run(some.x[i : i + 1], v[None], model.level(4, 1)).output[0]  # noqa: E731
        jacobian = torch.func.jacrev(out)(y[i])
        whole = torch.func.hessian(lambda v, out=out: out(v).square().sum())(y[i])
        shares.append(2 * float(jacobian.square().sum() / whole.trace()))
    assert told[code.BENDS.index("output")] == told[0] == pytest.approx(np.mean(shares))
    parts = _energy.layered_hessian(model.net, some.x, y, model.level(4, 3))
    trace = {name: part.diagonal(dim1=1, dim2=2).sum(1) for name, part in parts.items()}
    for i, name in enumerate(("output", "fc1", "fc2", "fc3")):  # as the axis says
        assert told[i] == pytest.approx(float((trace[name] / sum(trace.values())).mean())), name


def verdict_of_map(error, linear, n=4, levels=2):
    at = {"what": "problem", "null_error": 1.3}
    spread = np.linspace(-0.001, 0.001, n) if n > 1 else np.zeros(1)
    rows = [{"level": k, "index": i, **at, "error": error + s + 0.2 * k, "linear_error": linear}
            for k in range(levels) for i, s in enumerate(spread)]  # fmt: skip
    return code._map_claim(pd.DataFrame(rows)).verdict


@pytest.mark.parametrize("n", [4, 12])
def test_a_map_that_is_far_off_fails_whatever_the_linear_one_does(n):
    assert verdict_of_map(0.02, 0.9, 1) == verdict_of_map(0.9, 0.95, 1) == "cannot be tested here", "no interval"
    assert verdict_of_map(0.05, 0.9, n) == "cannot be tested here"
    assert verdict_of_map(0.048, 0.9, 4) == "holds" and verdict_of_map(0.048, 0.9, 4, 10) == "cannot be tested here"
    assert verdict_of_map(0.02, 0.9, n) == "holds" and verdict_of_map(0.02, 0.03, n) == "holds"
    assert verdict_of_map(0.02, 0.01, n) == verdict_of_map(0.013, 0.01, n) == "met by its null"
    assert verdict_of_map(0.9, 0.01, n) == verdict_of_map(0.9, 0.95, n) == verdict_of_map(0.06, 0.95, n) == "fails"
    assert verdict_of_map(0.02, 0.02, 4) == "met by its null", "not clearly better"


def test_few_units_are_under_a_tenth_with_their_interval():
    def verdict(low, high, n=30, smooth=(0.0, 0.0)):
        rows = [{"level": k, "what": code.HIDDEN[i % 3]} for k in (0, 1) for i in range(n)]
        ends = enumerate(((low, high), smooth))
        rows += [{"level": k, "what": "units", "count": (a + b) / 2, "count_low": a, "count_high": b}
                 for k, (a, b) in ends]  # fmt: skip
        return code._unit_claim(pd.DataFrame(rows)).verdict

    assert verdict(1, 2.9) == "holds" and verdict(3, 4) == verdict(15, 15) == "fails"
    assert verdict(1, 3.1) == verdict(1, 20) == verdict(float("nan"), float("nan")) == "cannot be tested here"
    assert verdict(3, 4, smooth=(1, 2)) == "fails" and verdict(1, 2, smooth=(5, 9)) == "holds", "of level 0 alone"


def test_units_are_counted_over_problems(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 6)
    table = EXP.compute(model, some, EXP.params(ablated=5), quiet)
    row = table[(table.what == "units") & (table.level == 3)].iloc[0]
    effects = table[table.what.isin(code.HIDDEN) & (table.level == 3)].d_mse.to_numpy()
    assert row["count"] == pytest.approx(participation.effective(effects)) and row["part"] == 7
    assert 0 <= row.count_low < row.count_high <= len(effects)
    errors = np.concatenate([_energy_maps.ablated(model, some, 3, 5, i)[1] for i in range(3)])
    assert (row.count_low, row.count_high) == participation.effective_range(errors.T, code.DRAWS, 0)
    told = table[table.what.isin((*code.HIDDEN, "share"))].groupby("what").problems.unique().map(list)
    assert told.to_dict() == {"h1": [5], "h2": [5], "h3": [5], "share": [6]}


def test_the_first_layer_adds_over_one_half_and_beyond_other_pairs():
    def verdict(cosines, null=0.0):
        rows = pd.DataFrame([{"level": 0, "what": "row", "cosine": c, "cosine_null": null} for c in cosines])
        return code._first_claim(rows)[0].verdict

    assert verdict((0.59, 0.6, 0.61)) == "holds" and verdict((0.6, 0.61), 0.59) == "met by its null"
    assert verdict((0.59, 0.6, 0.61), 0.9) == verdict((0.59, 0.6, 0.61), 0.59) == "met by its null"
    assert verdict((0.5, 0.6)) == verdict((0.6,)) == "cannot be tested here", "an interval that reaches one half"
    assert verdict((0.4, 0.4, 0.41)) == "fails"
