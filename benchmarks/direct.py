"""What a tool should find, from the bare module alone: its own forward with plain PyTorch hooks, and hand arithmetic.

Neither transformer-lens' hooks nor the house's view are used, so that both can be held against it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from backend.models.observe import is_native

Edits = dict[tuple[str, int], Callable[[Tensor], Tensor]]


class Direct:
    """A bare module, spelled: blocks, what writes to the stream, final norm and unembedding."""

    def __init__(self, bare: Any):
        self.bare = bare
        kind = "native" if is_native(bare) else bare.config.model_type
        body = {"native": bare, "gpt2": getattr(bare, "transformer", None),
                "gpt_neox": getattr(bare, "gpt_neox", None)}.get(kind, getattr(bare, "model", None))  # fmt: skip
        self.blocks = list(body.h if kind == "gpt2" else body.layers)
        self.norm = {"native": "ln_out", "gpt2": "ln_f", "gpt_neox": "final_layer_norm"}.get(kind, "norm")
        self.norm = getattr(body, self.norm)
        self.head = bare.get_output_embeddings() if kind != "native" else bare.head
        self.attention = [getattr(b, {"native": "attn", "gpt2": "attn", "gpt_neox": "attention"}.get(kind, "self_attn"))
                          for b in self.blocks]  # fmt: skip
        name = {"native": "o", "gpt2": "c_proj", "gpt_neox": "dense"}.get(kind, "o_proj")
        self.w_o = [getattr(a, name) for a in self.attention]
        self.kind, self.ln1 = kind, [getattr(b, {"native": "ln1", "gpt2": "ln_1"}.get(kind, "input_layernorm"))
                                     for b in self.blocks]  # fmt: skip
        gemma = kind == "gemma2"
        self.attn_out = [b.post_attention_layernorm for b in self.blocks] if gemma else self.w_o
        self.mlp_out = ([b.post_feedforward_layernorm for b in self.blocks] if gemma
                        else [getattr(b, "mlp", None) for b in self.blocks])  # fmt: skip
        self.cap = (None if kind == "native" else getattr(bare.config, "final_logit_softcapping", None)) or 0.0
        self.parallel = kind == "gpt_neox" and bare.config.use_parallel_residual
        cfg = bare.cfg if kind == "native" else bare.config
        self.n_heads = cfg.n_heads if kind == "native" else cfg.num_attention_heads
        self.transposed = kind == "gpt2"  # Conv1D holds [in, out]

    def logits(self, tokens: Tensor) -> Tensor:
        """The plain forward."""
        out = self.bare(tokens)
        return out if isinstance(out, Tensor) else out.logits

    def unembed(self, stream: Tensor) -> Tensor:
        """Final norm, W_U and the cap."""
        told = self.head(self.norm(stream))
        return self.cap * torch.tanh(told / self.cap) if self.cap else told

    def W_O(self, layer: int) -> Tensor:  # noqa: N802 - the glossary's name
        """[head, d_head, d_model]."""
        weight = self.w_o[layer].weight.detach()
        return (weight if self.transposed else weight.T).unflatten(0, (self.n_heads, -1))

    def constant_value(self, layer: int) -> Tensor:
        """What v holds per query head whatever the token [head, d_head]: its bias, and ln1's bias through W_V."""
        a, d_head = self.attention[layer], self.W_O(layer).shape[1]
        joint = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "native": "v"}.get(self.kind, "v_proj")
        bias = getattr(self.ln1[layer], "bias", None)
        x = bias if bias is not None else torch.zeros(self.w_o[layer].weight.shape[1 if self.transposed else 0])
        told = getattr(a, joint).forward(x.to(self.head.weight)).detach()
        if self.kind == "gpt_neox":
            return told.view(self.n_heads, 3, d_head)[:, 2]
        own = (told[-self.n_heads * d_head :] if self.kind == "gpt2" else told).view(-1, d_head)
        return own.repeat_interleave(self.n_heads // len(own), 0)

    def run_with_query(self, tokens: Tensor, layer: int, head: int, added: Tensor) -> Tensor:
        """The forward in which one head's query alone reads the stream plus `added` [batch, pos, d_model]."""
        a, kept, d_head = self.attention[layer], {}, self.W_O(layer).shape[1]
        name = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "native": "q"}.get(self.kind, "q_proj")
        project, width = getattr(a, name), 3 * d_head if self.kind == "gpt_neox" else d_head
        mine = slice(head * width, head * width + d_head)

        def asked(q: Tensor) -> Tensor:
            new = q.clone()
            new[..., mine] = project.forward(self.ln1[layer].forward(kept["x"] + added))[..., mine]
            return new

        def remember(stream: Tensor) -> Tensor:
            kept["x"] = stream
            return stream

        hook = project.register_forward_hook(_output(asked))
        try:
            return self.run(tokens, {("resid_pre", layer): remember})
        finally:
            hook.remove()

    @contextlib.contextmanager
    def edited(self, edits: Edits) -> Iterator[None]:
        """Change points on the way; a function that returns its tensor only looks."""
        hooks = []
        for (point, layer), change in edits.items():
            hooks += self._hooks(point, layer, change)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, point: str, layer: int, change: Callable[[Tensor], Tensor]) -> list[Any]:
        block, before = self.blocks[layer], {}
        if point == "resid_pre":
            return [block.register_forward_pre_hook(_first(change), with_kwargs=True)]
        if point == "z":
            heads = lambda z: change(z.unflatten(-1, (self.n_heads, -1))).flatten(-2)  # noqa: E731
            return [self.w_o[layer].register_forward_pre_hook(_first(heads), with_kwargs=True)]
        if point == "resid_mid":  # what attention adds is changed so that the stream behind it is as asked

            def remember(stream: Tensor) -> Tensor:
                before["x"] = stream
                return stream

            keep = block.register_forward_pre_hook(_first(remember), with_kwargs=True)
            return [keep, self.attn_out[layer].register_forward_hook(
                _output(lambda out: change(before["x"] + out) - before["x"]))]  # fmt: skip
        module = {"attn_out": self.attn_out, "mlp_out": self.mlp_out, "resid_post": self.blocks}[point][layer]
        return [module.register_forward_hook(_output(change))]

    def run(self, tokens: Tensor, edits: Edits | None = None) -> Tensor:
        """The forward with edits."""
        with self.edited(edits or {}):
            return self.logits(tokens)

    def seen(self, tokens: Tensor, places: list[tuple[str, int]]) -> dict[tuple[str, int], Tensor]:
        """Return what stands at the places."""
        found: dict[tuple[str, int], Tensor] = {}

        def look(place: tuple[str, int]) -> Callable[[Tensor], Tensor]:
            def keep(tensor: Tensor) -> Tensor:
                found[place] = tensor
                return tensor

            return keep

        self.run(tokens, {p: look(p) for p in places})
        return found

    def frozen(self, part: Tensor, resid: Tensor) -> Tensor:
        """The final norm of `part` with the scale it has for `resid`, without its bias: [..., d_model]."""
        if isinstance(self.norm, torch.nn.Identity):
            return part
        whole = self.norm(resid) - self.norm(torch.zeros_like(resid))
        centred = isinstance(self.norm, torch.nn.LayerNorm)
        gain = getattr(self.norm, "weight", None)
        gain = torch.ones(resid.shape[-1]) if gain is None else gain
        gain = 1 + gain if type(self.norm).__name__.startswith("Gemma") else gain
        x = resid - resid.mean(-1, keepdim=True) if centred else resid
        scale = (gain * x * whole).sum(-1, keepdim=True) / whole.square().sum(-1, keepdim=True)
        c = part - part.mean(-1, keepdim=True) if centred else part
        return gain * c / scale


def _first(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: Any, args: tuple, kwargs: dict) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def _output(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: Any, args: tuple, out: Any) -> Any:
        return change(out) if isinstance(out, Tensor) else (change(out[0]), *out[1:])

    return hook
