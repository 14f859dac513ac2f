"""The other looks at an energy model's own loss: slices of it, the weights' spectra, paths to other models, how
degenerate its minimum is: what is a parabola, what units may change places, what noise gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from backend.analyses import _curving, _denoising, _slices, _weight_spectra, energy_weights, registry
from backend.analyses._denoising import Denoised, Denoising
from backend.contract import EnergyWeights, parse_spec
from backend.errors import PhasescopeError
from backend.maths import landscape, matching
from backend.maths.matching import Group
from backend.models.open import open_model
from backend.settings import SHIPPED_RUNS, Settings
from tests.causal_kit import ask
from tests.energy_kit import energy_run, problems, tiny_energy
from tests.test_analyses_energy_hessian import N, loss_by, truth

LEVELS = list(range(10))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_energy(tmp_path_factory.mktemp("energy"), dtype="float64", side=2, width=6, scale=2.0)


@pytest.fixture(scope="module")
def some(net: Any) -> Any:
    return problems(net, n=N)


def table(name: str, net: Any, some: Any, **params: Any) -> pd.DataFrame:
    return ask(registry()[name], net, some, **params)


# ---------------------------------------------------------------- slices


def test_a_slices_middle_is_the_loss_and_its_second_difference_the_hessian(
    net: Any, some: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = table("energy_slices", net, some, directions=2, points=5, grid=3, step=1e-3, reach=0.5)
    assert len(found) == 2 * 5 + 9 and found["loss"].iloc[2] != pytest.approx(found["null"].iloc[2])
    middle = found[(found["a"] == 0) & (found["b"] == 0)]
    whole = Denoising(net, some, LEVELS, ["fc4.bias"], "hessian").loss
    np.testing.assert_allclose(middle["loss"], whole, rtol=1e-12)
    assert (middle["rise_se"] == 0).all()
    each = found[found["direction"] >= 0].groupby("direction").first()
    np.testing.assert_allclose(each["second_difference"], each["curvature"], rtol=1e-3)
    losses, names = Denoised(net, some, LEVELS), list(net.card.parameters)
    one = _slices.drawn_directions(losses.own, _slices.SlicesParams())[0]
    (loss, at), u = loss_by(net, some, names, LEVELS), torch.cat([one[name].reshape(-1) for name in names])
    bent = torch.func.grad(lambda w: torch.func.grad(loss)(w) @ u)(at) @ u
    assert each["curvature"][0] == pytest.approx(float(bent))
    monkeypatch.setattr(_curving, "CHUNK_BYTES", 20 * _denoising.graph_bytes(net.card))  # two problems at once
    assert [len(losses.rows(losses.own)), len(losses.pieces())] == [N, 2]
    assert losses.curvatures([one])[0] == pytest.approx(each["curvature"][0])
    alone = [Denoised(net, _denoising.taken(some, slice(i, i + 1)), LEVELS).rows(losses.own)[0] for i in range(N)]
    np.testing.assert_allclose(losses.rows(losses.own), alone)


def test_along_a_block_it_is_bent_as_the_dense_hessian_says_and_in_the_last_bias_it_is_a_parabola(
    net: Any, some: Any
) -> None:
    """dE/dy = 2 J'(W h + b) is linear in b, so that L is quadratic in b at any distance; not so in fc1."""
    losses, dice = Denoised(net, some, [0, 4]), torch.Generator().manual_seed(0)
    for names, straight in ((["fc4.bias"], True), (["fc1.weight", "fc1.bias"], False)):
        u = {name: torch.zeros_like(t) for name, t in losses.own.items()}
        for name in names:
            u[name] = torch.randn(u[name].shape, generator=dice, dtype=torch.float64)
        vector = torch.cat([u[name].reshape(-1) for name in names])
        exact = float(vector @ truth(net, some, names, [0, 4]) @ vector)
        assert losses.curvatures([u])[0] == pytest.approx(exact, rel=1e-9)
        there = [losses.rows(landscape.moved(losses.own, [u], [t])).mean() for t in (-3.0, 0.0, 3.0)]
        far = (there[0] - 2 * there[1] + there[2]) / 9
        assert (far == pytest.approx(exact, rel=1e-9)) == straight


