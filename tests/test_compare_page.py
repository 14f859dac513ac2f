"""The page Compare by AppTest: two checkpoints, two models, what cannot be put to both."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from app import views
from backend import Backend
from tests import page_kit
from tests.page_kit import said, settled_house


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with settled_house(tmp_path_factory.mktemp("compare")) as one:
        yield one


def visit(**query: str) -> AppTest:
    return page_kit.visit("compare", **query)


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
