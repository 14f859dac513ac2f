"""An analysis over the checkpoints of a run: what is drawn is what is kept, at every page of an analysis."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app import house, over_checkpoints, picks, theme
from app.auto_page import unused
from app.subject import Bar
from backend import Backend
from backend.contract import Weights
from backend.figures.over_steps import SHOWN, by_change, effect_over_steps, over_steps, part_names
from tests.energy_kit import energy_run
from tests.page_kit import numbers, said, settle, settled_house

AXES = ["layer", "head", "query"]


@pytest.fixture
def table() -> pd.DataFrame:
    """Three checkpoints; L1H2 at query 0 moves most, though its mean is the smallest."""
    rows = [{"step": s, "layer": n, "head": h, "query": 0, "x": 10.0 + n + h, "x_low": 0.0, "x_high": 20.0}
            for s in (30, 10, 20) for n in (0, 1) for h in range(6)]  # fmt: skip
    made = pd.DataFrame(rows)
    here = (made["layer"] == 1) & (made["head"] == 2)
    made.loc[here, "x"] = made.loc[here, "step"] / 10 - 5
    return made


def test_the_part_that_moves_most_comes_first_and_its_curve_is_the_tables(table: pd.DataFrame) -> None:
    first = by_change(table, AXES, "x")[0]
    assert first == "L1H2 query 0"
    curve = over_steps(table, AXES, "x", parts=[first]).data
    line = next(t for t in curve if t.name == first)
    assert list(line.x) == [10, 20, 30] and np.allclose(line.y, [-4, -3, -2])
    assert {t.name for t in curve} == {first, f"{first} low", f"{first} high"}  # its interval
    assert len(over_steps(table.drop(columns=["x_low"]), AXES, "x").data) == SHOWN


def test_words_name_themselves() -> None:
    table = pd.DataFrame({"layer": [0, 1], "label": ["induction", "self"], "pos": [3, 4]})
    assert list(part_names(table, ["layer", "label", "pos"])) == ["L0 induction pos 3", "L1 self pos 4"]
    parts = pd.DataFrame({"component": ["head", "mlp"], "layer": [0, 1], "head": [3, -1], "pos": [5, 6]})
    assert list(part_names(parts, ["component", "layer", "head"])) == ["head L0H3", "mlp L1"]
    assert list(part_names(parts.assign(layer=[-1, 2]), ["layer", "pos"])) == ["embed pos 5", "L2 pos 6"]


def test_a_standard_error_is_a_band_and_a_table_without_axes_one_curve(table: pd.DataFrame) -> None:
    one = pd.DataFrame({"step": [1, 2], "x": [1.0, 2.0], "x_se": [0.25, 0.5]})
    low, high, line = over_steps(one, [], "x", step=2).data
    assert list(low.y) == [0.75, 1.5] and list(high.y) == [1.25, 2.5] and line.name == "x"


def test_an_effect_has_its_own_interval_and_steps_in_order() -> None:
    rows = pd.DataFrame({"step": [2, 1], "before": [5.0, 3.0], "after": [1.0, 2.0], "effect": [-4.0, -1.0],
                         "effect_low": [-6.0, -2.0], "effect_high": [-3.0, 0.5], "effect_size": [-2.0, -0.5],
                         "control": [np.nan, np.nan]})  # fmt: skip
    curves = {t.name: list(t.y) for t in effect_over_steps(rows, 2).data}
    assert curves["effect low"] == [-2.0, -6.0] and curves["effect high"] == [0.5, -3.0]
    assert curves["before"] == [3.0, 5.0] and curves["effect size"] == [-0.5, -2.0] and "control" not in curves
    assert "control" in {t.name for t in effect_over_steps(rows.assign(control=0.25)).data}


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with settled_house(tmp_path_factory.mktemp("over")) as one:
        yield one


def page(last: int = 3) -> AppTest:
    source = f"""
