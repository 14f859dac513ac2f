"""Every page opened, every button pressed, on a tiny model computed in this process (Streamlit's AppTest)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import house
from backend import Backend
from backend.contract import ModelCard, Weights
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
    told = [c.value for c in at.caption if "asks for layer 99" in c.value]
    assert len(told) == (page == "attention" and query.get("layer") == "99"), told


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
        backend.wait(job["id"], 180)
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


@pytest.fixture(scope="module")
def stepless(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A kept result of a model that is no run: its step is NULL."""
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    tiny_models.hugging_face("gpt2").save_pretrained(folder)
    opening = backend.open(f"dir:{folder}")
    backend.wait(opening["job"]["id"], 180)
    card = backend.open(f"dir:{folder}")["card"]
    answer = backend.ask("attention", card, backend.prompt(card, ids="1 2 3 1 2"))
    backend.wait(answer["job"]["id"], 180)
    return {"card": card, "key": answer["key"]}


@pytest.mark.parametrize("page", ["home", "results", "models"])
def test_results_with_and_without_a_step_stand_side_by_side(backend: Backend, stepless: dict, page: str) -> None:
    visit("attention", model="run:induction-demo", step="150")
    check(visit(page), page)
    check(visit("results", key=stepless["key"]), "open it")


def test_the_default_prompt_fits_a_small_context(backend: Backend) -> None:
    from app import subject

    class Small:
        """A house that reads 8 words at most; everything else is the real one."""

        tokenizer = staticmethod(backend.tokenizer)

        @staticmethod
        def prompt(card: Any, text: str) -> Any:
            return backend.prompt({**card, "d_vocab": 500}, text=text)

    symbols = sorted({c for text in subject.TEXTS.values() for c in text})
    card = {"tokenizer": {"kind": "chars", "symbols": symbols}, "n_ctx": 24, "d_vocab": len(symbols)}
    known = subject.presets(Small, card)
    assert list(known) == ["A few words"]


def opened(backend: Backend, step: int) -> ModelCard:
    """The card of a checkpoint of the shipped run, opened where it was not yet."""
    opening = backend.open("run:induction-demo", step)
    if opening["job"]:
        backend.wait(opening["job"]["id"], 180)
    card = backend.card("run:induction-demo", step)
    assert card is not None
    return card


def blocks(at: AppTest, name: str) -> list[bytes]:
    """The bytes that a component of ours was fed with."""
    found = [e.proto for e in at.get("bidi_component") if name in e.proto.component_name]
    return [p.bytes for p in found]


def test_the_large_map_is_the_chosen_head(backend: Backend) -> None:
    import numpy as np

    for layer, head in ((0, 1), (1, 3)):
        at = visit("attention", model="run:induction-demo", step="1200", layer=str(layer), head=str(head))
        card = opened(backend, 1200)
        key = backend.kept("attention", card, backend.prompt(card.model_dump(), ids=at.text_input[0].value))
        assert key
        block = backend.array(key, "pattern", {"layer": layer, "head": head})
        sent = blocks(at, "pattern")
        assert len(sent) == 1 and sent[0].endswith(np.ascontiguousarray(block, dtype="<f2").tobytes())


def test_the_next_and_previous_keys_move_by_one_checkpoint(backend: Backend) -> None:
    steps = backend.run("induction-demo")["checkpoints"]
    for key, moved in (("step-on", 1), ("step-back", -1)):
        at = visit("attention", model="run:induction-demo", step=str(steps[5]))
        next(b for b in at.button if b.key == key).click().run()
        assert at.select_slider[0].value == steps[5 + moved]


def test_the_score_table_says_each_heads_own_numbers(backend: Backend) -> None:
    at = visit("attention", model="run:induction-demo", step="1200")
    shown = at.dataframe[0].value.set_index("name")
    card = opened(backend, 1200)
    key = backend.kept("head_scores", card, Weights())
    assert key
    for row in backend.table(key).itertuples():
        mine = shown.loc[f"L{row.layer}H{row.head}"]
        assert mine["null"] == row.induction_null and mine["label"] == row.label
        assert mine["induction"].startswith(f"{row.induction_score:.2f} ")


def test_the_curve_through_training_is_the_chosen_heads(backend: Backend) -> None:
    import json

    card = opened(backend, 1200)
    for job in backend.sweep("head_scores", "run:induction-demo", [200, 1200], Weights())["job_id"]:
        if job:
            backend.wait(job, 180)
    at = visit("attention", model="run:induction-demo", step="1200", layer="1", head="2")
    figure = json.loads(at.get("plotly_chart")[0].proto.spec)
    line = next(d for d in figure["data"] if d["name"] == "induction")
    key = backend.kept("head_scores", card, Weights())
    table = backend.table(key or "").set_index(["layer", "head"])
    assert values(line["y"])[-1] == pytest.approx(table.loc[(1, 2), "induction_score"])


def values(data: Any) -> list[float]:
    """Numbers of a plotly trace, which may be packed."""
    import base64

    import numpy as np

    if isinstance(data, dict):
        return np.frombuffer(base64.b64decode(data["bdata"]), dtype=data["dtype"]).tolist()
    return list(data)
