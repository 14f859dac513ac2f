"""Lists of interventions that the user keeps by name: one small JSON file in the folder of runs."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from backend.errors import BadInput, Broken, NotFound
from backend.runs import layout

FILE = "interventions.json"
_one = threading.Lock()


def read(runs: Path) -> dict[str, str]:
    """Return {name: list}, by name; {} where none was kept. Raises Broken for a file that is no such table."""
    try:
        found = json.loads((runs / FILE).read_text(encoding="utf-8"))
        return {str(k): str(v) for k, v in sorted(found.items())}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise Broken(f"Kept interventions {FILE}", f"cannot be read ({error})", "Correct or remove the file") from None


def keep(runs: Path, name: str, edits: str) -> None:
    """Keep a list under a name, in place of an earlier one. Raises BadInput for an empty list or an odd name."""
    if not re.fullmatch(r"[\w .+-]{1,60}", name):
        found = "not letters, digits, space, dot or dash, or above 60 of them"
        raise BadInput(f"Name {name[:60]!r}", found, "Choose another name")
    if not edits.strip():
        raise BadInput(f"Keep {name}", "the list is empty", "Add an intervention first")
    with _one:
        _write(runs, {**read(runs), name: edits})


def forget(runs: Path, name: str) -> None:
    """Drop a kept list. Raises NotFound."""
    with _one:
        kept = read(runs)
        if name not in kept:
            raise NotFound(f"Kept list {name!r}", "no such name", f"Kept are {', '.join(kept) or 'none'}")
        _write(runs, {k: v for k, v in kept.items() if k != name})


def _write(runs: Path, kept: dict[str, str]) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    layout.write_whole(runs / FILE, json.dumps(kept, indent=1, ensure_ascii=False).encode())
