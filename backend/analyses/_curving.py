"""What analyses of curvature share: blocks of parameters by name, and a loss whose products with vectors are at hand.

The loss is the mean cross-entropy of the right answers over the rows (the next token; a task's own answer where it has
one). Its graph is kept and walked again for every vector, in chunks of rows; where all chunks together would hold more
than KEPT_BYTES, each is built anew for every product, so that memory stays that of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from backend.analyses._units import answers
from backend.analyses._work import BYTES, Plan, parts
from backend.contract import Model, ModelCard
from backend.errors import BadInput, Unfit

CHUNK_BYTES = 512 * 2**20  # what the graph of one chunk of rows may hold
KEPT_BYTES = 2 * 2**30  # what the graphs of all chunks may hold
WALK = 2.5  # forwards that one product takes where its graph is kept (measured: 1.1 to 2.7)
FLOATS = 24  # per token, layer and coordinate of the stream, of a graph that is differentiated twice (measured: 20)


# ---------------------------------------------------------------- blocks


def layer_of(name: str) -> int | None:
    """Return the layer of a parameter: the first number in its name; None where it belongs to no layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def matrix_of(name: str) -> str:
    """Return what a parameter is within its layer: its name after the number, else the whole of it."""
    cut = name.split(".")
    at = next((i for i, part in enumerate(cut) if part.isdigit()), -1)
    return ".".join(cut[at + 1 :])


def names_of(known: Sequence[str], block: str) -> list[str]:
    """Return the parameters of a block: `all`, `layer N`, or one by its name.

    Raises BadInput, naming what exists, for a block that does not.
    """
    layers = sorted({n for name in known if (n := layer_of(name)) is not None})
    wanted = block.strip()
    number = wanted.removeprefix("layer").strip()
    if wanted == "all":
        return list(known)
    if wanted.startswith("layer ") and number.isdigit() and int(number) in layers:
        return [name for name in known if layer_of(name) == int(number)]
    if wanted in known:
        return [wanted]
    span = f"layer 0 to layer {layers[-1]}, " if layers else ""
    found = f"no such block: there are all, {span}{', '.join(known[:40])}{', …' if len(known) > 40 else ''}"
    raise BadInput(f"The block {block!r}", found, "Choose one of them")


def blocks_of(known: Sequence[str]) -> list[str]:
    """Return all that `names_of` takes."""
    layers = sorted({n for name in known if (n := layer_of(name)) is not None})
    return ["all", *(f"layer {n}" for n in layers), *known]


def size_of(card: ModelCard, block: str) -> int:
    """Return how many numbers a block of this model has (all of them where a card does not say)."""
    if not card.parameters:
        return card.n_params
    return sum(card.parameters[name] for name in names_of(list(card.parameters), block))


# ---------------------------------------------------------------- the loss


