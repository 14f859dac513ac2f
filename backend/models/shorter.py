"""Runs of a hook view that leave out what is known already or what nobody reads.

transformer-lens 4.3 has `start_at_layer`, but there the earlier blocks are still computed and thrown away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Form:
    """What the modules of a view hand on: the length of their tuples, 0 for a bare tensor. `projected` says whether
    attention is its projection of z and nothing after it."""

    block: int
    attention: int
    projected: bool


@contextlib.contextmanager
def begun(view: Any, layer: int, resid: torch.Tensor) -> Iterator[None]:
    """Within it, a run computes no block before `layer`, which reads resid [batch, pos, d_model]."""
    form = form_of(view)
    with contextlib.ExitStack() as undo:
        for block in view.blocks[:layer]:
            undo.enter_context(_instead(block, lambda *args, **more: _formed(resid, form.block)))
        yield


@contextlib.contextmanager
def attended(view: Any, layer: int, z: torch.Tensor) -> Iterator[None]:
    """Within it, attention of `layer` is not computed but for its projection of z [batch, pos, head, d_head], whose
    hooks and those of attention's output still fire. Where attention does more after z, it is computed whole."""
    form, attention = form_of(view), view.blocks[layer].attn
    if not form.projected:
        yield
        return
    projected = lambda *args, **more: _formed(attention.hook_out(attention.o(z.flatten(2))), form.attention)  # noqa: E731
    with _instead(attention, projected):
        yield


@contextlib.contextmanager
def last_only(view: Any) -> Iterator[None]:
    """Within it, logits are made for the last position alone: [batch, 1, d_vocab_out]."""
    whole = view.unembed.forward
    with _instead(view.unembed, lambda resid, *args, **more: whole(resid[:, -1:], *args, **more)):
        yield


#: what in a block stands behind its MLP or inside it
BEHIND_MLP = ("mlp_pre", "mlp_post", "mlp_out", "resid_mid", "resid_post")


@contextlib.contextmanager
def last_mlp(view: Any) -> Iterator[None]:
    """Within it, the last block's MLP reads the last position alone and writes 0 elsewhere: logits of the last position
    stay as they are, because an MLP sees one position at a time and nothing behind it sees another."""
    mlp = getattr(view.blocks[-1], "mlp", None)
    if mlp is None:
        yield
        return
    whole = mlp.forward

    def one(x: torch.Tensor, *args: Any, **more: Any) -> Any:
        found = whole(x[:, -1:], *args, **more)
        if not isinstance(found, torch.Tensor):  # a mixture of experts says more than its output
            return whole(x, *args, **more)
        return nn.functional.pad(found, (0, 0, x.shape[1] - 1, 0))

    with _instead(mlp, one):
        yield


def form_of(view: Any) -> Form:
    """Return the form of a view's modules, from a run of two tokens the first time."""
    kept: Form | None = view.__dict__.get("phasescope_form")
    if kept is None:
        kept = view.__dict__["phasescope_form"] = _look(view)
    return kept


@torch.no_grad()
def _look(view: Any) -> Form:
    block, attention = view.blocks[0], getattr(view.blocks[0], "attn", None)
    seen: dict[Any, Any] = {}
    modules = [m for m in (block, attention, getattr(attention, "o", None)) if m is not None]
    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(lambda m, args, out: seen.__setitem__(m, out)))
        view(torch.zeros(1, 2, dtype=torch.long, device=next(view.parameters()).device))
    outs = [seen.get(m) for m in (block, attention, getattr(attention, "o", None))]
    lengths = [len(out) if isinstance(out, tuple) else 0 for out in outs]
    ends = [out[0] if isinstance(out, tuple) else out for out in outs[1:]]
    tensors = [end for end in ends if isinstance(end, torch.Tensor)]
    return Form(lengths[0], lengths[1], projected=len(tensors) == 2 and torch.equal(*tensors))


def _formed(tensor: torch.Tensor, length: int) -> Any:
    return (tensor, *[None] * (length - 1)) if length else tensor


@contextlib.contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward for a while."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
