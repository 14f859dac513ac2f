"""Markdown tables, printed row by row as the figures come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np


def line(*cells: str) -> None:
    """Print one row."""
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


def head(*names: str) -> None:
    """Print the names of the columns."""
    line(*names)
    line(*["---"] * len(names))


def clock(device: str) -> Callable[[], float]:
    """Return a clock of work done: CPU seconds of this process, or on a GPU seconds after all that was asked of it."""
    if device != "cuda":
        return time.process_time
    import torch

    def finished() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return finished


class Table:
    """Times of clicks, each with how busy the machine was."""

    def __init__(self) -> None:
        head("what", "p50", "p95", "n", "load", "note")

    def times(self, what: str, seconds: Sequence[float], note: str = "") -> None:
        p50, p95 = (f"{s * 1e3:.0f} ms" for s in np.percentile(seconds, [50, 95]))
        line(what, p50, p95, str(len(seconds)), f"{os.getloadavg()[0]:.1f}", note)

    def one(self, what: str, found: str, note: str = "") -> None:
        line(what, found, "", "1", f"{os.getloadavg()[0]:.1f}", note)
