"""The page Compare by AppTest: two checkpoints, two models, what cannot be put to both."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from app import house, views
from backend import Backend
from backend.settings import ROOT
from tests import tiny_models
from tests.test_intervene_page import said, settle


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    one = Backend(tiny_models.settings(tmp_path_factory.mktemp("compare"), dtype="float32"), inline=True)
    house.settle(one)
    one.follower.poll()
    yield one
    house.settle(None)
    one.close()


def visit(**query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=90)
    at.run()
    at.switch_page("../pages/compare.py")
    at.query_params.update(query)
    return settle(at.run())


def titles(at: AppTest) -> set[str]:
    specs = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    return {a["text"] for s in specs for a in s["layout"].get("annotations", [])}


def test_first_and_last_checkpoint_of_a_run_with_their_difference(backend: Backend) -> None:
    at = visit(model="run:induction-demo")
    assert {"step 1200", "step 0", "difference"} <= titles(at)


def test_two_models_of_one_vocabulary(backend: Backend) -> None:
    at = visit(model="run:induction-demo", step="1200", model_b="run:induction-1layer", step_b="800",
               compare="attention,head_scores")  # fmt: skip
    assert {"induction-demo (run) step 1200", "induction-1layer (run) step 800"} <= titles(at)
    assert len(next(s for s in at.selectbox if s.label == "Layer").options) == 1, "layers that both have"


def test_questions_about_tokens_are_left_out_where_vocabularies_differ(backend: Backend) -> None:
    at = visit(model="run:induction-demo", model_b="run:grokking-demo")
    offered = next(m for m in at.multiselect if m.label == "Compare in").options
    assert "Attention" not in offered and "Monitors" in offered


def test_the_same_twice_is_said(backend: Backend) -> None:
    assert "A and B are the same" in said(visit(model="run:induction-demo", step="1200", step_b="1200"))


def test_titles_name_what_differs() -> None:
    a, b = {"spec": "run:x", "step": 1}, {"spec": "dir:/models/y", "step": None}
    assert views.titles_of([a, a | {"step": 2}]) == ("step 1", "step 2")
    assert views.titles_of([a, b]) == ("x (run) step 1", "y (dir)")
