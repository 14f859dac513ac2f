"""EXP-008: the kernel by layers is that of the whole Jacobian; nulls and errors are those of their definitions."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _energy, registry
from backend.analyses import exp008_kernel as code
from backend.contract import Problems, Request
from backend.errors import BadInput, NotFound
from backend.maths import tangent_kernel
from backend.models.trained import beside
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


def test_the_jackknife_is_its_definition():
    """((n - 1) / n sum_i (a_i - mean)^2)^.5 over the alignments a_i that each point left out gives."""
    dice = torch.Generator().manual_seed(0)
    target, other = (torch.randn(8, 3, generator=dice, dtype=torch.float64) for _ in range(2))
    kernel = tangent_kernel.kernel(target + other)
    left = [[j for j in range(8) if j != i] for i in range(8)]
    a = [tangent_kernel.alignment(kernel[k][:, k], tangent_kernel.kernel(target[k])) for k in left]
    by_hand = (7 / 8 * sum((one - sum(a) / 8) ** 2 for one in a)) ** 0.5
    assert code.jackknife(kernel, target) == pytest.approx(by_hand) and by_hand > 0.01


def test_the_targets_are_the_noise_for_the_field_and_its_square_for_the_energy(tmp_path):
    model = tiny_energy(tmp_path, steps=(10,))
    some = problems(model, 6)
    few = EXP.params(shuffles=20)
    table = EXP.compute(model, some, few, quiet)
    noise, y = some.noise.double(), _energy.noised(model, some, 3)
    targets = {"field": noise @ noise.T, "energy": torch.outer(noise.square().sum(1), noise.square().sum(1))}
    found = code.kernels(model.net, some.x, y, model.level(3, 6), EXP.params())
    for name, row in table[table.level == 3].set_index("kernel").iterrows():
        assert row.alignment == pytest.approx(tangent_kernel.alignment(found[name], targets[name]), rel=1e-6)
        null = code.shuffled(found[name], some.noise.double() if name == "field" else noise.square().sum(1, True), few)
        assert row.alignment_null_high == pytest.approx(np.quantile(null, 0.95), rel=1e-6) and np.ptp(null) > 0.01
        null = code.shuffled(found[name], some.y.double(), few)
        assert row.solution_null_high == pytest.approx(np.quantile(null, 0.95), rel=1e-6)
        solved = some.y.double() @ some.y.double().T
        assert row.solution_alignment == pytest.approx(tangent_kernel.alignment(found[name], solved), rel=1e-6)
    assert table.drift.isna().all() and table.kept.isna().all()
    claim = EXP.judge(table, None)[-1]
    assert claim.verdict == "cannot be tested here" and "set first step to 0" in claim.value
    np.testing.assert_allclose(np.stack(table.spectrum.to_list()).sum(1), 1, rtol=1e-5)


def test_drift_is_from_the_checkpoint_that_is_named():
    first, last = (shipped_energy("inverse-3", step=step) for step in (0, None))
    some, asked = problems(first, 6), EXP.params(first_step=0, shuffles=20)
    table = EXP.compute(first, some, asked, quiet)
    np.testing.assert_allclose(table.drift, 0, atol=1e-12)
    np.testing.assert_allclose(table.kept, 1, atol=1e-9)
    assert EXP.judge(table, None)[-1].verdict == "fails"
    moved = EXP.compute(last, some, asked, quiet)
    assert moved.drift.min() > 1 and EXP.judge(moved, None)[-1].verdict == "holds"
    once, twice = (EXP.work(last.card, Problems(n=6), EXP.params(first_step=s, shuffles=20)) for s in (-1, 0))
    gradients = [sum(c.n * c.rows for c in w.calls if c.gradients) for w in (once, twice)]
    assert gradients[1] == 2 * gradients[0] > 0


def test_the_first_checkpoint_is_part_of_the_key_and_a_missing_one_is_refused(tmp_path):
    model = tiny_energy(tmp_path, steps=(0, 5, 10))

    def key(step: int) -> str:
        params = EXP.params(first_step=step)
        return Request(analysis=EXP.name, version=EXP.version, spec=model.card.spec, fingerprint=model.card.fingerprint,
                       dtype=model.card.dtype, device=model.card.device, subject=Problems(n=6).model_dump(mode="json"),
                       params=params.model_dump(mode="json"),
                       companions=beside(params, model.card.spec, model.settings)).key  # fmt: skip

    before = key(0)
    assert len({before, key(-1), key(5)}) == 3
    folder = tmp_path / "runs" / "inverse-3" / "checkpoints"
    (folder / "step_00000000.safetensors").write_bytes((folder / "step_00000005.safetensors").read_bytes())
    assert key(0) != before, "the same name, other weights"
    for refused in (lambda: key(7), lambda: EXP.compute(model, problems(model), EXP.params(first_step=7), quiet)):
        with pytest.raises(NotFound, match="no checkpoint at this step"):
            refused()
    model.card = model.card.model_copy(update={"spec": "energy:elsewhere"})
    with pytest.raises(BadInput, match="is no run"):
        EXP.compute(model, problems(model), EXP.params(first_step=0), quiet)


def verdicts(**more):
    """Return the verdicts (field, energy, rank, drift) of a table that says the same of each level and kernel."""
    row = {"alignment": 0.5, "alignment_se": 0.1, "alignment_null": 0.1, "alignment_null_high": 0.2, "drift": 2.0,
           "input_alignment": 0.1, "effective_rank": 6.0, "centred_rank": 9.0, "points": 50, "kept": 0.5}  # fmt: skip
    rows = [{"level": k, "kernel": name, **row, **more} for k in range(2) for name in code.KERNELS]
    return [claim.verdict for claim in EXP.judge(pd.DataFrame(rows), None)]


def test_what_the_verdicts_ask():
    assert verdicts() == ["holds"] * 4
    assert verdicts(input_alignment=0.29)[:2] == ["holds"] * 2
    assert verdicts(input_alignment=0.31)[:2] == ["met by its null"] * 2, "two standard errors above the inputs"
    assert verdicts(input_alignment=0.6)[:2] == ["met by its null"] * 2
    assert verdicts(alignment_null_high=0.6)[:2] == ["fails"] * 2
    assert verdicts(effective_rank=4.0)[2] == "fails"
    assert verdicts(drift=0.9)[3] == verdicts(drift=0.9, kept=0.99)[3] == "fails"
    assert verdicts(kept=0.99)[3] == "met by its null", "it must move, and not by its size alone"
    for rank in (1.0, 9.0):
        assert verdicts(effective_rank=rank, points=19)[2] == "cannot be tested here", "a tenth is about one mode"
    assert verdicts(effective_rank=1.0, points=20)[2] == "fails"
    assert verdicts(drift=np.nan, kept=np.nan)[3] == "cannot be tested here"
