"""Modular addition as a recipe: the same bits after a resume, its numbers, its monitors, words for what is wrong."""

import contextlib
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from backend import monitors
from backend.contract import parse_spec
from backend.errors import BadInput, Cancelled
from backend.maths import modular_addition as task
from backend.models.open import open_model
from backend.runs import layout, recipes, zoo
from backend.runs.folder import RunFolder
from backend.runs.recipes import modular_addition as recipe
from backend.runs.train import last_resumable, train
from backend.settings import SHIPPED_RUNS
from tests.tiny_models import settings

SMALL = {"p": 11, "steps": 36, "d_model": 32, "d_mlp": 24, "log_every": 6, "monitor_every": 12, "n_checkpoints": 4,
         "device": "cpu", "seed": 3}
DEMO = RunFolder(SHIPPED_RUNS / "grokking-demo")


def go_on(fraction, words):
    """Never stop."""


def values(folder):
    """{step: metrics} of a run, without its pace."""
    lines = [json.loads(line) for line in (folder / layout.METRICS).read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line["values"].items() if k != "steps_per_second"}
            for line in lines if "values" in line}


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float64"])
def straight(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    train("modular_addition", {**SMALL, "dtype": request.param}, folder, False, go_on)
    return folder


@pytest.mark.parametrize("at", [18, 23])  # a logged step, where the loss is computed ahead of the update; between two
def test_stop_and_resume_gives_the_same_bits(tmp_path, straight, at):
    heard = []

    def stop(fraction, words):
        heard.append(fraction)
        if len(heard) == at + 1:
            raise Cancelled("Job", "stopped", "Resume it")

    folder = tmp_path / "parted"
    with pytest.raises(Cancelled):
        train("modular_addition", {**SMALL, "dtype": straight.name}, folder, False, stop)
    assert last_resumable(folder) == at and len(heard) == at + 1
    train("modular_addition", {}, folder, True, go_on)
    assert values(folder) == values(straight)
    files = [load_file(layout.file_of(f, layout.CHECKPOINTS, 36)) for f in (folder, straight)]
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[1])


def test_resume_without_the_moments_would_differ():
    bare, fresh = (recipe.make_training(recipe.ModularAdditionParams(**SMALL)) for _ in range(2))
    for _ in range(5):
        bare.update()
    fresh.model.load_state_dict(bare.model.state_dict())
    for one in (bare, fresh):
        one.update()
    assert not torch.equal(bare.model.tok_embed.weight, fresh.model.tok_embed.weight)


def test_training_is_the_plain_reference_loop(tmp_path):
    """30 updates against NativeModel's own forward, autograd and AdamW, in float64: the same weights."""
    params = recipe.ModularAdditionParams(**{**SMALL, "dtype": "float64", "weight_decay": 0.5})
    ours, reference = recipe.make_training(params), recipe.build(params).double()
    optimizer = torch.optim.AdamW([w for w in reference.parameters() if w.requires_grad], lr=params.lr,
                                  betas=(0.9, 0.98), weight_decay=0.5)  # fmt: skip
    rows, p = task.split(params.p, params.train_fraction, params.seed)[0], params.p
    x, y = task.all_inputs(p)[rows], task.answers(task.all_pairs(p)[rows], p)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = params.lr * min(step / 10, 1)
        optimizer.zero_grad()
        F.cross_entropy(reference(x)[:, -1], y).backward()
        optimizer.step()
        ours.update()
    for name, weights in reference.named_parameters():
        assert torch.allclose(weights, ours.model.get_parameter(name), atol=1e-9), name
    assert not any(w.any() for n, w in ours.model.named_parameters() if ".attn." in n and n.endswith("bias"))


def test_the_first_weights_have_the_published_spread():
    bare = recipe.build(recipe.ModularAdditionParams(p=113))
    assert bare.tok_embed.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert bare.head.weight.std().item() == pytest.approx(114**-0.5, rel=0.02)
    assert bare.layers[0].mlp.fc_out.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert bare.head.bias is None and bare.head.weight.shape == (114, 128)


def test_cheap_metrics_and_monitors_are_the_plain_models(tmp_path):
    params = recipe.ModularAdditionParams(**SMALL)
    training, p = recipe.make_training(params), params.p
    for _ in range(12):
        training.update()
    cheap = training.measure()
    slow = monitors.measure(training.monitors, training.observe())
    train_rows, test_rows = task.split(p, params.train_fraction, params.seed)
    with torch.no_grad():
        logits, right = training.model(task.all_inputs(p))[:, -1].double(), task.answers(task.all_pairs(p), p)
    for part, rows in (("train", train_rows), ("test", test_rows)):
        assert cheap[f"{part}_loss"] == pytest.approx(F.cross_entropy(logits[rows], right[rows]).item(), rel=1e-5)
        assert cheap[f"{part}_accuracy"] == (logits[rows].argmax(1) == right[rows]).double().mean().item()
    assert slow["full_test_loss"] == pytest.approx(cheap["test_loss"], rel=1e-5)
    assert {"restricted_loss", "excluded_loss", "explained_fraction", "gini_W_E", "gini_W_L", "neuron_clusters",
            "n_key_frequencies", "fve_w1", "fve_w5"} <= set(slow) and "fve_w6" not in slow  # fmt: skip
    assert sum(v for k, v in slow.items() if k.startswith("fve_w")) <= slow["explained_fraction"] + 1e-9


