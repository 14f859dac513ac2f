"""Runs that hold no model but something trained for one: a tuned lens, a sparse autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from backend.models import trained, weights
from backend.settings import Settings


def read(run: str, step: int | None, settings: Settings) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (run.json, tensors) of a run's checkpoint, as `trained.locate` finds it. Raises as that does."""
    found = trained.locate(run, step, settings)
    return found.record, weights.read_safetensors((found.file,))
