"""Loss slices, paths between models, kernels, learning coefficients: what second differences, permutations and linear
models force."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from backend import analyses
from backend.analyses import _at_weights
from backend.analyses import _learning as llc_room
from backend.analyses import _paths as path_room
from backend.analyses import _slices as slices_room
from backend.analyses import ntk as ntk_room
from backend.analyses._units import log_probs, row_losses
from backend.contract import Corpus, parse_spec
from backend.errors import BadInput, PhasescopeError, Unfit
from backend.maths import learning_coefficient as llc_maths
from backend.maths import matching, products
from backend.maths.matching import Group
from backend.models.open import open_model
from backend.runs import corpora
from backend.settings import SHIPPED_RUNS
from tests.tiny_models import NATIVE, native_run, opened, quiet, settings

CORPUS = Corpus(source="random", rows=6, length=8)
TRAINING = Corpus(source="training", rows=8, length=32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("landscapes")
    return {kind: opened(kind, root / kind) for kind in ("native", "gpt2")}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return open_model(parse_spec("run:induction-demo"), settings(tmp_path_factory.mktemp("demo"), "float32"))


def rows(model, corpus=CORPUS):
    return corpora.rows_of(model.card, corpus)


def ask(name, model, corpus=CORPUS, **params):
    analysis = analyses.registry()[name]
    return analysis.compute(model, rows(model, corpus), analysis.params(**params), quiet)


def own_loss(model):
    tokens = torch.as_tensor(rows(model).tokens)
    return row_losses(model, tokens, log_probs(model.logits(tokens))).numpy()


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_a_slices_middle_is_the_model_and_its_second_difference_the_hessian(kind, tiny, monkeypatch):
    model = tiny[kind]
    before = {name: t.detach().clone() for name, t in model.parameters().items()}
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 2**14)  # several batches, several graphs
    table = ask("loss_slices", model, directions=2, points=5, grid=3, step=1e-3, reach=0.5)
    middle = table[(table["a"] == 0) & (table["b"] == 0)]
    np.testing.assert_allclose(middle["loss"], own_loss(model).mean(), rtol=1e-12)
    assert (middle["rise_se"] == 0).all() and len(table) == 2 * 5 + 9
    each = table[table["direction"] >= 0].groupby("direction").first()
    np.testing.assert_allclose(each["second_difference"], each["curvature"], rtol=2e-3)
    ends = table[(table["direction"] == 0) & (table["a"] == 0.5)].iloc[0]
    plane = table[(table["direction"] == -1) & (table["a"] == 0.5) & (table["b"] == 0)].iloc[0]
    assert ends["loss"] == pytest.approx(plane["loss"]) and ends["loss"] != pytest.approx(ends["null"])
    assert all(torch.equal(t, before[name]) for name, t in model.parameters().items()), "the model is left as it was"


def test_near_the_middle_the_plane_is_the_hessians_ellipse(tiny):
    """L = c + g.x + x'Qx / 2 with Q from exact products, the mixed term by d_0 + d_1."""
    model = tiny["native"]
    params = slices_room.SlicesParams(directions=2, grid=5, points=5, reach=0.001, step=0.002)
    table = ask("loss_slices", model, **params.model_dump())
    plane = table[table["direction"] == -1]
    a, b = plane["a"].to_numpy(), plane["b"].to_numpy()
    columns = np.stack([np.ones_like(a), a, b, a**2 / 2, a * b, b**2 / 2], 1)
    fitted = np.linalg.lstsq(columns, plane["loss"].to_numpy(), rcond=None)[0][3:]
    losses = _at_weights.Losses(model, rows(model).tokens)
    one, two = slices_room.drawn_directions(losses.own, params)
    first, second, both = losses.curvatures([one, two, {name: one[name] + two[name] for name in one}])
    exact = np.array([first, (both - first - second) / 2, second])
    np.testing.assert_allclose(fitted, exact, atol=2e-3 * np.abs(exact).max())


