"""How truly the hook view repeats the bare module, and what a model can therefore be asked. Measured, not assumed."""

from __future__ import annotations

from typing import Any

import torch

from backend.errors import Unfit
from backend.models import bridge
from backend.models.capabilities import beyond_the_forward
from backend.models.model import LoadedModel

#: largest log-probability difference (nats) at which reading the last residual through W_U counts as the model's own
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
SEQUENCES, LENGTH, SEED = 4, 32, 0


def sample(model: LoadedModel) -> torch.Tensor:
    """Return the fixed token sequences: 4 of min(32, n_ctx) ids, seeded."""
    shape = (SEQUENCES, min(LENGTH, model.sizes["n_ctx"]))
    return torch.randint(0, model.sizes["d_vocab"], shape, generator=torch.Generator().manual_seed(SEED))


def fidelity(model: LoadedModel) -> dict[str, float]:
    """Compare the hooked run, while capturing, with the plain forward of the bare module.

    Returns max_abs_log_prob (largest difference of log-probabilities, nats), top1_agreement (0..1), n_tokens.
    """
    return examine(model)[0]


def examine(model: LoadedModel) -> tuple[dict[str, float], list[str], list[str]]:
    """Return (fidelity, capabilities, notes) from one plain and one hooked run on the fixed sequences."""
    tokens = sample(model)
    plain = model.logits(tokens)
    hooked, found = model.run(tokens, ["resid_post", *_patterns(model)])
    measured = {
        "max_abs_log_prob": distance(plain, hooked),
        "top1_agreement": (plain.argmax(-1) == hooked.argmax(-1)).float().mean().item(),
        "n_tokens": float(tokens.numel()),
    }
    return measured, *_capabilities(model, hooked, found)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of log-probabilities, in nats."""
    return (torch.log_softmax(a.double(), -1) - torch.log_softmax(b.double(), -1)).abs().max().item()


def _patterns(model: LoadedModel) -> list[str]:
    try:
        model.run([[0]], ["pattern"])
    except (Unfit, KeyError):
        return []
    return ["pattern"]


def _capabilities(
    model: LoadedModel, logits: torch.Tensor, found: dict[Any, torch.Tensor]
) -> tuple[list[str], list[str]]:
    patterns = [t for (point, _), t in found.items() if point == "pattern"]
    last = found["resid_post", model.sizes["n_layers"] - 1]
    read = distance(logits, bridge.unembed(model.view, last))
    can = {
        "attention_patterns": bool(patterns),
        "unembed": read <= TOLERANCE[logits.dtype],
        "mlp": model.sizes["d_mlp"] > 0,
        "gradients": True,
        "causal": bool(patterns) and all(not t.triu(1).any() for t in patterns),
        "next_token": logits.shape[-1] == model.sizes["d_vocab"],
        **beyond_the_forward(model),
    }
    notes = [] if can["unembed"] else [f"The last residual stream read through W_U is off by {read:.2g} nats: no lens"]
    return [name for name, able in can.items() if able], notes
