"""Metric words and checkpoints on demand through the facade and the command line."""

import pytest

from backend import Backend
from backend.__main__ import main
from backend.errors import BadInput, NotFound
from backend.runs import layout
from backend.runs.recorder import Recorder
from backend.settings import Settings


@pytest.fixture
def house(tmp_path):
    with_store = Backend(Settings(runs=tmp_path / "runs", cache=tmp_path / "cache", device="cpu"), inline=True)
    yield with_store
    with_store.close()


def test_every_metric_of_monitors_and_recipes_has_words(house):
    words = house.metric_words()
    for recipe in house.recipes().values():
        assert {m.name for m in recipe.metrics} <= words.keys()
    assert {"loss", "induction_score", "update_norm", "steps_per_second", "second_half_loss"} <= words.keys()
    alone, mixed = (house.metric_words(r)["loss"].unit for r in ({"energy"}, {"energy", "char_lm"}))
    assert alone == "squared error" and mixed == "nats (char_lm), squared error (energy)"
    assert house.metric_words({"markov_icl", "char_lm"})["loss"].unit == "nats"


def test_every_name_of_the_shipped_run_has_words(house):
    house.follower.poll()
    assert set(house.metric_names("induction-demo")) <= house.metric_words().keys()


def test_a_running_run_is_asked_and_hears_it(house):
    with Recorder(house.settings.runs / "mine") as run:
        run.log(3, loss=1.0)
        asked = house.checkpoint_now("mine")
        assert asked["run"] == "mine" and (run.folder / layout.REQUEST).exists()
        house.checkpoint_now("mine")  # twice before it is heard is once
        assert run.wants_checkpoint() and not run.wants_checkpoint()


def test_a_run_that_nobody_writes_is_not_asked(house):
    with Recorder(house.settings.runs / "mine") as run:
        run.log(3, loss=1.0)
    with pytest.raises(BadInput, match="the run is finished"):
        house.checkpoint_now("mine")
    assert not (run.folder / layout.REQUEST).exists()
    with pytest.raises(NotFound):
        house.checkpoint_now("nobody")


def test_the_command_line_asks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PHASESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PHASESCOPE_CACHE", str(tmp_path / "cache"))
    with Recorder(tmp_path / "runs" / "mine") as run:
        run.log(3, loss=1.0)
        assert main(["checkpoint", "mine"]) == 0 and run.wants_checkpoint()
    assert '"run": "mine"' in capsys.readouterr().out
    assert main(["checkpoint", "nobody"]) == 2
    assert "no such name" in capsys.readouterr().err


def test_event_files_are_only_read(house, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs")) as writer:
        writer.add_scalar("loss", 1.0, 1)
        writer.flush()
        name = house.attach(str(tmp_path / "logs"))["runs"][0]
        house.follower.poll()
        before = sorted(p.name for p in (tmp_path / "logs").iterdir())
        with pytest.raises(BadInput, match="event files|is finished|is stopped|interrupted"):
            house.checkpoint_now(name)
        assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == before
