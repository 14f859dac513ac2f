"""The Phase diagram page, pressed by AppTest: planted runs, no training but where the form starts one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import house, phase_start
from backend import Backend
from backend.errors import BadInput
from backend.figures import phase
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
    assert "grokking" in charts(visit(diagram="planted", late="100"))
    number(at, "Delay of grokking (steps)").set_value(100).run()
    assert "<b>grokking" in charts(at)
    assert backend.jobs() == []  # nothing was trained


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