def test_the_null_is_the_slices_of_a_model_whose_weights_are_shuffled(tmp_path: Path, some: Any) -> None:
    """At the level and of the problems that are asked for; errors over these problems, with n - 1."""
    model = tiny_energy(tmp_path, dtype="float64", side=2, width=6, scale=2.0)
    asked = {"level": 3, "problems_used": 2, "seed": 3, "directions": 2, "points": 5, "grid": 3, "reach": 0.5}
    of = table("energy_slices", model, some, **asked)
    losses = Denoised(model, _denoising.taken(some, slice(2)), [3])
    middle = losses.rows(losses.own)
    moved = landscape.moved(losses.own, _slices.drawn_directions(losses.own, _slices.SlicesParams(seed=3))[:1], [0.5])
    rise = losses.rows(moved) - middle
    assert of["loss"][[2, 4]].tolist() == pytest.approx([middle.mean(), (middle + rise).mean()])
    assert of["rise_se"][4] == pytest.approx(abs(rise[0] - rise[1]) / 2), "of two problems"
    for name, tensor in _slices.shuffled(losses.own, 3).items():
        model.net.get_parameter(name).copy_(tensor)
    null, lines = table("energy_slices", model, some, **asked), of["direction"] >= 0
    np.testing.assert_allclose(of["null"][lines], null["loss"][lines])
    np.testing.assert_allclose(of["curvature_null"][lines], null["curvature"][lines])
    assert of["null"][~lines].isna().all() and null["curvature"].nunique() == 2


# ---------------------------------------------------------------- weights


def test_noise_has_outliers_at_the_stated_rate() -> None:
    """One matrix of noise in 20 has a value above what 5 % pass, whatever its shape and scale."""
    dice = np.random.default_rng(0)
    for shape in ((36, 9), (9, 9)):
        found = []
        for turn in range(250):  # a null each: of one null alone the rate is its own
            null = _weight_spectra.Null((*shape, 0), 19, turn)
            found.append(_weight_spectra.row_of(np.linalg.svd(0.1 * dice.normal(size=shape), compute_uv=False), null))
        assert np.mean([row["outliers"] > 0 for row in found]) == pytest.approx(
            0.05, abs=3 * (0.05 * 0.95 / 250) ** 0.5
        )


def test_a_spike_stands_above_the_noise_of_its_own_matrix_alone(tmp_path: Path) -> None:
    """Two directions in fc2, one in the gain of layer 3: what FiLM adds is another matrix, and stays noise."""
    model, dice = tiny_energy(tmp_path, dtype="float64", width=24), torch.Generator().manual_seed(2)
    matrices = {name: p for name, p in model.net.named_parameters() if p.ndim == 2}
    for matrix in matrices.values():
        matrix.copy_(0.2 * torch.randn(matrix.shape, generator=dice, dtype=torch.float64))
    matrices["fc2.weight"][:2] += 3 * torch.eye(24, dtype=torch.float64)[:2]
    matrices["t_map_fc3.weight"][:24] += 1.0
    found = ask(registry()["energy_weights"], model, EnergyWeights(), draws=39)
    found["name"] = [energy_weights.MODULES[m] for m in found["module"]]
    rows = found.set_index(["name", "part"])
    assert rows.loc[("fc2", "whole"), "outliers"] == 2 and rows.loc[("t_map_fc3", "gain"), "outliers"] == 1
    others = rows.drop([("fc2", "whole"), ("t_map_fc3", "gain")])
    assert len(others) == 8 and (others["outliers"] == 0).all() and (others["largest"] < others["edge_high"]).all()
    np.testing.assert_allclose(rows.loc[("t_map_fc3", "shift"), "singular_values"],
                               torch.linalg.svdvals(matrices["t_map_fc3.weight"][24:]))  # fmt: skip
    assert rows.loc[("fc4", "whole"), "edge"] == pytest.approx(0.2 * (24**0.5 + 3), rel=0.15)


# ---------------------------------------------------------------- paths to other models


def reordered(model: Any) -> dict[str, torch.Tensor]:
    """The weights with every group of units in random order."""
    copy, dice = {name: p.detach() for name, p in model.net.named_parameters()}, np.random.default_rng(1)
    for _, places in model.exchangeable():
        copy = matching.permuted(copy, Group(tuple(places)), dice.permutation(len(places[0][2])))
    return copy


def test_no_order_of_units_changes_the_field(net: Any, some: Any) -> None:
    losses, copy = Denoised(net, some, LEVELS), reordered(net)
    assert all(not torch.equal(copy[name], t) for name, t in losses.own.items()), "every tensor has units"
    np.testing.assert_allclose(losses.rows(copy), losses.rows(losses.own), rtol=1e-12)


