"""The first weights that NativeModels of several recipes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def build_plain(config: dict[str, Any], seed: int) -> nn.Module:
    """Build the bare model: matrices N(0, 0.02^2), norms at identity, attention biases zero and frozen."""
    from backend.models.bridge import build_native

    model = build_native(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weights in model.named_parameters():
        if weights.dim() == 2:
            torch.nn.init.normal_(weights, std=0.02, generator=generator)
        elif ".attn." in name:
            torch.nn.init.zeros_(weights)
            weights.requires_grad_(False)
    return model
