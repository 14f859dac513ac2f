"""EXP-007: effective ranks that are known, matrices that depth recovers, and the average that is no answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _energy, registry
from backend.analyses import exp007_implicit_bias as code
from backend.contract import View
from backend.errors import BadInput
from backend.maths import annealed_inference, factorisation, trivial_answers
from tests.energy_kit import problems, shipped_energy, tiny_energy
from tests.tiny_models import quiet

EXP = registry()["exp007_implicit_bias"]


def test_effective_rank_and_errors_are_those_of_the_matrices():
    two = torch.diag(torch.tensor([3.0, 3.0, 0.0, 0.0])).flatten()[None]
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 0] = True
    told = code._told(two.repeat(3, 1), 2 * two.repeat(3, 1), hidden.repeat(3, 1), 4, 0)
    assert told["effective_rank"] == pytest.approx(2) == told["rank_low"] == told["rank_high"]
    assert told["error"] == pytest.approx(0.5) == told["hidden_error"]
    np.testing.assert_allclose(told["singular"], [1, 1, 0, 0], atol=1e-7)


def test_depth_recovers_what_depth_one_leaves_and_many_are_fitted_as_one(tmp_path):
    some = problems(tiny_energy(tmp_path, task="rank1", side=4), 3, seed=1)
    params = EXP.params(targets=2, steps=350, init_scale=0.03, seed=1)
    found = code._factorised(some, params, quiet)
    assert found["depth 1"]["hidden_error"] == pytest.approx(1, abs=0.1) and found["target"]["error"] == 0
    assert found["target"]["effective_rank"] == pytest.approx(1, abs=1e-6)
    assert found["depth 3"]["effective_rank"] < found["depth 1"]["effective_rank"] - 0.5
    target, shown = code._targets(some, params)
    alone, both = (factorisation.complete(t, s, 1, 0.1, 30, 0.02) for t, s in ((target[0], shown[0]), (target, shown)))
    torch.testing.assert_close(both.product[0][shown[0]], alone.product[shown[0]], atol=0.3, rtol=0)
    assert both.singular.shape == (2, 2, 4) and both.hidden_error.shape == (2, 2)


def test_the_average_of_all_solutions_is_no_matrix_of_low_rank():
    model = shipped_energy("rank1-5")
    table = EXP.compute(model, problems(model, 16), EXP.params(steps=10), quiet)
    end = table[table.level == 0].set_index("who")
    assert end.effective_rank["truth"] == pytest.approx(1, abs=1e-3) and end.effective_rank["model"] > 2
    assert end.error["model"] == pytest.approx(1, abs=0.05), "it answers about 0, the mean"


def test_a_rank_that_the_matrices_cannot_have_is_refused(tmp_path):
    model = tiny_energy(tmp_path, side=3)
    with pytest.raises(BadInput, match="Use a rank below 3"):
        EXP.compute(model, problems(model, 2), EXP.params(rank=3), quiet)


def test_a_rank_is_low_and_a_completion_better_only_beyond_what_is_beside_them():
    rows = {who: {"effective_rank": 4.0, "rank_low": 3.99, "rank_high": 4.01, "hidden_error": 0.2, "size": 1.0,
                  "error_se": 0.001, "hidden_error_se": 1e-3, "targets_error": 0.5, "matrices": 9,
                  "behind": float("nan"), "behind_se": float("nan")}
            for who in ("model", "truth", "noise", "linear", "depth 1", "depth 2", "depth 3")}  # fmt: skip
    last = pd.DataFrame(rows).T

    def falls(rank, half=0.01, size=1.0, first=6.0):
        last.loc["model", ["effective_rank", "rank_low", "rank_high", "size"]] = [rank, rank - half, rank + half, size]
        start = pd.Series({"effective_rank": first, "rank_low": first - half, "rank_high": first + half})
        return code._falls(last, start)

    asked = [falls(r).verdict for r in (3.7, 3.9, 4.1, 4.3)]
    assert asked == ["holds", "met by its null", "met by its null", "fails"]
    assert falls(3.7, first=3.5).verdict == "fails", "it does not fall"
    assert falls(3.7, first=3.7).verdict == falls(3.7, 0.2, first=3.69).verdict == "cannot be tested here"
    assert falls(3.9, first=3.91).verdict == "cannot be tested here"
    assert falls(3.7, 0.2).verdict == falls(3.7, first=3.71).verdict == "cannot be tested here", "within the interval"
    assert falls(3.7, float("nan")).verdict == "cannot be tested here", "one matrix"
    nothing = falls(3.7, size=0.0084)
    assert nothing.verdict == "cannot be tested here" and "about 0 (0.8%" in nothing.value
    falls(4.0)

    view = View(card={"energy": {"task": "rank1", "side": 5, "rank": 1}})
    def fits(rank, error, half=0.01, se=0.001):
        last.loc["model", ["effective_rank", "rank_low", "rank_high"]] = [rank, rank - half, rank + half]
        last.loc["model", ["error", "error_se"]] = [error, se]
        return code._average(last, view)[0].verdict

    assert fits(4.0, 0.05) == "holds" and fits(4.0, 0.5) == fits(4.3, 0.05) == fits(4.3, 0.5) == "fails"
    assert {fits(4.2, 0.05, 0.02), fits(4.0, 0.099), fits(4.0, 0.101), fits(4.0, 0.05, float("nan"))} == {
        "cannot be tested here"}  # fmt: skip

    last.loc["target", ["effective_rank", "hidden_error", "matrices"]] = [4.0, 0.0, 9]
    view = View(card={"energy": {"task": "inverse", "side": 5, "rank": 1}}, params={"rank": 1})
    small, large = code._shown_each(view), code._shown_each(View(card={"energy": {**view.card["energy"], "side": 8}}))
    assert (small, large) == pytest.approx((12.5 / 9, 32 / 15)), "shown entries over r (2 n - r)"
    assert code._depth(last, small).verdict == "cannot be tested here" and "too small" in code._depth(last, small).value
    assert code._depth(last, large).verdict == "fails" and "too small" not in code._depth(last, large).value

    def put(who, rank, error, se=1e-3):
        last.loc[who, ["effective_rank", "rank_low", "rank_high"]] = [rank, rank - 0.01, rank + 0.01]
        last.loc[who, ["hidden_error", "hidden_error_se"]] = [error, se]

    def depth(rank, error, flat=(9.0, 1.0), se=1e-3):
        put("depth 3", rank, error, se)
        put("depth 1", *flat)
        return code._depth(last, large).verdict

    assert depth(4.0, 0.05) == "holds" and depth(4.0, 0.05, (4.0, 0.05)) == "met by its null"
    assert depth(4.5, 0.05) == depth(4.0, 0.2) == depth(4.0, 0.2, (4.0, 0.05)) == "fails"
    assert depth(4.0, 0.09, se=0.01) == depth(4.0, 0.11, se=0.01) == "cannot be tested here"
    last.loc["target", "matrices"] = 1
    assert depth(4.0, 0.0, se=float("nan")) == "cannot be tested here", "one matrix: no interval"
    last.loc["target", "matrices"] = 9
    assert depth(4.395, 0.05) == "cannot be tested here", "its rank may be a tenth above"

    def completes(error, best, linear=0.5, se=1e-3):
        for who, off in {"depth 1": 0.9, "depth 2": best, "depth 3": 0.8, "linear": linear}.items():
            last.loc[who, ["hidden_error", "targets_error", "behind", "behind_se"]] = [off, off, off - error, se]
        last.loc["model", "targets_error"] = error
        return code._completes(last)

    assert completes(0.1, 0.15)[0].verdict == "holds" and "depth 2" in completes(0.1, 0.15)[0].null
    assert completes(0.16, 0.15)[0].verdict == completes(0.3, 0.15)[0].verdict == "fails"
    assert completes(0.1, 0.15, linear=0.09)[0].verdict == "met by its null", "a linear map does as well"
    assert completes(0.1, 0.12, se=0.01)[0].verdict == "cannot be tested here"
    assert completes(float("nan"), 0.15) == [], "nothing is hidden"


def _linear(some):
    fit = some.more(_energy.FIT_PROBLEMS, 0)
    return trivial_answers.answers(fit.x, fit.y, some.x)["linear"]


def test_the_answers_are_those_of_five_steps_and_what_is_hidden_is_what_x_leaves_out(tmp_path):
    model = tiny_energy(tmp_path, "float64", task="completion", side=4)
    some, params = problems(model, 3), EXP.params(steps=10, targets=2)
    hidden = code._hidden(some)
    assert torch.equal(some.x[~hidden], some.y[~hidden]) and (some.x[hidden] == 0).all() and 0 < hidden.sum() < 48
    target, shown = code._targets(some, params)
    assert torch.equal(shown.flatten(1), ~hidden[:2]) and torch.equal(target.flatten(1), some.y[:2].double())
    table = EXP.compute(model, some, params, quiet).query("level == 0").set_index("who")
    end, linear = table.loc["model"], table.loc["linear"]
    five, none = (annealed_inference.infer(model.net, some.x, some.noise, model.schedule, n).solutions[0]
                  for n in (5, 0))  # fmt: skip

    def off(y, n):
        return float((((y - some.y) * hidden)[:n].norm(dim=1) / (some.y * hidden)[:n].norm(dim=1)).mean())

    assert end.error == pytest.approx(float(((five - some.y).norm(dim=1) / some.y.norm(dim=1)).mean()))
    assert (end.hidden_error, end.targets_error) == pytest.approx((off(five, 3), off(five, 2)))
    each = {n: code.relative(y[:2].double(), some.y[:2].double(), hidden[:2])
            for n, y in (("model", five), ("linear", _linear(some)))}  # fmt: skip
    more = each["linear"] - each["model"]
    assert (linear.behind, linear.behind_se) == pytest.approx((more.mean(), abs(more[1] - more[0]) / 2), rel=1e-5)
    errors = ((five - some.y).norm(dim=1) / some.y.norm(dim=1)).numpy()
    assert end.error_se == pytest.approx(errors.std(ddof=1) / 3**0.5)
    assert end["size"] == pytest.approx(float(five.norm() / some.y.norm())) and abs(off(five, 3) - off(none, 3)) > 1e-3


def test_the_course_of_a_fit_is_the_mean_over_its_targets():
    singular = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    fit = factorisation.Fit(torch.eye(2), [0, 7], singular, torch.zeros(2, 2), torch.zeros(2, 2))
    told = code._course(fit, EXP.params())
    np.testing.assert_allclose(told["fit_rank"], [1.5, 1])
    assert list(told["fit_step"]) == [0, 7] and told["fit_low"][0] == 1 and told["fit_high"][0] == 2
