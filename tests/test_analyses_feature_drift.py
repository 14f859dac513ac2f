"""Features at another checkpoint: at their own they are sae_features', a turned basis is told in closed form."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import analyses
from backend.contract import Corpus, View, Weights, parse_spec
from backend.errors import Unfit
from backend.maths import sae as maths
from backend.models.open import open_model
from backend.runs import corpora
from tests.sae_kit import sae_run
from tests.tiny_models import opened, quiet, settings

CORPUS = Corpus(source="training", rows=12, length=32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The shipped run at two checkpoints, an SAE for each, and one whose directions are those of step 200 turned."""
    given = settings(tmp_path_factory.mktemp("drift"))
    models = {step: open_model(parse_spec("run:induction-demo", step), given) for step in (200, 1200)}
    for step, model in models.items():
        sae_run(given.runs / f"at-{step}", model, seed=0)
    file = sae_run(given.runs / "turned", models[1200]) / "checkpoints" / "step_00000000.safetensors"
    tensors = load_file(file)
    tensors["W_dec"] = (tensors["W_dec"].double() @ turn(64, 0.3)).float().contiguous()
    save_file(tensors, file)
    return models


def turn(d: int, angle: float) -> torch.Tensor:
    """A rotation by one angle in d / 2 planes that are orthogonal: the cosine of every vector with its image is cos."""
    plane = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return torch.block_diag(*[plane] * (d // 2)).double()


def ask(name, model, **params):
    analysis = analyses.registry()[name]
    subject = Weights() if analysis.subject is Weights else corpora.rows_of(model.card, CORPUS)
    return analysis.compute(model, subject, analysis.params(**params), quiet)


def test_at_its_own_checkpoint_it_is_sae_features(runs):
    here, whole = ask("feature_drift", runs[200], sae="at-200"), ask("sae_features", runs[200], sae="at-200")
    for column in ("density", "density_se", "mean_active", "max"):
        np.testing.assert_array_equal(here[column], whole[column])


def test_at_another_it_is_the_dictionary_by_hand(runs, monkeypatch):
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 32 * 144 * 5)
    model = runs[1200]
    tokens = torch.from_numpy(corpora.rows_of(model.card, CORPUS).tokens)
    x = model.capture(tokens, ["resid_post"], [0])["resid_post", 0].flatten(0, 1)
    told = maths.measures(maths.Sae(64, 48, 4, seed=0).double(), x)
    table = ask("feature_drift", model, sae="at-200")
    assert table["fvu"][0] == pytest.approx(told["fvu"], rel=1e-9) and table["l0"][0] == pytest.approx(told["l0"])
    assert table["fvu_low"][0] < table["fvu"][0] < table["fvu_high"][0]
    assert table["density"].sum() == pytest.approx(table["l0"][0])
    other = ask("feature_drift", runs[200], sae="at-200")
    assert not np.allclose(other["density"], table["density"])


def test_on_gaussian_activations_the_null_is_what_is_measured():
    """The null of a Gaussian is itself: densities agree within 5 standard errors of a binomial."""
    from backend.analyses import feature_drift as room

    x = torch.randn(6000, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.linspace(
        1, 3, 16
    )
    sae = maths.Sae(16, 40, 3, seed=0).double()
    null, here = room._null(maths, sae, x, 0), (sae.encode(x) > 0).double().mean(0).numpy()
    assert np.abs(null["density_null"] - here).max() < 5 * np.sqrt(2 * 0.25 / 6000)
    assert null["fvu_null"] == pytest.approx(maths.measures(sae, x)["fvu"], rel=0.03)
    two = torch.zeros(6000, 16, dtype=torch.float64)
    two[range(6000), torch.arange(6000) % 2] = 5.0  # never both: no Gaussian
    apart = (room._null(maths, sae, two, 0)["density_null"] - (sae.encode(two) > 0).double().mean(0).numpy())
    assert np.abs(apart).max() > 0.1


def test_two_checkpoints_autoencoders_agree_as_far_as_they_were_turned(runs):
    table = ask("sae_agreement", runs[1200], a="turned", b="at-200")
    assert table["mcc"][0] == pytest.approx(math.cos(0.3), abs=1e-5)
    np.testing.assert_allclose(table["cosine"], math.cos(0.3), atol=1e-5)
    assert table["mcc_null"][0] < 0.5 and (table["partner"] == table["feature"]).all()
    assert ask("sae_agreement", runs[200], a="at-200", b="at-1200")["mcc"][0] == pytest.approx(1)


def test_only_another_checkpoint_of_its_run_may_be_asked(runs, tmp_path):
    with pytest.raises(Unfit, match="it was trained for run:induction-demo, step 200"):
        ask("sae_features", runs[1200], sae="at-200")
    foreign = opened("native", tmp_path)
    sae_run(tmp_path / "runs" / "foreign", foreign)
    foreign.card.fingerprint = (
        "0" * 32
    )  # other weights in the folder of that name; a run's step is known, so it is asked
    assert len(ask_random(foreign, "foreign")) == 48
    foreign.card.spec = "run:elsewhere"
    with pytest.raises(Unfit):
        ask_random(foreign, "foreign")


def ask_random(model, sae):
    analysis = analyses.registry()["feature_drift"]
    subject = corpora.rows_of(model.card, Corpus(source="random", rows=3, length=8))
    return analysis.compute(model, subject, analysis.params(sae=sae), quiet)


def test_its_figures_are_drawn(runs):
    table = ask("feature_drift", runs[200], sae="at-1200")
    for figure in analyses.registry()["feature_drift"].figures.values():
        assert figure.build(table, View()).data


def test_a_direction_may_be_added_at_any_checkpoint_of_its_run(runs):
    from backend.analyses import _intervening

    tokens = torch.arange(6)[None]
    moved = _intervening.run(runs[1200], tokens, "add L0.resid_post 3 feature at-200 5")
    assert not torch.allclose(moved, runs[1200].logits(tokens))
