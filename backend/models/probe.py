"""What a forward of a model costs, measured once when it is opened: seconds and peak bytes by rows and tokens."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backend import costs
from backend.models.model import LoadedModel

SHORT, LONG = 8, 64  # tokens of the probe's rows: one short row, several short ones, and an eighth of them long
FEW, MANY = 8, 64  # rows; many where a call is so short that few would not show
QUICK = 0.02  # seconds of such a call
AGAIN = 0.05  # seconds; a shorter call is timed three times, a longer one while its bytes are counted


def probe(model: LoadedModel) -> dict[str, float]:
    """Measure calls of three shapes, forward and with gradients, and return what `costs.price` reads.

    The hooked forward is measured, since analyses use it. Keys: {forward, gradients}[_last]_{seconds, bytes}_{call,
    token, square}, operations_per_second (of the longest forward), probe_seconds, and on a GPU room_bytes (free there
    now). Gradients are left out where the model has none; cost: 14 calls, 50 where they are short.
    """
    began, found = time.perf_counter(), {}
    short, long = min(SHORT, max(1, model.card.n_ctx // 2)), min(LONG, model.card.n_ctx)
    kinds: dict[str, Any] = {"forward": _forward, "forward_last": partial(_forward, last=True),
             "gradients": _gradients, "gradients_last": partial(_gradients, last=True)}  # fmt: skip
    asked = kinds if "gradients" in model.card.capabilities else [k for k in kinds if k.startswith("forward")]
    warm = _call(_forward, model, 1, short)
    warm()
    rows = MANY if _once(warm, model.device) < QUICK else FEW
    shapes = [(1, short), (rows, short), (rows // FEW, long)]
    rates: list[float] = []
    for kind in asked:
        measured = [_measured(_call(kinds[kind], model, *shape), model.device) for shape in shapes]
        if kind == "forward":  # each of whose tokens passes all weights
            rates = [rows * length / spent[0] for (rows, length), spent in zip(shapes, measured, strict=True)]
        for i, unit in enumerate(("seconds", "bytes")):
            points = [(*shape, values[i]) for shape, values in zip(shapes, measured, strict=True)]
            parts = zip(("call", "token", "square"), costs.fit(points), strict=True)
            found.update({f"{kind}_{unit}_{part}": value for part, value in parts})
    found["operations_per_second"] = costs.MATRIX_OPERATIONS * model.card.n_params * max(rates)
    if model.device.type == "cuda":
        found["room_bytes"] = float(torch.cuda.mem_get_info(model.device)[0])
    return {**found, "probe_seconds": time.perf_counter() - began}


def _call(kind: Callable[[LoadedModel, torch.Tensor], Any], model: LoadedModel, rows: int, length: int) -> Any:
    tokens = (torch.arange(rows * length, device=model.device) % model.card.d_vocab).reshape(rows, length)
    return lambda: kind(model, tokens)


def _forward(model: LoadedModel, tokens: torch.Tensor, last: bool = False) -> Any:
    return model.run_with(tokens, {}, last=last)


def _gradients(model: LoadedModel, tokens: torch.Tensor, last: bool = False) -> Any:
    return model.gradients(tokens, lambda logits: logits[:, -1, 0], [("embed", 0)], last=last)


def _measured(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Return (seconds, peak bytes) of a call."""
    spent: list[float] = []
    size = _peak_bytes(lambda: spent.append(_once(call, device)), device)
    if spent[0] < AGAIN:  # where counting weighs
        spent = [_once(call, device) for _ in range(3)]
    return min(spent), size


def _once(call: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _peak_bytes(call: Callable[[], Any], device: torch.device) -> float:
    """Return the bytes that lie in tensors made by the call, where they are most."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return float(max(0, torch.cuda.max_memory_allocated(device) - before))
    with counted_bytes() as counter:
        call()
    return float(counter.peak)


class Counter(TorchDispatchMode):
    """Counts the bytes of storages that operations make, as long as these live (views share one)."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in args if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage(), given)
        return out

    def _meet(self, storage: Any, given: set[int]) -> None:
        if id(storage) in self._known or id(storage) in given:  # a view, also of weights that were there before
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[id(storage)] = weakref.finalize(storage, self._forget, id(storage), size)

    def _forget(self, which: int, size: int) -> None:
        self._known.pop(which, None)
        self.now -= size


@contextmanager
def counted_bytes() -> Any:
    """Count bytes on the CPU within; `peak` of what it yields is the most that lay there at once."""
    counter = Counter()
    with counter:
        yield counter
