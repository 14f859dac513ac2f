"""What analyses of curvature share: blocks of parameters by name, and a loss whose products with vectors are at hand.

The loss is the mean cross-entropy of the right answers over the rows (the next token; a task's own answer where it has
one). Its graph is kept and walked again for every vector, in chunks of rows; where all chunks together would hold more
than KEPT_BYTES, each is built anew for every product, so that memory stays that of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from backend.analyses._units import answers
from backend.analyses._work import BYTES, Plan, graph_floats, parts
from backend.contract import Model, ModelCard
from backend.errors import BadInput, Unfit

CHUNK_BYTES = 512 * 2**20  # what the graph of one chunk of rows may hold
KEPT_BYTES = 2 * 2**30  # what the graphs of all chunks may hold
WALK = 2.5  # forwards that one product takes where its graph is kept (measured: 1.1 to 2.7)


# ---------------------------------------------------------------- blocks


def layer_of(name: str) -> int | None:
    """Return the layer of a parameter: the first number in its name; None where it belongs to no layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def matrix_of(name: str) -> str:
    """Return what a parameter is within its layer: its name after the number, else the whole of it."""
    cut = name.split(".")
    at = next((i for i, part in enumerate(cut) if part.isdigit()), -1)
    return ".".join(cut[at + 1 :])


def names_of(known: Sequence[str], block: str, layered: bool = True) -> list[str]:
    """Return the parameters of a block: `all`, a part of `parts_of`, or one by its name.

    Raises BadInput, naming what exists, for a block that does not.
    """
    wanted, sections = " ".join(block.split()), parts_of(known, layered)
    if wanted == "all":
        return list(known)
    if wanted in sections:
        return sections[wanted]
    if wanted in known:
        return [wanted]
    ends = list(sections)[:: max(1, len(sections) - 1)] if layered else list(sections)
    span = (" to " if layered else ", ").join(ends) + ", " if sections else ""
    found = f"no such block: there are all, {span}{', '.join(known[:40])}{', …' if len(known) > 40 else ''}"
    raise BadInput(f"The block {block!r}", found, "Choose one of them")


def parts_of(known: Sequence[str], layered: bool = True) -> dict[str, list[str]]:
    """Return {part: its parameters}: `layer N`, or where nothing is layered the module (fc1: its weight and bias)."""
    found: dict[str, list[str]] = {}
    if layered:
        layers = sorted({n for name in known if (n := layer_of(name)) is not None})
        return {f"layer {n}": [name for name in known if layer_of(name) == n] for n in layers}
    for name in known:
        found.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return found


def blocks_of(known: Sequence[str], layered: bool = True) -> list[str]:
    """Return all that `names_of` takes."""
    return list(dict.fromkeys(["all", *parts_of(known, layered), *known]))


def size_of(card: ModelCard, block: str) -> int:
    """Return how many numbers a block of this model has (all of them where a card does not say)."""
    if not card.parameters:
        return card.n_params
    return sum(card.parameters[name] for name in names_of(list(card.parameters), block, not card.energy))


# ---------------------------------------------------------------- the loss


#: (forward of parameters and inputs, mean loss of outputs and targets, the parameters, (inputs, targets))
Handed = tuple[Callable[[Sequence[Any], Any], Any], Callable[[Any, Any], Any], list[Any], tuple[Any, Any]]


class Curved:
    """A loss over parameters whose graphs are kept and walked: `loss` its value, `product` its curvature.

    One who fills it in sets model, matrix, parameters {name: leaf} and how rows are cut (`chunks`, `kept`), gives the
    graph of a chunk by `_graph`, and calls `_built` when all is there.
    """

    model: Any
    matrix: str
    parameters: dict[str, Any]
    chunks: list[slice]
    kept: bool

    def _graph(self, chunk: slice) -> tuple[Any, Any]:
        """Return (outputs, loss) of a chunk's rows, with their graph."""
        raise NotImplementedError

    def _built(self, rows: int) -> None:
        self.weights = [(c.stop - c.start) / rows for c in self.chunks]
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

    def handed(self, names: Sequence[str]) -> Handed:
        """Return what another program is handed to differentiate this loss of all rows by these parameters itself."""
        raise NotImplementedError

    def _given(self, names: Sequence[str], tensors: Sequence[Any]) -> dict[str, Any]:
        return {**self.parameters, **dict(zip(names, tensors, strict=True))}

    def like(self, names: Sequence[str]) -> Any:
        """Return a tensor of the dtype and on the device that vectors over these parameters have."""
        return self.parameters[names[0]].detach()

    def size(self, names: Sequence[str]) -> int:
        """Return how many numbers these parameters have."""
        return sum(self.parameters[name].numel() for name in names)

    def _walk(self, graph: tuple[Any, Any], tensors: Sequence[Any]) -> Callable[[Any], Any]:
        from backend.maths.products import gauss_newton_product, hessian_product

        outputs, loss = graph
        return (hessian_product(loss, tensors) if self.matrix == "hessian"
                else gauss_newton_product(outputs, loss, tensors))  # fmt: skip


