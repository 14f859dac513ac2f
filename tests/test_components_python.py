"""The Python side of the components, forms and words: what is sent, what is believed of what comes back."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import pytest
from pydantic import Field
from streamlit.testing.v1 import AppTest

from app import fields, static_files, theme, widgets
from app.components import circuitsvis, frame, heads, pattern, token_strip
from backend.contract import Params
from tests.browser import ROOT


class Knobs(Params):
    k: int = Field(5, ge=1, le=20, title="Top tokens", description="how many")
    steps: int = Field(2000, gt=0, le=1_000_000)
    rate: float = Field(1e-3, gt=0, le=1)
    deep: bool = True
    scale: Literal["log", "linear"] = "log"
    target: int | None = Field(None, ge=0, le=50_256)
    word: str = Field("mean", max_length=12)
    layers: tuple[int, ...] = (0, 1)


# ---------------------------------------------------------------- what is sent


def test_the_envelope_is_read_back_and_the_payload_is_aligned():
    for word in ("", "a", "⏎·é"):
        sent = frame.envelope({"word": word}, b"\x01\x02")
        n = struct.unpack("<I", sent[:4])[0]
        assert json.loads(sent[4:4 + n]) == {"word": word}
        assert sent[4 + n:] == b"\x01\x02" and n % 4 == 0


@pytest.mark.parametrize("size,most", [(5, 32), (32, 32), (33, 32), (1024, 512), (1000, 512), (7, 3)])
def test_pooling_is_the_maximum_of_every_bin_and_no_cell_is_lost(size, most):
    block = np.random.default_rng(size).normal(size=(2, size, size))
    pooled, edge = frame.max_pool(block, most), frame.edges(size, most)
    assert pooled.shape == (2, min(size, most), min(size, most))
    assert edge[0] == 0 and edge[-1] == size and (np.diff(edge) >= 1).all()
    for i, j in {(0, 0), (len(edge) - 2, len(edge) - 2), (1, len(edge) // 2)}:
        bin_ = block[:, edge[i]:edge[i + 1], edge[j]:edge[j + 1]]
        assert np.array_equal(pooled[:, i, j], bin_.max((1, 2)))


def test_thumbnails_of_3072_heads_keep_within_the_budget():
    small = heads.fit(np.zeros((3072, 32, 32), np.uint8))
    assert 0.5 * heads.BUDGET < small.size <= heads.BUDGET
    assert heads.fit(np.zeros((144, 32, 32), np.uint8)).shape == (144, 32, 32)


def test_a_display_copy_and_its_values_are_the_same_float16():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert pattern.exact(values, (-2, 3)).dtype == np.dtype("<f2")
    assert np.allclose(pattern.exact(values, (-2, 3)).ravel(), np.linspace(-2, 3, 256), atol=2e-3)
    assert np.isfinite(pattern.exact(np.array([[1e9, -1e9]]), (0, 1))).all()


def test_white_space_is_made_visible():
    assert [frame.visible(t) for t in (" the", "\n", "a\tb", "", "x")] == ["·the", "⏎", "a⇥b", "∅", "x"]


# ---------------------------------------------------------------- what is believed


@pytest.mark.parametrize("value", [None, [1], [1, 2, 3], [12, 0], [0, 12], [-1, 0], [1.0, 2], [True, 0], "11",
                                   {"a": 1}])
def test_the_browser_cannot_choose_a_head_that_is_not_there(value):
    assert heads._head(value, 12, 12) is None
    assert heads._head([11, 0], 12, 12) == (11, 0)


@pytest.mark.parametrize("value", [None, {}, {"query": 1}, {"query": 4, "key": 0}, {"query": 0, "key": -1},
                                   {"query": True, "key": 0}, {"query": 0.0, "key": 0}, [0, 0]])
def test_the_browser_cannot_choose_a_cell_or_token_that_is_not_there(value):
    assert pattern._cell(value, (4, 4)) is None
    assert token_strip._position(value, 4) is None
    assert pattern._cell({"query": 3, "key": 0, "x": 1}, (4, 4)) == {"query": 3, "key": 0}
    assert token_strip._position(3, 4) == 3 and token_strip._position(4, 4) is None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 layers x 2 heads"):
        heads.head_grid(np.zeros((3, 4, 4), np.uint8), 2, 2, (0, 0))
    with pytest.raises(ValueError, match="key tokens"):
        pattern.pattern(np.zeros((3, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="limits"):
        pattern.pattern(np.zeros((1, 1)), ["a"], (1, 1))
    with pytest.raises(ValueError, match="2 values for 1 tokens"):
        token_strip.token_strip(["a"], [1, 2])
    with pytest.raises(ValueError, match="too slow above 48"):
        circuitsvis.attention_heads(["a"] * 49, np.zeros((1, 49, 49)), ["L0H0"])
    with pytest.raises(ValueError, match="no 'Nothing'"):
        circuitsvis.circuitsvis("Nothing", {}, "k")


# ---------------------------------------------------------------- files and imports


def test_publish_copies_once_and_mends_a_damaged_copy(tmp_path):
    script = static_files.publish(tmp_path / "static")
    before = script.stat()
    assert "CircuitsVis" in script.read_text(encoding="utf-8")
    assert static_files.publish(tmp_path / "static").stat().st_mtime_ns == before.st_mtime_ns
    script.write_text("half", encoding="utf-8")
    assert static_files.publish(tmp_path / "static").stat().st_size == before.st_size
    assert [p.name for p in script.parent.iterdir()] == [script.name]


def test_no_heavy_library_is_loaded_by_the_components(tmp_path):
    code = ("import sys; from app import theme, widgets, static_files; from app.components import circuitsvis, heads, "
            f"pattern, token_strip; static_files.publish(__import__('pathlib').Path({str(tmp_path)!r})); "
            "print({'torch', 'duckdb', 'dask', 'distributed', 'circuitsvis'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


# ---------------------------------------------------------------- URL


VALUES = {"k": 5, "rate": 1e-3, "deep": True, "off": False, "target": None, "text": "a&b=c #%+ é\n", "number": "5",
          "yes": "true", "none": "null", "quoted": '"x"', "empty": "", "layers": [0, 3], "nan": "NaN", "big": 1e300,
          "minus": -3}


def test_a_link_gives_back_values_and_their_types():
    back = widgets.decode(widgets.encode(VALUES))
    assert back == VALUES
    assert {k: type(v) for k, v in back.items()} == {k: type(v) for k, v in VALUES.items()}
    assert widgets.encode(dict(reversed(VALUES.items()))) == widgets.encode(VALUES)
    assert widgets.encode({"k": 5, "way": "mean"}) == "k=5&way=mean"
    assert widgets.decode("?k=5&word=hello+there") == {"k": 5, "word": "hello there"}


def test_random_links_round_trip():
    rng = np.random.default_rng(0)
    alphabet = list('aZ09 "\\{}[]&=?#%+·\n-.eE_')
    for _ in range(500):
        values = {f"f{i}": "".join(rng.choice(alphabet, rng.integers(0, 8))) for i in range(3)}
        assert widgets.decode(widgets.encode(values)) == values


def test_a_link_holds_only_what_differs_and_a_bad_field_is_left_out():
    assert widgets.params_to_query(Knobs, Knobs().model_dump()) == ""
    assert widgets.params_to_query(Knobs, {**Knobs().model_dump(), "k": 7, "other": 1}) == "k=7"
    assert widgets.params_from_query(Knobs, "k=99&rate=0.1&word=x&unknown=2&deep=maybe") == {"rate": 0.1, "word": "x"}


# ---------------------------------------------------------------- forms


def form_app(values=None):
    import streamlit as st

    from app import widgets
    from tests.test_components_python import Knobs

    st.session_state["out"] = widgets.form(Knobs, "f", values)


def test_the_form_has_a_widget_for_each_field_and_returns_the_defaults():
    at = AppTest.from_function(form_app).run()
    assert not at.exception
    assert at.session_state["out"] == Knobs().model_dump()
    assert at.slider(key="f.k").label == "Top tokens" and at.slider(key="f.k").help == "how many"
    assert (at.slider(key="f.k").min, at.slider(key="f.k").max) == (1, 20)
    assert at.number_input(key="f.steps").min == 1, "gt=0 of whole numbers is from 1 on"
    assert at.selectbox(key="f.scale").options == ["log", "linear"]
    assert at.number_input(key="f.target").value is None


def test_the_form_returns_what_was_entered():
    at = AppTest.from_function(form_app, kwargs={"values": {"k": 3, "rate": 7.0}}).run()
    assert (at.session_state["out"]["k"], at.session_state["out"]["rate"]) == (3, 1.0), "moved into its range"
    at.toggle(key="f.deep").set_value(False)
    at.number_input(key="f.target").set_value(12)
    at.selectbox(key="f.scale").set_value("linear")
    at.text_input(key="f.layers").set_value("[2]").run()
    out = at.session_state["out"]
    assert (out["deep"], out["target"], out["scale"], out["layers"]) == (False, 12, "linear", (2,))


def test_a_value_that_does_not_fit_is_one_line_with_its_field():
    at = AppTest.from_function(form_app).run()
    at.number_input(key="f.rate").set_value(0.0).run()
    assert at.session_state["out"] is None
    assert [m.value for m in at.get("html") if "rate: Input should be greater than 0" in str(m.proto)] != []
    assert fields.resolve({"$ref": "#/$defs/X", "title": "T"}, {"X": {"enum": [1], "title": "X"}}) == {
        "enum": [1], "title": "T"}


def panel_app():
    import streamlit as st

    from app import widgets
    from backend.errors import NotFound

    widgets.error_panel(NotFound("Model <b>x</b>", "no such folder", "Check the path"), "line 1")
    st.session_state["pressed"] = widgets.empty_state("No runs", "They show here", "Start", "go")


def test_panels_say_asked_found_todo_and_escape_what_was_typed():
    at = AppTest.from_function(panel_app).run()
    text = " ".join(str(m.proto) for m in at.get("html"))
    assert "Model &lt;b&gt;x" in text and "No such folder." in text and "Check the path." in text
    assert at.expander[0].label == "Details" and at.code[0].value == "line 1"
    assert at.session_state["pressed"] is False
    at.button(key="go").click().run()
    assert at.session_state["pressed"] is True


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("x,text", [
    (0.031249, "0.0312"), (12.345, "12.3"), (4567, "4570"), (123456, "123\u2009000"), (1.234e-7, "1.23e−7"), (0, "0"),
    (-3.14159, "−3.14"), (999.6, "1000"), (0.9999, "1"), (1.5, "1.5"), (math.nan, "–"), (None, "–"), (math.inf, "∞"),
    (2e9, "2e9"), (100, "100"), (0.0001, "0.0001"), (True, "1"),
])
def test_numbers_have_three_significant_digits(x, text):
    assert theme.number(x) == text


@pytest.mark.parametrize("s,text", [
    (0.0124, "12 ms"), (0.9999, "1.0 s"), (1.34, "1.3 s"), (9.96, "10 s"), (48, "48 s"), (59.7, "1 min"),
    (240, "4 min"), (3599, "1 h"), (7500, "2 h 5 min"), (259200, "3 d"), (None, "–"),
])
def test_times_are_short(s, text):
    assert theme.seconds(s) == text


def test_counts_sizes_and_ages():
    counts = [theme.count(n) for n in (0, 9999, 10_000, -1_234_567)]
    assert counts == ["0", "9999", "10\u2009000", "−1\u2009234\u2009567"]
    assert [theme.bytes(n) for n in (812, 4_010_000, 999_999, 1.2e9)] == ["812 B", "4.01 MB", "1 MB", "1.2 GB"]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert theme.ago(now - timedelta(seconds=240), now) == "4 min ago"
    assert theme.ago((now - timedelta(seconds=40)).isoformat(), now) == "40 s ago"
    assert theme.ago(now.timestamp() - 1, now) == "just now"


def test_a_badge_escapes_its_text_and_knows_its_kinds():
    assert "&lt;script&gt;" in theme.badge("<script>", "good")
    with pytest.raises(ValueError):
        theme.badge("x", "loud")


@pytest.mark.parametrize("is_dark", [True, False])
def test_the_plotly_template_is_transparent_and_ours(is_dark):
    layout = theme.template(is_dark).layout
    assert layout.paper_bgcolor == "rgba(0,0,0,0)" and list(layout.colorway) == list(theme.CATEGORICAL)
    assert layout.font.color == theme.TEXT["dark" if is_dark else "light"]


def test_the_configuration_and_the_theme_agree_and_streamlit_knows_every_option():
    import tomllib

    from streamlit import config

    told = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    names = {f"{section}.{k}" for section, table in told.items() for k in _flat(table)}
    assert names - set(config.get_config_options()) == set()
    look = told["theme"]
    assert tuple(look["chartSequentialColors"]) == theme.SEQUENTIAL and len(look["chartDivergingColors"]) == 10
    assert tuple(look["chartDivergingColors"]) == theme.DIVERGING
    assert tuple(look["chartCategoricalColors"]) == theme.CATEGORICAL
    for mode in ("light", "dark"):
        assert look[mode]["primaryColor"] == theme.ACCENT[mode] and look[mode]["textColor"] == theme.TEXT[mode]
    common = (ROOT / "app" / "components" / "common.js").read_text(encoding="utf-8").upper()
    assert all(c[1:] in common for c in theme.SEQUENTIAL + theme.DIVERGING), "the browser draws other colours"


def _flat(table: dict, before: str = "") -> list[str]:
    return [n for k, v in table.items() for n in (_flat(v, f"{before}{k}.") if isinstance(v, dict) else [before + k])]


def test_text_can_be_read_on_its_background():
    """WCAG 2.1: contrast of at least 4.5 : 1 for text, accent on page included."""
    page = {"light": "#FFFFFF", "dark": "#11171B"}
    for mode in page:
        for colour in (theme.TEXT[mode], theme.MUTED[mode], theme.ACCENT[mode]):
            assert contrast(colour, page[mode]) >= 4.5, (mode, colour)


def contrast(a: str, b: str) -> float:
    def luminance(c: str) -> float:
        parts = [int(c[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


RESTARTS = """
import streamlit as st
from app import widgets
if st.session_state.pop("again", False):
    st.rerun()
if st.query_params.get("form"):
    with st.form("f"):
        hit = widgets.pressed(st.form_submit_button, "Go", "go")
else:
    hit = widgets.pressed(st.button, "Go", "go")
st.session_state["hits"] = st.session_state.get("hits", 0) + hit
st.session_state["again"] = True  # the next run starts anew before it comes to the button
"""


@pytest.mark.parametrize("form", ["", "1"])
def test_a_press_outlives_a_page_that_starts_anew_and_counts_once(form, monkeypatch):
    at = AppTest.from_string(RESTARTS, default_timeout=60)
    at.query_params["form"] = form
    at.run().button[0].click().run()
    assert at.session_state["hits"] == 1
    at.run()
    assert at.session_state["hits"] == 1
    monkeypatch.setattr(widgets, "PRESS_LASTS", -1.0)  # as if the visitor came back long after
    at.button[0].click().run()
    assert at.session_state["hits"] == 1
