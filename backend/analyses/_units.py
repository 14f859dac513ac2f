"""What analyses of neurons and features share: a corpus in batches that fit, and predictions compared row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from backend.contract import Described, Model, Rows
from backend.errors import BadInput

BATCH_BYTES = 96 * 2**20  # what the activations or logits of one batch may hold


def batches(model: Model, subject: Rows, width: int) -> Iterator[tuple[int, Any]]:
    """Yield (first row, tokens [row, pos] on the model's device) so that `width` floats per token fit BATCH_BYTES."""
    import torch

    step = rows_at_once(model, subject.tokens.shape[1], width)
    for start in range(0, len(subject.tokens), step):
        yield start, torch.as_tensor(subject.tokens[start : start + step], device=model.card.device)


def rows_at_once(model: Described, length: int, width: int) -> int:
    """Return how many rows one batch holds where every token takes `width` floats."""
    return max(1, BATCH_BYTES // (4 * length * max(width, model.card.d_model)))


def layer_of(model: Model, layer: int, what: str) -> int:
    """Return the layer. Raises BadInput where the model has no such layer."""
    if layer >= model.card.n_layers:
        found = f"{model.card.spec} has layers 0 to {model.card.n_layers - 1}"
        raise BadInput(f"{what} of layer {layer}", found, "Choose one of them")
    return layer


def neuron_of(model: Model, layer: int, neuron: int) -> int:
    """Return the neuron. Raises BadInput where the layer has no such neuron."""
    if neuron >= model.card.d_mlp:
        found = f"a layer of {model.card.spec} has neurons 0 to {model.card.d_mlp - 1}"
        raise BadInput(f"Neuron L{layer}N{neuron}", found, "Choose one of them")
    return neuron


def neurons_at(model: Model, tokens: Any, layer: int) -> Any:
    """Return mlp_post of a layer [row, pos, neuron], float32 or better."""
    import torch

    found = model.capture(tokens, ["mlp_post"], [layer])["mlp_post", layer]
    return found.to(torch.promote_types(found.dtype, torch.float32))


def log_probs(logits: Any) -> Any:
    """Return log-probabilities, float32 or better."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def answers(model: Model, tokens: Any) -> tuple[slice, Any] | None:
    """Return (positions that predict, the right answers there [row, pos]), None where no right answer is known.

    The next token at every position but the last; for a run of modular addition (a + b) mod p at the last one.
    """
    p = model.card.training.get("params", {}).get("p") if _adds(model) else None
    if p:
        return slice(-1, None), ((tokens[:, 0] + tokens[:, 1]) % p)[:, None]
    if "next_token" not in model.card.capabilities or tokens.shape[1] < 2:
        return None
    return slice(0, -1), tokens[:, 1:]


def row_losses(model: Model, tokens: Any, told: Any) -> Any:
    """Return the cross-entropy of every row [row] in nats, mean over its `answers`, None where there are none."""
    if (known := answers(model, tokens)) is None:
        return None
    positions, right = known
    return -told[:, positions].gather(2, right[..., None])[..., 0].mean(1)


def row_kl(model: Model, intact: Any, told: Any) -> Any:
    """Return KL(intact || told) of every row [row] in nats, mean over positions (modular addition: the last)."""
    kl = (intact.exp() * (intact - told)).sum(-1).clamp_min(0)
    return kl[:, -1] if _adds(model) else kl.mean(1)


def _adds(model: Model) -> bool:
    return model.card.training.get("recipe") == "modular_addition"


def bootstrap(values: Any, seed: int, draws: int = 1000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean over samples drawn with replacement; NaN for one value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def token_words(ids: str, vocab: Any, most: int = 5) -> str:
    """Return the labels of space-separated token ids, for a hover or a label."""
    return " ".join(vocab(int(i)) for i in ids.split()[:most])


def logit_effects(directions: Any, W_U: Any, k: int) -> tuple[list[str], list[str], np.ndarray]:
    """Read output directions [unit, d_model] through W_U [d_model, d_vocab_out], the mean over tokens taken off.

    Returns per unit the ids of the k tokens raised and lowered most (space-separated, the strongest first), and the
    largest effect. The final norm's scale and gain are left out: an order of tokens, not a change of logits.
    """
    high, low, most = [], [], []
    for part in directions.split(1024):
        effect = part.float() @ W_U.float()
        effect = effect - effect.mean(1, keepdim=True)
        order = effect.sort(dim=1, descending=True, stable=True).indices
        high += [" ".join(map(str, row)) for row in order[:, :k].tolist()]
        low += [" ".join(map(str, row)) for row in order.flip(1)[:, :k].tolist()]
        most.append(effect.max(1).values.cpu().numpy())
    return high, low, np.concatenate(most)