class Surface(Curved):
    """The loss of a model's weights on rows [row, pos], over the parameters `names`; `loss` is its value in nats.

    `null`, drawn with `seed`: "shuffled weights" (entries of every tensor) or "shuffled targets" (right answers).
    Raises Unfit where no right answer is known, or the weights are rounded too coarsely to be differentiated twice.
    """

    def __init__(self, model: Model, tokens: Any, names: Sequence[str], matrix: str, null: str = "", seed: int = 0):
        import torch

        self.model, self.matrix = model, matrix
        self.tokens = torch.as_tensor(tokens, device=model.card.device)
        shuffled = seed if null == "shuffled weights" else None
        self.parameters = leaves(model.card, model.parameters(), names, shuffled)
        known = answers(model, self.tokens)
        if known is None:
            raise Unfit(f"The loss of {model.card.spec}", "no right answer is known", "Choose a model of next tokens")
        self.positions, self.right = known
        if null == "shuffled targets":
            order = torch.randperm(self.right.numel(), generator=torch.Generator().manual_seed(seed))
            self.right = self.right.flatten()[order.to(self.right.device)].reshape(self.right.shape)
        step, self.kept = cut(graph_bytes(model.card, self.tokens.shape[1]), len(self.tokens))
        self.chunks = slices(len(self.tokens), step)
        self._built(len(self.tokens))

    def _graph(self, chunk: slice) -> tuple[Any, Any]:
        logits = self.model.logits_at(self.parameters, self.tokens[chunk])
        return logits, cross_entropy(logits[:, self.positions], self.right[chunk])

    def handed(self, names: Sequence[str]) -> Handed:
        """Return forward, cross-entropy, parameters and (tokens, right answers)."""

        def forward(tensors: Sequence[Any], tokens: Any) -> Any:
            return self.model.logits_at(self._given(names, tensors), tokens)[:, self.positions]

        return forward, cross_entropy, [self.parameters[name] for name in names], (self.tokens, self.right)


def cross_entropy(logits: Any, right: Any) -> Any:
    """Return the mean cross-entropy in nats of logits [row, pos, token] and the right tokens [row, pos]."""
    import torch

    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), right.flatten())


def leaves(card: ModelCard, known: Mapping[str, Any], names: Sequence[str], seed: int | None) -> dict[str, Any]:
    """Return copies of a model's parameters, those named as leaves of a graph; with a seed each one's entries permuted.

    Raises Unfit where they are rounded too coarsely to be differentiated twice.
    """
    import torch

    found, dice = {}, torch.Generator().manual_seed(seed or 0)
    for name, tensor in known.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            words = f"its weights are {str(tensor.dtype).removeprefix('torch.')}"
            raise Unfit(f"Curvature of {card.spec}", words, "Open it in float32 (PHASESCOPE_DTYPE)")
        kept = tensor.detach().clone()
        if seed is not None:
            kept = kept.flatten()[torch.randperm(kept.numel(), generator=dice).to(kept.device)].reshape(kept.shape)
        found[name] = kept.requires_grad_(name in names)
    return found


# ---------------------------------------------------------------- what it costs


def graph_bytes(card: ModelCard, length: int) -> int:
    """Return about what the graph of one row holds, ready to be differentiated twice."""
    return BYTES.get(card.dtype, 4) * length * graph_floats(card, length)


def cut(each: int, rows: int) -> tuple[int, bool]:
    """Return (rows of a chunk, whether the graphs of all chunks are kept), where a row's graph holds `each` bytes."""
    return int(np.clip(CHUNK_BYTES // each, 1, rows)), rows * each <= KEPT_BYTES


def slices(rows: int, step: int) -> list[slice]:
    """Return the chunks of `step` rows, the last perhaps shorter."""
    return [slice(at, min(at + step, rows)) for at in range(0, rows, step)]


def plan_surface(plan: Plan, rows: int, length: int, products: int) -> tuple[float, float]:
    """Add the forwards of a Surface on which `products` are made; return (bytes held, operations)."""
    each = graph_bytes(plan.card, length)
    step, kept = cut(each, rows)
    for some in parts(rows, step):
        plan.call(some, length, gradients=True)
        if not kept:
            plan.call(some, length, n=products, gradients=True)
    held = each * (rows + min(step, rows) if kept else 2 * min(step, rows))
    return held, products * WALK * 2 * plan.card.n_params * rows * length