def test_every_logged_number_has_words(straight):
    words = {m.name for m in (*recipe.METRICS, *monitors.metrics().values())} | {"update_norm"}
    logged = {k.split("_w")[0] if k.startswith("fve_w") else k.split("/")[0]
              for step in values(straight).values() for k in step}  # fmt: skip
    assert logged <= words and {"restricted_loss", "qk_norm", "attention_entropy", "effective_dimension"} <= logged
    declared = recipes.get("modular_addition")
    assert {m.name: m.continuous for m in declared.metrics if m.continuous} == {
        "train_accuracy": "train_loss", "test_accuracy": "test_loss"}  # fmt: skip


def test_monitors_say_nothing_of_other_models():
    from backend.contract import Observation

    own = ("modular_progress", "fourier_gini", "neuron_clusters")
    assert set(own) < set(recipe.MONITORS)
    assert monitors.measure(own, Observation(None, torch.zeros(2, 3, 5))) == {}


def test_presets_are_params_and_their_time_is_told():
    declared = recipes.get("modular_addition")
    took = {p.name: [declared.seconds(declared.params(**run)) for run in p.runs] for p in declared.presets}
    assert {"live", "paper", "control"} <= set(took) and took["live"][0] < 30 < took["paper"][0]


def test_the_checkpoints_open_as_models(tmp_path, straight):
    at = settings(tmp_path)
    at = at.model_copy(update={"runs": straight.parent, "dtype": "float32"})
    opened = open_model(parse_spec(f"run:{straight.name}", 36), at)
    assert opened.card.d_vocab == opened.card.d_vocab_out == 12 and "next_token" in opened.card.capabilities
    assert opened.card.fidelity["max_abs_log_prob"] < 1e-4


@pytest.mark.parametrize(("params", "words"), [
    ({"p": 57}, "p = 57 is no prime"), ({"p": 2}, "from 5 to 257"), ({"n_heads": 3}, "cannot be divided"),
    ({"p": 5, "train_fraction": 0.01}, "leaves no pair"), ({"dtype": "int8"}, "dtype"),
])  # fmt: skip
def test_params_that_cannot_be_are_refused_in_words(tmp_path, params, words):
    with pytest.raises(BadInput) as told:
        train("modular_addition", params, tmp_path / "r", False, go_on)
    assert words in str(told.value)


def test_every_prime_from_5_to_257_and_nothing_else_is_taken():
    sieve = set(range(5, 258))
    for k in range(2, 17):
        sieve -= set(range(2 * k, 258, k))
    taken = set()
    for p in range(4, 259):
        with contextlib.suppress(ValueError):
            taken.add(recipe.ModularAdditionParams(p=p).p)
    assert taken == sieve and len(sieve) == 53  # of the 55 primes up to 257 without 2 and 3


def test_checkpoints_lie_where_they_are_wanted():
    params = recipe.ModularAdditionParams(steps=800, n_checkpoints=7, keep_from=200, keep_to=600)
    assert recipe.checkpoint_steps(params) == {0, 10, 90, 200, 330, 470, 600, 800}
    plain = recipe.checkpoint_steps(recipe.ModularAdditionParams(steps=800, n_checkpoints=20))
    assert {0, 800} <= plain and all(step % 10 == 0 for step in plain) and len(plain) >= 20
    assert recipe.checkpoint_steps(recipe.ModularAdditionParams(steps=5, keep_from=3, keep_to=9)) >= {0, 5}


# ---------------------------------------------------------------- the shipped run


def test_the_shipped_run_groks():
    """Reference, section 2.4: train < .01 at 80, test accuracy > .5, .9, .99 at 280, 460, 540."""
    found = values(DEMO.path)

    def first(metric, above):
        return next(step for step, v in found.items() if metric in v and above(v[metric]))

    assert DEMO.info()["params"] == recipe.ModularAdditionParams(**zoo.ZOO["grokking-demo"][1]).model_dump()
    assert first("train_loss", lambda v: v < 0.01) <= 120
    assert 150 <= first("test_accuracy", lambda v: v > 0.5) <= 450
    assert 350 <= first("test_accuracy", lambda v: v > 0.9) <= 600 and found[800]["test_accuracy"] > 0.99
    assert first("restricted_loss", lambda v: v < 0.3) < first("test_loss", lambda v: v < 0.3)
    assert found[800]["explained_fraction"] > 0.8 > found[0]["explained_fraction"] + 0.7
    assert found[800]["gini_W_E"] > 5 * found[0]["gini_W_E"] and found[800]["neuron_clusters"] > 0.1
    assert set(DEMO.checkpoints()) == {0, 10, 90, 200, 330, 470, 600, 800} and DEMO.state() == "finished"


def test_the_shipped_weights_give_their_numbers():
    training = recipe.make_training(recipe.ModularAdditionParams(**DEMO.info()["params"]))
    training.model.load_state_dict(load_file(DEMO.checkpoint_path(330)))
    again = {**training.measure(), **monitors.measure(training.monitors, training.observe())}
    kept = {k: v for k, v in values(DEMO.path)[330].items() if k in again}
    assert {k: again[k] for k in kept} == pytest.approx(kept, abs=2e-4) and len(kept) > 30
