"""Edges of a circuit: linear identities, the wired path, the exact effect by hand; what cannot be asked is refused."""

import numpy as np
import pytest
import torch

from backend.analyses import _causal, _edges
from backend.analyses._edges import Receiver, Sender
from backend.analyses.circuit_edges import circuit_edges
from backend.analyses.path_patching import path_patching
from backend.contract import View, parse_spec
from backend.errors import Unfit
from backend.models.open import open_model
from tests.causal_kit import ask, pairs_for, swapped_keys, wired
from tests.tiny_models import NATIVE, native_run, opened, settings

AXES = [a.name for a in circuit_edges.axes]


def native(folder, **more):
    return open_model(parse_spec(f"run:{native_run(folder / 'runs' / 'tiny', {**NATIVE, **more})}"), settings(folder))


def batch_of(model, n=3):
    (batch,) = _causal.batches(model, pairs_for(model, n))
    return batch


def test_without_a_norm_the_edges_to_the_logits_are_exact_and_sum_to_all(tmp_path):
    model = native(tmp_path, normalization_type=None)
    subject = pairs_for(model, 4)
    table = ask(circuit_edges, model, subject, steps=1, exact_top=4096, exact_others=0, draws=100)
    last = table[table["reads"] == "logits"]
    clean, corrupted = _causal.both_sides(model, subject)
    assert last["score"].sum() == pytest.approx((clean - corrupted).mean(), abs=1e-8)
    np.testing.assert_allclose(last["score"], last["exact"], atol=1e-8)
    assert len(last) == 1 + 2 * 4 + 2 and (last["score"].abs() > 1e-6).sum() == 10  # embed: the same last token
    rest = table[table["reads"] != "logits"]
    assert len(rest) == 4 * 3 + 5 + (1 + 4 + 1) * 4 * 3 + (1 + 4 + 1 + 4)
    assert rest["checked"].eq("top").all() and table["rank_correlation"].notna().all()


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_the_gradient_at_an_input_is_the_slope_of_the_exact_effect(kind, tmp_path):
    """A change of 1e-5 in what one receiver alone reads moves logit_diff by 1e-5 times its gradient there."""
    model = opened(kind, tmp_path)
    batch, w_o = batch_of(model), _edges.output_weights(model)
    edges = [(Sender("head", 0, 1), Receiver("k", 1, 2)), (Sender("embed", -1), Receiver("v", 0, 3)),
             (Sender("head", 1, 0), Receiver("mlp", 1)), (Sender("mlp", 0), Receiver("q", 1, 1)),
             (Sender("mlp", 0), Receiver("logits", model.card.n_layers))]  # fmt: skip
    slopes, writes = {}, _edges.Writes(model, batch, w_o)
    clean_embed = model.capture(batch.clean, ["embed"])["embed", 0]
    _edges.input_gradients(model, batch, clean_embed, [r for _, r in edges], slopes.__setitem__)
    expected = np.stack([(writes.of(s) * slopes[r]).flatten(1).sum(1).numpy() for s, r in edges])
    small = 1e-5
    whole = _edges.Writes.of
    try:
        _edges.Writes.of = lambda self, sender: small * whole(self, sender)
        found = _edges.exact_effects(model, batch, edges, w_o) / small
    finally:
        _edges.Writes.of = whole
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-7)
    assert (np.abs(expected).max(1) > 4e-6).all()


def test_exact_edges_between_heads_are_path_patching(tmp_path):
    """Without MLPs in between, an edge into k of a head of the next layer is its path, noised."""
    model = native(tmp_path)
    subject = pairs_for(model, 3)
    (batch,) = _causal.batches(model, subject)
    pairs = [(s, r) for s in range(4) for r in range(4)]
    edges = [(Sender("head", 0, s), Receiver("k", 1, r)) for s, r in pairs]
    mine = _edges.exact_effects(model, batch, edges, _edges.output_weights(model)).mean(1)
    paths = ask(path_patching, model, subject, to="heads", input="k", direction="noising")
    np.testing.assert_allclose(mine, -paths["change"], atol=1e-9)


def test_an_edge_into_an_mlp_by_the_bare_module(tmp_path):
    """The MLP alone reads the stream without the write; attention of its own layer does not."""
    model = native(tmp_path)
    batch, block, sender = batch_of(model), model.bare.layers[1], Sender("head", 0, 1)
    write = _edges.Writes(model, batch, _edges.output_weights(model)).of(sender)
    stream = model.capture(batch.clean, ["resid_mid"])["resid_mid", 1]
    with torch.no_grad():
        heard = block.mlp(block.ln2(stream - write))
    patched = batch.logit_diff(model.run_with(batch.clean, {("mlp_out", 1): lambda t: heard}))
    expected = batch.logit_diff(model.run_with(batch.clean, {})) - patched
    edge = [(sender, Receiver("mlp", 1))]
    found = _edges.exact_effects(model, batch, edge, _edges.output_weights(model))[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(found).max() > 1e-4


def test_the_wired_path_stands_out_exactly(tmp_path):
    model = wired(tmp_path / "w")
    table = ask(circuit_edges, model, swapped_keys(3, n=8), exact_top=4096, draws=100, steps=1)
    strong = table[table["exact"].abs() > 1].set_index(AXES).index.tolist()
    assert ("head", 0, 0, "k", 1, 0) in strong and ("head", 1, 0, "logits", 2, -1) in strong
    heads = [e for e in strong if e[0] == "head"]
    assert len(heads) == 2  # no idle head sends anything, and nothing else hears these
    for figure in circuit_edges.figures.values():
        assert figure.build(table, View()).data


@pytest.mark.parametrize(("kind", "words"), [("neox", "not known by name"), ("llama", "share 2 keys")])
def test_what_cannot_be_told_apart_is_refused(kind, words, tmp_path):
    model = opened(kind, tmp_path)
    with pytest.raises(Unfit, match=words):
        ask(circuit_edges, model, pairs_for(model, 2))
