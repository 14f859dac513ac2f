"""Path patching: the wired path alone, whole effects where nothing stands between, and the frozen run by hand."""

import numpy as np
import pytest
import torch

from backend.analyses import _causal
from backend.analyses import path_patching as room
from backend.analyses.activation_patching import activation_patching
from backend.analyses.path_patching import Path, path_patching
from backend.contract import View, parse_spec
from backend.errors import BadInput, Unfit
from backend.models.open import open_model
from tests.causal_kit import KINDS, ask, pairs_for, swapped_keys, wired
from tests.tiny_models import NATIVE, native_run, opened, settings


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: opened(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def attention_only(folder, **more):
    config = {**NATIVE, "attn_only": True, **more}
    config.pop("d_mlp"), config.pop("act_fn")
    return open_model(parse_spec(f"run:{native_run(folder / 'runs' / 'tiny', config)}"), settings(folder))


def by_path(table):
    return table.set_index(["sender_layer", "sender_head", "receiver_layer", "receiver_head"])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_wired_path_is_found_by_its_keys_alone(tmp_path, direction):
    model = wired(tmp_path / "w")
    for reads, expected in (("q k v", 1), ("k", 1), ("q", 0), ("v", 0)):
        table = by_path(ask(path_patching, model, swapped_keys(), input=reads, direction=direction))
        assert table.loc[(0, 0, 1, 0), "effect"] == pytest.approx(expected, abs=1e-9)
        assert table.loc[(1, 0, -1, -1), "effect"] == pytest.approx(1, abs=1e-9)
        idle = table.drop([(0, 0, 1, 0), (1, 0, -1, -1)])
        assert (idle["change"].abs() < 1e-9).all() and len(idle) == 9 + 6 - 2


@pytest.mark.parametrize("norm", ["LN", None])
def test_in_the_last_layer_without_mlps_the_path_to_the_logits_is_the_whole_effect(tmp_path, norm):
    model = attention_only(tmp_path, normalization_type=norm)
    subject = pairs_for(model)
    whole = ask(activation_patching, model, subject).set_index(["layer", "head"])["patched"]
    direct = ask(path_patching, model, subject, to="logits").set_index(["sender_layer", "sender_head"])["patched"]
    np.testing.assert_allclose(direct.loc[1], whole.loc[1], atol=1e-9)
    assert (direct.loc[0] - whole.loc[0]).abs().max() > 1e-3  # an earlier head has further paths


def test_without_norms_and_with_attention_held_all_paths_sum_to_the_whole(tmp_path):
    """Two layers, linear through v: direct effect + effects through the v of each later head = effect of the sender."""
    model = attention_only(tmp_path, normalization_type=None)
    subject = pairs_for(model)
    (batch,) = _causal.batches(model, subject)
    paths = by_path(ask(path_patching, model, subject, input="v"))["change"]
    held = model.capture(batch.corrupted, ["pattern"], [1])["pattern", 1]
    source = model.capture(batch.clean, ["z"], [0])["z", 0]
    before = batch.logit_diff(model.logits(batch.corrupted)).mean().item()
    for head in range(model.card.n_heads):
        def sent(z, head=head):
            z[:, :, head] = source[:, :, head]
            return z

        edits = {("z", 0): sent, ("pattern", 1): lambda p: held}
        whole = batch.logit_diff(model.run_with(batch.corrupted, edits)).mean().item() - before
        parts = paths.loc[(0, head)]
        assert len(parts) == 5 and parts.sum() == pytest.approx(whole, abs=1e-9) and abs(whole) > 1e-3
        assert abs(parts.drop((-1, -1)).sum()) > 1e-3


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_the_path_to_the_logits_adds_the_senders_change_to_the_last_residual(models, kind):
    model, subject = models[kind], pairs_for(models[kind])
    (batch,) = _causal.batches(model, subject)
    last, w_o = model.card.n_layers - 1, model.weights()["W_O"]
    end = model.capture(batch.corrupted, ["resid_post"], [last])["resid_post", last]
    ours, theirs = (model.capture(t, ["z"]) for t in (batch.corrupted, batch.clean))
    table = ask(path_patching, model, subject, to="logits").set_index(["sender_layer", "sender_head"])
    for layer, head in table.index:
        moved = (theirs["z", layer] - ours["z", layer])[:, :, head] @ w_o[layer][head]
        expected = batch.logit_diff(model.unembed(end + moved)).mean().item()
        assert table.loc[(layer, head), "patched"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_patched_with_itself_or_read_by_nobody_changes_nothing(models, kind):
    model, subject = models[kind], pairs_for(models[kind], 2)
    same = subject.model_copy(update={"pairs": tuple(p.model_copy(update={"corrupted": p.clean})
                                                     for p in subject.pairs)})  # fmt: skip
    assert (ask(path_patching, model, same)["change"].abs() < 1e-9).all()
    for reads in "qkv":  # what each input carries is something, also where k and v are shared by heads
        table = ask(path_patching, model, subject, to="heads", receiver_head=1, input=reads)
        assert (table["receiver_head"] == 1).all() and table["change"].abs().max() > 1e-7
    (batch,) = _causal.batches(model, subject)
    frozen = room.Frozen(model, batch, "denoising", "q")
    frozen.fixed = ["q", "k", "v"]
    frozen.base |= model.capture(batch.corrupted, ["q"])
    _, live = frozen.send([(0, 0), (0, 1)])
    for layer, z in live.items():
        torch.testing.assert_close(z, frozen.base["z", layer].repeat(2, 1, 1, 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_a_receiver_is_moved_by_the_frozen_stream_that_it_reads(models, kind):
    """By hand, the sender in layer 0, the receiver in layer 1: with MLPs held its input is resid_pre + the change."""
    model, subject = models[kind], pairs_for(models[kind], 2)
    (batch,) = _causal.batches(model, subject)
    base, other = (model.capture(t, ["z", "attn_out", "mlp_out"], [0]) for t in (batch.corrupted, batch.clean))
    resid = model.capture(batch.corrupted, ["resid_pre"], [1])["resid_pre", 1]
    seen = {}

    def sent(z):
        z[:, :, 2] = other["z", 0][:, :, 2]
        return z

    def changed(t):
        seen["attn"] = t
        return t

    model.run_with(batch.corrupted, {("z", 0): sent, ("attn_out", 0): changed})
    resid = resid + seen["attn"] - base["attn_out", 0]
    read = {}

    def keep(z):
        read["z"] = z
        return z

    model.run_with(batch.corrupted, {("resid_pre", 1): lambda t: resid, ("z", 1): keep})

    def put(z):
        z[:, :, 1] = read["z"][:, :, 1]
        return z

    expected = batch.logit_diff(model.run_with(batch.corrupted, {("z", 1): put})).numpy()
    found = room.patched_paths(model, batch, [Path((0, 2), (1, 1))], "q k v", "denoising")[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_small_memory_gives_the_same_numbers(models, monkeypatch):
    model, subject = models["native"], pairs_for(models["native"])
    whole = ask(path_patching, model, subject)
    row = _causal.RUN_BYTES // _causal.rows_at_once(model, subject.length)
    monkeypatch.setattr(_causal, "RUN_BYTES", 2 * row)
    small = ask(path_patching, model, subject)
    np.testing.assert_allclose(small.to_numpy(float), whole.to_numpy(float), atol=1e-9)


def test_what_cannot_be_is_refused(models, tmp_path, monkeypatch):
    model = models["native"]
    subject = pairs_for(model, 2)
    with pytest.raises(BadInput, match="receiver_head 4: .* has 0..3"):
        ask(path_patching, model, subject, receiver_head=4)
    with pytest.raises(Unfit, match="no layer stands before"):
        ask(path_patching, attention_only(tmp_path, n_layers=1), subject, to="heads")
    monkeypatch.setattr(room, "MANY_PATHS", 3)
    assert (ask(path_patching, model, subject)["receiver_layer"] == -1).all(), "auto: only those to the logits"
    monkeypatch.setattr(room, "MOST_PATHS", 3)
    with pytest.raises(BadInput, match="24 paths: at most 3 at once. Give receiver_layer"):
        ask(path_patching, model, subject, to="all")


def test_the_matrix_has_a_row_per_sender_and_the_logits_last(models):
    table = ask(path_patching, models["gpt2"], pairs_for(models["gpt2"], 3))
    heat = path_patching.figures["matrix"].build(table, View(params={"direction": "denoising"})).data[0]
    z = np.asarray(heat.z)
    assert z.shape == (12, 9) and "logits" in heat.x[-1] and np.isnan(z[4:8, :4]).all() and heat.zmin == -heat.zmax
    assert not np.isnan(z[:, -1]).any() and len(path_patching.figures["ranking"].build(table, View()).data[0].x) == 24
