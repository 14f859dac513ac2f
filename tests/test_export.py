"""Tables as files: each format gives back every digit, array columns included; a file is written whole or not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from backend import export
from backend.errors import BadInput


@pytest.fixture
def frame() -> pd.DataFrame:
    """Every kind of column, with holes, small numbers and awkward text."""
    made = pd.DataFrame({
        "layer": [0, 0, 1], "big": [2**53 + 1, -(2**62), 0], "log_prob": [-1e-300, 0.1 + 0.2, np.nan],
        "kl": [1e-17, np.inf, 2.0], "label": ["a,b", 'say "x"\n', None], "good": [True, False, True],
        "holes": pd.array([2**60 + 1, None, 3], dtype="Int64"), "maybe": pd.array([True, None, False], dtype="boolean"),
    })
    made["pattern"] = [np.linspace(0, 1, 5).astype(np.float16), None, np.full(5, 1 / 3, np.float16)]
    return made


def rows_of(frame: pd.DataFrame, form: str) -> list[dict]:
    """Write and read back with another reader than our own."""
    data = export.to_bytes(frame, form)
    if form == "json":
        return json.loads(data)
    if form == "csv":
        back = pd.read_csv(io.BytesIO(data), dtype={"holes": "Int64", "maybe": "boolean"})
        return back.to_dict("records")
    table = pq.read_table(io.BytesIO(data)) if form == "parquet" else pyarrow.ipc.open_stream(data).read_all()
    return table.to_pylist()


@pytest.mark.parametrize("form", ["parquet", "arrow", "json"])
def test_every_digit_comes_back(frame: pd.DataFrame, form: str) -> None:
    rows = rows_of(frame, form)
    assert [list(r) for r in rows] == [list(frame.columns)] * 3
    for name in ("layer", "big", "good"):
        assert [r[name] for r in rows] == frame[name].tolist()
    assert [r["label"] for r in rows] == ["a,b", 'say "x"\n', None]
    assert [r["holes"] for r in rows] == [2**60 + 1, None, 3] and [r["maybe"] for r in rows] == [True, None, False]
    assert [r["log_prob"] for r in rows][:2] == [-1e-300, 0.1 + 0.2]
    assert rows[0]["kl"] == 1e-17
    assert rows[2]["log_prob"] is None or np.isnan(rows[2]["log_prob"])
    assert rows[1]["pattern"] is None
    for at in (0, 2):
        assert np.array_equal(np.array(rows[at]["pattern"], dtype=np.float16), frame["pattern"][at])


def test_csv_holds_arrays_as_json(frame: pd.DataFrame) -> None:
    rows = rows_of(frame, "csv")
    assert json.loads(rows[0]["pattern"]) == frame["pattern"][0].astype(float).tolist()
    assert rows[0]["log_prob"] == -1e-300 and rows[1]["log_prob"] == 0.1 + 0.2 and rows[0]["kl"] == 1e-17
    assert rows[0]["holes"] == 2**60 + 1 and pd.isna(rows[1]["holes"]) and rows[1]["label"] == 'say "x"\n'


def test_json_is_strict(frame: pd.DataFrame) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    rows = json.loads(export.to_bytes(frame, "json"), parse_constant=refuse)
    assert rows[1]["kl"] is None and rows[2]["log_prob"] is None


def test_a_first_row_without_an_array_hides_none(frame: pd.DataFrame) -> None:
    turned = frame.iloc[[1, 0, 2]].reset_index(drop=True)
    for form in ("json", "csv"):
        cell = rows_of(turned, form)[1]["pattern"]
        assert (json.loads(cell) if form == "csv" else cell) == frame["pattern"][0].astype(float).tolist()


def test_an_empty_table_keeps_its_columns(frame: pd.DataFrame) -> None:
    empty = frame[:0]
    assert json.loads(export.to_bytes(empty, "json")) == []
    assert export.to_bytes(empty, "csv").decode().strip() == ",".join(frame.columns)
    assert list(export.from_arrow(export.to_bytes(empty, "arrow")).columns) == list(frame.columns)


def test_arrow_reads_back_as_it_was(frame: pd.DataFrame) -> None:
    back = export.from_arrow(export.to_bytes(frame, "arrow"))
    assert back["big"].tolist() == frame["big"].tolist() and np.array_equal(back["pattern"][0], frame["pattern"][0])


def test_write_chooses_by_the_ending(frame: pd.DataFrame, tmp_path: Path) -> None:
    for ending in (*export.FORMATS, "CSV"):
        export.write(frame, str(tmp_path / f"a table.v1.{ending}"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"a table.v1.{e}" for e in (*export.FORMATS, "CSV"))
    assert len(pd.read_parquet(tmp_path / "a table.v1.parquet")) == 3


def test_what_cannot_be_written_is_said_and_leaves_nothing(frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, words in [("t.xlsx", "not a format we write"), ("t", "not a format"), ("no/t.csv", "no such folder"),
                        ("folder.csv", "it is a folder"), ("x" * 300 + ".csv", "too long")]:  # fmt: skip
        with pytest.raises(BadInput, match=words):
            export.write(frame, str(tmp_path / name))
    assert [p.name for p in tmp_path.iterdir()] == ["folder.csv"]
    with pytest.raises(BadInput, match="Use one of parquet, csv, json, arrow"):
        export.to_bytes(frame, "xml")


def test_an_older_file_stays_whole_when_writing_fails(frame: pd.DataFrame, tmp_path: Path) -> None:
    target = tmp_path / "t.csv"
    target.write_text("before")
    with pytest.raises(TypeError):
        export.write(frame.assign(odd=[object()] * 3), str(tmp_path / "t.json"))
    assert target.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["t.csv"]
