"""Truth of value-weighted attention: terms sum to z W_O and to attn_out, W_O read off equals the weights, zero values
move nothing whatever the attention, and what is not linear behind attention is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.analyses import value_weighted as room
from backend.analyses._output import mlp_map, output_maps
from backend.analyses.value_weighted import value_weighted
from backend.contract import Prompt, View
from backend.errors import Unfit
from tests.tiny_models import opened, quiet
from tests.wired import config, distinct_rows, wired_induction, wired_run

TOKENS = (3, 9, 4, 9, 1, 3, 9, 9)
T = len(TOKENS)
KINDS = ["native", "gpt2", "neox", "llama"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """All four, their biases (also those of W_O) not zero."""
    found = {kind: opened(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}
    with torch.no_grad():
        for p in found["native"].bare.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    return found


def ask(model, tokens=TOKENS, **params):
    one = registry()["value_weighted"]
    return one.compute(model, Prompt(tokens=tokens), one.params(**params), quiet)


def captured(model, layer):
    found = model.capture(torch.tensor([TOKENS]), ["pattern", "v", "z", "attn_out"], [layer])
    return [found[name, layer][0] for name in ("pattern", "v", "z", "attn_out")]


@pytest.mark.parametrize("kind", KINDS)
def test_terms_sum_to_the_heads_outputs_and_these_to_attn_out(kind, models):
    """Summed as vectors over keys; query head h reads the key-value head h // group."""
    model = models[kind]
    group = model.card.n_heads // model.card.n_key_value_heads
    frame = ask(model)
    for layer, (W_O, b_O) in enumerate(output_maps(model)):
        pattern, v, z, out = captured(model, layer)
        total = b_O.clone().expand_as(out).clone()
        for head in range(model.card.n_heads):
            terms = pattern[head][:, :, None] * (v[:, head // group] @ W_O[head])[None]  # [query, key, d_model]
            torch.testing.assert_close(terms.sum(1), z[:, head] @ W_O[head], rtol=0, atol=1e-9)
            total += terms.sum(1)
            mine = frame[(frame["layer"] == layer) & (frame["head"] == head)]
            np.testing.assert_allclose(np.stack(list(mine["contribution"])), terms.norm(dim=-1), rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(mine["output_norm"], (z[:, head] @ W_O[head]).norm(dim=-1), rtol=1e-6)
            np.testing.assert_allclose(mine["coherence"], terms.sum(1).norm(dim=-1) / terms.norm(dim=-1).sum(1), 1e-6)
        torch.testing.assert_close(total, out, rtol=0, atol=1e-9)
        shares = frame[frame["layer"] == layer].groupby("query_pos")["head_share"].sum()
        bias = (b_O * out).sum(-1) / (out * out).sum(-1)
        np.testing.assert_allclose(shares + bias.numpy(), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_maps_read_off_equal_the_weights(kind, models):
    model = models[kind]

    def unnamed():
        raise Unfit("The model's weights", "not known by name", "")

    hidden = SimpleNamespace(card=model.card, run_with=model.run_with, weights=unnamed)
    for layer, W_out in enumerate(model.weights()["W_out"]):
        torch.testing.assert_close(mlp_map(hidden, layer), W_out, rtol=0, atol=1e-12)
    for (W, b), (named, c), own in zip(output_maps(hidden), output_maps(model), model.weights()["W_O"], strict=True):
        torch.testing.assert_close(W, own, rtol=0, atol=1e-12)
        assert torch.equal(named, own) and torch.equal(b, c) and b.abs().max() > (0 if kind == "native" else -1)


def test_the_wired_heads_move_what_they_look_at(tmp_path):
    """One-hot values of norm 1 (LOGIT 30 for the induction head): the map is the pattern times that; others move 0."""
    tokens = tuple(distinct_rows(40, 8, 1)[0].tolist())
    frame = ask(wired_run(tmp_path, wired_induction(), config()), tokens)
    for layer, size in ((0, 1.0), (1, 30.0)):
        mine = frame[(frame["layer"] == layer) & (frame["head"] == 0)]
        moved, seen = (np.stack(list(mine[name])).astype(float) for name in ("contribution", "pattern"))
        np.testing.assert_allclose(moved, size * seen, rtol=2e-3, atol=1e-6)
        assert (mine["difference"] < 1e-9).all() and mine["difference_z"].isna().all()
        idle = frame[(frame["layer"] == layer) & (frame["head"] == 1)]
        assert (np.stack(list(idle["contribution"])) == 0).all() and idle["coherence"].isna().all()
        assert np.stack(list(idle["pattern"])).max() == 1  # it looks, and moves nothing


def test_shuffles_of_a_causal_head_take_keys_that_a_query_can_see():
    """Only the last key's value differs, so no earlier query's null may move."""
    pattern = torch.full((1, 4, 4), 1.0).tril()
    pattern = (pattern / pattern.sum(-1, keepdim=True)).expand(2, 4, 4)
    norms, params = torch.tensor([1.0, 1, 1, 5]).expand(2, 4), value_weighted.params(shuffles=20)
    found = room._null(pattern, norms, True, params, torch.Generator().manual_seed(0))
    null, z = (np.asarray(found[k]).reshape(2, 4) for k in ("difference_null", "difference_z"))
    assert (null[:, :3] == 0).all() and (null[:, 3] > 0).all() and np.isnan(z[:, :3]).all()


def test_a_key_without_value_counts_nothing():
    """Half the attention on a key that writes 0: total variation distance 1/2, above every shuffle."""
    from backend.analyses.value_weighted import ValueWeightedParams, _null

    pattern = torch.full((1, T, T), 0.5 / (T - 1), dtype=torch.float64)
    pattern[..., 0] = 0.5
    norms = torch.ones(1, T, dtype=torch.float64)
    norms[0, 0] = 0
    found = _null(pattern, norms, False, ValueWeightedParams(shuffles=50), torch.Generator().manual_seed(0))
    np.testing.assert_allclose(found["difference"], 0.5)
    assert (found["difference_null"] < 0.25).all() and (found["difference_z"] > 1).all()


def test_a_norm_behind_attention_is_refused(models):
    native = models["native"]

    def capture(tokens, points, layers):
        found = native.capture(tokens, points, layers)
        out = found["attn_out", layers[0]]
        return found | {("attn_out", layers[0]): out / out.norm(dim=-1, keepdim=True)}

    normed = SimpleNamespace(card=native.card, weights=native.weights, run_with=native.run_with, capture=capture)
    with pytest.raises(Unfit, match="do not sum to attn_out"):
        ask(normed)


def test_both_maps_stand_side_by_side_on_one_scale(models):
    frame, one = ask(models["native"]), registry()["value_weighted"]
    figure = one.figures["head"].build(frame, View(chosen={"layer": 1, "head": 3}))
    mine = frame[(frame["layer"] == 1) & (frame["head"] == 3)]
    looks, moves = figure.data
    np.testing.assert_array_equal(np.nan_to_num(looks.z), np.stack(list(mine["pattern"])).astype(np.float32))
    norms = np.stack(list(mine["contribution"])).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(moves.customdata)[..., 1], norms)
    np.testing.assert_allclose(np.nansum(moves.z, 1), 1, atol=1e-5)
    assert looks.coloraxis == moves.coloraxis and (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert one.figures["overview"].build(frame, View()).data
