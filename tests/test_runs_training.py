"""Training: the same bits after a resume, a stop between steps, a kill in mid-line, params in words."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from backend.contract import Prompt
from backend.errors import BadInput, Cancelled, NotFound
from backend.runs import layout, recipes
from backend.runs.folder import RunFolder
from backend.runs.recipes import induction
from backend.runs.recorder import Recorder
from backend.runs.train import last_resumable, train

SMALL = {"steps": 40, "seed": 3, "log_every": 5, "n_checkpoints": 5, "batch_size": 8}
NOT_REPEATABLE = ("steps_per_second",)


def go_on(fraction, words):
    """Never stop."""


def stop_at(step, steps=SMALL["steps"]):
    def progress(fraction, words):
        if round(fraction * steps) == step:
            raise Cancelled("Job", "a person stopped it", "Resume it")

    return progress


def lines(folder):
    rows = RunFolder(folder).read().rows
    rows = rows[~rows.metric.isin(NOT_REPEATABLE)]
    return sorted(rows.drop(columns="time").astype(object).where(rows.notna(), None).itertuples(index=False, name=None),
                  key=str)  # fmt: skip


def same_weights(a, b, step):
    files = [load_file(layout.file_of(f, layout.CHECKPOINTS, step)) for f in (a, b)]
    return files[0].keys() == files[1].keys() and all(torch.equal(files[0][k], files[1][k]) for k in files[0])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert train("induction", SMALL, folder, False, go_on)["steps"] == 40
    return folder


@pytest.mark.parametrize("at", [20, 23])  # at a checkpoint and between two
def test_stop_and_resume_gives_the_same_bits_as_going_straight(tmp_path, straight, at):
    folder = tmp_path / "parted"
    with pytest.raises(Cancelled):
        train("induction", SMALL, folder, False, stop_at(at))
    run = RunFolder(folder)
    assert run.state() == "stopped" and last_resumable(folder) == at and max(run.checkpoints()) == at
    assert lines(folder) == [row for row in lines(straight) if row[0] <= at]
    done = train("induction", {}, folder, True, go_on)
    assert done["run"] == "parted" and done["steps"] == 40 and set(done["checkpoints"]) >= {0, at, 40}
    assert run.state() == "finished" and lines(folder) == lines(straight)
    assert all(same_weights(folder, straight, step) for step in RunFolder(straight).checkpoints() if step > 0)


def test_resume_without_the_optimiser_state_would_differ(tmp_path, straight):
    """The identity above is worth something: with the moments gone, the bits change."""
    from safetensors.torch import save_file

    folder = tmp_path / "parted"
    with pytest.raises(Cancelled):
        train("induction", SMALL, folder, False, stop_at(20))
    state = layout.file_of(folder, layout.RESUME, 20)
    from safetensors import safe_open

    with safe_open(state, "pt") as file:
        words = file.metadata()
    tensors = {k: torch.zeros_like(v) if "exp_avg" in k else v for k, v in load_file(state).items()}
    save_file(tensors, state, metadata=words)
    train("induction", {}, folder, True, go_on)
    assert not same_weights(folder, straight, 40)


def test_killed_in_the_middle_of_a_line_then_resumed(tmp_path, straight):
    """SIGKILL while half of a line is in the file: nothing kept is lost, nothing half-written is shown."""
    code = """
