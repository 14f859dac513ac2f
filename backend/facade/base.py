"""What every part of the facade shares: the rooms it introduces, and how names and params are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from backend import analyses as analyses_room
from backend.contract import Analysis, Params, Recipe
from backend.errors import BadInput, NotFound
from backend.jobs.engine import Engine
from backend.runs import follow, recipes
from backend.settings import Settings
from backend.store.store import Store

UNFINISHED = ("queued", "running")


class Base:
    """The rooms."""

    settings: Settings
    store: Store
    engine: Engine
    follower: follow.Follower

    def analyses(self) -> dict[str, Analysis]:
        """Return every registered analysis by name."""
        return analyses_room.registry()

    def analysis(self, name: str) -> Analysis:
        """Return one analysis. Raises NotFound with the known names."""
        return pick(self.analyses(), name, "Analysis")

    def recipes(self) -> dict[str, Recipe]:
        """Return every training recipe by name."""
        return recipes.registry()

    def recipe(self, name: str) -> Recipe:
        """Return one recipe. Raises NotFound with the known names."""
        return pick(self.recipes(), name, "Recipe")

    def _job_record(self, job: Any) -> dict[str, Any]:
        return {**job.record(), "position": self.engine.position(job.id)}

    def _live(self, record: dict[str, Any]) -> dict[str, Any]:
        live = self.engine.get(record["id"])
        return self._job_record(live) if live is not None else {**record, "position": None}


def validated(model: type[Params], given: Mapping[str, Any], what: str) -> Params:
    """Return frozen params. Raises BadInput that names the first wrong field and its range."""
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(model.model_fields) or "none"
        todo = f"Params are: {known}" if first["type"] == "extra_forbidden" else "Correct it"
        raise BadInput(f"{what}: {field}={first['input']!r}", first["msg"], todo) from None


def pick(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise NotFound(f"{what} {name!r}", "no such name", f"Known: {', '.join(sorted(known)) or 'none yet'}")
    return known[name]
