"""Settings: each variable is read, a wrong one is named with its range, folders are absolute."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.__main__ import main
from backend.errors import BadInput
from backend.settings import Settings, load

#: field -> (a good value, what it becomes, bad values, words of the range)
CASES = {
    "cache": ("/x/c", Path("/x/c"), [], ""),
    "runs": ("/x/r", Path("/x/r"), [], ""),
    "data": ("/x/d", Path("/x/d"), [], ""),
    "port": ("9001", 9001, ["0", "65536", "http", "-1", "8501.5"], "integer from 1 to 65535"),
    "scheduler": ("tcp://h:1", "tcp://h:1", [], ""),
    "workers": ("3", 3, ["-1", "257", "many"], "integer from 0 to 256"),
    "device": ("cuda", "cuda", ["gpu", "CPU", "cuda:0"], "one of auto, cpu, cuda"),
    "dtype": ("bfloat16", "bfloat16", ["float8", "32"], "one of float32, float64, bfloat16, float16"),
    "model_memory_gb": ("2.5", 2.5, ["0", "-1", "x"], "number above 0"),
    "worker_memory_gb": ("1", 1.0, ["-0.1", "x"], "number from 0"),
    "cache_gb": ("0.5", 0.5, ["0", "all"], "number above 0"),
}


def test_every_setting_is_tried() -> None:
    assert set(CASES) == set(Settings.model_fields)


@pytest.mark.parametrize("field", sorted(CASES))
def test_each_variable_is_read(field: str) -> None:
    text, value, bad, words = CASES[field]
    name = f"PHASESCOPE_{field.upper()}"
    assert getattr(load({name: text}), field) == value != getattr(load({}), field)
    assert load({name: ""}) == load({}), "an empty variable counts as unset"
    for wrong in bad:
        with pytest.raises(BadInput) as caught:
            load({name: wrong})
        assert name in caught.value.asked and repr(wrong) in caught.value.asked, caught.value
        assert words in caught.value.found and Settings.model_fields[field].description in caught.value.todo


def test_other_variables_are_ignored() -> None:
    assert load({"PHASESCOPE_CHROMIUM": "/x", "PHASESCOPE_NO_UV": "1", "PHASESCOPE_FOO": "?", "PORT": "1"}) == load({})


def test_folders_are_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server changes its folder after reading them: a relative one must not move with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = load({"PHASESCOPE_CACHE": "here/cache", "PHASESCOPE_RUNS": "~/runs"})
    assert (found.cache, found.runs) == (tmp_path / "here" / "cache", tmp_path / "home" / "runs")


@pytest.mark.parametrize("field", ["port", "dtype"])
def test_the_command_line_says_it_in_one_sentence(
    field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"PHASESCOPE_{field.upper()}", "nonsense")
    assert main(["jobs"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and f"PHASESCOPE_{field.upper()}='nonsense'" in told.err and "Traceback" not in told.err


def test_a_cache_that_cannot_be_a_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PHASESCOPE_CACHE", str(tmp_path / "file"))
    assert main(["jobs"]) == 1
    told = capsys.readouterr().err
    assert "PHASESCOPE_CACHE" in told and "Traceback" not in told
