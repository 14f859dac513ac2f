"""Train a recipe into a run folder, or go on with one: what a worker, the command line and `make zoo` call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backend.contract import Params, Progress, Recipe
from backend.errors import BadInput, Broken, NotFound
from backend.runs import layout, recipes
from backend.runs.folder import RunFolder
from backend.runs.recorder import Recorder


def train(
    recipe: str, params: Mapping[str, Any], run_dir: str | Path, resume: bool, progress: Progress,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train into `run_dir` and return {"run": name, "steps": n, "checkpoints": [...]}.

    With `resume` the run goes on from its last checkpoint with the params it was started with.
    Raises BadInput for params out of range or a name already taken, NotFound for an unknown recipe or run,
    Busy where another process writes the run, Cancelled after a stop (the run is then kept at that step).
    """
    folder = Path(run_dir)
    declared = recipes.get(recipe)
    given = _started_with(folder, declared, params) if resume else params
    frozen = read_params(declared, given)
    start = last_resumable(folder) if resume else None
    point = (-1 if start is None else start) if resume else None
    with Recorder(
        folder, recipe=recipe, params=frozen.model_dump(), resume=resume, resume_from=point, extra=extra
    ) as run:
        declared.train(frozen, run, start, progress)
    return {"run": folder.name, "steps": run.step, "checkpoints": layout.steps_in(folder)}


def finished(recipe: str, params: Mapping[str, Any], run_dir: str | Path) -> dict[str, Any] | None:
    """Return the record of a run that has finished, None where it may go on. Raises what resuming with `train` does."""
    status = RunFolder(run_dir).status()
    if status["state"] != "finished":
        return None
    _started_with(Path(run_dir), recipes.get(recipe), params)
    return {"run": Path(run_dir).name, "steps": status["last_step"], "checkpoints": layout.steps_in(Path(run_dir))}


def read_params(declared: Recipe, given: Mapping[str, Any]) -> Params:
    """Check params against the recipe. Raises BadInput that names the first bad one and its range."""
    try:
        return declared.params(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        asked = f"{name} = {first['input']!r} of recipe {declared.name}" if name else f"Recipe {declared.name}"
        raise BadInput(asked, first["msg"].removeprefix("Value error, "), _allowed(declared, name)) from None


def _allowed(declared: Recipe, name: str) -> str:
    known = declared.params.model_json_schema()["properties"]
    if name not in known:
        return f"The params are {', '.join(known)}" if name else "Correct the params"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below",
             "multipleOf": "in multiples of"}  # fmt: skip
    limits = [f"{word} {known[name][key]}" for key, word in words.items() if key in known[name]]
    return f"{name} is {known[name]['type']} {' '.join(limits)}"


def _started_with(folder: Path, declared: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    asked = f"Resuming run {folder.name!r}"
    try:
        info = json.loads((folder / layout.RUN).read_text())
    except FileNotFoundError:
        raise NotFound(asked, "there is no such run", "Start it anew or correct the name") from None
    except ValueError:
        raise Broken(asked, f"its {layout.RUN} cannot be read", "Start a new run") from None
    if info.get("shipped"):
        raise BadInput(asked, "it came with Phasescope and stays as it is", "Start a run of your own")
    if info.get("recipe") != declared.name:
        raise BadInput(asked, f"it was made by recipe {info.get('recipe')!r}", f"Do not resume it as {declared.name!r}")
    kept = dict(info.get("params", {}))
    for name, value in given.items():
        if name not in kept or kept[name] != value:
            found = f"it was started with {kept[name]!r}" if name in kept else "it has no such param"
            raise BadInput(f"{asked} with {name} = {value!r}", found, "Leave it out")
    return kept


def last_resumable(folder: Path) -> int | None:
    """Return the last step with both weights and optimiser state, None where there is none."""
    both = set(layout.steps_in(folder)) & set(layout.steps_in(folder, layout.RESUME))
    return max(both, default=None)
