"""What every part of the facade shares: the rooms it introduces, and how names and params are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from backend import analyses as analyses_room
from backend.contract import Analysis, Recipe
from backend.errors import BadInput, NotFound
from backend.jobs.engine import Engine
from backend.runs import follow, recipes
from backend.settings import Settings
from backend.store.store import Store

M = TypeVar("M", bound=BaseModel)
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


def validated(model: type[M], given: Mapping[str, Any], what: str) -> M:
    """Return frozen params. Raises BadInput that names the first wrong field and its range."""
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(model.model_fields) or "none"
        todo = f"Params are: {known}" if first["type"] == "extra_forbidden" else allowed(model, field)
        asked = f"{what}: {field}={first['input']!r}" if field else what
        raise BadInput(asked, first["msg"].removeprefix("Value error, "), todo) from None


LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}",
          "multipleOf": "in multiples of {}", "enum": "one of {}", "pattern": "like {}"}  # fmt: skip


def allowed(model: type[BaseModel], field: str) -> str:
    """Return the range of a field in words, such as `top_k is integer from 1 to 50`."""
    shape = model.model_json_schema().get("properties", {}).get(field)
    if shape is None:
        return "Correct it"
    forms = [f for f in shape.get("anyOf", [shape]) if f.get("type") != "null"]
    limits = [words.format(f[key]) for f in forms for key, words in LIMITS.items() if key in f]
    return " ".join([f"{field} is", *(str(f["type"]) for f in forms if "type" in f), *limits])


def pick(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise NotFound(f"{what} {name!r}", "no such name", f"Known: {', '.join(sorted(known)) or 'none yet'}")
    return known[name]
