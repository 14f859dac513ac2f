"""The training loop that recipes share: log, keep, hear a stop, step. Resuming gives the same bits on a CPU.

A checkpoint at step s is the state after s updates. At each boundary the order is log, checkpoint, stop, update,
so whatever is logged up to a checkpoint is in the file before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from backend.contract import Progress
from backend.errors import Cancelled
from backend.runs import checkpoints, layout
from backend.runs.recorder import Recorder


@dataclass
class Training:
    """What one run changes while it trains, and how: `update()` makes one step, `measure()` returns name -> number."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    update: Callable[[], object]
    measure: Callable[[], dict[str, float]]
    log_at: Callable[[int], bool]
    keep_at: Collection[int]
    clock: tuple[int, float] = field(default=(0, 0.0))

    def keep(self, run: Recorder, step: int) -> None:
        """Write weights, optimiser and random state."""
        run.checkpoint(step, self.model, self.optimizer, {"generator": self.generator.get_state()})

    def restore(self, run: Recorder, step: int) -> None:
        """Put back all that `keep` wrote. Raises Broken where a file cannot be read."""
        checkpoints.load_weights(layout.file_of(run.folder, layout.CHECKPOINTS, step), self.model)
        rng = checkpoints.load_resume(layout.file_of(run.folder, layout.RESUME, step), self.optimizer)
        self.generator.set_state(rng["generator"])

    def log(self, run: Recorder, step: int) -> dict[str, float]:
        """Measure, add the pace since the last log, and write one line."""
        now, (then, since) = time.monotonic(), self.clock
        values = self.measure()
        if step > then and now > since:
            values["steps_per_second"] = (step - then) / (now - since)
        run.log(step, values)
        self.clock = (step, time.monotonic())
        return values


def run_loop(training: Training, run: Recorder, steps: int, resume_from: int | None, progress: Progress) -> None:
    """Train from `resume_from` (None: from the start) to `steps`. A stop is heard at every step and kept exactly."""
    torch.set_num_threads(1)
    start = 0 if resume_from is None else resume_from
    if resume_from is not None:
        training.restore(run, start)
    training.clock = (start, time.monotonic())
    words = ""
    for step in range(start, steps + 1):
        fresh = step > start or resume_from is None
        due = step in training.keep_at or step == steps
        if fresh and (training.log_at(step) or step == steps):
            words = f", loss {training.log(run, step)['loss']:.3f}"
        if fresh and due:
            training.keep(run, step)
        _listen(training, run, step, steps, words, progress, kept=due or not fresh)
        if step < steps:
            training.update()


def _listen(
    training: Training, run: Recorder, step: int, steps: int, words: str, progress: Progress, kept: bool
) -> None:
    try:
        progress(step / steps, f"step {step} of {steps}{words}")
    except (Cancelled, KeyboardInterrupt):
        if not kept:
            training.keep(run, step)
        raise
