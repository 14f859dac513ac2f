"""A diagram is read from every point that was logged: a threshold looked for in a thinned curve is found elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend import Backend
from backend.errors import BadInput
from backend.runs import diagrams
from backend.runs.diagrams import Diagram
from backend.runs.recorder import Recorder
from backend.settings import Settings


def test_curves_are_whole_and_a_single_point_above_the_threshold_is_found(tmp_path: Path) -> None:
    made = Diagram(name="d", recipe="induction", x="lr", xs=(0.1,), y="weight_decay", ys=(0.0,), seeds=(0,))
    (member,) = made.members()
    diagrams.write(tmp_path / "runs", made)
    rng = np.random.default_rng(0)
    test = 0.8 * rng.random(400)  # rough, so that no thinning keeps all of it
    test[237] = 0.95
    with Recorder(tmp_path / "runs" / member.run, recipe="induction", params={"steps": 399}) as run:
        for step in range(400):
            run.log(step, train_accuracy=float(step >= 11), test_accuracy=test[step])
    house = Backend(Settings(cache=tmp_path / "cache", runs=tmp_path / "runs", device="cpu"), inline=True)
    try:
        house.follower.poll()
        curve = house.diagram_curves("d", ["test_accuracy"])
        assert curve["step"].tolist() == list(range(400)) and curve["value"].tolist() == test.tolist()
        (row,) = house.diagram_outcomes("d", accuracy=0.9, delay=100).to_dict("records")
        assert (row["phase"], row["train_step"], row["test_step"], row["delay"]) == ("grokking", 11, 237, 226)
        assert (row["train_before"], row["test_before"]) == (10, 236)
    finally:
        house.close()


def test_a_name_too_long_for_its_runs_leaves_nothing_behind(tmp_path: Path) -> None:
    house = Backend(Settings(cache=tmp_path / "cache", runs=tmp_path / "runs", device="cpu"), inline=True)
    try:
        with pytest.raises(BadInput, match="too long by .*Use at most 7[0-9] characters"):
            house.start_diagram("linear_control", "lr", [0.1], "weight_decay", [0.0], 1, {"steps": 2}, name="a" * 78)
        assert house.diagrams() == [d for d in house.diagrams() if d["shipped"]]
    finally:
        house.close()
