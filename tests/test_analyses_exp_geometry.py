"""EXP-002, 004, 005, 006: energies whose geometry mathematics forces, then trained ones; declared costs are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import registry
from backend.contract import View
from backend.errors import BadInput
from backend.maths import low_rank
from tests.energy_kit import problems, shipped_energy, tiny_energy
from tests.test_analyses_exp001 import Quadratic
from tests.tiny_models import quiet


def ask(name, model, some, **given):
    analysis = registry()[name]
    return analysis.compute(model, some, analysis.params(**given), quiet)


def verdicts(name, model, table, **given):
    analysis = registry()[name]
    params = analysis.params(**given).model_dump()
    scalars = table.drop(columns=[v.name for v in analysis.arrays])
    return [c.verdict for c in analysis.judge(scalars, View(params=params, card=model.card.model_dump()))]


@pytest.fixture(scope="module")
def rank1():
    return shipped_energy("rank1-5")


@pytest.fixture()
def ideal(tmp_path):
    """An energy of which nothing is uncertain, and its problems."""
    model = tiny_energy(tmp_path, "float64")
    some = problems(model, 6)
    return Quadratic(model, some), some


COSTED = {
    "exp001_hessian": [{}],
    "exp007_implicit_bias": [{"steps": 20}],
    "exp010_annealing": [{}, {"inner": 2, "starts": 2}],
    "exp002_landscape": [{"resolution": 11}, {"plane": "trajectory", "resolution": 11}],
    "exp004_grassmann": [{}],
    "exp005_tangent_normal": [{}],
    "exp006_svd_alignment": [{}],
}


@pytest.mark.parametrize("name", COSTED)
def test_declared_rows_are_those_that_are_counted(tmp_path, name):
    model = tiny_energy(tmp_path)
    some = problems(model, 5)
    for given in COSTED[name]:
        found: Counter = Counter()

        def count(module, args, found=found):
            found[torch.is_grad_enabled()] += len(args[1])

        hooks = [net.register_forward_pre_hook(count) for net in (model.net, model.exact)]
        ask(name, model, some, **given)
        for hook in hooks:
            hook.remove()
        told: Counter = Counter()
        for calls in registry()[name].work(model.card, some.asked, registry()[name].params(**given)).calls:
            told[calls.gradients] += calls.rows * calls.n
        assert told == found


# ---------------------------------------------------------------- EXP-005


class Split(Quadratic):
    """Curvature 2 along the matrices of rank 1 at each solution, 5 across."""

    def hessian(self, x, y, level):
        at = low_rank.spaces(self.some.y.unflatten(-1, (3, 3)), 1)
        units = torch.eye(9, dtype=y.dtype).reshape(-1, 1, 3, 3)
        across = at.normal(units).flatten(2).movedim(0, 1)
        return {"output": 2 * torch.eye(9, dtype=y.dtype) + 3 * across}


def test_isotropic_curvature_has_ratio_one_and_a_known_split_its_own(ideal):
    model, some = ideal
    table = ask("exp005_tangent_normal", model, some)
    np.testing.assert_allclose(table[["rho", "rho_other"]], 1, atol=1e-9)
    np.testing.assert_allclose(table.gradient_ratio, table.noise_ratio, rtol=1e-9)
    assert table.noise_line[0] == pytest.approx((4 / 5) ** 0.5)
    assert set(verdicts("exp005_tangent_normal", model, table)) == {"cannot be tested here"}, "inverses have no rank 1"
    split = ask("exp005_tangent_normal", Split(model, some), some)
    np.testing.assert_allclose(split[["tangent_curvature", "normal_curvature", "rho"]], [[2, 5, 2.5]] * 60, atol=1e-9)
    assert (split.rho_other < 2.5).all()


def test_a_rank_without_an_outside_is_refused_before_and_while_it_runs(ideal):
    model, some = ideal
    analysis = registry()["exp005_tangent_normal"]
    for refuse in (
        lambda p: analysis.work(model.card, some.asked, p),
        lambda p: analysis.compute(model, some, p, quiet),
    ):
        with pytest.raises(BadInput, match="Choose a rank from 1 to 2"):
            refuse(analysis.params(rank=3))


def test_a_trained_rank_1_energy_is_stiff_across_and_an_inverse_is_not(rank1):
    table = ask("exp005_tangent_normal", rank1, problems(rank1, 64))
    rho = table.fillna({"rho": np.inf}).groupby("level").rho.median()
    assert rho[0] > 15 and rho[1] > 8 and rho[3] == pytest.approx(4.4, rel=0.2) and rho[9] == pytest.approx(1, abs=0.02)
    assert verdicts("exp005_tangent_normal", rank1, table) == ["holds", "holds"]
    assert table.rank_tail.max() < 1e-6
    other = shipped_energy("inverse-3")
    table = ask("exp005_tangent_normal", other, problems(other, 32))
    assert abs(table.groupby("level").rho.median() - 1).max() < 0.1 and table.rank_tail.median() > 0.2
    assert set(verdicts("exp005_tangent_normal", other, table)) == {"cannot be tested here"}


def split_claims(rho=2.0, other=1.0, hidden=0, hidden_other=0, **more):
    """The claims of 40 points of these ratios, `hidden` more without a positive tangent curvature, and `hidden_other`
    without one in another solution's spaces."""
    n = 40 + hidden
    rows = {"level": 0, "rho": [rho] * 40 + [np.nan] * hidden, "normal_curvature": np.ones(n), "normal_other": 1.0,
            "rho_other": [np.nan] * hidden_other + [other] * (n - hidden_other), "tangent_curvature": 1.0,
            "gradient_ratio": 1.0, "noise_ratio": 1.0, "noise_line": 1.0, "rank_tail": 0.0}  # fmt: skip
    return registry()["exp005_tangent_normal"].judge(pd.DataFrame(rows | more), View(params={"rank": 1}))


