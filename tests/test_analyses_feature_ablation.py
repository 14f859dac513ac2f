"""Features taken out of the stream: what never fires changes nothing, all of them out leave b_dec."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import analyses
from backend.analyses import feature_ablation as room
from backend.analyses._units import log_probs, row_kl, row_losses
from backend.contract import Corpus
from backend.errors import BadInput
from backend.maths.sae import Sae
from backend.runs import corpora
from tests.sae_kit import sae_run
from tests.tiny_models import opened, quiet

KINDS = ("native", "gpt2", "llama")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("feature-ablation")
    made = {kind: opened(kind, root / kind) for kind in KINDS}
    for kind, model in made.items():
        for point in ("resid_post", "z", "mlp_post"):
            sae_run(root / kind / "runs" / point, model, 0, point=point)
        dead = sae_run(root / kind / "runs" / "dead", model, 0) / "checkpoints" / "step_00000000.safetensors"
        tensors = load_file(dead)
        tensors["b_enc"][7] = -1e6  # feature 7 never fires
        save_file(tensors, dead)
    return made


def rows(model, n=8, length=12):
    return corpora.rows_of(model.card, Corpus(source="random", rows=n, length=length))


def ask(model, **params):
    analysis = analyses.registry()["feature_ablation"]
    given = {"sae": "resid_post", "draws": 2, "top": 3} | params
    return analysis.compute(model, rows(model), analysis.params(**given), quiet).set_index("condition")


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_a_feature_that_never_fires_changes_not_one_bit(kind, tiny):
    table = ask(tiny["native"], sae="dead", feature=7, kind=kind)
    numbers = table.loc["chosen", ["loss_change", "loss_change_low", "loss_change_high", "kl", "kl_low", "kl_high"]]
    assert numbers.tolist() == [0.0] * 6
    assert table.loc["random directions", "kl"] == 0, "along any direction as little"
    assert table.loc["all features", "kl"] > 1e-3 and "alone" not in " ".join(table["features"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["resid_post", "z", "mlp_post"])
def test_everything_taken_out_leaves_b_dec(kind, point, tiny):
    """Features and error out: the point is b_dec (here 0) on every token, whatever was there."""
    model, subject = tiny[kind], rows(tiny[kind])
    table = ask(model, sae=point)
    tokens = torch.from_numpy(subject.tokens)
    intact = log_probs(model.run_with(tokens, {}))
    zero = log_probs(model.run_with(tokens, {(point, 0): torch.zeros_like}))
    assert table.loc["all and error", "loss"] == pytest.approx(float(row_losses(model, tokens, zero).mean()), abs=1e-9)
    assert table.loc["all and error", "kl"] == pytest.approx(float(row_kl(model, intact, zero).mean()), abs=1e-9)
    assert table.loc["error", "kl"] > 0 and table.loc["intact", "kl"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_features_are_taken_out_by_hand(kind, tiny):
    model, subject = tiny[kind], rows(tiny[kind])
    table = ask(model, feature=5)
    tokens, sae = torch.from_numpy(subject.tokens), Sae(model.card.d_model, 48, 4, seed=0).double()
    W_dec = sae.W_dec.detach()

    def edit(x):
        return x - sae.encode(x).detach()[..., 5:6] * W_dec[5]

    told = log_probs(model.run_with(tokens, {("resid_post", 0): edit}))
    change = row_losses(model, tokens, told) - row_losses(model, tokens, log_probs(model.run_with(tokens, {})))
    assert table.loc["chosen", "loss_change"] == pytest.approx(float(change.mean()), abs=1e-10)
    assert table.loc["chosen", "loss_change_low"] <= change.mean() <= table.loc["chosen", "loss_change_high"]


def test_all_features_chosen_are_all_features(tiny):
    table = ask(tiny["native"], top=48)
    assert table.loc["chosen", "kl"] == pytest.approx(table.loc["all features", "kl"], abs=1e-12)
    assert "random features" not in table.index, "there are no others"


def test_rows_that_are_all_alike_are_their_own_mean(tiny):
    model, subject = tiny["native"], rows(tiny["native"])
    analysis = analyses.registry()["feature_ablation"]
    same = type(subject)(np.repeat(subject.tokens[:1], 5, 0), subject.corpus)
    given = analysis.params(sae="resid_post", kind="mean", top=48, draws=1)
    table = analysis.compute(model, same, given, quiet).set_index("condition")
    assert table.loc["chosen", "kl"] < 1e-12


def test_batches_of_rows_change_no_number(tiny, monkeypatch):
    whole = ask(tiny["native"], kind="mean")
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 12 * 300 * 3)
    pd.testing.assert_frame_equal(whole, ask(tiny["native"], kind="mean"), rtol=1e-7)
    assert len(whole) == 4 + 3 + 3 and whole.loc["random features", "n"] == 2


def test_the_control_is_of_like_density_and_never_the_chosen():
    density = np.r_[np.full(20, 1e-3), np.full(20, 0.5), 0.0]
    chosen = np.array([0, 25])
    draws = room.like(density, chosen, 40, 0)
    assert len(draws) == 40 and all(len(set(d)) == 2 and not set(d) & {0, 25} for d in draws)
    assert all(sorted(density[d]) == [1e-3, 0.5] for d in draws), "one of each kind, as chosen"
    assert len({tuple(d) for d in draws}) > 20 and room.like(density, np.arange(41), 3, 0) == []


def test_random_directions_are_as_long(tiny):
    model = tiny["native"]
    found = room._directions(Sae(model.card.d_model, 48, 4).W_dec.detach()[:5] * 3, 2, 0)
    assert len(found) == 2 and torch.allclose(found[0].norm(dim=1), torch.full((5,), 3.0))
    assert not torch.allclose(found[0], found[1])


def test_a_feature_that_is_not_there_is_refused(tiny):
    with pytest.raises(BadInput, match="features 0 to 47"):
        ask(tiny["native"], feature=48)


def test_the_figure_says_the_scale_in_words(tiny):
    analysis = analyses.registry()["feature_ablation"]
    figure = analysis.figures["loss_change"].build(ask(tiny["native"]).reset_index(), None)
    names = [n for trace in figure.data for n in trace.x]
    assert "error" not in names and "for scale: all features" in json.dumps(figure.layout.to_plotly_json())
