"""What the causal analyses share: batches of pairs, places that are patched, and a sweep with a patch per batch row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.contract import Described, Model, Pairs

RUN_BYTES = 64 * 2**20  # what one forward may hold at once (logits, widest layer, pattern); more was slower on a CPU
ON_A_GPU = 16  # times as much
Edits = dict[tuple[str, int], Callable[[Any], Any]]


@dataclass(frozen=True)
class Place:
    """A component: (point, layer), all positions (pos -1) or one, all heads (head -1) or one."""

    point: str
    layer: int
    pos: int = -1
    head: int = -1

    @property
    def at(self) -> tuple[Any, ...]:
        """How the place is indexed in a tensor [row, pos, ...]."""
        where = (slice(None), slice(None) if self.pos < 0 else self.pos)
        return where if self.head < 0 else (*where, self.head)

    def __str__(self) -> str:
        part = {"z": f"H{self.head}", "mlp_out": " MLP", "attn_out": " attn", "resid_pre": " resid"}[self.point]
        return f"L{self.layer}{part}" + (f" at {self.pos}" if self.pos >= 0 else "")


@dataclass(frozen=True)
class Batch:
    """Pairs of one length, few enough that one row of each fits in a forward; `which` are their places in Pairs."""

    clean: Any  # [pair, pos]
    corrupted: Any
    answer: Any  # [pair]
    distractor: Any
    which: list[int]

    def sides(self, direction: str) -> tuple[Any, Any]:
        """Return the tokens (run, patched from): denoising brings clean values into the corrupted run."""
        return (self.corrupted, self.clean) if direction == "denoising" else (self.clean, self.corrupted)

    def logit_diff(self, logits: Any) -> Any:
        """Return logit_diff at the last position, [copy * pair]: rows are copies of the pairs."""
        last = logits[:, -1].reshape(-1, len(self.which), logits.shape[-1]).double()
        index = [t[None, :, None].expand(len(last), -1, 1) for t in (self.answer, self.distractor)]
        return (last.gather(2, index[0]) - last.gather(2, index[1])).reshape(-1)


def rows_at_once(model: Described, length: int, gradients: bool = False) -> int:
    """Return how many rows of `length` tokens one forward may hold, with logits for the last position only; with
    gradients every layer is kept, without them resid_pre and z of every layer."""
    card = model.card
    layer = 12 * card.d_model + 4 * card.d_mlp + 3 * card.n_heads * length
    kept = card.n_layers * layer if gradients else layer + 2 * card.n_layers * card.d_model
    room = RUN_BYTES * (1 if card.device == "cpu" else ON_A_GPU)
    return max(1, room // (4 * (length * kept + 3 * card.d_vocab_out)))


def cut(model: Described, subject: Pairs, gradients: bool = False) -> list[list[int]]:
    """Return the pairs of each batch: of one length, as many as fit in memory."""
    steps = {length: rows_at_once(model, length, gradients) for length in subject.by_length()}
    return [
        which[start : start + steps[length]]
        for length, which in subject.by_length().items()
        for start in range(0, len(which), steps[length])
    ]


def batches(model: Model, subject: Pairs, gradients: bool = False) -> list[Batch]:
    """Cut the pairs into batches of one length that fit in memory, tensors on the model's device."""
    import torch

    found = []
    for mine in cut(model, subject, gradients):
        pairs = [subject.pairs[i] for i in mine]
        clean, corrupted, answer, distractor = (
            torch.tensor([getattr(p, name) for p in pairs], device=model.card.device)
            for name in ("clean", "corrupted", "answer", "distractor")
        )
        found.append(Batch(clean, corrupted, answer, distractor, mine))
    return found


