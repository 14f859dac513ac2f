"""The URL codec: typed values go round, nonsense counts as absent, nothing raises."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest
import streamlit as st

from app import url

ODD = "aZ0 ,;:/@%+=&?#()[]{}'\"\\\n\t-_.~äß漢🙂\x00\u200b"


class Query(dict):
    """Streamlit's query parameters outside a session: text to text, as in the address bar."""

    def __setitem__(self, name: str, value: str) -> None:
        assert isinstance(value, str), f"{name} was written as {type(value).__name__}"
        super().__setitem__(name, value)


@pytest.fixture
def query(monkeypatch: pytest.MonkeyPatch) -> Query:
    made = Query()
    monkeypatch.setattr(st, "query_params", made)
    return made


def values(name: str, dice: random.Random) -> list[Any]:
    """Return many typed values that a page may write into a field."""
    field = url.FIELDS[name]
    if field.decode is url._int:
        return [0, 1, -1, 10**15, *(dice.randint(-(10**9), 10**9) for _ in range(50))]
    if field.decode is url._names:
        return [[word(dice) for _ in range(dice.randint(1, 4))] for _ in range(50)] + [["a,b", "c%2Cd", "100%"]]
    if field.decode is url._cell:
        return [f"x{x}y{y}" for x in (0, 3, 12) for y in (0, 7)]
    if field.decode is url._number:
        return [0.0, 0.5, 1.0, 1e-3, 400.0]
    if field.decode is str:
        return [word(dice) for _ in range(50)] + ["", "None", "0", "run:induction-demo", "hub:a/b@main"]
    return [o for o in OPTIONS[name] if field.decode(o) is not None]


OPTIONS = {"harder": ("yes", "no"), "family": url.FAMILIES,
    "colour": url.COLOURS, "axis": ("log", "linear"), "picture": ("heat map", "CircuitsVis"),
    "seeds": ("band", "lines"), "span": ("some", "all"),
    "shade": ("delay", "phase", "final"), "tab": ("phases", "paths", "new"),
    "point": ("resid_pre", "resid_mid", "resid_post"),
}


def word(dice: random.Random) -> str:
    return "".join(dice.choice(ODD + string.ascii_letters) for _ in range(dice.randint(1, 12)))


@pytest.mark.parametrize("name", sorted(url.FIELDS))
def test_every_value_of_every_field_goes_round(query: Query, name: str) -> None:
    tried = values(name, random.Random(name))
    assert tried
    for value in tried:
        url.put(**{name: value})
        found = url.get(name)
        assert found == value and type(found) is type(value)
    url.put(**{name: None})
    assert name not in query and url.get(name) == url.FIELDS[name].default


@pytest.mark.parametrize("name", sorted(url.FIELDS))
def test_nonsense_is_absent_and_never_raises(query: Query, name: str) -> None:
    dice = random.Random(1)
    for text in ["", "-", "--5", "5-", "1e3", "1.5", "²", "٣", "+3", " 3", "9" * 5000, "NaN", "null", "%", "%zz",
                 "\x00", *(word(dice) for _ in range(200))]:  # fmt: skip
        query[name] = text
        found = url.get(name)
        default = url.FIELDS[name].default
        if url.FIELDS[name].decode is url._int:
            assert found == default or isinstance(found, int), text
            assert found == default or text == str(found), text
        elif name in OPTIONS:
            assert found in (*OPTIONS[name], default)
        elif url.FIELDS[name].decode in (url._number, url._cell):
            assert found == default or url.FIELDS[name].encode(found) == text or float(text) == found, text
        else:
            assert isinstance(found, list if url.FIELDS[name].decode is url._names else str)


def test_a_default_leaves_the_url(query: Query) -> None:
    url.put(layer=3, head=1)
    assert query == {"layer": "3", "head": "1"}
    url.put(layer=0, head=None)
    assert query == {}


def test_a_link_carries_the_subject_with_changes(query: Query) -> None:
    url.put(model="run:toy", step=10, layer=2, key="abc", find="x")
    assert url.query(step=25, head=3) == {"model": "run:toy", "step": "25", "layer": "2", "head": "3"}
    assert url.query(layer=0) == {"model": "run:toy", "step": "10"}


def test_the_whole_subject_is_carried() -> None:
    assert set(url.CARRIED) == {"model", "step", "text", "tokens", "layer", "head", "edits", "task", "n_pairs",
                                "pairs_seed", "source", "n_rows", "row_length", "corpus_seed", "sae",
                                "feature", "energy", "energy_step", "n_problems", "problem_seed", "harder",
                                "problem_task", "level"}  # fmt: skip


def test_what_is_out_of_a_widget_s_limits_is_cut_and_the_address_says_so(query: Query) -> None:
    drawn: dict[str, Any] = {}

    def widget(label: str, key: str, **more: Any) -> Any:
        drawn[label] = st.session_state[key]
        return drawn[label]

    query.update(runs=",".join("abcdefghij"), reach="5", late="-7")
    url.bound(widget, "Runs", "runs", options=list("abcdefghij"), max_selections=8)
    url.bound(widget, "Reach", "reach", min_value=0.01, max_value=1.0)
    url.bound(widget, "Late", "late", min_value=0)
    assert drawn == {"Runs": list("abcdefgh"), "Reach": 1.0, "Late": 0}
    assert query["runs"] == "a,b,c,d,e,f,g,h" and query["reach"] == "1.0" and query["late"] == "0"