def across(*given, **more):
    return split_claims(*given, **more)[1]


def test_stiffness_across_is_judged_beside_another_solutions_spaces_and_says_what_is_ranked_as_infinite():
    assert [across(*given).verdict for given in ((2, 1), (2, 2), (2, 3), (1.2, 1))] == [
        "holds", "met by its null", "met by its null", "fails"]  # fmt: skip
    told = across(2.0, 1.0, hidden=60)
    assert "rho unbounded [2, unbounded]" in told.value and "60% of points" in told.value
    assert "the median without them is 2 [2, 2]" in told.value and "0% of points" in across(2, 1).value


def test_what_is_ranked_as_infinite_for_the_ratio_is_so_for_its_null():
    assert across(2.0, 1.0, hidden=60).verdict == "holds"
    both = across(2.0, 1.0, hidden=60, hidden_other=60)
    assert both.verdict == "met by its null" and "another solution's spaces unbounded" in both.null
    assert across(2.0, 1.0, hidden_other=30).verdict == "met by its null", "most points of the null are above every rho"
    assert across(2.0, 1.0, hidden_other=30, normal_other=-1.0).verdict == "holds", "no ratio of two that are negative"
    assert across(2.0, 1.0, hidden_other=40, normal_other=-1.0).verdict == "cannot be tested here", "no null is left"


def test_a_gradient_is_much_more_normal_only_a_quarter_above_its_noise():
    said = [split_claims(gradient_ratio=r, noise_line=1.0, noise_ratio=2.0)[0].verdict for r in (2.4, 2.6)]
    assert said == ["met by its null", "holds"]
    assert split_claims(gradient_ratio=2.6, noise_line=2.2)[0].verdict == "met by its null", "a quarter above the line"


class Bowl(Quadratic):
    """y'y / 2: the gradient is the matrix itself."""

    def gradient(self, x, y, level):
        return y


def test_curvature_is_read_at_the_solution_where_that_is_asked_for(low):
    model, some = low
    name = "exp005_tangent_normal"
    tables = {at: ask(name, Bowl(model, some), some, at=at) for at in ("noised", "solution")}
    assert tables["solution"].gradient_ratio.max() < 1e-6 < 1e-2 < tables["noised"].gradient_ratio.min()
    view = View(params={"rank": 1}, card=model.card.model_dump())
    line = registry()[name].figures["curvatures"].build(tables["noised"], view).data[-1]
    assert line.name == "1/sigma"
    np.testing.assert_allclose(line.y, 1 / model.schedule.sigma, rtol=1e-9)


def test_the_tail_is_the_share_of_the_singular_value_before_it(low):
    from backend.analyses import _low_rank

    y = torch.diag(torch.tensor([4.0, 2, 1]).double()).reshape(1, 9)
    some = replace(low[1], y=torch.cat([y, 0 * y]))
    assert [list(_low_rank.tails(some, r)) for r in (1, 2)] == [[0.5, 1], [0.5, 1]], "0 has no rank to tell"


