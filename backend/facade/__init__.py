"""The facade: introduces the rooms to each other. Every argument could be JSON, every answer a table, a figure
or a small record; never a model, never a connection."""

from __future__ import annotations

import time
from typing import Any

from backend import analyses as analyses_room
from backend import settings as settings_room
from backend.facade.base import UNFINISHED
from backend.facade.circuits import Circuits
from backend.facade.diagrams import Diagrams
from backend.facade.directions import Directions
from backend.facade.elsewhere import Elsewhere
from backend.facade.intervening import Intervening
from backend.facade.published import Published
from backend.facade.queue import Queue
from backend.facade.transitions import Transitions
from backend.jobs.engine import Engine
from backend.runs import follow
from backend.store.store import Store

KEEP_JOBS = 30 * 86400.0  # seconds that the record of an ended job is kept
ALL = 1_000_000  # rows; more than any queue


class Backend(Circuits, Diagrams, Transitions, Elsewhere, Intervening, Directions, Published, Queue):
    """One owner of the store, the engine and the follower. Close it when done.

    `inline=True` computes in this process (command line without a dashboard, unit tests); otherwise Dask workers do.
    Raises Busy when another process holds the store.
    """

    def __init__(self, settings: settings_room.Settings | None = None, inline: bool = False):
        self.settings = settings or settings_room.load()
        self.store = Store.open(self.settings.cache, int(self.settings.cache_gb * 1e9))
        self.follower = follow.Follower(
            [self.settings.runs, settings_room.SHIPPED_RUNS], self.store, attached=self._attached
        )
        self.engine = Engine(self._driver(inline), on_change=self._job_changed, on_result=self._job_result)
        self.store.drop_jobs(time.time() - KEEP_JOBS)
        self.engine.adopt(self.store.jobs(states=list(UNFINISHED), limit=ALL))
        self.follower.start()

    def _driver(self, inline: bool) -> Any:
        if inline:
            from backend.jobs.inline import InlineDriver

            return InlineDriver(self.settings)
        from backend.jobs.dask_driver import DaskDriver

        return DaskDriver(self.settings)

    def close(self) -> None:
        """End the workers, stop following, close the file. Safe to call twice."""
        self.follower.stop()
        self.engine.close()
        self.store.close()

    @property
    def notices(self) -> list[str]:
        """What a person should be told: files set aside, analyses that could not be read."""
        return [*self.store.notices, *self.engine.notices, *analyses_room.problems(), *self.follower.problems.values()]

    def health(self) -> dict[str, Any]:
        """Return a small record for the API and the Home page."""
        workers = self.workers()
        return {
            "ok": True,
            "time": time.time(),
            "workers": len(workers),
            "cache_bytes": self.store.size_bytes(),
            "cache": str(self.settings.cache),
            "notices": self.notices,
            "unfinished": sum(not j.ended for j in self.engine.jobs()),
        }
