"""Truth of where rows look, of rollout, of ranks and bootstrap means: closed forms and scipy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from backend.maths import attending, divergence, ranks

T = 9


def back(k: int, length: int = T) -> torch.Tensor:
    """Every query looks k tokens back, to position 0 where there is none."""
    return torch.eye(length, dtype=torch.float64)[(torch.arange(length) - k).clamp(min=0)]


def random_rows(length: int = T, seed: int = 0) -> torch.Tensor:
    rows = torch.rand(2, length, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tril()
    return rows / rows.sum(-1, keepdim=True)


@pytest.mark.parametrize("causal", [True, False])
def test_shuffles_are_permutations_of_the_visible_keys(causal):
    keys = attending.shuffled_keys(400, 4, causal, torch.Generator().manual_seed(0))
    assert torch.equal(keys.sort(-1).values, torch.arange(4).expand(400, 4, 4))
    if causal:
        hidden = torch.ones(4, 4).triu(1).bool()
        assert torch.equal(keys[:, hidden], torch.arange(4).expand(4, 4)[hidden].expand(400, 6))
    first = (keys[:, 3, :, None] == torch.arange(4)).double().mean(0)  # the last query sees all: uniform
    torch.testing.assert_close(first, torch.full((4, 4), 0.25, dtype=torch.float64), atol=0.08, rtol=0)


def test_uniform_rows_have_normalised_entropy_one_and_see_what_they_may():
    for causal in (True, False):
        rows, visible = attending.uniform_rows(T, causal), attending.visible_keys(T, causal)
        torch.testing.assert_close(rows.sum(-1), torch.ones(T, dtype=torch.float64))
        found = divergence.normalised_entropy(rows, visible)[1:]
        torch.testing.assert_close(found, torch.ones_like(found))
        torch.testing.assert_close(attending.top_mass(rows, 3), (3 / visible.double()).clamp(max=1))


def test_distance_of_one_hot_and_uniform_rows():
    assert attending.distance(back(2)).tolist() == [0, 1, *[2.0] * (T - 2)]
    i = torch.arange(T, dtype=torch.float64)
    torch.testing.assert_close(attending.distance(attending.uniform_rows(T, True)), i / 2)
    both = (i * (i + 1) + (T - 1 - i) * (T - i)) / 2 / T  # bidirectional: sum of |i - j| over j
    torch.testing.assert_close(attending.distance(attending.uniform_rows(T, False)), both)
    assert attending.farthest(5, True).tolist() == [0, 1, 2, 3, 4]
    assert attending.farthest(5, False).tolist() == [4, 3, 2, 3, 4]


def test_offsets_by_hand():
    rows = random_rows()
    for k in range(4):
        mine = [rows[1, i, i - k].item() for i in range(max(k, 1), T)]
        assert attending.at_offset(rows, k)[1].item() == pytest.approx(np.mean(mine), abs=1e-12)
    masses = attending.offset_masses(back(3), 0, 4)
    assert masses.argmax() == 3 and masses[3] == 1
    with pytest.raises(ValueError, match="needs at least"):
        attending.at_offset(rows, T)


def test_identity_patterns_roll_out_to_the_identity():
    one = flow = torch.eye(T, dtype=torch.float64)
    for _ in range(4):
        flow = attending.rollout_step(flow, one.expand(3, T, T))
    assert torch.equal(flow, one)


def test_uniform_patterns_roll_out_to_a_closed_form():
    """Bidirectional: U = uniform is idempotent, so ((U + I) / 2)^L = U + 2^-L (I - U)."""
    even, one = attending.uniform_rows(T, False), torch.eye(T, dtype=torch.float64)
    flow = one
    for layer in range(1, 6):
        flow = attending.rollout_step(flow, even.expand(2, T, T))
        torch.testing.assert_close(flow, even + 0.5**layer * (one - even), rtol=0, atol=1e-12)


def test_rollout_of_previous_token_heads_is_binomial():
    """((S + I) / 2)^L with S one back: position i has C(L, m) / 2^L of i - m, as long as i >= L."""
    flow = torch.eye(T, dtype=torch.float64)
    for _ in range(3):
        flow = attending.rollout_step(flow, back(1)[None])
    assert flow[8].tolist() == [0, 0, 0, 0, 0, *[math.comb(3, m) / 8 for m in (3, 2, 1, 0)]]
    torch.testing.assert_close(flow.sum(-1), torch.ones(T, dtype=torch.float64))


def test_later_layers_stand_on_the_left():
    """Layer 0 looks one back, layer 1 at position 0: in that order 8 reaches 0 by layer 1, and 7 by layer 0."""
    flow = attending.rollout_step(torch.eye(T, dtype=torch.float64), back(1)[None])
    flow = attending.rollout_step(flow, back(T)[None])
    assert flow[8, 0] == 0.5 and flow[8, 7] == 0.25 and flow[8, 8] == 0.25


def test_spearman_equals_scipy_with_ties():
    dice = np.random.default_rng(0)
    a, b = dice.integers(5, size=(3, 20)), dice.normal(size=(3, 20))
    expected = [scipy.stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ranks.spearman(a, b), expected, atol=1e-12)
    assert ranks.spearman(np.arange(6), np.exp(np.arange(6))) == pytest.approx(1)
    assert np.isnan(ranks.spearman(np.ones(4), np.arange(4)))


def test_bootstrap_intervals_have_the_width_of_a_standard_error():
    values = np.random.default_rng(0).normal(3, 2, size=(200, 2))
    drawn = ranks.bootstrap_means(values, 4000, 0)
    assert drawn.shape == (4000, 2)
    np.testing.assert_allclose(drawn.mean(0), values.mean(0), atol=0.02)
    np.testing.assert_allclose(drawn.std(0), values.std(0) / math.sqrt(200), rtol=0.05)
    low, high = ranks.interval(drawn)
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std(0) / math.sqrt(200), rtol=0.08)
    assert np.isnan(ranks.interval(np.full((5, 2), np.nan))[0]).all()


def test_partial_rank_correlation_takes_the_common_cause_away():
    dice = np.random.default_rng(0)
    size = dice.random((200, 15))
    a, b = (size + 0.3 * dice.random((200, 15)) for _ in range(2))
    columns = np.stack([a, b, size, a + 0 * b], -1)
    whole, drawn = ranks.spearman_matrix(columns, 200, 0)
    want = scipy.stats.spearmanr(columns.reshape(-1, 4)).statistic
    np.testing.assert_allclose(whole, want, atol=1e-12)
    assert whole[0, 1] > 0.8 and abs(ranks.partial(whole, 0, 1, 2)) < 0.08 < 0.999 < ranks.partial(whole, 0, 3, 2)
    low, high = ranks.interval(drawn[:, 0, 1])
    assert low < whole[0, 1] < high and high - low < 0.05
    assert np.isnan(ranks.partial(whole, 0, 3, 0)), "nothing is left of what it is given"


@pytest.mark.parametrize("n", [6, 9, 64])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says(n):
    dice = np.random.default_rng(n)
    found = np.array([ranks.median_interval(x) for x in dice.exponential(size=(2000, n))])
    held = ((found[:, 0] <= np.log(2)) & (np.log(2) <= found[:, 2])).mean()
    assert held > 0.94 and (found[:, 1] == np.median(np.random.default_rng(n).exponential(size=(2000, n)), 1)).all()
    assert ranks.median_interval(np.array([1.0, np.inf, 2.0]))[1:] == (2.0, np.inf)
