"""The card of a feature: its numbers are those of the table of all features and of the weights written out."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import analyses
from backend.analyses import feature_card as room
from backend.contract import Corpus, View
from backend.errors import BadInput
from backend.maths.sae import Sae
from backend.runs import corpora
from tests.sae_kit import sae_run
from tests.tiny_models import opened, quiet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("feature-card")
    made = {kind: opened(kind, root / kind) for kind in ("native", "llama")}
    for kind, model in made.items():
        for point in ("resid_post", "mlp_post"):
            sae_run(root / kind / "runs" / point, model, 0, point=point)
        dead = sae_run(root / kind / "runs" / "dead", model, 0) / "checkpoints" / "step_00000000.safetensors"
        tensors = load_file(dead)
        tensors["b_enc"][7] = -1e6
        save_file(tensors, dead)
    return made


def ask(name, model, **params):
    analysis = analyses.registry()[name]
    rows = corpora.rows_of(model.card, Corpus(source="random", rows=20, length=16))
    return analysis.compute(model, rows, analysis.params(**({"sae": "resid_post"} | params)), quiet), rows


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_its_numbers_are_those_of_all_features(kind, tiny):
    features = ask("sae_features", tiny[kind])[0].set_index("feature")
    feature = int(features["density"].idxmax())
    card, rows = ask("feature_card", tiny[kind], feature=feature, n=3, context=2)
    here = card[card["offset"] == 0].set_index(["kind", "example"])
    assert here.loc[("top", 0), "value"] == pytest.approx(features.loc[feature, "max"], abs=1e-12)
    assert int(here.loc[("top", 0), "rank"]) == 0
    assert str(here.loc[("top", 0), "token"]) == features.loc[feature, "tops"].split()[0]
    near = here.loc[("near", 0)]
    assert near["feature"] == features.loc[feature, "nearest"]
    assert near["value"] == pytest.approx(features.loc[feature, "nearest_cosine"], abs=1e-6)
    for way in ("raises", "lowers"):
        listed = " ".join(str(here.loc[(way, i), "token"]) for i in range(5))
        assert listed == features.loc[feature, way]
    assert here.loc[("raises", 0), "value"] == pytest.approx(features.loc[feature, "effect"], abs=1e-5)
    assert all(rows.tokens[r, p] == t for r, p, t in card[["row", "pos", "token"]].dropna().to_numpy(int))


def test_activations_are_the_encoders_and_quantiles_those_of_active_tokens(tiny):
    model = tiny["native"]
    card, rows = ask("feature_card", model, feature=5, n=2, context=1)
    stream = model.capture(torch.from_numpy(rows.tokens), ["resid_post"], [0])["resid_post", 0]
    acts = Sae(model.card.d_model, 48, 4, seed=0).double().encode(stream)[..., 5].detach().numpy()
    shown = card.dropna(subset=["row"])
    assert (shown["value"].to_numpy() == acts[shown["row"].astype(int), shown["pos"].astype(int)]).all()
    here = shown[(shown["offset"] == 0) & (shown["example"] == 0)].set_index("kind")["value"]
    active = acts[acts > 0]
    for name, q in (("q90", 0.9), ("q50", 0.5)):
        assert here[name] == active[np.abs(active - np.quantile(active, q)).argmin()] > 0


def test_what_is_written_is_read_through_the_weights_that_follow(tiny):
    model = tiny["native"]
    card, _ = ask("feature_card", model, sae="mlp_post", feature=3)
    weights = model.weights()
    effect = Sae(64, 48, 4, seed=0).W_dec.detach().double()[3] @ weights["W_out"][0] @ weights["W_U"]
    effect -= effect.mean()
    raised = card[card["kind"] == "raises"].reset_index()
    assert list(raised["token"]) == effect.argsort(descending=True)[:8].tolist()
    np.testing.assert_allclose(raised["value"], effect[raised["token"].to_numpy(int)], atol=1e-6)


def test_a_random_feature_writes_no_more_than_the_null(tiny):
    """Decoder rows drawn at random are their own null: mean over features of the first place is the null's, +- 10 %."""
    model, rows = tiny["native"], Sae(32, 48, 4, seed=0).W_dec.detach().double()
    made = {"point": "resid_post", "layer": 0}
    tables = [room.lists(model, made, rows, i, 3, 0).set_index(["kind", "example"]) for i in range(48)]
    for kind in room.LISTS:
        told, null = (np.mean([t.loc[(kind, 0), c] for t in tables]) for c in ("value", "null"))
        assert told == pytest.approx(null, rel=0.1), kind
    planted = rows.clone()
    planted[1] = planted[0] + 0.1 * planted[1]
    near = room.lists(model, made, planted, 0, 3, 0).set_index(["kind", "example"]).loc["near"]
    assert near.loc[0, "feature"] == 1 and near.loc[0, "value"] > 0.9 > 2 * near.loc[0, "null"] - 0.6


def test_a_dead_feature_shows_only_random_tokens(tiny):
    card, _ = ask("feature_card", tiny["native"], sae="dead", feature=7)
    assert set(card["kind"]) == {"random", *room.LISTS}
    figures = analyses.registry()["feature_card"].figures
    assert figures["contexts"].build(card, View()).data


def test_a_feature_that_is_not_there_is_refused(tiny):
    with pytest.raises(BadInput, match="features 0 to 47"):
        ask("feature_card", tiny["native"], feature=48)


def test_batches_of_rows_change_nothing(tiny, monkeypatch):
    whole, _ = ask("feature_card", tiny["native"], feature=5)
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 16 * 144 * 3)
    pd.testing.assert_frame_equal(whole, ask("feature_card", tiny["native"], feature=5)[0], atol=1e-12)
