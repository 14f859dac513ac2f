"""Preload of our Dask scheduler and nannies: they end when the process that started them does, however it ends.

The owner holds the other end of their standard input; its end, even by kill -9, closes that pipe. A pipe rather than
PR_SET_PDEATHSIG, which follows the starting *thread* and exists on Linux only. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from contextlib import suppress
from typing import Any

PRIVATE = "PHASESCOPE_PRIVATE_DIR"


def dask_setup(server: Any) -> None:
    """Called by Dask in the scheduler and in each nanny."""
    threading.Thread(target=_follow, name="phasescope-lifeline", daemon=True).start()


def _follow() -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    shutil.rmtree(os.environ.get(PRIVATE, ""), ignore_errors=True)
    if os.getpgrp() == os.getpid():  # a nanny leads the group of its worker, which may be stuck in C
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)
