"""The registry: every module file of this folder is one analysis. No torch is imported here.

A file whose name starts with `_` holds helpers of several analyses and is no analysis itself.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

from backend.contract import Analysis, Axis, Value
from backend.errors import Broken

HERE = Path(__file__).resolve().parent
Stamp = tuple[int, int]  # (modification time in ns, size in bytes)
_cache: dict[Path, tuple[Stamp, Analysis | Broken]] = {}
_lock = threading.RLock()


def registry(folder: Path | None = None) -> dict[str, Analysis]:
    """Return {name: analysis} of this folder, and of the files of `folder` where one is given.

    A file is read again when its time or size changes. A broken file is left out; `problems` says why.
    """
    return {a.name: a for a in _read_all(folder).values() if isinstance(a, Analysis)}


def problems(folder: Path | None = None) -> list[str]:
    """Return one sentence per file that the registry had to leave out."""
    return [str(e) for e in _read_all(folder).values() if isinstance(e, Broken)]


def _read_all(folder: Path | None) -> dict[Path, Analysis | Broken]:
    with _lock:
        found = {path: _cached(path) for path in _files(HERE)}
        if folder is not None and Path(folder).resolve() != HERE:
            taken = {path.stem for path in found}
            found |= {p: _taken(p) if p.stem in taken else _cached(p) for p in _files(Path(folder).resolve())}
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.py") if not p.name.startswith("_"))


def _taken(path: Path) -> Broken:
    return Broken(f"Analysis file {path}", f"an analysis named {path.stem} is shipped", "Rename the file")


def _cached(path: Path) -> Analysis | Broken:
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    if path not in _cache or _cache[path][0] != stamp:
        try:
            _cache[path] = (stamp, load(path))
        except Broken as error:
            _cache[path] = (stamp, error)
    return _cache[path][1]


def load(path: Path) -> Analysis:
    """Import one file under the name `backend.analyses.<stem>` and return its analysis.

    Raises Broken, naming the file, where it cannot be imported or breaks the rules of DESIGN.md section 3.
    """
    asked = f"Analysis file {path}"
    if not path.stem.isidentifier():
        raise Broken(asked, "its name is not a Python name", "Rename it with letters, digits and _ only")
    module = _imported(path, asked)
    mine = {id(v): v for v in vars(module).values() if isinstance(v, Analysis) and v.name == path.stem}
    if len(mine) != 1:
        raise Broken(asked, f"it declares {len(mine)} analyses", "Declare exactly one with @analysis")
    (analysis,) = mine.values()
    _check(analysis, asked)
    return analysis


def _imported(path: Path, asked: str) -> Any:
    name = f"{__name__}.{path.stem}"
    before = sys.modules.get(name)
    if before is not None and path.parent == HERE and path not in _cache:
        return before  # someone imported it by name: one module object, not two
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the decorator looks its own module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises, the other files go on
        sys.modules.pop(name) if before is None else sys.modules.__setitem__(name, before)
        raise Broken(asked, f"{type(error).__name__}: {error}", "Correct the file") from error
    if path.parent == HERE:
        setattr(sys.modules[__name__], path.stem, module)
    return module


# ---------------------------------------------------------------- the rules of a declaration


def _check(analysis: Analysis, asked: str) -> None:
    if not analysis.doc:
        raise Broken(asked, "no module docstring", "Say the question, the formula, exactness, cost and Source")
    columns: list[Axis | Value] = [*analysis.axes, *analysis.values]
    names = [c.name for c in columns]
    if len(set(names)) != len(names):
        raise Broken(asked, f"a column name occurs twice in {names}", "Give every axis and value its own name")
    if "key" in names:
        raise Broken(asked, "a column is called `key`", "The store's own column has that name: choose another")
    wordless = [c.name for c in columns if not c.help]
    if wordless:
        raise Broken(asked, f"no help for the columns {wordless}", "Say in a sentence what each holds")
    for complaint in unfinished_params(analysis):
        raise Broken(asked, complaint, "Every params field needs a description, a default and a range")


def unfinished_params(analysis: Analysis) -> list[str]:
    """Return what each params field lacks: a description, a default, or a range (bounds, choices, a pattern, bool)."""
    schema = analysis.params.model_json_schema()
    complaints = []
    for name, field in analysis.params.model_fields.items():
        shape = schema["properties"][name]
        lacks = [word for word, missing in (
            ("a description", not field.description),
            ("a default", field.is_required()),
            ("a range", not _ranged(shape, schema.get("$defs", {}))),
        ) if missing]
        if lacks:
            complaints.append(f"params field {name} lacks {' and '.join(lacks)}")
    return complaints


def _ranged(shape: dict[str, Any], defs: dict[str, Any], optional: bool = False) -> bool:
    if "$ref" in shape:
        return _ranged(defs[shape["$ref"].rsplit("/", 1)[-1]], defs, optional)
    if "anyOf" in shape:
        some = [s for s in shape["anyOf"] if s.get("type") != "null"]
        return all(_ranged(s, defs, optional=len(some) < len(shape["anyOf"])) for s in some)
    if "enum" in shape or "const" in shape or shape.get("type") == "boolean":
        return True
    if shape.get("type") == "array":
        return "maxItems" in shape and _ranged(shape.get("items", {}), defs)
    if shape.get("type") == "string":
        return "pattern" in shape or "maxLength" in shape
    low, high = "minimum" in shape or "exclusiveMinimum" in shape, "maximum" in shape or "exclusiveMaximum" in shape
    return (low or high) if optional else (low and high)