def copies_that_fit(model: Described, rows: int, length: int, gradients: bool = False) -> int:
    """Return how many copies of a batch of `rows` one forward may hold, at least one."""
    return max(1, rows_at_once(model, length, gradients) // rows)


def copies(model: Model, batch: Batch, places: Sequence[Any], each: int = 1,
           gradients: bool = False) -> Iterator[tuple[int, Sequence[Any]]]:  # fmt: skip
    """Yield (first, some of the places): as many as fit in a forward with `each` copies of the batch per place."""
    step = copies_that_fit(model, len(batch.which) * each, batch.clean.shape[1], gradients)
    for start in range(0, len(places), step):
        yield start, places[start : start + step]


def patch_edits(places: Sequence[Place], n: int, values: Mapping[tuple[str, int], Any]) -> Edits:
    """Return edits that write values [pair, pos, ...] of the i-th place into rows i * n .. i * n + n - 1 only."""
    by_point: dict[tuple[str, int], list[tuple[int, Place]]] = {}
    for i, place in enumerate(places):
        by_point.setdefault((place.point, place.layer), []).append((i, place))

    def edit_of(mine: list[tuple[int, Place]], value: Any) -> Callable[[Any], Any]:
        def edit(tensor: Any) -> Any:
            for i, place in mine:
                tensor[i * n : i * n + n][place.at] = value[place.at]
            return tensor

        return edit

    return {key: edit_of(mine, values[key]) for key, mine in by_point.items()}


def sweep(model: Model, batch: Batch, tokens: Any, places: Sequence[Place], values: Mapping[tuple[str, int], Any],
          said: Callable[[int], None] | None = None) -> np.ndarray:  # fmt: skip
    """Patch every place on its own and return logit_diff [place, pair]: many patches per forward, one per batch row.

    `values` are tensors [pair, pos, ...] per (point, layer). Exact: rows of a batch do not see each other, and layers
    before the patched one are as in the run without a patch, so they are computed once.
    """
    n, found, done = len(batch.which), np.empty((len(places), len(batch.which))), 0
    layers = by_layer(places)
    streams = model.capture(tokens, ["resid_pre", "z"], list(layers))
    for layer, mine in layers.items():
        behind = {places[i].point for i in mine} <= {"z", "attn_out", "mlp_out"}  # attention is as without a patch
        known = {(p, layer): streams[p, layer] for p in (("resid_pre", "z") if behind else ("resid_pre",))}
        for _, some in copies(model, batch, mine):
            edits = patch_edits([places[i] for i in some], n, values)
            begin = {at: repeated(tensor, len(some)) for at, tensor in known.items()}
            logits = model.run_with(tokens.repeat(len(some), 1), edits, begin, last=True)
            found[some] = batch.logit_diff(logits).reshape(len(some), n).cpu().numpy()
            done += len(some)
            if said:
                said(done)
    return found


def repeated(tensor: Any, times: int) -> Any:
    """Return [times * row, ...]: rows under each other, so often."""
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))


def by_layer(places: Sequence[Place]) -> dict[int, list[int]]:
    """Return which places lie in a layer (counted in `places`), layers ascending."""
    found: dict[int, list[int]] = {}
    for i, place in sorted(enumerate(places), key=lambda pair: pair[1].layer):
        found.setdefault(place.layer, []).append(i)
    return found


def patched_sweep(model: Model, batch: Batch, places: Sequence[Place], direction: str, said: Any = None) -> np.ndarray:
    """Return logit_diff [place, pair] of a batch with every place patched from the other prompt."""
    tokens, other = batch.sides(direction)
    points = {(p.point, p.layer) for p in places}
    kept = model.capture(other, sorted({p for p, _ in points}), sorted({layer for _, layer in points}))
    return sweep(model, batch, tokens, places, kept, said)


def both_sides(model: Model, subject: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return logit_diff [pair] of the clean and of the corrupted prompts, unpatched, by the hooked run."""
    clean, corrupted = np.empty(len(subject.pairs)), np.empty(len(subject.pairs))
    for batch in batches(model, subject):
        for tokens, into in ((batch.clean, clean), (batch.corrupted, corrupted)):
            into[batch.which] = batch.logit_diff(model.run_with(tokens, {}, last=True)).cpu().numpy()
    return clean, corrupted
