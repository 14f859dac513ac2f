"""Energy models open like any model: from a run, from the official layout; what does not fit is refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from backend import Backend, costs
from backend.contract import Problems, parse_spec
from backend.errors import BadInput, NotFound, PhasescopeError, Unfit, Unsupported
from backend.models import energy_model
from backend.models.energy_net import EnergyNet
from backend.models.open import open_model
from backend.runs import energy_tasks
from backend.settings import ROOT, Settings
from tests.energy_kit import energy_run, problems, tiny_energy


def opened(place: Path) -> Any:
    return open_model(parse_spec(f"energy:{place}"), Settings(device="cpu"))


def trainers_file(path: Path, net: EnergyNet, average: EnergyNet | None = None) -> Path:
    """Write what IRED's Trainer1D.save writes: the wrapped diffusion model, its schedule, and its moving average."""

    def wrapped(one: EnergyNet) -> dict[str, Any]:
        return {"betas": torch.rand(10), **{f"model.ebm.{n}": t for n, t in one.state_dict().items()}}

    data: dict[str, Any] = {"step": 1000, "model": wrapped(net), "opt": {"state": {}}, "scaler": None, "version": "1"}
    if average is not None:
        data["ema"] = {"initted": torch.tensor(True), "step": torch.tensor(100),
                       **{f"online_model.{n}": t for n, t in wrapped(net).items()},
                       **{f"ema_model.{n}": t for n, t in wrapped(average).items()}}  # fmt: skip
    torch.save(data, path)
    return path


def test_a_checkpoint_of_the_official_trainer_is_its_moving_average(tmp_path: Path) -> None:
    net, average = EnergyNet(9, 9, 16), EnergyNet(9, 9, 16)
    model = opened(trainers_file(tmp_path / "model-1.pt", net, average))
    x, y = torch.randn(3, 9), torch.randn(3, 9)
    torch.testing.assert_close(model.net(x, y, model.level(2, 3)), average(x, y, model.level(2, 3)))
    assert model.card.energy == {"task": "inverse", "side": 3, "rank": 1, "d_x": 9, "d_y": 9, "width": 16, "levels": 10}
    assert any("moving average" in n for n in model.card.notes) and any("assumed" in n for n in model.card.notes)
    plain = opened(trainers_file(tmp_path / "model-2.pt", net))
    torch.testing.assert_close(plain.net(x, y, plain.level(2, 3)), net(x, y, plain.level(2, 3)))
    assert plain.card.fingerprint != model.card.fingerprint


@pytest.mark.parametrize(("d_x", "told", "task"), [
    (18, {}, "addition"), (0, {}, "rank1"), (9, {"task": "completion", "rank": 2}, "completion"),
])  # fmt: skip
def test_the_task_is_read_off_the_sizes_or_said_beside(tmp_path: Path, d_x: int, told: dict, task: str) -> None:
    save_file(EnergyNet(d_x, 9, 16).state_dict(), tmp_path / "net.safetensors")
    if told:
        (tmp_path / "net.json").write_text(json.dumps(told))
    model = opened(tmp_path)
    assert model.card.energy["task"] == task and not model.card.notes
    assert problems(model, 2).task == task


def test_sizes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    odd = {"no-square": EnergyNet(5, 5, 16), "no-task": EnergyNet(3, 9, 16)}
    for name, net in odd.items():
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
        with pytest.raises(BadInput, match="square"):
            opened(tmp_path / f"{name}.safetensors")
    state = EnergyNet(9, 9, 16).state_dict()
    for broken, said in (({**state, "fc2.weight": torch.zeros(8, 16)}, "fc2.weight"),
                         ({**state, "t_map_fc3.weight": torch.zeros(8, 128)}, "t_map_fc3.weight"),
                         ({**state, "conv.weight": torch.zeros(3)}, "conv.weight"),
                         ({n: t for n, t in state.items() if n != "fc3.bias"}, "fc3.bias"),
                         ({n: t for n, t in state.items() if n != "fc4.weight"}, "and fc4.weight")):  # fmt: skip
        save_file(broken, tmp_path / "broken.safetensors")
        with pytest.raises(BadInput, match=said):
            opened(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(("told", "said"), [
    ({"task": "foo"}, "inverse, completion, gauss"), ({"task": "addition"}, "sizes"), ({"levels": 0}, "levels"),
    ({"levels": "abc"}, "levels"), ({"levels": True}, "levels"), ({"task": "completion", "rank": 99}, "rank"),
])  # fmt: skip
def test_what_stands_beside_a_checkpoint_must_fit_it(tmp_path: Path, told: dict, said: str) -> None:
    save_file(EnergyNet(9, 9, 16).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match=said):
        opened(tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return (eval, ("1 + 1",))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Evil()}, tmp_path / "model.pt")
    with pytest.raises(Unsupported, match="run pickled code"):
        opened(tmp_path / "model.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BadInput, match="no tensors"):
        opened(tmp_path / "list.pt")
    with pytest.raises(NotFound):
        opened(tmp_path / "nowhere.pt")


def test_a_run_whose_config_says_no_sizes(tmp_path: Path) -> None:
    folder = energy_run(tmp_path / "runs" / "bad")
    record = json.loads((folder / "run.json").read_text())
    del record["model"]["config"]["width"]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="width"):
        open_model(parse_spec(f"run:{folder}"), Settings(device="cpu"))


