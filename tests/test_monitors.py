"""Which positions the losses on repeated rows are of: a different loss is planted at every position."""

import pytest
import torch

from backend import monitors
from backend.contract import Observation


def planted(losses: torch.Tensor, rows: int = 3) -> Observation:
    """Rows [A; A] on which the cross-entropy of the token after position i is losses[i] exactly (two classes)."""
    n = (len(losses) + 1) // 2
    tokens = torch.randint(2, (rows, n), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    wrong = torch.log(torch.expm1(losses))  # ln(1 + e^wrong) = loss
    logits = torch.zeros(rows, 2 * n, 2, dtype=torch.float64)
    logits[:, :-1].scatter_(2, 1 - tokens[:, 1:, None], wrong[None, :, None].expand(rows, -1, 1))
    return Observation(tokens, logits, block=n)


def test_every_loss_is_of_its_own_positions():
    losses = torch.arange(1, 64, dtype=torch.float64) ** 2 / 500  # 63 predicted positions, n = 32
    got = monitors.measure(["loss", "icl_score", "repeated_block"], planted(losses))
    assert got["loss"] == pytest.approx(float(losses.mean()))
    assert got["first_half_loss"] == pytest.approx(float(losses[:31].mean()))  # the step into the copy is in neither
    assert got["second_half_loss"] == pytest.approx(float(losses[32:].mean()))
    assert got["icl_score"] == pytest.approx(float(losses[-6:].mean() - losses[6:12].mean()))
