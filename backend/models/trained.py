"""Find what was trained for a model (a tuned lens, a sparse autoencoder) without opening it. No torch.

A companion is a run whose run.json has "companion". Its name can come to mean other tensors (trained again under the
same name), so what depends on it is keyed by `fingerprint`: a hash of the tensors and of how they are used.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.contract import ModelSpec
from backend.errors import NotFound, Unfit
from backend.models import fingerprints, registry, saelens_files
from backend.settings import Settings

#: of run.json's "companion": where the model lay is no part of what was trained
_WHERE = ("spec", "step")


@dataclass(frozen=True)
class Found:
    """run.json (`record`) and the file that holds the tensors of the step that was asked for."""

    record: dict[str, Any]
    file: Path


def locate(run: str, step: int | None, settings: Settings) -> Found:
    """Find a companion's checkpoint: a step, -1 for the last of its training, None for the newest there is.

    A path to a folder in the SAELens layout is one, too; it has no steps.
    Raises NotFound for no such run or step (an unfinished run has no last one), Unfit for a run that is no companion,
    Unsupported for a SAELens folder that our encoder cannot do exactly.
    """
    theirs = saelens_files.folder_of(run)
    if theirs is not None:
        return Found(_at(saelens_files.describe(theirs), step), theirs / saelens_files.WEIGHTS)
    folder, asked = registry.run_folder(run, settings), f"Run {run!r}"
    record = registry.read_json(folder / "run.json", asked)
    if not isinstance(record.get("companion"), dict):
        raise Unfit(asked, "it was not trained for a model (no lens, no SAE)", "Choose a run that was")
    files = registry.checkpoints(folder)
    if step is None and not files:
        raise NotFound(asked, "it has no checkpoint yet", "Its checkpoints: none")
    chosen = max(files) if step is None else _last(record) if step < 0 else step
    if chosen not in files:
        there = ", ".join(map(str, files)) or "none"
        raise NotFound(asked, f"no checkpoint at step {chosen}", f"Its checkpoints: {there}")
    return Found(record, files[chosen])


def _at(record: dict[str, Any], step: int | None) -> dict[str, Any]:
    if step is not None and step > 0:
        raise NotFound(f"Step {step} of {record['name']}", "a folder of SAELens has no steps", "Leave the step at -1")
    return record


def _last(record: dict[str, Any]) -> int:
    steps = (record.get("params") or {}).get("steps")
    return steps if isinstance(steps, int) else -1


def fingerprint(run: str, step: int | None, settings: Settings) -> str:
    """Return 32 hex digits that change when the tensors or their use do. Raises as `locate`, BadInput when damaged.

    Costs one reading of the file, then one look at its size and time.
    """
    found = locate(run, step, settings)
    use = {k: v for k, v in found.record["companion"].items() if k not in _WHERE}
    return _hashed(found.file, registry.signature([found.file]), json.dumps(use, sort_keys=True))


def beside(params: Any, spec: str, settings: Settings) -> tuple[str, ...]:
    """Return the fingerprints of all that params name beside the model `spec`: companions, then siblings.

    Raises as `locate`, and NotFound or BadInput for a sibling that is not there or holds no model.
    """
    companions = (fingerprint(run, step, settings) for run, step in params.companions())
    return *companions, *(_of_model(run, step, settings) for run, step in params.siblings(spec))


def _of_model(run: str, step: int | None, settings: Settings) -> str:
    located = registry.locate(ModelSpec(scheme="run", place=run, step=step), settings)
    return _hashed(located.files[0], located.signature, json.dumps(located.config, sort_keys=True))


@functools.lru_cache(maxsize=256)
def _hashed(file: Path, signature: str, use: str) -> str:
    return fingerprints.fingerprint_safetensors([file], json.loads(use))
