"""Truth of running with edits: the same logits as a model whose weights do what the edit does; nothing of it stays."""

import contextlib
import dataclasses

import pytest
import torch

from backend.errors import BadInput, Unfit
from backend.models import bridge, shorter
from tests.tiny_models import opened
from tests.wired import config, wired_induction, wired_run

TOKENS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Two layers with MLPs and biases that are not zero."""
    model = opened("native", tmp_path_factory.mktemp("edits"))
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.bare.parameters():
            if weights.ndim == 1:
                weights.add_(0.1 * torch.randn(weights.shape, generator=dice, dtype=weights.dtype))
    return model


def same(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["native", "gpt2", "neox", "llama"])
def test_no_edits_and_identities_change_nothing(kind, tmp_path):
    model = opened(kind, tmp_path)
    plain = model.logits(TOKENS)
    points = [p for p in bridge.POINTS if p not in ("resid_mid", "attn_scores")]
    everywhere = {(p, layer): lambda t: t for p in points for layer in range(model.card.n_layers)}
    bare = model.run_with(TOKENS, {})
    same(bare, plain, 1e-6 if kind == "neox" else 1e-12)  # NeoX keeps its rotary tables in float32
    assert torch.equal(model.run_with(TOKENS, everywhere), bare)


def silenced(model, names, layer):
    """Return the plain logits with these parts of a layer at zero; the weights are put back."""
    block = model.bare.layers[layer]
    parts = [p for name in names for p in block.get_submodule(name).parameters()]
    kept = [p.detach().clone() for p in parts]
    with torch.no_grad():
        [p.zero_() for p in parts]
        logits = model.logits(TOKENS)
        [p.copy_(old) for p, old in zip(parts, kept, strict=True)]
    return logits


@pytest.mark.parametrize(("point", "part"), [
    ("q", "attn.q"), ("k", "attn.k"), ("v", "attn.v"), ("attn_out", "attn.o"), ("mlp_pre", "mlp.fc_in"),
    ("mlp_out", "mlp.fc_out"),
])  # fmt: skip
@pytest.mark.parametrize("layer", [0, 1])
def test_a_point_at_zero_is_a_model_without_that_part(native, point, part, layer):
    edited = native.run_with(TOKENS, {(point, layer): torch.zeros_like})
    same(edited, silenced(native, [part], layer))
    assert (edited - native.logits(TOKENS)).abs().max() > 1e-2


@pytest.mark.parametrize("layer", [0, 1])
def test_z_at_zero_is_a_model_without_w_o(native, layer):
    """b_O stays: W_O = 0, not the whole of attn_out."""
    weight = native.bare.layers[layer].attn.o.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        expected = native.logits(TOKENS)
        weight.copy_(kept)
    same(native.run_with(TOKENS, {("z", layer): torch.zeros_like}), expected)
    same(native.run_with(TOKENS, {("pattern", layer): torch.zeros_like}), expected)  # attention to nothing
    assert (expected - silenced(native, ["attn.o"], layer)).abs().max() > 1e-3
    assert (expected - native.logits(TOKENS)).abs().max() > 1e-2


def test_one_head_at_zero_is_its_rows_of_w_o_at_zero(native):
    def without_head_2(z):
        z[:, :, 2] = 0
        return z

    weight = native.bare.layers[1].attn.o.weight  # [d_model, head * d_head]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 16:24] = 0
        expected = native.logits(TOKENS)
        weight.copy_(kept)
    same(native.run_with(TOKENS, {("z", 1): without_head_2}), expected)


@pytest.mark.parametrize("kind", ["native", "gpt2", "llama"])
@pytest.mark.parametrize(("point", "layer"), [("embed", 0), ("resid_pre", 0), ("resid_pre", 1), ("resid_post", 0)])
def test_another_rows_stream_gives_the_other_rows_logits(kind, point, layer, tmp_path):
    model = opened(kind, tmp_path)
    swapped = model.run_with(TOKENS, {(point, layer): lambda t: t.flip(0)})
    same(swapped, model.logits(TOKENS.flip(0)))


def test_all_heads_of_every_layer_at_zero_is_the_direct_path(tmp_path):
    """The wired model without heads: W_U on token and position, 1 for the token itself."""
    model = wired_run(tmp_path / "wired", wired_induction(), config())
    logits = model.run_with(TOKENS % 40, {("z", layer): torch.zeros_like for layer in range(2)})
    same(logits, torch.nn.functional.one_hot(TOKENS % 40, 40).double())


def test_two_edits_of_one_place_are_both_made(native):
    double = native.run_with(TOKENS, {("embed", 0): lambda t: t + 1.0, ("resid_pre", 0): lambda t: t * 2})
    same(double, native.run_with(TOKENS, {("embed", 0): lambda t: (t + 1.0) * 2}))


def test_nothing_of_it_stays(native):
    def spoil(t):
        return t.zero_()  # in place: on a copy

    def broken(t):
        raise ZeroDivisionError

    before, plain = {k: v.clone() for k, v in native.bare.state_dict().items()}, native.logits(TOKENS)
    intact = native.run_with(TOKENS, {})
    native.run_with(TOKENS, {("resid_pre", 0): spoil, ("z", 1): spoil})
    with pytest.raises(ZeroDivisionError):
        native.run_with(TOKENS, {("z", 0): spoil, ("z", 1): broken})
    assert torch.equal(native.run_with(TOKENS, {}), intact) and torch.equal(native.logits(TOKENS), plain)
    assert all(torch.equal(v, before[k]) for k, v in native.bare.state_dict().items())


@pytest.mark.parametrize(("edits", "error", "words"), [
    ({("zz", 0): torch.zeros_like}, BadInput, "no such point"), ({("z", 7): torch.zeros_like}, BadInput, "layers 0..1"),
    ({("z", 0): lambda t: t[:1]}, BadInput, r"returned \(1, 12, 4, 8\)"),
    ({("z", 0): lambda t: None}, BadInput, "None"),
    ({("attn_scores", 0): torch.zeros_like}, Unfit, "Edit q, k or pattern"),
    ({("resid_mid", 0): torch.zeros_like}, Unfit, "the stream goes past it"),
])  # fmt: skip
def test_what_cannot_be_edited_is_refused(native, edits, error, words):
    with pytest.raises(error, match=words):
        native.run_with(TOKENS, edits)


@contextlib.contextmanager
def attentions(model):
    """Yield a list that gets an entry per attention computed."""
    ran = []
    with contextlib.ExitStack() as hooks:
        for block in model.view.blocks:
            inner = block.attn.original_component
            hooks.enter_context(inner.register_forward_hook(lambda module, args, out: ran.append(module)))
        yield ran


@pytest.mark.parametrize("kind", ["native", "gpt2", "neox", "llama"])
@pytest.mark.parametrize("point", ["z", "attn_out", "mlp_out", "resid_post"])
def test_what_is_known_is_left_out_and_changes_nothing(kind, point, tmp_path):
    model, layer = opened(kind, tmp_path), 1
    edits = {(point, layer): lambda t: t.flip(0)}
    whole, known = model.run_with(TOKENS, edits), model.capture(TOKENS, ["resid_pre", "z"], [layer])
    shorter.form_of(model.view)  # it is looked at once, by a run
    with attentions(model) as ran:
        for left_out, computed in (({}, 2), ({("resid_pre", layer): known["resid_pre", layer]}, 1), (known, 0)):
            ran.clear()
            same(model.run_with(TOKENS, edits, left_out), whole)
            assert len(ran) == computed or kind != "native"  # others compute attention past the module that is watched
            same(model.run_with(TOKENS, edits, left_out, last=True), whole[:, -1:])
    assert torch.equal(model.run_with(TOKENS, edits), whole)  # nothing of it stays


@pytest.mark.parametrize(("place", "read"), [(("z", 1), 1), (("mlp_out", 0), 1), (("mlp_post", 1), 12)])
def test_where_the_last_position_alone_is_read_the_last_mlp_reads_it_alone(native, place, read):
    """But where something in that MLP is edited; the logits are the same."""
    edits = {place: lambda t: t.flip(0)}
    whole, last, seen = native.run_with(TOKENS, edits), native.view.blocks[-1].mlp, []
    with contextlib.ExitStack() as hooks:
        for module in last.modules():
            if isinstance(module, torch.nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1])))
        same(native.run_with(TOKENS, edits, last=True), whole[:, -1:])
    assert seen and set(seen) == {read}
    assert torch.equal(native.run_with(TOKENS, edits), whole)  # nothing of it stays


def test_attention_that_does_more_after_z_is_computed_whole(native):
    known = native.capture(TOKENS, ["resid_pre", "z"], [1])
    whole = native.run_with(TOKENS, {})
    spoilt = {**known, ("z", 1): torch.zeros_like(known["z", 1])}
    assert not torch.equal(native.run_with(TOKENS, {}, spoilt), whole)  # it is what the run goes on from
    form = native.view.__dict__["phasescope_form"]
    native.view.__dict__["phasescope_form"] = dataclasses.replace(form, projected=False)
    same(native.run_with(TOKENS, {}, spoilt), whole)
    native.view.__dict__["phasescope_form"] = form


@torch.no_grad()
def test_attention_is_looked_at_for_what_it_does_after_its_projection(native):
    view = bridge.hook_view(native.bare)
    assert shorter.form_of(view).projected
    more = bridge.hook_view(native.bare)
    more.blocks[0].attn.register_forward_hook(lambda m, args, out: (2 * out[0], *out[1:]) if isinstance(out, tuple)
                                              else 2 * out)  # fmt: skip
    assert not shorter.form_of(more).projected


@pytest.mark.parametrize(("known", "edits", "said"), [
    ([("z", 1)], {}, "Give resid_pre"), ([("resid_pre", 0), ("z", 1)], {}, "Give resid_pre"),
    ([("resid_pre", 1)], {("z", 0): torch.zeros_like}, "z of layer 0 is edited"),
    ([("resid_pre", 1)], {("embed", 0): torch.zeros_like}, "embed of layer 0 is edited"),
    ([("resid_pre", 1), ("z", 1)], {("q", 1): torch.zeros_like}, "q of layer 1 is edited"),
])  # fmt: skip
def test_a_beginning_that_would_pass_an_edit_by_is_refused(native, known, edits, said):
    found = native.capture(TOKENS, ["resid_pre", "z"])
    with pytest.raises(BadInput, match=said):
        native.run_with(TOKENS, edits, {place: found[place] for place in known})
    with pytest.raises(BadInput, match="Give it for these tokens"):
        native.run_with(TOKENS[:2], {}, {("resid_pre", 1): found["resid_pre", 1]})
