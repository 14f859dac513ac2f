"""Bytes that rot inside the file: at most one read fails, then the file is set aside as it was, and said."""

from __future__ import annotations

import random
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backend.errors import Broken
from backend.store import store as room
from backend.store.damage import MARKER
from backend.store.opening import NAME
from backend.store.store import Store
from tests.store_kit import CARD, ROOMY, attention, attention_frame, put, same, whole

HEADER, BLOCK = 12_288, 262_144
TODO = "Restart Phasescope: it is then set aside under a dated name"


def metrics(n: int = 9000) -> pd.DataFrame:
    value = np.random.default_rng(0).random(n)
    return pd.DataFrame({"step": range(n), "metric": "loss", "layer": None, "head": None, "value": value, "time": 0.0})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with rows in every table, closed."""
    cache = tmp_path_factory.mktemp("sound")
    store = Store.open(cache, ROOMY)
    for i in range(3):
        put(store, attention(), i, layers=3, heads=4, length=64)
    store.put_model(CARD, "signature")
    store.append_metrics("r", metrics(), 5)
    for i in range(40):
        store.put_job({"id": f"j{i}", "key": "k", "kind": "open", "state": "done", "created": i, "story": "z" * 2000})
    store.close()
    assert not (cache / f"{NAME}.wal").exists()
    return cache


def read_all(store: Store) -> None:
    for key in store.results()["key"]:
        store.record(key), whole(store, attention(), key)
    store.metrics("r"), store.jobs(), store.models(), store.runs(), store.model(CARD["spec"], CARD["step"])


def spoil(cache: Path, at: int) -> bytes:
    content = bytearray((cache / NAME).read_bytes())
    content[at] ^= 255
    (cache / NAME).write_bytes(content)
    return bytes(content)


def places(sound: Path) -> list[int]:
    """Two places in every block: its checksum's bytes and one among its data."""
    at = random.Random(0)
    return [p for b in range(HEADER, (sound / NAME).stat().st_size, BLOCK) for p in (b + 3, b + at.randrange(8, BLOCK))]


def set_aside(cache: Path, notices: list[str]) -> Path:
    """The file that the one notice names."""
    assert len(notices) == 1 and "damaged" in notices[0], notices
    return cache / re.search(r"set-aside-\S+\.duckdb", notices[0])[0]


def works(store: Store) -> None:
    key = put(store, attention(), 1)
    assert same(whole(store, attention(), key), attention_frame(1))
    read_all(store)
    assert store.size_bytes() > 0


def test_a_flipped_byte_anywhere_costs_at_most_one_read(sound: Path, tmp_path: Path) -> None:
    late = early = 0
    for n, at in enumerate(places(sound)):
        cache = tmp_path / str(n)
        shutil.copytree(sound, cache)
        before = spoil(cache, at)
        store = Store.open(cache, ROOMY)
        if not store.notices:  # it does not show yet
            with pytest.raises(Broken) as met:
                read_all(store)
            assert met.value.found == "the cache file is damaged" and met.value.todo == TODO
            assert len(store.notices) == 1 and TODO in store.notices[0], "said at once"
            assert (cache / MARKER).exists() and (cache / NAME).read_bytes() == before
            store.close()
            store, late = Store.open(cache, ROOMY), late + 1
        else:
            early += 1
        assert set_aside(cache, store.notices).read_bytes() == before
        assert not (cache / MARKER).exists()
        works(store)
        store.close()
        again = Store.open(cache, ROOMY)
        assert again.notices == [] and again.count_results() == 1
        again.close()
        shutil.rmtree(cache)
    assert late >= 10 and early >= 4, "both kinds were met"


def block_of(sound: Path, tmp_path: Path, read: str) -> int:
    """Return a place whose damage shows in this SQL and not at open."""
    for at in places(sound)[1::2]:
        shutil.rmtree(tmp_path / "probe", ignore_errors=True)
        shutil.copytree(sound, tmp_path / "probe")
        spoil(tmp_path / "probe", at)
        store = Store.open(tmp_path / "probe", ROOMY)
        opened_clean = not store.notices
        with suppress(Broken):
            store.query(read)
        shows = opened_clean and bool(store.notices)
        store.close()
        if shows:
            return at
    raise AssertionError(f"no block shows in {read}")


def test_writes_and_sql_meet_damage_in_the_same_words(sound: Path, tmp_path: Path) -> None:
    at = block_of(sound, tmp_path, "SELECT * FROM metrics")
    for meet in (lambda s: s.reset_run("r"), lambda s: s.query("SELECT sum(value) FROM metrics WHERE value < 2")):
        cache = tmp_path / "cache"
        shutil.copytree(sound, cache)
        before = spoil(cache, at)
        store = Store.open(cache, ROOMY)
        store.put_job({"id": "late", "key": "k", "kind": "open", "state": "done", "created": 99})
        with pytest.raises(Broken, match="damaged. " + TODO):
            meet(store)
        store.close()
        assert (cache / NAME).read_bytes() == before, "closing folds no log into a damaged file"
        store = Store.open(cache, ROOMY)
        aside = set_aside(cache, store.notices)
        assert aside.read_bytes() == before and b"late" in aside.with_name(f"{aside.name}.wal").read_bytes()
        works(store)
        store.close()
        shutil.rmtree(cache)


def test_damage_that_the_sweep_meets_is_set_aside_at_once(sound: Path, tmp_path: Path) -> None:
    """Large arrays are files: the sweep reads their names, so the arrays table's own block matters at open."""
    tried = 0
    for n, at in enumerate(places(sound)[1::2]):
        cache = tmp_path / str(n)
        shutil.copytree(sound, cache)
        (cache / "tensors").mkdir(exist_ok=True)
        (cache / "tensors" / "k.safetensors").write_bytes(b"theirs")
        before = spoil(cache, at)
        store = Store.open(cache, ROOMY)
        if store.notices:
            tried += 1
            aside = set_aside(cache, store.notices)
            assert aside.read_bytes() == before
            assert (cache / aside.name.replace(NAME, "tensors") / "k.safetensors").read_bytes() == b"theirs"
            works(store)
        store.close()
    assert tried >= 2


def test_an_open_that_fails_lets_go_of_file_and_lock(sound: Path, tmp_path: Path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(sound, cache)

    def refuse(*_: object) -> int:
        raise PermissionError("not now")

    kept = []
    for place, name in ((room.blobs, "sweep"), (room, "Writer")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refuse)
            with pytest.raises(PermissionError) as met:
                Store.open(cache, ROOMY)
            kept.append(met)  # whoever keeps the traceback keeps what its frames hold: nothing may hang on that
    store = Store.open(cache, ROOMY)
    assert store.notices == [] and store.count_results() == 3
    store.close()


def test_a_marker_without_a_file_is_dropped(tmp_path: Path) -> None:
    """A crash between renaming the file and removing its marker."""
    (tmp_path / MARKER).write_text("block 7")
    store = Store.open(tmp_path, ROOMY)
    assert store.notices == [] and not (tmp_path / MARKER).exists()
    works(store)
    store.close()
