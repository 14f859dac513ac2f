"""Pairs of prompts that a user keeps by name: one JSON file per set beside the runs. No torch.

    prompt_sets/<name>.json   {"name", "spec": the model it was written for, "rows": [{clean, corrupted, answer,
                              distractor}]}: text as it was typed, so that another model may read it, too
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.errors import BadInput, Broken, NotFound
from backend.runs.layout import write_whole

FOLDER = "prompt_sets"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}"
COLUMNS = ("clean", "corrupted", "answer", "distractor")


def checked_name(name: str) -> str:
    """Return the name. Raises BadInput where it is no plain file name."""
    if not re.fullmatch(NAME, name):
        todo = "Use letters, digits, dot, dash, underscore, at most 60, a letter or digit first"
        raise BadInput(f"Name {name[:70]!r}", "not a plain name" if name else "it is empty", todo)
    return name


def names(runs: Path) -> list[str]:
    """Return the names of the kept sets, sorted."""
    return sorted(p.stem for p in (runs / FOLDER).glob("*.json") if re.fullmatch(NAME, p.stem))


def read(runs: Path, name: str) -> dict[str, Any]:
    """Return one set. Raises NotFound where there is none, Broken where its file cannot be read."""
    path = runs / FOLDER / f"{checked_name(name)}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(names(runs)) or "none yet"
        raise NotFound(f"Pairs {name!r}", "no pairs are kept under that name", f"Known: {known}") from None
    except (OSError, ValueError) as error:
        raise Broken(f"Pairs {name!r}", f"{path.name} cannot be read ({error})", "Delete or mend the file") from None
    if not isinstance(record, dict) or not _rows_of(record):
        raise Broken(f"Pairs {name!r}", f"{path.name} holds no rows of {', '.join(COLUMNS)}", "Delete or mend the file")
    return record


def _rows_of(record: Mapping[str, Any]) -> bool:
    rows = record.get("rows")
    return isinstance(rows, list) and bool(rows) and all(isinstance(r, dict) for r in rows)


def write(runs: Path, name: str, spec: str, rows: Sequence[Mapping[str, Any]], replace: bool = False) -> None:
    """Keep a set. Raises BadInput for a bad name, or a taken one unless it may be replaced."""
    path = runs / FOLDER / f"{checked_name(name)}.json"
    if path.exists() and not replace:
        raise BadInput(f"Name {name!r}", "other pairs are kept under it", "Choose another name, or tick replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"name": name, "spec": spec, "rows": [{k: r[k] for k in COLUMNS} for r in rows]}
    write_whole(path, json.dumps(record, ensure_ascii=False, indent=1).encode())


def delete(runs: Path, name: str) -> None:
    """Forget a set. Raises NotFound where there is none."""
    path = runs / FOLDER / f"{checked_name(name)}.json"
    if not path.exists():
        raise NotFound(f"Pairs {name!r}", "no pairs are kept under that name", "Nothing needs deleting")
    path.unlink()
