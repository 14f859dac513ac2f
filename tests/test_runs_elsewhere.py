"""Runs written by others: three lines, a Hugging Face Trainer, a nanoGPT script; attached and opened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backend import Backend
from backend.contract import parse_spec
from backend.errors import BadInput, NotFound
from backend.models import registry
from backend.models.open import open_model
from backend.runs.folder import RunFolder
from backend.runs.recorder import Recorder
from backend.settings import Settings
from tests.test_runs_tensorboard import scalar, write
from tests.tiny_models import settings

SCRIPT = Path(__file__).with_name("nanogpt_train.py")


@pytest.fixture
def house(tmp_path):
    made = Backend(Settings(cache=tmp_path / "cache", runs=tmp_path / "runs", device="cpu"), inline=True)
    yield made
    made.close()


def script(*args, code=""):
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(["-c", code] if code else [str(SCRIPT)]), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_a_patched_nanogpt_script_shows_its_curves_and_opens(tmp_path, house):
    folder = tmp_path / "runs" / "nano"
    assert script(folder, 10).returncode == 0
    (run,) = [r for r in house.runs(expected=["nano"]) if r["name"] == "nano"]
    assert run["state"] == "finished" and run["checkpoints"] == [0, 5, 10] and run["last_step"] == 10 and not run["saw"]
    frame = house.metrics("nano")
    assert sorted(frame["metric"].unique()) == ["lr", "train/loss", "val/loss"] and len(frame) == 9
    said = torch.load(folder / "said.pt", weights_only=True)
    model = open_model(parse_spec("run:nano", 10), settings(tmp_path))
    # the script took one step after its last checkpoint: compute its own function of that checkpoint's weights
    space = {"__name__": "nano"}
    source = SCRIPT.read_text().split("model = raw_model")[0].replace("sys.argv[1], int(sys.argv[2])", "'', 0")
    exec(compile(source, "nanogpt", "exec"), space)
    theirs = space["GPT"](space["model_args"]).double()
    state = registry.locate(parse_spec("run:nano", 10), settings(tmp_path)).files[0]
    from safetensors.torch import load_file

    theirs.load_state_dict({k: v.double() for k, v in load_file(state).items()})
    with torch.no_grad():
        want = theirs(said["tokens"])[0]
    assert torch.allclose(model.logits(said["tokens"]), want, atol=1e-12, rtol=0)


def test_a_script_that_an_error_ends_has_failed_and_says_why(tmp_path):
    assert script(tmp_path / "r", 3).returncode == 1
    status = RunFolder(tmp_path / "r").status()
    assert status["state"] == "failed" and status["error"] == "the data ran out"


def test_a_script_that_is_killed_is_interrupted(tmp_path):
    code = ("import os, sys; from backend.runs.recorder import Recorder; r = Recorder(sys.argv[1]); r.log(0, loss=1);"
            "os.kill(os.getpid(), 9)")  # fmt: skip
    script(tmp_path / "r", code=code)
    assert RunFolder(tmp_path / "r").state() == "interrupted"


# ---------------------------------------------------------------- Hugging Face


def trainer(folder, steps, run, **more):
    import transformers

    from backend.runs.callbacks import PhasescopeCallback

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    rows = [{"input_ids": [i % 31] * 8, "labels": [i % 31] * 8} for i in range(32)]
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, logging_steps=1, save_steps=2, eval_strategy="steps", eval_steps=2,
        per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, **more,
    )  # fmt: skip
    return transformers.Trainer(transformers.GPT2LMHeadModel(config), args, train_dataset=rows, eval_dataset=rows[:4],
                                callbacks=[PhasescopeCallback(run)])  # fmt: skip


def test_a_trainer_writes_a_run_whose_checkpoints_open_and_goes_on_with_it(tmp_path, house):
    run = tmp_path / "runs" / "hf"
    first = trainer(tmp_path / "out", 4, run)
    first.train()
    chunk = RunFolder(run).read()
    logged = {m: sorted(f["step"]) for m, f in chunk.rows.groupby("metric")}
    assert logged["loss"] == logged["grad_norm"] == logged["learning_rate"] == [1, 2, 3, 4]
    assert logged["eval_loss"] == [2, 4] and not chunk.bad
    assert not {"train_loss", "train_runtime", "train_samples_per_second", "total_flos"} & set(logged)  # one dot each
    summary = RunFolder(run).info()["summary"]
    assert summary["train_loss"] == first.state.log_history[-1]["train_loss"] and summary["train_runtime"] > 0
    told = [h["loss"] for h in first.state.log_history if "loss" in h]
    assert chunk.rows[chunk.rows["metric"] == "loss"]["value"].tolist() == told
    assert RunFolder(run).state() == "finished" and RunFolder(run).checkpoints() == [2, 4]
    tokens = torch.arange(16)[None] % 31
    model = open_model(parse_spec("run:hf", 4), settings(tmp_path))
    with torch.no_grad():
        want = first.model.double().eval()(tokens).logits
    assert torch.allclose(model.logits(tokens), want, atol=1e-12, rtol=0)
    with pytest.raises(BadInput, match="a run of this name"):
        trainer(tmp_path / "other", 1, run).train()
    trainer(tmp_path / "out", 6, run).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    rows = RunFolder(run).read().rows
    assert sorted(rows[rows["metric"] == "loss"]["step"]) == [1, 2, 3, 4, 5, 6]
    assert RunFolder(run).checkpoints() == [2, 4, 6] and RunFolder(run).state() == "finished"
    house.follower.poll()
    assert house.run("hf")["saw"] == ["it was resumed once"]


def test_only_rank_zero_writes_and_a_full_disk_ends_the_recording_not_the_training(tmp_path):
    import transformers

    from backend.runs.callbacks import PhasescopeCallback

    state = transformers.TrainerState(is_world_process_zero=False)
    silent = PhasescopeCallback(tmp_path / "r")
    silent.on_train_begin(None, state, None)
    silent.on_log(None, state, None, logs={"loss": 1.0})
    assert not (tmp_path / "r").exists()
    one = trainer(tmp_path / "out", 3, tmp_path / "run")
    callback = next(c for c in one.callback_handler.callbacks if isinstance(c, PhasescopeCallback))
    begin = callback.on_train_begin

    def then_fill(*args, **kwargs):
        begin(*args, **kwargs)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, callback.run._fd)
        os.close(full)

    callback.on_train_begin = then_fill
    one.train()
    assert one.state.global_step == 3 and callback.run is None


# ---------------------------------------------------------------- attached


def test_attached_runs_are_shown_opened_and_never_written(tmp_path, house):
    far = tmp_path / "far away" / "läuft"
    with Recorder(far) as run:
        run.log(3, loss=0.5)
    before = {p: p.stat().st_mtime_ns for p in far.rglob("*")}
    for path in far.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    far.chmod(0o555)
    try:
        found = house.attach(str(far))
        assert found == {"name": "läuft", "path": str(far), "kind": "run", "runs": ["läuft"]}
        assert house.attach(str(far)) == found and [a["runs"] for a in house.attached()] == [["läuft"]]
        assert house.metrics("läuft")["value"].tolist() == [0.5]
        assert registry.known_runs(house.settings)["läuft"] == far
    finally:
        far.chmod(0o755)
    assert {p: p.stat().st_mtime_ns for p in far.rglob("*")} == before
    house.detach("läuft")
    assert "läuft" not in {r["name"] for r in house.runs()} and (far / "run.json").exists()
    with pytest.raises(NotFound, match="Nothing is attached"):
        house.detach("läuft")


def test_a_folder_of_runs_a_taken_name_and_a_symlink(tmp_path, house):
    for place in ("runs/same", "store/same", "store/other"):
        with Recorder(tmp_path / place) as run:
            run.log(1, loss=len(place))
    (tmp_path / "link").symlink_to(tmp_path / "store" / "same")
    assert house.attach(str(tmp_path / "store"))["runs"] == ["other"]  # one's own `same` stays the one of that name
    assert any("another run is called 'same'" in n for n in house.notices)
    assert house.attach(str(tmp_path / "link"))["runs"] == ["link"]
    assert house.metrics("same")["value"].tolist() == [9.0] and house.metrics("link")["value"].tolist() == [10.0]


def test_the_name_of_an_event_run_among_ones_own_is_taken(tmp_path, house):
    for value, place in enumerate(("runs/logs", "elsewhere/logs")):
        write(tmp_path / place, scalar(1, 1.0, loss=value))
    found = house.attach(str(tmp_path / "elsewhere" / "logs"))
    assert (found["name"], found["kind"], found["runs"]) == ("logs-2", "tensorboard", ["logs-2"])
    assert house.metrics("logs-2")["value"].tolist() == [1.0]


def test_what_is_no_run_is_refused_and_a_broken_list_is_empty(tmp_path, house):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="neither run.json"):
        house.attach(str(tmp_path / "empty"))
    with pytest.raises(NotFound, match="no such file"):
        house.attach(str(tmp_path / "nowhere"))
    house.settings.runs.mkdir(parents=True, exist_ok=True)
    (house.settings.runs / registry.ATTACHED).write_text("{")
    assert house.attached() == []
    (house.settings.runs / registry.ATTACHED).write_text(json.dumps({"attached": [{"name": "x", "path": "gone"}]}))
    house.follower.poll()
    assert [a["there"] for a in house.attached()] == [False]