from app import house, over_checkpoints
from app.subject import begin
one = house.backend().analysis("head_scores")
bar = begin(house.backend(), one.name, "")
asked = over_checkpoints.Over(one.name, bar.spec, bar.checkpoints[-{last}:], bar.subject)
over_checkpoints.section(house.backend(), one, asked, bar.step)
"""
    at = AppTest.from_string(source, default_timeout=90)
    at.query_params.update({"model": "run:induction-1layer"})
    return settle(at.run())


def test_all_checkpoints_are_computed_when_asked_and_drawn(backend: Backend) -> None:
    at = page()
    assert not at.get("plotly_chart")
    next(b for b in at.button if b.label.startswith("Compute at all 3 checkpoints (3 missing, about ")).click()
    at = settle(at.run())
    assert not [b for b in at.button if b.label.startswith("Compute at all")] and " are computed" not in said(at)
    kept = backend.results(analysis="head_scores")
    assert set(kept["step"]) == set(backend.run("induction-1layer")["checkpoints"][-3:])
    (drawn,) = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    value = backend.analysis("head_scores").values[0].name
    last = backend.table(kept.loc[kept["step"].idxmax(), "key"]).set_index(["layer", "head"])[value]
    ends = {t["name"]: numbers(t["y"])[-1] for t in drawn["data"] if " " not in t["name"]}
    assert ends == pytest.approx({f"L{a}H{b}": v for (a, b), v in last.items()}) and len(ends) == 4


def test_only_its_own_jobs_count_as_under_way(backend: Backend) -> None:
    from app.over_checkpoints import Over, _keys, _waiting, mine

    over = Over("head_scores", "run:induction-1layer", [0], Weights())
    keys = list(_keys(house.backend(), over).values())
    assert len(keys) == 1 and _waiting(house.backend(), keys) == []
    jobs = [{"id": i, "key": key} for i, key in enumerate(["another's", keys[0], None])]
    assert [job["id"] for job in mine(jobs, keys)] == [1]


def test_what_is_missing_is_what_is_asked_and_not_kept(backend: Backend) -> None:
    """One more checkpoint than the page of three: it alone is missing where those are kept."""
    kept = {r["step"] for r in backend.results(analysis="head_scores").to_dict("records")}
    assert len(kept) == 3
    at = page(4)
    (button,) = [b for b in at.button if b.label.startswith("Compute at all")]
    assert button.label.startswith("Compute at all 4 checkpoints (1 missing, about "), "at its price"
    assert "3 of 4 checkpoints are computed" in said(at)


def test_the_price_is_that_of_all_that_is_missing(backend: Backend) -> None:
    last = backend.run("induction-1layer")["checkpoints"][-1]
    over = over_checkpoints.Over("head_scores", "run:induction-1layer", [last], Weights())
    backend.open(over.spec, last)
    for job in backend.jobs(states=["queued", "running"]):
        backend.wait(job["id"], 60)
    card = backend.card(over.spec, last)
    assert card is not None
    each = backend.estimate(over.analysis, card, over.subject, {})["seconds"]
    told = over_checkpoints._price(backend, over, 1000)
    assert told == f", about {theme.seconds(1000 * each)}" != f", about {theme.seconds(each)}"


def test_a_form_shows_what_its_search_reads(backend: Backend) -> None:
    one = backend.analysis("circuit_nodes")
    assert unused(one, {}) == ("threshold",) and unused(one, {"search": "greedy exact"}) == ("least",)
    assert unused(backend.analysis("ablation"), {"search": "greedy exact"}) == ()
    source = """
from app import auto_page, house
auto_page.form(house.backend().analysis("circuit_nodes"))
"""
    at = AppTest.from_string(source, default_timeout=60).run()
    labels = {w.label for w in (*at.number_input, *at.selectbox, *at.slider)}
    assert {"Least", "Held out", "Seed of the computation"} <= labels and "Threshold" not in labels
    next(s for s in at.selectbox if s.label == "Search").set_value("greedy exact").run()
    labels = {w.label for w in at.number_input}
    assert "Threshold" in labels and "Least" not in labels and not at.exception


def test_every_edit_of_a_form_is_taken_and_a_link_moves_it(backend: Backend) -> None:
    source = """
