"""What several analyses do with a model before they look: token tensors and how many layers fit at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backend.contract import Described, Model, Prompt
from backend.errors import Broken

CAPTURE_BYTES = 256 * 2**20  # what one capture of patterns may hold


def prompt_tokens(model: Model, subject: Prompt) -> Any:
    """Return the prompt as a long tensor [1, pos] on the model's device; the model refuses what it cannot read."""
    import torch

    return torch.tensor([subject.tokens], dtype=torch.long, device=model.card.device)


def patterns(model: Model, tokens: Any) -> Iterator[tuple[int, Any]]:
    """Yield (layer, pattern [batch, head, query_pos, key_pos]), at least float32, for every layer.

    Captures as many layers per forward as CAPTURE_BYTES holds, so a long prompt costs forwards, not memory. Rows that
    are no distribution are refused.
    """
    import torch

    step = layers_that_fit(model, *tokens.shape)
    for start in range(0, model.card.n_layers, step):
        layers = range(start, min(start + step, model.card.n_layers))
        with torch.no_grad():
            kept = model.capture(tokens, ["pattern"], layers)
        for layer in layers:
            pattern = kept.pop(("pattern", layer))
            pattern = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
            _check_sums(layer, pattern)
            yield layer, pattern


def layers_that_fit(model: Described, rows: int, length: int) -> int:
    """Return of how many layers one capture holds the patterns, at least one."""
    return max(1, CAPTURE_BYTES // (4 * rows * model.card.n_heads * length**2))


def _check_sums(layer: int, pattern: Any, tolerance: float = 0.02) -> None:
    """Refuse rows that are no distribution; the tolerance admits bfloat16 models."""
    off = float((pattern.sum(-1) - 1).abs().max())
    if not off <= tolerance:
        raise Broken(f"Attention of layer {layer}", f"a row sums to 1 with an error of {off:.3g}",
                     "Try float32; a model with attention sinks outside the keys cannot be shown")


def rows_that_fit(model: Described, length: int) -> int:
    """Return of how many rows one capture holds the patterns of all layers, at least one."""
    return max(1, CAPTURE_BYTES // (4 * model.card.n_layers * model.card.n_heads * length**2))


def row_batches(model: Model, tokens: Any) -> Iterator[tuple[int, Any]]:
    """Yield (first row, tokens [batch, pos] on the model's device), as many rows as CAPTURE_BYTES of patterns hold."""
    step = rows_that_fit(model, tokens.shape[1])
    for start in range(0, len(tokens), step):
        yield start, tokens[start : start + step].to(model.card.device)
