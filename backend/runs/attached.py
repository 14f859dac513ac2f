"""Runs that lie elsewhere: names and paths in `attached.json` in the folder of runs. Nothing there is touched."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from backend.errors import BadInput, Broken, NotFound
from backend.models.registry import ATTACHED, attached_places
from backend.runs.finding import find_events, source_at
from backend.runs.folder import RunFolder, find_runs
from backend.runs.layout import write_whole
from backend.runs.tensorboard import is_events

__all__ = ["attach", "detach", "is_events", "listed"]

_ONE = threading.Lock()


def attach(runs: Path, path: str | Path) -> dict[str, Any]:
    """Add a place to the list and return {name, path, kind, runs}; one that is there already stays as it is.

    A place is a run folder, a TensorBoard event file or a folder of such, or a folder that holds runs. Raises NotFound
    where nothing lies there, BadInput where no run does, Broken where the list cannot be written.
    """
    place = Path(path).expanduser().absolute()
    asked = f"Attach {str(path)!r}"
    if not place.exists():
        raise NotFound(asked, "no such file or folder", "Check the path and who may read it")
    described = _describe(place, asked)
    with _ONE:
        known = attached_places(runs)
        for name, old in known.items():
            if old == place:
                return {"name": name, "path": str(place), **described}
        wanted = place.parent.name if place.is_file() else place.name
        taken = {*known, *(r.name for r in find_runs([runs])), *(r.name for r in find_events(runs))}
        name = _free(wanted or "root", taken)
        _write(runs, {**known, name: place})
    return {"name": name, "path": str(place), **described}


def detach(runs: Path, name: str) -> dict[str, Any]:
    """Take a place off the list; its files stay. Raises NotFound with the known names."""
    with _ONE:
        known = attached_places(runs)
        if name not in known:
            todo = f"Attached are {', '.join(sorted(known))}" if known else "Nothing is attached"
            raise NotFound(f"Detach {name!r}", "no such name", todo)
        path = known.pop(name)
        _write(runs, known)
    return {"name": name, "path": str(path)}


def listed(runs: Path) -> list[dict[str, Any]]:
    """Return {name, path, there} of every attached place."""
    return [{"name": n, "path": str(p), "there": p.exists()} for n, p in attached_places(runs).items()]


def _describe(place: Path, asked: str) -> dict[str, Any]:
    one = source_at(place)
    if one is not None:
        return {"kind": "run" if isinstance(one, RunFolder) else "tensorboard"}
    if place.is_dir() and (find_runs([place]) or find_events(place)):
        return {"kind": "folder"}
    found = "neither run.json nor TensorBoard event files lie there" if place.is_dir() else "not an event file"
    raise BadInput(asked, found, "Give a run's folder, a folder of runs, or TensorBoard's log folder")


def _free(name: str, taken: set[str]) -> str:
    return next(n for n in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if n not in taken)


def _write(runs: Path, places: dict[str, Path]) -> None:
    text = json.dumps({"attached": [{"name": n, "path": str(p)} for n, p in places.items()]}, indent=1)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        write_whole(runs / ATTACHED, text.encode() + b"\n")
    except OSError as error:
        found = f"{runs} cannot be written ({error.strerror})"
        raise Broken("The list of attached runs", found, "Correct the rights or PHASESCOPE_RUNS") from None
