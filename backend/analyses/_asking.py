"""What several analyses do with a model before they look: token tensors and how many layers fit at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backend.contract import Model, Prompt

CAPTURE_BYTES = 256 * 2**20  # what one capture of patterns may hold


def prompt_tokens(model: Model, subject: Prompt) -> Any:
    """Return the prompt as a long tensor [1, pos] on the model's device; the model refuses what it cannot read."""
    import torch

    return torch.tensor([subject.tokens], dtype=torch.long, device=model.card.device)


def patterns(model: Model, tokens: Any) -> Iterator[tuple[int, Any]]:
    """Yield (layer, pattern [batch, head, query_pos, key_pos]), at least float32, for every layer.

    Captures as many layers per forward as CAPTURE_BYTES holds, so a long prompt costs forwards, not memory.
    """
    import torch

    batch, length = tokens.shape
    per_layer = 4 * batch * model.card.n_heads * length**2
    step = max(1, CAPTURE_BYTES // per_layer)
    for start in range(0, model.card.n_layers, step):
        layers = range(start, min(start + step, model.card.n_layers))
        with torch.no_grad():
            kept = model.capture(tokens, ["pattern"], layers)
        for layer in layers:
            pattern = kept.pop(("pattern", layer))
            yield layer, pattern.to(torch.promote_types(pattern.dtype, torch.float32))
