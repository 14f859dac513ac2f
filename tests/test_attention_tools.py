"""The attention tools through the facade, over checkpoints of the shipped run: what forms, and nothing before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import Backend
from backend.contract import Prompt, Weights
from backend.settings import Settings

RUN = "run:induction-demo"
PROMPT = Prompt(tokens=(5, 17, 3, 40, 5, 17, 3, 40))
PARAMS = {"head_importance": {"draws": 100}, "value_weighted": {"shuffles": 5}}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder: Path = tmp_path_factory.mktemp("attention-tools")
    made = Backend(Settings(cache=folder / "cache", runs=folder / "runs", device="cpu"), inline=True)
    made.wait(made.open(RUN)["job"]["id"], 180)
    yield made
    made.close()


def sweep(house: Backend, name: str):
    """Return (the sweep of the first and last checkpoint, the first's table, the last's)."""
    card, kind = house.open(RUN)["card"], house.analysis(name).subject.model_fields["kind"].default
    steps = (0, 1200)
    subject = {"pairs": lambda: house.pairs(card, "induction", 12), "weights": Weights, "prompt": lambda: PROMPT,
               "corpus": lambda: house.corpus(card, rows=12)}[kind]()
    asked = house.sweep(name, RUN, steps, subject, PARAMS.get(name))
    for job in filter(None, asked["job_id"]):
        ended = house.wait(job, 180)
        assert ended["state"] == "done", ended["error"]
    table = house.sweep_table(asked)
    assert table.columns[0] == "step" and table["step"].nunique() == 2
    return asked, table.set_index("step").loc[steps[0]], table.set_index("step").loc[steps[1]]


def test_habits_form_in_training(house):
    asked, before, after = sweep(house, "head_taxonomy")
    earned = {(r.layer, r.head, r.label) for r in after[after["earned"]].itertuples()}
    assert {(1, h, "induction") for h in range(4)} | {(0, 3, "previous-token"), (0, 2, "positional")} <= earned
    assert set(before.loc[before["earned"], "label"]) <= {"uniform"}
    assert after["stability"].iloc[0] > 0.8
    for name in ("overview", "earned"):  # from the store, where an offset that is none is NULL
        assert house.figure(asked["key"].iloc[1], name).data


def test_attention_narrows_in_training(house):
    _, before, after = sweep(house, "attention_statistics")
    assert before["normalised_entropy"].min() > 0.95
    last = after.set_index(["layer", "head"]).loc[(0, 3)]
    assert last["normalised_entropy"] < 0.2 and last["best_offset"] == 1 and last["offset_mass_z"] > 50


def test_the_cheap_estimate_misses_the_head_that_matters_most(house):
    _, before, after = sweep(house, "head_importance")
    assert before["effect"].abs().max() < 0.5
    after = after.set_index(["layer", "head"])
    assert after["effect"].idxmax() == (0, 3) and after.loc[(0, 3), "effect_low"] > 2
    assert after.loc[(0, 3), "gradient"] < 0.5 * after.loc[(0, 3), "effect"]


def test_flow_leaves_the_uniform_yardstick(house):
    asked, before, after = sweep(house, "attention_flow")
    gap = [(t["effective_keys"] - t["effective_keys_uniform"]).abs().mean() for t in (before, after)]
    assert gap[0] < 0.2 < gap[1]
    figure = house.figure(asked["key"].iloc[1], "tokens", {"layer": 1})
    assert figure.layout.title.text == "after layer 1"


def test_what_is_moved_differs_from_what_is_looked_at(house):
    asked, before, after = sweep(house, "value_weighted")
    assert (after["difference"].mean() > 0) and after["output_norm"].mean() > before["output_norm"].mean()
    figure = house.figure(asked["key"].iloc[1], "head", {"layer": 1, "head": 3})
    assert len(figure.data) == 2 and figure.layout.coloraxis.cmax == 1
