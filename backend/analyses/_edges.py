"""Edges between writes to and reads of the residual stream: their scores by gradients and their exact effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.analyses._causal import Batch, Edits, copies
from backend.contract import Described, Model
from backend.errors import Unfit


@dataclass(frozen=True)
class Sender:
    """embed (layer -1), head or mlp."""

    kind: str
    layer: int
    head: int = -1


@dataclass(frozen=True)
class Receiver:
    """q, k or v of a head, mlp, or logits (layer = number of layers)."""

    reads: str
    layer: int
    head: int = -1

    def hears(self, sender: Sender) -> bool:
        """Say whether the sender writes before this reads: an MLP also reads the heads of its own layer."""
        return sender.layer < self.layer or (self.reads == "mlp" and sender.kind == "head" and
                                             sender.layer == self.layer)  # fmt: skip


def output_weights(model: Model) -> list[Any]:
    """Return W_O [head, d_head, d_model] by layer. Raises Unfit where heads cannot be told apart."""
    card = model.card
    if card.n_key_value_heads != card.n_heads:
        found = f"its {card.n_heads} heads share {card.n_key_value_heads} keys and values"
        raise Unfit(f"Edges of {card.spec}", found, "Choose a model without grouped queries, or path patching")
    return list(model.weights()["W_O"])


def edges_of(model: Described) -> list[tuple[Sender, Receiver]]:
    """Return every edge from a write to a later read."""
    card, mlp = model.card, "mlp" in model.card.capabilities
    layers, heads = range(card.n_layers), range(card.n_heads)
    senders, receivers = [Sender("embed", -1)], []
    for layer in layers:
        senders += [Sender("head", layer, h) for h in heads]
        receivers += [Receiver(x, layer, h) for h in heads for x in "qkv"]
        if mlp:
            senders.append(Sender("mlp", layer))
            receivers.append(Receiver("mlp", layer))
    receivers.append(Receiver("logits", card.n_layers))
    return [(s, r) for r in receivers for s in senders if r.hears(s)]


def count_edges(model: Described) -> int:
    """Return how many edges `edges_of` lists."""
    heads, mlps = model.card.n_heads, int("mlp" in model.card.capabilities)
    before = [1 + layer * (heads + mlps) for layer in range(model.card.n_layers + 1)]
    return sum((3 * heads + mlps) * n + mlps * heads for n in before[:-1]) + before[-1]


# ---------------------------------------------------------------- what is written, and gradients where it is read


class Writes:
    """Clean minus corrupted writes of every sender, [pair, pos, d_model] when asked for."""

    def __init__(self, model: Model, batch: Batch, w_o: list[Any]):
        self.w_o = w_o
        points = ["z", *(["mlp_out"] if "mlp" in model.card.capabilities else [])]
        ours, theirs = (
            model.capture(t, points) | model.capture(t, ["embed"]) for t in (batch.clean, batch.corrupted)
        )
        self.moved = {key: ours[key] - theirs[key] for key in ours}
        self.embed = theirs["embed", 0]

    def of(self, sender: Sender) -> Any:
        """Return what the sender writes, clean minus corrupted."""
        if sender.kind == "head":
            return self.moved["z", sender.layer][:, :, sender.head] @ self.w_o[sender.layer][sender.head]
        return self.moved["embed", 0] if sender.kind == "embed" else self.moved["mlp_out", sender.layer]


def edge_scores(model: Model, batch: Batch, edges: Sequence[tuple[Sender, Receiver]], w_o: list[Any],
                steps: int) -> np.ndarray:  # fmt: skip
    """Return the score [edge, pair] of every edge."""
    from backend.maths.patching import midpoints

    writes, out = Writes(model, batch, w_o), np.zeros((len(edges), len(batch.which)))
    into: dict[Receiver, list[int]] = {}
    for i, (_, receiver) in enumerate(edges):
        into.setdefault(receiver, []).append(i)

    def take(receiver: Receiver, gradient: Any) -> None:
        for i in into[receiver]:
            out[i] += (writes.of(edges[i][0]) * gradient).double().flatten(1).sum(1).cpu().numpy() / steps

    for t in midpoints(steps):
        input_gradients(model, batch, writes.embed + t * writes.moved["embed", 0], list(into), take)
    return out


def input_gradients(model: Model, batch: Batch, embed: Any, receivers: Sequence[Receiver],
                    take: Callable[[Receiver, Any], None]) -> None:  # fmt: skip
    """Hand `take` the gradient of logit_diff at the input of each receiver, [pair, pos, d_model], from one forward.

    The gradient at q (k, v, mlp_out) is drawn back to the stream through this receiver alone: its norm and weights.
    """
    import torch

    live: dict[tuple[str, int], Any] = {}

    def watch(key: tuple[str, int]) -> Callable[[Any], Any]:
        def edit(tensor: Any) -> Any:
            live[key] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            return live[key]

        return edit

    def metric(logits: Any) -> Any:
        value = batch.logit_diff(logits)
        reads = list(dict.fromkeys(_read(r) for r in receivers))
        slopes = torch.autograd.grad(value.sum(), [live[k] for k in reads], retain_graph=True)
        for r in receivers:
            slope = dict(zip(reads, slopes, strict=True))[_read(r)]
            if r.head >= 0:
                only = torch.zeros_like(slope)
                only[:, :, r.head] = slope[:, :, r.head]
                slope = only
            if r.reads != "logits":
                (slope,) = torch.autograd.grad(live[_read(r)], live[_stream(r)], slope, retain_graph=True)
            take(r, slope)
        return value

    keys = dict.fromkeys(k for r in receivers for k in (_stream(r), _read(r)))
    edits: Edits = {key: watch(key) for key in keys}
    model.gradients(batch.clean, metric, [("embed", 0)], {("embed", 0): lambda t: embed.to(t), **edits}, last=True)


def _read(receiver: Receiver) -> tuple[str, int]:
    """Return the point that the receiver's input becomes."""
    if receiver.reads == "logits":
        return "resid_post", receiver.layer - 1
    return "mlp_out" if receiver.reads == "mlp" else receiver.reads, receiver.layer


