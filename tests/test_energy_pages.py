"""Pages of energy models: landscapes, the experiment queue and its scripts; each family on the other's pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from app.training_start import preset_of
from backend import Backend, slurm
from backend.analyses import _energy
from backend.contract import Corpus, Pair, Pairs, Prompt, Weights
from backend.errors import BadInput, Unfit
from backend.facade.queue import CLAIMS, flags
from backend.runs import layout
from backend.settings import ROOT
from benchmarks.experiments import energy as experiment
from tests.energy_kit import energy_run
from tests.page_kit import said, settle, settled_house, visit

FEW = {"n_problems": "3", "problem_seed": "1"}
TINY = {"models": "run:tiny", **FEW}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    root = tmp_path_factory.mktemp("energy-pages")
    energy_run(root / "runs" / "tiny")
    with settled_house(root) as one:
        one.open("run:tiny")
        for job in one.jobs(states=["queued", "running"]):
            one.wait(job["id"], 60)
        yield one


# ---------------------------------------------------------------- the queue


def test_the_queue_says_what_is_missing_runs_it_and_shows_what_it_says(house: Backend) -> None:
    at = visit("experiment_queue", **TINY)
    names = list(house.experiments())
    assert len(names) >= 1 and all(house.experiments()[n].title in said(at) for n in names)
    button = next(b for b in at.button if b.label.endswith(" missing"))
    assert button.label == f"Run {len(names)} missing" and "Nothing is computed yet" in said(at)
    assert said(at).count("<td>model, first checkpoint (drift)</td>") == 1, "what each depends on"
    button.click()
    at = settle(at.run())
    assert ">done<" in said(at) and "not computed" not in said(at)
    assert "what was found" in " ".join(m.value for m in at.markdown) and "ps-claims" in said(at)
    places = house.queue(names, ["run:tiny"], {"n": 3, "seed": 1})
    assert {p.state for p in places} <= {"kept", "unfit"} and any(p.state == "kept" for p in places)
    assert all(p.why for p in places if p.state == "unfit")
    links = [f"energy_landscapes?energy=run:tiny&amp;n_problems=3&amp;problem_seed=1&amp;experiment={p.analysis}"
             for p in places if p.state == "kept"]  # fmt: skip
    assert all(said(at).count(f'href="{address}"') > 1 for address in links), "from its cell and from its verdicts"
    rows = re.findall(r'experiment=(exp[0-9]{3})[^"]*">(EXP-[0-9]{3})', said(at))
    assert len({name for name, _ in rows}) > 1 and all(name == word.lower().replace("-", "") for name, word in rows)


def test_the_queue_without_a_model_chosen_or_of_one_that_trains(house: Backend, tmp_path: Path) -> None:
    at = visit("experiment_queue", models="-")
    assert "No model chosen" in said(at)
    at = visit("experiment_queue", models="run:no", experiment="exp099", params="exp004_grassmann.rank=x", **FEW)
    assert "run:no, which this page" in said(at) and "exp099, which this page" in said(at)
    assert "rank=x, which is no setting" not in said(at)  # said where its form is: the first experiment's is open
    assert at.multiselect[0].value == ["run:inverse-5"]  # one, not all
    places = house.queue(["exp001_hessian"], ["run:nowhere"], {"n": 3})
    assert places[0].state == "waits" and "no such run" in places[0].why
    assert house.run_queue(["exp001_hessian"], ["run:nowhere"], {"n": 3}) == 0


def test_settings_of_the_queue_are_in_key_address_and_command(house: Backend) -> None:
    at = visit("experiment_queue", experiment="exp004_grassmann", params="exp004_grassmann.rank=2", **TINY)
    assert "EXP-004 rank 2" in said(at) and "--rank 2" in " ".join(c.value for c in at.code)
    seed = next(n for n in at.number_input if n.key.endswith(".seed"))
    at = settle(seed.set_value(5).run())
    assert at.query_params["params"] == "exp004_grassmann.rank=2&exp004_grassmann.seed=5"
    assert "--rank 2 --seed 5" in " ".join(c.value for c in at.code)
    about, told = {"n": 3, "seed": 1}, {"exp004_grassmann": {"rank": 2, "seed": 5}}
    card = house.card("run:tiny", 10)
    assert card is not None
    subject = house.subject(house.analysis("exp004_grassmann").subject, card.model_dump(), about)
    place = house.queue(["exp004_grassmann"], ["run:tiny"], about, told)[0]
    assert place.key == house.request("exp004_grassmann", card, subject, told["exp004_grassmann"]).key
    next(b for b in at.button if b.key == "queue-run-one").click()
    settle(at.run())
    assert house.queue(["exp004_grassmann"], ["run:tiny"], about, told)[0].state == "kept"


def test_what_failed_is_asked_again(house: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"n": 2, "seed": 77}
    monkeypatch.setattr("backend.analyses._energy.hessian", lambda *_: 1 / 0)
    assert house.run_queue(["exp001_hessian"], ["run:tiny"], about) == 1
    for job in house.jobs(states=["queued", "running"]):
        house.wait(job["id"], 60)
    failed = house.queue(["exp001_hessian"], ["run:tiny"], about)[0]
    assert failed.state == "failed" and failed.why and failed.job
    monkeypatch.undo()
    assert house.run_queue(["exp001_hessian"], ["run:tiny"], about) == 1
    for job in house.jobs(states=["queued", "running"]):
        house.wait(job["id"], 60)
    assert house.queue(["exp001_hessian"], ["run:tiny"], about)[0].state == "kept"


def test_what_the_queue_asks_comes_after_what_somebody_looks_at(
    house: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first job holds the one worker until three stand in line."""
    go, real = threading.Event(), _energy.hessian
    monkeypatch.setattr("backend.analyses._energy.hessian", lambda *told: go.wait(60) and real(*told))
    try:
        for seed in (81, 82):
            assert house.run_queue(["exp001_hessian"], ["run:tiny"], {"n": 2, "seed": seed}) == 1
        card = house.card("run:tiny", 10)
        assert card is not None
        looked_at = house.ask("exp001_hessian", card, house.problems(card.model_dump(), n=2, seed=83))["job"]
        line = sorted(house.jobs(states=["queued"]), key=lambda job: job["position"])
        assert [job["id"] for job in line][0] == looked_at["id"] and len(line) == 2
    finally:
        go.set()
    for job in house.jobs(states=["queued", "running"]):
        house.wait(job["id"], 60)


