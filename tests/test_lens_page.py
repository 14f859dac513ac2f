"""The Logit lens page: the stream and the followed tokens are chosen there; what a model lacks is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import house
from backend import Backend
from tests import page_kit, tiny_models
from tests.page_kit import numbers, settle
from tests.test_visit import check, visit

RUN = {"model": "run:induction-demo", "tokens": "5 17 3 5 17"}


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lens") / "neox"
    tiny_models.hugging_face("neox").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    one = Backend(tiny_models.settings(tmp_path_factory.mktemp("cache"), dtype="float32"), inline=True)
    house.settle(one)
    yield one
    house.settle(None)
    one.close()


def test_stream_target_and_distractor_are_of_the_address(backend: Backend) -> None:
    at = settle(visit("logit_lens", **RUN, point="resid_pre", target="3", distractor="9"))
    check(at, "lens")
    asked = [json.loads(text) for text in backend.results(analysis="logit_lens")["params"]]
    assert [(p["point"], p["target"], p["distractor"]) for p in asked] == [("resid_pre", 3, 9)]
    stream = next(s for s in at.selectbox if s.label == "Stream")
    stream.set_value("resid_post").run()
    check(at, "another stream")
    assert "point" not in at.query_params  # the default
    assert "of the model itself" in next(s for s in at.selectbox if s.label == "Top tokens").options


def test_a_token_that_is_none_is_said(backend: Backend) -> None:
    at = visit("logit_lens", **RUN)
    next(t for t in at.text_input if t.label == "Distractor token").set_value("#99").run()
    panels = [h.proto.body for h in at.get("html") if 'class="ps-problem"' in h.proto.body]
    assert panels and "Not an id from 0 to 63" in panels[0]
    assert not at.get("plotly_chart"), "no figure stands below as if it were the answer"


def test_a_lens_is_drawn_through_training_one_curve_per_layer_and_position(backend: Backend) -> None:
    at = page_kit.visit("logit_lens", model="run:induction-1layer", tokens="1 2 1", step="0")
    next(b for b in at.button if b.label.startswith("Compute at all")).click()
    at = settle(at.run())
    drawn = json.loads(at.get("plotly_chart")[-1].proto.spec)["data"]
    kept = backend.results(analysis="logit_lens")
    last = kept[(kept["spec"] == "run:induction-1layer") & (kept["step"] == 800)]["key"].iloc[0]
    table = backend.table(last).query("rank == 0").set_index(["layer", "pos"])["target_log_prob"]
    ends = {t["name"]: numbers(t["y"])[-1] for t in drawn}
    assert len(ends) == len(table) == 6
    names = {(n, p): f"L{n} pos {p}" if n >= 0 else f"embed pos {p}" for n, p in table.index}
    assert ends == pytest.approx({names[at]: v for at, v in table.items()})


def test_a_parallel_architecture_has_no_middle_and_says_why(backend: Backend, neox: Path) -> None:
    at = visit("logit_lens", model=f"dir:{neox}", tokens="1 2 3 1 2", point="resid_mid")
    check(at, "neox")
    stream = next(s for s in at.selectbox if s.label == "Stream")
    assert len(stream.options) == 2 and stream.value == "resid_post"
    assert any("attention and MLP read the same stream" in c.value for c in at.caption)
