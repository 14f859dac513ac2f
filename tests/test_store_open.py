"""One owner; what cannot be read is set aside as it was; an older file is led to the present schema."""

import os
import re

import duckdb
import pytest

from backend.errors import Broken, Busy
from backend.store.migrations import SCHEMA
from backend.store.opening import NAME
from backend.store.store import Store
from tests.store_kit import ROOMY, attention, attention_frame, child, put, same, whole

TRY = """
import sys
from pathlib import Path
from backend.errors import Busy
from backend.store.store import Store
try:
    Store.open(Path(sys.argv[1]), 10**12)
    print("opened")
except Busy as error:
    print(error)
"""
HOLD = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
#: the schema as version 1 made it, frozen here
V1 = """
CREATE TABLE meta (name VARCHAR, value VARCHAR);
INSERT INTO meta VALUES ('app', 'phasescope'), ('schema', '1');
CREATE TABLE results (
  key VARCHAR, analysis VARCHAR, version INTEGER, table_name VARCHAR, title VARCHAR,
  spec VARCHAR, step BIGINT, model VARCHAR, fingerprint VARCHAR, dtype VARCHAR, device VARCHAR,
  subject VARCHAR, params VARCHAR, provenance VARCHAR, card VARCHAR, tokenizer VARCHAR, job_id VARCHAR,
  created TIMESTAMP, last_used TIMESTAMP, seconds DOUBLE, bytes BIGINT, rows BIGINT
);
CREATE TABLE arrays (
  key VARCHAR, n INTEGER, column_name VARCHAR, part VARCHAR, shape VARCHAR, dtype VARCHAR, codec VARCHAR,
  data BLOB USING COMPRESSION uncompressed, path VARCHAR
);
CREATE TABLE tokenizers (hash VARCHAR, data BLOB USING COMPRESSION uncompressed);
CREATE TABLE models (
  spec VARCHAR, step BIGINT, signature VARCHAR, card VARCHAR, tokenizer VARCHAR,
  last_used TIMESTAMP
);
CREATE TABLE runs (name VARCHAR, folder VARCHAR, info VARCHAR, folder_offset BIGINT, created TIMESTAMP);
CREATE TABLE metrics (
  run VARCHAR, step BIGINT, metric VARCHAR, layer INTEGER, head INTEGER, value DOUBLE, time DOUBLE
);
CREATE TABLE jobs (
  id VARCHAR, key VARCHAR, kind VARCHAR, state VARCHAR, created DOUBLE, finished DOUBLE, record VARCHAR
);
INSERT INTO results (key, analysis, version, table_name, subject, params, provenance, card, tokenizer, created,
  last_used, bytes, rows) VALUES ('old', 'toy_attention', 1, 'toy_attention_v1', '{}', '{}', '{}', '{}', '',
  '2026-01-01', '2026-01-01', 10, 1);
CREATE TABLE toy_attention_v1 (key VARCHAR, layer BIGINT, head BIGINT, query_pos BIGINT, entropy DOUBLE);
INSERT INTO toy_attention_v1 VALUES ('old', 1, 2, 3, 0.25);
"""


def make(path, sql):
    con = duckdb.connect(str(path))
    con.execute(sql)
    con.close()


def test_a_second_process_is_told_who_has_it(tmp_path):
    store = Store.open(tmp_path, ROOMY)
    said = child(TRY, str(tmp_path)).communicate(timeout=180)[0]
    assert f"open in process {os.getpid()}." in said and "PHASESCOPE_CACHE" in said
    with pytest.raises(Busy, match="this one"):
        Store.open(tmp_path, ROOMY)
    put(store, attention(), 1)  # the attempts took nothing from the owner
    store.close()
    assert child(TRY, str(tmp_path)).communicate(timeout=180)[0] == "opened\n"


def test_a_stranger_that_holds_the_file_is_named_too(tmp_path):
    Store.open(tmp_path, ROOMY).close()
    before = (tmp_path / NAME).read_bytes()
    holder = child_with_stdin(tmp_path / NAME)
    try:
        with pytest.raises(Busy, match=f"process {holder.pid}\\b"):
            Store.open(tmp_path, ROOMY)
    finally:
        holder.communicate("", timeout=30)
    assert (tmp_path / NAME).read_bytes() == before
    Store.open(tmp_path, ROOMY).close()


def child_with_stdin(path):
    import subprocess
    import sys

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    return holder


def garbage(path):
    path.write_bytes(os.urandom(20_000))


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    make(path, "CREATE TABLE meta AS SELECT 'app' AS name, 'phasescope' AS value")
    path.write_bytes(path.read_bytes()[:5000])


def flipped(path):
    make(path, V1)
    content = bytearray(path.read_bytes())
    for at in range(12_288, len(content), 4096):
        content[at + 50] ^= 255
    path.write_bytes(content)


def foreign(path):
    make(path, "CREATE TABLE sales AS SELECT 1 AS euros")