def test_a_model_that_trains_is_waited_for(house: Backend) -> None:
    folder = energy_run(house.settings.runs / "trains")
    writer = {"pid": os.getpid(), "host": socket.gethostname(), "born": layout.born(os.getpid())}
    (folder / layout.METRICS).write_text('{"event":"started","step":0,"time":0}\n')
    (folder / layout.LOCK).write_text(json.dumps(writer))
    try:
        house.follower.poll()
        place = house.queue(["exp001_hessian"], ["run:trains"], {"n": 2})[0]
        assert (place.state, place.why) == ("waits", "trains is still training")
        assert house.run_queue(["exp001_hessian"], ["run:trains"], {"n": 2}) == 0
    finally:
        shutil.rmtree(folder)
        house.follower.poll()


# ---------------------------------------------------------------- landscapes, and the other family's pages


def test_the_landscapes_page_draws_an_experiment_with_one_level_slider(house: Backend) -> None:
    at = visit("energy_landscapes", energy="run:tiny", experiment="exp001_hessian", level="3", **FEW)
    figures = house.analysis("exp001_hessian").figures
    assert len(at.get("plotly_chart")) == len(figures) and "What was expected" in " ".join(m.value for m in at.markdown)
    slider = [s for s in at.select_slider if s.label.startswith("Annealing level")]
    assert len(slider) == 1 and slider[0].value == 3
    assert "level 3" in " ".join(m.value for m in at.markdown)


def test_an_experiment_of_one_level_is_asked_at_the_sliders_and_forms_know_the_sizes(house: Backend) -> None:
    few = "exp003_sparse_features.steps=5&exp003_sparse_features.samples=64&exp003_sparse_features.d_sae=8"
    at = settle(visit("energy_landscapes", energy="run:tiny", experiment="exp003_sparse_features", level="2",
                      params=few, **FEW))  # fmt: skip
    assert [s.value for s in at.select_slider if s.label.startswith("Annealing level")] == [2]
    asked = [json.loads(p) if isinstance(p, str) else p for p in house.results("exp003_sparse_features")["params"]]
    assert [p["level"] for p in asked if p["steps"] == 5] == [2]  # others share the house
    labels = [w.label for w in (*at.number_input, *at.slider, *at.selectbox)]
    assert {"Dictionary features", "Active features"} <= set(labels) and not {"K", "D sae", "Level"} & set(labels)
    picker = next(s for s in at.selectbox if s.label == "source")
    assert picker.options[0] == "residual field"
    at = settle(picker.select_index(2).run())
    assert next(s for s in at.selectbox if s.label == "source").value == 2, "it stays where it was put"
    at = visit("energy_landscapes", energy="run:tiny", experiment="exp002_landscape", **FEW)
    most = {w.label: w.max for w in at.slider if w.label in ("Rank", "Problem")}
    assert most == {"Rank": 2, "Problem": 2}, "of 3 x 3 matrices, and three problems"


