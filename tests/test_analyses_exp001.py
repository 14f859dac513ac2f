"""EXP-001 on energies with a known spectrum: ideal ones to the digit, trained ones within what was published here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import exp001_hessian as code
from backend.analyses import registry
from backend.maths import annealing
from tests.energy_kit import problems, shipped_energy, tiny_energy
from tests.tiny_models import quiet

EXP = registry()["exp001_hessian"]


def ask(model, some):
    return EXP.compute(model, some, EXP.params(), quiet)


def test_eigenvalues_are_those_of_autograd(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 3)
    table = ask(model, some)
    for k in (0, 9):
        abar, sigma = float(model.schedule.abar[k]), float(model.schedule.sigma[k])
        for i in range(3):
            y = abar**0.5 * some.y[i] + sigma * some.noise[i]
            x = some.x[i : i + 1]
            dense = torch.func.hessian(lambda v, x=x, k=k: model.net(x, v[None], model.level(k, 1))[0])(y)
            row = table[(table.level == k) & (table.problem == i)].iloc[0]
            want = torch.linalg.eigvalsh(dense).numpy()
            np.testing.assert_allclose(row.spectrum, want, rtol=1e-5, atol=1e-7)
            assert row.lambda_min == pytest.approx(want[0], rel=1e-9) and row.gap == pytest.approx(want[-1] - want[-2])
            implied = sigma**2 / abar * (1 - sigma * want.sum() / 4)
            assert row.implied_mse == pytest.approx(implied, rel=1e-9)


class Quadratic:
    """An ideal energy of a task whose x decides y: |y - sqrt(abar) y0|^2 / (2 sigma), and nothing to learn."""

    def __init__(self, model, some):
        self.card, self.schedule, self.level, self.net, self.some = model.card, model.schedule, model.level, self, some

    def gradient(self, x, y, level):
        k = int(level[0])
        return (y - self.schedule.abar[k] ** 0.5 * self.some.y) / self.schedule.sigma[k]

    def hessian(self, x, y, level):
        eye = torch.eye(y.shape[1], dtype=y.dtype).expand(len(y), -1, -1)
        return {"output": eye / self.schedule.sigma[int(level[0])]}


def test_an_ideal_energy_is_the_schedule_alone(tmp_path):
    model = tiny_energy(tmp_path, "float64")
    some = problems(model, 4)
    table = ask(Quadratic(model, some), some)
    np.testing.assert_allclose(table[["scaled_min", "scaled_max", "condition"]], 1, atol=1e-9)
    np.testing.assert_allclose(table.lambda_max, table.ideal_max)
    np.testing.assert_allclose(table[["implied_mse", "true_mse"]], 0, atol=1e-12)
    np.testing.assert_allclose(table.participation_ratio, 9)


def test_the_gaussian_energy_bends_as_its_closed_form():
    model = shipped_energy("gauss-4")
    table = ask(model, problems(model, 64))
    median = table.groupby("level")[["lambda_min", "lambda_max", "ideal_min", "ideal_max", "implied_mse"]].median()
    trace_of_truth = [annealing.implied_mse(np.sum(e), 16, model.schedule.abar[k]) for k, e in enumerate(ideal(model))]
    assert (abs(median.lambda_max / median.ideal_max - 1) < 0.25).all()
    np.testing.assert_allclose(median.implied_mse[:4], trace_of_truth[:4], rtol=0.3)


def ideal(model):
    from backend.analyses._energy import ideal_eigenvalues

    return [ideal_eigenvalues(model, "gauss", k) for k in range(10)]


def test_a_trained_inverse_bends_as_the_schedule_and_knows_its_error():
    model = shipped_energy("inverse-3")
    table = ask(model, problems(model, 64))
    spectra = np.stack(table[table.level == 3].spectrum.to_list())
    assert np.median(spectra) * model.schedule.sigma[3] == pytest.approx(1, abs=0.02)
    claims = EXP.judge(table, None)
    assert claims[0].verdict == "met by its null"


def table_of(raw, sigma, implied, true):
    """A table of two levels, one row a problem, that says these numbers."""
    rows = [{"level": k, "problem": i, "lambda_max": raw[k], "scaled_max": raw[k] * sigma[k], "implied_mse": a,
             "true_mse": b} for k in (0, 1) for i, (a, b) in enumerate(zip(implied, true, strict=True))]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("raw", "verdict"), [
    ((6.0, 1.0), "met by its null"), ((9.0, 1.0), "holds"), ((1.0, 1.0), "fails"), ((0.5, 1.0), "fails"),
])  # fmt: skip
def test_sharpening_is_what_the_schedule_does_not_give(raw, verdict):
    table = table_of(raw, (1 / 6, 1.0), [0.01] * 4, [0.01] * 4)
    assert EXP.judge(table, None)[0].verdict == verdict


TRUE = np.linspace(0.5, 1.5, 40) * 1e-3


@pytest.mark.parametrize(("implied", "true", "mean", "order"), [
    (TRUE, TRUE, "holds", "holds"), (1.5 * TRUE, TRUE, "fails", "holds"),
    (0 * TRUE + 1e-3, TRUE, "cannot be tested here", "fails"),
    (TRUE[::-1], TRUE, "cannot be tested here", "fails"), (28 * TRUE, 28 * TRUE, "met by its null", "holds"),
    (20 * TRUE, 20 * TRUE, "holds", "holds"),  # a flat energy claims .0286, 43 % too much
    (np.where(np.arange(40) < 3, 2e-2, -3e-4), TRUE, "cannot be tested here", "fails"),
])  # fmt: skip
def test_the_trace_is_judged_by_its_interval_and_its_order(implied, true, mean, order):
    _, level0, ranked = EXP.judge(table_of((6.0, 1.0), (1 / 6, 1.0), implied, true), None)
    assert (level0.verdict, ranked.verdict) == (mean, order)
    assert f"{(np.asarray(implied) < 0).mean():.0%}" in level0.value


def test_a_ratio_is_within_the_tolerance_with_all_of_its_interval():
    assert code._judged(0.91, 1.09, False) == "holds" and code._judged(0.91, 1.09, True) == "met by its null"
    assert code._judged(0.7, 0.89, True) == code._judged(1.11, 1.3, False) == "fails"
    told = [code._judged(*ends, False) for ends in ((1.01, 1.24), (1.03, 1.27), (0.75, 1.09), (0.84, 1.11))]
    assert set(told) == {"cannot be tested here"}
    flat = code._flat(table_of((6.0, 1.0), (1 / 6, 1.0), TRUE, TRUE).query("level == 0"))
    near = flat / 1.15 * np.linspace(0.5, 1.5, 40)
    claim = EXP.judge(table_of((6.0, 1.0), (1 / 6, 1.0), near, near), None)[1]
    assert claim.verdict == "met by its null", "a flat energy is 15 % off, +-9 %"


def test_an_order_that_could_be_chance_is_none():
    table = table_of((6.0, 1.0), (1 / 6, 1.0), TRUE[[3, 5, 0, 6, 1, 2, 7, 4]], TRUE[:8])
    ranked = EXP.judge(table, None)[2]
    assert ranked.verdict == "cannot be tested here" and float(ranked.value.split()[2]) > 0


def test_the_condition_number_is_largest_over_smallest(tmp_path):
    table = ask(tiny_energy(tmp_path), problems(tiny_energy(tmp_path), 3))
    known = table.condition.notna()
    assert ((table.lambda_min > 0) == known).all()
    np.testing.assert_allclose(table.condition[known], (table.lambda_max / table.lambda_min)[known])
