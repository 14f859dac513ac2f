"""Truth tests of the head scores: hand-wired patterns with known values."""

import math

import pytest
import torch

from backend.maths.heads import attention_entropy, duplicate_token, prefix_matching, previous_token

N = 7


def pattern_to(offset: int, length: int = 2 * N) -> torch.Tensor:
    """Every query i attends to key i - offset alone (to key 0 where that does not exist). [1, length, length]"""
    pattern = torch.zeros(1, length, length, dtype=torch.float64)
    for i in range(length):
        pattern[0, i, i - offset if i >= offset else 0] = 1
    return pattern


def uniform(length: int) -> torch.Tensor:
    causal = torch.ones(length, length, dtype=torch.float64).tril()
    return (causal / causal.sum(-1, keepdim=True))[None]


def induction_by_tokens(tokens: list[int]) -> torch.Tensor:
    """The exact induction head: attend to the token after the latest earlier occurrence of the current token."""
    pattern = torch.zeros(1, len(tokens), len(tokens), dtype=torch.float64)
    for i, token in enumerate(tokens):
        earlier = [j for j in range(i) if tokens[j] == token]
        pattern[0, i, earlier[-1] + 1 if earlier else 0] = 1
    return pattern


def test_exact_induction_head_scores_one_and_is_no_other_head():
    block = torch.randperm(50)[:N].tolist()
    pattern = induction_by_tokens(block + block)
    assert prefix_matching(pattern, N).item() == 1
    assert duplicate_token(pattern, N).item() == 0
    assert previous_token(pattern).item() <= 1 / (2 * N - 1)  # query 1 falls back to key 0


def test_previous_and_duplicate_heads_score_one():
    assert previous_token(pattern_to(1)).item() == 1
    assert prefix_matching(pattern_to(1), N).item() == 0
    assert duplicate_token(pattern_to(N), N).item() == 1
    assert prefix_matching(pattern_to(N), N).item() == 0


def test_a_head_that_errs_at_the_last_counted_query_only():
    pattern = pattern_to(N - 1)
    pattern[0, 2 * N - 2] = 0
    pattern[0, 2 * N - 2, 0] = 1
    assert prefix_matching(pattern, N).item() == pytest.approx((N - 2) / (N - 1), abs=1e-12)
    pattern = pattern_to(N - 1)
    pattern[0, 2 * N - 1] = 0  # the query after the range does not count
    assert prefix_matching(pattern, N).item() == 1


def test_uniform_attention_has_closed_forms():
    pattern = uniform(2 * N)
    assert prefix_matching(pattern, N).item() == pytest.approx(sum(1 / (i + 1) for i in range(N, 2 * N - 1)) / (N - 1))
    assert previous_token(pattern).item() == pytest.approx(sum(1 / (i + 1) for i in range(1, 2 * N)) / (2 * N - 1))
    assert duplicate_token(pattern, N).item() == pytest.approx(sum(1 / (i + 1) for i in range(N, 2 * N)) / N)


def test_scores_equal_the_definition_written_as_loops():
    pattern = torch.rand(3, 4, 2 * N + 3, 2 * N + 3, dtype=torch.float64).tril().softmax(-1)
    cases = [
        (prefix_matching(pattern, N), [(i, i - N + 1) for i in range(N, 2 * N - 1)]),
        (duplicate_token(pattern, N), [(i, i - N) for i in range(N, 2 * N)]),
        (previous_token(pattern), [(i, i - 1) for i in range(1, 2 * N + 3)]),
    ]
    for got, cells in cases:
        want = sum(pattern[:, :, q, k] for q, k in cells) / len(cells)
        assert got.shape == (3, 4)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_entropy_of_uniform_rows_is_ln_of_visible_keys_and_of_one_hot_rows_zero():
    rows = attention_entropy(uniform(9))[0]
    torch.testing.assert_close(rows, torch.tensor([math.log(i + 1) for i in range(9)], dtype=torch.float64))
    assert attention_entropy(pattern_to(1)).abs().max().item() == 0
    half = torch.tensor([[0.5, 0.25, 0.25, 0.0]], dtype=torch.float64)
    assert attention_entropy(half).item() == pytest.approx(1.5 * math.log(2), abs=1e-15)


def test_refuses_what_has_no_score():
    with pytest.raises(ValueError, match="square"):
        previous_token(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least 13 positions"):
        prefix_matching(torch.zeros(12, 12), N)
    with pytest.raises(ValueError, match="n >= 2"):
        prefix_matching(torch.zeros(12, 12), 1)
    with pytest.raises(ValueError):
        duplicate_token(torch.zeros(13, 13), N)
