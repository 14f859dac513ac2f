"""Models, jobs, and the SQL a person may write."""

import ast
import time

import pytest

from backend.errors import BadInput
from backend.store.readonly import check
from backend.store.store import Store
from tests.store_kit import CARD, ROOMY, ROOT, attention, put


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path, ROOMY)
    yield opened
    opened.close()


def card(spec, step=None, **more):
    return {"spec": spec, "step": step, "n_layers": 2, "architecture": "toy", "tokenizer": {"kind": "ids"}} | more


def test_models_are_kept_by_spec_and_step(tmp_path):
    store = Store.open(tmp_path, ROOMY)
    big = {"kind": "hf", "json": "x" * 3_000_000}
    store.put_model(card("run:a", 1), "s1")
    store.put_model(card("run:a", 2, tokenizer=big), "s2")
    store.put_model(card("dir:b"), "s3")
    store.put_model(card("dir:b", n_layers=5), "s4")
    store.close()
    store = Store.open(tmp_path, ROOMY)
    assert store.model("run:a", 2) == (card("run:a", 2, tokenizer=big), "s2")
    assert store.model("dir:b", None) == (card("dir:b", n_layers=5), "s4")
    assert store.model("run:a", None) is None and store.model("dir:b", 1) is None
    store.touch_model("run:a", 1)
    models = store.models()
    assert models["spec"].tolist() == ["run:a", "dir:b", "run:a"] and models["n_layers"].tolist() == [2, 5, 2]
    assert models["step"].isna().tolist() == [False, True, False] and models["step"][0] == 1
    store.forget_model("run:a")
    assert store.models()["spec"].tolist() == ["dir:b"]
    assert store.disk_bytes() < 2_000_000  # the tokenizer was pressed
    store.close()
    store = Store.open(tmp_path, ROOMY)
    assert len(store.query("SELECT * FROM tokenizers")) == 1  # swept with its last card
    store.close()


def test_jobs_are_replaced_listed_and_dropped(store):
    for i in range(5):
        store.put_job(
            {"id": f"j{i}", "key": "k", "kind": "analysis", "state": "queued", "created": float(i), "finished": None}
        )
    store.put_job(
        {"id": "j1", "key": "k", "kind": "analysis", "state": "done", "created": 1.0, "finished": 10.0, "story": ["é"]}
    )
    store.put_job(
        {"id": "j2", "state": "failed", "created": "1970-01-01T00:00:02", "finished": "1970-01-01T00:00:20+00:00"}
    )
    assert [j["id"] for j in store.jobs()] == ["j4", "j3", "j2", "j1", "j0"]
    assert [j["id"] for j in store.jobs(states=["done", "failed"])] == ["j2", "j1"]
    assert len(store.jobs(limit=2)) == 2
    assert store.job("j1")["story"] == ["é"] and store.job("x") is None
    assert store.drop_jobs(15.0) == 1 and store.job("j1") is None
    assert store.drop_jobs("2030-01-01T00:00:00") == 1
    assert [j["id"] for j in store.jobs()] == ["j4", "j3", "j0"]  # unfinished ones stay


