"""Streaming statistics give what the whole sample at once gives."""

import numpy as np
import pytest
import scipy.stats
import torch

from backend.maths.streaming import Joint, Moments, Reservoir, Top, shuffled, strongest_other

X = torch.randn(300, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp() - 1
X[:, 6] = 0.1  # a constant unit
X[:, 5] = X[:, 5].round()  # ties


def fed(stream, x=X, sizes=(1, 17, 100, 3, 179)):
    """Feed x in batches of these sizes."""
    for part in x.split(list(sizes)):
        stream.update(part)
    return stream


def test_moments_are_those_of_the_whole_sample():
    seen = fed(Moments())
    assert seen.n == 300
    torch.testing.assert_close(seen.mean, X.mean(0))
    torch.testing.assert_close(seen.variance(), X.var(0), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(seen.density, (X > 0).double().mean(0))
    np.testing.assert_allclose(seen.kurtosis()[:6], scipy.stats.kurtosis(X[:, :6].numpy()), rtol=1e-9)
    assert seen.kurtosis()[6].isnan()
    np.testing.assert_allclose(seen.standard_error()[:6], scipy.stats.sem(X[:, :6].numpy()), rtol=1e-9)


def test_moments_of_one_sample_have_no_variance():
    assert fed(Moments(), X[:1], (1,)).variance().isnan().all()


def test_correlation_is_that_of_the_whole_sample():
    seen = fed(Joint()).correlation()
    np.testing.assert_allclose(seen[:6, :6], np.corrcoef(X[:, :6].T.numpy()), atol=1e-12)
    assert (seen[6] == 0).all()
    np.testing.assert_allclose(fed(Joint()).covariance(), np.cov(X.T.numpy()), atol=1e-10)


@pytest.mark.parametrize("k", [1, 5, 300, 400])
def test_the_top_is_a_full_stable_sort(k):
    seen, order = fed(Top(k)), X.sort(dim=0, descending=True, stable=True)
    torch.testing.assert_close(seen.values, order.values[:k], atol=0, rtol=0)
    assert torch.equal(seen.samples, order.indices[:k])


def test_a_reservoir_that_holds_all_is_exact():
    seen = fed(Reservoir(300))
    for q in (0.0, 0.1, 0.5, 0.99, 1.0):
        np.testing.assert_allclose(seen.quantile(q), np.quantile(X.numpy(), q, axis=0), atol=1e-12)


def test_a_small_reservoir_is_a_uniform_sample_without_replacement():
    """Each of 60 samples is kept with probability 1/3: over 400 seeds its count is binomial."""
    numbers = torch.arange(60.0)[:, None]
    counts = torch.zeros(60)
    for seed in range(400):
        kept = fed(Reservoir(20, seed), numbers, (7, 13, 40)).kept.flatten()
        assert len(kept.unique()) == 20
        counts[kept.long()] += 1
    spread = (400 * (1 / 3) * (2 / 3)) ** 0.5
    assert (counts - 400 / 3).abs().max() < 4.5 * spread


def test_shuffling_keeps_each_unit_and_breaks_the_pairs():
    twins = X[:, :1].expand(-1, 3)
    mixed = shuffled(twins, torch.Generator().manual_seed(1))
    torch.testing.assert_close(mixed.sort(0).values, twins.sort(0).values, atol=0, rtol=0)
    assert fed(Joint(), mixed).correlation().fill_diagonal_(0).abs().max() < 0.3


def test_the_strongest_other_is_never_the_unit_itself():
    r = torch.tensor([[1.0, -0.9, 0.2], [-0.9, 1.0, 0.1], [0.2, 0.1, 1.0]])
    size, which = strongest_other(r)
    assert size.tolist() == pytest.approx([0.9, 0.9, 0.2]) and which.tolist() == [1, 0, 0]
    assert strongest_other(torch.ones(1, 1))[0].tolist() == [0]
