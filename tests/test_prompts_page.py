"""The subject bar for pairs and corpora, and the Prompts page: state in the URL, own pairs, nothing typed is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import house, prompts_view, subject
from backend import Backend
from backend.contract import Pairs
from backend.errors import BadInput
from backend.models import sentences
from backend.models.tokens import tokenizer_from
from tests.models_support import run_folder
from tests.test_visit import check, visit
from tests.tiny_models import settings

MODEL = {"model": "run:induction-demo", "step": "1200"}
IOI = {"model": "run:ioi-demo", "step": "700"}
MARKED = 'class="ps-chip ps-differs"'
GOOD = "1 2 3 | 1 4 3 | 2 | 4"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("prompts")
    chars = run_folder(folder / "runs" / "chars", steps=(0,))
    record = json.loads((chars / "run.json").read_text())
    symbols = [chr(c) for c in (10, *range(32, 51))]
    (chars / "run.json").write_text(json.dumps({**record, "tokenizer": {"kind": "chars", "symbols": symbols}}))
    one = Backend(settings(folder, dtype="float32"), inline=True)
    house.settle(one)
    yield one
    house.settle(None)
    one.close()


def bar(kind: str, **query: str) -> AppTest:
    """A page of its own: the bar of an analysis of pairs or of a corpus, and the subject that it made."""
    source = f"""
import streamlit as st
from app import house, url
from app.subject import subject_bar
from backend.contract import Corpus, Pairs
made = subject_bar(house.backend(), {kind})
st.session_state["made"] = made.subject.model_dump(mode="json")
st.session_state["link"] = url.query()
"""
    at = AppTest.from_string(source, default_timeout=60)
    at.query_params.update(query)
    return at.run()


def said(at: AppTest) -> str:
    return " ".join(h.proto.body for h in at.get("html")) + " ".join(c.value for c in at.caption)


def link_of(at: AppTest) -> dict[str, str]:
    return {k: v if isinstance(v, str) else v[0] for k, v in at.session_state["link"].items()}


def button(at: AppTest, label: str) -> Any:
    return next(b for b in at.button if b.label == label)


# ---------------------------------------------------------------- the bar


def test_the_bar_makes_the_pairs_of_its_fields_and_a_link_makes_them_again(backend: Backend) -> None:
    at = bar("Pairs", **MODEL)
    check(at, "bar")
    n, seed = at.number_input(key="url:n_pairs"), at.number_input(key="url:pairs_seed")
    assert (at.selectbox(key="url:task").value, n.value, seed.value) == ("induction", 16, 0)
    assert len(at.session_state["made"]["pairs"]) == 16 and said(at).count(MARKED) == 2
    assert "16 pairs of 47 tokens" in said(at)
    n.set_value(5).run()
    at.number_input(key="url:pairs_seed").set_value(3).run()
    card = backend.card("run:induction-demo", 1200)
    assert card
    wanted = backend.pairs(card.model_dump(), "induction", 5, 3).model_dump(mode="json")
    assert at.session_state["made"] == wanted
    assert bar("Pairs", **link_of(at)).session_state["made"] == wanted


def test_a_run_of_sentences_opens_on_its_own_task(backend: Backend) -> None:
    at = bar("Pairs", **IOI)
    assert at.selectbox(key="url:task").value == "synthetic_ioi" and "BOS" in said(at)
    asked = bar("Pairs", **IOI, task="ioi")  # of the address, and not for this model
    assert asked.selectbox(key="url:task").value == "synthetic_ioi" and "made-up sentences" in said(asked)
    unknown = bar("Pairs", **IOI, task="own: nobody")
    assert "No pairs are known here as `own: nobody`" in said(unknown)


@pytest.mark.parametrize("query", [{"n_pairs": "9999", "pairs_seed": "-4"}, {"n_pairs": "x", "task": ""}])
def test_nonsense_in_the_address_is_forgiven(backend: Backend, query: dict[str, str]) -> None:
    at = bar("Pairs", **MODEL, **query)
    check(at, str(query))
    assert 1 <= len(at.session_state["made"]["pairs"]) <= 512


def test_a_task_of_the_address_that_does_not_fit_is_said(backend: Backend) -> None:
    backend.wait(backend.open("run:grokking-demo", 800)["job"]["id"], 180)
    at = bar("Pairs", model="run:grokking-demo", step="800", task="induction")
    assert at.selectbox(key="url:task").value == "modular_addition"
    assert "not for this model, its context or vocabulary is below 8" in said(at)


def test_the_bar_of_a_corpus(backend: Backend) -> None:
    at = bar("Corpus", **MODEL)
    check(at, "corpus")
    assert at.session_state["made"] == {"kind": "corpus", "source": "training", "rows": 64, "length": 64, "seed": 0,
                                        "path": "", "digest": ""}  # fmt: skip
    at.selectbox(key="url:source").set_value("random").run()
    at.number_input(key="url:n_rows").set_value(7).run()
    at.number_input(key="url:row_length").set_value(9).run()
    at.number_input(key="url:corpus_seed").set_value(2).run()
    made = at.session_state["made"]
    assert (made["source"], made["rows"], made["length"], made["seed"]) == ("random", 7, 9, 2)
    assert bar("Corpus", **link_of(at)).session_state["made"] == made
    assert "python" not in at.selectbox(key="url:source").options  # no tokenizer, no text


def test_the_page_of_an_analysis_of_pairs_is_there_for_nothing(backend: Backend) -> None:
    source = """
