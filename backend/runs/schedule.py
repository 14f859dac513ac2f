"""Learning rates as functions of the step alone, so that a resumed run has the same ones; and where a run computes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from backend.errors import Unsupported
from backend.runs.loop import Training


@dataclass
class Scheduled(Training):
    """A Training whose learning rate is set before each update: `rate(n)` for the update that makes it n updates.

    `at` counts the updates, as far as `step` has been told of them: what `measure` may read.
    """

    rate: Callable[[int], float] = lambda step: 0.0
    at: int = 0

    def step(self, after: int) -> None:
        """Set the rate of this update, then make it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(after)
        super().step(after)
        self.at = after


def cosine(step: int, steps: int, peak: float, least: float, warm_up: int) -> float:
    """Return the rate of update `step` (from 1): linear up to `peak`, then half a cosine down to `least` at the last.

    Source: nanoGPT, train.py (get_lr); there updates count from 0.
    """
    if step <= warm_up:
        return peak * step / max(warm_up, 1)
    done = (step - warm_up) / max(steps - warm_up, 1)
    return least + (peak - least) * (1 + math.cos(math.pi * min(done, 1))) / 2


def dropped(step: int, lr_drop_at: int, lr_drop_factor: float) -> float:
    """Return what the rate of update `step` (from 1) is multiplied by: `lr_drop_factor` from `lr_drop_at` on.

    The updates after the first `lr_drop_at` ones have the lower rate; 0 means that it never drops.
    """
    return lr_drop_factor if lr_drop_at and step > lr_drop_at else 1.0


def device_of(asked: str) -> str:
    """Return "cuda" or "cpu" for a recipe's device. Raises Unsupported where cuda is asked for and absent."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise Unsupported("Training on cuda", "no CUDA device here", "Set device to auto or cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def weights_dtype(dtype: str) -> torch.dtype:
    """Return the dtype in which weights are kept: float32 also where the forward is in bfloat16."""
    return torch.float64 if dtype == "float64" else torch.float32


def forward_in(dtype: str, device: str) -> Any:
    """Return the context in which a forward runs: automatic bfloat16, or none."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
