"""The Jacobian lens: a closed form where attention is even, the library's own estimator, finite differences."""

import numpy as np
import pytest
import torch

from backend.analyses import jacobian_lens as room
from backend.analyses.jacobian_lens import jacobian_lens
from backend.analyses.logit_lens import logit_lens
from backend.contract import Prompt, parse_spec
from backend.errors import BadInput
from backend.maths.divergence import kl
from backend.models.open import open_model
from tests.tiny_models import NATIVE, native_run, opened, quiet, settings

TOKENS = (3, 9, 4, 9, 1, 3, 20, 17)
KINDS = ["gpt2", "neox", "llama", "native"]


def ask(model, tokens=TOKENS, **params):
    return jacobian_lens.compute(model, Prompt(tokens=tokens), jacobian_lens.params(**params), quiet)


def of(model, positions, tokens=TOKENS):
    return room.jacobians(model, torch.tensor([tokens]), positions, quiet)


def test_even_attention_has_a_closed_form(tmp_path):
    """Without norms and with W_Q = 0 a layer adds the mean of the streams so far through OV, so
    J = 1 + (OV)^T mean_t sum over t' = t..T-2 of 1 / (t' + 1); the last layer's own start and the embedding alike."""
    config = NATIVE | {"normalization_type": None, "attn_only": True}
    model = open_model(parse_spec(f"run:{native_run(tmp_path / 'm', config)}"), settings(tmp_path))
    with torch.no_grad():
        for block in model.bare.layers:
            block.attn.q.weight.zero_()
            block.attn.q.bias.zero_()
        model.bare.layers[0].attn.o.weight.zero_()  # layer 0 adds nothing: the embedding is the stream after it
    weights = model.weights()
    ov = (weights["W_V"][1] @ weights["W_O"][1]).sum(0)  # row vectors: h -> h OV
    T = len(TOKENS)
    reach = np.mean([sum(1 / (u + 1) for u in range(t, T - 1)) for t in range(T - 1)])
    found = of(model, list(range(T - 1)))
    for layer in (-1, 0):
        torch.testing.assert_close(found[layer], torch.eye(32).double() + reach * ov.T, rtol=0, atol=1e-10)
    assert ov.abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_librarys_estimator(kind, tmp_path):
    """transformer-lens' own, which computes in float32 whatever the model's dtype."""
    from transformer_lens.tools.analysis import jacobian_lens as theirs

    model = opened(kind, tmp_path)
    layers = list(range(model.card.n_layers - 1))
    with torch.enable_grad():
        want = theirs._jacobian_for_prompt(
            model.view, torch.tensor([TOKENS]), source_layers=layers, dim_batch=8, skip_first_positions=2,
            backward_provider=theirs._ordinary_vjp)
    found = of(model, list(range(2, len(TOKENS) - 1)))
    for layer in layers:
        torch.testing.assert_close(found[layer].float(), want[layer], rtol=1e-4, atol=1e-4)
        assert (found[layer] - torch.eye(32)).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_is_the_model_and_beside_it_stands_the_logit_lens(kind, tmp_path):
    model = opened(kind, tmp_path)
    table = ask(model)
    plain = logit_lens.compute(model, Prompt(tokens=TOKENS), logit_lens.params(top_k=1), quiet)
    np.testing.assert_allclose(table["logit_kl_to_final"], plain["kl_to_final"], atol=1e-12)
    assert table["logit_top_id"].tolist() == plain["token_id"].tolist()
    last = table[table["layer"] == model.card.n_layers - 1]
    assert (last[["kl_to_final", "null_kl"]] <= 1e-7).all(axis=None) and (last["final_rank"] == 0).all()
    others = table[table["layer"] < model.card.n_layers - 1]
    assert (others["kl_to_final"] - others["null_kl"]).abs().min() > 1e-6


def test_a_reading_is_unembed_of_J_h_and_the_null_permutes_columns(tmp_path):
    model = opened("gpt2", tmp_path)
    table, J = ask(model, seed=5, skip_first=1), of(model, list(range(1, len(TOKENS) - 1)))[0]
    h = model.capture([TOKENS], ["resid_post"])["resid_post", 0][0]
    final = torch.log_softmax(model.logits([TOKENS])[0], -1)
    shuffle = torch.randperm(32, generator=torch.Generator().manual_seed(5))
    null = torch.zeros_like(J)
    for i, column in enumerate(shuffle):
        null[:, i] = J[:, column]
    rows = table[table["layer"] == 0]
    for column, matrix in (("kl_to_final", J), ("null_kl", null)):
        read = torch.stack([matrix @ x for x in h])
        np.testing.assert_allclose(rows[column], kl(final, torch.log_softmax(model.unembed(read), -1)), atol=1e-9)


def test_pieces_change_nothing_and_too_short_a_text_is_refused(tmp_path, monkeypatch):
    model = opened("native", tmp_path)
    whole = ask(model)
    monkeypatch.setattr(room, "GRAPH_BYTES", 600_000)  # ten coordinates at a time
    monkeypatch.setattr("backend.analyses._lenses.LOGIT_BYTES", 4 * 50 * 3)
    np.testing.assert_allclose(ask(model), whole, atol=1e-10)
    for tokens, skip in (((5,), 0), (TOKENS, 7)):
        with pytest.raises(BadInput, match="Give a longer text"):
            ask(model, tokens, skip_first=skip)
