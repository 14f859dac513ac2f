"""Monitors: cheap numbers of a model, declared once, taken live by the training loop and later from a checkpoint.

A monitor is a function `(Observation) -> value` under `@monitor(Metric(...))`. Its value is a number, one per layer
(`per="layer"`: a sequence), or one per head (`per="head"`: a sequence of [head] vectors); where it declares several
metrics it returns a dict of such values by name. It returns None where the observation lacks what it needs.
Adding a monitor is adding a function in a file of this folder. No torch is imported at module level: the app reads
the declarations.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from backend.contract import Metric, Observation


@dataclass(frozen=True)
class Monitor:
    """One registered monitor: the metrics it yields and how."""

    name: str
    metrics: tuple[Metric, ...]
    compute: Callable[[Observation], Any]
    doc: str = ""


def monitor(*metrics: Metric) -> Callable[[Callable[[Observation], Any]], Monitor]:
    """Declare a function as a monitor; its name is the function's own."""

    def wrap(compute: Callable[[Observation], Any]) -> Monitor:
        return Monitor(compute.__name__, metrics, compute, (compute.__doc__ or "").strip())

    return wrap


@cache
def registry() -> dict[str, Monitor]:
    """Return every monitor of this folder by name."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    found = [v for module in modules for v in vars(module).values() if isinstance(v, Monitor)]
    return {m.name: m for m in sorted(found, key=lambda m: m.name)}


@cache
def metrics() -> dict[str, Metric]:
    """Return the words of every metric that a monitor or the training loop yields, by metric name."""
    return {metric.name: metric for one in registry().values() for metric in one.metrics}


def measure(names: Iterable[str], seen: Observation) -> dict[str, float]:
    """Take these monitors of one observation; return {metric name with its place: number}."""
    found: dict[str, float] = {}
    for name in names:
        one = registry()[name]
        value = one.compute(seen)
        if value is None:
            continue
        values = value if isinstance(value, Mapping) else {one.metrics[0].name: value}
        for metric in one.metrics:
            if values.get(metric.name) is not None:
                found |= placed(metric, values[metric.name])
    return found


def placed(metric: Metric, value: Any) -> dict[str, float]:
    """Spread a value over the names of its places: `name`, `name/L1`, `name/L1H2`, `name_w14` (a mapping by w)."""
    if metric.per == "layer":
        return {f"{metric.name}/L{layer}": float(v) for layer, v in enumerate(value)}
    if metric.per == "head":
        return {f"{metric.name}/L{layer}H{head}": float(v)
                for layer, heads in enumerate(value) for head, v in enumerate(_listed(heads))}  # fmt: skip
    if metric.per == "frequency":
        return {f"{metric.name}_w{w}": float(v) for w, v in value.items()}
    return {metric.name: float(value)}


def _listed(values: Any) -> list[float]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
