"""What run.json says of how a run was made: versions, git revision, machine. Standard library only."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

FORMAT = 1
_PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "safetensors")


def describe(name: str, recipe: str, params: Any, model: Any, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what run.json holds at first; keys that are None are left out."""
    found = {
        "format": FORMAT, "name": name, "recipe": recipe, "params": dict(params or {}),
        "model": dict(model) if model else None, "versions": _versions(), "git": _revision(),
        "host": socket.gethostname(), "pid": os.getpid(), "created": time.time(), **(extra or {}),
    }
    return {k: v for k, v in found.items() if v is not None}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _revision() -> str | None:
    """Return the git revision of the working folder, None where there is none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=True)
        return asked.stdout.strip() or None
    return None
