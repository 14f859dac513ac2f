"""The monitors of a checkpoint are the ones its training logged; errors and nulls mean what they say."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from backend import monitors as room
from backend.analyses.monitors import _place, heads, monitors, predictions, seen_of
from backend.contract import View, Weights, parse_spec
from backend.errors import BadInput
from backend.models.open import open_model
from backend.runs import recipes
from backend.runs.folder import RunFolder
from backend.runs.recipes import char_lm, induction, markov_icl
from backend.runs.train import train
from backend.settings import SHIPPED_RUNS, Settings
from tests.wired import config, wired_induction, wired_run

SMALL = {"steps": 12, "seed": 2, "log_every": 4, "monitor_every": 4, "n_checkpoints": 4, "batch_size": 4, "d_model": 16,
         "n_heads": 2, "n_ctx": 48, "device": "cpu"}  # fmt: skip
OF = {"induction": SMALL, "char_lm": {**SMALL, "n_layers": 2, "max_characters": 4000, "warm_up": 4},
      "markov_icl": {**SMALL, "n_states": 4}}  # fmt: skip


def quiet(fraction, words):
    """Say nothing."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Give the folder of a small run of a recipe, trained once."""

    @cache
    def made(name):
        folder = tmp_path_factory.mktemp(name) / "small"
        train(name, OF[name], folder, False, quiet)
        return folder

    return made


@pytest.fixture(scope="module")
def run(trained):
    return trained("induction")


def opened(folder, step):
    return open_model(parse_spec(f"run:{folder}", step), Settings(device="cpu"))


def held_out(name, params, model):
    """The rows that a recipe's monitors look at while it trains, the length of A, and these monitors."""
    if name == "induction":
        rows = induction.held_out_rows(params)[1]
        return rows, 24, (*induction.CHEAP, *induction.SLOW)
    if name == "char_lm":
        return char_lm.repeated_rows(params, model.card.d_vocab), 24, char_lm.MONITORS
    dice = torch.Generator().manual_seed(params.seed + markov_icl._EVAL)
    rows = markov_icl.draw(params, markov_icl.EVAL_ROWS, dice)[: markov_icl.SEEN_ROWS]
    return rows, 0, markov_icl.MONITORS


@pytest.mark.parametrize("step", [0, 12])
@pytest.mark.parametrize(("name", "least"), [("induction", 45), ("char_lm", 48), ("markov_icl", 29)])
def test_a_checkpoint_gives_what_was_logged_live(trained, name, least, step):
    """On the run's own held-out rows every monitor of the analysis is the number in metrics.jsonl."""
    folder = trained(name)
    rows = RunFolder(folder).read().rows
    live = {(r.metric, -1 if r.layer is None or r.layer != r.layer else r.layer,
             -1 if r.head is None or r.head != r.head else r.head): r.value
            for r in rows[rows.step == step].astype(object).where(rows.notna(), None).itertuples()}  # fmt: skip
    model = opened(folder, step)
    tokens, block, names = held_out(name, recipes.get(name).params(**OF[name]), model)
    offline = {_place(k): v for k, v in room.measure(names, seen_of(model, tokens, block)).items()}
    assert len(offline) >= least and offline.keys() <= live.keys()
    assert {k: live[k] for k in offline} == pytest.approx(offline, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["char_lm", "markov_icl"])
def test_what_monitors_see_is_what_the_hook_view_shows(trained, name):
    """Live and offline share one way of looking, so it is compared with another: transformer-lens' own points."""
    model = opened(trained(name), 12)
    tokens = torch.randint(model.card.d_vocab, (3, 20), generator=torch.Generator().manual_seed(0))
    seen, shown = seen_of(model, tokens, 0), model.capture(tokens, ["resid_post", "pattern"])
    last = model.card.n_layers - 1
    torch.testing.assert_close(seen.resid, shown[("resid_post", last)], rtol=0, atol=1e-6)
    for layer, pattern in enumerate(seen.patterns):
        torch.testing.assert_close(pattern, shown[("pattern", layer)], rtol=0, atol=1e-6)
    assert len(seen.patterns) == last + 1 == 2


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
