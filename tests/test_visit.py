"""Every page opened, every button pressed, on a tiny model computed in this process (Streamlit's AppTest)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import house
from backend import Backend
from tests import tiny_models

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p.stem for p in (ROOT / "pages").glob("*.py"))


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A Backend of its own, with the shipped run, settled as the process' one."""
    one = Backend(tiny_models.settings(tmp_path_factory.mktemp("visit"), dtype="float32"), inline=True)
    house.settle(one)
    yield one
    house.settle(None)
    one.close()


def visit(page: str, **query: str) -> AppTest:
    """Open a page as a browser would, with the query of its URL."""
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    at.query_params.update(query)
    at.run()
    if page != "home":
        at.switch_page(f"../pages/{page}.py")
        at.query_params.update(query)
        at.run()
    return at


def check(at: AppTest, what: str) -> None:
    """Fail with the story where the page raised or showed an error panel of ours."""
    assert not at.exception, f"{what}: {[e.value for e in at.exception]}"
    broken = [h.proto.body for h in at.get("html") if "an error of ours" in h.proto.body.lower()]
    assert not broken, f"{what}: {broken}"


@pytest.mark.parametrize("page", PAGES)
def test_a_first_visit_shows_the_page(backend: Backend, page: str) -> None:
    at = visit(page)
    check(at, page)
    assert at.markdown, "the page says nothing"
    problems = [h.proto.body for h in at.get("html") if 'class="ps-problem"' in h.proto.body]
    assert not problems, problems


@pytest.mark.parametrize("page", PAGES)
def test_every_button_can_be_pressed(backend: Backend, page: str) -> None:
    labels = [(b.label, b.key) for b in visit(page).button]
    for label, key in labels:
        at = visit(page)
        found = [b for b in at.button if (b.label, b.key) == (label, key)]
        if found and not found[0].disabled:
            found[0].click().run()
            check(at, f"{page}: {label or key}")
    for job in backend.jobs(states=["queued", "running"]):
        backend.cancel(job["id"], force=True)


@pytest.mark.parametrize("query", [
    {"model": "run:induction-demo", "step": "200", "layer": "1", "head": "2"},
    {"model": "run:induction-demo", "step": "207"},
    {"model": "run:induction-demo", "step": "x", "layer": "99", "head": "-3", "query": "1000", "colour": "pink"},
    {"model": "run:induction-demo", "tokens": "5 17 3"},
])  # fmt: skip
@pytest.mark.parametrize("page", ["attention", "logit_lens"])
def test_a_link_opens_its_view_and_nonsense_is_forgiven(backend: Backend, page: str, query: dict[str, str]) -> None:
    at = visit(page, **query)
    check(at, f"{page} {query}")
    slider = at.select_slider[0].value
    steps, asked = backend.run("induction-demo")["checkpoints"], query.get("step", "")
    assert slider == (min(steps, key=lambda s: abs(s - int(asked))) if asked.isdigit() else steps[-1])


@pytest.mark.parametrize(("query", "words"), [
    ({"model": "run:nobody"}, "nobody"),
    ({"model": "dir:no/such/folder"}, "no/such/folder"),
    ({"model": "nonsense"}, "not a model specification"),
    ({"model": "run:induction-demo", "tokens": "64"}, "64"),
    ({"model": "run:induction-demo", "tokens": "a b"}, "a"),
    ({"model": "run:induction-demo", "tokens": "1 " * 65}, "too long"),
])  # fmt: skip
def test_bad_input_gets_a_sentence(backend: Backend, query: dict[str, str], words: str) -> None:
    at = visit("attention", **query)
    check(at, str(query))
    panels = [h.proto.body for h in at.get("html") if 'class="ps-problem"' in h.proto.body]
    assert panels and words in panels[0].lower(), panels


def test_a_scrubbed_step_is_computed_once_and_then_kept(backend: Backend) -> None:
    def jobs() -> int:
        return len([j for j in backend.jobs(limit=10_000) if j["kind"] == "analysis"])

    at = visit("attention", model="run:induction-demo", step="150")
    before = jobs()
    at.select_slider[0].set_value(180).run()
    check(at, "scrub")
    assert jobs() > before and _one(at.query_params["step"]) == "180"
    again = jobs()
    check(visit("attention", model="run:induction-demo", step="180"), "again")
    assert jobs() == again


def test_training_starts_from_the_form_and_its_run_is_shown(backend: Backend) -> None:
    at = visit("training")
    steps: Any = next(n for n in at.number_input if n.label == "steps")
    steps.set_value(30)
    next(b for b in at.button if b.label == "Start training").click().run()
    check(at, "start")
    run = _one(at.query_params["runs"])
    job = backend.job_of_run(run)
    if job:
        backend.wait(job["id"], 120)
    backend.follower.poll()
    assert backend.run(run)["state"] == "finished" and backend.run(run)["last_step"] == 30
    check(visit("training", runs=run), "finished")


def test_the_same_name_twice_is_refused_in_words(backend: Backend) -> None:
    at = visit("training")
    next(t for t in at.text_input if t.label == "Name").set_value("../escape")
    next(b for b in at.button if b.label == "Start training").click().run()
    check(at, "bad name")
    assert any('class="ps-problem"' in h.proto.body and "escape" in h.proto.body for h in at.get("html"))


def _one(value: Any) -> str:
    return value if isinstance(value, str) else value[0]
