"""Models stay within their memory budget; the least recently used leaves; changed files are read again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.contract import parse_spec
from backend.errors import NotFound
from backend.models import load
from backend.models.bridge import build_native
from backend.models.registry import locate
from backend.models.resident import Resident, _expected_bytes, resident_for
from tests.models_support import NATIVE, hf_folder, opened, run_folder, settings
from tests.test_models_nanogpt import checkpoint


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in "abc":
        run_folder(tmp_path / "runs" / name)
    return tmp_path


def held(resident: Resident) -> list[str]:
    return [c["spec"] for c in resident.contents()]


def test_the_least_recently_used_leaves_first(runs: Path) -> None:
    size = opened("run:a", runs).card.memory_bytes
    resident, with_ = Resident(int(size * 2.5)), settings(runs)
    a = resident.get(parse_spec("run:a"), with_)
    resident.get(parse_spec("run:b"), with_)
    assert resident.get(parse_spec("run:a"), with_) is a and held(resident) == ["run:a", "run:b"]
    resident.get(parse_spec("run:c"), with_)
    assert held(resident) == ["run:c", "run:a"]
    assert resident.used_bytes() <= resident.budget_bytes
    assert resident.contents()[0] == {"spec": "run:c", "step": 10, "dtype": "float32", "device": "cpu",
        "fingerprint": resident.get(parse_spec("run:c"), with_).card.fingerprint, "memory_bytes": size}  # fmt: skip


def test_a_model_larger_than_the_budget_is_held_alone(runs: Path) -> None:
    resident, with_ = Resident(10), settings(runs)
    resident.get(parse_spec("run:a"), with_)
    model = resident.get(parse_spec("run:b"), with_)
    assert held(resident) == ["run:b"] and resident.get(parse_spec("run:b"), with_) is model


def test_step_and_dtype_are_other_models(runs: Path) -> None:
    resident = Resident(10**9)
    first = resident.get(parse_spec("run:a", 0), settings(runs))
    last = resident.get(parse_spec("run:a"), settings(runs))
    double = resident.get(parse_spec("run:a"), settings(runs, dtype="float64"))
    assert len({id(m) for m in (first, last, double)}) == 3 and len(resident.contents()) == 3
    assert resident.get(parse_spec("run:a", 10), settings(runs)) is last, "no step means the last"


def test_changed_files_are_read_again(runs: Path) -> None:
    resident, with_ = Resident(10**9), settings(runs)
    old = resident.get(parse_spec("run:a"), with_)
    file = runs / "runs" / "a" / "checkpoints" / "step_00000010.safetensors"
    save_file(build_native(NATIVE, seed=99).state_dict(), file)
    new = resident.get(parse_spec("run:a"), with_)
    assert new is not old and new.card.fingerprint != old.card.fingerprint
    assert torch.equal(new.bare.head.weight, build_native(NATIVE, seed=99).head.weight)
    assert len(resident.contents()) == 1
    file.unlink()
    assert resident.get(parse_spec("run:a"), with_).card.step == 0


def test_a_failure_leaves_the_others_open(runs: Path) -> None:
    resident, with_ = Resident(10**9), settings(runs)
    resident.get(parse_spec("run:a"), with_)
    with pytest.raises(NotFound):
        resident.get(parse_spec("run:none"), with_)
    assert held(resident) == ["run:a"]


def test_threads_share_one_model(runs: Path) -> None:
    resident, with_ = Resident(10**9), settings(runs)
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: resident.get(parse_spec("run:a"), with_), range(8)))
    assert len({id(m) for m in models}) == 1


def test_one_per_process_with_the_settings_budget(runs: Path) -> None:
    one = resident_for(settings(runs, model_memory_gb=1.5))
    assert one is resident_for(settings(runs, model_memory_gb=2)) and one.budget_bytes == 2_000_000_000


class Watched(Resident):
    """Notes what it holds whenever a load begins."""

    def __init__(self, budget_bytes: int, monkeypatch: pytest.MonkeyPatch):
        super().__init__(budget_bytes)
        self.at_load: list[list[str]] = []
        real = load.open_model

        def open_model(*args: Any) -> Any:
            self.at_load.append(held(self))
            return real(*args)

        monkeypatch.setattr(load, "open_model", open_model)


def test_room_is_made_before_the_load(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models at once, even for the time of a load, are what the budget forbids."""
    size = opened("run:a", runs).card.memory_bytes
    resident, with_ = Watched(int(size * 1.5), monkeypatch), settings(runs)
    resident.get(parse_spec("run:a"), with_)
    resident.get(parse_spec("run:b"), with_)
    assert resident.at_load == [[], []] and held(resident) == ["run:b"]


def test_a_folder_of_16_bits_opened_in_32_is_expected_whole(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by its file it would seem to fit beside the first one."""
    hf_folder(runs / "whole", "gpt2")
    narrow = hf_folder(runs / "narrow", "gpt2")
    tensors = {n: t.bfloat16() for n, t in load_file(narrow / "model.safetensors").items()}
    save_file(tensors, narrow / "model.safetensors", {"format": "pt"})
    size = opened(f"dir:{runs / 'whole'}").card.memory_bytes
    resident, with_ = Watched(int(size * 1.75), monkeypatch), settings(runs)
    resident.get(parse_spec(f"dir:{runs / 'whole'}"), with_)
    model = resident.get(parse_spec(f"dir:{narrow}"), with_)
    assert model.card.memory_bytes == size and resident.at_load[1] == []


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_is_expected_is_what_is_taken(runs: Path, dtype: str) -> None:
    with_ = settings(runs, dtype=dtype)
    checkpoint(runs)
    specs = [f"dir:{hf_folder(runs / 'gpt2', 'gpt2', shard='40KB')}", "run:a", f"nanogpt:{runs}"]
    for spec, most in zip(specs, (1.0, 1.0, 2.5), strict=True):  # a torch file does not say how wide its numbers are
        taken = opened(spec, runs, dtype=dtype).card.memory_bytes
        assert 0.95 * taken <= _expected_bytes(locate(parse_spec(spec), with_), with_) <= most * taken
