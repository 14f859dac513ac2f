"""Finding models: runs by name and path, steps, signatures; no torch function on a view anywhere in the backend."""

from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path

import pytest

from backend import settings as house
from backend.contract import parse_spec
from backend.errors import BadInput, NotFound
from backend.models.fingerprints import fingerprint_safetensors
from backend.models.registry import Located, known_runs, locate
from tests.models_support import hf_folder, opened, run_folder, settings


def found(text: str, path: Path, step: int | None = None) -> Located:
    return locate(parse_spec(text, step), settings(path))


def test_runs_by_name_and_by_path(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "runs" / "one", steps=(0, 7, 100))
    by_name, by_path = found("run:one", tmp_path), found(f"run:{run}", tmp_path)
    assert by_name.files == by_path.files == (run / "checkpoints" / "step_00000100.safetensors",)
    assert by_name.step == 100 and by_name.steps == (0, 7, 100) and by_name.kind == "native"
    at_seven = found("run:one", tmp_path, step=7)
    assert at_seven.step == 7 and at_seven.signature != by_name.signature
    assert at_seven.config_signature == by_name.config_signature


def test_a_users_run_wins_over_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "SHIPPED_RUNS", tmp_path / "shipped")
    shipped = run_folder(tmp_path / "shipped" / "same")
    run_folder(tmp_path / "shipped" / "other")
    assert found("run:same", tmp_path).folder == shipped
    mine = run_folder(tmp_path / "runs" / "same")
    assert found("run:same", tmp_path).folder == mine
    assert known_runs(settings(tmp_path)) == {"same": mine, "other": tmp_path / "shipped" / "other"}


def test_steps_and_runs_that_are_not_there(tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "one", steps=(0, 10, 20, 30, 40, 50))
    with pytest.raises(NotFound, match=r"Step 22 of run 'one'.*Nearest checkpoints: 10, 20, 30, 40"):
        found("run:one", tmp_path, step=22)
    with pytest.raises(NotFound, match=r"no such run\. Known runs: .*one"):
        found("run:two", tmp_path)
    with pytest.raises(NotFound, match=r"no run\.json"):
        found(f"run:{tmp_path}", tmp_path)
    run_folder(tmp_path / "runs" / "new", steps=())
    with pytest.raises(NotFound, match="no checkpoint yet"):
        found("run:new", tmp_path)
    (tmp_path / "runs" / "new" / "run.json").write_text("{}")
    with pytest.raises(BadInput, match="names no model"):
        found("run:new", tmp_path)


def test_half_written_checkpoints_are_not_seen(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "runs" / "one", steps=(3,))
    for name in ("step_00000009.safetensors.tmp", ".step_00000009.safetensors", "step_x.safetensors"):
        (run / "checkpoints" / name).write_bytes(b"half")
    assert found("run:one", tmp_path).steps == (3,)


def test_a_signature_changes_with_the_files_only(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", "gpt2")
    before = found(f"dir:{folder}", tmp_path).signature
    assert found(f"dir:{folder}", tmp_path).signature == before
    (folder / "README.md").write_text("words")
    assert found(f"dir:{folder}", tmp_path).signature == before
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert found(f"dir:{folder}", tmp_path).signature != before


def test_the_located_files_give_the_cards_fingerprint(tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "one")
    folder = hf_folder(tmp_path / "m", "neox")
    for text in ("run:one", f"dir:{folder}"):
        where = found(text, tmp_path)
        card = opened(text, tmp_path).card
        assert fingerprint_safetensors(where.files, where.config) == card.fingerprint
        assert card.fingerprint == opened(text, tmp_path, dtype="float64").card.fingerprint
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert opened(f"dir:{moved}").card.fingerprint == opened(f"dir:{folder}").card.fingerprint
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert opened(f"dir:{moved}").card.fingerprint != opened(f"dir:{folder}").card.fingerprint


FUNCTIONAL = {"functional_call", "vmap", "grad", "jvp", "vjp", "jacrev", "jacfwd", "hessian", "linearize",
              "functionalize", "stack_module_state"}  # fmt: skip


def swaps_on_a_view(source: str) -> list[int]:
    """Return the lines that hand something called view or bridge to a function of torch.func."""
    bad = []
    for call in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = {getattr(n, "attr", getattr(n, "id", "")) for a in call.args for n in ast.walk(a)}
        if name in FUNCTIONAL and any(w in ("view", "original_model") or "bridge" in str(w).lower() for w in words):
            bad.append(call.lineno)
    return bad


def test_torch_func_never_meets_a_view() -> None:
    assert swaps_on_a_view("functional_call(model.view, p, x)") == [1]
    assert swaps_on_a_view("torch.func.grad(lambda p: f(bridge, p))(p)") == [1]
    assert swaps_on_a_view("functional_call(model.bare, p, x)") == []
    files = sorted((house.ROOT / "backend").rglob("*.py"))
    assert len(files) > 20
    assert {str(f): lines for f in files if (lines := swaps_on_a_view(f.read_text()))} == {}


def test_only_one_file_opens_the_door_to_transformer_lens() -> None:
    files = {f.name for f in (house.ROOT / "backend" / "models").glob("*.py") if "transformer_lens" in _imports(f)}
    assert files == {"bridge.py"}


def _imports(file: Path) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = [getattr(n, "module", None) or n.names[0].name for n in nodes]
    return {str(n).split(".")[0] for n in names}
