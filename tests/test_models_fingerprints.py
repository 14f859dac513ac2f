"""A fingerprint follows weights and config, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.errors import BadInput
from backend.models.fingerprints import fingerprint_safetensors, fingerprint_state_dict, read_header

CONFIG = {"model_type": "x", "n": 2}


def state() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    float_ = {n: torch.randn(3, 4, generator=rng) for n in ("b.weight", "a.weight")}
    return {**float_, "c": float_["a.weight"].bfloat16(), "d": torch.arange(5), "e": torch.ones(2).double(),
            "f": torch.zeros(0, 3), "g": torch.tensor(2.5).half(), "h": torch.tensor([True, False]),
            "i": torch.arange(3, dtype=torch.uint8), "j": torch.ones(2, dtype=torch.float8_e4m3fn)}  # fmt: skip


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_files_and_tensors_in_memory_agree(tmp_path: Path) -> None:
    whole = fingerprint_safetensors([saved(tmp_path / "a.safetensors", state())], CONFIG)
    assert whole == fingerprint_state_dict(state(), CONFIG) and len(whole) == 32
    assert whole == fingerprint_state_dict(dict(reversed(state().items())), CONFIG)
    strided = {**state(), "a.weight": state()["a.weight"].T.contiguous().T}
    assert whole == fingerprint_state_dict(strided, CONFIG)


def test_sharding_order_path_and_volatile_config_do_not_matter(tmp_path: Path) -> None:
    names = list(state())
    whole = fingerprint_safetensors([saved(tmp_path / "a.safetensors", state())], CONFIG)
    (tmp_path / "elsewhere").mkdir()
    one = saved(tmp_path / "elsewhere" / "1.safetensors", {n: state()[n] for n in names[3:]})
    two = saved(tmp_path / "elsewhere" / "2.safetensors", {n: state()[n] for n in names[:3]})
    more = {"_name_or_path": "/here", "transformers_version": "9", "torch_dtype": "float16", "dtype": "x", "seed": 3}
    assert fingerprint_safetensors([one, two], {**more, **CONFIG}) == whole
    assert fingerprint_safetensors([two, one], CONFIG) == whole


@pytest.mark.parametrize("change", ["weight", "integer", "name", "shape", "dtype", "config", "swap", "missing"])
def test_everything_that_decides_the_numbers_changes_it(change: str) -> None:
    tensors, config = state(), dict(CONFIG)
    if change == "weight":
        tensors["a.weight"][2, 3] = torch.nextafter(tensors["a.weight"][2, 3], torch.tensor(9.0))
    elif change == "integer":
        tensors["d"][0] = -1
    elif change == "name":
        tensors["k"] = tensors.pop("a.weight")
    elif change == "shape":
        tensors["a.weight"] = tensors["a.weight"].reshape(4, 3)
    elif change == "dtype":
        tensors["d"] = tensors["d"].view(torch.float64)
    elif change == "config":
        config["n"] = 3
    elif change == "swap":
        tensors["a.weight"], tensors["b.weight"] = tensors["b.weight"], tensors["a.weight"]
    else:
        del tensors["f"]
    assert fingerprint_state_dict(tensors, config) != fingerprint_state_dict(state(), CONFIG)


def test_one_weight_in_a_file_changes_it(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.safetensors", state())
    before = fingerprint_safetensors([file], CONFIG)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert fingerprint_safetensors([file], CONFIG) != before


def test_large_files_are_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.models import fingerprints

    file = saved(tmp_path / "a.safetensors", state())
    whole = fingerprint_safetensors([file], CONFIG)
    monkeypatch.setattr(fingerprints, "CHUNK", 7)
    assert fingerprint_safetensors([file], CONFIG) == whole


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.safetensors", state())
    header, start = read_header(file)
    assert header["a.weight"]["shape"] == [3, 4] and start > 8
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"a\.safetensors: truncated"):
        fingerprint_safetensors([file], CONFIG)
