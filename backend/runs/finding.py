"""Where runs lie: folders with a run.json, folders with TensorBoard event files, and what the user attached."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from backend.runs.folder import RunFolder, find_runs
from backend.runs.layout import RUN
from backend.runs.tensorboard import EventFolder, is_events

#: event files are looked for again so often (seconds), so deep, and in at most so many folders below each place
EVERY, DEPTH, FOLDERS = 2.0, 3, 2000

Source = RunFolder | EventFolder


def find_events(folder: Path) -> list[EventFolder]:
    """Return every folder with event files in or below `folder` that is no run folder nor inside one; the parts of its
    path below are joined by dots to its name."""
    found: list[EventFolder] = []
    left: list[tuple[Path, tuple[str, ...]]] = [(folder, ())]
    seen = 0
    while left and seen < FOLDERS:
        (place, parts), seen = left.pop(0), seen + 1
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            inside = sorted(entries, key=lambda e: e.name)
            if any(e.name == RUN for e in inside):
                continue
            if any(is_events(e.name) for e in inside):
                found.append(EventFolder(place, ".".join(parts) or folder.name))
            if len(parts) < DEPTH:
                left += [(place / e.name, (*parts, e.name)) for e in inside if e.name[0] != "." and e.is_dir()]
    return found


def source_at(path: Path, name: str = "") -> Source | None:
    """Return the run that lies right at a path: a run folder, a folder of event files, or one event file."""
    if (path / RUN).is_file():
        return RunFolder(path, name)
    if path.is_file() and is_events(path.name):
        return EventFolder(path.parent, name, only=path.name)
    with contextlib.suppress(OSError):
        if any(is_events(n) for n in os.listdir(path)):
            return EventFolder(path, name)
    return None


class Finder:
    """All runs of some folders and of the attached places; what was found of event files is kept for EVERY seconds."""

    def __init__(self) -> None:
        self._events: dict[Path, tuple[float, list[EventFolder]]] = {}

    def find(self, folders: Iterable[Path], attached: Mapping[str, Path]) -> list[Source]:
        """Return the runs in the folders' order, then the attached ones; a run may lie there twice."""
        found: list[Source] = []
        for folder in folders:
            found += [*find_runs([folder]), *self._below(folder)]
        for name, path in attached.items():
            one = source_at(path, name)
            found += [one] if one is not None else [*find_runs([path]), *self._below(path)]
        return found

    def _below(self, folder: Path) -> list[EventFolder]:
        at, known = self._events.get(folder, (-EVERY, []))
        if time.monotonic() - at >= EVERY:
            at, known = time.monotonic(), find_events(folder)
            self._events[folder] = at, known
        return known