def _stream(receiver: Receiver) -> tuple[str, int]:
    """Return the point whose change changes the receiver's input by as much: an MLP reads resid_pre + attn_out."""
    if receiver.reads == "logits":
        return _read(receiver)
    return "attn_out" if receiver.reads == "mlp" else "resid_pre", receiver.layer


# ---------------------------------------------------------------- the exact effect of an edge


def exact_effects(model: Model, batch: Batch, edges: Sequence[tuple[Sender, Receiver]],
                  w_o: list[Any]) -> np.ndarray:  # fmt: skip
    """Return clean minus patched logit_diff [edge, pair]: each receiver alone reads the sender's corrupted write."""
    writes, n = Writes(model, batch, w_o), len(batch.which)
    clean = batch.logit_diff(model.run_with(batch.clean, {}, last=True)).cpu().numpy()
    out = np.empty((len(edges), n))
    for start, some in copies(model, batch, edges):
        tokens = batch.clean.repeat(len(some), 1)
        changed, heard = _changed(some, writes, n)
        logits = model.run_with(tokens, changed, last=True)
        put = _put(some, heard, n)
        if put:
            patched = batch.logit_diff(model.run_with(tokens, put, last=True)).reshape(-1, n).cpu().numpy()
        direct = batch.logit_diff(logits).reshape(-1, n).cpu().numpy()
        for i, (_, receiver) in enumerate(some):
            out[start + i] = clean - (direct if receiver.reads == "logits" else patched)[i]
    return out


def _rows(some: Sequence[tuple[Sender, Receiver]], point: Callable[[Receiver], tuple[str, int]]) -> dict[Any, Any]:
    """Return {(point, layer): which copies}."""
    found: dict[Any, list[int]] = {}
    for i, (_, receiver) in enumerate(some):
        found.setdefault(point(receiver), []).append(i)
    return found


def _changed(some: Sequence[tuple[Sender, Receiver]], writes: Writes, n: int) -> tuple[Edits, dict[Any, Any]]:
    """Return (edits that take the write out of the stream before each receiver, what the receivers then compute)."""
    heard: dict[Any, Any] = {}

    def take_out(mine: list[int]) -> Callable[[Any], Any]:
        def edit(tensor: Any) -> Any:
            for i in mine:
                tensor[i * n : (i + 1) * n] -= writes.of(some[i][0])
            return tensor

        return edit

    def hear(key: Any) -> Callable[[Any], Any]:
        def edit(tensor: Any) -> Any:
            heard[key] = tensor.clone()
            return tensor

        return edit

    edits: Edits = {key: take_out(mine) for key, mine in _rows(some, _stream).items()}
    return {**{key: hear(key) for key in _rows(some, _read) if key not in edits}, **edits}, heard


def _put(some: Sequence[tuple[Sender, Receiver]], heard: dict[Any, Any], n: int) -> Edits:
    """Return edits that give each copy's receiver what it heard, in an otherwise clean run."""

    def edit_of(key: Any, mine: list[int]) -> Callable[[Any], Any]:
        def edit(tensor: Any) -> Any:
            for i in mine:
                rows, head = slice(i * n, (i + 1) * n), some[i][1].head
                at = (rows, slice(None), head) if head >= 0 else (rows,)
                tensor[at] = heard[key][at]
            return tensor

        return edit

    return {key: edit_of(key, mine) for key, mine in _rows(some, _read).items() if key in heard}
