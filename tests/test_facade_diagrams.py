"""Phase diagrams through the facade: real tiny trainings for what is started, planted curves for what is read."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from backend import Backend
from backend.errors import BadInput, Broken, NotFound
from backend.runs import diagrams
from backend.runs.diagrams import Diagram
from backend.runs.recorder import Recorder
from backend.settings import Settings

TINY = {"steps": 4, "d_model": 8, "n_heads": 2, "n_ctx": 16, "d_vocab": 8, "batch_size": 2, "log_every": 2}
AXES: dict[str, Any] = {"x": "lr", "xs": [0.001, 0.01], "y": "weight_decay", "ys": [0, 0.5]}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Backend]:
    made = Backend(Settings(cache=tmp_path / "cache", runs=tmp_path / "runs", device="cpu"), inline=True)
    yield made
    made.close()


def whole(house: Backend, name: str) -> dict[str, Any]:
    """Wait until nothing of a diagram runs, and return it."""
    for job in house.jobs(states=["queued", "running"]):
        house.wait(job["id"], 180)
    return house.diagram(name)


def trainings(house: Backend) -> int:
    return sum(j["kind"] == "train" for j in house.jobs(limit=1000))


# ---------------------------------------------------------------- many runs


def test_many_runs_start_as_one_group_with_names_of_their_own(house: Backend, tmp_path: Path) -> None:
    started = house.train_many("induction", [TINY, {**TINY, "seed": 1}], group="pair")
    assert [s["run"] for s in started] == ["pair.0", "pair.1"]
    assert [house.wait(s["job"]["id"], 180)["state"] for s in started] == ["done", "done"]
    told = [json.loads((tmp_path / "runs" / s["run"] / "run.json").read_text()) for s in started]
    assert [t["group"] for t in told] == ["pair", "pair"] and [t["params"]["seed"] for t in told] == [0, 1]
    assert [s["run"] for s in house.train_many("induction", [TINY], group="pair")] == ["pair.2"]
    whole_again = house.wait(house.jobs()[0]["id"], 180)
    assert whole_again["state"] == "done"


@pytest.mark.parametrize(("runs", "names"), [
    ([TINY, {"steps": 0}], None),
    ([TINY, TINY], ["a", "a"]),
    ([TINY, TINY], ["a", "../b"]),
    ([TINY, TINY], ["a"]),
    ([TINY, TINY], ["a", "there"]),
])  # fmt: skip
def test_one_bad_run_among_many_refuses_all(house: Backend, tmp_path: Path, runs: list, names: list | None) -> None:
    (tmp_path / "runs" / "there").mkdir(parents=True)
    with pytest.raises(BadInput):
        house.train_many("induction", runs, names, group="bad")
    assert trainings(house) == 0 and [p.name for p in (tmp_path / "runs").iterdir()] == ["there"]


# ---------------------------------------------------------------- start, again, cancel


def test_what_trained_since_the_last_look_is_finished_and_not_missing(
    house: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, house.follower.interval = house.follower.interval, 1000.0  # as between two looks of a slow machine,
    monkeypatch.setattr(house.engine, "_on_change", lambda job: None)  # whose keeper is behind, too
    time.sleep(4 * wait)
    house.start_diagram("induction", **{**AXES, "ys": [0]}, seeds=1, params=TINY, name="d")
    for job in house.engine.jobs():
        house.engine.wait(job.id, 180)
    made = house.diagram("d")
    assert [r["state"] for r in made["runs"]] == ["finished", "finished"] and made["state"] == "done"


def test_a_diagram_computes_each_cell_once_and_again_only_what_is_missing(house: Backend, tmp_path: Path) -> None:
    house.start_diagram("induction", **AXES, seeds=1, params=TINY, name="d")
    made = whole(house, "d")
    assert (made["state"], made["done"], trainings(house)) == ("done", 4, 4)
    at = {(r["x"], r["y"]): r["run"] for r in made["runs"]}
    info = house.run(at[0.01, 0.5])
    assert (info["params"]["lr"], info["params"]["weight_decay"], info["group"]) == (0.01, 0.5, "d")
    assert len(info["checkpoints"]) <= 3  # few: a diagram is read from curves
    curves = house.diagram_curves("d", ["loss"])
    assert sorted(curves["run"].unique()) == sorted(at.values()) and sorted(curves["step"].unique()) == [0, 2, 4]

    assert house.start_diagram("induction", **AXES, seeds=1, params=TINY, name="d")["state"] == "done"
    assert trainings(house) == 4  # nothing was missing
    gone = tmp_path / "runs" / at[0.001, 0.5]
    gone.rename(tmp_path / "elsewhere")
    house.follower.poll()
    house.continue_diagram("d")
    assert whole(house, "d")["state"] == "done"
    assert trainings(house) == 5  # the missing one alone
    with pytest.raises(BadInput, match="another one of that name"):
        house.start_diagram("induction", **{**AXES, "xs": [0.1]}, seeds=1, params=TINY, name="d")


def test_cancel_keeps_what_is_done_and_continuing_resumes_the_rest(house: Backend) -> None:
    long = {**TINY, "steps": 200}
    first = house.start_diagram("induction", **AXES, seeds=1, params=long, name="d")["runs"][0]["run"]
    job = house.job_of_run(first)
    assert job is not None and house.wait(job["id"], 180)["state"] == "done"
    house.cancel_diagram("d")
    stopped = whole(house, "d")
    assert stopped["state"] == "unfinished" and 1 <= stopped["done"] < 4
    kept = {r["run"]: r["last_step"] for r in stopped["runs"] if r["state"] == "finished"}
    before = trainings(house)
    house.continue_diagram("d")
    ended = whole(house, "d")
    assert ended["state"] == "done" and {r["last_step"] for r in ended["runs"]} == {200}
    assert trainings(house) - before == 4 - len(kept)
    assert not any(house.run(run).get("resumed") for run in kept)


def test_the_definition_outlives_the_cache(tmp_path: Path) -> None:
    settings = Settings(cache=tmp_path / "cache", runs=tmp_path / "runs", device="cpu")
    one = Backend(settings, inline=True)
    one.start_diagram("induction", **{**AXES, "xs": [0.01], "ys": [0]}, seeds=[3], params=TINY, name="d")
    whole(one, "d")
    one.close()
    two = Backend(settings.model_copy(update={"cache": tmp_path / "other"}), inline=True)
    try:
        made = two.diagram("d")
        assert made["state"] == "done" and made["seeds"] == [3] and made["xs"] == [0.01]
    finally:
        two.close()


@pytest.mark.parametrize("change", [
    {"x": "lr", "y": "lr"}, {"x": "seed"}, {"x": "nothing"}, {"xs": []}, {"xs": [0.1, 0.1]}, {"xs": [-1]},
    {"seeds": 0}, {"seeds": [1, 1]}, {"params": {"steps": 0}}, {"name": "../up"}, {"xs": [0.1] * 5000},
    {"name": "nested"},
])  # fmt: skip
def test_nonsense_is_refused_before_anything_starts(house: Backend, tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "runs" / "nested.x0y0s0").mkdir(parents=True)
    with pytest.raises(BadInput):
        house.start_diagram("induction", **{**AXES, "params": TINY, "name": "bad", **change})
    assert trainings(house) == 0 and diagrams.find([tmp_path / "runs"]) == {}
    with pytest.raises(NotFound):
        house.diagram("bad")


def test_the_plan_counts_runs_and_reads_whole_numbers_as_the_recipe_does(house: Backend) -> None:
    plan = house.plan_diagram("induction", "n_layers", [2.0, 1.0], "lr", [0.1, 0.01, 1e-3], seeds=3, params=TINY)
    assert plan["runs"] == 18 and plan["diagram"]["xs"] == [1, 2] and plan["diagram"]["ys"] == [0.001, 0.01, 0.1]
    assert "seed" not in house.sweepable("induction") and "lr" in house.sweepable("induction")
    with pytest.raises(BadInput):
        house.plan_diagram("induction", "n_layers", [1.5], "lr", [0.1])


# ---------------------------------------------------------------- what it says

DELAYS = {(0, 0): (100, 200), (1, 0): (100, 900), (0, 1): (100, None), (1, 1): (None, None)}


def planted(folder: Path, seeds: tuple[int, ...] = (0, 1), stubborn: bool = True) -> Diagram:
    """Write a diagram whose runs have curves that jump at known steps; one seed of cell (1, 0) never generalises."""
    made = Diagram(name="planted", recipe="induction", x="lr", xs=(0.1, 0.2), y="weight_decay", ys=(0, 1), seeds=seeds)
    diagrams.write(folder, made)
    for m in made.members():
        train, test = DELAYS[m.i, m.j]
        test = None if stubborn and (m.i, m.j, m.seed) == (1, 0, 1) else test
        with Recorder(folder / m.run, recipe="induction", params=m.params) as run:
            for step in range(0, 1001, 50):
                both = {"train_accuracy": train, "test_accuracy": test}
                run.log(step, {n: float(at is not None and step >= at) for n, at in both.items()})
    return made


def test_planted_runs_give_their_phases_and_thresholds_move_them(house: Backend, tmp_path: Path) -> None:
    planted(tmp_path / "runs")
    house.follower.poll()
    rows = house.diagram_outcomes("planted", delay=500)
    cells = house.diagram_cells(rows).set_index(["i", "j"])
    assert cells["phase"].to_dict() == {
        (0, 0): "comprehension", (1, 0): "memorisation", (0, 1): "memorisation", (1, 1): "confusion"}  # fmt: skip
    assert cells["agree"].to_dict() == {(0, 0): True, (1, 0): False, (0, 1): True, (1, 1): True}
    one = rows[(rows["i"] == 1) & (rows["j"] == 0) & (rows["seed"] == 0)].iloc[0]
    assert (one["phase"], one["delay"], one["delay_low"], one["delay_high"]) == ("grokking", 800, 750, 850)
    assert (one["train_step"], one["train_before"]) == (100, 50)
    later = house.diagram_cells(house.diagram_outcomes("planted", delay=100)).set_index(["i", "j"])
    assert later.loc[(0, 0), "phase"] == "grokking" and later.loc[(0, 0), "delay"] == 100
    early = house.diagram_cells(house.diagram_outcomes("planted", budget=99))
    assert set(early["phase"]) == {"confusion"}
    assert trainings(house) == 0  # read anew, not trained


def stopped_at(folder: Path, made: Diagram, cell: tuple[int, int], seed: int) -> None:
    """Write one run anew: it groks (0 then 1 at step 600) and stops at step 700 of 1000."""
    member = next(m for m in made.members() if (m.i, m.j, m.seed) == (*cell, seed))
    shutil.rmtree(folder / member.run)
    with Recorder(folder / member.run, recipe="induction", params={**member.params, "steps": 1000}) as run:
        for step in range(0, 701, 50):
            run.log(step, {"train_accuracy": float(step >= 100), "test_accuracy": float(step >= 600)})
        run.stop()


def test_a_stopped_run_is_provisional_and_neither_votes_nor_disagrees(house: Backend, tmp_path: Path) -> None:
    made = planted(tmp_path / "runs")
    stopped_at(tmp_path / "runs", made, (0, 0), 1)  # its other seed is comprehension
    for seed in (0, 1):
        stopped_at(tmp_path / "runs", made, (1, 1), seed)
    house.follower.poll()
    rows = house.diagram_outcomes("planted", delay=400)
    one = rows[(rows["i"] == 0) & (rows["j"] == 0) & (rows["seed"] == 1)].iloc[0]
    assert (one["state"], one["phase"], one["final"], one["progress"]) == ("stopped", "grokking", False, 0.7)
    cells = house.diagram_cells(rows).set_index(["i", "j"])
    half = cells.loc[(0, 0)]
    assert (half["phase"], half["agree"], half["n"], half["provisional"]) == ("comprehension", True, 1, False)
    none = cells.loc[(1, 1)]
    assert (none["phase"], none["n"], none["provisional"], none["delay"]) == ("grokking", 0, True, 500)
    assert cells.loc[(1, 0), "counts"] == {"grokking": 1, "memorisation": 1} and not cells.loc[(1, 0), "agree"]
    phases = house.diagram_phases("planted", delay=400)
    pd.testing.assert_frame_equal(phases, cells.reset_index()[phases.columns])


def test_a_diagram_without_the_two_accuracies_is_coloured_by_a_final_value(house: Backend) -> None:
    house.start_diagram("induction", **AXES, seeds=1, params=TINY, name="d")
    whole(house, "d")
    names = house.diagram_metrics("d")
    assert "loss" in names and house.phase_metrics(names) is None
    assert set(house.diagram_outcomes("d")["phase"]) == {""}
    final = house.diagram_final("d", "loss")
    last = house.metrics(final["run"].iloc[0], ["loss"])["value"].iloc[-1]
    assert len(final) == 4 and final["value"].iloc[0] == last and np.isfinite(final["value"]).all()


def test_a_handed_on_diagram_says_the_same_without_its_run_folders(house: Backend, tmp_path: Path) -> None:
    planted(tmp_path / "runs")
    house.follower.poll()
    files = house.export_diagram("planted", str(tmp_path / "out" / "runs"), command="python -m backend diagram ...")
    assert [Path(f).name for f in files] == ["planted.diagram.json", "planted.curves.parquet"]
    settings = Settings(cache=tmp_path / "c2", runs=tmp_path / "out" / "runs", device="cpu")
    other = Backend(settings, inline=True)
    try:
        made = other.diagram("planted")
        assert made["shipped"] and made["state"] == "done" and made["command"].startswith("python")
        columns = ["run", "phase", "delay", "train_step", "test_before"]
        told = [h.diagram_outcomes("planted", delay=500)[columns] for h in (other, house)]
        pd.testing.assert_frame_equal(*told)
        with pytest.raises(BadInput):
            other.continue_diagram("planted")
    finally:
        other.close()


def test_thinning_keeps_the_step_at_which_any_threshold_is_first_reached() -> None:
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=5000))
    curve = pd.DataFrame({"run": "r", "metric": "m", "step": np.arange(5000), "value": values})
    kept = diagrams.thinned(curve, 100)
    assert len(kept) < 1000
    for threshold in np.quantile(values, [0.1, 0.5, 0.9, 1.0]):
        first = [c.loc[c["value"] >= threshold, "step"].iloc[0] for c in (curve, kept)]
        assert first[0] == first[1]
        assert (first[0] == 0) or (first[0] - 1) in set(kept["step"])


def test_a_torn_definition_is_said_in_plain_words(house: Backend, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "runs" / "torn.diagram.json").write_text('{"name": "to')
    with pytest.raises(Broken, match="torn"):
        house.diagram("torn")
    assert "torn" not in [d["name"] for d in house.diagrams()]