def test_each_family_is_sent_to_its_own_pages(house: Backend) -> None:
    at = visit("attention", model="run:tiny")
    assert "This is an energy model" in said(at) and not at.exception
    at = visit("energy_landscapes", energy="run:induction-demo")
    assert "This is a transformer" in said(at) and "no checkpoint" not in said(at) and not at.exception
    at = visit("models", model="run:tiny")
    assert "energy model" in said(at) and not at.exception


def test_an_energy_run_is_scrubbed_on_the_training_page(house: Backend) -> None:
    at = visit("training", runs="tiny", views="exp001_hessian", at="0", charts="-")
    assert not at.exception and any("EXP-001" in m.value for m in at.markdown)
    at = visit("training", runs="add-8", recipe="energy", preset="gauss-4", views="-")
    assert [m.value for m in at.multiselect if m.label.startswith("Charts")] == [["loss", "mse"]]  # no constants
    start = next(e for e in at.expander if e.label == "Start a run")
    assert start.proto.expanded and next(s for s in at.selectbox if s.label == "Preset").value == "gauss-4"


def test_what_keeps_one_checkpoint_leads_to_the_preset_that_keeps_more(house: Backend) -> None:
    at = visit("energy_landscapes", energy="run:gauss-4", experiment="exp006_svd_alignment", **FEW)
    assert "One checkpoint only" in said(at) and "Train gauss-4" in said(at)
    recipe = house.recipes()["energy"]
    assert {p.name: preset_of(recipe, dict(p.runs[0]) | {"seed": 3}) for p in recipe.presets if len(p.runs) == 1} == {
        p.name: p.name for p in recipe.presets if len(p.runs) == 1}  # fmt: skip
    assert preset_of(recipe, {"task": "inverse", "side": 7}) == ""
    told = [recipe.called(recipe.params(**p.runs[0])) for p in recipe.presets if p.name in ("gauss-4", "add-8")]
    assert told == ["gauss-4", "add-8"], "a run without a name is named by its task and size"
    at = visit("energy_landscapes", energy="run:tiny", experiment="exp008_kernel", **(FEW | {"n_problems": "4"}))
    next(b for b in at.button if b.key == "drift-from").click()
    at = settle(at.run())
    assert at.query_params["params"] == "exp008_kernel.first_step=0"
    drawn = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    moved = next(d for d in drawn if any("K_0" in str(t.get("name")) for t in d["data"]))
    assert "Not asked" not in json.dumps(moved)


# ---------------------------------------------------------------- command lines and scripts


def test_the_command_line_asks_the_same(house: Backend) -> None:
    card = house.card("run:tiny", 10)
    assert card is not None
    subject = house.problems(card.model_dump(), n=3, seed=1, harder=True)
    line = house.command("exp001_hessian", card, subject, out="t.parquet")
    assert line == [".venv/bin/python", "-m", "backend", "run", "exp001_hessian", "--model", "run:tiny", "--step", "10",
                    "--n-problems", "3", "--problem-seed", "1", "--harder", "--out", "t.parquet"]  # fmt: skip
    from backend.__main__ import _about_of, parser

    args = parser().parse_args(line[3:])
    assert house.subject(type(subject), card.model_dump(), _about_of(args)) == subject


def test_flags_of_every_subject() -> None:
    assert flags(Prompt(tokens=(1, 2))) == {"tokens": "1,2"} and flags(Weights()) == {}
    assert flags(Corpus(source="file", path="a.txt", rows=2))["file"] == "a.txt"
    with pytest.raises(Unfit):
        flags(Pairs(pairs=(Pair(clean=(1,), corrupted=(2,), answer=1, distractor=2),)))


def test_a_script_is_bash_and_calls_the_command(tmp_path: Path) -> None:
    """Run as SLURM would, with a Python that writes down what it is called with."""
    line = slurm.command(
        "exp001_hessian", "run:it's", None, {"n-problems": 2, "harder": True}, {"rank_of": 2}, "a b.csv"
    )
    text = slurm.script([line, line], "name", hours=1.5, memory_gb=4, cpus=3, gpus=2, partition="gpu")
    assert "--time=01:30:00" in text and "--gres=gpu:2" in text and "--partition=gpu" in text and "$" + "{" in text
    assert "#SBATCH --mem=4G\n" in text and "#SBATCH --cpus-per-task=3\n" in text
    fake = tmp_path / ".venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" "$PHASESCOPE_CACHE" >> called.txt\n')
    fake.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "TMPDIR": str(tmp_path)}
    subprocess.run(["bash", "-c", text], cwd="/", env=env, check=True)
    called = (tmp_path / "called.txt").read_text().splitlines()
    want = ["-m", "backend", "run", "exp001_hessian", "--model", "run:it's", "--n-problems", "2", "--harder",
            "--rank-of", "2", "--out", "results/a b.csv", f"{tmp_path}/phasescope-7"]  # fmt: skip
    assert called == want * 2 and (tmp_path / "results").is_dir()