def test_one_row_has_no_error_and_half_precision_is_refused(tiny):
    model = tiny["native"]
    table = ask("loss_slices", model, Corpus(source="random", rows=1, length=8), directions=2, points=5, grid=3)
    assert table["rise_se"].isna().all()
    kept = {name: t.data for name, t in model.parameters().items()}
    for t in model.parameters().values():
        t.data = t.data.bfloat16()
    try:
        with pytest.raises(Exception, match="weights are bfloat16.*PHASESCOPE_DTYPE"):
            _at_weights.Losses(model, rows(model).tokens)
    finally:
        for name, t in model.parameters().items():
            t.data = kept[name]


# ---------------------------------------------------------------- paths between models


def write_run(folder, like, state):
    """A run that holds these weights for the model of the run `like`."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(like / "run.json", folder / "run.json")
    save_file({name: t.contiguous() for name, t in state.items()},
              folder / "checkpoints" / "step_00000000.safetensors")  # fmt: skip


def reordered(model, seed=0):
    """The model's weights with coordinates, heads and neurons in random order."""
    now, dice = {name: t.detach() for name, t in model.parameters().items()}, np.random.default_rng(seed)
    for _, places in model.exchangeable():
        now = matching.permuted(now, Group(tuple(places)), dice.permutation(len(places[0][2])))
    return now


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_no_order_of_units_changes_what_a_model_computes(kind, tiny):
    model, tokens = tiny[kind], torch.arange(12)[None]
    copy = reordered(model)
    torch.testing.assert_close(model.logits_at(copy, tokens), model.logits(tokens))
    moved = [name for name, t in model.parameters().items() if not torch.equal(t, copy[name])]
    assert {"tok_embed.weight" if kind == "native" else "transformer.wte.weight"} < set(moved)
    groups = [Group(tuple(places)) for _, places in model.exchangeable()]
    back, _ = matching.matched({name: t.detach() for name, t in model.parameters().items()}, copy, groups)
    assert all(torch.equal(t, back[name]) for name, t in model.parameters().items())


def test_heads_that_share_keys_move_together(tmp_path):
    config = {**NATIVE, "n_key_value_heads": 2}
    native_run(tmp_path / "runs" / "shared", config)
    model, tokens = open_model(parse_spec("run:shared"), settings(tmp_path)), torch.arange(12)[None]
    torch.testing.assert_close(model.logits_at(reordered(model), tokens), model.logits(tokens))


def test_a_permuted_copy_is_one_basin_after_matching_and_a_model_beside_itself_before(demo):
    write_run(demo.settings.runs / "permuted", SHIPPED_RUNS / "induction-demo", reordered(demo))
    table = ask("mode_connectivity", demo, TRAINING, other="permuted", points=5, bend_steps=2)
    each = table.groupby("path").first()
    assert each.loc["straight", "barrier_low"] > 1 and each.loc["straight", "distance"] > 1
    assert each.loc["matched", "barrier"] < 1e-5 and each.loc["matched", "distance"] == 0
    assert each.loc["copy", "barrier"] > 1 and each.loc["copy, matched", "barrier"] < 1e-5
    ends = table[table["path"] == "straight"].set_index("t")["loss"]
    tokens = torch.as_tensor(rows(demo, TRAINING).tokens[4:])
    own = row_losses(demo, tokens, log_probs(demo.logits(tokens))).mean()
    assert ends[0.0] == pytest.approx(float(own), abs=1e-5) == ends[1.0], "the half of the rows that trains no bend"
    itself = ask("mode_connectivity", demo, TRAINING, other_step=1200, points=5, bend_steps=2)
    first = itself[itself["path"] == "straight"]
    assert first["barrier"].max() < 1e-5 and (first["distance"] == 0).all()


def test_a_barriers_interval_holds_ninety_five_percent():
    """The middle of 400 rows is N(5, 1), the ends are 0: the interval is 3.92 standard errors wide."""
    middle = np.random.default_rng(0).normal(5, 1, 400)
    row = path_room.table_of("straight", np.array([0, 0.5, 1]), np.stack([0 * middle, middle, 0 * middle]), 0).iloc[0]
    assert row["barrier"] == pytest.approx(middle.mean()) and row["barrier_low"] < row["barrier"] < row["barrier_high"]
    assert row["barrier_high"] - row["barrier_low"] == pytest.approx(3.92 * middle.std() / 20, rel=0.1)