# ---------------------------------------------------------------- EXP-006


def test_an_ideal_score_is_the_noise_and_knows_no_solution(ideal):
    model, some = ideal
    table = ask("exp006_svd_alignment", model, some)
    np.testing.assert_allclose(table.delta, 1, atol=1e-9)
    np.testing.assert_allclose(table.solution, table.noise_solution, atol=1e-9)
    assert verdicts("exp006_svd_alignment", model, table) == ["fails", "met by its null"]


def test_alignments_are_those_of_the_projectors_and_r_over_n_at_random():
    from backend.analyses.exp006_svd_alignment import _alignments, _vectors

    dice = torch.Generator().manual_seed(0)
    a, b = (torch.randn(800, 16, generator=dice).double() for _ in range(2))
    found = _alignments(_vectors(a, 4)[0], _vectors(b, 4)[0])
    np.testing.assert_allclose(found.mean(0), [0.25, 0.5, 0.75], atol=0.02)
    first, second = (torch.linalg.svd(m[0].reshape(4, 4)).U[:, :2] for m in (a, b))
    assert found[0, 1] == pytest.approx(float((first.T @ second).square().sum() / 2))


def test_the_gradient_is_taken_as_far_from_the_solution_as_is_asked(low):
    """A gradient that is the matrix itself points at the solution near it, and at the noise far from it."""
    model, some = low
    from backend.analyses import exp006_svd_alignment as code

    near, far = (code._level(Bowl(model, some), some, code.AlignmentParams(size=s), 0).iloc[:1] for s in (0.05, 5.0))
    assert near["rank"][0] == 1
    assert near.solution[0] > 0.99 > 0.9 > far.solution[0] and far.delta[0] > 2 * near.delta[0]


def aligned(levels=3, **changed):
    """The verdicts on a table in which everything speaks for the solution and the noise, but for what is changed."""
    row = {"rank": 1, "random": 0.2, "told": 9}
    for name, mean in (("solution", 0.8), ("noise_solution", 0.2), ("delta", 0.9), ("other", 0.2)):
        row |= {name: mean, f"{name}_low": mean - 0.05, f"{name}_high": mean + 0.05}
    row |= {"solution_least": 0.7, "noise_solution_most": 0.3} | changed
    table = pd.DataFrame([row | {"level": k} for k in range(levels)])
    return [c.verdict for c in registry()["exp006_svd_alignment"].judge(table, View())]


def test_a_vector_is_another_only_above_its_null_and_above_one_half_at_all_levels_together():
    assert aligned() == ["holds", "met by its null"]
    assert aligned(noise_solution=0.72, noise_solution_high=0.74, noise_solution_most=0.76)[0] == "fails"
    assert aligned(solution_least=0.49)[0] == "fails", "above its nulls, yet more of it lies elsewhere"
    assert aligned(solution_low=0.75, solution_least=0.29)[0] == "fails", "the best of several looks"
    assert aligned(random=0.6)[0] == "fails", "a quarter above random directions"
    assert aligned(other=0.87, other_high=0.9)[1] == aligned(delta_low=0.49)[1] == "fails"


def test_ends_that_hold_at_several_levels_are_wider_and_those_of_one_look_the_interval():
    from backend.analyses.exp006_svd_alignment import _means

    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)).double().numpy()
    _, low, high, least, most = _means(values, 0, 10)
    reach = (most - least) / (high - low)
    np.testing.assert_allclose(reach, 2.807 / 1.960, rtol=0.1)  # the normal's .9975 and .975 quantiles
    _, low, high, least, most = _means(values, 0, 1)
    np.testing.assert_allclose([least, most], [low, high])


def test_the_line_encloses_what_lies_above_random_directions_by_its_interval():
    low, here = np.array([0.1, 0.8, 0.8]), 0.9
    table = pd.DataFrame({"level": [0, 1, 2], "rank": 1, "random": 0.5, "solution": here, "solution_low": low,
                          "delta": here, "delta_low": low, "noise_solution": here, "noise_solution_low": low})
    drawn = registry()["exp006_svd_alignment"].figures["maps"].build(table, View())
    assert len(drawn.layout.shapes) == 3 * 6, "around the last two cells of each map, but not the first"


