"""Weight and activation spectra: gauges do not matter, noise is noise, what is planted stands out, closed forms."""

import numpy as np
import pytest
import torch

from backend import analyses
from backend.analyses import _activation_spectra as activations_room
from backend.analyses import _energy
from backend.analyses import _weight_spectra as weights_core
from backend.analyses import weight_spectra as weights_room
from backend.contract import Corpus, Weights
from backend.errors import BadInput
from backend.maths import random_matrix, spectra
from backend.runs import corpora
from tests.energy_kit import problems, tiny_energy
from tests.tiny_models import opened, quiet

CORPUS = Corpus(source="random", rows=24, length=20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("spectra")
    return {kind: opened(kind, root / kind) for kind in ("native", "gpt2")}


def ask(name, model, **params):
    analysis = analyses.registry()[name]
    subject = Weights() if analysis.subject is Weights else corpora.rows_of(model.card, CORPUS)
    return analysis.compute(model, subject, analysis.params(**params), quiet)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("shape", [(40, 6, 0), (30, 20, 5)])
def test_singular_values_of_noise_need_no_large_matrix(shape):
    """Triangles drawn for it have the singular values of whole Gaussian matrices: means agree within 5 errors."""
    n, m, through = shape
    dice = np.random.default_rng(0)
    mine = np.stack([random_matrix.gaussian_singular(n, m, dice, through) for _ in range(400)])
    whole = [dice.normal(size=(n, through or m)) for _ in range(400)]
    whole = [w @ dice.normal(size=(through, m)) for w in whole] if through else whole
    plain = np.stack([np.linalg.svd(w, compute_uv=False)[: through or m] for w in whole])
    error = np.hypot(mine.std(0), plain.std(0)) / 20
    assert mine.shape == plain.shape and (np.abs(mine.mean(0) - plain.mean(0)) < 5 * error).all()
    assert (mine**2).sum(1).mean() == pytest.approx(n * m * (through or 1), rel=0.05)


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_singular_values_are_those_of_the_whole_matrices(kind, tiny):
    table, known = ask("weight_spectra", tiny[kind], draws=5), tiny[kind].weights()
    for _, row in table.iterrows():
        layer, head = row["layer"], row["head"]
        if head >= 0:
            one = {"W_QK": ("W_Q", "W_K"), "W_OV": ("W_V", "W_O")}[row["matrix"]]
            left, right = (known[name][layer][head] for name in one)
            matrix = left @ (right.T if row["matrix"] == "W_QK" else right)
        else:
            matrix = known[row["matrix"]] if layer < 0 else known[row["matrix"]][layer]
        whole = torch.linalg.svdvals(matrix.double()).numpy()
        np.testing.assert_allclose(row["singular_values"], whole[: row["rank"]], rtol=1e-5, atol=1e-7)
        assert whole[row["rank"] :].max(initial=0) < 1e-9 * whole[0] and row["norm"] == pytest.approx(matrix.norm())
        assert (row["rows"], row["columns"]) == tuple(matrix.shape)


def test_a_head_may_choose_its_inner_basis(tiny):
    """W_Q A and W_K A^-T, W_V B and B^-1 W_O are the same head: nothing of the table moves."""
    model, numbers = tiny["native"], ["norm", "largest", "stable_rank", "edge", "outliers", "participation_ratio"]
    before, attn = ask("weight_spectra", model, draws=5), model.bare.layers[1].attn
    kept = {name: t.detach().clone() for name, t in attn.named_parameters()}
    turn = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3 * torch.eye(8)
    with torch.no_grad():
        for one, other in (("q", "k"), ("v", "o")):
            a, b = getattr(attn, one).weight, getattr(attn, other).weight
            a[8:16] = turn.T @ a[8:16]
            part = b[8:16] if other == "k" else b[:, 8:16].T
            part.copy_(torch.linalg.solve(turn, part))
    try:
        after = ask("weight_spectra", model, draws=5)
    finally:
        attn.load_state_dict(kept, strict=False)
    np.testing.assert_allclose(after[numbers].to_numpy(float), before[numbers].to_numpy(float), rtol=1e-8)
    assert not torch.allclose(turn, torch.eye(8).double())


def with_values(matrix, values):
    """The matrix with these singular values."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ torch.diag(torch.as_tensor(values)) @ v


def test_noise_has_no_outliers_and_a_planted_direction_is_one(tiny):
    model = tiny["native"]
    weights = model.bare.tok_embed.weight
    kept, dice = weights.detach().clone(), torch.Generator().manual_seed(3)
    noise = torch.randn(weights.shape, generator=dice, dtype=torch.float64)
    spike = torch.outer(torch.randn(50, generator=dice).double(), torch.randn(32, generator=dice).double())
    found = {}
    try:
        for name, matrix in {"noise": 0.3 * noise, "spike": 0.3 * (noise + spike), "flat": torch.eye(50, 32),
                             "heavy": with_values(noise, np.arange(1, 33) ** -1.0)}.items():  # fmt: skip
            weights.data.copy_(matrix)
            found[name] = ask("weight_spectra", model, draws=60).set_index("matrix").loc["W_E"]
    finally:
        weights.data.copy_(kept)
    assert found["noise"]["outliers"] == 0 and abs(found["noise"]["z"]) < 3
    assert found["spike"]["outliers"] == 1 and found["spike"]["largest"] > 2 * found["spike"]["edge"]
    assert found["noise"]["edge"] == pytest.approx(0.3 * (50**0.5 + 32**0.5), rel=0.1)
    heavy = found["heavy"]
    assert heavy["z"] < -2, "a power law's tail is heavier than that of noise"
    for row in (found["noise"], heavy):
        assert row["z"] == pytest.approx((row["exponent"] - row["null_exponent"]) / row["null_sd"])
        assert row["exponent_se"] == pytest.approx((row["exponent"] - 1) / row["tail_n"] ** 0.5)
    assert found["flat"]["stable_rank"] == pytest.approx(32) == found["flat"]["participation_ratio"]


def test_the_tail_is_of_squared_singular_values():
    """Squares whose quantiles are those of x^-3 have exponent 3; the values themselves would have 5."""
    found = weights_core.tail((((np.arange(200) + 0.5) / 200) ** -0.5) ** 0.5)
    assert found["exponent"] == pytest.approx(3, abs=0.3)


def test_a_density_of_noise_integrates_to_one(tiny):
    table = ask("weight_spectra", tiny["native"], draws=20)
    for matrix in ("W_OV", "W_in", "W_E"):
        row = table[table["matrix"] == matrix].iloc[0].to_dict()
        x, y = weights_core.noise_density(row, weights_room.is_product(row))
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.03), matrix


# ---------------------------------------------------------------- activations


def cloud(scales, rows=40, length=50, seed=0):
    """Independent Gaussian tokens [row, pos, d] with these standard deviations by coordinate."""
    drawn = torch.randn(rows, length, len(scales), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn * torch.as_tensor(scales, dtype=torch.float64)


def told(x, **params):
    return activations_room.measured(x, activations_room.SpectraOfActivationsParams(**params))


def test_the_dimension_of_a_gaussian_is_its_closed_form():
    """Turned as it may be: (sum v)^2 / sum v^2; equal variances give d, and the shuffled null sees the coordinates."""
    scales = np.linspace(1, 3, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(5)).double()).Q
    ratio = (scales**2).sum() ** 2 / (scales**4).sum()
    flat, turned = told(cloud(scales)), told(cloud(scales) @ turn)
    assert flat["participation_ratio"] == pytest.approx(ratio, rel=0.05)
    assert turned["participation_ratio"] == pytest.approx(flat["participation_ratio"]), "a turn changes nothing"
    assert turned["rankme"] == pytest.approx(flat["rankme"]) and turned["variance"] == pytest.approx(flat["variance"])
    v = ((cloud(scales) @ turn).flatten(0, 1).var(0)).numpy()
    assert turned["participation_ratio_null"] == pytest.approx(v.sum() ** 2 / (v**2).sum(), rel=0.03)
    few = [told(cloud(np.ones(12), rows=2, length=10, seed=s))["participation_ratio"] for s in range(30)]
    assert np.mean(few) == pytest.approx(12, rel=0.1), "20 tokens: the plain ratio is 7.4"
    share = scales / scales.sum()
    assert told(cloud(scales))["rankme"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=0.01)
    line = cloud([1.0])[..., [0] * 8]
    assert told(line)["participation_ratio"] == pytest.approx(1) and told(line)["top_share"] == pytest.approx(1)


def test_errors_are_as_wide_as_other_corpora_make_them():
    scales, shared = np.append(np.linspace(1, 3, 11), 6.0), []
    for seed in range(24):  # tokens of a row share half of what they are
        rows = cloud(scales, length=1, seed=100 + seed)
        shared.append(told(rows + 0.7 * cloud(scales, seed=seed)))
    for name in ("participation_ratio", "top_share"):
        spread = np.std([one[name] for one in shared], ddof=1)
        assert 0.6 < np.median([one[f"{name}_se"] for one in shared]) / spread < 1.6, name


def test_a_planted_coordinate_is_named_and_taken_out():
    scales = np.ones(32)
    scales[[7, 20]] = 30.0, 10.0
    found = told(cloud(scales), rogue_times=2.0)
    assert found["rogue"] == "7 20" and found["coordinate"] == 7
    assert found["coordinate_share"] == pytest.approx(900 / 1030, rel=0.02)
    assert found["participation_ratio"] < 1.5 and found["ratio_without"] == pytest.approx(30, rel=0.05)
    assert told(cloud(np.ones(32)))["rogue"] == ""


def test_activations_are_those_of_the_model_whatever_the_batches(tiny, monkeypatch):
    model, tokens = tiny["native"], torch.from_numpy(corpora.rows_of(tiny["native"].card, CORPUS).tokens)
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 20 * 96 * 5)
    table = ask("activation_spectra", model).set_index(["layer", "point"])
    for place in [(0, "attn_out"), (1, "mlp_out"), (1, "resid_post")]:
        x = model.capture(tokens, [place[1]], [place[0]])[place[1], place[0]].flatten(0, 1)
        row = table.loc[place]
        assert row["participation_ratio"] == pytest.approx(float(spectra.participation_ratio(x)))
        np.testing.assert_allclose(row["eigenvalues"].sum(), float(x.var(0).sum()), rtol=1e-5)


# ---------------------------------------------------------------- hidden layers of an energy model


def test_hidden_layers_are_read_at_their_level_and_one_direction_is_one(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some, read = problems(model, 40), analyses.registry()["energy_activations"]
    before = read.compute(model, some, read.params(draws=1), quiet).set_index(["level", "point"])
    heard = {}
    hooks = [getattr(model.net, f"fc{i}").register_forward_hook(lambda _, a, out, i=i: heard.update({i: (a[0], out)}))
             for i in (1, 2, 3, 4)]  # fmt: skip
    with torch.no_grad():
        model.net(some.x, _energy.noised(model, some, 3), model.level(3, 40))
    for hook in hooks:
        hook.remove()
    for at, point in enumerate(("h1", "h2", "h3"), start=1):
        x = heard[at + 1][0]  # what the next layer reads
        values = torch.linalg.eigvalsh(x.T.cov()).flip(0).clamp_min(0)
        np.testing.assert_allclose(before.loc[(3, point), "eigenvalues"], values, rtol=1e-5, atol=1e-9)
        assert before.loc[(3, point), "variance"] == pytest.approx(float(x.var(0).sum()))
    assert before.index.get_level_values("level").nunique() == 10 and before.participation_ratio_se.min() > 0
    with torch.no_grad():
        model.net.fc1.weight.copy_(1e-4 * torch.outer(torch.randn(len(model.net.fc1.weight)), torch.ones(8)))
    after = read.compute(model, some, read.params(draws=1), quiet).set_index(["level", "point"])
    assert after.loc[(3, "h1"), "participation_ratio"] == pytest.approx(1, abs=1e-3)
    assert after.loc[(3, "h1"), "participation_ratio_null"] > 2, "the null has its variances in all units"
    with pytest.raises(BadInput, match="Ask about more"):
        read.compute(model, problems(model, 3), read.params(), quiet)
