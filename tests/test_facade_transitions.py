"""Transitions of runs through the facade: from a folder's metrics to records, the table, the command and the route."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from backend import Backend, __main__
from backend.contract import Metric
from backend.errors import BadInput, NotFound
from backend.facade import detected
from backend.maths import transitions, verdicts
from backend.maths.glr import ramp
from backend.runs.recorder import Recorder
from backend.settings import Settings
from backend.store.migrations import SCHEMA
from backend.store.store import Store
from benchmarks import curves
from tests.store_kit import ROOMY

STEPS = np.arange(1, 161) * 20
U = np.log(STEPS)
NATIVE = {"d_model": 16, "n_layers": 2, "d_vocab": 10, "n_ctx": 8, "attn_only": True}


def noisy(seed: int, curve: np.ndarray, sd: float = 0.02) -> np.ndarray:
    return curve + sd * np.random.default_rng(seed).normal(size=len(U))


def changing(seed: int, width: float = 0.2, centre: float = 6.5) -> dict[str, np.ndarray]:
    """A loss that falls by half and two heads that rise at one place."""
    fall, rise = 3 * np.exp(-0.1 * U - 0.7 * ramp(U, centre, width)), ramp(U, centre, width)
    return {"loss": noisy(seed, fall), "induction_score/L1H0": noisy(seed + 1, rise),
            "induction_score/L1H1": noisy(seed + 2, rise), "steps_per_second": noisy(seed + 3, 50 * rise)}  # fmt: skip


def write(folder: Path, name: str, series: dict[str, np.ndarray], end: bool = True, n: int | None = None, **more: Any):
    run = Recorder(folder / "runs" / name, model={"kind": "native", "config": NATIVE}, **more)
    log(run, series, 0, len(STEPS) if n is None else n)
    if end:
        run.finish()
    return run


def log(run: Recorder, series: dict[str, np.ndarray], start: int, stop: int) -> None:
    for i in range(start, stop):
        run.log(int(STEPS[i]), {k: float(v[i]) for k, v in series.items()})


def caught_up(house: Backend) -> None:
    """Follow until nothing is left to carry."""
    while house.follower.poll() or not house.follower.runs():
        pass


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Backend]:
    made = Backend(Settings(cache=tmp_path / "cache", runs=tmp_path / "runs", device="cpu"), inline=True)
    yield made
    made.close()


def test_a_run_that_changes_and_its_row_in_the_table(house: Backend, tmp_path: Path) -> None:
    write(tmp_path, "one", changing(0))
    caught_up(house)
    (found,) = house.transitions("one")
    assert found["low"] <= np.exp(6.5) <= found["high"] and found["low"] < found["step"] < found["high"]
    assert (found["run"], found["verdict"], found["method"]) == ("one", verdicts.CROSSOVER, "glr")
    assert set(found["channels"]) == {"loss", "induction_score/L1H0", "induction_score/L1H1"}  # the pace is no channel
    assert found["metric_group"] in ("loss", "induction_score")
    assert found["delay"] == found["alarm_step"] - found["step"] and found["score"] > found["threshold"]
    assert found["artefact"] == found["exogenous"] == ""
    json.dumps(found)
    (row,) = house.query("SELECT run, step, channels, detector FROM transitions").to_dict("records")
    assert (row["run"], row["step"], json.loads(row["channels"])) == ("one", found["step"], found["channels"])
    assert row["detector"] == transitions.VERSION
    (latest,) = house.latest_transitions()
    assert {k: v for k, v in latest.items() if k != "created"} == found


def test_a_live_run_is_followed_and_kept_only_when_it_has_ended(house: Backend, tmp_path: Path) -> None:
    series = changing(3)
    run = write(tmp_path, "live", series, end=False, n=25)
    caught_up(house)
    assert house.transitions("live") == []
    log(run, series, 25, 60)
    caught_up(house)
    (early,) = house.transitions("live")
    assert house.latest_transitions() == [] and house.store.transitions_seen("live") is None
    log(run, series, 60, len(STEPS))
    run.finish()
    caught_up(house)
    (late,) = house.transitions("live")
    assert late["alarm_step"] == early["alarm_step"] and len(house.latest_transitions()) == 1


def test_a_quiet_run_is_remembered_and_other_metrics_or_detectors_look_again(
    house: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "quiet", {"loss": noisy(1, 3 * np.exp(-0.3 * U))})
    caught_up(house)
    assert house.transitions("quiet") == []
    seen = house.store.transitions_seen("quiet")
    assert seen == (transitions.VERSION, house.store.run_offset("quiet"))
    house.store.put_transitions("quiet", [], transitions.VERSION - 1, seen[1])
    house.__dict__.pop("_detected")
    assert house.transitions("quiet") == [] and house.store.transitions_seen("quiet") == seen
    house.store.reset_run("quiet")
    assert house.store.transitions_seen("quiet") is None


def test_the_same_question_costs_nothing_until_there_are_new_points(house: Backend, tmp_path: Path) -> None:
    write(tmp_path, "one", changing(0))
    caught_up(house)
    first = house.transitions("one")
    first[0]["step"] = -1  # what a caller does to its answer is its own
    house.store.put_transitions("one", [], transitions.VERSION, 0)
    assert house.transitions("one")[0]["step"] > 0
    with pytest.raises(NotFound):
        house.transitions("none")


# ---------------------------------------------------------------- what may have made it


@pytest.mark.parametrize(("more", "named"), [
    ({"params": {"lr_drop_at": 660, "lr_drop_factor": 0.1}}, True), ({"extra": {"lr_drops": [660]}}, True),
    ({"params": {"lr_drop_at": 200, "lr_drop_factor": 0.1}}, False), ({"params": {"lr_drop_at": 0}}, False),
])  # fmt: skip
def test_a_drop_of_the_learning_rate_is_named(house: Backend, tmp_path: Path, more: dict, named: bool) -> None:
    write(tmp_path, "dropped", changing(0), **more)
    caught_up(house)
    (found,) = house.transitions("dropped")
    assert ("learning rate was changed at step 660" in found["exogenous"]) == named


def test_a_logged_learning_rate_that_jumps_is_named(house: Backend, tmp_path: Path) -> None:
    write(tmp_path, "logged", {**changing(0), "lr": np.where(STEPS < 660, 1e-3, 1e-4)})
    caught_up(house)
    (found,) = house.transitions("logged")
    assert "660" in found["exogenous"] and "lr" not in found["channels"]


def test_a_jump_in_accuracy_alone_is_metric_induced() -> None:
    words = {"acc": Metric("acc", "Accuracy", continuous="log_prob"), "log_prob": Metric("log_prob", "Log-probability")}
    acc, flat = noisy(1, ramp(U, 6.5, 0.2)), noisy(2, 0.1 * U)
    (alone,) = detected.records("r", {"acc": (STEPS, acc), "log_prob": (STEPS, flat)}, words)
    assert alone["artefact"] == "Metric-induced: Accuracy jumps and Log-probability does not."
    (both,) = detected.records("r", {"acc": (STEPS, acc), "log_prob": (STEPS, flat + ramp(U, 6.5, 0.2))}, words)
    assert both["artefact"] == ""
    (untold,) = detected.records("r", {"acc": (STEPS, acc)}, words)
    assert untold["artefact"] == ""  # no twin was measured: nothing is claimed


def test_pace_and_schedule_are_no_channels_even_alone() -> None:
    jump = noisy(1, ramp(U, 6.5, 0.2))
    for name in ("steps_per_second", "update_norm", "learning_rate"):
        assert detected.records("r", {name: (STEPS, jump)}, {}) == []
    assert len(detected.records("r", {"gini/L0": (STEPS, jump)}, {})) == 1
    assert [detected.base(n) for n in ("a/L1H2", "a/L1", "a_w14", "a")] == ["a"] * 4


# ---------------------------------------------------------------- several runs


def test_only_sizes_make_it_transition_like(house: Backend, tmp_path: Path) -> None:
    widths = {1e4: 0.65, 1e5: 0.3, 1e6: 0.1}
    for i, (n, width) in enumerate(widths.items()):
        for seed in range(2):
            write(tmp_path, f"n{i}s{seed}", changing(10 * i + seed, width), extra={"n_params": int(n)})
    write(tmp_path, "quiet", {"loss": noisy(1, 3 * np.exp(-0.3 * U))})
    caught_up(house)
    names = [f"n{i}s{s}" for i in range(3) for s in range(2)]
    whole = house.verdict(names)
    assert whole["verdict"] == verdicts.SHARPENING and whole["transition_like"] and whole["high"] < 0
    assert whole["sizes"] == 3 and "transition-like" in whole["words"]
    few = house.verdict(names[:4])
    assert few["verdict"] == verdicts.CROSSOVER and not few["transition_like"] and "three sizes" in few["words"]
    assert not house.verdict([*names, "quiet"])["transition_like"]
    assert house.verdict(["quiet"])["verdict"] == verdicts.SMOOTH
    json.dumps(whole)
    with pytest.raises(BadInput):
        house.verdict([])
    assert detected.parameters(NATIVE) == 2 * 4 * 256 + 16 * 28 and detected.parameters({}) == 0


# ---------------------------------------------------------------- the shipped run, the command, an older file


def test_the_shipped_induction_run_changes_where_its_heads_form(
    house: Backend, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught_up(house)
    first = house.transitions("induction-demo")[0]
    assert 180 < first["step"] < 260 and first["alarm_step"] <= 260 and first["verdict"] == verdicts.CROSSOVER
    assert any(c.startswith("induction_score/L1") for c in first["channels"])
    monkeypatch.setattr(__main__, "connect", lambda: house)
    assert __main__.main(["transitions", "induction-demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == first
    assert __main__.main(["transitions", "none"]) == 2


def test_a_file_of_schema_2_gets_the_tables(tmp_path: Path) -> None:
    Store.open(tmp_path, ROOMY).close()
    (file,) = tmp_path.glob("*.duckdb")
    with duckdb.connect(str(file)) as con:
        con.execute("DROP TABLE transitions; DROP TABLE transitions_seen")
        con.execute("UPDATE meta SET value = '2' WHERE name = 'schema'")
        fresh = con.execute("SELECT 1").fetchall()
    assert fresh == [(1,)] and SCHEMA >= 3
    store = Store.open(tmp_path, ROOMY)
    assert store.transitions() == [] and store.transitions_seen("r") is None
    store.put_transitions("r", [], 1, 5)
    assert store.transitions_seen("r") == (1, 5)
    store.close()


def test_detection_needs_no_torch() -> None:
    import subprocess

    code = "import backend.maths.transitions, backend.facade, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert curves.FRESH.keys().isdisjoint(curves.CALIBRATION)  # thresholds are judged on families that did not set them


def test_several_runs_have_a_median_step_and_an_interval_over_them(house):
    said = house.verdict(["induction-demo"])
    (low, high), runs = (said["step_low"], said["step_high"]), said["runs"]
    assert said["step"] == low == high == pytest.approx(runs[0]["step"])
    assert house.verdict(["induction-1layer"])["step"] is None


@pytest.mark.parametrize("name", ["train_loss", "acc_w1", "reward", "loss"])
def test_what_is_logged_alone_is_searched(house: Backend, tmp_path: Path, name: str) -> None:
    """A metric of the training set, a name that only looks like a frequency's, a loss below 0."""
    rise = noisy(5, 3 * ramp(U, 6.5, 0.2)) - (5 if name == "loss" else 0)
    write(tmp_path, "alone", {name: rise})
    caught_up(house)
    (found,) = house.transitions("alone")
    assert found["channels"] == [name] and found["low"] <= np.exp(6.5) <= found["high"]


def test_training_metrics_and_spectra_are_no_channels_beside_others() -> None:
    words: dict[str, Metric] = {}
    series = {n: (STEPS.astype(float), U) for n in ("train_loss", "test_loss", "fve_w1", "fve_w2", "lr")}
    assert set(detected.channels(series, words)) == {"test_loss"}


def test_several_runs_have_an_offline_step_with_its_interval(house: Backend, tmp_path: Path) -> None:
    """The segmentation of the whole curves, on the very channel that carried the alarm most."""
    for seed in range(3):
        write(tmp_path, f"seed{seed}", changing(10 * seed, centre=6.4 + 0.1 * seed), recipe="induction",
              params={"seed": seed})  # fmt: skip
    caught_up(house)
    said = house.verdict([f"seed{seed}" for seed in range(3)])
    assert said["offline"] == pytest.approx(np.exp(6.5), rel=0.15)
    assert said["offline_low"] <= said["offline"] <= said["offline_high"] and said["offline_low"] < said["offline_high"]
    write(tmp_path, "flat", {"loss": noisy(3, 3 * np.exp(-0.1 * U))})
    caught_up(house)
    assert house.verdict(["flat"])["offline"] is None
