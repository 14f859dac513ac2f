"""Published numbers: every one comes out, a broken model is told, absent files are said to be absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backend import Backend
from backend.analyses._published import KNOWN
from backend.analyses.published_numbers import published_numbers
from backend.contract import View, Weights, parse_spec
from backend.errors import Unfit
from backend.models.open import open_model
from backend.models.tracr import OUTPUT
from tests import models_support, tiny_models

FILES = [k for k in KNOWN if k.file]


def table_of(model: Any) -> Any:
    return published_numbers.compute(model, Weights(), published_numbers.params(), tiny_models.quiet)


def told(table: Any) -> list[str]:
    return table.loc[~table["agrees"], "quantity"].tolist()


@pytest.mark.parametrize("known", FILES, ids=[k.name for k in FILES])
def test_what_others_published_comes_out(known, tmp_path):
    file = models_support.DATA / known.file
    if not file.is_file():
        pytest.skip(f"shared/data/{known.file} is not beside this checkout")
    model = open_model(parse_spec(f"tl:{file}"), tiny_models.settings(tmp_path, "float32"))
    table = table_of(model)
    assert told(table) == [] and len(table) == len(known.lines)
    assert (table["difference"] == table["ours"] - table["published"]).all()


@pytest.mark.parametrize("name", list(OUTPUT))
def test_compiled_programs_are_what_they_are_known_to_be(name, tmp_path):
    table = table_of(open_model(parse_spec(f"tl:tracr_{name}"), tiny_models.settings(tmp_path, "float32")))
    assert told(table) == [] and len(table) == 6


def test_a_broken_model_is_told(tmp_path):
    """The head that counts is turned off: outputs, nodes and circuits no longer agree."""
    model = open_model(parse_spec("tl:tracr_hist"), tiny_models.settings(tmp_path, "float32"))
    with torch.no_grad():
        model.bare.layers[0].attn.o.weight.zero_()
    table = table_of(model)
    assert set(told(table)) == set(table["quantity"]), "it answers everything alike"
    drawn = published_numbers.figures["differences"].build(table, View())
    assert len(drawn.data[0].x) == len(table)


def test_weights_of_which_nothing_is_published_are_refused(tmp_path):
    with pytest.raises(Unfit, match="none are known of these weights. Open one of Palindrome classifier, .*hist"):
        table_of(tiny_models.opened("native", tmp_path, "float32"))


def test_the_house_finds_the_files_or_says_where_they_go(tmp_path, monkeypatch):
    monkeypatch.setattr("backend.facade.published.BESIDE", tmp_path / "nowhere")
    house = Backend(tiny_models.settings(tmp_path).model_copy(update={"data": tmp_path / "data"}), inline=True)
    try:
        rows = {r["name"]: r for r in house.published()}
        assert [r["spec"] for r in rows.values()] == ["", "", *(f"tl:tracr_{name}" for name in OUTPUT)]
        assert rows["c113"]["folder"] == str(tmp_path / "data") and "rep-theory" in rows["c113"]["origin"]
        file = tmp_path / "data" / rows["palindromes"]["file"]
        Path(file.parent).mkdir()
        file.touch()
        assert house.published()[0]["spec"] == f"tl:{file}"
    finally:
        house.close()