def test_beyond_the_rank_of_the_solutions_nothing_is_said(rank1):
    table = ask("exp006_svd_alignment", rank1, problems(rank1, 64))
    beyond = table[table["rank"] > 1]
    assert beyond.solution.isna().all() and (beyond.told == 0).all() and (table[table["rank"] == 1].told == 64).all()
    one = table[table["rank"] == 1].set_index("level")
    assert one.solution_high[0] < 0.2 < 0.3 < one.solution_low[6], "the noise alone at sharp levels, y in the middle"
    assert one.delta[0] < 0.75 and one.delta[9] > 0.97


# ---------------------------------------------------------------- EXP-004


class Toy:
    """An energy whose value is given by the matrices [.., n, side, side] alone."""

    def __init__(self, model, energy):
        self.card, self.schedule, self.level, self.net, self.energy = (
            model.card,
            model.schedule,
            model.level,
            self,
            energy,
        )

    def __call__(self, x, y, level):
        return self.energy(y.unflatten(-1, (3, 3)), int(level[0]))


def rows_of(table, what):
    return table[table.what == what].sort_values(["level", "at"])


@pytest.fixture()
def low(tmp_path):
    model = tiny_energy(tmp_path, "float64", task="rank1")
    return model, problems(model, 12)


def test_an_energy_that_is_the_distance_to_rank_1_correlates_with_it_alone(low):
    model, some = low
    toy = Toy(model, lambda y, k: low_rank.squared_distance(y, 1) / 2)
    table = ask("exp004_grassmann", toy, some)
    for what in ("distance", "distance | size", "cost more overall"):
        np.testing.assert_allclose(rows_of(table, what).value, 1, atol=1e-6, err_msg=what)
    for what in ("turned", "geodesic", "geodesic middle"):
        np.testing.assert_allclose(rows_of(table, what).value, 0, atol=1e-12, err_msg=what)
    assert (rows_of(table, "angle | size").high < 0).all() and (rows_of(table, "rescaled middle").low > 0).all()
    assert verdicts("exp004_grassmann", toy, table) == ["fails", "holds", "holds", "holds"]


def test_perturbations_are_what_they_are_called_and_as_long_as_each_other(low):
    model, some = low
    table = ask("exp004_grassmann", Toy(model, lambda y, k: y.square().sum((-1, -2))), some)
    from backend.analyses._perturbed import ANGLES

    turned, raised, any_ = (rows_of(table, kind) for kind in ("turned", "raised", "any"))
    stacked = {c: [np.stack(t[c].to_list()) for t in (turned, raised, any_)] for c in ("sizes", "angles", "distances")}
    np.testing.assert_allclose(stacked["sizes"][1:], [stacked["sizes"][0]] * 2, rtol=1e-5)
    np.testing.assert_allclose(stacked["angles"][0], np.tile(np.square(ANGLES), 10)[:, None] + np.zeros(12), rtol=1e-5)
    np.testing.assert_allclose(stacked["distances"][0], 0, atol=1e-12)
    np.testing.assert_allclose(stacked["distances"][1], np.square(stacked["sizes"][1]), rtol=1e-4)  # a normal step
    np.testing.assert_allclose(stacked["angles"][1], 0, atol=1e-9)
    np.testing.assert_allclose(np.stack(turned.energies.to_list()), 0, atol=1e-6)  # the norm stays
    np.testing.assert_allclose(np.stack(rows_of(table, "rescaled").energies.to_list()), 0, atol=1e-5)


