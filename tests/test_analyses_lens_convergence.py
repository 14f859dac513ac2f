"""Convergence: the last point is the model, a layer starts where the last ended, settling is as defined."""

import numpy as np
import pytest
import torch

from backend.analyses import lens_convergence as room
from backend.analyses.lens_convergence import lens_convergence
from backend.analyses.logit_lens import logit_lens
from backend.contract import Prompt
from backend.errors import Unfit
from backend.maths.divergence import kl
from tests.tiny_models import opened, quiet

TOKENS = (3, 9, 4, 9, 1, 3, 20, 17, 2)
KINDS = {"gpt2": 1e-10, "neox": 1e-5, "llama": 1e-5, "native": 1e-10}
SAME = ["kl_to_final", "kl_null", "entropy", "top_id", "final_rank"]


def ask(model, tokens=TOKENS, **params):
    return lens_convergence.compute(model, Prompt(tokens=tokens), lens_convergence.params(**params), quiet)


def at(table, point, layer):
    return table[(table["point"] == point) & (table["layer"] == layer)].reset_index(drop=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_point_is_the_model_and_points_between_layers_are_one(kind, tmp_path):
    model = opened(kind, tmp_path)
    table, last = ask(model), model.card.n_layers - 1
    end = at(table, "resid_post", last)
    assert (end["kl_to_final"] <= 1e-7).all() and (end["final_rank"] == 0).all() and end["settled"].all()
    own = model.logits([TOKENS])[0].argmax(-1)
    assert end["top_id"].tolist() == own.tolist()
    for layer in range(last):
        before, after = at(table, "resid_post", layer), at(table, "resid_pre", layer + 1)
        assert before[SAME].equals(after[SAME])
    assert (table["kl_to_final"] >= 0).all() and (at(table, "resid_pre", 0)["kl_to_final"] > 0.05).all()
    assert ("resid_mid" in set(table["point"])) == (kind != "neox")  # its attention and MLP read the same stream


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_logit_lens_says(kind, tmp_path):
    model = opened(kind, tmp_path)
    table = ask(model)
    lens = logit_lens.compute(model, Prompt(tokens=TOKENS), logit_lens.params(top_k=1), quiet)
    for layer in range(-1, model.card.n_layers):
        mine = at(table, "resid_post", layer) if layer >= 0 else at(table, "resid_pre", 0)
        theirs = lens[lens["layer"] == layer]
        assert mine["top_id"].tolist() == theirs["token_id"].tolist()
        for column in ("kl_to_final", "entropy"):
            np.testing.assert_allclose(mine[column], theirs[column], atol=1e-12)


def test_resid_mid_is_the_stream_plus_attention_and_the_null_is_anothers_answer(tmp_path):
    model = opened("gpt2", tmp_path)
    seen = model.capture([TOKENS], ["resid_pre", "attn_out", "resid_post"])
    point = torch.log_softmax(model.unembed(seen["resid_pre", 1] + seen["attn_out", 1])[0], -1)
    final = torch.log_softmax(model.unembed(seen["resid_post", 2])[0], -1)
    mid = at(ask(model, seed=2), "resid_mid", 1)
    np.testing.assert_allclose(mid["kl_to_final"], kl(final, point), atol=1e-9)
    np.testing.assert_allclose(mid["kl_null"], kl(final.roll(-3, 0), point), atol=1e-9)  # 1 + seed positions on


def test_without_the_point_resid_mid_is_refused(tmp_path):
    model = opened("neox", tmp_path)
    with pytest.raises(Unfit, match="same stream"):
        ask(model, resid_mid="yes")
    assert set(ask(opened("native", tmp_path), resid_mid="no")["point"]) == {"resid_pre", "resid_post"}


def test_settling_by_hand():
    """A column per position: settled from the start, at the last, lost again between two layers' ends."""
    places = [("resid_pre", 0), ("resid_mid", 0), ("resid_post", 0), ("resid_pre", 1), ("resid_mid", 1),
              ("resid_post", 1)]
    top = np.array([[7, 1, 7], [7, 7, 7], [7, 2, 7], [7, 2, 7], [7, 7, 3], [7, 7, 7]])
    found = room.settle(top, places)
    assert found["settle_layer"][0].tolist() == [-1, 1, -1]
    assert found["settled"].T.tolist() == [[True] * 6, [False] * 4 + [True] * 2, [False] * 5 + [True]]


def test_blocks_change_nothing_and_one_token_has_no_null(tmp_path, monkeypatch):
    model = opened("gpt2", tmp_path)
    whole = ask(model)
    monkeypatch.setattr("backend.analyses._lenses.LOGIT_BYTES", 4 * 61 * 2)
    split = ask(model)
    np.testing.assert_allclose(whole[SAME], split[SAME], atol=1e-10)
    alone = ask(model, (5,))
    assert alone["kl_null"].isna().all() and len(alone) == 9
