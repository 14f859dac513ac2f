"""How an analysis says beforehand what it will ask of the model: the same cuts into batches, without the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from backend.analyses import _asking, _causal, _units
from backend.contract import Corpus, ModelCard, Pairs
from backend.costs import Calls, Work

#: floats per token, layer and coordinate of the stream, of a graph that is differentiated twice (measured: 20)
TWICE = 24
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
FEWER_PAIRS = "Use fewer pairs or shorter prompts"
SHORTER = "Use a shorter prompt"
FEWER_ROWS = "Use fewer or shorter rows"
SHORTER_ROWS = "Use fewer rows or a shorter block"


class Plan:
    """Gathers the calls of one request to a model with this card; `contract.Described`."""

    def __init__(self, card: ModelCard):
        self.card = card
        self._calls: Counter[Calls] = Counter()

    def call(self, rows: int, length: int, n: int = 1, gradients: bool = False, share: float = 1.0,
             last: bool = False) -> None:  # fmt: skip
        """Add n calls on tokens [rows, length] that compute a share of the layers, and all logits or the last."""
        self._calls[Calls(rows, length, gradients, share=share, last=last)] += n

    def call_parts(self, rows: int, step: int, length: int, n: int = 1) -> None:
        """Add n calls for every run of at most `step` rows."""
        for some in parts(rows, step):
            self.call(some, length, n)

    def batches(self, subject: Pairs, gradients: bool = False) -> list[tuple[int, int]]:
        """Return (pairs, length) of every batch, as `_causal.batches` cuts them."""
        return [(len(b), len(subject.pairs[b[0]].clean)) for b in _causal.cut(self, subject, gradients)]

    def copies(self, pairs: int, length: int, things: int, gradients: bool = False) -> list[int]:
        """Return how many things each forward takes, as `_causal.copies` cuts them."""
        return parts(things, _causal.copies_that_fit(self, pairs, length, gradients))

    def sweep(self, pairs: int, length: int, things: int, gradients: bool = False, n: int = 1) -> None:
        """Add the calls of a batch with a copy per thing, n times; only the last position is unembedded."""
        for some in self.copies(pairs, length, things, gradients):
            self.call(some * pairs, length, n, gradients, last=True)

    def places(self, pairs: int, length: int, places: Sequence[_causal.Place], n: int = 1) -> int:
        """Add the calls of `_causal.sweep`, n times: streams once, then a copy per place of a layer from there on.

        Returns the bytes that it holds beside a call: the streams, and those copied for the rows of the widest one.
        """
        layers, widest = self.card.n_layers, 0
        self.call(pairs, length, n)
        for layer, mine in _causal.by_layer(places).items():
            for some in self.copies(pairs, length, len(mine)):
                self.call(some * pairs, length, n, share=(layers - layer) / layers, last=True)
                widest = max(widest, some)
        streams = ["resid_pre", "z"]
        return self.bytes(pairs * length, streams) + self.bytes(widest * pairs * length, streams, layers=1)

    def patterns(self, rows: int, length: int) -> int:
        """Add the calls of `_asking.patterns` on tokens [rows, length]; returns the bytes that one of them captures."""
        step = _asking.layers_that_fit(self, rows, length)
        self.call(rows, length, len(parts(self.card.n_layers, step)))
        return 4 * rows * min(step, self.card.n_layers) * self.card.n_heads * length**2

    def rows_of_patterns(self, rows: int, length: int) -> int:
        """Add the calls of `_asking.row_batches` with the patterns of each batch.

        Returns the bytes held at once: what is captured, and eight like one layer's patterns (shuffled, products).
        """
        held = [self.patterns(some, length) for some in parts(rows, _asking.rows_that_fit(self, length))]
        return held[0] + 8 * 4 * min(rows, _asking.rows_that_fit(self, length)) * self.card.n_heads * length**2

    def corpus(self, subject: Corpus, width: int, n: int = 1) -> None:
        """Add n calls per batch of the corpus' rows, as `_units.batches` cuts them."""
        length = min(subject.length, self.card.n_ctx)
        for rows in parts(subject.rows, _units.rows_at_once(self, length, width)):
            self.call(rows, length, n)

    def bytes(self, tokens: int, points: Iterable[str], layers: int = 0) -> int:
        """Return the bytes of these points at so many tokens, in `layers` layers (0: all)."""
        floats = sum(self.width(p) for p in points)
        return tokens * floats * (layers or self.card.n_layers) * BYTES.get(self.card.dtype, 4)

    def width(self, point: str) -> int:
        """Return the floats that a token has at a point, heads joined."""
        return {"z": self.card.n_heads * self.card.d_head, "mlp_post": self.card.d_mlp}.get(point, self.card.d_model)

    def total(self, held_bytes: float = 0.0, operations: float = 0.0, knobs: str = FEWER_PAIRS,
              solver_seconds: float = 0.0) -> Work:  # fmt: skip
        """Return the work gathered."""
        calls = (replace(call, n=n) for call, n in self._calls.items() if n)
        return Work(tuple(calls), held_bytes, operations, solver_seconds, knobs)


def parts(things: int, step: int) -> list[int]:
    """Return the sizes of runs of `step` things."""
    return [min(step, things - start) for start in range(0, things, step)]


def graph_floats(card: ModelCard, length: int) -> int:
    """Return about how many floats a token of a row holds in a graph that is differentiated twice."""
    layer = TWICE * card.d_model + 6 * card.d_mlp + 4 * card.n_heads * length
    return card.n_layers * layer + 8 * card.d_vocab_out
