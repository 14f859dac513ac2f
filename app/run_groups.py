"""Runs that were started together (a diagram's cells, a family) as one line of a list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

CELL = re.compile(r"\.x\d+y\d+s\d+$")  # how a diagram names the runs of its cells
LINKED = 8  # runs of a family that one link opens


def folded(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return lines {label, state, page, query, run} in the order of the runs; runs of one group share a line.

    `run` is the single run's record, or None on a group's line; `page` and `query` say where the line leads.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(group_of(run) or f"/{run['name']}", []).append(run)
    return [_single(g[0]) if name[0] == "/" else _line(name, g) for name, g in groups.items()]


def group_of(run: Mapping[str, Any]) -> str:
    """Return what a run was started as a part of: a family, a phase diagram; "" where it was started alone."""
    name = str(run.get("name", ""))
    return str(run.get("group") or "") or (CELL.sub("", name) if CELL.search(name) else "")


def _single(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"label": run["name"], "state": run["state"], "page": "training", "query": {"runs": run["name"]}, "run": run}


def _line(group: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    states = Counter(str(r["state"]) for r in runs)
    state = ", ".join(f"{n} {s}" for s, n in states.most_common())
    if any(CELL.search(str(r["name"])) for r in runs):
        page, query = "phase_diagram", {"diagram": group}
    else:
        page, query = "training", {"runs": ",".join(str(r["name"]) for r in runs[:LINKED])}
    return {"label": f"{group} ({len(runs)} runs)", "state": state, "page": page, "query": query, "run": None}
