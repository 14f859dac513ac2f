"""Pairs and corpora in words: through the facade, sets kept by name, the worker, the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from backend import Backend, analyses
from backend.__main__ import main
from backend.contract import Axis, Corpus, Pairs, Params, Prompt, Request, Rows, Value, Weights, analysis
from backend.errors import BadInput, Broken, NotFound, PhasescopeError, Unfit
from backend.jobs import worker
from backend.models import sentences
from backend.runs import prompt_sets
from backend.settings import Settings
from tests.models_support import NATIVE, run_folder
from tests.test_cli import variables
from tests.test_facade import card_of, computed

ROW = {"clean": "1 2 3", "corrupted": "1 4 3", "answer": "2", "distractor": "4"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a tokenizer, one that reads characters, one of the recipe of sentences."""
    folder = tmp_path_factory.mktemp("words")
    run_folder(folder / "runs" / "toy", steps=(0, 10))
    chars = {"tokenizer": {"kind": "chars", "symbols": list("abcdefg \n")}}
    said = {"tokenizer": {"kind": "words", "symbols": list(sentences.SYMBOLS)}, "recipe": "synthetic_ioi", "params": {}}
    for name, sizes, more in (("chars", {}, chars), ("said", {"d_vocab": 70, "n_ctx": 17}, said)):
        made = run_folder(folder / "runs" / name, steps=(5,), config={**NATIVE, **sizes})
        (made / "run.json").write_text(json.dumps({**json.loads((made / "run.json").read_text()), **more}))
    return folder


