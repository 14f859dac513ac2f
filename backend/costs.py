"""What a request costs before it runs: the calls of the model that it makes, priced by a short probe of that model.

An analysis declares its `Work`; opening a model measures its `probe` (models/probe.py), which its card keeps. A call on
[rows, length] tokens takes c + t rows length + q rows length^2, in seconds as in bytes: one call's own cost, what grows
with the tokens (weights, logits), what grows with pairs of positions (attention). No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MATRIX_OPERATIONS = 2  # per weight and token of a forward: a multiplication and an addition

Probe = Mapping[str, float]


@dataclass(frozen=True)
class Calls:
    """`n` calls of the model on tokens [rows, length]; with `gradients` a forward that keeps its graph and a
    backward. `share` of the layers is computed: less than 1 where the stream before a layer is known. With `last` only
    the last position is unembedded."""

    rows: int
    length: int
    gradients: bool = False
    n: int = 1
    share: float = 1.0
    last: bool = False

    @property
    def kind(self) -> str:
        """How the probe names calls like this one."""
        return ("gradients" if self.gradients else "forward") + ("_last" if self.last else "")


@dataclass(frozen=True)
class Work:
    """What computing a request asks for, at most: equal to what is counted where nothing depends on the numbers.

    `held_bytes`: what lies in memory beside one call (activations kept, the result); `operations`: multiplications and
    additions outside of calls; `solver_seconds`: what takes as long whatever the model, on a CPU core; `knobs`: what to
    turn where it does not fit, in words.
    """

    calls: tuple[Calls, ...] = ()
    held_bytes: float = 0.0
    operations: float = 0.0
    solver_seconds: float = 0.0
    knobs: str = "Ask about less at once"

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, all calls together."""
        return sum(c.n * c.rows * c.length for c in self.calls)

    @property
    def n_calls(self) -> int:
        """Calls of the model."""
        return sum(c.n for c in self.calls)


def fit(measured: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Return (c, t, q) of c + t rows length + q rows length^2 through three measurements (rows, length, value).

    The three are one short row, several short rows, and a row of another length; where the lengths are equal q is 0.
    What would be negative is noise and becomes 0.
    """
    (r0, l0, y0), (r1, l1, y1), (r2, l2, y2) = measured
    per_row = max(0.0, (y1 - y0) / (r1 - r0))  # t l0 + q l0^2
    call = max(0.0, y0 - r0 * per_row)
    if l2 == l0:
        return call, per_row / l0, 0.0
    long_row = max(0.0, (y2 - call) / r2)  # t l2 + q l2^2
    square = max(0.0, (long_row / l2 - per_row / l0) / (l2 - l0))
    return call, max(0.0, long_row / l2 - square * l2), square


def price(probe: Probe, call: Calls, unit: str) -> float:
    """Return what one call that computes every layer takes, in `unit`: seconds or bytes.

    A probe of an older house did not measure calls with `last`: they are priced with all logits then.
    """
    kind = call.kind if f"{call.kind}_{unit}_call" in probe else call.kind.removesuffix("_last")
    c, t, q = (probe[f"{kind}_{unit}_{part}"] for part in ("call", "token", "square"))
    return c + call.rows * (t * call.length + q * call.length**2)


def seconds(work: Work, probe: Probe) -> float:
    """Return the seconds of the calls, and of the operations at the speed of the probe's forward.

    A call takes its share of a whole one; of a layer whose attention is known as well the whole layer is counted. Bytes
    do not shrink with the share: a forward holds one layer at a time.
    """
    calls = sum(c.n * c.share * price(probe, c, "seconds") for c in work.calls)
    return calls + work.operations / probe["operations_per_second"] + work.solver_seconds


def memory(work: Work, probe: Probe) -> float:
    """Return the bytes that it takes beside the model: its dearest call and what is held."""
    return max((price(probe, c, "bytes") for c in work.calls), default=0.0) + work.held_bytes
