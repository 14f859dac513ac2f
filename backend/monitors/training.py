"""Words of what the training loop itself logs; nothing here can be seen in one observation."""

from __future__ import annotations

from backend.contract import Metric, Observation
from backend.monitors import monitor


@monitor(
    Metric("update_norm", "Norm of the update", "", "length of the last update over all trained weights"),
    Metric("steps_per_second", "Pace", "steps/s", "updates per second since the last line, measuring left out"),
)
def pace(seen: Observation) -> None:
    """Logged by the loop: no observation shows it."""