def test_a_path_between_unequal_ends_is_held_against_the_line_of_both_row_by_row():
    """Rows l_i at t = 0, m_i at 1/4, r_i at 1: the excess of each is m_i - 3/4 l_i - 1/4 r_i, its spread their own."""
    left, middle, right = np.random.default_rng(1).normal([[1], [7], [4]], [[2], [1], [3]], (3, 50))
    table = path_room.table_of("straight", np.array([0, 0.25, 1]), np.stack([left, middle, right]), 0)
    excess = middle - 0.75 * left - 0.25 * right
    np.testing.assert_allclose(table["line"], [left.mean(), 0.75 * left.mean() + 0.25 * right.mean(), right.mean()])
    np.testing.assert_allclose(table["excess_se"], [0, excess.std(ddof=1) / 50**0.5, 0], atol=1e-15)
    row = table.iloc[0]
    assert row["barrier"] == pytest.approx(excess.mean()) and row["barrier_low"] < excess.mean() < row["barrier_high"]


class Wells(_at_weights.LossesAt):
    """A loss of two weights w: of each row |w - its centre|^2."""

    def __init__(self, own, *centres):
        self.own, self.centres, self.count = {"w": torch.tensor(own)}, torch.tensor(centres), len(centres)

    def graph(self, parameters, piece=None):
        return (parameters["w"] - self.centres).square().sum(1)

    def pieces(self, twice=False):
        return [None]


def test_a_curve_ends_at_the_matched_other_and_is_bent_by_the_rows_that_it_is_not_measured_on():
    """From (0, 1) to (1, -1): matched is (-1, 1). Rows that train lie above the way there, the others below it."""
    own, units = [0.0, 1.0], [("units", [("w", 0, np.arange(2)[:, None])])]
    training, held_out = Wells(own, [-0.5, 9.0]), Wells(own, [-0.5, -7.0], [-0.5, -7.0])
    params = path_room.PathParams(points=3, bend_steps=50, bend_lr=0.1, seed=3)
    table = path_room.walked(training, held_out, {"w": torch.tensor([1.0, -1.0])}, units, params, quiet)
    each = table.set_index(["path", "t"])
    assert each.loc[("straight", 1.0), "loss"] == 1.5**2 + 6**2
    for path in ("matched", "curved"):
        assert each.loc[(path, 1.0), "loss"] == 0.5**2 + 8**2 and each.loc[(path, 1.0), "distance"] == 1
    assert each.loc[("matched", 0.5), "loss"] == 8**2 < each.loc[("curved", 0.5), "loss"] - 10
    assert each.loc[("straight", 0.0), "distance"] == 5**0.5
    assert each.loc[("copy", 0.0), "distance"] == 2**0.5 and each.loc[("copy, matched", 0.0), "distance"] == 0


def test_a_bend_lowers_the_loss_on_its_way(demo):
    corpus = Corpus(source="training", rows=24, length=64)
    few, many = (ask("mode_connectivity", demo, corpus, points=3, bend_steps=n, rows_used=24) for n in (1, 40))
    middle = [float(t[(t["path"] == "curved") & (t["t"] == 0.5)]["loss"].iloc[0]) for t in (few, many)]
    assert middle[1] < middle[0] - 0.1


def test_models_that_cannot_be_joined_say_why(tiny, tmp_path):
    model = tiny["native"]
    native_run(model.settings.runs / "wider", {**NATIVE, "d_mlp": 32})
    shape = r"fc_in.weight is \(32, 32\) there and \(64, 32\) here"
    step = "Step 7 of run .tiny.: no checkpoint"
    for given, words in (({"other": "wider"}, shape), ({"other": "nobody"}, "no such run"), ({"other_step": 7}, step)):
        with pytest.raises(PhasescopeError, match=words):
            ask("mode_connectivity", model, points=3, **{"other": "tiny", **given})
    with pytest.raises(BadInput, match="none is named"):
        ask("mode_connectivity", tiny["gpt2"], points=3)
    neox = opened("neox", tmp_path)
    assert set(path_room.ends_of(neox.parameters(), neox.parameters(), [], 0)) == {"straight"}
    with pytest.raises(Unfit, match="Use a native or GPT-2 model"):
        neox.exchangeable()


