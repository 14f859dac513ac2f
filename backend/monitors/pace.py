"""Words of what the training loop itself logs beside the monitors."""

from __future__ import annotations

from backend.contract import Metric

METRICS = (
    Metric("update_norm", "Length of an update", "", "Euclidean norm of the last update over all trained weights"),
    Metric("steps_per_second", "Speed", "steps/s", "updates per second since the last line"),
)
