"""What every recipe is asked: the same bits after a resume, a stop within one step, words for what it logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import monitors
from backend.errors import Cancelled
from backend.runs import layout, recipes
from backend.runs.folder import RunFolder
from backend.runs.train import train

#: logged by the loop itself
OF_THE_LOOP = {"steps_per_second", "update_norm"}


def go_on(fraction: float, words: str) -> None:
    """Never stop."""


def stop_at(step: int, steps: int) -> Any:
    """Return a progress that is cancelled at this step."""

    def progress(fraction: float, words: str) -> None:
        if round(fraction * steps) == step:
            raise Cancelled("Job", "a person stopped it", "Resume it")

    return progress


def lines(folder: Path) -> list[tuple]:
    """Return all that was logged and can be repeated: (step, metric, place, number)."""
    rows = RunFolder(folder).read().rows
    rows = rows[rows.metric != "steps_per_second"].drop(columns="time").astype(object)
    return sorted(rows.where(rows.notna(), None).itertuples(index=False, name=None), key=str)


def assert_resumes_alike(recipe: str, params: dict, straight: Path, folder: Path, at: int) -> None:
    """Stop at step `at`, which no checkpoint is due at, go on, and compare bits and lines with `straight`."""
    assert at not in RunFolder(straight).checkpoints()
    with pytest.raises(Cancelled):
        train(recipe, params, folder, False, stop_at(at, params["steps"]))
    assert RunFolder(folder).state() == "stopped" and max(RunFolder(folder).checkpoints()) == at
    train(recipe, {}, folder, True, go_on)
    assert RunFolder(folder).state() == "finished" and lines(folder) == lines(straight)
    later = [step for step in RunFolder(straight).checkpoints() if step > at]
    assert later
    for step in later:
        a, b = (load_file(layout.file_of(f, layout.CHECKPOINTS, step)) for f in (straight, folder))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), step


def assert_stops_within_one_step(recipe: str, params: dict, folder: Path) -> None:
    """Cancel at the fourth call of progress: nothing is computed after it, and the state is kept there."""
    heard = []

    def progress(fraction: float, words: str) -> None:
        heard.append(round(fraction * params["steps"]))
        if len(heard) == 4:
            raise Cancelled("Job", "stopped", "Resume it")

    with pytest.raises(Cancelled):
        train(recipe, params, folder, False, progress)
    assert heard == [0, 1, 2, 3] and max(RunFolder(folder).checkpoints()) == 3


def assert_words_for_all(recipe: str, folder: Path) -> None:
    """Check that every metric in the folder has words, every declared one came, and run.json says how it was made."""
    declared = {m.name: m for m in recipes.get(recipe).metrics}
    logged = set(RunFolder(folder).read().rows.metric)
    assert logged <= declared.keys() | monitors.metrics().keys() | OF_THE_LOOP, logged - declared.keys()
    assert declared.keys() <= logged
    assert all(m.title and m.help and m.continuous in {"", *declared} for m in declared.values())
    info = RunFolder(folder).info()
    params = recipes.get(recipe).params
    assert params(**info["params"]).model_dump() == info["params"] and info["recipe"] == recipe
    assert {"python", "torch"} <= info["versions"].keys() and "git" in info