def foreign_meta(path):
    make(path, "CREATE TABLE meta AS SELECT 5 AS whatever")


def another_app(path):
    make(path, V1.replace("'phasescope'", "'another'"))


def newer(path):
    make(path, V1.replace("'schema', '1'", f"'schema', '{SCHEMA + 1}'"))


REASONS = {
    garbage: "not a DuckDB file",
    empty: "not a DuckDB file",
    truncated: "damaged",
    flipped: "damaged",
    foreign: "another program's",
    foreign_meta: "another program's",
    another_app: "another program's",
    newer: f"schema {SCHEMA + 1}, newer",
}


@pytest.mark.parametrize("spoil", REASONS, ids=lambda f: f.__name__)
def test_what_cannot_be_read_is_set_aside_as_it_was(tmp_path, spoil):
    spoil(tmp_path / NAME)
    before = (tmp_path / NAME).read_bytes()
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / "k.safetensors").write_bytes(b"theirs")
    store = Store.open(tmp_path, ROOMY)
    assert len(store.notices) == 1 and REASONS[spoil] in store.notices[0]
    aside = tmp_path / re.search(r"set-aside-\S+\.duckdb", store.notices[0])[0]
    assert aside.read_bytes() == before
    assert (tmp_path / aside.name.replace(NAME, "tensors") / "k.safetensors").read_bytes() == b"theirs"
    key = put(store, attention(), 1)
    store.close()
    again = Store.open(tmp_path, ROOMY)
    assert again.notices == [] and again.has(key)
    again.close()


def test_the_log_of_a_file_set_aside_goes_with_it(tmp_path):
    """A newer file that was killed has its last writes in the log: both are kept, and open again together."""
    code = (
        "import duckdb, os, sys; con = duckdb.connect(sys.argv[1]); con.execute(sys.argv[2]); con.execute('CHECKPOINT');"  # noqa: E501
        "con.execute('CREATE TABLE later AS SELECT 7 AS x'); os.kill(os.getpid(), 9)"
    )
    child(code, str(tmp_path / NAME), V1.replace("'schema', '1'", "'schema', '99'")).communicate(timeout=180)
    files = {suffix: (tmp_path / f"{NAME}{suffix}").read_bytes() for suffix in ("", ".wal")}
    Store.open(tmp_path, ROOMY).close()
    for suffix, content in files.items():
        assert next(tmp_path.glob(f"set-aside-*{NAME}{suffix}")).read_bytes() == content
    con = duckdb.connect(str(next(tmp_path.glob(f"set-aside-*{NAME}"))))
    assert con.execute("SELECT x FROM later").fetchall() == [(7,)]
    con.close()


def test_twice_in_one_second_sets_both_aside(tmp_path):
    for _ in range(3):
        garbage(tmp_path / NAME)
        Store.open(tmp_path, ROOMY).close()
    assert len(list(tmp_path.glob("set-aside-*.duckdb"))) == 3


def test_a_file_of_schema_1_is_led_to_the_present(tmp_path):
    make(tmp_path / NAME, V1)
    store = Store.open(tmp_path, ROOMY)
    assert store.notices == [f"The cache was brought from schema 1 to {SCHEMA}"]
    assert store.record("old")["pinned"] is False
    assert store.table(attention(), "old").to_numpy().tolist() == [[1, 2, 3, 0.25]]
    key = put(store, attention(), 1)
    store.pin("old", True)
    store.close()
    store = Store.open(tmp_path, ROOMY)
    assert store.notices == [] and store.record("old")["pinned"] is True
    assert same(whole(store, attention(), key), attention_frame(1))
    store.close()


def columns(cache):
    con = duckdb.connect(str(cache / NAME), read_only=True)
    sql = (
        "SELECT table_name, column_name, data_type, column_default FROM duckdb_columns()"
        " WHERE table_name NOT LIKE '%_v1' ORDER BY ALL"
    )
    found = con.execute(sql).fetchall()
    con.close()
    return found


def test_old_and_new_files_end_with_the_same_schema(tmp_path):
    (tmp_path / "old").mkdir()
    make(tmp_path / "old" / NAME, V1)
    Store.open(tmp_path / "old", ROOMY).close()
    Store.open(tmp_path / "new", ROOMY).close()
    assert columns(tmp_path / "old") == columns(tmp_path / "new")


def test_a_file_the_system_refuses_is_not_moved(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(Broken):
        Store.open(tmp_path, ROOMY)
    assert (tmp_path / NAME).is_dir()


def test_orphans_are_swept_and_others_left(tmp_path):
    (tmp_path / "tensors").mkdir()
    for name in ("a-1.safetensors", "a-2.part", "notes.txt"):
        (tmp_path / "tensors" / name).write_bytes(b"x")
    Store.open(tmp_path, ROOMY).close()
    assert [p.name for p in (tmp_path / "tensors").iterdir()] == ["notes.txt"]
