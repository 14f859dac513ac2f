"""The only door to transformer-lens: native models from a config, and hook views that share their weights.

The bare module is the master; a view is made for capturing only. `torch.func` never meets a view: it would
corrupt the weights without an error (stack.md 2.3).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformer_lens.config import TransformerBridgeConfig, TransformerLensConfig
from transformer_lens.model_bridge.sources.native import NativeModel, initialize_native_model

from backend.errors import BadInput

#: every field a native config may name
NATIVE_FIELDS = frozenset(
    {*inspect.signature(TransformerBridgeConfig).parameters, *inspect.signature(TransformerLensConfig).parameters}
) - {"kwargs"}
ARCHITECTURE = "TransformerLensNative"


def native_config(config: dict[str, Any]) -> TransformerBridgeConfig:
    """Read a native config. Raises BadInput for an unknown or missing field, or a size that does not fit."""
    unknown = sorted(set(config) - NATIVE_FIELDS)
    if unknown:
        raise BadInput("The model's config", f"unknown field {unknown[0]!r}", "Correct the name or leave it out")
    try:
        return TransformerBridgeConfig.from_dict({**config, "architecture": ARCHITECTURE, "dtype": torch.float32})
    except (TypeError, ValueError) as error:
        todo = "Give d_model, d_head, n_heads, n_layers, n_ctx, d_vocab"
        raise BadInput("The model's config", str(error).split("\n")[0], todo) from None


def build_native(config: dict[str, Any], seed: int | None = None) -> nn.Module:
    """Build a NativeModel (float32, CPU) and initialise its weights from `seed`, else from config["seed"], else 0.

    The global random state is left as it was. Raises BadInput where the config cannot be built.
    """
    cfg = native_config(config)
    cfg.seed = seed if seed is not None else (cfg.seed if cfg.seed is not None else 0)
    with torch.random.fork_rng(devices=[]):
        model = _construct(cfg)
        initialize_native_model(model, cfg)
    return model


def _construct(cfg: TransformerBridgeConfig) -> NativeModel:
    try:
        return NativeModel(cfg)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise BadInput("The model's config", str(error).split("\n")[0], "Correct the config") from None
