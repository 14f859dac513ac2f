"""What a run's numbers mean, and asking a running one for a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from backend import monitors
from backend.contract import Metric
from backend.errors import BadInput
from backend.facade.work import Work
from backend.runs import layout


class Training(Work):
    """The part of the facade that speaks to a run while it trains."""

    def metric_words(self, recipes: Collection[str] = ()) -> dict[str, Metric]:
        """Return the words of every metric by name without its place: the shared monitors', then each recipe's.

        Where runs of one recipe alone are shown, its own words of a shared name (a loss that is no cross-entropy) win;
        of several that measure it in different units each is said.
        """
        words = dict(monitors.metrics())
        for recipe in self.recipes().values():
            alone = set(recipes) == {recipe.name}
            words |= {metric.name: metric for metric in recipe.metrics if alone or metric.name not in words}
        return words | self._mixed(words, recipes)

    def _mixed(self, words: Mapping[str, Metric], recipes: Collection[str]) -> dict[str, Metric]:
        """Return the metrics that these recipes measure in different units, with all of those for a unit."""
        own = {name: {m.name: m.unit for m in r.metrics} for name, r in self.recipes().items() if name in recipes}
        found = {}
        for metric in {name for units in own.values() for name in units}:
            units = {recipe: told.get(metric, words[metric].unit) for recipe, told in own.items()}
            if len(set(units.values())) > 1:
                said = ", ".join(f"{unit or 'no unit'} ({recipe})" for recipe, unit in units.items())
                found[metric] = replace(words[metric], unit=said)
        return found

    def checkpoint_now(self, run: str) -> dict[str, Any]:
        """Ask a running run for a checkpoint at its next step. Returns {run, last_step, request}.

        Raises NotFound for no such run, BadInput where nobody writes to it (nothing would hear the request).
        """
        record = self.run(run)
        if record["state"] != "running":
            raise BadInput(f"A checkpoint of {run} now", f"the run is {record['state']}", "Resume it first")
        if not (Path(record["folder"]) / layout.RUN).is_file():
            raise BadInput(f"A checkpoint of {run} now", "its program writes event files and would not hear of it",
                           "Use the Recorder in that program to keep weights")  # fmt: skip
        try:
            layout.write_whole(Path(record["folder"]) / layout.REQUEST, b"")
        except OSError as error:
            found = f"its folder cannot be written ({error.strerror})"
            raise BadInput(f"A checkpoint of {run} now", found, "Correct the rights") from None
        return {"run": run, "last_step": record.get("last_step"), "request": layout.REQUEST}
