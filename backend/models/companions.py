"""Runs that hold no model but something trained for one: a tuned lens, a sparse autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from backend.errors import NotFound, Unfit
from backend.models import registry, weights
from backend.settings import Settings


def read(run: str, step: int | None, settings: Settings) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (run.json, tensors) of a run's checkpoint, the last without `step`.

    Raises NotFound for no such run or step, Unfit for a run that is not a companion.
    """
    folder, asked = registry.run_folder(run, settings), f"Run {run!r}"
    record = registry.read_json(folder / "run.json", asked)
    if not isinstance(record.get("companion"), dict):
        raise Unfit(asked, "it was not trained for a model (no lens, no SAE)", "Choose a run that was")
    files = registry.checkpoints(folder)
    chosen = max(files, default=None) if step is None else step
    if chosen not in files:
        found = "it has no checkpoint yet" if step is None else f"no checkpoint at step {step}"
        raise NotFound(asked, found, f"Its checkpoints: {', '.join(map(str, files)) or 'none'}")
    return record, weights.read_safetensors((files[chosen],))
