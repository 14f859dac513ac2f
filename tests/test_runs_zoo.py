"""The shipped runs: real, whole, small, of no particular machine; and the command that makes them."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pandas import NA
from safetensors.torch import load_file

from backend import monitors, settings
from backend.runs import layout, zoo
from backend.runs.folder import RunFolder, find_runs
from backend.runs.recipes import induction
from backend.runs.train import train

RUN = RunFolder(settings.SHIPPED_RUNS / "induction-demo")


def series(metric):
    """The largest value over heads by step."""
    rows = RUN.read().rows
    return rows[rows.metric == metric].groupby("step").value.max()


def test_it_is_whole_and_says_where_it_comes_from():
    assert [r.name for r in find_runs([settings.SHIPPED_RUNS])] == sorted(zoo.ZOO)
    info, chunk = RUN.info(), RUN.read()
    assert info["shipped"] is True and info["command"] == zoo.COMMAND and info["name"] == "induction-demo"
    assert RUN.state() == "finished" and chunk.bad == 0 and not (RUN.path / layout.LOCK).exists()
    params = induction.InductionParams(**info["params"])
    assert info["model"] == {"kind": "native", "config": induction.model_config(params)}
    assert set(RUN.checkpoints()) == induction.checkpoint_steps(params.steps, params.n_checkpoints, params.log_every)
    assert set(RUN.checkpoints()) <= set(chunk.rows.step)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_it_names_no_machine_and_is_small(name):
    path = settings.SHIPPED_RUNS / name
    files = [f for f in path.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 8e6
    told = (path / layout.RUN).read_text() + (path / layout.METRICS).read_text()
    assert not re.search(r'"host"|"pid"|/home|/work|/tmp|/root', told)
    assert f'"{socket.gethostname()}"' not in told


def test_its_curve_is_the_phase_change_of_the_reference():
    """Reference, three seeds: score > .1 at 180-200, > .5 at 240-260; accuracy > .5 at 220-240; first half >= ln 64."""
    score, accuracy = series("induction_score"), series("second_copy_accuracy")
    assert 150 <= score[score > 0.1].index[0] <= 230 and 210 <= score[score > 0.5].index[0] <= 300
    assert 190 <= accuracy[accuracy > 0.5].index[0] <= 280 and accuracy.iloc[-1] > 0.95
    assert score.iloc[-1] > 0.8 and series("previous_token_score").iloc[-1] > 0.8
    icl = series("icl_score")
    assert series("first_half_loss").min() > 4.158 and icl.max() > 0.5 and icl.iloc[-1] < -3


@pytest.mark.parametrize("step", [0, 240, 1200])
def test_its_weights_give_the_numbers_of_its_metrics(step):
    training = induction.make_training(induction.InductionParams(**RUN.info()["params"]))
    training.model.load_state_dict(load_file(RUN.checkpoint_path(step)))
    again = training.measure() | monitors.measure(training.monitors, training.observe())
    rows = RUN.read().rows
    told = rows[(rows.step == step) & ~rows.metric.isin(["steps_per_second", "update_norm"])]
    assert len(told) == len(again) if training.monitor_at(step) else len(told) > 20
    for row in told.itertuples():
        place = "" if row.layer is NA else f"/L{row.layer}" + ("" if row.head is NA else f"H{row.head}")
        name = row.metric + place
        assert again[name] == pytest.approx(row.value, abs=2e-4), name


def test_its_first_weights_are_the_recipes():
    built = induction.build(induction.InductionParams(**RUN.info()["params"])).state_dict()
    kept = load_file(RUN.checkpoint_path(0))
    assert built.keys() == kept.keys() and all(torch.equal(built[k], kept[k]) for k in kept)


def test_making_it_again_gives_the_same_weights(tmp_path):
    made = [zoo.make("induction-demo", tmp_path / n, steps=12, log_every=4, n_checkpoints=3) for n in ("a", "b")]
    train("induction", {"steps": 12, "log_every": 4, "n_checkpoints": 3}, tmp_path / "plain", False, lambda f, w: None)
    for step in layout.steps_in(made[0]):
        files = [layout.file_of(f, layout.CHECKPOINTS, step).read_bytes() for f in (*made, tmp_path / "plain")]
        assert files[0] == files[1] == files[2]
    assert {p.name for p in made[0].iterdir()} == {layout.RUN, layout.METRICS, layout.CHECKPOINTS}
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"induction-demo"}
    assert str(tmp_path) not in (made[0] / layout.RUN).read_text()
    assert not {"host", "pid", "git", "dirty"} & RunFolder(made[0]).info().keys()


def test_the_command_has_help():
    asked = subprocess.run([sys.executable, "-m", "backend.runs.zoo", "--help"], capture_output=True, text=True,
                           cwd=Path(settings.ROOT))  # fmt: skip
    assert asked.returncode == 0 and "--out" in asked.stdout


def test_the_control_never_forms_an_induction_head():
    control = RunFolder(settings.SHIPPED_RUNS / "induction-1layer")
    rows = control.read().rows
    assert control.info()["params"]["n_layers"] == 1 and control.info()["shipped"] is True
    assert rows[rows.metric == "induction_score"].value.max() < 0.1
    assert rows[rows.metric == "second_copy_accuracy"].value.max() < 0.3
    assert sum(f.stat().st_size for f in control.path.rglob("*") if f.is_file()) < 1e6
