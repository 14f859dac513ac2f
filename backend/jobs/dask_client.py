"""Connections to a Dask scheduler that leave nothing behind, also where they fail. Imports distributed when called.

Two traps of distributed 2026.8: a client whose start fails keeps its event loop and thread for ever (a lost remote
scheduler is tried every few seconds), or is closed by the garbage collector, which may run while the next client
starts its loop under the lock that closing needs: then both wait for ever. So all clients share one loop, and one that
fails is closed at once.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any


def connect(address: str, timeout: float, security: Any = None) -> Any:
    """Return a connected `distributed.Client`. Raises OSError within `timeout` s, TypeError for a wrong security."""
    return _client_class()(address, timeout=timeout, security=security, set_as_default=False, name="phasescope",
                           loop=_loop())


@cache
def _client_class() -> Any:
    from distributed import Client

    class ClosedWhereItFails(Client):
        def start(self, **kwargs: Any) -> None:
            try:
                super().start(**kwargs)
            except BaseException:
                with suppress(Exception):
                    self.close(timeout=1)
                raise

    return ClosedWhereItFails


@cache
def _loop() -> Any:
    """Start the event loop of all clients of this process, in a thread that ends with it."""
    from tornado.ioloop import IOLoop

    ready: Future = Future()

    async def live() -> None:
        ready.set_result(IOLoop.current())
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(live()), name="phasescope-dask-loop", daemon=True).start()
    return ready.result()
