"""What analyses of modular addition share: the modulus, the split, and the model seen on all p^2 inputs."""

from __future__ import annotations

from typing import Any

from backend.contract import Described, Model
from backend.errors import BadInput

MOST_P = 257  # above it all p^2 inputs cost minutes
BATCH = 8192  # inputs per forward


def modulus(model: Described, asked: int, most: int) -> int:
    """Return p: as asked, else of the run's recipe, else d_vocab - 1 ('=' is the last token).

    Raises BadInput where it is even, below 3, above `most`, or has no room in the vocabulary.
    """
    p = asked or own_params(model).get("p") or model.card.d_vocab - 1
    fits = p < model.card.d_vocab and p <= model.card.d_vocab_out
    if p % 2 and 3 <= p <= most and fits:
        return int(p)
    found = f"it must be odd, from 3 to {min(most, model.card.d_vocab - 1)} for this model"
    raise BadInput(f"Modulus p = {p}", found, "Choose a model of modular addition, or give its p")


def own_params(model: Described) -> dict[str, Any]:
    """Return the params of the run, {} where the model is no checkpoint of this recipe."""
    training = model.card.training
    return training.get("params", {}) if training.get("recipe") == "modular_addition" else {}


def split_of(model: Model, p: int, train_fraction: float, seed: int) -> Any:
    """Return which of the p^2 inputs are train (bool [p * p]), None where no split is given or known."""
    import torch

    from backend.maths import modular_addition as task

    own = own_params(model)
    fraction, dice = (train_fraction, seed) if train_fraction else (own.get("train_fraction"), own.get("seed"))
    if not fraction:
        return None
    train = torch.zeros(p * p, dtype=torch.bool)
    return train.index_fill_(0, task.split(p, fraction, int(dice or 0))[0], True)


def seen_everywhere(model: Model, p: int, neurons: bool = False) -> tuple[Any, Any]:
    """Run all inputs (a, b, '=') and return (logits [p * p, d_vocab_out], neurons of the last layer [p * p, d_mlp]),
    both of the last position, float32 or better, on the CPU; neurons only where asked for. Raises BadInput where the
    model reads fewer than 3 tokens.
    """
    import torch

    from backend.maths import modular_addition as task

    if model.card.n_ctx < 3:
        raise BadInput("The inputs (a, b, '=')", f"the model reads {model.card.n_ctx} tokens only", "Choose another")
    logits, active, last = [], [], model.card.n_layers - 1
    for rows in task.all_inputs(p).to(model.card.device).split(BATCH):
        logits.append(_wide(model.logits(rows)[:, -1]))
        if neurons:
            active.append(_wide(model.capture(rows, ["mlp_post"], [last])["mlp_post", last][:, -1]))
    return torch.cat(logits), torch.cat(active) if neurons else None


def _wide(values: Any) -> Any:
    import torch

    return values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32))