import streamlit as st
from app import auto_page, house
st.write(str(auto_page.form(house.backend().analysis("circuit_scrubbing"))["hypothesis"]))
"""
    at = AppTest.from_string(source, default_timeout=60).run()
    for text in ("L0H0 > logits", "L0H1 > logits", "L0H2 > logits", "L0H1 > logits"):
        at.text_area[0].set_value(text).run()
        assert at.markdown[0].value == at.text_area[0].value == text and not at.exception
    at.query_params["params"] = str(at.query_params["params"]).replace("L0H1", "L0H3")  # as the browser's Back does
    at.run()
    assert at.markdown[0].value == at.text_area[0].value == "L0H3 > logits"


def test_another_model_of_the_same_shape_is_picked_not_typed(backend: Backend) -> None:
    assert list(backend.siblings("run:ioi-demo"))[0] == "ioi-demo" and backend.siblings("hub:gpt2") == {}
    assert "grokking-demo" not in backend.siblings("run:induction-demo"), "another width"
    source = """
from app import auto_page, house, picks
from app.subject import Bar
bar = Bar("run:induction-demo", None, {}, None)
one = house.backend().analysis("mode_connectivity")
auto_page.form(one, choices=picks.siblings(house.backend(), one, bar))
"""
    at = AppTest.from_string(source, default_timeout=60).run()
    other, step = (next(s for s in at.selectbox if s.label == label) for label in ("Other run", "Its checkpoint"))
    assert other.options == ["this run"] and step.value == 0 and not at.exception
    assert step.options == [*(f"step {s}" for s in backend.run("induction-demo")["checkpoints"]), "the newest"]


def test_the_checkpoints_to_pick_from_are_those_of_the_run_that_was_picked(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a widget stands already, it has the last word: the address is a step behind it."""
    for name, steps in (("one", (0, 10)), ("twin", (0, 30))):
        energy_run(backend.settings.runs / name, width=5, steps=steps)
    backend.follower.poll()
    analysis = backend.analysis("energy_connectivity")
    pick = picks.siblings(backend, analysis, Bar("run:one", None, {}, Weights()))
    assert pick["other"]({}) == {"": "this run", "twin": "twin"}
    assert list(pick["other_step"]({})) == [0, 10, -1] and list(pick["other_step"]({"other": "twin"})) == [0, 30, -1]
    asked = {"other": "twin", "other_step": 10, "points": 3}
    assert picks.offered(analysis, asked, "form", pick) == {"other": "twin", "points": 3}
    monkeypatch.setattr(st, "session_state", {"form.other_step": 30})
    assert picks.offered(analysis, asked, "form", pick) == asked


def test_a_click_on_a_chart_is_told_once() -> None:
    source = """
import streamlit as st
from app.components.chart_clicks import chart_clicks
st.text(str(chart_clicks("curve")))
"""
    at = AppTest.from_string(source, default_timeout=60)
    at.session_state["clicked:curve"] = {"custom": [3, "a"], "x": 0.5}
    assert [at.run().text[0].value for _ in range(2)] == ["([3, 'a'], 0.5)", "None"] and not at.exception


def test_a_block_is_picked_and_a_wrong_one_is_said(backend: Backend) -> None:
    source = """
from app import auto_page, house, notes, picks
from app.subject import Bar
notes.here()
card = {"parameters": {"embed.weight": 8, "layers.0.q.weight": 4}}
for name in ("hessian_spectrum", "ntk"):
    one = house.backend().analysis(name)
    auto_page.form(one, True, choices=picks.of(house.backend(), one, Bar("run:x", None, card, None)))
"""
    at = AppTest.from_string(source, default_timeout=60)
    at.query_params["params"] = "hessian_spectrum.block=nowhere&ntk.block=weight"
    at.run()
    curved, kernel = (s for s in at.selectbox if s.label == "Block")
    assert not at.exception and curved.options == ["all", "layer 0", "embed.weight", "layers.0.q.weight"]
    assert curved.value == "all" and "block=nowhere, which is no setting here" in said(at)
    assert kernel.options == [*curved.options, "weight"] and kernel.value == "weight", "what names contain is free"
