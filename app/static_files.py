"""Files that the browser loads and that come out of installed packages, served by ourselves: nothing from a CDN."""

from __future__ import annotations

import filecmp
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from backend.errors import Broken

STATIC = Path(__file__).parent / "static"
CIRCUITSVIS = "circuitsvis.iife.js"


def publish(folder: Path = STATIC) -> Path:
    """Copy CircuitsVis' script beside the app where absent or different, and return its path.

    Called at server start. Raises Broken where the package is not installed.
    """
    source, target = _circuitsvis(), folder / CIRCUITSVIS
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # A reader never sees half a file: two servers may start at once
    partial = target.with_suffix(f".{os.getpid()}.part")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    return target


def _circuitsvis() -> Path:
    # find_spec does not import: importing circuitsvis would load torch
    spec = find_spec("circuitsvis")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        script = Path(folder) / "dist" / "cdn" / "iife.js"
        if script.is_file():
            return script
    raise Broken("CircuitsVis' script", "the package circuitsvis is not installed", "Run make setup again")