# ---------------------------------------------------------------- tangent kernels


def kernel(model, **params):
    params = ntk_room.NtkParams(**params)
    losses = _at_weights.Losses(model, _at_weights.used(rows(model), params.rows_used))
    return ntk_room.kernel_of(losses, losses.own, params, quiet, 0.0)


def test_by_the_unembedding_alone_a_model_is_linear_and_its_kernel_exact(tiny):
    """Logits are linear in W_U: K_ij = [same answer] <h_i, h_j>, h what the unembedding reads."""
    model = tiny["native"]
    found, right = kernel(model, output="logit", block="head.weight", positions=3)
    streams = model.capture(torch.as_tensor(rows(model).tokens), ["resid_post"], [1])["resid_post", 1]
    h = model.bare.ln_out(streams).detach()[:, [0, 3, 6]].flatten(0, 1)
    same = torch.as_tensor(right[:, None] == right[None]).double()
    torch.testing.assert_close(found, (h @ h.T) * same)
    np.testing.assert_array_equal(right, rows(model).tokens[:, [1, 4, 7]].ravel())
    summed, _ = kernel(model, output="sum of logits", block="head.weight", positions=3)
    torch.testing.assert_close(summed, 50 * h @ h.T)


def test_a_kernel_is_what_a_step_on_one_sample_does_to_the_others(tiny):
    """f_i(w + e g_j) - f_i(w - e g_j) = 2 e K_ij, g_j the gradient of f_j."""
    model, params = tiny["gpt2"], ntk_room.NtkParams(positions=2)
    found, _ = kernel(model, positions=2)
    losses = _at_weights.Losses(model, rows(model).tokens)

    def told(at):
        return torch.cat([ntk_room.outputs(model, at, row[None], params)[0] for row in losses.tokens])

    at = {name: t.clone().requires_grad_() for name, t in losses.own.items()}
    step = torch.autograd.grad(told(at)[5], list(at.values()))
    ends = []
    for size in (1e-5, -1e-5):
        with torch.no_grad():
            ends.append(told({name: t + size * g for (name, t), g in zip(losses.own.items(), step, strict=True)}))
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, found[5], rtol=1e-4, atol=1e-4 * float(found.max()))


def test_at_its_first_checkpoint_nothing_has_drifted_and_later_it_has(tiny, demo):
    row = ask("ntk", tiny["native"], positions=3, shuffles=20).iloc[0]
    assert row["drift"] == 0 and row["likeness"] == pytest.approx(1) and row["alignment"] == row["alignment_first"]
    assert row["samples"] == 18 and 1 <= row["effective_rank"] <= 18
    later = ask("ntk", demo, TRAINING, positions=2, shuffles=20).iloc[0]
    assert later["drift"] > 0.3 and later["likeness"] < 0.9 and later["drift_se"] > 0
    alone = ask("ntk", demo, TRAINING, positions=2, first_step=-1, shuffles=20)
    assert alone[["drift", "eigenvalue_first", "alignment_first"]].isna().all(axis=None)
    assert alone["eigenvalue"].iloc[0] == pytest.approx(later["eigenvalue"])
    with pytest.raises(BadInput, match="Parameters named 'nothing'"):
        ask("ntk", demo, TRAINING, block="nothing")


