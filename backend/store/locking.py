"""One owner per cache: a locked file that names the owner's process.

DuckDB locks its file too, but only once it has opened it; our own lock is taken before the file is even looked at,
so that two starting dashboards never judge a half-made file.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from backend.errors import Busy


class Lock:
    """Hold `<cache>/phasescope.lock` until `release()`; the system frees it when the process dies, however it dies."""

    def __init__(self, cache: Path):
        """Raises Busy that names the process which holds it."""
        self.path = cache / "phasescope.lock"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip()
            os.close(self._fd)
            raise busy(cache, holder) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next process in."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def busy(cache: Path, holder: str) -> Busy:
    """Return the error for a cache that process `holder` ('' where unknown) has open."""
    who = f"process {holder}" if holder else "another process"
    if holder == str(os.getpid()):
        who += " (this one)"
    return Busy(
        f"Open the cache {cache}", f"it is open in {who}",
        "Use that dashboard (the command line finds it by itself), stop it, or set PHASESCOPE_CACHE to another folder",
    )


def holder_in(message: str) -> str | None:
    """Return the process id in DuckDB's own message, '' where it names none, None where it is about something else."""
    if "Could not set lock" not in message and "Conflicting lock" not in message:
        return None
    pid = re.search(r"PID (\d+)", message)
    return pid.group(1) if pid else ""
