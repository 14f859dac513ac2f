"""What this machine and this installation are, without loading torch."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "transformer-lens",
    "streamlit",
    "duckdb",
    "distributed",
    "numpy",
    "plotly",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Return the installed version of each package that matters."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing: run `make setup`"
    return found


def devices() -> list[str]:
    """Return the names of the GPUs that the driver lists, or the processor."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
        gpus = listed.stdout.strip().splitlines() if listed.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        gpus = []
    return gpus or [f"cpu ({platform.processor() or platform.machine()})"]


def report(backend: Any) -> dict[str, Any]:
    """Join versions, devices, settings, cache and workers into one record."""
    return {
        "versions": versions(),
        "devices": devices(),
        "settings": backend.settings.model_dump(mode="json"),
        "health": backend.health(),
        "workers": backend.workers(),
    }
