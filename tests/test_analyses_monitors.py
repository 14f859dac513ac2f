"""The monitors of a checkpoint are the ones its training logged; errors and nulls mean what they say."""

import math

import numpy as np
import pytest
import torch

from backend import monitors as room
from backend.analyses.monitors import _place, heads, monitors, predictions, seen_of
from backend.contract import View, Weights, parse_spec
from backend.errors import BadInput
from backend.models.open import open_model
from backend.runs.folder import RunFolder
from backend.runs.recipes import induction
from backend.runs.train import train
from backend.settings import SHIPPED_RUNS, Settings
from tests.wired import config, wired_induction, wired_run

SMALL = {"steps": 12, "seed": 2, "log_every": 4, "monitor_every": 4, "n_checkpoints": 4, "batch_size": 4, "d_model": 16,
         "n_heads": 2, "n_ctx": 48, "device": "cpu"}  # fmt: skip


def quiet(fraction, words):
    """Say nothing."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    train("induction", SMALL, folder, False, quiet)
    return folder


def opened(folder, step):
    return open_model(parse_spec(f"run:{folder}", step), Settings(device="cpu"))


@pytest.mark.parametrize("step", [0, 12])
def test_a_checkpoint_gives_what_was_logged_live(run, step):
    """On the run's own held-out rows every monitor of the analysis is the number in metrics.jsonl."""
    rows = RunFolder(run).read().rows
    live = {(r.metric, -1 if r.layer is None or r.layer != r.layer else r.layer,
             -1 if r.head is None or r.head != r.head else r.head): r.value
            for r in rows[rows.step == step].astype(object).where(rows.notna(), None).itertuples()}  # fmt: skip
    _, doubled = induction.held_out_rows(induction.InductionParams(**SMALL))
    seen = seen_of(opened(run, step), doubled, 24)
    offline = {_place(k): v for k, v in room.measure((*induction.CHEAP, *induction.SLOW), seen).items()}
    assert len(offline) > 40 and offline.keys() <= live.keys()
    assert {k: live[k] for k in offline} == pytest.approx(offline, rel=1e-5, abs=1e-6)


def test_a_checkpoint_says_its_training(run):
    card = opened(run, 12).card
    assert card.training["recipe"] == "induction" and card.training["params"]["seed"] == 2


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    return wired_run(tmp_path_factory.mktemp("wired") / "w", wired_induction(120), config(120))


def table_of(model, **more):
    return monitors.compute(model, Weights(), monitors.params(**more), quiet)


def test_a_wired_circuit_beside_its_null(wired):
    table = table_of(wired, block_length=8, rows=12).set_index(["metric", "layer", "head"])
    head = table.loc[("induction_score", 1, 0)]
    assert head["value"] > 0.85 and head["null"] < 0.3 and head["value"] > head["null"] + 5 * head["se"]
    copy = table.loc[("second_copy_accuracy", -1, -1)]
    assert copy["null"] < 0.2 and copy["value"] > 0.85
    assert table.loc[("copying_score", 1, 0), "value"] == pytest.approx(1)
    assert abs(table.loc[("copying_score", 1, 0), "null"]) < 0.5
    assert math.isnan(table.loc[("ov_norm", 1, 0), "se"]) and math.isnan(table.loc[("ov_norm", 1, 0), "null"])


def test_the_error_of_a_mean_is_its_standard_error(run):
    model = opened(run, 12)
    table = table_of(model, block_length=16, rows=7, seed=3).set_index("metric")
    dice = torch.Generator().manual_seed(3)
    block = torch.randint(64, (7, 16), generator=dice)
    losses = [room.measure(["right_answers"], seen_of(model, row.repeat(2)[None], 16))["loss"] for row in block]
    assert table.loc["loss", "value"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert table.loc["loss", "se"] == pytest.approx(np.std(losses, ddof=1) / math.sqrt(7), rel=1e-3)


def test_same_seed_same_numbers_and_figures_draw(run):
    model = opened(run, 12)
    one, two = (table_of(model, rows=3) for _ in range(2))
    assert one.equals(two)
    view = View(params={}, chosen={})
    assert heads(one, view).data and predictions(one, view).data
    assert heads(one, View(chosen={"metric": "ov_norm"})).data
    with pytest.raises(BadInput, match="no monitor of heads"):
        heads(one, View(chosen={"metric": "loss"}))


def test_a_model_of_modular_addition_is_judged_by_the_sum():
    """The shipped run: weights as logged live to the bit of a float32, answers right at the end, by chance before."""
    shipped = RunFolder(SHIPPED_RUNS / "grokking-demo")
    last = max(shipped.checkpoints())
    rows = shipped.read().rows
    model = open_model(parse_spec("run:grokking-demo", last), Settings(device="cpu"))
    table = table_of(model, rows=64).set_index(["metric", "layer", "head"])
    live = rows[(rows.step == last) & rows.metric.str.startswith(("weight_norm", "qk_norm", "ov_norm"))]
    assert len(live) > 8
    for r in live.astype(object).where(rows.notna(), None).itertuples():
        place = (r.metric, *(-1 if x is None else int(x) for x in (r.layer, r.head)))
        assert table.loc[place, "value"] == pytest.approx(r.value, rel=1e-5), place
    assert table.loc[("accuracy", -1, -1), "value"] > 0.98 and table.loc[("accuracy", -1, -1), "null"] < 0.2
    assert "second_copy_accuracy" not in table.index.get_level_values(0)
    first = open_model(parse_spec("run:grokking-demo", 0), Settings(device="cpu"))
    assert table_of(first, rows=64).set_index("metric").loc["accuracy", "value"] < 0.2
