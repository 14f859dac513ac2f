"""Read a run folder while somebody writes it. No torch, and nothing in a folder is ever changed.

Only whole lines are read: a torn last line is waited for, a whole line that cannot be read is skipped and counted.
Lines that a resume superseded (logged after the checkpoint it went on from) are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from backend.errors import Broken, NotFound
from backend.runs import layout
from backend.runs.layout import CHECKPOINTS, ENDS, LOCK, METRICS, RUN

CHUNK = 4 << 20
#: a larger run.json (bytes) is not read
LARGEST_INFO = 16 << 20
_PLACE = re.compile(r"^(?P<metric>.+?)(?:/L(?P<layer>\d{1,6})(?:H(?P<head>\d{1,6}))?)?$", re.S)
_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
COLUMNS = ["step", "metric", "layer", "head", "value", "time"]


class Chunk(NamedTuple):
    """What `read` found: metric rows, events, where to go on, and whether all read before must be forgotten."""

    rows: pd.DataFrame
    events: list[dict[str, Any]]
    offset: int
    reset: bool = False
    bad: int = 0


class RunFolder:
    """One run folder, by path; its name is the folder's where no other is given."""

    def __init__(self, path: str | Path, name: str = ""):
        self.path = Path(path)
        self.name = name or self.path.name
        self._inode: int | None = None
        self._rewinds: list[tuple[int, int]] | None = None
        self._pulse = layout.Pulse()
        self._highest: int | None = -1  # largest step read so far; None where an earlier process read it

    # ------------------------------------------------------------ what it is

    def info(self) -> dict[str, Any]:
        """Return run.json. Raises NotFound where there is none, Broken where it cannot be read."""
        try:
            with open(self.path / RUN, "rb") as file:
                text = file.read(LARGEST_INFO + 1)
            found = json.loads(text) if len(text) <= LARGEST_INFO else None
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"Run {self.name!r}", f"no {RUN} in its folder", "Correct the name") from None
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Broken(f"Run {self.name!r}", f"its {RUN} cannot be read", "Remove the folder or write the file anew")
        return found

    def checkpoints(self) -> list[int]:
        """Return the steps of all checkpoints, ascending."""
        return layout.steps_in(self.path)

    def checkpoint_path(self, step: int) -> Path:
        """Return the weights file of a step. Raises NotFound that lists the nearest steps."""
        path = layout.file_of(self.path, CHECKPOINTS, step)
        if path.exists():
            return path
        near = sorted(self.checkpoints(), key=lambda s: abs(s - step))[:3]
        todo = f"The nearest are {', '.join(map(str, sorted(near)))}" if near else "Wait for its first checkpoint"
        raise NotFound(f"Step {step} of run {self.name!r}", "no checkpoint there", todo)

    def state(self) -> str:
        """Return running, finished, stopped, failed, or interrupted (its writer died without a word)."""
        return self.status()["state"]

    def status(self) -> dict[str, Any]:
        """Return {state, last_step, error}; the last line decides, then whether the lock's writer lives."""
        tail = layout.last_line(self.path / METRICS)
        if tail.line.get("event") not in ENDS:
            if self._lives(tail):
                return {"state": "running", **_last(tail)}
            tail = layout.last_line(self.path / METRICS)  # it may have ended and let go between the two looks
        ended = tail.line.get("event") in ENDS
        return {"state": tail.line["event"] if ended else "interrupted", **_last(tail)}

    def _lives(self, tail: layout.Tail) -> bool:
        held = layout.holder(self.path)
        self._pulse.look(self.path / METRICS, layout.seconds(tail.line.get("time")))
        return layout.here(held) if layout.is_here(held) else held is not None and self._pulse.beats(tail.gap)

    # ------------------------------------------------------------ what a follower asks of every kind of run

    def anew(self) -> RunFolder:
        """Return the same place, nothing read yet."""
        return RunFolder(self.path, self.name)

    damaged = 0  # of event files; see tensorboard.py

    def torn(self, offset: int) -> bool:
        """Say whether something that is no whole line lies behind what was read up to `offset`."""
        try:
            return os.path.getsize(self.path / METRICS) > offset
        except OSError:
            return False

    def signature(self) -> Any:
        """Return something that differs whenever the folder has changed."""
        return [_signature(self.path / part) for part in (METRICS, RUN, CHECKPOINTS, LOCK)]

    def restless(self) -> bool:
        """Say whether its state may change though no file does: somebody holds it, and may die."""
        return os.path.exists(self.path / LOCK)

    def position(self) -> dict[str, Any]:
        """Return what `restore` needs beside the offset to go on in another process: nothing."""
        return {}

    def restore(self, kept: dict[str, Any], offset: int) -> None:
        """Go on from a kept position."""

    @property
    def gone(self) -> bool:
        """Whether there is no metrics file."""
        return not os.path.exists(self.path / METRICS)

    # ------------------------------------------------------------ its lines

    def read(self, offset: int = 0, max_bytes: int = CHUNK) -> Chunk:
        """Read whole lines from byte `offset`, about `max_bytes` of them.

        `rows` has columns step, metric, layer, head, value, time (layer and head are NA where a metric has none).
        `reset` says that the file was replaced or shrank, or that a resume superseded lines before `offset`: forget
        what was read and go on from the returned offset, which is 0.
        """
        try:
            with open(self.path / METRICS, "rb") as file:
                stat = os.fstat(file.fileno())
                if self._replaced(file, stat, offset):
                    return self._again(stat)
                self._inode = stat.st_ino
                if self._rewinds is None and self._scan(file, offset):
                    return self._again(stat, known=self._rewinds)
                file.seek(offset)
                block = _whole_lines(file, max_bytes)
        except FileNotFoundError:
            return Chunk(as_frame([]), [], offset)  # what was read before is all that is left of it
        return self._parse(block, offset, stat)

    def _replaced(self, file: Any, stat: os.stat_result, offset: int) -> bool:
        if offset == 0:
            return False
        file.seek(offset - 1)
        return stat.st_size < offset or file.read(1) != b"\n" or self._inode not in (None, stat.st_ino)

    def _again(self, stat: os.stat_result, known: list[tuple[int, int]] | None = None) -> Chunk:
        self._inode, self._rewinds, self._highest = stat.st_ino, known, -1
        return Chunk(as_frame([]), [], 0, reset=True)

    def _scan(self, file: Any, offset: int) -> bool:
        """Note every resume in the file, (byte of its line, step it went on from); say whether one is past `offset`."""
        file.seek(0)
        self._rewinds, at = [], 0
        self._highest = None if offset else -1
        for line in file:
            if b'"resumed"' in line and line.endswith(b"\n"):
                self._note_rewind(_loads(line), at)
            at += len(line)
        return offset > 0 and any(where >= offset for where, _ in self._rewinds)

    def _note_rewind(self, record: dict[str, Any] | None, at: int) -> bool:
        if record is None or record.get("event") != "resumed" or self._rewinds is None:
            return False
        if new := all(at != known for known, _ in self._rewinds):
            self._rewinds.append((at, int(record["step"])))
        return new

    def _parse(self, block: bytes, offset: int, stat: os.stat_result) -> Chunk:
        rows: list[tuple] = []
        events, bad, at = [], 0, offset
        for line in block.splitlines(keepends=True):
            record = _loads(line)
            if record is None:
                bad += bool(line.strip())
            elif self._note_rewind(record, at) and (self._highest is None or self._highest > record["step"]):
                return self._again(stat, known=self._rewinds)
            elif "event" in record:
                events.append(record)
            elif not self._superseded(at, record["step"]):
                bad += _explode(record, rows)
                self._highest = None if self._highest is None else max(self._highest, record["step"])
            at += len(line)
        return Chunk(as_frame(rows), events, at, bad=bad)

    def _superseded(self, at: int, step: int) -> bool:
        return any(at < rewind and step > kept for rewind, kept in self._rewinds or ())