import os, signal, sys, json
from backend.runs.train import train
def progress(fraction, words):
    if round(fraction * 40) == 33:
        fd = os.open(sys.argv[1] + "/metrics.jsonl", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b'{"step":33,"time":1.0,"values":{"loss":12345.0,"icl_sc')
        open(sys.argv[1] + "/checkpoints/.step_00000033.safetensors.1.tmp", "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
train("induction", json.loads(sys.argv[2]), sys.argv[1], False, progress)
"""
    folder = tmp_path / "killed"
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code, folder, json.dumps(SMALL)], env=env)
    assert killed.returncode == -signal.SIGKILL
    run = RunFolder(folder)
    assert run.state() == "interrupted"
    assert lines(folder) == [row for row in lines(straight) if row[0] <= 30]
    kept = run.checkpoints()
    for step in kept:
        assert same_weights(folder, straight, step)
    before = (folder / layout.METRICS).read_bytes()
    train("induction", {}, folder, True, go_on)
    assert (folder / layout.METRICS).read_bytes().startswith(before + b"\n")
    assert lines(folder) == lines(straight) and RunFolder(folder).read().bad == 1
    assert run.checkpoints() == RunFolder(straight).checkpoints() and same_weights(folder, straight, 40)


def test_a_stop_is_heard_at_every_step(tmp_path):
    heard = []

    def progress(fraction, words):
        heard.append(fraction)
        if len(heard) == 4:
            raise Cancelled("Job", "stopped", "Resume it")

    with pytest.raises(Cancelled):
        train("induction", SMALL, tmp_path / "r", False, progress)
    assert heard == [0, 1 / 40, 2 / 40, 3 / 40] and RunFolder(tmp_path / "r").checkpoints() == [0, 3]


def test_an_error_is_told_in_the_run_and_raised(tmp_path):
    def progress(fraction, words):
        if fraction > 0.1:
            raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError):
        train("induction", SMALL, tmp_path / "r", False, progress)
    run = RunFolder(tmp_path / "r")
    assert run.state() == "failed" and run.status()["error"] == "the machine is on fire"
    assert not (tmp_path / "r" / layout.LOCK).exists()


def test_killed_before_the_first_checkpoint_starts_from_the_beginning(tmp_path, straight):
    folder = tmp_path / "r"
    params = recipes.get("induction").params(**SMALL).model_dump()
    run = Recorder(folder, recipe="induction", params=params)
    run.log(0, loss=99.0)
    del run
    train("induction", {}, folder, True, go_on)
    assert lines(folder) == lines(straight)


@pytest.mark.parametrize(("params", "words"), [
    ({"steps": 0}, ["steps = 0", "greater than or equal to 1", "from 1 to 100000"]),
    ({"lr": 0}, ["lr = 0", "above 0", "to 1"]),
    ({"n_layers": 4}, ["n_layers = 4", "from 1 to 3"]),
    ({"d_model": 60, "n_heads": 7}, ["d_model = 60 cannot be divided by n_heads = 7"]),
    ({"n_ctx": 17}, ["n_ctx = 17", "in multiples of 2"]),
    ({"speed": 3}, ["speed", "The params are steps, seed"]),
    ({"seed": "x"}, ["seed = 'x'", "valid integer"]),
])  # fmt: skip
def test_params_out_of_range_are_refused_before_anything_is_made(tmp_path, params, words):
    with pytest.raises(BadInput) as told:
        train("induction", params, tmp_path / "r", False, go_on)
    assert all(w in str(told.value) for w in words), str(told.value)
    assert not (tmp_path / "r").exists()


def test_refusals_of_names_recipes_and_resumes(tmp_path, straight):
    cases = [
        (BadInput, "a run of this name is there already", ("induction", SMALL, straight, False)),
        (NotFound, "Use one of: .*induction", ("grok", {}, tmp_path / "r", False)),
        (NotFound, "there is no such run", ("induction", {}, tmp_path / "r", True)),
        (BadInput, "it was started with 3", ("induction", {"seed": 4}, straight, True)),
    ]
    for kind, words, arguments in cases:
        with pytest.raises(kind, match=words):
            train(*arguments, go_on)
    with Recorder(tmp_path / "shipped", recipe="induction", extra={"shipped": True}):
        pass
    with pytest.raises(BadInput, match="came with Phasescope"):
        train("induction", {}, tmp_path / "shipped", True, go_on)


def test_a_damaged_last_checkpoint_is_said(tmp_path):
    with pytest.raises(Cancelled):
        train("induction", SMALL, tmp_path / "r", False, stop_at(8))
    path = layout.file_of(tmp_path / "r", layout.CHECKPOINTS, 8)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Exception, match="Checkpoint step_00000008.safetensors"):
        train("induction", {}, tmp_path / "r", True, go_on)


# ---------------------------------------------------------------- asked for from outside, and what is logged


def ask_at(folder, step, steps=SMALL["steps"]):
    def progress(fraction, words):
        if round(fraction * steps) == step:
            (folder / layout.REQUEST).touch()

    return progress


def test_a_checkpoint_on_demand_comes_with_the_next_step_and_changes_no_number(tmp_path, straight):
    folder = tmp_path / "asked"
    train("induction", SMALL, folder, False, ask_at(folder, 12))
    assert set(RunFolder(folder).checkpoints()) == {*RunFolder(straight).checkpoints(), 13}
    assert not (folder / layout.REQUEST).exists()
    assert lines(folder) == lines(straight) and same_weights(folder, straight, 40)


def test_the_checkpoint_on_demand_can_be_resumed_from(tmp_path, straight):
    folder = tmp_path / "asked"

    def progress(fraction, words):
        ask_at(folder, 12)(fraction, words)
        if round(fraction * 40) == 14:
            raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError):
        train("induction", SMALL, folder, False, progress)
    assert last_resumable(folder) == 13
    train("induction", {}, folder, True, go_on)
    assert lines(folder) == lines(straight) and same_weights(folder, straight, 40)


def test_a_request_that_nobody_heard_is_void_at_the_next_resume(tmp_path):
    with Recorder(tmp_path / "r") as run:
        assert not run.wants_checkpoint()
        (tmp_path / "r" / layout.REQUEST).touch()
        assert run.wants_checkpoint() and not run.wants_checkpoint()
    (tmp_path / "r" / layout.REQUEST).touch()
    with Recorder(tmp_path / "r", resume=True) as run:
        assert not run.wants_checkpoint()


def test_the_update_norm_is_the_distance_between_neighbouring_checkpoints(tmp_path):
    folder = tmp_path / "r"
    small = {**SMALL, "steps": 3, "log_every": 1, "n_checkpoints": 4}
    train("induction", small, folder, False, go_on)
    rows = RunFolder(folder).read().rows
    logged = rows[rows.metric == "update_norm"].set_index("step").value
    states = [load_file(layout.file_of(folder, layout.CHECKPOINTS, s)) for s in range(4)]
    assert list(logged.index) == [1, 2, 3]
    for step in logged.index:
        moved = [(states[step][k] - states[step - 1][k]).double().square().sum() for k in states[step]]
        assert logged[step] == pytest.approx(float(sum(moved)) ** 0.5, rel=1e-4)


def test_a_line_without_the_headline_does_not_stop_the_run(tmp_path):
    from backend.runs.loop import Training, run_loop

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dice, said = torch.Generator(), []
    training = Training(model, optimizer, dice, lambda: None, lambda: {"other": 1.0}, lambda s: True, {0})
    with Recorder(tmp_path / "r") as run:
        run_loop(training, run, 2, None, lambda fraction, words: said.append(words))
    assert said == ["step 0 of 2", "step 1 of 2", "step 2 of 2"]


def test_slow_monitors_are_read_at_their_own_cadence(straight):
    rows = RunFolder(straight).read().rows
    assert set(rows[rows.metric == "ov_norm"].step) == {0}
    assert {5, 40} <= set(rows[rows.metric == "induction_score"].step)
    assert set(rows[rows.metric == "induction_score"].step) == set(rows[rows.metric == "loss"].step)


# ---------------------------------------------------------------- the recipe


def params(**more):
    return induction.InductionParams(**more)


def test_rows_repeat_a_block_of_random_period():
    rows = induction.tiled_rows(params(), 400, torch.Generator().manual_seed(0))
    assert rows.shape == (400, 64) and rows.min() == 0 and rows.max() == 63
    periods = [next(n for n in range(1, 64) if torch.equal(row[n:], row[:-n])) for row in rows]
    assert set(periods) == set(range(8, 33))
    assert abs(sum(periods) / 400 - 20) < 4 * (25**2 / 12) ** 0.5 / 20  # mean 20 within 4 standard errors


def test_first_weights_are_as_the_recipe_says():
    model = induction.build(params(seed=5))
    matrices = torch.cat([p.flatten() for p in model.parameters() if p.dim() == 2])
    assert abs(matrices.std().item() / 0.02 - 1) < 0.02 and abs(matrices.mean().item()) < 4e-4
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 45_440
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if ".attn." in n and n.endswith("bias")}
    assert len(frozen) == 8 and not any(p.any() for n, p in model.named_parameters() if n in frozen)
    again, other = induction.build(params(seed=5)), induction.build(params(seed=6))
    assert torch.equal(model.head.weight, again.head.weight) and not torch.equal(model.head.weight, other.head.weight)


def test_biases_stay_zero_through_training(straight):
    weights = load_file(layout.file_of(straight, layout.CHECKPOINTS, 40))
    assert not any(v.any() for k, v in weights.items() if ".attn." in k and k.endswith("bias"))
    assert RunFolder(straight).info()["model"]["kind"] == "native"


def test_measure_changes_nothing_and_names_every_head():
    training = induction.make_training(params(d_model=16, n_heads=2, n_layers=3))
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    state = training.generator.get_state()
    first, second = training.measure(), training.measure()
    assert first == second and torch.equal(state, training.generator.get_state())
    assert all(torch.equal(v, training.model.state_dict()[k]) for k, v in before.items())
    assert not any(b.attn._forward_hooks for b in training.model.layers)
    heads = {f"{m}/L{layer}H{head}" for m in ("induction_score", "previous_token_score")
             for layer in range(3) for head in range(2)}  # fmt: skip
    assert heads == {k for k in first if "/" in k}
    assert first["loss"] == pytest.approx(4.1589, abs=0.05)


def test_patterns_are_the_ones_the_bridge_shows(straight):
    """Two ways to the same attention: a hook on the bare module, and transformer-lens' own hook view."""
    from backend import settings
    from backend.contract import parse_spec
    from backend.models.load import open_model
    from backend.models.observe import observe

    model = open_model(parse_spec(f"run:{straight}", 40), settings.load({"PHASESCOPE_DEVICE": "cpu"}))
    tokens = torch.tensor([Prompt(tokens=tuple(range(20))).tokens])
    bare = induction.build(params(**{k: v for k, v in SMALL.items() if k != "steps"}))
    bare.load_state_dict(load_file(layout.file_of(straight, layout.CHECKPOINTS, 40)))
    seen_bare = observe(bare, tokens)
    logits, patterns = seen_bare.logits, seen_bare.patterns
    seen = model.capture(tokens, ["pattern"])
    for layer, pattern in enumerate(patterns):
        torch.testing.assert_close(seen[("pattern", layer)], pattern, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.logits(tokens), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "n", "unit"), [(1200, 30, 20), (40, 30, 20), (100_000, 50, 20), (1, 2, 20), (7, 200, 1)]
)
def test_checkpoint_steps_are_measured_steps(steps, n, unit):
    chosen = induction.checkpoint_steps(steps, n, unit)
    assert {0, steps} <= chosen <= set(range(steps + 1))
    assert all(induction.log_due(s, unit) or s == steps for s in chosen)
    assert len(chosen) <= 1.2 * n + 1
    if steps == 1200:
        assert len(chosen) == 30 and set(range(100, 401, 20)) <= chosen


def test_logging_is_dense_in_the_transition():
    due = [s for s in range(1201) if induction.log_due(s, 20)]
    inside = [s for s in due if 100 <= s <= 300]
    assert inside == list(range(100, 301, 10)) and {0, 20, 80, 320, 1200} <= set(due) and 310 not in due


def test_every_recipe_declares_words_and_ranges():
    for name, declared in recipes.registry().items():
        assert declared.name == name and declared.doc and declared.title and declared.asks.endswith("?")
        for knob, schema in declared.params.model_json_schema()["properties"].items():
            assert schema.get("description"), knob
            ends = ("maximum", "exclusiveMaximum", "enum", "maxLength")
            forms = [f for f in schema.get("anyOf", [schema]) if f.get("type") != "null"]
            ranged = all(f.get("type") == "boolean" or any(k in f for k in ends) for f in forms)
            assert "default" in schema and ranged, knob
