"""How a run folder is laid out, and who holds it. Standard library only: the recorder and the follower share it.

    run.json                            what the run is; renamed into place whole
    metrics.jsonl                       append-only; one line per log call or event
    checkpoints/step_00000120.safetensors   weights
    resume/step_00000120.safetensors    optimiser and random state; the last two only
    lock                                process id and host of the one live writer
    checkpoint-now                      somebody asks the writer for a checkpoint at its next step; it removes the file
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import Busy

RUN, METRICS, LOCK, CHECKPOINTS, RESUME = "run.json", "metrics.jsonl", "lock", "checkpoints", "resume"
#: a writer on another host counts as alive while its last line is younger than this (seconds)
FRESH = 60.0
#: a file of this name asks the writer for a checkpoint
REQUEST = "checkpoint-now"
#: events that end a run
ENDS = ("finished", "stopped", "failed")
_STEP = re.compile(r"^step_(\d+)\.safetensors$")


def file_of(folder: Path, part: str, step: int) -> Path:
    """Return the path of the checkpoint (`part` CHECKPOINTS) or resume state (RESUME) of a step."""
    return folder / part / f"step_{step:08d}.safetensors"


def steps_in(folder: Path, part: str = CHECKPOINTS) -> list[int]:
    """Return the steps that have a whole file in `part`, ascending; [] where there is no such folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(int(m[1]) for m in map(_STEP.match, os.listdir(folder / part)) if m)
    return []


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, meets the old one, the new one or none, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Tail(NamedTuple):
    """The last whole line that can be read ({} if none), whether the file ends with a whole line, and how many seconds
    of the writer's own clock lie between its last two lines."""

    line: dict[str, Any]
    whole: bool
    gap: float = 0.0


def last_line(path: Path, window: int = 1 << 16) -> Tail:
    """Read the end of a metrics file, further back while no whole line is found; an absent file ends whole."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - window))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return Tail({}, True)
    found: list[dict[str, Any]] = []
    for text in reversed(lines[:-1]):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(one := json.loads(text), dict):
                found.append(one)
        if len(found) == 2:
            break
    if not found and window < size:
        return last_line(path, 8 * window)
    times = [t for t in (seconds(one.get("time")) for one in found) if t is not None]
    return Tail(found[0] if found else {}, lines[-1] == b"", abs(times[0] - times[1]) if len(times) == 2 else 0.0)


def seconds(value: Any) -> float | None:
    """Return a time as a file gives it, None where it is no number."""
    return float(value) if isinstance(value, int | float) and abs(value) < 10**18 else None


# ---------------------------------------------------------------- who holds the folder


def holder(folder: Path) -> dict[str, Any] | None:
    """Return {pid, host, born} of the lock file; {} where it cannot be read yet, None where there is none."""
    try:
        found = json.loads((folder / LOCK).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def alive(held: dict[str, Any] | None, last_time: float | None) -> bool:
    """Say whether the writer named by a lock lives: by its process here, by the age of its last line elsewhere."""
    if held is None:
        return False
    if held.get("host") == socket.gethostname():
        return _process_lives(int(held.get("pid", 0)), held.get("born"))
    return last_time is not None and time.time() - last_time < FRESH


def is_here(held: dict[str, Any] | None) -> bool:
    """Say whether a lock names a writer on this machine."""
    return held is not None and held.get("host") == socket.gethostname()


def here(held: dict[str, Any] | None) -> bool:
    """Say whether the writer on this machine that a lock names lives."""
    return alive(held, None)


class Pulse:
    """Whether a writer on another machine lives, seen from its file alone.

    While a reader watches, only its own clock counts: the writer lives while the file changed within the last FRESH
    seconds (or three times the gap of its last two lines, for slow steps; at most an hour). At the first look there is
    nothing to compare with: then the time in its last line or that of the file must be within so much of now. So clocks
    that are minutes apart can mislead the first look only, and that for FRESH seconds or until the next line.
    """

    def __init__(self) -> None:
        self._seen: Any = None
        self._since: float | None = None  # monotonic time of the last change, or of what the first look took for one

    def look(self, path: Path, written: float | None) -> None:
        """Look at the file; `written` is the time in its last line."""
        try:
            stat = path.stat()
        except OSError:
            return
        found = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if found != self._seen:
            ages = [abs(time.time() - t) for t in (stat.st_mtime, written) if t is not None]
            self._since = time.monotonic() - (min(ages) if self._seen is None else 0.0)
            self._seen = found

    def beats(self, gap: float = 0.0) -> bool:
        """Say whether the writer lives."""
        limit = max(FRESH, min(3 * gap, 3600.0))
        return self._since is not None and time.monotonic() - self._since < limit


def last_write(folder: Path) -> float | None:
    """Return when metrics.jsonl was written, told by this machine's clock.

    On shared storage its time stamp is another clock's: so is that of a file made there just now, and the two compare.
    """
    with contextlib.suppress(OSError):
        fd, probe = tempfile.mkstemp(prefix=".clock.", suffix=".tmp", dir=folder)
        try:
            age = os.fstat(fd).st_mtime - (folder / METRICS).stat().st_mtime
        finally:
            os.close(fd)
            os.unlink(probe)
        return time.time() - age
    return None


def born(pid: int) -> str | None:
    """Return when a process of this machine began (kernel clock ticks), None where the system does not tell."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if stat[0] == "Z" else stat[19]
    return None


def _process_lives(pid: int, since: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # the same number may have gone to another process, or be a zombie nobody has waited for
    return pid > 0 and (since is None or born(pid) == since)


class Lock:
    """The one writer of a run folder: a kernel lock on the lock file, and pid and host in it for people and readers.

    The kernel lets go when the process dies, so a dead writer's file is taken over.
    Raises Busy where another writer lives.
    """

    def __init__(self, folder: Path, last_time: float | None = None):
        self.folder, self.path = folder, folder / LOCK
        self.fd = self._open()
        held = holder(folder)
        if held and held.get("host") != socket.gethostname() and alive(held, last_time):
            os.close(self.fd)
            raise self._busy()
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "born": born(os.getpid())}
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, json.dumps(mine).encode(), 0)

    def _open(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                unsupported = error.errno in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
                if not unsupported or alive(holder(self.folder), None):
                    os.close(fd)
                    raise self._busy() from None
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == os.stat(self.path).st_ino:
                    return fd
            os.close(fd)  # the last holder removed this file between our open and our lock

    def _busy(self) -> Busy:
        held = holder(self.folder) or {}
        who = f"process {held.get('pid', '?')} on {held.get('host', '?')} is writing to it"
        return Busy(f"Run {self.folder.name!r}", who, "Stop that process or choose another name")

    def release(self) -> None:
        """Remove the lock file and let go. Harmless when called twice."""
        if self.fd < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self.fd)
        self.fd = -1
