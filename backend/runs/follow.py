"""Carry what run folders hold into a sink (the store) as it is written: one thread, a look every quarter second."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from backend.errors import PhasescopeError
from backend.runs.folder import Chunk, RunFolder, find_runs
from backend.runs.layout import CHECKPOINTS, LOCK, METRICS, RUN

__all__ = ["Chunk", "Follower", "RunFolder", "Sink", "find_runs"]

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where followed runs go. `append_metrics` keeps rows and offset together or not at all; `run` returns the
    last `info` that was put, under "info"."""

    def put_run(self, name: str, folder: str, info: dict[str, Any]) -> None: ...
    def run(self, name: str) -> dict[str, Any] | None: ...
    def append_metrics(self, run: str, rows: pd.DataFrame, offset: int) -> None: ...
    def run_offset(self, run: str) -> int: ...
    def reset_run(self, run: str) -> None: ...


class Follower:
    """Follow all runs below `folders`; where two have one name the first is kept and `problems` says so."""

    def __init__(self, folders: Sequence[str | Path], sink: Sink, interval: float = 0.25):
        self.folders, self.sink, self.interval = [Path(f) for f in folders], sink, interval
        self.problems: dict[str, str] = {}
        self._runs: dict[Path, _Followed] = {}
        self._polled = False
        self._one = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow in a thread of its own. Harmless when it runs already."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._work, name="run-follower", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after the pass under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception as error:  # a sink's bad moment must not end the following
                self.problems["follower"] = f"{type(error).__name__}: {error}"
                log.exception("following the runs failed; trying again")
            self._stop.wait(self.interval)

    def poll(self) -> int:
        """Make one pass over all runs and return how many rows were carried."""
        with self._one:
            names: dict[str, Path] = {}
            carried, self.problems = 0, {}
            for folder in find_runs(self.folders):
                if names.setdefault(folder.name, folder.path) != folder.path:
                    self.problems[str(folder.path)] = f"another run is called {folder.name!r} already; rename one"
                    continue
                carried += self._follow(self._runs.setdefault(folder.path, _Followed(folder)))
            self._runs = {path: run for path, run in self._runs.items() if path in names.values()}
            self._polled = True
            return carried

    def runs(self) -> list[dict[str, Any]]:
        """Return every run's record, newest first: run.json's keys and name, folder, state, checkpoints, last_step."""
        if not self._polled:
            self.poll()
        records = [run.record for run in list(self._runs.values()) if run.record]
        return sorted(records, key=lambda r: r.get("created") or 0, reverse=True)

    def _follow(self, run: _Followed) -> int:
        try:
            return run.carry(self.sink)
        except (OSError, PhasescopeError) as error:
            self.problems[run.folder.name] = str(error)
            return 0


class _Followed:
    """One run's place: what was seen of its files last, and the offset up to which the sink has its lines."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.offset: int | None = None
        self.bad = 0
        self.files: Any = None
        self.record: dict[str, Any] = {}

    def carry(self, sink: Sink) -> int:
        """Bring the sink up to date; cheap where nothing changed."""
        files = self._files()
        if files == self.files and not os.path.exists(self.folder.path / LOCK):
            return 0
        self._meet(sink)
        self._tell(sink)
        rows = self._lines(sink) if files != self.files else 0
        self._tell(sink)
        self.files = files
        return rows

    def _meet(self, sink: Sink) -> None:
        """Find where the sink stands; start anew where another run now lies under this name."""
        name, made = self.folder.name, self.folder.info().get("created")
        known = self.record or (sink.run(name) or {}).get("info") or {"created": made}
        if known.get("created") != made:
            sink.reset_run(name)
            self.folder, self.offset, self.bad = RunFolder(self.folder.path), 0, 0
        elif self.offset is None:
            self.offset = sink.run_offset(name)

    def _lines(self, sink: Sink) -> int:
        name, rows = self.folder.name, 0
        while True:
            chunk = self.folder.read(self.offset or 0)
            if chunk.reset:
                sink.reset_run(name)
                self.offset, self.bad = 0, 0
            elif chunk.offset == self.offset:
                return rows
            else:
                sink.append_metrics(name, chunk.rows, chunk.offset)
                self.offset, self.bad, rows = chunk.offset, self.bad + chunk.bad, rows + len(chunk.rows)

    def _tell(self, sink: Sink) -> None:
        record = {**self.folder.info(), **self.folder.status(), "checkpoints": self.folder.checkpoints()}
        record |= {"name": self.folder.name, "folder": str(self.folder.path), "bad_lines": self.bad}
        if record != self.record:
            sink.put_run(self.folder.name, record["folder"], record)
            self.record = record

    def _files(self) -> Any:
        return [_signature(self.folder.path / part) for part in (METRICS, RUN, CHECKPOINTS, LOCK)]


def _signature(path: Path) -> Any:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
