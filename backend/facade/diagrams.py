"""Phase diagrams: a recipe over two of its params, n seeds per cell; started, continued, cancelled, watched."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from backend.contract import Recipe
from backend.errors import BadInput, Broken
from backend.facade.base import validated
from backend.facade.diagram_curves import LIVE, DiagramCurves
from backend.facade.work import LONGEST_NAME
from backend.runs import diagrams
from backend.runs.diagrams import Diagram
from backend.settings import SHIPPED_RUNS

MAX_RUNS = 4000


class Diagrams(DiagramCurves):
    """The part of the facade that sweeps a recipe over two params."""

    def diagrams(self) -> list[dict[str, Any]]:
        """Return {name, recipe, x, y, cells, runs, done, state, shipped, created}, what runs first, then the newest."""
        records = [self.diagram(name) for name in self._diagram_files() if self._readable(name)]
        short = [{**{k: r[k] for k in ("name", "recipe", "x", "y", "done", "state", "shipped", "created")},
                  "cells": len(r["xs"]) * len(r["ys"]), "runs": len(r["runs"])} for r in records]  # fmt: skip
        return sorted(short, key=lambda r: (r["state"] == "running", r["created"]), reverse=True)

    def sweepable(self, recipe: str) -> list[str]:
        """Return the params of a recipe that an axis of a diagram can be: its numbers, but the seed."""
        shapes = self.recipe(recipe).params.model_json_schema()["properties"]
        return [n for n, s in shapes.items() if s.get("type") in ("integer", "number") and n != "seed"]

    def plan_diagram(
        self, recipe: str, x: str, xs: Sequence[float], y: str, ys: Sequence[float], seeds: int | Sequence[int] = 2,
        params: Mapping[str, Any] | None = None, name: str = "", command: str = "",
    ) -> dict[str, Any]:
        """Check a definition and start nothing. Returns {diagram, runs, seconds, wall, workers}: `seconds` of one core
        for all runs and `wall` with the workers there are, by the recipe's own estimate (None where it has none)."""
        declared = self.recipe(recipe)
        made = self._defined(declared, x, xs, y, ys, seeds, dict(params or {}), name, command)
        members = made.members()
        self._name_with_room(made.name, max((m.run for m in members), key=len))
        checked = [validated(declared.params, m.params, declared.title) for m in members]
        seconds = sum(declared.seconds(p) for p in checked) if declared.seconds else None
        workers = max(len(self.workers()) - 1, 1)  # training leaves one to the views
        wall = None if seconds is None else seconds / min(workers, len(checked))
        return {"diagram": made.model_dump(mode="json"), "runs": len(checked), "seconds": seconds, "wall": wall,
                "workers": workers}  # fmt: skip

    def start_diagram(
        self, recipe: str, x: str, xs: Sequence[float], y: str, ys: Sequence[float], seeds: int | Sequence[int] = 2,
        params: Mapping[str, Any] | None = None, name: str = "", command: str = "",
    ) -> dict[str, Any]:
        """Start a diagram and return it; the same definition again computes only what is missing or unfinished.

        Raises BadInput before any run starts: params, values, or a name that another diagram has.
        """
        made = Diagram(**self.plan_diagram(recipe, x, xs, y, ys, seeds, params, name, command)["diagram"])
        known = self._diagram_files().get(made.name)
        if known is None:
            self._refuse_foreign(made)
            diagrams.write(self.settings.runs, made)
        elif known.parent == SHIPPED_RUNS or not diagrams.read(known).same_runs(made):
            raise BadInput(f"Diagram {made.name}", "another one of that name exists", "Choose another name")
        return self.continue_diagram(made.name)

    def continue_diagram(self, name: str) -> dict[str, Any]:
        """Start what is missing of a diagram and resume what stopped; what is finished or under way is left alone."""
        made, shipped = self._definition(name)
        if shipped:
            raise BadInput(f"Continue {name}", "it came with Phasescope and is whole", "Start one of your own")
        states = {r["run"]: r["state"] for r in self._members(made)}
        for member in made.members():
            state = states[member.run]
            if state == "missing":
                self.train(made.recipe, member.params, name=member.run, group=made.name)
            elif state not in (*LIVE, "finished"):
                self.train(made.recipe, {}, run_dir=str(self.settings.runs / member.run), resume=True)
        return self.diagram(name)

    def cancel_diagram(self, name: str) -> dict[str, Any]:
        """Stop a diagram; what is finished stays, what runs is kept at the step it reached."""
        made, _ = self._definition(name)
        training, mine = self._training(), {m.run for m in made.members()}
        jobs = [job for run, job in training.items() if run in mine]
        for job in sorted(jobs, key=lambda j: j["state"] == "running"):  # first what waits, else it would start
            self.cancel(job["id"])
        return self.diagram(name)

    # ------------------------------------------------------------ parts

    def _readable(self, name: str) -> bool:
        try:
            self._definition(name)
        except Broken:
            return False
        return True

    def _defined(
        self, declared: Recipe, x: str, xs: Sequence[float], y: str, ys: Sequence[float], seeds: int | Sequence[int],
        params: dict[str, Any], name: str, command: str,
    ) -> Diagram:
        numbers = self.sweepable(declared.name)
        for axis in (x, y):
            if axis not in numbers or x == y:
                raise BadInput(f"Diagram over {x} and {y}", "these are not two different numeric params",
                               f"Choose two of {', '.join(numbers)}")  # fmt: skip
        if "n_checkpoints" in numbers:
            params.setdefault("n_checkpoints", 2)  # the first and the last: a diagram is read from curves
        listed = list(range(seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
        if not (xs and ys and listed) or len(xs) * len(ys) * len(listed) > MAX_RUNS or len(set(listed)) < len(listed):
            raise BadInput(f"Diagram of {len(xs)} x {len(ys)} cells, {len(listed)} seeds",
                           "not between 1 and 4000 different runs", "Give other values or seeds")  # fmt: skip
        base = {k: v for k, v in params.items() if k not in (x, y, "seed")}
        at = [self._axis(declared, base, a, v, {o: vs[0]}) for a, v, o, vs in ((x, xs, y, ys), (y, ys, x, xs))]
        one = validated(declared.params, {**base, x: at[0][0], y: at[1][0]}, declared.title).model_dump(mode="json")
        base = {k: one[k] for k in base}  # as the recipe reads them: a command line gives words
        named = self._run_name(name or self._free_diagram(declared.name))
        return Diagram(name=named, recipe=declared.name, x=x, xs=at[0], y=y, ys=at[1], seeds=tuple(listed),
                       params=base, created=time.time(), command=command)  # fmt: skip

    def _name_with_room(self, name: str, longest: str) -> None:
        """Refuse a name that leaves no room for what its runs add to it."""
        over = len(longest) - LONGEST_NAME
        if over > 0:
            raise BadInput(f"Diagram {name!r}", f"its runs' names, such as {longest!r}, are too long by {over}",
                           f"Use at most {len(name) - over} characters")  # fmt: skip

    def _axis(
        self, declared: Recipe, base: Mapping[str, Any], axis: str, values: Sequence[float], other: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Return the values as the recipe reads them (3.0 may be the whole number 3), ascending."""
        read = [getattr(validated(declared.params, {**base, **other, axis: v}, declared.title), axis) for v in values]
        if len(set(read)) < len(read):
            raise BadInput(f"Diagram over {axis}", "a value stands there twice", "Give each value once")
        return tuple(sorted(read))

    def _free_diagram(self, recipe: str) -> str:
        taken = {*self._diagram_files(), *(p.name.split(".")[0] for p in self.settings.runs.glob(f"{recipe}-diagram*"))}
        return next(n for i in range(1, 10_000) if (n := f"{recipe}-diagram-{i}") not in taken)

    def _refuse_foreign(self, made: Diagram) -> None:
        """Refuse a name under which runs of something else lie already."""
        self._check_free([m.run for m in made.members()])
