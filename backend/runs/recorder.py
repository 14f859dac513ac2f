"""Write a run folder from any training loop, three lines:

    run = Recorder("runs/mine")
    run.log(step, loss=loss, **{"induction_score/L1H2": score})
    run.checkpoint(step, model)

then `run.finish()`, or use it as a context manager; a script that simply ends has finished its run, too. Standard
library only; torch and safetensors are imported by the first `checkpoint()`. Every line is one write to a file opened
for appending, so a crash tears at most the last.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from backend.errors import BadInput, Broken, Cancelled, NotFound
from backend.runs import layout, provenance
from backend.runs.layout import CHECKPOINTS, METRICS, RESUME, RUN

KEEP_RESUME = 2
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT


class Recorder:
    """The one writer of a run folder.

    Args:
        folder: the run's folder, made if need be; its last part is the run's name in the dashboard.
        name, recipe, params, model: kept in run.json; `model` is {"kind": "native" | "hf" | "nanogpt",
            "config": {...}}, so that the checkpoints can be opened as models.
        resume: continue a run that is there. Lines logged after step `resume_from` (default: none) no longer count.
        extra: further keys of run.json; a None leaves the key out.
    Raises:
        BadInput: the folder holds a run and `resume` is off. NotFound: nothing to resume. Busy: another live writer.
    """

    def __init__(
        self, folder: str | Path, *, name: str | None = None, recipe: str = "", params: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None, resume: bool = False, resume_from: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(folder)
        self._check(resume)
        self._make_folders()
        lock = layout.Lock(self.folder, layout.last_write(self.folder))
        self._let_go: weakref.finalize = weakref.finalize(self, lock.release)
        try:
            self._check(resume)  # again, now that nobody else can have made it
            self.step, self.ended, self._torn, self._in_with = -1, "", False, False
            self._pid = os.getpid()
            if resume:
                self.info = json.loads((self.folder / RUN).read_text())
            else:
                self.info = provenance.describe(name or self.folder.name, recipe, params, model, extra)
                self._write_info()
            self._fd = os.open(self.folder / METRICS, FLAGS, 0o644)
            self._let_go.detach()
            self._let_go = weakref.finalize(self, _close, self._fd, lock)
            self._begin(resume, resume_from)
            if threading.current_thread() is threading.main_thread():
                atexit.register(_script_ended, weakref.ref(self))
        except BaseException:
            self._let_go()
            raise

    def _check(self, resume: bool) -> None:
        asked, there = f"Run {self.folder.name!r}", (self.folder / RUN).exists()
        if there and not resume:
            raise BadInput(asked, "a run of this name is there already", "Choose another name, or resume it")
        if resume and not there:
            raise NotFound(asked, f"no {RUN} in {self.folder}", "Start it anew, or correct the folder")

    def _make_folders(self) -> None:
        try:
            for part in (CHECKPOINTS, RESUME):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror or "unknown reason") from None

    def _begin(self, resume: bool, resume_from: int | None) -> None:
        if not resume:
            self.event("started", 0)
            return
        for part in (".", CHECKPOINTS, RESUME):
            for left in (self.folder / part).glob(".*.tmp"):
                left.unlink()
        self.wants_checkpoint()  # a request that the last writer never heard is void
        tail = layout.last_line(self.folder / METRICS)
        # a line that a crash tore is closed; it stays, and nobody reads it as a number
        self._torn = not tail.whole
        last = tail.line.get("step", -1)
        self.event("resumed", last if resume_from is None else resume_from, **provenance.code())

    # ------------------------------------------------------------ what a training loop calls

    def describe(self, **more: Any) -> None:
        """Add keys to run.json: `model` before the first metric is logged, what sums the run up at its end."""
        self.info.update(more)
        self._write_info()

    def log(self, step: int, values: Mapping[str, Any] | None = None, /, **metrics: Any) -> None:
        """Append one line of metrics: `name`, `name/L1` (a layer) or `name/L1H2` (a head) -> number.

        A number is anything `float()` takes; NaN and infinities are kept. Raises BadInput for a bad name or number.
        """
        given = {**(values or {}), **metrics}
        numbers = {_name(k): _number(k, v) for k, v in given.items()}
        self._append({"step": _step(step), "time": time.time(), "values": numbers})
        self.step = int(step)

    def event(self, event: str, step: int | None = None, **more: Any) -> None:
        """Append one event line: started, resumed, checkpoint, finished, stopped, failed, or a word of your own."""
        self.step = self.step if step is None else step
        self._append({"event": event, "step": self.step, "time": time.time(), **more})

    def checkpoint(self, step: int, model: Any, optimizer: Any = None, rng: Mapping[str, Any] | None = None) -> Path:
        """Save the weights of a module or a state dict as safetensors, whole or not at all; return the path.

        With `optimizer` (and `rng`: name -> uint8 state tensor) an exact resume is possible; that is kept for the
        last two checkpoints only.
        """
        from backend.runs import checkpoints

        if optimizer is not None:
            checkpoints.save_resume(layout.file_of(self.folder, RESUME, _step(step)), optimizer, rng or {})
        path = layout.file_of(self.folder, CHECKPOINTS, _step(step))
        checkpoints.save_weights(path, model)
        for old in layout.steps_in(self.folder, RESUME)[:-KEEP_RESUME]:
            layout.file_of(self.folder, RESUME, old).unlink()
        self.event("checkpoint", int(step))
        return path

    def wants_checkpoint(self) -> bool:
        """Say whether somebody asked for a checkpoint now; asking takes the request away. One look at the folder.

        In a loop of your own: `if run.wants_checkpoint(): run.checkpoint(step, model)`.
        """
        try:
            os.unlink(self.folder / layout.REQUEST)
        except OSError:
            return False
        return True

    # ------------------------------------------------------------ endings

    def finish(self) -> None:
        """Say that the run reached its end, and let go of the folder."""
        self._end("finished")

    def stop(self, reason: str = "") -> None:
        """Say that a person or a shutdown stopped the run, and let go of the folder."""
        self._end("stopped", reason=reason)

    def fail(self, error: BaseException | str) -> None:
        """Say what went wrong, and let go of the folder."""
        words = str(error) or type(error).__name__
        self._end("failed", error=words[:2000])

    def _end(self, how: str, **more: Any) -> None:
        if self.ended:
            return
        try:
            self.event(how, **more)
        finally:
            self.ended = how
            self._let_go()

    def __enter__(self) -> Recorder:
        self._in_with = True
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, (Cancelled, KeyboardInterrupt)):
            self.stop(str(error) or "interrupted from the keyboard")
        else:
            # the folder may be what failed (a full disk); the first error is the one to show
            with contextlib.suppress(OSError, Broken):
                self.fail(error)

    # ------------------------------------------------------------ bytes

    def _append(self, record: dict[str, Any]) -> None:
        if self.ended:
            raise BadInput(f"Run {self.folder.name!r}", f"it is {self.ended} already", "Open it again with resume=True")
        self._write(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        line = b"\n" + line if self._torn else line
        try:
            if os.fstat(self._fd).st_nlink == 0:
                self._write_again()
            written = os.write(self._fd, line)
        except OSError as error:
            raise self._unwritable(error.strerror or "unknown reason") from None
        if written < len(line):
            self._torn = True  # the next line closes this one
            raise self._unwritable("the disk is full")
        self._torn = False

    def _write_again(self) -> None:
        """The file was deleted while it was open: what it held is still ours, so it is put back."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(os.dup(self._fd), "rb") as old:
            old.seek(0)
            layout.write_whole(self.folder / METRICS, old.read())
        fresh = os.open(self.folder / METRICS, FLAGS, 0o644)
        os.dup2(fresh, self._fd)
        os.close(fresh)

    def _unwritable(self, why: str) -> Broken:
        found = f"its folder cannot be written ({why})"
        return Broken(f"Run {self.folder.name!r}", found, "Make room or correct the rights, then resume it")

    def _write_info(self) -> None:
        layout.write_whole(self.folder / RUN, json.dumps(self.info, indent=1, default=str).encode() + b"\n")


def _close(fd: int, lock: layout.Lock) -> None:
    os.close(fd)
    lock.release()


def _script_ended(writer: weakref.ref[Recorder]) -> None:
    """A script that came to its end without a word has finished; one that an error ended says which."""
    run = writer()
    if run is None or run.ended or run._in_with or run._pid != os.getpid():
        return
    error = getattr(sys, "last_value", None)
    with contextlib.suppress(OSError, Broken):
        run.__exit__(type(error), error, None) if error is not None else run.finish()


def _step(step: Any) -> int:
    if isinstance(step, bool) or int(step) != step or step < 0:
        raise BadInput(f"Step {step!r}", "not a whole number from 0", "Count steps 0, 1, 2, ...")
    return int(step)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise BadInput(f"Metric {str(name)[:40]!r}", "not 1 to 200 characters", "Use name, name/L1 or name/L1H2")
    return name


def _number(name: str, value: Any) -> float | str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        found = f"{type(value).__name__} is not one number"
        raise BadInput(f"Metric {name!r}", found, "Log its mean or one entry per name") from None
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
