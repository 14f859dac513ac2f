"""Results go in whole and come out as they were, part by part; what leaves, leaves nothing behind."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from backend import tables
from backend.contract import PackedArray, Result, Value
from backend.errors import Broken, NotFound
from backend.store import blobs
from backend.store.store import NAME, Store
from tests.store_kit import CARD, ROOMY, attention, attention_frame, mixed, packed, put, request, same, whole


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path, ROOMY)
    yield opened
    opened.close()


@pytest.mark.parametrize("seed", range(8))
def test_what_is_put_comes_back(tmp_path, seed):
    """pack -> put -> close -> open -> table + arrays -> unpack is the identity, rows in any order."""
    rng = np.random.default_rng(seed)
    analysis = attention(dtype=["float16", "float32", "float64"][seed % 3])
    shape = {"layers": int(rng.integers(1, 4)), "heads": int(rng.integers(1, 5)), "length": int(rng.integers(1, 40))}
    frame = attention_frame(seed, **shape)
    if seed % 2:  # rows in disorder: within a part the order is the rows' own
        frame = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
    asked = request(analysis, seed)
    with_store = Store.open(tmp_path, ROOMY)
    with_store.put(analysis, asked, packed(analysis, frame), card=CARD)
    with_store.close()
    again = Store.open(tmp_path, ROOMY)
    assert same(whole(again, analysis, asked.key), frame)
    again.close()


def test_every_kind_of_column_with_holes(store):
    analysis = mixed()
    frame = pd.DataFrame(
        {
            "pos": [2, 0, 1],
            "name": ["b", "é 漢", ""],
            "count": pd.array([1, None, 2**53 + 1], "Int64"),
            "value": [np.inf, None, -0.5],
            "label": [None, "x", "'; DROP TABLE results; --"],
            "good": [True, None, False],
        }
    ).astype({"good": "boolean"})
    asked = request(analysis, 1)
    store.put(analysis, asked, packed(analysis, frame), card=CARD)
    found = store.table(analysis, asked.key)
    assert list(found.columns) == list(frame.columns)
    pd.testing.assert_frame_equal(found, frame, check_dtype=False)
    assert found["count"].tolist()[2] == 2**53 + 1  # a hole does not turn whole numbers into floats


def test_null_and_nan_are_kept_apart(store):
    analysis = mixed()
    asked = request(analysis, 1)
    columns = {
        "pos": [0, 1],
        "name": ["a", "a"],
        "count": [0, 0],
        "value": pa.array([None, float("nan")], pa.float64()),
        "label": ["", ""],
        "good": [True, True],
    }
    store.put(analysis, asked, Result(pa.table(columns), [], {}), card=CARD)
    sql = f"SELECT value IS NULL AS missing, value = 'nan' IS TRUE AS nan FROM {analysis.table} ORDER BY pos"
    found = store.query(sql)
    assert (found["missing"].tolist(), found["nan"].tolist()) == ([True, False], [False, True])


def test_where_returns_one_part_in_order(store):
    analysis = attention()
    key = put(store, analysis, 1, layers=3, heads=4)
    frame = attention_frame(1, layers=3, heads=4)
    expected = frame[(frame["layer"] == 2) & (frame["head"] == 1)].reset_index(drop=True)
    part = {"layer": 2, "head": 1}
    table, arrays = store.table(analysis, key, part), store.arrays(key, "pattern", part)
    assert [a.part for a in arrays] == [part]
    assert same(tables.unpack(analysis, table, arrays), expected)
    assert len(store.arrays(key, "pattern", {"layer": 2})) == 4
    assert store.arrays(key, "pattern", {"layer": 9}) == []
    assert len(store.arrays(key, "pattern@display")) == 12


def test_a_key_is_written_once(store):
    analysis = attention()
    asked = request(analysis, 1)
    store.put(analysis, asked, packed(analysis, attention_frame(1)), card=CARD)
    store.put(analysis, asked, packed(analysis, attention_frame(2)), card=CARD)
    assert same(whole(store, analysis, asked.key), attention_frame(1))
    assert len(store.table(analysis, asked.key)) == 32
    assert store.count_results() == 1


def test_record_tells_everything(store):
    analysis = attention()
    asked = request(analysis, 1, params={})
    store.put(analysis, asked, packed(analysis, attention_frame(1)), card=CARD, job_id="j1")
    record = store.record(asked.key)
    assert record["subject"]["tokens"] == [1, 2, 1] and record["provenance"]["seconds"] == 0.5
    assert record["card"] == CARD
    assert (record["model"], record["job_id"], record["rows"], record["pinned"]) == ("run:toy step 3", "j1", 32, False)
    assert record["created"].endswith("Z")
    assert store.record("nothing") is None
    with pytest.raises(NotFound):
        store.table(analysis, "nothing")


def test_only_the_asked_blob_is_decoded(store):
    """Every other blob is made unreadable: one part still reads, all of them do not."""
    analysis = attention()
    key = put(store, analysis, 1)
    asked = "SELECT n FROM arrays WHERE column_name = 'pattern' AND part = '{\"head\":1,\"layer\":0}'"
    sql = f"UPDATE arrays SET data = 'x'::BLOB WHERE n <> ({asked})"
    store._writer.run(lambda cursor: cursor.execute(sql))
    assert len(store.arrays(key, "pattern", {"layer": 0, "head": 1})) == 1
    with pytest.raises(Broken, match="damaged"):
        store.arrays(key, "pattern")


def test_only_the_asked_blob_is_read_from_disk(tmp_path):
    """A byte of another head is flipped in the file itself: DuckDB's checksum meets it only when that head is read."""
    analysis = dataclasses.replace(attention(), values=(Value("entropy", ""), Value("pattern", "", kind="array")))
    noise = np.random.default_rng(0).integers(0, 256, (3, 1_000_000), dtype=np.uint8)
    arrays = [
        PackedArray("pattern", {"layer": 0, "head": i}, (1_000_000,), "uint8", noise[i].tobytes()) for i in range(3)
    ]
    asked = request(analysis, 1)
    table = pa.table({"layer": [0], "head": [0], "query_pos": [0], "entropy": [0.0]})
    store = Store.open(tmp_path, ROOMY)
    store.put(analysis, asked, Result(table, arrays, {}), card=CARD)
    store.close()
    content = bytearray((tmp_path / NAME).read_bytes())
    at = content.find(noise[1, 500_000:500_064].tobytes())
    assert at > 0
    content[at] ^= 255
    (tmp_path / NAME).write_bytes(content)
    store = Store.open(tmp_path, ROOMY)
    assert store.arrays(asked.key, "pattern", {"head": 0})[0].data == noise[0].tobytes()
    assert store.arrays(asked.key, "pattern", {"head": 2})[0].data == noise[2].tobytes()
    with pytest.raises(Broken):
        store.arrays(asked.key, "pattern", {"head": 1})
    store.close()


