"""What a tick brings from before a click does not undo the click; what the user asks for counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app import notes, stale, url


class Query(dict):
    """Streamlit's query parameters, as text; every write is `sent` to the browser."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[dict[str, str]] = []

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(name, value)
        self.sent.append(dict(self))

    def to_dict(self) -> dict[str, str]:
        return dict(self)

    def from_dict(self, values: dict[str, str]) -> None:
        self.clear()
        self.update(values)
        self.sent.append(dict(self))


class Session:
    """One browser: `arrives` begins a run with the address (and values of widgets) that it sent."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.context: Any = None
        patch.setattr(st, "session_state", {})
        patch.setattr(st, "query_params", Query())
        patch.setattr(stale, "get_script_run_ctx", lambda **_: self.context)
        self.inside = False  # a fragment is the widget
        patch.setattr(stale.ThreadState, "get", lambda: SimpleNamespace(in_fragment_callback=self.inside))
        patch.setattr(stale, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.now = 100.0

    def arrives(self, *, tick: bool = False, back: bool = False, page: str = "training", after: float = 0.1,
                **address: str) -> None:  # fmt: skip
        self.now += after
        self.context = SimpleNamespace(
            page_script_hash=page, is_history_navigation=back, fragment_ids_this_run=["f"] if tick else None
        )
        st.query_params.from_dict(address)

    def focus(self, sent: str | None = None) -> str:
        """Draw the picker of the focused run; `sent` is its value as it arrived, which Streamlit takes for a change."""
        kept: dict[str, Any] = {}

        def widget(label: str, key: str, on_change: Any, **more: Any) -> Any:
            kept["changed"] = on_change
            return st.session_state[key]

        if sent is not None and sent != st.session_state.get("url:focus"):
            st.session_state["url:focus"] = sent
            self.changed()
        shown = url.bound(widget, "Of which run", "focus", fallback="b", options=["a", "b"],
                          also=lambda _: {"marker": None})  # fmt: skip
        self.changed = kept["changed"]
        return str(shown)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """On run a; then a click on a marker of b wrote focus and marker."""
    made = Session(monkeypatch)
    made.arrives(focus="a")
    assert made.focus() == "a"
    url.put(focus="b", marker=213)
    assert made.focus() == "b"
    return made


def test_a_tick_from_before_the_click_undoes_nothing(session: Session) -> None:
    for after in (0.1, 15.0):
        session.arrives(tick=True, after=after, focus="a")
        assert session.focus(sent="a") == "b" and url.get("marker") == 213
    session.arrives(tick=True, focus="b", marker="213")  # the browser has caught up
    st.session_state["url:focus"] = "a"
    assert session.focus(sent="b") == "b" and url.get("marker") == 213


def test_it_is_put_back_whole_before_anything_else_is_written(session: Session) -> None:
    session.arrives(tick=True, focus="a")
    url.put(at=40)
    assert st.query_params.to_dict() == {"focus": "b", "marker": "213", "at": "40"}
    session.arrives(focus="a", after=1.0)  # waited together with a rerun of the whole page
    assert url.get("marker") == 213
    session.arrives(tick=True, focus="b", marker="213")  # one write behind
    assert url.get("at") == 40


def test_what_the_user_asks_for_counts(session: Session) -> None:
    session.arrives(focus="b", marker="213")
    assert session.focus(sent="a") == "a" and url.get("marker") is None  # picked by hand, soon after
    url.put(focus="b", marker=213)
    session.arrives(back=True, focus="a")
    assert url.get("focus") == "a" and url.get("marker") is None
    url.put(focus="b", marker=213)
    session.arrives(page="attention", focus="a")
    assert url.get("focus") == "a"
    session.arrives(focus="b", marker="213")
    url.put(focus="a", marker=None)
    session.arrives(focus="b", marker="213", after=stale.WHOLE + 1)  # a link, long after
    assert url.get("marker") == 213


def test_a_pick_inside_a_fragment_and_one_long_after_count(session: Session) -> None:
    session.inside = True
    session.arrives(tick=True, focus="b", marker="213")
    assert session.focus(sent="a") == "a"
    url.put(focus="b")
    session.focus()
    session.inside = False
    session.arrives(tick=True, after=stale.TICKING + 1, focus="b")
    assert session.focus(sent="a") == "a", "the line is not that slow"


def test_a_value_that_was_not_changed_was_not_displaced(session: Session) -> None:
    session.arrives(focus="b", marker="213")
    session.focus()  # drawn again with the same value: what it showed before is still a
    session.arrives(tick=True, focus="b", marker="213")
    assert session.focus(sent="a") == "b" and url.get("marker") == 213


def test_where_the_user_has_gone_is_where_they_are(session: Session) -> None:
    session.arrives(back=True, focus="a")
    assert url.get("focus") == "a"
    session.arrives(tick=True, focus="a")  # ticks go on there
    assert url.get("focus") == "a" and url.get("marker") is None


def test_what_is_put_back_to_an_earlier_state_stays_there(session: Session) -> None:
    url.put(focus="a", marker=None)
    session.arrives(tick=True, focus="a")
    assert url.get("focus") == "a" and url.get("marker") is None
    session.arrives(tick=True, focus="b", marker="213")
    assert url.get("focus") == "a" and url.get("marker") is None
    session.arrives(tick=True, after=stale.TICKING + 1, focus="b", marker="213")
    assert url.get("marker") == 213


def test_a_page_opened_by_a_link_gets_its_own_address_back(session: Session) -> None:
    """The old page wrote its address after the click: the browser shows the new page under it until told otherwise."""
    url.carry("training")
    session.arrives(page="attention", model="run:a", step="20")
    st.query_params.sent.clear()
    url.carry("attention")
    assert st.query_params.sent == [{"model": "run:a", "step": "20"}]
    url.carry("attention")
    assert len(st.query_params.sent) == 1, "said once, at arrival"
    session.arrives(page="lens", model="run:a", after=stale.TICKING + 1)
    st.query_params.sent.clear()
    url.carry("lens")
    assert not st.query_params.sent, "no page has written of late: the browser has it right"


def test_what_the_address_says_already_is_not_sent_again(session: Session) -> None:
    st.query_params.sent.clear()
    url.put(focus="b", marker=213, at=None)
    assert not st.query_params.sent
    url.put(at=7)
    assert st.query_params.sent == [{"focus": "b", "marker": "213", "at": "7"}]


def test_an_address_put_back_for_a_tick_counts_as_written(session: Session) -> None:
    url.carry("training")
    session.arrives(tick=True, after=stale.TICKING - 1, focus="a")
    assert url.get("focus") == "b"
    session.arrives(page="attention", model="run:a", after=2.0)
    st.query_params.sent.clear()
    url.carry("attention")
    assert {"model": "run:a"} in st.query_params.sent


def test_a_widget_of_the_page_that_was_left_writes_nothing(session: Session) -> None:
    session.arrives(page="attention", model="run:a")
    st.session_state["url:focus"] = "a"
    session.changed()
    assert st.query_params.to_dict() == {"model": "run:a"}


class Given(dict):
    """A session whose values that are given to widgets are counted, as Streamlit sends them."""

    keys_given: list[str] = []

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.keys_given.append(key)


def test_a_widget_that_the_browser_draws_anew_is_given_its_value(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another page, with other options, or never drawn, it shows nothing of the value that the session holds."""
    monkeypatch.setattr(st, "session_state", Given({"url:level": 1}))
    monkeypatch.setattr(stale, "in_browser", lambda key: key == "url:level")

    slider = lambda label, key, on_change, **_: None  # noqa: E731
    monkeypatch.setattr(st, "select_slider", slider)

    def given(page: str, *options: int, widget: Any = slider, **more: Any) -> bool:
        session.arrives(page=page, level="1")
        Given.keys_given = []
        url.bound(widget, "Level", "level", 0, options=list(options), **more)
        return "url:level" in Given.keys_given

    assert given("lens", 0, 1), "never drawn here"
    assert not given("lens", 0, 1), "it stands there"
    assert given("lens", 0, 1, 2) and given("lens", 0, 1, 2, format_func=lambda o: f"level {o}")
    assert given("lens", 0, 1, 2, help="words") and given("attention", 0, 1, 2, help="words")
    assert not given("attention", 0, 1, 2, help="words")
    monkeypatch.setattr(stale, "in_browser", lambda key: False)
    assert given("attention", 0, 1, 2, help="words"), "the browser never heard of it"
    other = lambda label, key, on_change, **_: None  # noqa: E731
    assert given("attention", 0, 1, widget=other) and given("attention", 0, 1, widget=other), "no slider: every time"


def test_what_was_said_of_an_address_is_dropped_with_its_page(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []
    monkeypatch.setattr(st, "container", lambda: SimpleNamespace(caption=captions.append))

    def said(page: str, text: str = "") -> list[str]:
        session.arrives(page=page)
        notes.here()
        url.carry(page)
        captions.clear()
        notes.keep("focus", "b", text)
        return list(captions)

    assert len(said("training", "run c is not offered")) == 1
    assert said("training") == [":material/info: run c is not offered"], "as long as it is shown"
    assert said("attention") == [] == said("training")


def test_a_widget_is_given_a_value_only_where_it_shows_another() -> None:
    """A value that is given replaces what stands in the browser: a press that is on its way would be undone."""
    source = """
import streamlit as st
from app import url
url.bound(st.select_slider, "Level", "level", 0, options=[0, 1, 2])
"""
    at = AppTest.from_string(source).run()
    assert at.select_slider[0].proto.set_value, "at first"
    at.select_slider[0].set_value(1).run()
    assert not at.select_slider[0].proto.set_value and at.query_params["level"] in ("1", ["1"])
    at.query_params["level"] = "2"  # as a link does
    at.run()
    assert at.select_slider[0].proto.set_value and at.select_slider[0].value == 2
