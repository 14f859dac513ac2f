"""Weights, optimiser and random state as safetensors files: nothing is pickled, nothing is half-written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from backend.errors import Broken
from backend.runs.layout import write_whole


def save_weights(path: Path, model: nn.Module | Mapping[str, Tensor]) -> None:
    """Write a module's state dict (tied tensors twice), copied to the CPU, whole or not at all."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    write_whole(path, save({k: _own(v) for k, v in state.items()}, metadata={"format": "pt"}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Read a checkpoint back into the module it came from. Raises Broken where the file or a shape does not fit."""
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _broken(path, error) from None


def save_resume(path: Path, optimizer: torch.optim.Optimizer, rng: Mapping[str, Tensor]) -> None:
    """Write the optimiser's state and the generators' states so that training continues to the same bits."""
    state = optimizer.state_dict()
    tensors = {f"optimizer/{i}/{k}": _own(v) for i, entry in state["state"].items() for k, v in entry.items()}
    tensors |= {f"rng/{name}": _own(value) for name, value in rng.items()}
    write_whole(path, save(tensors, metadata={"param_groups": json.dumps(state["param_groups"])}))


def load_resume(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put the optimiser's state back and return the generators' states by name. Raises Broken for a bad file."""
    try:
        with safe_open(path, "pt") as file:
            groups = json.loads(file.metadata()["param_groups"])
        tensors = load_file(path)
        state: dict[int, dict[str, Tensor]] = {}
        for key in (k for k in tensors if k.startswith("optimizer/")):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = tensors[key]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, error) from None
    return {k.removeprefix("rng/"): v for k, v in tensors.items() if k.startswith("rng/")}


def _own(value: Any) -> Tensor:
    # a copy of its own: safetensors refuses tensors that share memory
    return torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()


def _broken(path: Path, error: Exception) -> Broken:
    return Broken(f"Checkpoint {path.name}", str(error).split("\n")[0], "Remove it; the step before it is used then")
