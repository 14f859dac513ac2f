"""EXP-008: the kernel by layers is that of the whole Jacobian; nulls and errors are those of their definitions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from backend.analyses import _energy, registry
from backend.analyses import exp008_kernel as code
from backend.maths import tangent_kernel
from tests.energy_kit import problems, shipped_energy, tiny_energy
from tests.tiny_models import quiet

EXP = registry()["exp008_kernel"]


@pytest.mark.parametrize("task", ["gauss", "rank1"])
def test_the_kernels_are_those_of_the_jacobians_by_all_parameters(tmp_path, task):
    model = tiny_energy(tmp_path, "float64", side=2, width=6, task=task)
    some, level = problems(model, 3), model.level(4, 3)
    y = _energy.noised(model, some, 4)
    found = code.kernels(model.net, some.x, y, level, EXP.params(probes=9))
    net = copy.deepcopy(model.net).requires_grad_(True)
    every = list(net.parameters())
    energy = tangent_kernel.kernel(tangent_kernel.jacobian(net(some.x, y, level), every))
    slopes = net.gradient(some.x, y.requires_grad_(), level, create_graph=True)
    rows = tangent_kernel.kernel(tangent_kernel.jacobian(slopes, every)).detach().view(3, 4, 3, 4)
    torch.testing.assert_close(found["energy"], energy.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["field"], torch.einsum("ioko->ik", rows) / 4, rtol=1e-9, atol=1e-12)


def test_alignment_is_one_with_itself_and_shuffled_targets_lie_below():
    dice = torch.Generator().manual_seed(0)
    target = torch.randn(20, 2, generator=dice, dtype=torch.float64)
    own = tangent_kernel.kernel(target)
    null = code.shuffled(own, target, EXP.params())
    assert tangent_kernel.alignment(own, own) == pytest.approx(1) and np.quantile(null, 0.95) < 0.4
    assert code.jackknife(own, target) == pytest.approx(0, abs=1e-9)


def test_drift_is_from_the_runs_first_checkpoint(tmp_path):
    table = EXP.compute(shipped := shipped_energy("inverse-3", step=0), problems(shipped, 6), EXP.params(), quiet)
    np.testing.assert_allclose(table.drift, 0, atol=1e-12)
    np.testing.assert_allclose(table.kept, 1, atol=1e-9)
    model = tiny_energy(tmp_path, steps=(10,))
    last = EXP.compute(model, problems(model, 6), EXP.params(), quiet)
    assert last.drift.isna().all() and EXP.judge(last, None)[-1].verdict == "cannot be tested here"
    np.testing.assert_allclose(np.stack(last.spectrum.to_list()).sum(1), 1, rtol=1e-5)