def test_a_sibling_is_the_other_checkpoint(tmp_path: Path) -> None:
    model = tiny_energy(tmp_path)
    first = open_model(parse_spec(model.card.spec, 0), model.settings)
    x, y = torch.randn(2, 9), torch.randn(2, 9)
    for step, one in ((0, first), (None, model)):
        there = model.sibling("inverse-3", step)(x, y, model.level(1, 2))
        torch.testing.assert_close(there, one.net(x, y, model.level(1, 2)))
    with pytest.raises(NotFound):
        model.sibling("inverse-3", 7)


# ---------------------------------------------------------------- problems


def test_the_same_problems_again_and_others_on_request(tmp_path: Path) -> None:
    model = tiny_energy(tmp_path)
    some, again, others = problems(model, 4), problems(model, 4), problems(model, 4, seed=1)
    assert torch.equal(some.x, again.x) and torch.equal(some.noise, again.noise) and not torch.equal(some.x, others.x)
    more = some.more(4, 0)
    assert more.x.shape == some.x.shape and not torch.equal(more.x, some.x)
    a, y = some.x.unflatten(1, (3, 3)), some.y.unflatten(1, (3, 3))
    torch.testing.assert_close(a @ y, torch.eye(3).expand(4, 3, 3), atol=1e-4, rtol=0)
    hard = problems(model, 64, harder=True)
    assert hard.x.unflatten(1, (3, 3)).diagonal(dim1=1, dim2=2).mean() < problems(model, 64).x[:, ::4].mean()


def test_problems_of_other_sizes_or_without_a_harder_kind_are_refused(tmp_path: Path) -> None:
    model = tiny_energy(tmp_path)
    with pytest.raises(Unfit, match="addition"):
        problems(model, 2, task="addition")
    with pytest.raises(Unfit, match="gauss"):
        energy_tasks.matrices(model.card, Problems(n=2, task="gauss", harder=True))
    assert problems(model, 2, task="gauss").task == "gauss", "of the same sizes"


# ---------------------------------------------------------------- through the house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("house")
    energy_run(root / "runs" / "tiny")
    one = Backend(Settings(runs=root / "runs", cache=root / "cache", device="cpu"), inline=True)
    yield one
    one.close()


def asked(house: Backend, name: str, **more: Any) -> Any:
    answer = house.submit(name, "run:tiny", **more)
    while answer["state"] == "opening":
        house.wait(answer["job"]["id"], 60)
        answer = house.submit(name, "run:tiny", **more)
    return answer


def test_an_experiment_is_asked_kept_and_judged(house: Backend) -> None:
    answer = asked(house, "exp001_hessian", about={"n": 3, "seed": 1})
    house.wait(answer["job"]["id"], 60)
    table = house.table(answer["key"])
    assert table.groupby("level").size().tolist() == [3] * 10 and len(table.spectrum[0]) == 9
    verdicts = {"holds", "fails", "met by its null", "cannot be tested here"}
    assert {c["verdict"] for c in house.claims(answer["key"])} <= verdicts
    assert house.figure(answer["key"], "implied", {"level": 3}).data[0].x.size == 3
    assert asked(house, "exp001_hessian", about={"n": 3, "seed": 1})["state"] == "kept"
    assert asked(house, "exp001_hessian", about={"n": 3, "seed": 2})["key"] != answer["key"]


@pytest.mark.parametrize(("name", "about", "said"), [
    ("head_scores", {}, "this is an energy model"), ("attention", {}, "this is an energy model"),
    ("exp001_hessian", {"n": 0}, "n"), ("exp001_hessian", {"colour": 1}, "colour"),
    ("exp001_hessian", {"task": "sudoku"}, "task"),
])  # fmt: skip
def test_what_an_energy_model_cannot_be_asked(house: Backend, name: str, about: dict, said: str) -> None:
    with pytest.raises(PhasescopeError, match=said):
        asked(house, name, about=about)


def test_a_transformer_cannot_be_asked_for_problems(house: Backend) -> None:
    answer = house.open("run:induction-demo")
    if answer["card"] is None:
        house.wait(answer["job"]["id"], 60)
    with pytest.raises(Unfit, match="this is a transformer"):
        house.submit("exp001_hessian", "run:induction-demo")


def test_what_a_call_costs_is_measured(tmp_path: Path) -> None:
    model = tiny_energy(tmp_path, width=64)
    found = energy_model.probe(model)
    for kind in (False, True):
        one, many = (costs.price(found, costs.Calls(n, 1, gradients=kind), "bytes") for n in (1, 256))
        assert 0 < one < many / 200
        assert costs.price(found, costs.Calls(256, 1, gradients=kind), "seconds") > 0
    assert found["operations_per_second"] > 1e6


def test_the_command_line_asks_about_problems(tmp_path: Path) -> None:
    energy_run(tmp_path / "runs" / "tiny")
    env = {"PHASESCOPE_RUNS": str(tmp_path / "runs"), "PHASESCOPE_CACHE": str(tmp_path / "cache"), "PATH": "",
           "OMP_NUM_THREADS": "1", "PHASESCOPE_DEVICE": "cpu"}  # fmt: skip
    out = tmp_path / "table.csv"
    line = [sys.executable, "-m", "backend", "run", "exp001_hessian", "--model", "run:tiny", "--n-problems", "2",
            "--problem-seed", "5", "--harder", "--out", str(out)]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == 21