def test_alignment_is_told_from_chance():
    """A kernel of equal answers has p = 1 / (1 + shuffles); a random one is no more than its null."""
    dice, params = np.random.default_rng(0), ntk_room.NtkParams(shuffles=99)
    right = dice.integers(4, size=30)
    features = torch.as_tensor(dice.normal(size=(30, 200)))
    planted = features @ features.T / 200 + 0.5 * ntk_room._same(right)
    assert ntk_room._shuffled(planted, right, params)["p"] == pytest.approx(0.01)
    chance = [ntk_room._shuffled(f @ f.T, right, params)["p"]
              for f in (torch.as_tensor(dice.normal(size=(30, 200))) for _ in range(12))]  # fmt: skip
    assert 0.2 < np.mean(chance) < 0.8


# ---------------------------------------------------------------- learning coefficients


def test_chains_begin_at_the_model_and_are_told_one_by_one(tiny):
    """Held firmly they stay where the loss is the model's own; an estimate is n / log n times its mean rise."""
    table, n = ask("learning_coefficient", tiny["native"], chains=2, draws=10, burn=10, localisation=1e7), 6 * 7
    row, each = table.iloc[0], table.groupby("chain")["rise"].mean() * n / np.log(n)
    np.testing.assert_allclose(each, table.groupby("chain")["chain_estimate"].first())
    assert 0 < table["rise"].abs().max() < 0.02 and abs(row["free"]) < 0.1
    losses, params = _at_weights.Losses(tiny["native"], rows(tiny["native"]).tokens), llc_room.LearningParams
    like = list(losses.own.values())
    free = llc_room._free(losses, products.flat(like, like), params(localisation=1e7),
                          lambda w: dict(zip(losses.own, products.shaped(w, like), strict=True)))  # fmt: skip
    assert row["free"] == pytest.approx(n / np.log(n) * free, rel=1e-3)
    assert row["tokens"] == n and len(table) == 20 and (row["trouble"] == "") == (row["estimate"] == row["estimate"])


def test_the_localiser_alone_rises_by_its_own_width():
    """Of |w|^2 / 2 in d dimensions draws of variance 1 / gamma rise by d / (2 gamma)."""

    class Bowl:
        own = torch.zeros(4000)

        def rows(self, w):
            return (w.square().sum() / 2)[None]

    for gamma in (1.0, 16.0):
        params = llc_room.LearningParams(localisation=gamma)
        free = llc_room._free(Bowl(), Bowl.own, params, lambda w: w)
        assert free == pytest.approx(2000 / gamma, rel=0.03)


def test_what_is_refused_says_which_knob():
    flat = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))

    def found(trouble):
        return llc_room._table(llc_maths.Coefficient(1.0, 0.1, 0.6, 1.0, 0.1, flat, trouble), 1000, 5.0).iloc[0]

    assert found("")["trouble"] == "" and found("")["estimate"] == 1.0
    assert found("")["high"] - 1 == pytest.approx(0.1 * 3.1824463), "the t interval of 4 chains"
    knobs = {"not mixed: R-hat 1.90": "more draws", "negative: the start is no minimum": "later checkpoint",
             "acceptance 0.02": "more burn-in", "the chains left for infinity": "larger localisation"}  # fmt: skip
    for trouble, words in knobs.items():
        row = found(trouble)
        assert words in row["trouble"] and trouble in row["trouble"] and np.isnan(row["estimate"]), trouble


def scanned(rises, error=0.01, trouble=("",) * 5):
    """A scan's table, its estimates given."""
    gammas = llc_room.gammas_of(llc_room.LearningParams(localisation=100.0, scan="yes"))
    assert gammas == pytest.approx([10, 31.6228, 100, 316.228, 1000])
    return pd.DataFrame({"localisation": gammas, "chain": [0, 1, 2, 3, 4], "estimate": rises, "trouble": trouble,
                         "estimate_se": np.array(rises) * error})  # fmt: skip