import streamlit as st
from app import auto_page, house
from app.links import PAGES
new = auto_page.page(house.backend().analysis("pair_answers"))
st.navigation([new, *(st.Page(p) for p in PAGES.glob("*.py"))]).run()
"""
    at = AppTest.from_string(source, default_timeout=60)
    at.query_params.update({**MODEL, "n_pairs": "4"})
    at.run()
    check(at, "auto page")
    assert len(at.get("plotly_chart")) == 2


def test_a_first_visit_is_still_to_the_induction_run(backend: Backend) -> None:
    assert visit("prompts").selectbox[0].value == subject.FIRST_MODEL == "run:induction-demo"
    runs = {f"run:{r['name']}": r for r in backend.runs()}
    assert subject.default_model(runs, backend) == "run:induction-demo"


def test_the_prompt_of_a_run_of_sentences_is_a_sentence(backend: Backend) -> None:
    at = visit("attention", **IOI)
    check(at, "attention")
    text = at.text_input(key="url:text").value
    assert text.startswith("BOS ") and text.endswith(" to") and set(text.split()) <= set(sentences.SYMBOLS)


# ---------------------------------------------------------------- the page


def test_the_page_shows_tasks_pairs_and_answers(backend: Backend) -> None:
    at = visit("prompts", **IOI, n_pairs="30")
    check(at, "prompts")
    told = said(at)
    assert "Indirect object (IOI)" in told and "only the words of its own made-up sentences" in told
    assert told.count(MARKED) == 2 * 24 and "The first 24 of 30 pairs" in " ".join(m.value for m in at.markdown)
    assert "clean prompt answered rightly: 30 of 30" in told and len(at.get("plotly_chart")) == 2


def test_own_pairs_are_checked_kept_chosen_edited_and_deleted(backend: Backend) -> None:
    at = visit("prompts", **MODEL)
    at.text_area[0].set_value(GOOD).run()
    assert "1 pair fits this model" in said(at)
    at.text_input(key="own-pairs:name").set_value("mine").run()
    button(at, "Keep").click().run()
    check(at, "keep")
    assert at.selectbox(key="url:task").value == "own: mine" and "own: mine" in str(at.query_params["task"])
    assert backend.prompt_set("mine")["rows"] == prompts_view.read_lines(GOOD)
    shared = visit("prompts", **MODEL, task="own: mine")
    assert shared.selectbox(key="url:task").value == "own: mine" and said(shared).count(MARKED) == 2
    assert bar("Pairs", **MODEL, task="own: mine").session_state["made"]["pairs"][0]["answer"] == 2
    button(shared, "Edit").click().run()
    assert shared.text_area[0].value == GOOD
    button(shared, "Delete").click().run()
    check(shared, "delete")
    assert "own: mine" not in backend.tasks(backend.open("run:induction-demo", 1200)["card"])


BAD = [
    ("1 2 3 | 1 4 3 | 2", "has 3 parts between |, not 4"), ("1 2 | 1 4 3 | 2 | 4", "the corrupted one 3"),
    (GOOD + "\n1 2 3 | 1 4 3 | 4 | 4", "Pair 2"), ("a | b | c | d", "no number"), ("1 2 3 | 1 4 3 | 2 | 99", "0..63"),
    ("| | |", "no clean"), ("<b>x", "1 part"),
]  # fmt: skip


def test_bad_pairs_are_said_and_what_was_typed_stays(backend: Backend) -> None:
    at = visit("prompts", **MODEL, n_pairs="2")
    for typed, words in BAD:
        at.text_area[0].set_value(typed).run()
        check(at, typed)
        problems = [h.proto.body for h in at.get("html") if 'class="ps-problem"' in h.proto.body]
        assert problems and words in problems[0], problems
        assert at.text_area[0].value == typed and not [b for b in at.button if b.label == "Keep"]
    at.switch_page("../pages/glossary.py").run()
    at.switch_page("../pages/prompts.py").run()
    assert at.text_area[0].value == typed


def test_a_bad_or_taken_name_loses_nothing(backend: Backend) -> None:
    card = backend.open("run:induction-demo", 1200)["card"]
    rows = prompts_view.read_lines(GOOD)
    backend.keep_prompt_set(card, "taken", rows)
    at = visit("prompts", **MODEL)
    at.text_area[0].set_value("5 6 7 | 5 8 7 | 6 | 8").run()
    for name, words in (("../up", "not a plain name"), ("taken", "other pairs are kept"), ("", "it is empty")):
        at.text_input(key="own-pairs:name").set_value(name).run()
        button(at, "Keep").click().run()
        assert words in said(at).lower() and at.text_area[0].value.startswith("5 6 7")
        assert backend.prompt_set("taken")["rows"] == rows
    at.text_input(key="own-pairs:name").set_value("taken").run()
    at.checkbox(key="own-pairs:replace").check().run()
    button(at, "Keep").click().run()
    assert backend.prompt_set("taken")["rows"][0]["clean"] == "5 6 7"
    backend.delete_prompt_set("taken")


def test_the_form_starts_from_the_pairs_shown(backend: Backend) -> None:
    at = visit("prompts", **IOI, n_pairs="3")
    button(at, "Start from the pairs shown").click().run()
    check(at, "start")
    card = backend.open("run:ioi-demo", 700)["card"]
    made = backend.own_pairs(card, prompts_view.read_lines(at.text_area[0].value))
    assert made.pairs == backend.pairs(card, "synthetic_ioi", 3, 0).pairs and "3 pairs fit" in said(at)


# ---------------------------------------------------------------- what is typed


@pytest.mark.parametrize("tokenizer", [{"kind": "ids"}, {"kind": "chars", "symbols": list("\n abcdefgh")},
                                       {"kind": "words", "symbols": list("abcdefghij")}])  # fmt: skip
def test_lines_go_round(backend: Backend, tokenizer: dict[str, Any]) -> None:
    card = {"spec": "x", "n_ctx": 16, "d_vocab": 10, "d_vocab_out": 10, "tokenizer": tokenizer}
    pair = {"clean": (1, 2, 3, 0), "corrupted": (1, 4, 3, 0), "answer": 1, "distractor": 0}
    made = Pairs(pairs=(pair,)).pairs  # type: ignore[arg-type]
    lines = prompts_view.lines_of(tokenizer_from(tokenizer), made)
    assert backend.own_pairs(card, prompts_view.read_lines(lines)).pairs == made


def test_spaces_that_belong_to_a_word_are_written_as_dots() -> None:
    (row,) = prompts_view.read_lines("\n  Mary went to | John went to |·Mary | ·John \n")
    assert row == {"clean": "Mary went to", "corrupted": "John went to", "answer": " Mary", "distractor": " John"}
    with pytest.raises(BadInput, match="Line 3"):
        prompts_view.read_lines(f"{GOOD}\n\nx")