READING = [
    "SELECT 1 AS x",
    "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
    "FROM results",
    "DESCRIBE results",
    "SHOW TABLES",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1 -- the end",
    "SELECT 1;",
    "VALUES (1), (2)",
    "SELECT key, max(entropy) FROM toy_attention_v1 GROUP BY key",
    "SUMMARIZE toy_attention_v1",
]
REFUSED = [
    "INSERT INTO meta VALUES ('a', 'b')",
    "WITH a AS (SELECT 1) INSERT INTO meta SELECT 'a', 'b'",
    "DELETE FROM results",
    "UPDATE results SET pinned = true RETURNING key",
    "DROP TABLE results",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "ALTER TABLE results ADD COLUMN x INT",
    "ATTACH ':memory:' AS m",
    "DETACH m",
    "COPY results TO '{tmp}/out.csv'",
    "COPY meta FROM '{tmp}/in.csv'",
    "EXPORT DATABASE '{tmp}/out'",
    "INSTALL httpfs",
    "LOAD json",
    "SET enable_external_access = true",
    "SET threads = 1",
    "RESET threads",
    "PRAGMA enable_profiling",
    "CHECKPOINT",
    "SELECT * FROM read_csv('{tmp}/in.csv')",
    "SELECT * FROM '{tmp}/in.csv'",
    "SELECT * FROM read_text('{tmp}/in.csv')",
    "SELECT * FROM read_blob('{tmp}/in.csv')",
    "SELECT * FROM glob('{tmp}/*')",
    "SELECT * FROM read_parquet('{tmp}/x')",
    "SELECT * FROM query('SELECT * FROM read_text(''{tmp}/in.csv'')')",
    "SELECT * FROM sniff_csv('{tmp}/in.csv')",
    "SELECT * FROM read_json('{tmp}/in.csv')",
    "SELECT * FROM force_checkpoint()",
    "BEGIN",
    "COMMIT",
    "CALL pragma_version()",
    "EXPLAIN ANALYZE INSERT INTO meta VALUES ('a', 'b')",
    "EXPLAIN ANALYZE COPY results TO '{tmp}/out.csv'",
    "explain (analyze) delete from results",
    "/* */ EXPLAIN ANALYZE DELETE FROM results",
    "PREPARE p AS SELECT 1",
    "SELECT 1; DELETE FROM results",
    "SELECT 1; SELECT 2",
    "",
    "  -- nothing",
    "SELEC 1",
    "SELECT * FROM nowhere",
    "SELECT nope FROM results",
    "VACUUM",
    "USE memory",
    "SELECT getenv('HOME')",
    "SELECT * FROM secret_python_variable",
]


def test_reading_statements_are_answered(store):
    put(store, attention(), 1)
    for sql in READING:
        assert len(store.query(sql)) >= 1, sql


@pytest.mark.parametrize("sql", REFUSED)
def test_all_else_is_refused(tmp_path, store, sql):
    secret_python_variable = store.models()  # noqa: F841  a frame in reach of a careless replacement scan
    (tmp_path / "in.csv").write_text("name,value\nsecret,1\n")
    put(store, attention(), 1)
    before = store.query("SELECT count(*) FROM meta")
    with pytest.raises(BadInput) as refusal:
        store.query(sql.replace("{tmp}", str(tmp_path)))
    assert "SELECT" in str(refusal.value) and "Traceback" not in str(refusal.value)
    assert store.query("SELECT count(*) FROM meta").equals(before) and store.count_results() == 1
    assert not (tmp_path / "out.csv").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "sql", ["EXPLAIN ANALYZE DELETE FROM results", "explain (analyze) DROP TABLE results", "CHECKPOINT"]
)
def test_the_kind_of_statement_is_judged_before_it_runs(sql):
    with pytest.raises(BadInput, match="is not reading"):
        check(sql)


def test_answers_are_cut_and_endless_ones_stopped(store):
    cut = store.query("SELECT * FROM range(1000000000000)", limit=25)
    assert len(cut) == 25 and cut.attrs["more"] is True
    assert store.query("SELECT * FROM range(25)", limit=25).attrs["more"] is False
    began = time.monotonic()
    with pytest.raises(BadInput, match="stopped"):
        store.query("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b", seconds=0.3)
    assert time.monotonic() - began < 10
    assert len(store.query("SELECT 1")) == 1


def connects(source):
    """Return the lines of a module on which it calls duckdb.connect, however it was imported."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    named = [c.lineno for c in calls if ast.unparse(c.func) in ("duckdb.connect", "duckdb.duckdb.connect")]
    imported = [n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.module == "duckdb"]
    aliased = [
        n.lineno
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Import)
        for a in n.names
        if a.name == "duckdb" and a.asname
    ]
    return named + imported + aliased


def test_only_the_store_connects():
    ours = [p for room in ("app", "pages", "backend") for p in (ROOT / room).rglob("*.py")]
    found = {p.relative_to(ROOT).as_posix() for p in ours if connects(p.read_text())}
    assert found == {"backend/store/opening.py"}
    assert connects("import duckdb\nx = duckdb.connect('f')") == [2]  # the check itself can fail
    assert connects("from duckdb import connect\nimport duckdb as d") == [1, 2]


def test_the_store_needs_neither_torch_nor_streamlit():
    import subprocess
    import sys

    code = (
        "import sys, backend.store.store; print([m for m in ('torch', 'streamlit', 'distributed') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_a_card_handed_out_is_whole(store):
    key = put(store, attention(), 1)
    assert store.record(key)["card"] == CARD
