"""The training loop that recipes share: log, monitor, keep, hear a stop, step. Resuming gives the same bits on a CPU.

A checkpoint at step s is the state after s updates. At each boundary the order is log, checkpoint, stop, update,
so whatever is logged up to a checkpoint is in the file before it. A checkpoint asked for from outside (see
`Recorder.wants_checkpoint`) is made at the next boundary and changes no number: it draws nothing at random.

Resuming restores weights, optimiser and the state of `generator` (on whichever device it lives): all that a recipe's
update may depend on; a schedule derives its step from the optimiser's. On a GPU the same state is restored, but
kernels that add in varying order (atomics, cuBLAS split-K) may differ in the last bits, so curves agree to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from backend import monitors
from backend.contract import Observation, Progress
from backend.errors import Cancelled
from backend.runs import checkpoints, layout
from backend.runs.recorder import Recorder


@dataclass
class Training:
    """What one run changes while it trains, and how.

    `update()` makes one step; `measure()` returns the cheap numbers of every `log_at` step; `observe()` gives the
    observation from which the `monitors` (by name) are taken at every `monitor_at` step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    update: Callable[[], object]
    measure: Callable[[], dict[str, float]]
    log_at: Callable[[int], bool]
    keep_at: Collection[int]
    observe: Callable[[], Observation] | None = None
    monitors: Sequence[str] = ()
    monitor_at: Callable[[int], bool] = lambda step: False
    #: the metric whose value the progress line says
    headline: str = "loss"
    clock: tuple[int, float] = field(default=(0, 0.0))
    before: list[Tensor] | None = None

    def keep(self, run: Recorder, step: int) -> None:
        """Write weights, optimiser and random state."""
        run.checkpoint(step, self.model, self.optimizer, {"generator": self.generator.get_state()})

    def restore(self, run: Recorder, step: int) -> None:
        """Put back all that `keep` wrote. Raises Broken where a file cannot be read."""
        checkpoints.load_weights(layout.file_of(run.folder, layout.CHECKPOINTS, step), self.model)
        rng = checkpoints.load_resume(layout.file_of(run.folder, layout.RESUME, step), self.optimizer)
        self.generator.set_state(rng["generator"])

    def due(self, step: int) -> bool:
        """Say whether anything is logged at this step."""
        return self.log_at(step) or self.monitor_at(step)

    def step(self, after: int) -> None:
        """Make one update, noting the weights before it where the step `after` it is logged."""
        self.before = [p.detach().clone() for p in self._trained()] if self.due(after) else None
        self.update()

    def update_norm(self) -> dict[str, float]:
        """Return the length of the last update over all trained weights; {} where there was none to see."""
        if self.before is None:
            return {}
        squared = [(p.detach() - old).square().sum() for p, old in zip(self._trained(), self.before, strict=True)]
        return {"update_norm": float(torch.stack(squared).sum().sqrt())}

    def _trained(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def log(self, run: Recorder, step: int) -> dict[str, float]:
        """Measure what is due, add the pace since the last log, and write one line."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what was asked of a GPU so far belongs to the steps, not to the reading
        now, (then, since) = time.monotonic(), self.clock
        values = {**self.measure(), **self.update_norm()}
        if self.observe is not None and self.monitor_at(step):
            values |= monitors.measure(self.monitors, self.observe())
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
        if fresh and (training.due(step) or step == steps):
            words = _said(training.headline, training.log(run, step)) or words
        asked = run.wants_checkpoint()
        if fresh and (due or asked):
            training.keep(run, step)
        _listen(training, run, step, steps, words, progress, kept=due or asked or not fresh)
        if step < steps:
            training.step(step + 1)


def _said(headline: str, values: dict[str, float]) -> str:
    return f", {headline.replace('_', ' ')} {values[headline]:.3f}" if headline in values else ""


def _listen(
    training: Training, run: Recorder, step: int, steps: int, words: str, progress: Progress, kept: bool
) -> None:
    try:
        progress(step / steps, f"step {step} of {steps}{words}")
    except (Cancelled, KeyboardInterrupt):
        if not kept:
            training.keep(run, step)
        raise
