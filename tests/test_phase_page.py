"""The Phase diagram page, pressed by AppTest: planted runs, no training but where the form starts one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from app import house, phase_path, phase_start
from backend import Backend
from backend.errors import BadInput
from backend.figures import phase
from backend.figures import phase_path as path_figure
from backend.runs import diagrams
from backend.runs.diagrams import Diagram
from backend.runs.recorder import Recorder
from backend.settings import Settings
from tests.test_facade_diagrams import planted

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("phases")
    planted(folder / "runs")
    one = Backend(Settings(cache=folder / "cache", runs=folder / "runs", device="cpu"), inline=True)
    one.follower.poll()
    house.settle(one)
    yield one
    house.settle(None)
    one.close()


def visit(**query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    at.run()
    at.switch_page("../pages/phase_diagram.py")
    at.query_params.update(query)
    at.run()
    assert not at.exception, [e.value for e in at.exception]
    assert not [h for h in at.get("html") if 'class="ps-problem"' in h.proto.body], "an error panel"
    return at


def charts(at: AppTest) -> str:
    return " ".join(json.dumps(json.loads(c.proto.spec), ensure_ascii=False) for c in at.get("plotly_chart"))


def number(at: AppTest, label: str) -> Any:
    return next(n for n in at.number_input if n.label == label)


def test_phases_stand_in_their_cells_and_thresholds_move_them(backend: Backend) -> None:
    at = visit(diagram="planted", late="500")
    drawn = charts(at)
    assert all(word in drawn for word in ("comprehension", "memorisation", "confusion")) and "seeds disagree" in drawn
    assert "grokking, test 800 ± 50 steps after train" in drawn  # logged every 50 steps: 750 to 850
    assert "grokking" in charts(visit(diagram="planted", late="100"))
    number(at, "Delay of grokking (steps)").set_value(100).run()
    assert "<b>grokking" in charts(at)
    assert backend.jobs() == []  # nothing was trained


def test_last_values_are_not_hatched_where_the_phases_of_seeds_disagree(backend: Backend) -> None:
    drawn = charts(visit(diagram="planted", late="500", shade="final"))
    assert "at the end: 0.5 (mean over seeds)" in drawn and "seeds disagree" not in drawn


def test_a_cell_of_the_link_shows_its_runs(backend: Backend) -> None:
    drawn = charts(visit(diagram="planted", cell="x1y0", late="500"))
    assert "seed 0, test accuracy" in drawn and "seed 1, train accuracy" in drawn and "threshold 0.9" in drawn
    assert "seed 0, test" not in charts(visit(diagram="planted", cell="x9y9"))


@pytest.mark.parametrize("query", [
    {"diagram": "nowhere"}, {"diagram": "planted", "cell": "nonsense", "reach": "-3", "late": "x", "shade": "pink"},
    {"tab": "paths"}, {"tab": "paths", "runs": "planted.x0y0s0", "across": "test_accuracy", "logs": "x,y"},
    {"tab": "new"}, {"tab": "new", "recipe": "induction"}, {"diagram": "planted", "shade": "final"},
    {"diagram": "planted", "shade": "phase", "train_metric": "test_accuracy", "test_metric": "train_accuracy"},
])  # fmt: skip
def test_every_view_opens_and_nonsense_in_the_link_is_forgiven(backend: Backend, query: dict[str, str]) -> None:
    visit(**query)


def test_the_form_says_how_many_runs_and_how_long_before_it_starts(backend: Backend) -> None:
    at = visit(tab="new", recipe="modular_addition")
    said = " ".join(c.value for c in at.caption)
    assert "24 runs" in said and "of one core" in said
    next(t for t in at.text_input if t.label == "Values of weight_decay").set_value("0, one").run()
    assert any("is no number" in h.proto.body for h in at.get("html")) and not at.exception
    assert backend.jobs() == []


def test_values_are_read_with_commas_or_spaces() -> None:
    assert phase_start.numbers("0.01, 1e-1 1;2", "lr") == [0.01, 0.1, 1, 2]
    with pytest.raises(BadInput, match="'x'"):
        phase_start.numbers("1, x", "lr")


def test_only_cells_whose_seeds_disagree_are_hatched(backend: Backend) -> None:
    cells = backend.diagram_cells(backend.diagram_outcomes("planted", delay=500)).assign(words="")
    more = {"x": [0.1, 0.2], "y": [0, 1], "x_title": "lr", "y_title": "wd"}
    drawn = phase.diagram(cells, shade="phase", **more)
    hatched = next(t for t in drawn.data if t.name == "seeds disagree")
    assert list(zip(hatched.x, hatched.base + 0.5, strict=True)) == [(1, pytest.approx(phase.GAP / 2))]
    tiles = next(t for t in drawn.data if t.name == "cells")
    assert list(tiles.marker.color) == [phase.COLOURS[p] for p in cells["phase"]]
    calm = phase.diagram(cells.assign(agree=True), shade="phase", **more)
    assert "seeds disagree" not in [t.name for t in calm.data]


MORE: dict[str, Any] = {"x": [0.1, 0.2], "y": [0, 1], "x_title": "lr", "y_title": "wd"}


def cells_of(backend: Backend, **changed: Any) -> pd.DataFrame:
    return backend.diagram_cells(backend.diagram_outcomes("planted", delay=500)).assign(words="", **changed)


def trace(figure: Any, name: str) -> Any:
    return next(t for t in figure.data if t.name == name)


def test_a_cell_whose_seeds_disagree_says_both_and_no_delay(backend: Backend) -> None:
    drawn = phase.diagram(cells_of(backend), shade="delay", **MORE)
    words = [w for t in drawn.data if t.name == "words" for w in t.text]
    assert "<b>1 of 2 memor.<br>1 of 2 grok</b>" in words and "<b>comprehension<br>100</b>" in words
    assert drawn.layout.clickmode == "event"  # a selection would fade what is not in it
    said = " ".join(h.proto.body for h in visit(diagram="planted", late="500").get("html"))
    assert "gradient" in said and "seeds disagree" in said  # the hatch has its swatch


def test_provisional_cells_are_lighter_and_say_so_far(backend: Backend) -> None:
    drawn = phase.diagram(cells_of(backend, provisional=[True, False, False, False]), shade="phase", **MORE)
    first, second = trace(drawn, "cells").marker.color[:2]
    assert first.endswith(f"{phase.LIGHTER})") and first.startswith("rgba(0,158,115") and second[0] == "#"
    assert [w for t in drawn.data if t.name == "words" for w in t.text if "so far" in w] == [
        "<b>comprehension<br>so far<br>100</b>"]  # fmt: skip


def test_the_chosen_cell_is_outlined_and_one_delay_is_shown_against_zero(backend: Backend) -> None:
    drawn = phase.diagram(cells_of(backend), shade="delay", chosen=(1, 0), **MORE)
    ring = drawn.layout.shapes[0]
    assert ring.x0 < 1 < ring.x1 and ring.y0 < 0 < ring.y1 and ring.x1 - ring.x0 < 1
    bar = next(t.marker for t in drawn.data if t.marker.showscale)
    assert (bar.cmin, bar.cmax) == (0, 100)
    assert not phase.diagram(cells_of(backend), shade="delay", **MORE).layout.shapes


@pytest.mark.parametrize("recipe", ["modular_addition", "linear_control", "induction"])
def test_a_diagram_opens_before_anything_is_logged_and_heals_when_it_is(
    backend: Backend, recipe: str, request: pytest.FixtureRequest
) -> None:
    folder = backend.settings.runs
    made = Diagram(name=f"early-{recipe}", recipe=recipe, x="lr", xs=(0.1, 0.2), y="weight_decay", ys=(0,), seeds=(0,))
    diagrams.write(folder, made)
    request.addfinalizer(lambda: (folder / f"{made.name}.diagram.json").unlink())
    for query in ({}, {"shade": "final"}, {"shade": "phase"}):
        at = visit(diagram=made.name, **query)
        assert len(at.get("plotly_chart")) == 1  # the cells, empty
    captions = " ".join(c.value for c in at.caption)
    assert ("logs no accuracy" in captions) == (recipe == "linear_control")
    with Recorder(folder / made.members()[0].run, recipe=recipe, params={}) as run:
        run.log(0, {"train_accuracy": 1.0, "test_accuracy": 1.0, "loss": 0.5})
    backend.follower.poll()
    at.query_params.clear()
    at = visit(diagram=made.name)
    assert "comprehension" in charts(at) and "logs no accuracy" not in " ".join(c.value for c in at.caption)


def test_two_metrics_open_on_the_shipped_grokking_run_with_a_pair_that_has_many_steps(backend: Backend) -> None:
    at = visit(tab="paths")
    assert {s.label: s.value for s in at.selectbox} == {"Across": "weight_norm_W_E", "Up": "test_accuracy"}
    assert at.multiselect[0].value == ["grokking-demo"]
    every, rare = (pd.DataFrame({"step": np.arange(0, 100, k), "value": 0.0}) for k in (1, 50))
    logged = {"a": {"loss": every, "weight_norm": rare, "accuracy": every, "other": every}}
    assert phase_path.proposed(logged, None, None) == ("loss", "accuracy")
    assert phase_path.proposed(logged, "weight_norm", None) == ("weight_norm", "accuracy")  # what is given stays
    assert phase_path.proposed({"a": {"x": rare}}, None, None) == ("x", "x")


def test_start_and_end_of_a_path_that_lie_together_can_both_be_read() -> None:
    frame = pd.DataFrame({"step": [0, 1, 2], "x": [0.0, 1.0, 0.0], "y": [0.0, 1.0, 0.0]})
    drawn = path_figure.path({"r": frame}, x_title="x", y_title="y")
    assert {t.text[0]: t.textposition for t in drawn.data if t.text} == {"start": "top center", "end": "bottom center"}


def test_the_budget_of_a_diagram_over_steps_is_its_longest_run(backend: Backend) -> None:
    from app import phase_view

    for name, x, params in (("over-steps", "steps", {}), ("of-70", "n_checkpoints", {"steps": 70})):
        made = Diagram(name=name, recipe="linear_control", x=x, xs=(500, 5000), y="lr", ys=(0.1,), seeds=(0,),
                       params=params)  # fmt: skip
        diagrams.write(backend.settings.runs, made)
    assert phase_view._steps(backend, "over-steps") == 5000 and phase_view._steps(backend, "of-70") == 70


def test_ten_runs_in_the_address_are_eight_paths(backend: Backend) -> None:
    names = [r["name"] for r in backend.runs()][:10]
    assert len(names) == 10
    visit(tab="paths", runs=",".join(names))
