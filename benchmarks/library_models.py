"""Tiny random models of the eight architectures that the tests hold the house against, opened in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.models_support import hf_folder, opened, run_folder
from tests.test_models_architectures import CONFIGS, HF, save

KINDS = ("gpt2", "neox", "llama", "qwen2", "qwen3", "gemma2", "attn-only", "no-ln-relu")


def opened_kind(kind: str, folder: Path) -> Any:
    """Write the model below a folder, open it, and move a native one's weights away from their start."""
    if kind in CONFIGS:
        model = opened(f"run:{run_folder(folder / kind, config=CONFIGS[kind])}", dtype="float64")
        dice = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.bare.parameters():
                p.mul_(3) if p.ndim > 1 else p.add_(0.1 * torch.randn(p.shape, generator=dice, dtype=p.dtype))
        return model
    path = save(kind, folder / kind) if kind in HF else hf_folder(folder / kind, kind)
    return opened(f"dir:{path}", dtype="float64")
