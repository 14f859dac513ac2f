"""`python -m backend diagram RECIPE --x PARAM=V,V,... --y PARAM=V,V,...`: a whole phase diagram without a browser.

Where a dashboard is running its workers train it, and its page shows it; else this starts workers of its own
(`--workers`). It shows how it goes and writes definition and curves with `--out`. Given again it computes only what is
missing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from backend import settings as settings_room
from backend.client import running_dashboard
from backend.errors import BadInput, Broken
from backend.runs import recipes

SHOWN = ["x", "y", "phase", "agree", "n", "n_seeds", "delay", "failed"]


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    sub = commands.add_parser("diagram", help="a phase diagram: a recipe over two of its params, n seeds per cell")
    sub.add_argument("recipe", choices=sorted(recipes.registry()), metavar="RECIPE")
    sub.add_argument("--x", required=True, metavar="PARAM=V,V,...", help="the columns")
    sub.add_argument("--y", required=True, metavar="PARAM=V,V,...", help="the rows")
    sub.add_argument("--seeds", default="2", help="how many (2), or which (0,3,7,)")
    sub.add_argument("--set", action="append", default=[], metavar="PARAM=VALUE", help="a param that all runs share")
    sub.add_argument("--name", default="", help="name of the diagram; default: <recipe>-diagram-N")
    sub.add_argument("--workers", type=int, default=0,
                     help="worker processes, 0 means one per core; a running dashboard uses its own")  # fmt: skip
    sub.add_argument("--delay", type=float, default=1000.0, help="steps from which a late test curve is grokking")
    sub.add_argument("--accuracy", type=float, default=0.9, help="accuracy that both curves must reach")
    sub.add_argument("--out", default="", help="folder for definition and curves, to hand the diagram on")
    sub.add_argument("--dry-run", action="store_true", help="only say how many runs and how long")


def do(args: argparse.Namespace) -> Any:
    """Plan, start, wait; return the table of cells."""
    given = {**_axis("x", args.x), **_axis("y", args.y), "seeds": _seeds(args.seeds), "name": args.name,
             "params": dict(_pair("--set", one) for one in args.set), "command": _command()}  # fmt: skip
    house = _house(args.workers)
    try:
        plan = house.plan_diagram(args.recipe, **given)
        _tell(f"{_price(plan)}\n")
        if args.dry_run:
            return {k: plan[k] for k in ("runs", "seconds", "wall", "workers")}
        name = house.start_diagram(args.recipe, **{**given, "name": plan["diagram"]["name"]})["name"]
        _wait(house, name)
        if args.out:
            _tell("\n".join(house.export_diagram(name, str(Path(args.out).expanduser().absolute()))) + "\n")
        return house.diagram_phases(name, args.accuracy, args.delay)[SHOWN]
    finally:
        house.close()


def _house(workers: int) -> Any:
    settings = settings_room.load()
    remote = running_dashboard(settings)
    if remote is not None:
        return remote
    from backend import Backend

    return Backend(settings.model_copy(update={"workers": workers}))


def _wait(house: Any, name: str) -> None:
    """Wait for all runs; Ctrl-C cancels and keeps what is done. Raises Broken where runs failed."""
    try:
        while (made := house.diagram(name))["state"] == "running":
            if sys.stderr.isatty():
                _tell(f"\r{made['done']} of {len(made['runs'])} runs")
            job = next((r["job"] for r in made["runs"] if r["job"]), "")
            if job:
                house.wait(job, 2.0)
            else:
                time.sleep(0.2)  # between two jobs
    except KeyboardInterrupt:
        house.cancel_diagram(name)
        raise
    _tell(f"{made['done']} of {len(made['runs'])} runs\n")
    if made["state"] != "done":
        wrong = next((f"{r['run']}: {r['error']}" for r in made["runs"] if r["error"]), "some runs did not finish")
        raise Broken(f"Diagram {name}", wrong, "Give the same command again: what is finished is kept")


def _tell(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _price(plan: dict[str, Any]) -> str:
    time = f", about {plan['seconds']:.0f} s of one core" if plan["seconds"] is not None else ""
    return f"{plan['runs']} runs{time}"


def _command() -> str:
    kept = [a for i, a in enumerate(sys.argv[1:]) if a != "--out" and sys.argv[i] != "--out"]
    return shlex.join(["python", "-m", "backend", *kept])


def _axis(axis: str, text: str) -> dict[str, Any]:
    param, values = _pair(f"--{axis}", text)
    return {axis: param, f"{axis}s": [_number(f"--{axis}", v) for v in values.split(",") if v]}


def _pair(flag: str, text: str) -> tuple[str, str]:
    param, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"{flag} {text!r}", "there is no = in it", "Write PARAM=VALUE")
    return param.strip().replace("-", "_"), value.strip()


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{flag}: {text!r}", "not a number", "Write numbers with commas between them") from None


def _seeds(text: str) -> int | list[int]:
    try:
        return [int(s) for s in text.split(",") if s] if "," in text else int(text)
    except ValueError:
        raise BadInput(f"--seeds {text!r}", "not whole numbers", "Give how many, or a list such as 0,3,7") from None
