"""Which runs the experiments on transitions train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: the detector was made while looking at seeds 0 to 4, then at 10 to 14, and frozen before anybody looked at these
SEEDS = range(20, 25)


@dataclass(frozen=True)
class Run:
    """One training run; `kind` is the table it goes into: a transition is expected in none of the controls."""

    group: str
    recipe: str
    seed: int
    params: Mapping[str, Any] = field(default_factory=dict)
    control: bool = False

    @property
    def name(self) -> str:
        """The run folder's name."""
        return f"{self.group}-s{self.seed}"


def _seeds(
    group: str, recipe: str, params: Mapping[str, Any], seeds: Sequence[int], control: bool = False
) -> list[Run]:
    return [Run(group, recipe, seed, params, control) for seed in seeds]


def runs(seeds: Sequence[int] = SEEDS, paper: bool = True) -> list[Run]:
    """Return every run, the longest first so that two processes end together; the paper run has seed 0 alone."""
    long = {"p": 113, "train_fraction": 0.3, "weight_decay": 1.0, "lr": 1e-3, "steps": 13_000, "dtype": "bfloat16",
            "log_every": 20, "monitor_every": 200, "n_checkpoints": 12}
    return [
        *_seeds("paper", "modular_addition", long, [0] if paper else []),
        *_seeds("live", "modular_addition", {"steps": 1000, "monitor_every": 80, "n_checkpoints": 20}, seeds),
        *_seeds("induction", "induction", {}, seeds),
        *_seeds("control-wd0", "modular_addition",
                {"weight_decay": 0.0, "train_fraction": 0.3, "steps": 2000, "n_checkpoints": 5}, seeds, control=True),
        *_seeds("control-1layer", "induction", {"n_layers": 1, "n_checkpoints": 5}, seeds, control=True),
        *_seeds("control-linear", "linear_control", {"n_checkpoints": 5}, seeds, control=True),
    ]  # fmt: skip
