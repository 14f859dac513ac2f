"""EXP-007: effective ranks that are known, matrices that depth recovers, and the average that is no answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import exp007_implicit_bias as code
from backend.analyses import registry
from backend.contract import View
from backend.errors import BadInput
from backend.maths import factorisation
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
    rows = {who: {"effective_rank": 4.0, "rank_low": 3.9, "rank_high": 4.1, "hidden_error": 0.2}
            for who in ("model", "truth", "noise", "linear", "depth 1", "depth 2", "depth 3")}  # fmt: skip
    last = pd.DataFrame(rows).T

    def falls(rank):
        last.loc["model", "effective_rank"] = rank
        return code._falls(last, last.loc["model"]).verdict

    assert [falls(r) for r in (3.7, 3.9, 4.1, 4.3)] == ["holds", "met by its null", "met by its null", "fails"]

    last.loc["target", ["effective_rank", "hidden_error"]] = [4.0, 0.0]
    view = View(card={"energy": {"task": "inverse", "side": 5, "rank": 1}}, params={"rank": 1})
    small, large = code._shown_each(view), code._shown_each(View(card={"energy": {**view.card["energy"], "side": 8}}))
    assert (small, large) == pytest.approx((12.5 / 9, 32 / 15)), "shown entries over r (2 n - r)"
    assert code._depth(last, small).verdict == "cannot be tested here" and "too small" in code._depth(last, small).value
    assert code._depth(last, large).verdict == "fails" and "too small" not in code._depth(last, large).value

    def completes(error, best):
        last.loc[["model", "depth 2"], "hidden_error"] = [error, best]
        return code._completes(last)

    assert completes(0.1, 0.15)[0].verdict == "holds" and "depth 2" in completes(0.1, 0.15)[0].null
    assert completes(0.16, 0.15)[0].verdict == completes(0.3, 0.15)[0].verdict == "fails"
    assert completes(float("nan"), 0.15) == [], "nothing is hidden"
