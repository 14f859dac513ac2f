"""What a model can be asked beyond a forward, measured on it. `backend.contract.NEEDS` has the words of what lacks.

`backend.contract.CAPABILITY_RULES` counts the changes of these rules: a card made under others is made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backend.errors import Unfit
from backend.models import bridge

if TYPE_CHECKING:
    from backend.models.model import LoadedModel

TOKENS = ((0,),)  # in any model's vocabulary; the question is about a map, not about text
LINEAR = 1e-3  # largest deviation of attn_out from an affine function of z, relative to its size


def beyond_the_forward(model: LoadedModel) -> dict[str, bool]:
    """Return {capability: whether the model has it} of those that a plain and a hooked forward do not show."""
    named = _known(model.weights)
    return {
        "resid_mid": _known(lambda: bridge.hook_name(model.view, "resid_mid", 0)),
        "uncapped_logits": not bridge.logit_cap(model.view),
        "linear_attn_out": linear_attn_out(model),
        "named_weights": named,
        "separate_heads": named and model.sizes["n_key_value_heads"] == model.sizes["n_heads"],
    }


def _known(look: Any) -> bool:
    try:
        look()
    except Unfit:
        return False
    return True


def linear_attn_out(model: LoadedModel) -> bool:
    """Say whether attn_out is sum over heads of z W_O, and a constant: attn_out(2 z) - attn_out(z) = attn_out(z) - b.

    It is not where a norm stands between W_O and the stream (Gemma 2): no head then writes a part of its own.
    Cost: three forwards of one token.
    """
    try:
        none, once, twice = (_attn_out(model, factor) for factor in (0.0, 1.0, 2.0))
    except (Unfit, KeyError):
        return False
    off = (twice - 2 * once + none).abs().max()
    return bool(off <= LINEAR * (once - none).abs().max() + 64 * torch.finfo(once.dtype).eps * once.abs().max())


def _attn_out(model: LoadedModel, factor: float) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def look(out: torch.Tensor) -> torch.Tensor:
        seen.append(out)
        return out

    model.run_with(TOKENS, {("z", 0): lambda z: factor * z, ("attn_out", 0): look})
    return seen[0]