@pytest.fixture(scope="module")
def house(place: Path) -> Iterator[Backend]:
    made = Backend(Settings(cache=place / "house", runs=place / "runs", device="cpu"), inline=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def toy(house: Backend) -> dict[str, Any]:
    return card_of(house, "run:toy", 10)


# ---------------------------------------------------------------- the facade


def test_subjects_are_made_of_words(house: Backend, toy: dict[str, Any]) -> None:
    assert house.subject(Prompt, toy, {"ids": "1 2"}) == Prompt(tokens=(1, 2))
    assert house.subject(Weights, toy, {}) == Weights()
    pairs = house.subject(Pairs, toy, {"task": "induction", "n": 4, "seed": 2})
    assert pairs == house.pairs(toy, "induction", 4, 2) and "seed 2" in pairs.text
    assert len(house.subject(Pairs, toy, {}).pairs) == 16
    assert house.subject(Pairs, toy, {"pairs": [ROW]}) == house.own_pairs(toy, [ROW])
    corpus = house.subject(Corpus, toy, {"rows": 3, "length": 9})
    assert corpus == Corpus(source="random", rows=3, length=9) == house.corpus(toy, rows=3, length=9)


def test_tasks_and_sources_say_what_fits(house: Backend, toy: dict[str, Any]) -> None:
    tasks = house.tasks(toy)
    assert [n for n, t in tasks.items() if not t["reason"]] == ["induction", "induction_previous"]
    assert all(t["title"] and t["help"] for t in tasks.values())
    assert [s for s, why in house.sources(toy).items() if not why] == ["random"]
    assert not any(house.sources(card_of(house, "run:chars", 5))[s] for s in ("python", "file", "random"))
    said = card_of(house, "run:said", 5)
    assert [s for s, why in house.sources(said).items() if not why] == ["training", "random"]
    assert house.corpus(said).source == "training"
    fit = [n for n, t in house.tasks(said).items() if not t["reason"]]
    assert fit == ["synthetic_ioi", "induction", "induction_previous"]
    assert "own made-up sentences" in house.tasks(said)["ioi"]["reason"]
    made = house.subject(Pairs, said, {})
    assert house.tokenizer(said).label(made.pairs[0].clean[-1]) == "to"


@pytest.mark.parametrize(("given", "error", "words"), [
    ({"task": "ioi"}, Unfit, "no tokenizer"), ({"task": "x"}, BadInput, "no such task"),
    ({"n": 0}, BadInput, "from 1 to 512"), ({"n": 513}, BadInput, "from 1 to 512"), ({"n": "4"}, BadInput, "n of the"),
    ({"seed": -1}, BadInput, "seed of"), ({"n": None}, BadInput, "n of"), ({"pairs": [{}]}, BadInput, "no clean"),
    ({"pairs": "x"}, BadInput, "no list of rows"), ({"task": 7}, BadInput, "no such task"),
])  # fmt: skip
def test_wrong_words_for_pairs(house: Backend, toy: dict[str, Any], given: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        house.subject(Pairs, toy, given)


@pytest.mark.parametrize(("given", "error", "words"), [
    ({"source": "python"}, Unfit, "no tokenizer"), ({"source": "moon"}, BadInput, "source"),
    ({"rows": 0}, BadInput, "rows is integer from 1"), ({"length": "x"}, BadInput, "length"),
    ({"size": 1}, BadInput, "Params are"), ({"source": "training"}, Unfit, "no run whose recipe"),
])  # fmt: skip
def test_wrong_words_for_a_corpus(house: Backend, toy: dict[str, Any], given: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        house.subject(Corpus, toy, given)


def test_a_file_is_known_by_what_it_holds(house: Backend, place: Path) -> None:
    chars = card_of(house, "run:chars", 5)
    for name, text in (("a.txt", "a bad cab " * 9), ("b.txt", "a bad cab " * 9), ("c.txt", "a dead bed " * 9)):
        (place / name).write_text(text)
    a, b, c = (house.corpus(chars, source="file", path=str(place / f"{n}.txt")) for n in "abc")
    assert a.identity() == b.identity() != c.identity() and len(a.digest) == 64
    with pytest.raises(BadInput, match="cannot be read"):
        house.corpus(chars, source="file", path=str(place / "none.txt"))


# ---------------------------------------------------------------- sets of the user's own


def test_a_set_is_kept_listed_asked_for_and_forgotten(house: Backend, toy: dict[str, Any]) -> None:
    assert house.keep_prompt_set(toy, "mine", [ROW, {**ROW, "clean": "5 2 3", "corrupted": "5 4 3"}]) == "own: mine"
    task = house.tasks(toy)["own: mine"]
    assert task == {"title": "own: mine", "help": "2 pairs of your own", "reason": ""}
    made = house.subject(Pairs, toy, {"task": "own: mine", "n": 1})
    assert len(made.pairs) == 2 and made.text == "own: mine, 2 pairs" and made.pairs[1].clean == (5, 2, 3)
    assert house.has(computed(house, "pair_answers", toy, made))
    with pytest.raises(BadInput, match="other pairs are kept"):
        house.keep_prompt_set(toy, "mine", [ROW])
    house.keep_prompt_set(toy, "mine", [ROW], replace=True)
    assert len(house.pairs(toy, "own: mine").pairs) == 1 and house.prompt_set("mine")["spec"] == "run:toy"
    said = house.tasks(card_of(house, "run:said", 5))["own: mine"]["reason"]
    assert "word '1'" in said  # another model cannot read it, and says why
    house.delete_prompt_set("mine")
    assert "own: mine" not in house.tasks(toy)
    with pytest.raises(NotFound, match="mine"):
        house.pairs(toy, "own: mine")
    with pytest.raises(NotFound):
        house.delete_prompt_set("mine")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 61, "a b", "ä", "a\n"])
def test_a_name_that_is_no_file_name_is_refused(house: Backend, toy: dict[str, Any], name: str) -> None:
    with pytest.raises(BadInput, match="Use letters"):
        house.keep_prompt_set(toy, name, [ROW])
    with pytest.raises(BadInput):
        house.pairs(toy, f"own: {name}")


def test_rows_that_do_not_fit_are_not_kept(house: Backend, toy: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="Pair 1"):
        house.keep_prompt_set(toy, "wrong", [{**ROW, "answer": "4"}])
    assert "own: wrong" not in house.tasks(toy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rows": []}', '{"rows": ["x"]}'])
def test_a_damaged_file_spoils_nothing_else(house: Backend, toy: dict[str, Any], text: str) -> None:
    folder = house.settings.runs / prompt_sets.FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "broken.json").write_text(text)
    assert house.tasks(toy)["own: broken"]["reason"] and not house.tasks(toy)["induction"]["reason"]
    with pytest.raises(Broken, match="Delete or mend"):
        house.pairs(toy, "own: broken")
    house.delete_prompt_set("broken")


# ---------------------------------------------------------------- the worker


def test_the_worker_hands_an_analysis_the_rows_of_its_corpus(
    house: Backend, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class None_(Params):
        """Nothing."""

    @analysis(version=1, title="Rows", asks="Which rows?", subject=Corpus, params=None_, axes=[Axis("row", "row")],
              values=[Value("first", "its first token", kind="int")])  # fmt: skip
    def rows(model: Any, subject: Rows, params: Any, progress: Any) -> Any:
        seen.append(subject)
        return pd.DataFrame({"row": range(len(subject.tokens)), "first": subject.tokens[:, 0]})

    monkeypatch.setattr(analyses, "registry", lambda: {rows.name: rows})  # as if it lay in the folder
    corpus = house.corpus(toy, rows=5, length=7, seed=3)
    request = Request(analysis=rows.name, version=1, spec=toy["spec"], step=10, fingerprint=toy["fingerprint"],
                      dtype=toy["dtype"], device=toy["device"], subject=corpus.model_dump(), params={})  # fmt: skip
    settings = house.settings.model_dump(mode="json")
    found = worker.execute("analysis", {"request": request.model_dump(mode="json")}, settings, lambda f, w="": None)
    (given,) = seen
    assert given.corpus == corpus and given.tokens.shape == (5, 7) and given.tokens.dtype == np.int64
    assert found.table.to_pandas()["first"].tolist() == given.tokens[:, 0].tolist()


# ---------------------------------------------------------------- the command line


@pytest.fixture
def shell(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(place).items():
        monkeypatch.setenv(name, value)


ASK = ["run", "pair_answers", "--model", "run:toy", "--step", "10"]


def told(capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    capsys.readouterr()
    code = main([*ASK, *more, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def test_flags_of_pairs(
    shell: None, capsys: pytest.CaptureFixture[str], place: Path, house: Backend, toy: dict
) -> None:
    first = told(capsys, "--task", "induction", "--n-pairs", "3", "--pairs-seed", "5")
    again = told(capsys, "--n-pairs", "3", "--pairs-seed", "5")
    assert first["rows"] == 9 and again["results"][0]["how"] == "cache hit"
    assert told(capsys, "--n-pairs", "3")["results"][0]["key"] != first["results"][0]["key"]
    (place / "pairs.json").write_text(json.dumps([ROW]))
    by_file = told(capsys, "--pairs", str(place / "pairs.json"))
    house.keep_prompt_set(toy, "kept", [ROW])
    by_name = told(capsys, "--task", "own: kept")
    assert by_file["rows"] == 2 and by_name["results"][0]["key"] == by_file["results"][0]["key"]
    house.delete_prompt_set("kept")


@pytest.mark.parametrize(("more", "words"), [
    (["--task", "ioi"], "no tokenizer"), (["--task", "x"], "no such task"), (["--task", "own: nobody"], "nobody"),
    (["--n-pairs", "many"], "not a whole number"), (["--n-pairs", "0"], "from 1 to 512"),
    (["--pairs", "none.json"], "no JSON file"), (["--pairs-seed", "-1"], "not a whole number"),
])  # fmt: skip
def test_wrong_flags_get_one_sentence(
    shell: None, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main([*ASK, *more]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_file_of_pairs_must_hold_rows(shell: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"clean": "1"}')
    assert main([*ASK, "--pairs", str(tmp_path / "p.json")]) == 2 and "no list of objects" in capsys.readouterr().err


def test_flags_of_a_corpus_become_its_fields() -> None:
    import argparse

    from backend import __main__ as shell_room

    parser = argparse.ArgumentParser()
    shell_room._subject_flags(parser, Corpus)

    def about(*flags: str) -> dict[str, Any]:
        return shell_room._about_of(parser.parse_args(list(flags)))

    assert about() == {"rows": 64, "length": 64, "seed": 0}
    assert about("--source", "python", "--n-rows", "3") == {"rows": 3, "length": 64, "seed": 0, "source": "python"}
    found = about("--file", "some.txt", "--row-length", "8", "--corpus-seed", "2")
    assert found["source"] == "file" and Path(found["path"]).is_absolute()
    assert (found["length"], found["seed"]) == (8, 2)
    with pytest.raises(PhasescopeError, match="--n-rows"):
        about("--n-rows", "x")
