"""Truths that single-line errors in maths/ once survived: each is forced by mathematics, or by an oracle elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.maths import heads, phases, spectra, verdicts
from backend.maths.glr import ramp
from backend.maths.locate import locate
from backend.maths.phases import Thresholds


def test_key_value_heads_are_shared_as_torch_shares_them():
    """Grouped-query attention through `grouped` is scaled_dot_product_attention(enable_gqa=True)."""
    dice = torch.Generator().manual_seed(0)
    q = torch.randn(6, 5, 4, generator=dice, dtype=torch.float64)
    k, v = (torch.randn(2, 5, 4, generator=dice, dtype=torch.float64) for _ in range(2))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    (keys, _), (own, _) = heads.grouped(k, q), heads.grouped(v, q)
    got = torch.nn.functional.scaled_dot_product_attention(q, keys, own, is_causal=True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [4, 5, 9, 40])
def test_vectors_on_a_line_have_one_dimension_however_few_they_are(n):
    along = torch.randn(n, 1, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    direction = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    assert float(spectra.participation_ratio(along * direction + 3)) == pytest.approx(1, abs=1e-12)


def test_a_run_is_undecided_until_both_curves_have_passed_the_budget():
    train, limits = ([0, 120], [0.0, 1.0]), Thresholds(0.9, 1000, budget=100)
    early, late = ([0, 80], [0.0, 0.0]), ([0, 80, 100], [0.0, 0.0, 0.0])
    learnt = ([0, 50, 120], [0.0, 1.0, 1.0])
    assert phases.of_run(learnt, early, limits, ended=False).phase == phases.OPEN
    assert phases.of_run(early, train, limits, ended=False).phase == phases.OPEN
    assert phases.of_run(learnt, late, limits, ended=False).phase == phases.MEMORISATION
    assert phases.of_run(learnt, early, limits, ended=True).phase == phases.MEMORISATION


# ---------------------------------------------------------------- the interval of a change


U = np.linspace(0.0, 8.0, 120)


def places(centre, width, runs, sd):
    for seed in range(runs):
        noise = sd * np.random.default_rng([7, seed]).normal(size=len(U))
        values = (0.1 * U + 0.6 * ramp(U, centre, width) + noise)[:, None]
        yield locate(U, values, int(np.searchsorted(U, centre + width / 2 + 0.7)), 0, [0])


def test_the_intervals_of_a_change_cover_as_often_as_they_say_and_say_something():
    """Nominally 90 %: of 120 runs that covers fewer than 82 % once in a thousand times. One that covers always and
    spans the window would say nothing; with noise a sixth of the jump the change is known to half a unit of ln-step."""
    found = list(places(5.0, 0.4, 120, sd=0.1))
    for low, high, true in (("low", "high", 5.0), ("width_low", "width_high", 0.4)):
        ends = np.array([[getattr(p, low), getattr(p, high)] for p in found])
        assert np.mean((ends[:, 0] <= true) & (true <= ends[:, 1])) >= 0.82, low
    assert np.median([p.high - p.low for p in found]) < 0.5
    assert np.median([p.width_high - p.width_low for p in found]) < 1.0


def test_a_slope_that_may_be_flat_is_not_called_sharpening():
    """Widths that shrink on average, with an interval that reaches past 0: not transition-like."""
    sizes = np.repeat([1e4, 1e5, 1e6], 3)
    widths = np.array([0.3, 0.9, 0.5, 0.8, 0.2, 0.5, 0.25, 0.75, 0.45])
    found = verdicts.sharpening(sizes, widths)
    assert found.slope < 0 < found.high and not found.transition_like
