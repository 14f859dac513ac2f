"""The progress measures of modular addition on planted logits and neurons: which inputs and frequencies."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from backend import monitors
from backend.contract import Observation

P = 11
A, B = (torch.arange(P).repeat_interleave(P), torch.arange(P).repeat(P))
SUMS = (A + B) % P


def wave(w: int, of: torch.Tensor) -> torch.Tensor:
    return torch.cos(2 * math.pi * w * of.double() / P)


def seen(logits: torch.Tensor, train: torch.Tensor | None = None, **extra: torch.Tensor) -> Observation:
    train = A * 2 < P if train is None else train
    last = torch.cat([logits, torch.zeros(P * P, 1, dtype=torch.float64)], 1)[:, None]  # the class of '='
    return Observation(None, last, extra={"p": P, "train": train, **extra})


def test_a_neuron_belongs_to_a_frequency_that_holds_more_than_85_percent_of_it():
    neurons = [wave(2, A), math.sqrt(0.9) * wave(3, A) + math.sqrt(0.1) * wave(5, A),
               math.sqrt(0.8) * wave(3, A) + math.sqrt(0.2) * wave(1, B), wave(2, A) + wave(4, B)]  # fmt: skip
    extra = {"neurons": torch.stack(neurons, 1)}
    assert monitors.measure(["neuron_clusters"], seen(torch.zeros(P * P, P).double(), **extra)) == {
        "neuron_clusters": 0.5}  # fmt: skip


def test_one_frequency_for_and_one_against_the_answer():
    """Both explain the logits; only the one towards the answer is key and has a share of its own."""
    apart = SUMS[:, None] - torch.arange(P)
    got = monitors.measure(["modular_progress"], seen(3 * wave(2, apart) - 4 * wave(5, apart)))
    assert got["explained_fraction"] == pytest.approx(1, abs=1e-12)
    assert got["fve_w2"] == pytest.approx(9 / 25, abs=1e-12) and got["fve_w5"] == 0 and got["n_key_frequencies"] == 1
    assert sum(got[f"fve_w{w}"] for w in range(1, 6)) == pytest.approx(9 / 25, abs=1e-12)


def test_a_frequency_is_key_above_one_percent_of_the_variance():
    apart = SUMS[:, None] - torch.arange(P)
    for share, n in ((0.0098, 1), (0.0102, 2)):  # of the second; its similarity is ten times as much
        logits = math.sqrt(1 - share) * wave(2, apart) + math.sqrt(share) * wave(4, apart)
        assert monitors.measure(["modular_progress"], seen(logits))["n_key_frequencies"] == n


def test_excluded_is_of_the_train_pairs_restricted_and_full_of_the_others():
    """Logits = one frequency + what is known of the train pairs by heart: without the frequency the latter is left."""
    train = torch.rand(P * P, generator=torch.Generator().manual_seed(1)) < 0.5
    heart = 20.0 * F.one_hot(SUMS, P) * train[:, None]
    tilt = torch.linspace(0, 0.02, P, dtype=torch.float64)
    logits = 30 * wave(2, SUMS[:, None] - torch.arange(P)) + heart + tilt
    got = monitors.measure(["modular_progress"], seen(logits, train))
    whole = torch.cat([logits, torch.zeros(P * P, 1, dtype=torch.float64)], 1)
    assert got["full_test_loss"] == pytest.approx(F.cross_entropy(whole[~train], SUMS[~train]).item(), rel=1e-12)
    unit = [u / u.norm() for u in (wave(2, SUMS), torch.sin(2 * math.pi * 2 * SUMS.double() / P))]
    inside = sum(torch.outer(u, u @ logits) for u in unit)
    assert got["n_key_frequencies"] == 1
    excluded = F.cross_entropy((logits - inside)[train], SUMS[train]).item()
    assert got["excluded_loss"] == pytest.approx(excluded, rel=1e-9)
    assert abs(excluded - F.cross_entropy((logits - inside)[~train], SUMS[~train]).item()) > 0.1
    restricted = inside - inside.mean(0) + logits.mean(0)
    assert got["restricted_loss"] == pytest.approx(F.cross_entropy(restricted[~train], SUMS[~train]).item(), rel=1e-9)


def test_the_gini_of_w_l_is_of_the_classes_that_are_numbers():
    """A map to the logits that is one wave over the p numbers, anything to '=': two equal components of p."""
    neuron = torch.eye(2, dtype=torch.float64)
    W_U = torch.stack([wave(3, torch.arange(P)), torch.sin(2 * math.pi * 3 * torch.arange(P).double() / P)])
    W_U = torch.cat([W_U, torch.full((2, 1), 5.0, dtype=torch.float64)], 1)
    weights = {"W_E": torch.ones(P + 1, 2, dtype=torch.float64), "W_out": [neuron], "W_U": W_U}
    whole = Observation(None, torch.zeros(1, 1, P + 1), weights=weights, extra={"p": P})
    got = monitors.measure(["fourier_gini"], whole)
    assert got["gini_W_L"] == pytest.approx((P - 2) / P) and got["gini_W_E"] == pytest.approx((P - 1) / P)
