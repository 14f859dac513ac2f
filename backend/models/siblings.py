"""Other models of one's shape: their trained tensors, and which units of a model may change places.

A model computes the same whatever the order of its residual coordinates, of its heads and of its neurons. Which axes
of which tensors count them is spelled out here for native and GPT-2 modules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from backend.contract import ModelSpec
from backend.errors import Unfit
from backend.models import load, observe, registry
from backend.settings import Settings

#: ending of a parameter's name: (axis of the stream, axis of heads and which of them, axis of neurons)
Places = dict[str, tuple[int | None, tuple[int, str] | None, int | None]]
_NORMS: Places = dict.fromkeys(("weight", "bias"), (0, None, None))
NATIVE: Places = {
    "tok_embed.weight": (1, None, None), "pos.weight": (1, None, None), "head.weight": (1, None, None),
    "head.bias": (None, None, None),
    **{f"{norm}.{end}": place for norm in ("ln1", "ln2", "ln_out") for end, place in _NORMS.items()},
    "attn.q.weight": (1, (0, "q"), None), "attn.q.bias": (None, (0, "q"), None),
    **{f"attn.{x}.weight": (1, (0, "kv"), None) for x in "kv"},
    **{f"attn.{x}.bias": (None, (0, "kv"), None) for x in "kv"},
    "attn.o.weight": (0, (1, "q"), None), "attn.o.bias": (0, None, None),
    "mlp.fc_in.weight": (1, None, 0), "mlp.fc_in.bias": (None, None, 0),
    "mlp.fc_out.weight": (0, None, 1), "mlp.fc_out.bias": (0, None, None),
}  # fmt: skip
GPT2: Places = {
    "wte.weight": (1, None, None), "wpe.weight": (1, None, None), "lm_head.weight": (1, None, None),
    **{f"{norm}.{end}": place for norm in ("ln_1", "ln_2", "ln_f") for end, place in _NORMS.items()},
    "attn.c_attn.weight": (0, (1, "qkv"), None), "attn.c_attn.bias": (None, (0, "qkv"), None),
    "attn.c_proj.weight": (1, (0, "q"), None), "attn.c_proj.bias": (0, None, None),
    "mlp.c_fc.weight": (0, None, 1), "mlp.c_fc.bias": (None, None, 0),
    "mlp.c_proj.weight": (1, None, 0), "mlp.c_proj.bias": (0, None, None),
}  # fmt: skip


def parameters(run: str, step: int | None, like: nn.Module, asked: str, settings: Settings) -> dict[str, Tensor]:
    """Return the trained tensors of a run's checkpoint by name, in the dtype and on the device of `like`.

    Raises NotFound for no such run or step, BadInput for a run without a model, Unfit where names or shapes differ.
    """
    located = registry.locate(ModelSpec(scheme="run", place=run, step=step), settings)
    mine = dict(like.named_parameters())
    first = next(iter(mine.values()))
    bare = load.SOURCES[located.kind](located, first.dtype).bare
    found = {name: tensor.detach().to(first.device) for name, tensor in bare.named_parameters()}
    for name in [*mine, *found]:
        if name not in mine or name not in found or mine[name].shape != found[name].shape:
            shapes = [tuple(one[name].shape) if name in one else "missing" for one in (found, mine)]
            words = f"another shape: {name} is {shapes[0]} there and {shapes[1]} here"
            raise Unfit(f"Run {run!r} beside {asked}", words, "Choose a run of a model of the same shape")
    return found


def exchangeable(bare: nn.Module) -> list[tuple[str, list[tuple[str, int, Any]]]]:
    """Return the groups of units that may change places: (their name, [(parameter, axis, indices [unit, k])]).

    Raises TypeError for an architecture that is not spelled out.
    """
    table = NATIVE if observe.is_native(bare) else GPT2 if isinstance(bare, GPT2LMHeadModel) else None
    if table is None:
        raise TypeError(f"{type(bare).__name__} is not spelled out")
    sizes, found = _sizes(bare), {}  # type: ignore[var-annotated]
    for name, tensor in bare.named_parameters():
        ending = next((end for end in table if name == end or name.endswith("." + end)), None)
        if ending is None:
            raise TypeError(f"{name} is not spelled out")
        stream, heads, neurons = table[ending]
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        if stream is not None:
            found.setdefault("stream", []).append((name, stream, _single(tensor, stream)))
        if heads is not None:
            found.setdefault(f"heads of layer {layer}", []).append((name, heads[0], _blocks(heads[1], *sizes)))
        if neurons is not None:
            found.setdefault(f"neurons of layer {layer}", []).append((name, neurons, _single(tensor, neurons)))
    return list(found.items())


def _sizes(bare: Any) -> tuple[int, int, int]:
    """Return (heads, heads of keys and values, d_head)."""
    if observe.is_native(bare):
        return bare.cfg.n_heads, bare.cfg.n_key_value_heads or bare.cfg.n_heads, bare.cfg.d_head
    return bare.config.n_head, bare.config.n_head, bare.config.n_embd // bare.config.n_head


def _single(tensor: Tensor, axis: int) -> np.ndarray:
    return np.arange(tensor.shape[axis])[:, None]


def _blocks(which: str, n: int, few: int, d_head: int) -> np.ndarray:
    """Return the indices of each unit, a head of keys and values with the query heads that share it: [few, k]."""
    queries = np.arange(n * d_head).reshape(few, -1)
    if which == "q":
        return queries
    shared = np.arange(few * d_head).reshape(few, -1)
    return shared if which == "kv" else np.concatenate([queries + part * n * d_head for part in range(3)], 1)
