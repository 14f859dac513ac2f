"""Runs that were written elsewhere: attached by their path, read only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.facade.base import Base
from backend.models.registry import attached_places
from backend.runs import attached as places
from backend.runs.attached import is_events


class Elsewhere(Base):
    """The part of the facade that attaches runs."""

    def _attached(self) -> dict[str, Path]:
        return attached_places(self.settings.runs)

    def attach(self, path: str) -> dict[str, Any]:
        """Show the runs at a path beside one's own; returns {name, path, kind, runs: names}.

        Raises NotFound or BadInput where no run lies there. Nothing is written there.
        """
        found = places.attach(self.settings.runs, path)
        self.follower.poll()
        return {**found, "runs": self._runs_at(found["path"])}

    def attached(self) -> list[dict[str, Any]]:
        """Return {name, path, there, runs} of every attached place."""
        return [{**place, "runs": self._runs_at(place["path"])} for place in places.listed(self.settings.runs)]

    def detach(self, name: str) -> dict[str, Any]:
        """Take a place off the list; its files stay as they are. Returns {name, path}. Raises NotFound."""
        found = places.detach(self.settings.runs, name)
        self.follower.poll()
        return found

    def _runs_at(self, path: str) -> list[str]:
        place = Path(path).parent if is_events(Path(path).name) else Path(path)
        folders = {r["name"]: Path(r["folder"]) for r in self.follower.runs()}
        return sorted(n for n, folder in folders.items() if place == folder or place in folder.parents)