def big(seed: int) -> Result:
    """A result whose only blob is too large to lie inline."""
    block = np.random.default_rng(seed).random((1100, 1000))
    table = pa.table({"layer": [0], "head": [0], "query_pos": [0], "entropy": [0.0]})
    return Result(table, [PackedArray("pattern", {"layer": 0, "head": 0}, block.shape, "float64", block.tobytes())], {})


def test_a_large_blob_is_a_file_and_leaves_with_its_result(store):
    analysis, asked, result = attention(), request(attention(), 1), big(1)
    store.put(analysis, asked, result, card=CARD)
    files = list(store.tensors.iterdir())
    assert [f.suffix for f in files] == [".safetensors"] and files[0].stat().st_size > blobs.INLINE_BYTES
    assert store.arrays(asked.key, "pattern")[0] == result.arrays[0]
    store.put(analysis, asked, result, card=CARD)
    assert list(store.tensors.iterdir()) == files
    assert store.delete([asked.key]) == 1
    assert list(store.tensors.iterdir()) == []


def test_delete_leaves_no_orphan(store):
    analysis = attention()
    keys = [put(store, analysis, i) for i in range(4)]
    assert store.delete([*keys[:2], "nothing"]) == 2
    assert store.delete([]) == 0
    left = store.query(f"SELECT key FROM {analysis.table} UNION SELECT key FROM arrays UNION SELECT key FROM results")
    assert set(left["key"]) == set(keys[2:])
    assert not store.has(keys[0]) and store.arrays(keys[0], "pattern") == []
    put(store, analysis, 0)
    assert same(whole(store, analysis, keys[0]), attention_frame(0))


