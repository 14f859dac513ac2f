"""Directions of a kept result, kept by name so that interventions can follow them."""

from __future__ import annotations

from typing import Any

from backend.errors import BadInput
from backend.facade.results import Results
from backend.facade.work import Work
from backend.models import trained
from backend.runs import directions


class Directions(Work, Results):
    """The part of the facade that keeps directions."""

    def companion(self, run: str) -> dict[str, Any]:
        """Return run.json of a lens or an SAE, given by name or, an SAE of others, as the path of a SAELens folder.

        Raises NotFound, Unfit or Unsupported with one sentence.
        """
        return trained.locate(run, None, self.settings).record

    def keep_directions(self, key: str, name: str) -> dict[str, Any]:
        """Keep the directions of a result of pca_directions as a run; `add ... feature NAME i` then adds direction i.

        Returns {name, point, layer, n}. Raises NotFound for no such result, BadInput for another analysis' result, an
        odd name, or one that a run has.
        """
        record, asked = self.record(key), f"Keep directions as {name!r}"
        if record["analysis"] != "pca_directions":
            raise BadInput(asked, f"the result is of {record['analysis']}", "Give a result of pca_directions")
        self._check_free([self._run_name(name)])
        table, params = self.table(key), record["params"]
        made = {"point": params["point"], "layer": params["layer"]}
        directions.keep(self.settings.runs / name, record["card"], list(table["vector"]), **made)
        return {"name": name, **made, "n": len(table)}
