"""The page Features of an SAE by AppTest: no autoencoder, the table, a card, another checkpoint's autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import house
from backend import Backend
from backend.contract import parse_spec
from backend.models.open import open_model
from backend.settings import ROOT
from tests import tiny_models
from tests.models_support import run_folder
from tests.page_kit import said, settle
from tests.sae_kit import sae_run

SMALL = {"n_rows": "6", "row_length": "12", "model": "run:toy"}


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    one = Backend(tiny_models.settings(tmp_path_factory.mktemp("features"), dtype="float32"), inline=True)
    run_folder(one.settings.runs / "toy", steps=(0, 10, 25))
    for step in (10, 25):
        model = open_model(parse_spec("run:toy", step), one.settings)
        sae_run(one.settings.runs / f"sae-{step}", model)
    house.settle(one)
    one.follower.poll()
    yield one
    house.settle(None)
    one.close()


def visit(**query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=90)
    at.run()
    at.switch_page("../pages/sae_features.py")
    at.query_params.update({**SMALL, **query})
    return settle(at.run())


def headings(at: AppTest) -> str:
    return " ".join(m.value for m in at.markdown)


def test_a_model_without_one_is_told_how_to_train_it(backend: Backend) -> None:
    assert "No autoencoder for this model yet" in said(visit(model="run:grokking-demo"))


def test_the_run_of_an_autoencoder_is_no_model_and_leads_to_where_it_is_seen(backend: Backend) -> None:
    at = visit(model="run:sae-25")
    assert "An SAE for run:toy" in said(at) and "no checkpoint" not in said(at)
    (way,) = [e.proto for e in at.get("page_link") if "Features of this SAE" in e.proto.label]
    assert "run%3Atoy" in way.query_string and "sae=sae-25" in way.query_string and "step=25" in way.query_string


def test_the_table_and_the_card_of_the_feature_in_the_address(backend: Backend) -> None:
    at = visit(sae="sae-25", feature="5")
    assert "Feature 5" in headings(at) and "48 features. A click" in said(at)
    assert len(at.dataframe[0].value.columns) == 7 and at.dataframe[0].value["density"].is_monotonic_decreasing
    assert len(at.get("plotly_chart")) == 5, "contexts, logits, neighbours, and the two of the whole dictionary"
    nothing = visit(sae="sae-25", feature="999")
    assert "Feature " in headings(nothing) and "999" not in headings(nothing)


def test_a_search_keeps_the_rows_that_hold_the_token(backend: Backend) -> None:
    at = visit(sae="sae-25")
    every = len(at.dataframe[0].value)
    next(t for t in at.text_input if t.label == "Find a token").set_value("17").run()
    kept = at.dataframe[0].value
    assert 0 < len(kept) < every
    assert kept[["top tokens", "raises", "lowers"]].agg(" ".join, axis=1).str.contains("17").all()


def test_what_is_lost_without_it_is_measured_when_asked_and_then_kept(backend: Backend) -> None:
    at = visit(sae="sae-25", feature="5")
    assert "Taken out on every token" not in said(at)
    next(b for b in at.button if b.label == "Measure what is lost without it").click()
    at = settle(at.run())
    assert "Taken out on every token: loss" in said(at) and "random directions" in said(at)
    again = visit(sae="sae-25", feature="5")
    assert "Taken out on every token" in said(again)
    assert not [b for b in again.button if b.label.startswith("Measure")]


def test_one_of_another_checkpoint_offers_the_way_there(backend: Backend) -> None:
    at = visit(sae="sae-10", step="25")
    assert "sae-10 was trained for step 10" in said(at)
    next(b for b in at.button if b.label == "Go to step 10").click()
    at = settle(at.run())
    assert "Feature " in headings(at) and at.select_slider[0].value == 10


def test_the_steering_link_is_a_line_that_intervene_reads(backend: Backend) -> None:
    from app.feature_card import line_of

    run = backend.run("sae-25")
    assert backend.read_interventions(line_of(run, 5, 0.5)) == ["add L0.resid_post 0.5 feature sae-25 5"]
    assert line_of({**run, "companion": {**run["companion"], "point": "z"}}, 5, 0.5) == ""


def test_it_is_followed_through_all_checkpoints_and_paired_with_others(backend: Backend) -> None:
    at = visit(sae="sae-25", feature="5")
    pairs = at.dataframe[1].value
    assert pairs["autoencoder"].tolist() == ["sae-10"] and pairs["MCC"][0].startswith("1.00"), "the same directions"
    next(b for b in at.button if b.label.startswith("Compute at all 3 checkpoints")).click()
    at = settle(at.run())
    assert "3 checkpoints; the dotted line is step 25" in said(at)
    assert not [b for b in at.button if b.label.startswith("Compute at all")]


def test_one_of_others_is_opened_by_its_path(backend: Backend, tmp_path: Path) -> None:
    from tests.test_models_saelens import folder

    meta = {"model_name": "theirs", "hook_name": "blocks.1.hook_resid_post"}
    at = visit(sae=folder(tmp_path / "theirs", "jumprelu", meta=meta), step="25")
    assert "20 features. A click" in said(at) and "Feature " in headings(at)
    wrong = visit(sae=folder(tmp_path / "gated", "standard", architecture="gated"))
    assert "its architecture is &#x27;gated&#x27;" in said(wrong).lower()
    next(b for b in wrong.button if b.label.startswith("Back to")).click()
    assert "Feature " in headings(settle(wrong.run()))
    assert "no such run" in said(visit(sae="/nowhere/at-all")).lower()


def test_a_page_that_reads_one_offers_those_of_these_weights(backend: Backend) -> None:
    source = 'from app import auto_page, house\nauto_page.render(house.backend(), "feature_card")'
    at = AppTest.from_string(source, default_timeout=90)
    at.query_params.update({**SMALL, "step": "25"})
    at = settle(at.run())
    assert "none is named yet" in said(at) and not backend.jobs(states=["failed"])
    assert [b.label for b in at.button if "sae" in b.label] == ["sae-25"]  # the other is of other weights
    next(b for b in at.button if b.label == "sae-25").click()
    at.run()
    assert "sae=sae-25" in str(at.query_params["params"])