def test_a_copy_in_another_order_is_one_basin_after_matching_and_a_model_beside_itself_before(tmp_path: Path) -> None:
    model = open_model(parse_spec("run:inverse-3"), Settings(runs=tmp_path, device="cpu", dtype="float32"))
    shutil.copytree(SHIPPED_RUNS / "inverse-3", tmp_path / "copy")
    copy, last = {name: t.contiguous() for name, t in reordered(model).items()}, model.card.step
    save_file(copy, tmp_path / "copy" / "checkpoints" / f"step_{last:08d}.safetensors")
    asked, few = problems(model, n=8), {"problems_used": 6, "points": 3, "bend_steps": 1}
    found = table("energy_connectivity", model, asked, other="copy", other_step=-1, **few)
    each = found.groupby("path").first()
    assert each.loc["straight", "barrier_low"] > 0.3 and each.loc["straight", "distance"] > 1
    assert each.loc["matched", "barrier"] < 1e-6 and each.loc["matched", "distance"] == 0
    assert each.loc["copy", "barrier"] > 0.5 and each.loc["copy, matched", "distance"] == 0
    held_out = Denoised(model, _denoising.taken(asked, slice(3, 6)), LEVELS)
    ends = found[found["path"] == "straight"].set_index("t")["loss"]
    assert ends[0.0] == pytest.approx(held_out.rows(held_out.own).mean(), rel=1e-4) == ends[1.0]
    itself = table("energy_connectivity", model, asked, other_step=last, level=4, **few).set_index("path")
    held_out.levels = [4]
    assert itself.loc["straight", "loss"].iloc[0] == pytest.approx(held_out.rows(held_out.own).mean(), rel=1e-4)
    assert itself.loc["straight", "barrier"].max() < 1e-6 and (itself.loc["straight", "distance"] == 0).all()


def test_energy_models_that_cannot_be_joined_say_why(net: Any, some: Any) -> None:
    energy_run(net.settings.runs / "wider", side=2, width=7)
    finer = energy_run(net.settings.runs / "finer", side=2, width=6) / "run.json"
    finer.write_text(finer.read_text().replace('"levels": 10', '"levels": 20'))
    assert {p.dtype for p in net.sibling("inverse-2", 0).parameters()} == {torch.float64}, "as the model beside it"
    shutil.copytree(SHIPPED_RUNS / "induction-1layer", net.settings.runs / "tokens")
    for given, words in (({"other": "wider"}, "width is 7 there and 6 here"), ({"other": "nobody"}, "no such run"),
                         ({"other": "finer"}, "levels is 20 there and 10 here"),
                         ({"other": "tokens", "other_step": -1}, "no energy model"),
                         ({"other_step": 7}, "no checkpoint")):  # fmt: skip
        with pytest.raises(PhasescopeError, match=words):
            table("energy_connectivity", net, some, points=3, **given)


# ---------------------------------------------------------------- learning coefficients


def test_in_the_last_bias_at_its_minimum_lambda_has_its_closed_form(tmp_path: Path) -> None:
    """L is a parabola there, its curvatures h: lambda = sum n beta h / (2 (n beta h + gamma)), d / 2 for small gamma.

    The likelihood of an entry of the noise is half its squared error, and there are problems x levels x entries. fc4 is
    made larger, so that its curvatures stand far above the smaller gamma.
    """
    model = tiny_energy(tmp_path, dtype="float64", side=2, width=6, scale=2.0)
    model.net.fc4.weight.mul_(30)
    some, n, bias = problems(model, n=N), N * 10 * 4, model.net.fc4.bias
    curved = truth(model, some, ["fc4.bias"], LEVELS)
    loss, at = loss_by(model, some, ["fc4.bias"], LEVELS)
    bias.copy_(at - torch.linalg.solve(curved, torch.func.grad(loss)(at)))
    heat = n / np.log(n) * torch.linalg.eigvalsh(curved).numpy() / 2
    asked = {"block": "fc4.bias", "chains": 4, "burn": 60, "draws": 100}
    for gamma, half in ((1.0, True), (1000.0, False)):
        found, exact = table("energy_learning_coefficient", model, some, localisation=gamma, **asked).iloc[0], float(
            (heat / (2 * (heat + gamma))).sum())  # fmt: skip
        assert found["trouble"] == "" and found["tokens"] == n
        assert found["estimate"] == pytest.approx(exact, abs=4 * found["estimate_se"]), gamma
        assert (exact > 1.9) == half and found["estimate_se"] < 0.2
