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
from pathlib import Path
from typing import Any

FORMAT = 1
PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "safetensors")


def describe(name: str, recipe: str, params: Any, model: Any, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what run.json holds at first; keys that are None are left out."""
    found = {
        "format": FORMAT, "name": name, "recipe": recipe, "params": dict(params or {}),
        "model": dict(model) if model else None, **code(),
        "host": socket.gethostname(), "pid": os.getpid(), "created": time.time(), **(extra or {}),
    }
    return {k: v for k, v in found.items() if v is not None}


def code() -> dict[str, Any]:
    """Return what the numbers depend on beside the params: versions, git revision, and whether that was changed."""
    return {"versions": _versions(), **revision()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def revision(folder: Path = PACKAGE) -> dict[str, Any]:
    """Return {"git": the revision of the folder's code, "dirty": True where tracked files differ from it}.

    {} where the folder is not in a repository's care (an installed package inside somebody else's repository).
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if _git(folder, "ls-files", "."):
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
            return {"git": _git(folder, "rev-parse", "HEAD"), **({"dirty": True} if changed else {})}
    return {}


def _git(folder: Path, *words: str) -> str:
    asked = ["git", "-C", str(folder), *words]
    return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
