"""The experiments' command on a tiny plan: what is finished is kept, tables come from the runs' folders."""

from __future__ import annotations

import pandas as pd

from benchmarks.experiments import __main__ as command
from benchmarks.experiments import detected, plan, work
from benchmarks.experiments.plan import Run

TINY = [Run("control-linear", "linear_control", 3, {"steps": 60, "n_checkpoints": 2}, control=True)]


def test_a_plan_is_trained_once_and_its_controls_are_told(tmp_path):
    for run in TINY:
        work.train_one(run, tmp_path / run.name)
        assert work.finished(tmp_path / run.name)
    before = (tmp_path / TINY[0].name / work.SPENT).stat().st_mtime_ns
    work.train_all([r for r in TINY if not work.finished(tmp_path / r.name)], tmp_path, 1)
    assert (tmp_path / TINY[0].name / work.SPENT).stat().st_mtime_ns == before
    (row,) = detected.controls(TINY, tmp_path).to_dict("records")
    assert (row["run"], row["seed"], row["transitions"]) == ("control-linear-s3", 3, 0)


def test_the_plan_has_fresh_seeds_and_one_paper_run():
    names = {r.name for r in plan.runs()}
    assert {"paper-s0", "live-s20", "induction-s24", "control-1layer-s22"} <= names and len(names) == 26
    assert command.seeds_of("20-24") == plan.SEEDS and list(command.seeds_of("3")) == [3]


def test_the_main_transition_counts_and_not_the_nearest():
    near = {"score": 5.0, "threshold": 5.0, "step": 100.0, "low": 90, "high": 110, "width": 0.1, "alarm_step": 120,
            "delay": 20, "verdict": "kink", "channels": ["a"]}  # fmt: skip
    far = {**near, "score": 50.0, "step": 300.0}
    row = detected._found([near, far], 100.0)
    assert row["step"] == 300.0 and not row["within_absolute"] and row["abs_ln_error"] == 1.099
    assert detected._found([], 100.0)["step"] is None and detected._found([near], None)["within_relative"] is False
    rows = pd.DataFrame([{"run": "r", "group": "g", "reference": 100.0, **detected._found([near], 100.0)}])
    assert detected.score(rows).loc[0, "within_absolute"] == 1
