"""The page Spectra: spectrum, sums, blocks, and the run's checkpoints with its transitions, at a few products."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from app.parts import by_slider
from app.spectra_view import SOME, rows_of, spread
from backend import Backend
from backend.figures.spectrum import ridgeline
from tests.page_kit import said, settle, settled_house, visit

FEW = "products=10&k=2&probes=2&steps=5&trace_probes=2"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with settled_house(tmp_path_factory.mktemp("spectra")) as one:
        yield one


def test_the_page_draws_the_model_its_blocks_and_its_training(backend: Backend) -> None:
    at = visit("spectra", model="run:grokking-demo", n_rows="4", block="layers.0.attn.v.bias", params=FEW)
    assert (
        at.selectbox(key="url:block").value == "layers.0.attn.v.bias"
        and "layer 0" in at.selectbox(key="url:block").options
    )
    kept, checkpoints = (
        backend.results(analysis="hessian_spectrum"),
        min(SOME, len(backend.run("grokking-demo")["checkpoints"])),
    )
    assert len(kept) == 1 and len(at.get("plotly_chart")) == 2
    sums = at.dataframe[0].value.set_index("")
    assert sums.loc["parameters of the block", "model"] == "128" and "±" in sums.loc["trace", "null"]
    assert sums.loc["trace", "dense matrix"] and "off by at most" in said(at)
    assert "pip install --no-deps pyhessian" in said(at) and "Not converged" in said(at)
    next(b for b in at.button if b.label.startswith("Compute at all")).click()
    at = settle(at.run())
    assert len(backend.results(analysis="hessian_spectrum")) == checkpoints, "the last was kept, with its null beside"
    assert "not resolved at this sample. Raise" in said(at) and "95 % [" in said(at)
    charts = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    assert len(charts) == 4
    ridges, ends = charts[2:]
    assert len([t for t in ridges["data"] if t["name"].startswith("step ")]) == checkpoints
    found = {t["verdict"] for t in backend.transitions("grokking-demo")}
    words = " ".join(a["text"] for a in ridges["layout"].get("annotations", []))
    assert found and any(v in words for v in found), "the run's transitions stand between its checkpoints"
    assert "transition" in {t["name"] for t in ends["data"]}


def test_an_energy_model_has_its_own_loss_there(backend: Backend) -> None:
    at = visit("spectra", model="run:inverse-3", n_problems="2", block="fc4.bias", params=FEW)
    assert at.selectbox(key="url:block").options[:3] == ["all", "fc1", "fc2"]
    assert len(at.get("plotly_chart")) == 3 and "off by at most" in said(at)
    assert "loss (squared error)" in list(at.dataframe[0].value[""])
    others = [a for a in backend.analyses().values() if a.group == "Spectra" and a.subject.family == "energy"]
    assert len(others) == 6 and all(a.asks in said(at) for a in others)
    next(b for b in at.button if b.label.startswith("Compute at all")).click()
    at = settle(at.run())
    checkpoints = len(backend.run("inverse-3")["checkpoints"])
    assert len(backend.results(analysis="energy_hessian")) == checkpoints and len(at.get("plotly_chart")) == 5
    ridges = json.loads(at.get("plotly_chart")[3].proto.spec)
    assert "squared error" in ridges["layout"]["xaxis"]["title"]["text"]


def test_a_page_of_its_own_asks_the_same_at_first(backend: Backend) -> None:
    """The same rows of a corpus, and all annealing levels where Spectra asks for all: results are shared."""
    source = """
from app import house
from app.subject import begin
begin(house.backend(), "hessian_spectrum", "")
"""
    at = AppTest.from_string(source, default_timeout=60)
    at.query_params["model"] = "run:grokking-demo"
    assert settle(at.run()).number_input(key="url:n_rows").value == 16
    at = visit("spectra", model="run:grokking-demo", block="layers.0.attn.v.bias", params=FEW)
    assert at.number_input(key="url:n_rows").value == 16
    of = {name: by_slider(backend.analysis(name).params) for name in ("energy_hessian", "exp003_sparse_features")}
    assert of == {"energy_hessian": (), "exp003_sparse_features": ("level",)}


def test_ridges_are_the_densities_above_their_floor() -> None:
    at = np.linspace(-1, 1, 50)
    rows = [{"of": "model", "quantity": "density", "rank": i, "value": np.exp(-x * x * s) + 1e-9, "at": x, "step": s,
             "error": 0.0} for s in (1, 9) for i, x in enumerate(at)]  # fmt: skip
    rows += [
        {"of": "model", "quantity": q, "rank": 0, "value": v * s, "error": 0.1, "step": s}
        for s in (1, 9)
        for q, v in (("n_params", 1e3), ("high", 2.0), ("low", -1.0), ("trace", 5.0), ("participation_ratio", 3))
    ]
    figure = ridgeline(pd.DataFrame(rows), [(5.0, "kink", "#000000"), (99.0, "after the last", "#000000")], step=9)
    first = next(t for t in figure.data if t.name.startswith("step 1:"))
    heights = np.array(first.y[1:-1])
    assert heights.argmax() in (24, 25) and heights.min() >= 0 and 1.0 < heights.max() <= 1.7
    assert [a.text for a in figure.layout.annotations] == ["kink"] and figure.layout.shapes[0].y0 == pytest.approx(0.52)
    ends, trace, _ = rows_of(pd.DataFrame(rows))
    assert [list(c.y) for c in ends.curves] == [[2.0, 18.0], [-1.0, -9.0]] and list(trace.curves[0].high) == [5.1, 45.1]


def test_some_checkpoints_are_spread_with_both_ends() -> None:
    assert spread(list(range(30)), 4) == [0, 10, 19, 29] and spread([3, 5], 12) == [3, 5]