@pytest.mark.parametrize(("words", "ends"), [(["true"], 0), (["false"], 1), (["false", "true"], 1)])
def test_a_script_fails_where_a_command_of_it_has(words: list[str], ends: int, tmp_path: Path) -> None:
    """Each command runs, and any that fails is the job's own failure."""
    tried = [["bash", "-c", f"echo {word} >> tried.txt; {word}"] for word in words]
    assert _ran(slurm.script(tried), tmp_path).returncode == ends
    assert (tmp_path / "tried.txt").read_text().split() == words


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "auto")])
def test_a_script_says_the_device_and_where_the_runs_lie(gpus: int, device: str, tmp_path: Path) -> None:
    told = [["bash", "-c", "echo $PHASESCOPE_DEVICE/$PHASESCOPE_RUNS"]]
    assert _ran(slurm.script(told, gpus=gpus), tmp_path).stdout == f"{device}/\n"
    assert _ran(slurm.script(told, gpus=gpus, runs="a's $HOME"), tmp_path).stdout == f"{device}/a's $HOME\n"


def test_the_houses_script_names_its_folder_where_it_is_not_the_usual(house: Backend) -> None:
    assert f"\nexport PHASESCOPE_RUNS={house.settings.runs}\n" in house.job_script([["true"]])
    assert "PHASESCOPE_RUNS" not in house.job_script([["true"]], runs="")
    assert "the script says it itself" in said(visit("experiment_queue", **TINY))


def _ran(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as SLURM would, in a checkout that is set up."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.touch(mode=0o755)
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(folder), "TMPDIR": str(folder)}
    return subprocess.run(["bash", "-c", text], cwd="/", env=env, capture_output=True, text=True, check=False)


def test_the_longest_job_is_two_weeks() -> None:
    assert "--time=336:00:00" in slurm.script([["python"]], hours=slurm.MOST_HOURS)


@pytest.mark.parametrize("more", [
    {"name": "a; rm -rf"}, {"name": ""}, {"partition": "a b"}, {"hours": 0}, {"memory_gb": 0}, {"cpus": 0},
    {"gpus": -1}, {"hours": 337},
])  # fmt: skip
def test_what_slurm_would_not_take_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        slurm.script([["python"]], **more)


def test_run_writes_a_script_instead_of_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from backend.__main__ import main

    out = tmp_path / "job.sbatch"
    assert main(["run", "exp001_hessian", "--model", "run:inverse-5", "--sbatch", str(out), "--n-problems", "4"]) == 0
    assert '--n-problems 4 --out "$PHASESCOPE_OUT"/exp001_hessian.parquet' in out.read_text()
    assert main(["run", "exp001_hessian", "--model", "run:a", f"--sbatch={tmp_path}/no/folder"]) == 2
    assert "no such file" in capsys.readouterr().err


# ---------------------------------------------------------------- what ships


def test_the_experiments_write_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    energy_run(tmp_path / "runs" / "tiny")
    monkeypatch.setattr(experiment, "PROBLEMS", 3)
    monkeypatch.setattr(Backend, "experiments", lambda self: {"exp001_hessian": self.analysis("exp001_hessian")})
    assert experiment.main(tmp_path, tmp_path / "out", ("tiny",), tmp_path / "claims.json") == 0
    told = json.loads((tmp_path / "claims.json").read_text())
    assert {"criterion", "null", "value", "verdict", "model", "experiment"} == set(told["claims"][0])
    assert len(pd.read_csv(tmp_path / "out" / "claims.csv")) == len(told["claims"])
    assert set(pd.read_csv(tmp_path / "out" / "times.csv")["what"]) == {"training", "exp001_hessian"}
    assert (
        told["command"] == "python -m benchmarks.experiments energy"
        and (ROOT / "benchmarks/experiments/energy.py").exists()
    )


def test_what_ships_is_what_the_experiments_say_as_they_are(house: Backend) -> None:
    told = json.loads(CLAIMS.read_text())
    assert told["versions"] == {name: house.analysis(name).version for name in house.experiments()}
    table = pd.read_csv(ROOT / "benchmarks" / "results" / "energy" / "claims.csv", keep_default_na=False)
    assert told["claims"] == table.to_dict("records")
    for name in ("exp001_hessian", "exp005_tangent_normal", "exp006_svd_alignment"):  # the quick ones
        place = experiment._computed(house, name, "run:inverse-3")
        mine = [c for c in told["claims"] if (c["model"], c["experiment"][-3:]) == ("inverse-3", place.analysis[3:6])]
        now = house.claims(place.key)
        assert [(c["criterion"], c["verdict"]) for c in now] == [(c["criterion"], c["verdict"]) for c in mine]
