"""The page Intervene by AppTest: build a list, see what it does, keep it, replay it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from backend import Backend
from tests import page_kit
from tests.page_kit import numbers, said, settle, settled_house


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with settled_house(tmp_path_factory.mktemp("intervene")) as one:
        yield one


def visit(**query: str) -> AppTest:
    return page_kit.visit("intervene", **{"model": "run:induction-demo", "n_pairs": "4", **query})


def test_an_empty_list_says_what_to_do_and_a_line_is_added(backend: Backend) -> None:
    at = visit()
    assert "Nothing is changed yet" in said(at) and "0 nats" in said(at)
    next(b for b in at.button if b.label == "Add").click()
    at.run()
    at = settle(at)
    assert [c.value for c in at.code][:1] == ["zero L0H0"] and "Nothing is changed yet" not in said(at)
    assert "Effect" in said(at) and "4 pairs" in said(at)


def test_the_same_list_over_all_checkpoints(backend: Backend) -> None:
    at = visit(edits="zero L1H0; zero L1H1")
    next(b for b in at.button if b.label.startswith("Compute at all 30")).click()
    at = settle(at.run())
    assert "30 of 30 checkpoints are computed." in said(at)
    drawn = {t["name"]: t for t in json.loads(at.get("plotly_chart")[-1].proto.spec)["data"]}
    kept = backend.results(analysis="intervention_effect")
    last = backend.table(kept.loc[kept["step"].idxmax(), "key"]).set_index("pair").loc[-1]
    for name in ("before", "after", "effect"):
        assert numbers(drawn[name]["y"])[-1] == pytest.approx(last[name])
    assert numbers(drawn["effect low"]["y"])[-1] == pytest.approx(last["effect_low"])
    assert numbers(drawn["effect size"]["y"])[-1] == pytest.approx(last["effect_size"])


def test_what_cannot_be_read_or_is_not_there_is_said(backend: Backend) -> None:
    """Once, and nothing is asked then: neither of the prompt nor of the pairs."""
    assert "no intervention" in said(visit(edits="nonsense"))
    for edits, words in (("zero L7H0", "no layer 7"), ("add L0.resid_pre 2 feature nobody 3", "nobody")):
        told = said(visit(edits=edits))
        assert words in told and told.count('role="alert"') == 1, edits
    told = said(visit(edits="zero L0H0; nonsense; zero L1Q2"))
    assert "nonsense" in told and "L1Q2" in told and "`" not in told, "every line that cannot be read is named"
    told = said(visit(edits="patch L1H0"))
    assert "the first pair is asked" in told and "How it goes on, greedily" in told and "Control (other heads" in told


def test_a_direction_of_two_prompts_and_of_two_tokens_is_built_from_words(backend: Backend) -> None:
    at = visit()
    next(s for s in at.selectbox if s.label == "What").set_value("add").run()
    for way, given, line in (("tokens", ("5", "#7"), "add L0.resid_pre 4 token 5 minus 7"),
                             ("prompts", ("3 4 5", "3 4"), "add L0.resid_pre 4 prompt 3,4,5 minus 3,4")):  # fmt: skip
        next(s for s in at.selectbox if s.label == "Direction").set_value(way).run()
        for name, text in zip("AB", given, strict=True):
            next(t for t in at.text_input if t.label.endswith(f" {name}")).set_value(text).run()
        next(b for b in at.button if b.label == "Add").click()
        at = settle(at.run())
        assert line in [c.value for c in at.code], said(at)
    next(t for t in at.text_input if t.label == "Prompt B").set_value("").run()
    next(b for b in at.button if b.label == "Add").click()
    assert "a field is empty" in said(at.run()).lower()


def test_a_list_is_kept_opened_and_dropped(backend: Backend) -> None:
    at = visit(edits="zero L1H2")
    next(t for t in at.text_input if t.label == "Name").set_value("two").run()
    next(b for b in at.button if b.label == "Keep this list").click()
    at = settle(at.run())
    assert backend.kept_interventions() == {"two": "zero L1H2"}
    next(b for b in at.button if b.key == "drop-list:two").click()
    at.run()
    assert backend.kept_interventions() == {} and not at.exception


def test_the_builder_offers_what_the_model_has(backend: Backend) -> None:
    from app.intervene_builder import places

    none, mlp = {"d_mlp": 0}, {"d_mlp": 8}
    told: dict[str, Any] = {op: (places(op, none), places(op, mlp)) for op in ("zero", "set", "add")}
    assert "neuron" not in told["zero"][0] and "neuron" in told["zero"][1] and "mlp_out" not in told["zero"][0]
    assert told["set"] == (["head"], ["neuron"]) and "head" not in told["add"][1]


def test_files_are_where_runs_are(backend: Backend) -> None:
    backend.keep_interventions("x", "zero L0H0")
    assert (Path(backend.settings.runs) / "interventions.json").is_file()
    backend.forget_interventions("x")