class Surface:
    """The loss of a model's weights on rows [row, pos], over the parameters `names`; `loss` is its value in nats.

    `null`, drawn with `seed`: "shuffled weights" (entries of every tensor) or "shuffled targets" (right answers).
    Raises Unfit where no right answer is known, or the weights are rounded too coarsely to be differentiated twice.
    """

    def __init__(self, model: Model, tokens: Any, names: Sequence[str], matrix: str, null: str = "", seed: int = 0):
        import torch

        self.model, self.matrix = model, matrix
        self.tokens = torch.as_tensor(tokens, device=model.card.device)
        self.parameters = _weights(model, names, seed if null == "shuffled weights" else None)
        known = answers(model, self.tokens)
        if known is None:
            raise Unfit(f"The loss of {model.card.spec}", "no right answer is known", "Choose a model of next tokens")
        self.positions, self.right = known
        if null == "shuffled targets":
            order = torch.randperm(self.right.numel(), generator=torch.Generator().manual_seed(seed))
            self.right = self.right.flatten()[order.to(self.right.device)].reshape(self.right.shape)
        step, self.kept = cut(model.card, *self.tokens.shape)
        self.chunks = [slice(at, at + step) for at in range(0, len(self.tokens), step)]
        self.weights = [len(self.tokens[c]) / len(self.tokens) for c in self.chunks]
        self.graphs = [self._graph(c) for c in self.chunks] if self.kept else []
        losses = [loss for _, loss in self.graphs] or (self._graph(c)[1] for c in self.chunks)
        self.loss = sum(w * float(loss.detach()) for w, loss in zip(self.weights, losses, strict=True))

    def product(self, names: Sequence[str]) -> Callable[[Any], Any]:
        """Return v -> H v (or G v) over these parameters, as one vector in their order."""
        from backend.maths.products import mean_product

        tensors = [self.parameters[name] for name in names]
        if self.kept:
            return mean_product([self._walk(graph, tensors) for graph in self.graphs], self.weights)
        return mean_product([partial(self._anew, c, tensors) for c in self.chunks], self.weights)

    def _anew(self, chunk: slice, tensors: Sequence[Any], vector: Any) -> Any:
        return self._walk(self._graph(chunk), tensors)(vector)

    def like(self, names: Sequence[str]) -> Any:
        """Return a tensor of the dtype and on the device that vectors over these parameters have."""
        return self.parameters[names[0]].detach()

    def _walk(self, graph: tuple[Any, Any], tensors: Sequence[Any]) -> Callable[[Any], Any]:
        from backend.maths.products import gauss_newton_product, hessian_product

        outputs, loss = graph
        return (hessian_product(loss, tensors) if self.matrix == "hessian"
                else gauss_newton_product(outputs, loss, tensors))  # fmt: skip

    def _graph(self, chunk: slice) -> tuple[Any, Any]:
        logits = self.model.logits_at(self.parameters, self.tokens[chunk])
        return logits, cross_entropy(logits[:, self.positions], self.right[chunk])


def cross_entropy(logits: Any, right: Any) -> Any:
    """Return the mean cross-entropy in nats of logits [row, pos, token] and the right tokens [row, pos]."""
    import torch

    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), right.flatten())


def _weights(model: Model, names: Sequence[str], seed: int | None) -> dict[str, Any]:
    """Return the model's weights, those named as leaves of a graph; with a seed each tensor's entries permuted."""
    import torch

    found, dice = {}, torch.Generator().manual_seed(seed or 0)
    for name, tensor in model.parameters().items():
        if tensor.dtype not in (torch.float32, torch.float64):
            words = f"its weights are {str(tensor.dtype).removeprefix('torch.')}"
            raise Unfit(f"Curvature of {model.card.spec}", words, "Open it in float32 (PHASESCOPE_DTYPE)")
        kept = tensor.detach().clone()
        if seed is not None:
            kept = kept.flatten()[torch.randperm(kept.numel(), generator=dice).to(kept.device)].reshape(kept.shape)
        found[name] = kept.requires_grad_(name in names)
    return found


# ---------------------------------------------------------------- what it costs


def graph_bytes(card: ModelCard, length: int) -> int:
    """Return about what the graph of one row holds, ready to be differentiated twice."""
    wide = FLOATS * card.d_model + 6 * card.d_mlp + 4 * card.n_heads * length
    return BYTES.get(card.dtype, 4) * length * (card.n_layers * wide + 8 * card.d_vocab_out)


def cut(card: ModelCard, rows: int, length: int) -> tuple[int, bool]:
    """Return (rows of a chunk, whether the graphs of all chunks are kept)."""
    each = graph_bytes(card, length)
    return int(np.clip(CHUNK_BYTES // each, 1, rows)), rows * each <= KEPT_BYTES


def plan_surface(plan: Plan, rows: int, length: int, products: int) -> tuple[float, float]:
    """Add the forwards of a Surface on which `products` are made; return (bytes held, operations)."""
    step, kept = cut(plan.card, rows, length)
    for some in parts(rows, step):
        plan.call(some, length, gradients=True)
        if not kept:
            plan.call(some, length, n=products, gradients=True)
    held = graph_bytes(plan.card, length) * (rows + min(step, rows) if kept else 2 * min(step, rows))
    return held, products * WALK * 2 * plan.card.n_params * rows * length
