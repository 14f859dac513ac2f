"""`python -m backend diagram`: 2 x 2 real trainings with one worker, alone and through a running dashboard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backend.__main__ import main
from tests import browser
from tests.test_api import APP, client, variables

TINY = ["--set", "p=7", "--set", "d_model=8", "--set", "n_heads=2", "--set", "d_mlp=16", "--set", "steps=20",
        "--set", "log_every=5"]  # fmt: skip
ASKED = ["diagram", "modular_addition", "--x", "weight_decay=0.1,1", "--y", "lr=0.001,0.01", "--seeds", "1",
         "--name", "small", "--workers", "1", "--accuracy", "0", *TINY]  # fmt: skip


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def told(capsys: pytest.CaptureFixture, *argv: str) -> tuple[Any, str]:
    """Give a command that must succeed; return its JSON and what it said on the way."""
    code = main([*argv, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out), said.err


def written(tmp_path: Path) -> dict[str, float]:
    return {f.parent.name: f.stat().st_mtime for f in (tmp_path / "runs").glob("small.*/metrics.jsonl")}


def whole(cells: list[dict[str, Any]]) -> None:
    """Every accuracy is at least 0, so every run has reached both at its first step: comprehension, delay 0."""
    assert [(c["x"], c["y"]) for c in cells] == [(0.1, 0.001), (0.1, 0.01), (1.0, 0.001), (1.0, 0.01)]
    assert {(c["phase"], c["agree"], c["n"], c["delay"], c["failed"]) for c in cells} == {
        ("comprehension", True, 1, 0, 0)}  # fmt: skip


def test_a_diagram_without_a_dashboard_is_trained_once_and_handed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["backend", *ASKED, "--out", str(tmp_path / "out")])  # kept as its command
    price, _ = told(capsys, *ASKED, "--dry-run")
    assert price["runs"] == 4 and price["seconds"] > 0 and not (tmp_path / "runs" / "small.diagram.json").exists()
    cells, said = told(capsys, *ASKED)
    whole(cells)
    assert "4 of 4 runs" in said
    first = written(tmp_path)
    again, said = told(capsys, *ASKED, "--out", str(tmp_path / "out"))
    assert again == cells and written(tmp_path) == first and len(first) == 4  # nothing was trained anew
    curves = pd.read_parquet(tmp_path / "out" / "small.curves.parquet")
    assert set(curves["run"]) == set(first) and {"train_accuracy", "test_accuracy"} <= set(curves["metric"])
    command = json.loads((tmp_path / "out" / "small.diagram.json").read_text())["command"]
    assert command.startswith("python -m backend diagram modular_addition") and "--out" not in command


@pytest.mark.parametrize(("change", "said"), [
    (["--x", "weight_decay"], "Write PARAM=VALUE"), (["--x", "weight_decay=a"], "not a number"),
    (["--x", "lr=1"], "two different numeric params"), (["--seeds", "two"], "not whole numbers"),
    (["--set", "steps=0"], "steps"),
])  # fmt: skip
def test_nonsense_is_said_in_one_sentence(tmp_path: Path, capsys: Any, change: list[str], said: str) -> None:
    assert main([*ASKED, *change]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and not list((tmp_path / "runs").glob("small*"))


def test_a_diagram_through_a_running_dashboard(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with browser.serve(APP, tmp_path / "log", "/api/v1/health", variables(tmp_path)), client(tmp_path) as http:
        cells, _ = told(capsys, *ASKED)
        whole(cells)
        jobs = [j for j in http.get("/jobs").json() if j["kind"] == "train"]
        assert len(jobs) == 4 and {j["state"] for j in jobs} == {"done"}  # the dashboard's own workers did it
        seen = http.get("/diagrams/small").json()
        assert (seen["state"], seen["done"], len(seen["runs"])) == ("done", 4, 4)
        assert {d["name"] for d in http.get("/diagrams").json()} >= {"small", "grokking-phases"}
        files = http.post("/diagrams/small/export", json={"folder": str(tmp_path / "out")}).json()
        assert [Path(f).exists() for f in files] == [True, True]
        body = {"recipe": "modular_addition", "x": "weight_decay", "xs": [0.1, 1], "y": "lr", "ys": [0.001]}
        long = {**body, "seeds": 1, "name": "long", "params": {"p": 7, "d_model": 8, "n_heads": 2, "steps": 50_000}}
        assert http.post("/diagrams", json=long).json()["state"] == "running"
        http.post("/diagrams/long/cancel")
        ended = [http.get(f"/jobs/{r['job']}", params={"wait": 30}).json()["state"]
                 for r in http.get("/diagrams/long").json()["runs"] if r["job"]]  # fmt: skip
        assert "done" not in ended and http.get("/diagrams/long").json()["state"] == "unfinished"
        assert http.post("/diagrams/long/continue").json()["state"] == "running"
        http.post("/diagrams/long/cancel")
        assert http.post("/diagrams", json={**body, "xs": ["a"]}).status_code == 400
        assert http.get("/diagrams/nowhere").status_code == 404
        assert http.get("/diagrams/small/cells?delay=soon").status_code == 400