def test_an_energy_of_size_alone_meets_the_criterion_raw_and_not_at_equal_size(low):
    model, some = low

    def bowl(y, k):
        away = y - model.schedule.abar[k] ** 0.5 * some.y.unflatten(-1, (3, 3)).repeat(len(y) // 12, 1, 1)
        return away.square().sum((-1, -2))

    toy = Toy(model, bowl)
    table = ask("exp004_grassmann", toy, some)
    np.testing.assert_allclose(rows_of(table, "size").value, 1, atol=1e-6)
    np.testing.assert_array_equal(rows_of(table, "cost more overall").value, 0.5)
    assert verdicts("exp004_grassmann", toy, table) == [
        "met by its null", "met by its null", "fails", "cannot be tested here"], "both paths cost the same"  # fmt: skip


def lowly(tail=0.0, **changed):
    """The verdicts on a table in which everything speaks for low rank; {what: (low, value, high)} is changed."""
    known = {"size": (0.8, 0.9, 1), "cost more overall": (0.65, 0.7, 0.75), "tail": (tail, tail, tail),
             "geodesic middle": (1, 2, 3), "rescaled middle": (4, 5, 6), "straight middle": (4, 5, 6),
             **{f"{a}{b}": (0.2, 0.3, 0.4) for a in ("angle", "distance") for b in ("", " | size")}}  # fmt: skip
    known |= {name.replace("_", " ").replace(" given ", " | "): ends for name, ends in changed.items()}
    rows = [{"level": 0, "at": 0, "what": what, "low": a, "value": b, "high": c} for what, (a, b, c) in known.items()]
    return [c.verdict for c in registry()["exp004_grassmann"].judge(pd.DataFrame(rows), View(params={"rank": 1}))]


def test_low_rank_is_told_by_the_ends_of_intervals_and_where_solutions_have_the_rank():
    assert lowly() == ["holds"] * 4
    open_, below = (0.05, 0.3, 0.5), (-0.1, 0.0, 0.1)
    assert lowly(angle_given_size=(-0.05, 0.2, 0.5))[0] == "met by its null", "size alone would do"
    assert lowly(cost_more_overall=(0.45, 0.5, 0.6))[2] == lowly(geodesic_middle=(6, 7, 8))[3] == "fails"
    assert lowly(angle_given_size=below)[0] == lowly(distance_given_size=below)[1] == "met by its null"
    assert lowly(angle=below)[0] == lowly(distance=below, distance_given_size=below)[1] == "fails"
    told = [lowly(cost_more_overall=(0.55, 0.7, 0.85))[2], lowly(geodesic_middle=(1, 3, 4.5))[3],
            lowly(rescaled_middle=(2.5, 5, 7))[3], lowly(angle_given_size=open_)[0], lowly(angle=open_)[0],
            lowly(distance_given_size=open_)[1], lowly(distance=open_, distance_given_size=below)[1]]  # fmt: skip
    assert set(told) == {"cannot be tested here"}, "intervals that hold what is asked"
    assert lowly(tail=0.5) == ["holds", "holds", "cannot be tested here", "cannot be tested here"]


def test_a_trained_rank_1_energy_knows_the_distance_and_an_inverse_the_size(rank1):
    table = ask("exp004_grassmann", rank1, problems(rank1, 32))
    assert verdicts("exp004_grassmann", rank1, table) == ["fails", "holds", "holds", "holds"]
    other = shipped_energy("inverse-3")
    table = ask("exp004_grassmann", other, problems(other, 32))
    told = verdicts("exp004_grassmann", other, table)
    assert told == ["cannot be tested here", "met by its null", "cannot be tested here", "cannot be tested here"]
    angle = rows_of(table, "angle | size").iloc[0]
    assert angle.value < 0.1 and angle.low == pytest.approx(0, abs=0.02), "its interval holds next to nothing, and .1"


# ---------------------------------------------------------------- EXP-002


class Ellipse(Quadratic):
    """y'Ay/2 for the diagonal A = 1, 2, .. 9 (times 1/sigma): the same Hessian everywhere."""

    @property
    def exact(self):
        return self

    @property
    def stiff(self):
        return torch.arange(1.0, 10.0, dtype=torch.float64)

    def __call__(self, x, y, level):
        return (self.stiff * y.square()).sum(-1) / 2 / self.schedule.sigma[int(level[0])]

    def gradient(self, x, y, level):
        return self.stiff * y / self.schedule.sigma[int(level[0])]

    def hessian(self, x, y, level):
        return {"output": torch.diag(self.stiff).expand(len(y), -1, -1) / self.schedule.sigma[int(level[0])]}


@pytest.mark.parametrize("centre", ["noised", "answer"])
def test_a_quadratic_gives_its_ellipses(ideal, centre):
    model, some = Ellipse(*ideal), ideal[1]
    table = ask("exp002_landscape", model, some, centre=centre, resolution=11, problem=2)
    for k in (0, 6):
        rows = table[table.level == k].set_index("item")
        sigma = model.schedule.sigma[k]
        np.testing.assert_allclose(rows[rows.part == "direction"].curvature, [9 / sigma, 8 / sigma], rtol=1e-9)
        bent = rows[rows.part.isin(["direction", "random direction"])]
        np.testing.assert_allclose(bent.second_difference, bent.curvature, rtol=1e-6)
        z = np.stack(rows[rows.part == "plane"].along.to_list()).astype(float)
        at = rows[rows.part == "plane"]["at"].to_numpy()
        slope = [(z[5, 10] - z[5, 0]) / 2, (z[10, 5] - z[0, 5]) / 2]  # what is odd is the gradient at the centre
        want = (
            z[5, 5] + (9 * at**2 + 8 * at[:, None] ** 2) / 2 / sigma + (slope[0] * at + slope[1] * at[:, None]) / at[-1]
        )
        np.testing.assert_allclose(z, want, rtol=1e-4, atol=1e-4)
        y = some.y[2].reshape(3, 3).numpy()
        np.testing.assert_allclose(rows.loc["matrix y*"].matrix, y.ravel(), rtol=1e-6)
        np.testing.assert_allclose(rows.loc["matrix y*"].singular, np.linalg.svd(y)[1], rtol=1e-6)
        assert rows.loc["noised solution" if centre == "noised" else "answer"].off_plane < 1e-9
    assert verdicts("exp002_landscape", model, table)[:2] == ["holds", "cannot be tested here"]
    assert verdicts("exp002_landscape", model, table, plane="trajectory")[1] == "fails", "9 and 8"


def test_the_solution_lies_in_the_tangent_normal_plane_and_the_path_in_its_own(rank1):
    some = problems(rank1, 3)
    table = ask("exp002_landscape", rank1, some, plane="tangent-normal", resolution=11)
    noise = table[table.item == "solution"]
    assert noise.off_plane.max() < 1e-5
    away = np.stack(noise.coordinates.to_list())
    whole = rank1.schedule.sigma * float(some.noise[0].norm())
    np.testing.assert_allclose(np.linalg.norm(away, axis=1), whole, rtol=1e-4)
    sharp = table[(table.level == 0) & (table.part == "direction")].curvature.to_numpy()
    assert sharp[1] > 4 * sharp[0] and verdicts("exp002_landscape", rank1, table, plane="tangent-normal")[1] == "holds"
    path = ask("exp002_landscape", rank1, some, plane="trajectory", centre="answer", resolution=11)
    rows = path[(path.part == "path") & (path.level == 0)]
    inside = np.stack(rows.coordinates.to_list())
    assert (
        inside.var(0).sum() > 0.9 * (inside.var(0).sum() + rows.off_plane.var()) and inside.var(0)[0] > inside.var(0)[1]
    )
    energies = table[(table.part == "path") & (table.level == 0)].sort_values("at").energy
    assert energies.iloc[0] < energies.iloc[-1]


def test_a_valley_is_none_of_the_two_steepest_and_not_that_of_a_random_plane():
    from backend.analyses.exp002_landscape import _valley

    steep, round_ = np.array([4.0, 1.0]), np.array([1.1, 1.0])
    assert _valley("eigenvectors", steep, round_) == "cannot be tested here"
    assert _valley("trajectory", steep, round_) == _valley("trajectory", np.array([1.0, -1.0]), round_) == "holds"
    assert _valley("trajectory", steep, steep) == "met by its null"
    assert _valley("tangent-normal", round_, steep) == _valley("trajectory", round_, round_) == "fails"


def test_inference_runs_downhill_only_where_it_falls_at_every_step_and_a_straight_line_does_not():
    from backend.analyses.exp002_landscape import _downhill

    def verdict(path, straight):
        rows = [{"part": part, "at": 9 - i, "energy": e} for part, along in (("path", path), ("straight", straight))
                for i, e in enumerate(along)]  # fmt: skip
        return _downhill(pd.DataFrame(rows)).verdict

    assert verdict([3, 2, 1], [3, 4, 1]) == "holds" and verdict([3, 2, 1], [3, 2, 1]) == "met by its null"
    assert verdict([3, 4, 1], [3, 4, 1]) == verdict([1, 2, 3], [1, 2, 3]) == verdict([3, 4, 1], [3, 2, 1]) == "fails"


def test_a_plane_that_is_not_there_is_refused_in_words(ideal):
    model, some = ideal
    analysis = registry()["exp002_landscape"]
    for given, words in (({"problem": 6}, "from 0 to 5"), ({"plane": "tangent-normal", "rank": 3}, "from 1 to 2")):
        with pytest.raises(BadInput, match=words):
            analysis.work(model.card, some.asked.model_copy(update={"n": 6}), analysis.params(**given))
