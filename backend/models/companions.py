"""Runs that hold no model but something trained for one: a tuned lens, a sparse autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from backend.models import saelens_files, trained, weights
from backend.settings import Settings


def read(run: str, step: int | None, settings: Settings) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (run.json, tensors) of a run's checkpoint, as `trained.locate` finds it. Raises as that does."""
    found = trained.locate(run, step, settings)
    tensors, made = weights.read_safetensors((found.file,)), found.record["companion"]
    return found.record, saelens_files.as_ours(tensors, made) if made.get("format") == "saelens" else tensors