def test_the_least_recently_used_leaves_and_pinned_ones_stay(store):
    analysis = attention()
    keys = [put(store, analysis, i) for i in range(4)]
    size = store.size_bytes() / 4
    store.pin(keys[1], True)
    store.table(analysis, keys[0])  # used: now 2 is the oldest, then 3, then 0
    store.budget_bytes = int(size * 4.2)
    last = put(store, analysis, 9)
    assert [k for k in keys if not store.has(k)] == [keys[2]]
    store.budget_bytes = 1
    newest = put(store, analysis, 10)
    assert {k for k in [*keys, last, newest] if store.has(k)} == {keys[1], newest}
    store.pin(keys[1], False)
    store.evict()
    assert store.count_results() == 0 and store.size_bytes() == 0
    with pytest.raises(NotFound):
        store.pin("nothing", True)


def test_uses_are_remembered_over_a_restart(tmp_path):
    analysis = attention()
    store = Store.open(tmp_path, ROOMY)
    first, second = put(store, analysis, 1), put(store, analysis, 2)
    store.arrays(first, "pattern")
    store.close()
    store = Store.open(tmp_path, ROOMY)
    assert store.results()["key"].tolist() == [first, second]
    store.close()


def test_listing_filters_and_pages(store):
    one, two = attention(), mixed()
    keys = [put(store, one, i) for i in range(5)]
    asked = request(two, 7, spec="dir:Other")
    frame = pd.DataFrame({"pos": [0], "name": ["a"], "count": [1], "value": [1.0], "label": [""], "good": [True]})
    store.put(two, asked, packed(two, frame), card=CARD)
    assert store.results()["key"].tolist() == [asked.key, *reversed(keys)]
    assert store.results(analysis="toy_mixed")["key"].tolist() == [asked.key]
    assert store.results(text="OTHER mixed")["key"].tolist() == [asked.key]
    assert store.results(text="other attention").empty and store.count_results(text="100%") == 0
    assert store.results(limit=2, offset=1)["key"].tolist() == [keys[4], keys[3]]
    assert (store.count_results(), store.count_results(analysis="toy_attention")) == (6, 5)


def test_the_sql_shown_fetches_the_same_numbers(store):
    analysis = attention()
    put(store, analysis, 2)
    key = put(store, analysis, 1)
    pd.testing.assert_frame_equal(store.query(store.sql_for(analysis, key)), store.table(analysis, key))


def test_a_result_that_is_not_as_declared_is_refused(store):
    analysis, asked = attention(), request(attention(), 1)
    good = packed(analysis, attention_frame(1))
    with pytest.raises(Broken, match="columns"):
        store.put(analysis, asked, Result(good.table.drop_columns(["entropy"]), good.arrays, {}), card=CARD)
    short = dataclasses.replace(good.arrays[0], data=good.arrays[0].data[:-2])
    with pytest.raises(Broken, match="do not fill"):
        store.put(analysis, asked, Result(good.table, [short], {}), card=CARD)
    with pytest.raises(Broken, match="Ask again"):
        store.put(attention(version=2), asked, good, card=CARD)
    assert not store.has(asked.key)


def test_columns_that_change_without_a_version_are_refused(store):
    analysis = attention()
    key = put(store, analysis, 1)
    changed = dataclasses.replace(analysis, values=(Value("spread", ""), analysis.values[1]))
    frame = attention_frame(2).rename(columns={"entropy": "spread"})
    with pytest.raises(Broken, match="Raise the analysis's version"):
        store.put(changed, request(changed, 2), packed(changed, frame), card=CARD)
    assert store.count_results() == 1 and same(whole(store, analysis, key), attention_frame(1))


def test_a_closed_store_says_so(tmp_path):
    store = Store.open(tmp_path, ROOMY)
    store.close()
    store.close()
    with pytest.raises(Broken, match="closed"):
        store.has("x")
    with pytest.raises(Broken, match="closed"):
        store.delete(["x"])
