"""Truth of gradients at points: finite differences of edited runs, on every architecture; nothing of them stays."""

import pytest
import torch

from backend.errors import BadInput, Unfit
from tests.tiny_models import opened

TOKENS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
PLACES = [("embed", 0), ("resid_pre", 1), ("resid_post", 1), ("q", 1), ("k", 0), ("v", 0), ("z", 1), ("attn_out", 0),
          ("mlp_out", 1), ("pattern", 1)]
#: (step, tolerance relative to the slope, at least to 3): Llama's norm rounds to float32 on the way in any precision
FINE, ROUNDED = (1e-5, 1e-6), (3e-4, 2e-3)


@pytest.fixture(scope="module", params=["native", "gpt2", "neox", "llama"])
def model(request, tmp_path_factory):
    return opened(request.param, tmp_path_factory.mktemp(request.param))


def gap(logits):
    """One number per row: a logit minus another at the last position, and half of a third one before it."""
    return logits[:, -1, 7] - logits[:, -1, 11] + 0.5 * logits[:, 4, 3]


def directions(values, seed=1):
    dice = torch.Generator().manual_seed(seed)
    return {p: torch.randn(t.shape, generator=dice, dtype=t.dtype) for p, t in values.items()}


def slope(model, place, direction, edits, h):
    """The metric's derivative along a direction at a place, per row, by central differences of edited runs."""
    def along(step):
        first = edits.get(place, lambda t: t)
        return gap(model.run_with(TOKENS, {**edits, place: lambda t: first(t) + step * direction}))

    return (along(h) - along(-h)) / (2 * h)


def check(model, places, edits):
    h, tolerance = ROUNDED if "Llama" in model.card.architecture else FINE
    value, tensors, grads = model.gradients(TOKENS, gap, places, edits)
    torch.testing.assert_close(value, gap(model.run_with(TOKENS, edits)), rtol=0, atol=1e-10)
    for place, direction in directions(tensors).items():
        expected = slope(model, place, direction, edits, h)
        got = (grads[place] * direction).flatten(1).sum(1)
        scale = max(3.0, expected.abs().max().item())
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale, msg=lambda m, p=place: f"{p}: {m}")
        assert expected.abs().max() > 1e-4, f"{place} changes nothing: this would prove nothing"


def test_gradients_are_finite_differences(model):
    check(model, PLACES, {})


def test_with_edits_they_are_those_of_the_edited_run_at_the_edited_tensor(model):
    edits = {("z", 0): lambda t: 0.5 * t, ("resid_pre", 1): lambda t: 2 * t + 0.1, ("z", 1): lambda t: t - 0.3}
    check(model, [("z", 0), ("resid_pre", 1), ("z", 1), ("attn_out", 0)], edits)
    _, tensors, _ = model.gradients(TOKENS, gap, [("z", 1)], edits)
    _, plain, _ = model.gradients(TOKENS, gap, [("z", 1)])
    assert (tensors["z", 1] - plain["z", 1]).abs().max() > 0.1


def test_values_are_those_that_capture_sees_and_the_metric_is_the_plain_runs(model):
    value, tensors, grads = model.gradients(TOKENS, gap, PLACES)
    for place, seen in tensors.items():
        torch.testing.assert_close(seen, model.capture(TOKENS, [place[0]], [place[1]])[place], rtol=0, atol=1e-12)
        assert grads[place].shape == seen.shape and not seen.requires_grad and not grads[place].requires_grad
    torch.testing.assert_close(value, gap(model.run_with(TOKENS, {})), rtol=0, atol=1e-12)
    assert list(tensors) == PLACES and list(grads) == PLACES


def test_a_rows_gradient_is_that_of_the_row_alone(model):
    _, _, together = model.gradients(TOKENS, gap, PLACES)
    _, _, alone = model.gradients(TOKENS[1:2], gap, PLACES)
    for place in PLACES:
        torch.testing.assert_close(together[place][1:2], alone[place], rtol=0, atol=1e-9)


def test_no_gradient_stays_and_weights_are_as_before(model):
    before = {name: p.detach().clone() for name, p in model.bare.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.bare.named_parameters()}
    plain = model.logits(TOKENS)
    model.gradients(TOKENS, gap, PLACES, {("z", 0): torch.zeros_like})
    with pytest.raises(ZeroDivisionError):
        model.gradients(TOKENS, lambda logits: 1 / 0, PLACES)
    assert all(p.grad is None for p in [*model.bare.parameters(), *model.view.parameters()])
    assert all(torch.equal(p, before[n]) and p.requires_grad == flags[n] for n, p in model.bare.named_parameters())
    assert torch.equal(model.logits(TOKENS), plain)


def test_what_does_not_reach_the_metric_has_gradient_zero(model):
    early = [("resid_post", 1)]
    _, _, grads = model.gradients(TOKENS, lambda logits: logits[:, 2, 5], early)
    assert torch.equal(grads["resid_post", 1][:, 3:], torch.zeros_like(grads["resid_post", 1][:, 3:]))
    assert grads["resid_post", 1][:, 2].abs().max() > 1e-6
    _, _, cut = model.gradients(TOKENS, gap, [("attn_out", 0)], {("resid_pre", 1): lambda t: torch.zeros_like(t)})
    assert torch.equal(cut["attn_out", 0], torch.zeros_like(cut["attn_out", 0]))


@pytest.mark.parametrize(("places", "error"), [([("zz", 0)], BadInput), ([("z", 9)], BadInput)])
def test_what_is_not_there_is_refused(model, places, error):
    with pytest.raises(error):
        model.gradients(TOKENS, gap, places)


def test_a_point_that_is_only_read_is_refused(tmp_path):
    with pytest.raises(Unfit, match="the stream goes past it"):
        opened("native", tmp_path).gradients(TOKENS, gap, [("resid_mid", 0)])