def find_runs(folders: Iterable[str | Path]) -> list[RunFolder]:
    """Return every run folder right below the folders, in their order then by name; absent folders hold none."""
    found = []
    for folder in map(Path, folders):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found += [RunFolder(folder / n) for n in sorted(os.listdir(folder)) if (folder / n / RUN).is_file()]
    return found


def _whole_lines(file: Any, max_bytes: int) -> bytes:
    block = file.read(max_bytes)
    while b"\n" not in block and (more := file.read(max_bytes)):
        block += more  # one line longer than a chunk
    return block[: block.rfind(b"\n") + 1]


def _loads(line: bytes) -> dict[str, Any] | None:
    """Read one line; None where it is not a record with a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _as_int(record.get("step")) is not None else None


def _as_int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _signature(path: Path) -> Any:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _explode(record: dict[str, Any], rows: list[tuple]) -> int:
    """Add one row per metric of a line; return how many values were no numbers."""
    values, bad = record.get("values"), 0
    if not isinstance(values, dict):
        return 1
    step, time = record["step"], layout.seconds(record.get("time"))
    for name, given in values.items():
        value = _WORDS.get(given) if isinstance(given, str) else given
        if name and (isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1023)):
            rows.append((step, *split_name(name), float(value), time))
        else:
            bad += 1
    return bad


def split_name(name: str) -> tuple[str, int | None, int | None]:
    """Return (metric, layer, head) of `name`, `name/L1` or `name/L1H2`."""
    if "/L" not in name:
        return name, None, None
    place = _PLACE.match(name)
    if place is None:
        return name, None, None
    layer, head = (int(n) if n else None for n in (place["layer"], place["head"]))
    return place["metric"], layer, head


def as_frame(rows: list[tuple]) -> pd.DataFrame:
    """Return metric rows, tuples in the order of COLUMNS, as the table that `read` gives."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    kinds = {"step": "int64", "metric": "str", "layer": "Int64", "head": "Int64", "value": "float64", "time": "float64"}
    return frame.astype(kinds)


def _last(tail: layout.Tail) -> dict[str, Any]:
    return {"last_step": _as_int(tail.line.get("step")), "error": tail.line.get("error", "")}
