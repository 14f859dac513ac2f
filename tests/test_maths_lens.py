"""Truth of maths/divergence.py and maths/lens.py: closed forms, numpy, and a full sort."""

import math

import numpy as np
import pytest
import torch

from backend.maths import divergence, lens


def logits(n: int = 7, words: int = 43, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, words, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_entropy_of_uniform_and_one_hot():
    for n in (1, 2, 17):
        uniform = torch.full((n,), 1 / n, dtype=torch.float64)
        assert divergence.entropy(uniform).item() == pytest.approx(math.log(n), abs=1e-12)
        assert divergence.entropy(torch.eye(n, dtype=torch.float64)).abs().max() == 0.0


def test_normalised_entropy_is_one_zero_and_null_where_one_key_is_seen():
    rows = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    got = divergence.normalised_entropy(rows, torch.tensor([1, 2, 3]))
    assert math.isnan(got[0]) and got[1:].tolist() == pytest.approx([1.0, 1.0])
    assert divergence.normalised_entropy(rows[:1], torch.tensor([3])).item() == 0.0


def test_kl_equals_the_sum_and_is_zero_for_itself():
    p, q = torch.log_softmax(logits(seed=1), -1), torch.log_softmax(logits(seed=2), -1)
    a, b = p.exp().numpy(), q.exp().numpy()
    expected = (a * np.log(a / b)).sum(-1)
    np.testing.assert_allclose(divergence.kl(p, q), expected, rtol=1e-10)
    assert divergence.kl(p, p).abs().max() == 0.0 and (divergence.kl(p, q) > 0).all()


def test_kl_of_impossible_outcomes():
    half = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    one = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).log()
    assert divergence.kl(one, half).item() == pytest.approx(math.log(2))
    assert divergence.kl(half, one).item() == math.inf


def test_js_is_symmetric_and_ln_2_where_disjoint():
    p, q = torch.log_softmax(logits(seed=1), -1), torch.log_softmax(logits(seed=2), -1)
    torch.testing.assert_close(divergence.js(p, q), divergence.js(q, p))
    apart = torch.eye(2, dtype=torch.float64).log()
    assert divergence.js(apart[0], apart[1]).item() == pytest.approx(math.log(2))


@pytest.fixture
def read() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, lens.Readout]:
    layer, last, targets = logits(seed=1), logits(seed=2), torch.tensor([0, 5, 42, 7, 7, 1, 20])
    return layer, last, targets, lens.readout(layer, lens.final_of(last), targets, top_k=5)


def test_readout_equals_the_definitions(read):
    layer, last, targets, got = read
    log_p, log_final = torch.log_softmax(layer, -1), torch.log_softmax(last, -1)
    torch.testing.assert_close(got.entropy, divergence.entropy(log_p.exp()))
    torch.testing.assert_close(got.kl_to_final, divergence.kl(log_final, log_p))
    torch.testing.assert_close(got.target_log_prob, log_p[torch.arange(7), targets])


def test_ranks_equal_a_full_sort(read):
    layer, _, targets, got = read
    order = layer.argsort(-1, descending=True)
    assert torch.equal(got.top_ids, order[:, :5])
    assert torch.equal(got.target_rank, (order == targets[:, None]).int().argmax(-1))
    assert (got.top_log_probs.diff(dim=-1) <= 0).all()


def test_the_last_layer_has_no_kl_to_itself_in_float32():
    last = logits(words=5000).float()
    got = lens.readout(last, lens.final_of(last), last.argmax(-1), top_k=1)
    assert got.kl_to_final.max() <= 1e-6 and (got.target_rank == 0).all()


def test_reading_in_pieces_changes_nothing(read, monkeypatch):
    layer, last, targets, whole = read
    monkeypatch.setattr(lens, "PIECE_BYTES", 2 * 43 * 8)  # two rows, and one left over
    for a, b in zip(whole, lens.readout(layer, lens.final_of(last), targets, top_k=5), strict=True):
        torch.testing.assert_close(a, b)