def test_a_scan_tells_a_plateau_from_the_localisers_own_slope():
    """Of a quadratic loss lambda is sum n beta h / (2 (n beta h + gamma)): flat below n beta h, 1 / gamma above."""
    gammas = np.array([10, 31.6228, 100, 316.228, 1000])
    of = lambda heat: 20 * heat / (2 * (heat + gammas))  # noqa: E731
    slopes = llc_maths.slopes(gammas, of(1e6), 0 * gammas, 4)
    assert max(abs(np.array(slopes)).ravel()) < 1e-3
    middle = [s for s, _, _ in llc_maths.slopes(gammas, of(1e-3), 0 * gammas, 4)]
    np.testing.assert_allclose(middle, -1, rtol=1e-3)
    assert llc_room.plateau(scanned(of(1e6))).startswith("Plateau from gamma 10 to 1e+03, lambda 10.")
    assert llc_room.plateau(scanned(of(100.0))).startswith("None is flat: the flattest slope")
    assert llc_room.plateau(scanned(of(1e6), error=0.2)).startswith("Not resolved")
    refused = ("Refused: x.",) * 4 + ("",)
    assert "4 of 5 localisations are refused" in llc_room.plateau(scanned(of(1e6), trouble=refused))


def without(*gone):
    return ["Refused: x." if i in gone else "" for i in range(5)]


@pytest.mark.parametrize(("rises", "gone", "said"), [
    ([10, 10, 10, 2, 1], (), "Plateau from gamma 10 to 100, lambda 10."),
    ([20, 10, 10, 10, 1], (), "Plateau from gamma 31.6 to 316, lambda 10."),
    ([10] * 5, (1, 2, 3), "No plateau can be told: 3 of 5 localisations are refused, no two neighbours are left."),
    ([10] * 5, (1,), "Plateau from gamma 100 to 1e+03, lambda 10."),
    ([10] * 5, (2,), "Plateaus from gamma 10 to 31.6, lambda 10; from gamma 316 to 1e+03, lambda 10. They agree."),
    ([10, 10, 4, 4, 1], (), "Plateaus from gamma 10 to 31.6, lambda 10; from gamma 100 to 316, lambda 4. "
                            "They disagree: which is the loss's own is not known."),
    ([10, 10, 9, 7.9, 7.9], (2,), "Plateaus from gamma 10 to 31.6, lambda 10; from gamma 316 to 1e+03, lambda 7.9. "
                                  "Whether they agree is not resolved: more chains or draws."),
    ([40, 20, 10, 10, 5], (3,), "None is flat of those told (1 of 5 localisations are refused): the flattest slope"),
])  # fmt: skip
def test_a_plateau_is_of_neighbours_that_were_asked_and_two_are_held_against_each_other(rises, gone, said):
    """31.6, 100 and 316 refused leave no neighbours; a slope across of ln(7.9 / 10) / ln 10 = -.102 is open."""
    assert llc_room.plateau(scanned(rises, error=1e-2, trouble=without(*gone))).startswith(said)


def test_every_localisation_of_a_scan_has_a_seed_of_its_own(tiny):
    params = llc_room.LearningParams
    assert llc_room.seeds_of(params(seed=7)) == [7]
    seeds = llc_room.seeds_of(params(seed=2**31 - 1, scan="yes"))
    assert seeds[2] == 2**31 - 1 and len({s + free for s in seeds for free in (0, 1)}) == 10 and max(seeds) < 2**32
    few = {"chains": 2, "draws": 10, "burn": 10}
    scan = ask("learning_coefficient", tiny["native"], scan="yes", localisation=1e6, **few)
    for at, same in ((2, True), (4, False)):
        gamma = sorted(scan["localisation"].unique())[at]
        alone = ask("learning_coefficient", tiny["native"], localisation=gamma, **few)
        rises = scan[scan["localisation"] == gamma]["rise"].to_numpy()
        assert np.array_equal(rises, alone["rise"].to_numpy()) == same


def test_a_model_that_is_no_minimum_is_refused(tiny):
    table = ask("learning_coefficient", tiny["native"], chains=2, draws=10, burn=10, localisation=100.0, scan="yes")
    row = llc_room.asked_about(table).iloc[0]
    assert row["trouble"].startswith("Refused: ") and np.isnan(row["estimate"]) and row["localisation"] == 100
    assert len(table) == 5 * 20 and "refused" in llc_room.plateau(table)
