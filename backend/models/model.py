"""An opened model: the bare module, its card, and a hook view made when first asked for.

Gradients, counting and `torch.func` use `bare`. The view is for reading points only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backend import settings
from backend.contract import ModelCard, Observation
from backend.errors import BadInput, Unfit
from backend.models import bridge, companions, fitted, observe, shorter


class LoadedModel:
    """Implements `contract.Model` for native and Hugging Face modules alike."""

    card: ModelCard

    def __init__(self, bare: nn.Module):
        self.bare = bare.eval()
        self.settings = settings.load()  # where runs lie; `open_model` gives its own

    @cached_property
    def view(self) -> Any:
        """The hook view; it shares the bare module's parameters. Never hand it to torch.func."""
        return bridge.hook_view(self.bare)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes in the glossary's words."""
        return bridge.sizes(self.view)

    @property
    def device(self) -> torch.device:
        return next(self.bare.parameters()).device

    def tokens(self, tokens: Any) -> torch.Tensor:
        """Return token ids as a long tensor [batch, pos] on the model's device.

        Raises BadInput where a sequence is empty or longer than n_ctx, or an id is outside the vocabulary.
        """
        ids = torch.as_tensor(tokens, dtype=torch.long, device=self.device)
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        n_ctx, d_vocab = self.sizes["n_ctx"], self.sizes["d_vocab"]
        if ids.numel() == 0:
            raise BadInput("The tokens", "there are none", "Give at least one token")
        if ids.shape[1] > n_ctx:
            found = f"too long by {ids.shape[1] - n_ctx} (n_ctx {n_ctx})"
            raise BadInput(f"{ids.shape[1]} tokens", found, "Shorten the text")
        if int(ids.min()) < 0 or int(ids.max()) >= d_vocab:
            worst = int(ids.max()) if int(ids.max()) >= d_vocab else int(ids.min())
            raise BadInput(f"Token {worst}", f"outside the vocabulary 0..{d_vocab - 1}", "Use ids of this model")
        return ids

    def capture(
        self, tokens: Any, points: Sequence[str], layers: Sequence[int] | None = None
    ) -> dict[tuple[str, int], torch.Tensor]:
        """Run once on tokens [batch, pos] and return {(point, layer): tensor}.

        pattern and attn_scores (-inf where masked) are [batch, head, query, key]; q, k, v, z [batch, pos, head, d_head]
        (k and v have n_key_value_heads); others [batch, pos, d_model or d_mlp]. No gradients: use `bare` for those.
        Raises BadInput for an unknown point or layer, Unfit for a point that this model lacks.
        """
        return self.run(tokens, points, layers)[1]

    @torch.no_grad()
    def run(
        self, tokens: Any, points: Sequence[str], layers: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, dict[tuple[str, int], torch.Tensor]]:
        """Return (logits of the hooked run, what `capture` returns)."""
        ids = self.tokens(tokens)
        wanted = [(p, n) for p in points for n in self._layers(p, layers)]
        names = [name for p, n in wanted for name in bridge.hook_names(self.view, p, n)]
        logits, found = bridge.run_hooked(self.view, ids, list(dict.fromkeys(names)))
        return logits, {(p, n): bridge.read_point(self.view, p, n, found) for p, n in wanted}

    def run_with(
        self, tokens: Any, edits: Mapping[tuple[str, int], Callable[[torch.Tensor], torch.Tensor]],
        known: Mapping[tuple[str, int], torch.Tensor] | None = None, last: bool = False,
    ) -> Any:
        """Run once with points changed on the way and return the logits [batch, pos, d_vocab_out].

        `edits` is {(point, layer): function from the point's tensor (shape as in `capture`) to one of the same shape};
        the function gets a copy. Weights, the bare module and later runs stay as they were. No gradients.
        `known` gives resid_pre of one layer, before which nothing is computed then, and z of that layer, if its
        attention is known, too; edits that would be passed by are refused. `last` gives the logits of the last position
        alone, [batch, 1, d_vocab_out].
        Raises BadInput for an unknown point or layer or a changed shape, Unfit for a point that cannot be changed here.
        """
        ids, hooks = self.tokens(tokens), []
        for (point, layer), change in edits.items():
            for n in self._layers(point, [layer]):
                hooks.append((bridge.edit_hook(self.view, point, n), _kept_shape(change, point, n)))
        with contextlib.ExitStack() as within:
            for (point, layer), tensor in self._known(known or {}, ids, edits).items():
                leave_out = {"resid_pre": shorter.begun, "z": shorter.attended}[point]
                within.enter_context(leave_out(self.view, layer, tensor))
            if last:
                within.enter_context(shorter.last_only(self.view))
                if not any(n == self.sizes["n_layers"] - 1 and p in shorter.BEHIND_MLP for p, n in edits):
                    within.enter_context(shorter.last_mlp(self.view))
            return bridge.run_edited(self.view, ids, hooks)

    def _known(self, known: Mapping[tuple[str, int], torch.Tensor], ids: torch.Tensor, edits: Any) -> Any:
        """Refuse what is no beginning of a run, and a beginning that would pass an edit by."""
        layers = {layer for _, layer in known}
        if known and (("resid_pre", *layers) not in known or set(known) - {(p, *layers) for p in ("resid_pre", "z")}):
            raise BadInput(f"A run that knows {list(known)}", "no beginning", "Give resid_pre, or also z, of one layer")
        rows = {p: tuple(t.shape[:2]) for (p, _), t in known.items() if t.shape[:2] != ids.shape}
        if rows:
            raise BadInput(f"A run of tokens {tuple(ids.shape)}", f"known is {rows}", "Give it for these tokens")
        before_z = ("resid_pre", "q", "k", "v", "attn_scores", "pattern")
        passed = [(p, n) for p, n in edits for at in layers
                  if p == "embed" or n < at or (n == at and ("z", at) in known and p in before_z)]  # fmt: skip
        if passed:
            found = f"{passed[0][0]} of layer {passed[0][1]} is edited, which would not be computed"
            raise BadInput(f"A run that begins at layer {layers.pop()}", found, "Begin where the first edit is")
        return known

    def gradients(
        self, tokens: Any, metric: Callable[[torch.Tensor], torch.Tensor], places: Sequence[tuple[str, int]],
        edits: Mapping[tuple[str, int], Callable[[torch.Tensor], torch.Tensor]] | None = None, last: bool = False,
    ) -> tuple[torch.Tensor, dict[tuple[str, int], torch.Tensor], dict[tuple[str, int], torch.Tensor]]:
        """Run once with autograd and return (metric, {place: tensor}, {place: gradient of the metric's sum}).

        `metric` takes the logits [batch, pos, d_vocab_out], or [batch, 1, d_vocab_out] with `last`. An edit of a place
        comes before it is read, so what is returned is the edited tensor and the gradient at it. No gradient reaches
        the weights' `.grad`.
        Raises as `run_with` does.
        """
        ids, hooks = self.tokens(tokens), []
        seen: dict[tuple[str, int], torch.Tensor] = {}
        for point, layer in dict.fromkeys([*(edits or {}), *places]):
            change = (edits or {}).get((point, layer))
            for n in self._layers(point, [layer]):
                keep = seen if (point, layer) in places else None
                hooks.append((bridge.edit_hook(self.view, point, n), _watched(change, point, n, keep)))
        with shorter.last_only(self.view) if last else contextlib.nullcontext():
            value = metric(bridge.run_graph(self.view, ids, hooks))
        found = torch.autograd.grad(value.sum(), [seen[p] for p in places], allow_unused=True)
        grads = [torch.zeros_like(seen[p]) if g is None else g for p, g in zip(places, found, strict=True)]
        return value.detach(), {p: seen[p].detach() for p in places}, dict(zip(places, grads, strict=True))

    def aligned_subspace(
        self, place: tuple[str, int], base: Any, source: Any, targets: Any, lengths: Any = None, *, position: int = -1,
        rank: int = 1, epochs: int = 20, lr: float = 0.01, seed: int = 0, rows: int = 64,
    ) -> tuple[torch.Tensor, list[float]]:  # fmt: skip
        """Learn the subspace of a place [batch, pos, width] whose interchange makes `base` say `targets` [batch].

        (basis [width, rank], loss of every epoch in nats), see `fitted.aligned_subspace`: `epochs` over the rows of
        `base` and `source` [batch, pos], `rows` of them in a step; rows may be padded at their end beyond `lengths`.
        Raises BadInput for tokens or a layer that do not fit, Unfit for a place that cannot be changed.
        """
        point, layer = place
        hooks = [bridge.edit_hook(self.view, point, n) for n in self._layers(point, [layer])]
        tokens, wanted = (self.tokens(base), self.tokens(source)), torch.as_tensor(targets, device=self.device)
        whole = torch.full((len(tokens[0]),), tokens[0].shape[1], device=self.device)
        lengths = whole if lengths is None else torch.as_tensor(lengths, device=self.device)
        return fitted.aligned_subspace(self.view, hooks[0], *tokens, wanted, position, lengths, rank=rank,
                                       epochs=epochs, lr=lr, seed=seed, rows=rows)  # fmt: skip

    #: fits k-sparse linear probes on activations, see there
    sparse_probes = staticmethod(fitted.sparse_probes)

    def _layers(self, point: str, layers: Sequence[int] | None) -> list[int]:
        n_layers = self.sizes["n_layers"]
        if point == "embed":
            return [0]
        wrong = [n for n in layers or () if not 0 <= n < n_layers]
        if wrong:
            raise BadInput(f"Layer {wrong[0]}", f"the model has layers 0..{n_layers - 1}", "Choose one of them")
        return list(range(n_layers)) if layers is None else list(layers)

    def forward(self, tokens: Any) -> torch.Tensor:
        """The plain forward of the bare module with gradients: [batch, pos, d_vocab_out]."""
        out = self.bare(self.tokens(tokens))
        return out if isinstance(out, torch.Tensor) else out.logits

    @torch.no_grad()
    def logits(self, tokens: Any) -> torch.Tensor:
        """The plain forward of the bare module, without gradients: [batch, pos, d_vocab_out]."""
        return self.forward(tokens)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The bare module's trained tensors by the names it gives them, each once where two share one."""
        return dict(self.bare.named_parameters())

    def logits_at(self, parameters: Mapping[str, torch.Tensor], tokens: Any) -> torch.Tensor:
        """The plain forward with `parameters` (all or some of `parameters()`) in place of its own, with gradients.

        [batch, pos, d_vocab_out]; it can be differentiated twice, forwards and backwards (the fused attention kernels
        cannot). The module itself stays as it is. Raises BadInput for tokens that do not fit.
        """
        with sdpa_kernel(SDPBackend.MATH):
            out = torch.func.functional_call(self.bare, dict(parameters), (self.tokens(tokens),))
        return out if isinstance(out, torch.Tensor) else out.logits

    @torch.no_grad()
    def unembed(self, resid: torch.Tensor) -> torch.Tensor:
        """Final norm, W_U and b_U on a residual stream [..., d_model] -> logits [..., d_vocab_out]."""
        self._readable()
        return bridge.unembed(self.view, resid)

    def unembedding(self) -> torch.Tensor:
        """W_U [d_model, d_vocab_out], not to be written to. Raises Unfit where the stream is not read through it."""
        self._readable()
        return bridge.unembedding(self.view)

    def _readable(self) -> None:
        if hasattr(self, "card") and "unembed" not in self.card.capabilities:
            found = "its residual stream cannot be read through W_U"
            raise Unfit(f"Model {self.card.spec}", found, "Choose another model")

    @torch.no_grad()
    def direct_logits(self, resid: Any, parts: Any, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `parts` [n, k, d_model] of the last streams `resid` [n, d_model] add to the logits of `tokens`.

        (effects [n, k, m], constants [n, m]) for tokens [n, m]: linear in the parts, because the final norm's scale is
        held at what it is for `resid`; the constants are what its bias and b_U add. Parts that sum to `resid` have
        effects that, with the constants, sum to its logits. Raises Unfit where logits are no such sum.
        """
        self._readable()
        return bridge.direct_logits(self.view, resid, parts, torch.as_tensor(tokens, device=self.device))

    @torch.no_grad()
    def observe(self, tokens: Any) -> Observation:
        """One forward as monitors see it; architectures without a spelling of their own are read through the view."""
        ids = self.tokens(tokens)
        try:
            return observe.observe(self.bare, ids)
        except TypeError:
            last = self.sizes["n_layers"] - 1
            logits, found = self.run(ids, ["pattern"])
            resid = self.capture(ids, ["resid_post"], [last])["resid_post", last]
            return Observation(ids, logits, [found["pattern", n] for n in range(last + 1)], resid, {})

    def weights(self) -> dict[str, Any]:
        """The bare module's weights by glossary name. Raises Unfit for an architecture that is not spelled out."""
        try:
            return observe.weights(self.bare)
        except (TypeError, AttributeError):
            found = f"the weights of {type(self.bare).__name__} are not known by name here"
            raise Unfit("The model's weights", found, "Use a native or GPT-2 model") from None

    def companion(
        self, run: str, step: int | None = None, own: bool = True
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return (run.json, tensors on the model's device) of a run that was trained for this model.

        Its run.json says so: {"companion": {"kind": ..., "fingerprint": the model's}}. Raises NotFound for no such run
        or step, Unfit where it was made for other weights; without `own` those may be another checkpoint's of this run.
        """
        record, tensors = companions.read(run, step, self.settings)
        made = record["companion"]
        if made.get("format") == "saelens" and not made["fingerprint"]:  # it does not say which weights: does it fit?
            self._fits(made, run)
            return record, {name: tensor.to(self.device) for name, tensor in tensors.items()}
        ours = made.get("spec") == self.card.spec and self.card.step is not None
        if made.get("fingerprint") != self.card.fingerprint and (own or not ours):
            found = f"it was trained for {made.get('spec', 'another model')}, step {made.get('step')}"
            raise Unfit(f"{run} for {self.card.spec}", found, "Choose that model, or train one for this")
        return record, {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def sibling(self, run: str, step: int | None = None) -> dict[str, torch.Tensor]:
        """Return the trained tensors of another run or checkpoint, by the names of `parameters`.

        Raises NotFound for no such run or step, Unfit where it is a model of another shape.
        """
        from backend.models import siblings  # which opens models, as this file does not

        return siblings.parameters(run, step, self.bare, self.card.spec, self.settings)

    def exchangeable(self) -> list[tuple[str, list[tuple[str, int, Any]]]]:
        """Return (name, [(parameter, axis, indices [unit, k])]) of every group of units that may change places.

        Raises Unfit for an architecture that is not spelled out.
        """
        from backend.models import siblings

        try:
            return siblings.exchangeable(self.bare)
        except TypeError as error:
            raise Unfit(f"The order of units of {self.card.spec}", str(error), "Use a native or GPT-2 model") from None

    def _fits(self, made: dict[str, Any], run: str) -> None:
        card = self.card
        widths = {"mlp_pre": card.d_mlp, "mlp_post": card.d_mlp, "z": card.n_heads * card.d_head}
        wide = widths.get(made["point"], card.d_model)
        if made["layer"] >= card.n_layers:
            found = f"it reads layer {made['layer']}, the model has layers 0 to {card.n_layers - 1}"
        elif made["d_in"] != wide:
            found = f"it reads {made['d_in']} coordinates (d_in), {made['point']} has {wide}"
        else:
            return
        raise Unfit(f"{run} for {card.spec}", f"{found} (it was trained for {made['spec']})", "Choose that model")

    def memory_bytes(self) -> int:
        """Bytes of all tensors, those of the view that are not shared included."""
        modules = [self.bare, *([self.view] if "view" in self.__dict__ else [])]
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _watched(
    change: Callable[[torch.Tensor], torch.Tensor] | None, point: str, layer: int, seen: dict | None
) -> Callable[..., torch.Tensor]:
    """Wrap a hook that edits, where there is an edit, and keeps the tensor in `seen` as a node of the graph."""
    edit = _kept_shape(change, point, layer) if change else None

    def applied(tensor: torch.Tensor, hook: Any = None) -> torch.Tensor:
        new = edit(tensor) if edit else tensor
        if seen is not None:
            new = new if new.requires_grad else new.detach().requires_grad_()
            seen[point, layer] = new = new.view_as(new)  # a node of its own: what reads it reads this one
        return new

    return applied


def _kept_shape(change: Callable[[torch.Tensor], torch.Tensor], point: str, layer: int) -> Callable[..., torch.Tensor]:
    """Wrap an edit: it gets a copy, and what it returns must have the point's shape."""

    def applied(tensor: torch.Tensor, hook: Any = None) -> torch.Tensor:
        new = change(tensor.clone())
        if not isinstance(new, torch.Tensor) or new.shape != tensor.shape:
            found = f"it returned {tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__}"
            raise BadInput(f"The edit of {point}, layer {layer}", found, f"Return a tensor {tuple(tensor.shape)}")
        return new.to(tensor)

    return applied
