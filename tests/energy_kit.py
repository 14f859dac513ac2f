"""A small energy model on disk, opened, and problems for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from backend.contract import Matrices, Problems, parse_spec
from backend.models.energy_net import EnergyNet
from backend.models.open import open_model
from backend.runs import energy_tasks
from backend.settings import Settings
from backend.subjects import entries


def energy_run(folder: Path, task: str = "inverse", side: int = 3, width: int = 16, steps: tuple[int, ...] = (0, 10),
               scale: float = 1.0) -> Path:  # fmt: skip
    """Write a run of an untrained energy model, another for each step, and return its folder."""
    d_x, d_y = entries(task, side)
    (folder / "checkpoints").mkdir(parents=True)
    for step in steps:
        torch.manual_seed(step)
        state = {name: scale * t for name, t in EnergyNet(d_x, d_y, width).state_dict().items()}
        save_file(state, folder / "checkpoints" / f"step_{step:08d}.safetensors")
    config = {"task": task, "side": side, "rank": 1, "d_x": d_x, "d_y": d_y, "width": width, "levels": 10}
    params = {"task": task, "side": side, "width": width, "seed": 0}
    (folder / "run.json").write_text(json.dumps({
        "model": {"kind": "energy", "config": config}, "recipe": "energy", "params": params}))  # fmt: skip
    return folder


def tiny_energy(root: Path, dtype: str = "float32", **more: Any) -> Any:
    """Return an opened small energy model with random weights."""
    name = f"{more.get('task', 'inverse')}-{more.get('side', 3)}"
    if not (root / "runs" / name).exists():
        energy_run(root / "runs" / name, **more)
    where = Settings(runs=root / "runs", cache=root / "cache", device="cpu", dtype=dtype)
    return open_model(parse_spec(f"run:{name}"), where)


def shipped_energy(name: str, dtype: str = "float32", step: int | None = None) -> Any:
    """Return a shipped energy model."""
    return open_model(parse_spec(f"run:{name}", step), Settings(device="cpu", dtype=dtype))


def problems(model: Any, n: int = 5, **more: Any) -> Matrices:
    """Return problems for a model as the worker makes them."""
    return energy_tasks.matrices(model.card, Problems(n=n, **more))
