"""EXP-010 on an energy whose answers are known, on trained ones, and the trivial answers it is held against."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _annealed, registry
from backend.analyses import exp010_annealing as code
from backend.contract import View
from backend.maths import trivial_answers
from tests.energy_kit import problems, shipped_energy, tiny_energy
from tests.test_annealed_inference import Ideal
from tests.tiny_models import quiet

EXP = registry()["exp010_annealing"]


def ask(model, some, **more):
    return EXP.compute(model, some, EXP.params(**{"starts": 3, **more}), quiet)


def test_the_ideal_gaussian_energy_returns_the_posterior_mean(tmp_path):
    model = tiny_energy(tmp_path, "float64", task="gauss", side=2)
    model.net, model.level = Ideal(2), lambda k, n: torch.full((n,), k)
    table = ask(model, problems(model, 200))
    end = table[(table.level == 0) & (table.inner == 5)].iloc[0]
    assert end.to_mean < 0.06 * end.mse and end.mse == pytest.approx(end.bayes, rel=0.05), "off by the cut to +-2 only"
    assert end.bayes == pytest.approx(end.linear, rel=0.05) and end.mse_low < end.mse < end.mse_high
    assert end.shuffled > 5 * end.mse and end.spread < 0.1 * end.rms
    assert abs(table[table.level == 0].gain).max() < 0.05
    assert table[table.inner == 0].accepted.isna().all() and table[table.inner == 0].spread.isna().all()


def test_the_share_of_a_singular_direction_is_that_of_the_answer(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=3)
    some = problems(model, 6)
    u, s, vt = torch.linalg.svd(some.y.view(-1, 3, 3))
    s[:, 2] *= 0.25
    s[:, 0] *= 0.5
    told = _annealed.directions(((u * s[:, None]) @ vt).flatten(1), some)
    assert told == pytest.approx({"coarse": 0.5, "fine": 0.25})
    assert _annealed.settled(np.array([1.0, 0.95, 0.8, 0.99])) == 1 and _annealed.settled(np.ones(4)) == 3
    assert _annealed.settled(np.array([1.0, 0.91, 0.89])) == 1, "a tenth of the last one off, no more"


def test_a_jump_is_made_at_its_own_level_and_starts_spread_as_their_standard_deviation(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 6)
    for k, row in enumerate(_annealed.trivial(model, some)):
        noise = model.net.gradient(some.x, some.noise, torch.full((6,), k))
        y = (some.noise - float(model.schedule.sigma[k]) * noise) / float(model.schedule.abar[k]) ** 0.5
        assert row["one_jump"] == pytest.approx(float((y.clamp(-2, 2) - some.y).square().mean()), rel=1e-5), k
    told = _annealed.chosen(model, some, 3, 1, 0)
    others = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).double()
    runs = [_annealed.infer(model, some.x, start, 1).solutions.numpy() for start in (some.noise, *others)]
    spread = np.sqrt(np.var(runs, axis=0, ddof=1).mean((1, 2)))
    np.testing.assert_allclose([row["spread"] for row in told], spread, rtol=1e-6)


def test_a_gain_that_every_problem_has_alike_has_no_width():
    plain = np.array([1.0, 2, 4, 8, 16, 32])
    told = _annealed.error(0.75 * plain, plain, 0)
    assert [told[f"gain{e}"] for e in ("", "_low", "_high")] == pytest.approx([0.25] * 3)
    assert told["mse_low"] < told["mse"] < told["mse_high"]


def test_what_every_problem_does_alike_has_no_interval_and_what_half_do_otherwise_has_one(tmp_path):
    """The largest direction stands from level 2 down, the smallest at level 0 alone: two levels before it."""
    some = problems(tiny_energy(tmp_path, "float64", side=3), 8)
    u, s, vt = torch.linalg.svd(some.y.view(-1, 3, 3))
    kept = torch.ones(4, 8, 3).double()
    kept[3, :, 0] = kept[1:, :, 2] = 0.25
    told = _annealed.emergence(torch.einsum("bij,kbj,bjl->kbil", u, kept * s, vt).flatten(2), some, 0)
    assert told[3] == pytest.approx({"coarse": 0.25, "coarse_low": 0.25, "coarse_high": 0.25, "fine": 0.25,
                                     "fine_low": 0.25, "fine_high": 0.25, "ahead": 2, "ahead_low": 2, "ahead_high": 2})
    kept[1, ::2, 0] = kept[2, ::2, 0] = 0.25
    mixed = _annealed.emergence(torch.einsum("bij,kbj,bjl->kbil", u, kept * s, vt).flatten(2), some, 0)
    assert mixed[1]["coarse_low"] < mixed[1]["coarse"] < mixed[1]["coarse_high"] and mixed[0]["ahead_low"] == 0


def test_the_matrices_that_are_kept_are_those_of_the_first_problems(tmp_path):
    model = tiny_energy(tmp_path, "float64", task="addition", side=2)
    some = problems(model, 5)
    table = ask(model, some)
    row = table[(table.level == 4) & (table.inner == 1)].iloc[0]
    found = _annealed.infer(model, some.x, some.noise, 1).solutions[4, :3]
    np.testing.assert_allclose(row.answer, found.flatten(), rtol=1e-6)
    np.testing.assert_allclose(row.problem, some.x[:3].flatten(), rtol=1e-6)
    view = View(params=EXP.params().model_dump(), chosen={"level": 4}, card=model.card.model_dump())
    drawn = EXP.figures["matrices"].build(table[table.level == 4], view)
    assert len(drawn.data) == 3 * 5, "two matrices of x, y, y* and the difference"
    np.testing.assert_allclose(drawn.data[1].z, some.x[0, 4:].view(2, 2), rtol=1e-6)
    marks = EXP.figures["error"].build(table, view).layout.shapes
    assert [s.x0 for s in marks] == [4]


def test_a_trained_inverse_beats_a_linear_map_and_steps_add_little():
    model = shipped_energy("inverse-3")
    table = ask(model, problems(model, 32), starts=2)
    end = table[table.level == 0].set_index("inner")
    assert end.mse[5] < 0.02 * end.linear[5] and abs(end.gain[20]) < 0.1, "reference: 9e-5 with any number of steps"
    assert table.accepted[table.inner == 1].mean() > 0.7 > 0.5 > table.accepted[table.inner == 20].mean()
    verdicts = {c.criterion[:9]: c.verdict for c in EXP.judge(table, None)}
    assert verdicts["the model"] == "holds" and verdicts["minimisin"] == "fails"


def test_a_linear_map_of_repeated_entries_is_the_best_one(tmp_path):
    """x is symmetric, so six of its nine columns say all: what the other three add is nothing."""
    some = problems(tiny_energy(tmp_path, side=3), 4000)
    upper = torch.triu_indices(3, 3)
    told = some.x.view(-1, 3, 3)[:, upper[0], upper[1]]
    whole, part = (trivial_answers.errors(x, some.y, x, some.y)["linear"].mean() for x in (some.x, told))
    assert float(whole) == pytest.approx(float(part), rel=1e-9)


def test_the_cut_solution_is_off_by_what_lies_beyond_two():
    y = torch.tensor([[1.5, -1.9], [3.0, -4.0]])
    found = trivial_answers.errors(torch.zeros(4, 2), torch.zeros(4, 2), y, y)
    np.testing.assert_allclose(found["clamp"], [0, (1 + 4) / 2])
    np.testing.assert_allclose(found["zero"], [(1.5**2 + 1.9**2) / 2, 12.5], rtol=1e-6)


GOOD = {"mse": 0.01, "mse_low": 0.009, "mse_high": 0.011, "gain": 0.2, "gain_low": 0.1, "gain_high": 0.3, "bayes": 0.5,
        "zero": 0.3, "mean": 0.25, "linear": 0.046, "copy": 1.0, "clamp": 0.0, "one_jump": 0.1, "shuffled": 0.3,
        "spread": 0.001, "rms": 0.1, "to_mean": 0.4, "linear_coarse": 0.8, "linear_fine": 0.2}  # fmt: skip
NAMES = ("solves", "steps", "emergence", "one", "asked", "of those that fit")


def verdicts(coarse=(1.0, 1.0, 0.5), fine=(1.0, 0.5, 0.2), **more):
    """Return the verdicts of a table of three levels, and the values in words."""
    ahead = _annealed.settled(np.array(coarse)) - _annealed.settled(np.array(fine))
    known = {"ahead": ahead, "ahead_low": ahead, "ahead_high": ahead, **GOOD, **more}
    rows = [{"level": k, "inner": inner, "coarse": coarse[k], "fine": fine[k], **known}
            for k in range(len(coarse)) for inner in code.INNER]  # fmt: skip
    claims = EXP.judge(pd.DataFrame(rows), None)
    return dict(zip(NAMES, [c.verdict for c in claims], strict=True)), [c.value for c in claims]


def test_what_the_verdicts_ask():
    assert set(verdicts()[0].values()) == {"holds"}
    ask_one = lambda name, **more: verdicts(**more)[0][name]  # noqa: E731
    assert ask_one("emergence", coarse=(1.0, 0.5, 0.2), fine=(1.0, 1.0, 0.5)) == "fails", "fine to coarse"
    assert ask_one("emergence", coarse=(1.0, 1.0, 0.5), fine=(1.0, 1.0, 0.2)) == "fails", "at the same level"
    assert ask_one("emergence", coarse=(1.0, 1.0, 0.5), fine=(1.0, 1.0, 0.5)) == "cannot be tested here"
    assert ask_one("emergence", ahead_low=0) == "cannot be tested here", "an interval that reaches 0"
    assert ask_one("emergence", coarse=(1.0,), fine=(0.5,)) == "cannot be tested here", "one level"
    assert ask_one("one", spread=0.02) == ask_one("one", spread=1.0) == "fails"
    assert ask_one("asked", shuffled=0.019) == ask_one("asked", shuffled=0.01) == "fails"
    assert ask_one("of those that fit", to_mean=0.004) == "fails" and ask_one("of those that fit") == "holds"


def test_what_is_far_from_all_is_none_of_those_that_fit_and_zeros_do_not_depend_on_their_start():
    def fits(**more):
        return verdicts(zero=0.55, mean=0.55, **{"bayes": 0.055, "to_mean": 3.0, **more})[0]["of those that fit"]

    assert fits(mse=3.1, mse_low=2.9, mse_high=3.3) == "fails", "an untrained net"
    assert fits(mse=0.11, mse_low=0.105, mse_high=0.115, to_mean=0.055) == "holds", "as one drawn from those that fit"
    assert fits(mse=0.11, mse_low=0.01, mse_high=0.6) == "fails", "an interval that reaches knowing nothing"
    assert fits(mse=2.0, mse_high=2.1, bayes=0.5) == "cannot be tested here", "one that fits has twice .5, more than 0"

    def one(**more):
        claims = verdicts(**{"mse": 0.3, "mse_low": 0.28, "mse_high": 0.32, "rms": 0.55, **more})
        return claims[0]["one"], "no better than answering without x" in claims[1][3]

    assert one() == ("met by its null", True) and one(spread=0.2) == ("fails", True)
    assert one(mse=0.1, mse_low=0.09, mse_high=0.11) == ("holds", False)
    end = pd.DataFrame([{**GOOD, "coarse": 1.0, "fine": f, "ahead": 1, "ahead_low": 1, "ahead_high": 1}
                        for f in (1.0, 0.5)])  # fmt: skip
    assert "linear" not in code._claims.emergence(end).null, "it has no levels: no null of an order of levels"


def test_a_null_meets_only_what_is_met_and_less_of_a_large_error_is_no_answer():
    """The numbers of an untrained net: error 2.44 beside a linear .046, and steps that gain a fourth of 3.1."""
    met = verdicts(mse=0.047, mse_low=0.04, mse_high=0.06)[0]
    assert met["solves"] == "met by its null" and met["steps"] == "holds"
    assert verdicts(mse=0.0, mse_low=0.0, mse_high=0.0, linear=0.0)[0]["solves"] == "met by its null"
    assert verdicts(mse=2e-4, mse_low=1e-4, mse_high=3e-4, linear=1e-29)[0]["solves"] == "met by its null"
    assert verdicts(mse=0.1, mse_low=0.03, mse_high=0.2)[0]["solves"] == "fails", "twice the linear one's"
    told, words = verdicts(mse=2.44, mse_low=2.0, mse_high=2.9, gain=0.266, gain_low=0.2, gain_high=0.3)
    assert told["solves"] == "fails" and told["steps"] == "cannot be tested here"
    assert "no better than answering without x (mean: 0.25)" in words[1]
    assert verdicts(gain=0.05, gain_low=0.02, gain_high=0.09)[0]["steps"] == "fails"
    assert verdicts(gain_low=0.05)[0]["steps"] == verdicts(gain=0.09, gain_low=0.02, gain_high=0.3)[0]["steps"] == (
        "cannot be tested here")  # fmt: skip
    assert verdicts(gain_low=float("nan"), gain_high=float("nan"))[0]["steps"] == "holds", "no interval: the value"


def test_an_untrained_net_solves_nothing(tmp_path):
    model = tiny_energy(tmp_path)
    told = [c.verdict for c in EXP.judge(ask(model, problems(model, 8), starts=2), None)]
    assert told[0] == "fails" and told[1] != "holds"
