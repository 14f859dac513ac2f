"""TensorBoard event files read as a run, never written: the scalars, while they grow.

An event file is a row of records: length (8 bytes), its checksum (4), an Event protobuf, its checksum (4). A record
that is not whole yet is waited for. One with a wrong checksum is skipped and counted; where a length itself is damaged
nothing behind it can be found, and the file is read up to there. Several files of a folder are one run, in the order of
their names (which begin with a time). As in TensorBoard, a SessionLog START at step s (a restarted writer's
`purge_step`) supersedes all earlier values from step s on; without it nothing is dropped, and of two values of one step
the later one is shown.

Source: TFRecord format and tensorboard/backend/event_processing/event_accumulator.py (2.21), `_ProcessEvent`, `_Purge`.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.runs.folder import CHUNK, Chunk, as_frame, split_name
from backend.runs.layout import FRESH

_NAME = re.compile(r"tfevents\.(\d+)(?:\.(?P<host>.+?)(?:\.\d+)*(?:\.v2)?)?$")
#: checksums are computed in Python: a larger record (an image) is checked by its protobuf alone
CHECKED = 4096


def is_events(name: str) -> bool:
    """Say whether a file name is that of an event file."""
    return "tfevents." in name and not name.endswith((".profile-empty", ".tmp"))


class EventFolder:
    """The event files of a folder (or `only` one of them) as a run; the same words as RunFolder."""

    def __init__(self, path: str | Path, name: str = "", only: str = ""):
        self.path, self.only = Path(path), only
        self.name = name or self.path.name
        self._at: dict[str, int] = {}  # file -> bytes read
        self._inodes: dict[str, int] = {}
        self._damaged: set[str] = set()
        self._tags: set[str] = set()  # whose tensors are scalars: only their first value says so
        self._rewinds: list[tuple[tuple[str, int], int]] = []
        self._last = 0
        self._grew: tuple[Any, float] | None = None
        self._state = ""

    # ------------------------------------------------------------ what it is

    def anew(self) -> EventFolder:
        """Return the same place, nothing read yet."""
        return EventFolder(self.path, self.name, self.only)

    def files(self) -> list[str]:
        """Return the names of the event files, in order."""
        if self.only:
            return [self.only] if (self.path / self.only).is_file() else []
        with contextlib.suppress(OSError):
            return sorted(n for n in os.listdir(self.path) if is_events(n))
        return []

    def info(self) -> dict[str, Any]:
        """Return what the names tell: {kind, name, created, host}."""
        told = next((m for m in map(_NAME.search, self.files()) if m), None)
        host = (told["host"] or "") if told else ""
        return {"kind": "tensorboard", "name": self.name, "recipe": "", "params": {}, "host": host,
                "created": float(told[1]) if told else 0.0}  # fmt: skip

    def checkpoints(self) -> list[int]:
        """Return []: event files hold no weights."""
        return []

    def signature(self) -> Any:
        """Return something that differs whenever a file has changed."""
        return [self._stat(name) for name in self.files()]

    def _stat(self, name: str) -> tuple[str, int, int, int]:
        with contextlib.suppress(OSError):
            stat = os.stat(self.path / name)
            return name, stat.st_size, stat.st_mtime_ns, stat.st_ino
        return name, 0, 0, 0

    def restless(self) -> bool:
        """Say whether its state may change though no file does."""
        return self._state == "running"

    def status(self) -> dict[str, Any]:
        """Return {state, last_step, error}: running while the files grew within the last minute, else finished."""
        found = self.signature()
        if self._grew is None or self._grew[0] != found:
            newest = max((mtime for *_, mtime, _ in found), default=0) / 1e9
            age = 0.0 if self._grew else abs(time.time() - newest)
            self._grew = found, time.monotonic() - age
        self._state = "running" if time.monotonic() - self._grew[1] < FRESH else "finished"
        return {"state": self._state, "last_step": self._last, "error": ""}

    @property
    def gone(self) -> bool:
        """Whether no event file is there any more."""
        return not self.files()

    # ------------------------------------------------------------ where reading stands

    def position(self) -> dict[str, Any]:
        """Return what `restore` needs to go on in another process."""
        return {"at": dict(self._at), "inodes": dict(self._inodes), "damaged": sorted(self._damaged),
                "last": self._last, "tags": sorted(self._tags),
                "rewinds": [[*where, step] for where, step in self._rewinds]}  # fmt: skip

    def restore(self, kept: dict[str, Any], offset: int) -> None:
        """Go on from a kept position, where it is that of `offset`."""
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            if sum(kept["at"].values()) == offset:
                self._rewinds = [((name, int(at)), int(step)) for name, at, step in kept["rewinds"]]
                self._at, self._inodes = dict(kept["at"]), dict(kept["inodes"])
                self._damaged, self._tags, self._last = set(kept["damaged"]), set(kept["tags"]), int(kept["last"])

    def torn(self, offset: int) -> bool:
        """Say whether a file ends in the middle of a record."""
        whole = [n for n in self._at if n not in self._damaged]
        return any(os.path.getsize(self.path / n) > self._at[n] for n in whole if os.path.exists(self.path / n))

    @property
    def damaged(self) -> int:
        """How many files cannot be read to their end."""
        return len(self._damaged)

    # ------------------------------------------------------------ its records

    def read(self, offset: int = 0, max_bytes: int = CHUNK) -> Chunk:
        """Read on after `offset` bytes in all, about `max_bytes`; see RunFolder.read for what comes back."""
        if offset == 0 and self._at:
            self._forget(self._rewinds)
        if offset != sum(self._at.values()) or self._changed():
            self._forget([])
            return Chunk(as_frame([]), [], 0, reset=True)
        rows: list[tuple] = []
        bad = 0
        for name in self.files():
            for end, event in self._records(name, max_bytes):
                self._at[name] = end
                if event is not None and self._purges(event, (name, end)):
                    self._forget(self._rewinds)
                    return Chunk(as_frame([]), [], 0, reset=True)
                bad += 1 if event is None else self._values(event, (name, end), rows)
            if sum(self._at.values()) - offset >= max_bytes:
                break
        return Chunk(as_frame(rows), [], sum(self._at.values()), bad=bad)

    def _forget(self, rewinds: list[tuple[tuple[str, int], int]]) -> None:
        self._at, self._inodes, self._damaged, self._rewinds, self._last = {}, {}, set(), rewinds, 0

    def _changed(self) -> bool:
        """Say whether a file that was read has become shorter or another one; one that is gone is let go."""
        found = {name: stat for name, *stat in self.signature()}
        return any(found[n][0] < at or self._inodes.get(n) != found[n][2] for n, at in self._at.items() if n in found)

    def _records(self, name: str, max_bytes: int) -> Iterator[tuple[int, Any]]:
        """Yield (end, Event) of every whole record behind the place reached, (end, None) of a damaged one."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        if name in self._damaged:
            return
        start = self._at.get(name, 0)
        for at, data in self._framed(name, start, max_bytes, masked_crc32c):
            try:
                event = None if data is None else Event.FromString(data)
            except Exception:  # noqa: BLE001 - protobuf's DecodeError, whose package has no door here
                event = None
            yield at, event

    def _framed(self, name: str, at: int, max_bytes: int, crc: Any) -> Iterator[tuple[int, bytes | None]]:
        with contextlib.suppress(FileNotFoundError), open(self.path / name, "rb") as file:
            self._inodes[name] = os.fstat(file.fileno()).st_ino
            file.seek(at)
            stop = at + max_bytes
            while at < stop and len(head := file.read(12)) == 12 and any(head):
                (length,), (check,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
                if crc(head[:8]) != check:
                    self._damaged.add(name)
                    return
                body = file.read(length + 4)
                if len(body) < length + 4:
                    return
                at += length + 16
                data, told = body[:length], struct.unpack("<I", body[length:])[0]
                yield at, data if length > CHECKED or crc(data) == told else None

    def _purges(self, event: Any, where: tuple[str, int]) -> bool:
        """Note a START; say whether values that were handed out already are superseded by it."""
        if not event.HasField("session_log") or event.session_log.status != event.session_log.START:
            return False
        if any(where == known for known, _ in self._rewinds):
            return False
        self._rewinds = [*self._rewinds, (where, event.step)]
        return self._last >= event.step

    def _values(self, event: Any, where: tuple[str, int], rows: list[tuple]) -> int:
        if any(where < rewind and event.step >= step for rewind, step in self._rewinds):
            return 0
        bad = 0
        for value in event.summary.value:
            number = self._number(value)
            if number is not None:
                rows.append((event.step, *split_name(value.tag), number, event.wall_time))
                self._last = max(self._last, event.step)
            bad += number is None and value.tag in self._tags
        return bad

    def _number(self, value: Any) -> float | None:
        """Return a scalar, old style or new; None for images, histograms, texts and what is no number."""
        if value.WhichOneof("value") == "simple_value":
            return float(value.simple_value)
        if value.metadata.plugin_data.plugin_name == "scalars":
            self._tags.add(value.tag)
        if value.WhichOneof("value") != "tensor" or value.tag not in self._tags:
            return None
        from tensorboard.util import tensor_util

        with contextlib.suppress(TypeError, ValueError):
            array = tensor_util.make_ndarray(value.tensor)
            return float(array.reshape(())) if array.size == 1 else None
        return None
