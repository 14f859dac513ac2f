"""Carry what run folders hold into a sink (the store) as it is written: one thread, a look every quarter second."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from backend.errors import Broken, PhasescopeError
from backend.runs import layout
from backend.runs.finding import Finder, Source
from backend.runs.folder import Chunk, RunFolder, find_runs
from backend.runs.saw import Seen

__all__ = ["Chunk", "Follower", "RunFolder", "Sink", "find_runs"]

log = logging.getLogger(__name__)
#: seconds that one run may take of a pass when it has much to read, and those between passes while one has
PART, BREATH = 0.25, 0.02
#: seconds that the first question waits for the first pass to end
PATIENCE = 2.0
UNREAD = "its lines are being read"


class Sink(Protocol):
    """Where followed runs go. `append_metrics` keeps rows and offset together or not at all; `run` returns the
    last `info` that was put, under "info"."""

    def put_run(self, name: str, folder: str, info: dict[str, Any]) -> None: ...
    def run(self, name: str) -> dict[str, Any] | None: ...
    def append_metrics(self, run: str, rows: pd.DataFrame, offset: int) -> None: ...
    def run_offset(self, run: str) -> int: ...
    def reset_run(self, run: str) -> None: ...


class Follower:
    """Follow all runs below `folders` and the attached ones; where two have one name the first is kept and `problems`
    says so. `attached` gives {name: path} anew at each pass."""

    def __init__(
        self, folders: Sequence[str | Path], sink: Sink, interval: float = 0.25,
        attached: Callable[[], Mapping[str, Path]] = dict,
    ):
        self.folders, self.sink, self.interval = [Path(f) for f in folders], sink, interval
        self.problems: dict[str, str] = {}
        self._attached, self._finder = attached, Finder()
        self._runs: dict[tuple[str, Path], _Followed] = {}
        self.looked = 0.0  # when the last whole pass began, seconds since 1970
        self._whole = threading.Event()
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
            behind = any(run.behind for run in list(self._runs.values()))
            self._stop.wait(BREATH if behind else self.interval)

    def poll(self) -> int:
        """Make one pass over all runs and return how many rows were carried.

        A run that has more than a chunk to read gives way to the others after PART seconds: the next pass goes on.
        """
        with self._one:
            names: dict[str, Path] = {}
            carried, problems, began = 0, {}, time.time()
            for source in self._finder.find(self.folders, self._attached()):
                if names.setdefault(source.name, source.path) != source.path:
                    problems[str(source.path)] = f"another run is called {source.name!r} already; rename one"
                    continue
                run = self._runs.setdefault((source.name, source.path), _Followed(source))
                carried += self._follow(run, problems)
                if self._stop.is_set():
                    break
            else:
                self._runs = {key: run for key, run in list(self._runs.items()) if key in names.items()}
            self.problems, self.looked = problems, began
            self._whole.set()
            return carried

    def runs(self) -> list[dict[str, Any]]:
        """Return every run's record, newest first: run.json's keys and name, folder, state, checkpoints, last_step, and
        `saw`: sentences on what a person should know of its lines."""
        if not self.looked:
            self._first_look()
        records = [run.record for run in list(self._runs.values()) if run.record]
        return sorted(records, key=lambda r: layout.seconds(r.get("created")) or 0, reverse=True)

    def _first_look(self) -> None:
        """Make the first pass; where the thread is at it and has many runs to read, take their records alone."""
        if self._thread is None:
            self.poll()
        elif not self._whole.wait(PATIENCE):
            for source in Finder().find(self.folders, self._attached()):
                self._runs.setdefault((source.name, source.path), _Followed(source)).glance()

    def _follow(self, run: _Followed, problems: dict[str, str]) -> int:
        try:
            return run.carry(self.sink)
        except (OSError, PhasescopeError) as error:
            problems[run.folder.name] = str(error)
        except Exception as error:  # one run's oddity must not keep the others waiting
            words = f"it cannot be followed ({type(error).__name__}: {error})"
            problems[run.folder.name] = f"Run {run.folder.name!r}: {words}"
            log.exception("following run %r failed", run.folder.name)
        return 0


class _Followed:
    """One run's place: what was seen of its files last, and the offset up to which the sink has its lines."""

    def __init__(self, folder: Source):
        self.folder = folder
        self.offset: int | None = None
        self.seen = Seen()
        self.behind = False
        self.signature: Any = None
        self.info: dict[str, Any] = {}
        self.broken: Broken | None = None
        self.record: dict[str, Any] = {}

    def carry(self, sink: Sink) -> int:
        """Bring the sink up to date; cheap where nothing changed. Raises what run.json is broken by, after the rest."""
        signature, rows = self.folder.signature(), 0
        if signature != self.signature:
            self._meet(sink)
            rows = self._lines(sink)
            self._tell(sink)
            self.signature = None if self.behind else signature
        elif self.folder.restless():
            self._tell(sink)
        if self.broken is not None:
            raise self.broken
        return rows

    def glance(self) -> None:
        """Read its record alone, where there is none yet: of a folder whose lines wait to be read."""
        with contextlib.suppress(OSError, PhasescopeError):
            if not self.record:
                found = {**self.folder.info(), **self.folder.status(), "checkpoints": self.folder.checkpoints()}
                self.record = {**found, "name": self.folder.name, "folder": str(self.folder.path), "saw": [UNREAD]}

    def _meet(self, sink: Sink) -> None:
        """Read run.json and find where the sink stands; start anew where another run now lies under this name."""
        kept = {} if self.offset is not None else (sink.run(self.folder.name) or {}).get("info")
        known = kept or self.record
        try:
            self.info, self.broken = self.folder.info(), None
        except Broken as error:  # its lines can be read all the same
            self.broken = error
            self.info = {"created": known.get("created"), "problem": str(error)}
        if known and known.get("created") != self.info.get("created"):
            self._begin(sink)
            self.folder = self.folder.anew()
        elif self.offset is None:
            self.offset = sink.run_offset(self.folder.name)
            self.seen = Seen(known.get("counts") if self.offset else None)
            self.folder.restore(known.get("position") or {}, self.offset)

    def _begin(self, sink: Sink) -> None:
        sink.reset_run(self.folder.name)
        self.offset, self.seen = 0, Seen()

    def _lines(self, sink: Sink) -> int:
        name, rows, end = self.folder.name, 0, time.monotonic() + PART
        self.behind = False
        while True:
            chunk = self.folder.read(self.offset or 0)
            if chunk.reset:
                self._begin(sink)
            elif chunk.offset == self.offset:
                return rows
            else:
                sink.append_metrics(name, chunk.rows, chunk.offset)
                self.seen.note(chunk)
                self.offset, rows = chunk.offset, rows + len(chunk.rows)
                if time.monotonic() > end:
                    self.behind = True
                    return rows

    def _tell(self, sink: Sink) -> None:
        folder = self.folder
        self.seen.counts["n_damaged"] = folder.damaged
        record = {**self.info, **folder.status(), "checkpoints": folder.checkpoints()}
        record |= {"name": folder.name, "folder": str(folder.path), "counts": self.seen.record()}
        record["saw"] = self._saw(live=record["state"] == "running")
        record |= {"bad_lines": self.seen.counts["bad_lines"], "position": folder.position()}
        if record != self.record:
            sink.put_run(folder.name, record["folder"], record)
            self.record = record

    def _saw(self, live: bool) -> list[str]:
        saw = self.seen.sentences()
        if not live and not self.behind and self.folder.torn(self.offset or 0):
            saw.append("its last line is not whole (its program ended in the middle of it) and is left out")
        if self.offset and self.folder.gone:
            saw.append("its metrics file is gone; what was read before is kept")
        return saw + ([self.info["problem"]] if "problem" in self.info else [])
