"""A phase diagram read: where it stands, its curves, the phases under given thresholds, what each cell says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from backend.facade.base import pick
from backend.facade.work import Work
from backend.maths import phases
from backend.maths.phases import Outcome, Thresholds
from backend.runs import diagrams
from backend.runs.diagrams import Diagram, Member
from backend.settings import SHIPPED_RUNS

ALL_POINTS = 1_000_000  # a threshold must not be looked for in a thinned curve
LIVE = ("queued", "running")
KEPT_CURVES = 4000  # runs whose curves stay in memory
PAIRS = (("train_accuracy", "test_accuracy"), ("train_acc", "test_acc"), ("train_accuracy", "val_accuracy"))


class DiagramCurves(Work):
    """The part of the facade that reads phase diagrams."""

    @cached_property
    def _read_curves(self) -> dict[Any, pd.DataFrame]:
        return {}

    def diagram(self, name: str) -> dict[str, Any]:
        """Return the definition with state ("running", "done" or "unfinished"), done, failed and its runs: {run, i, j,
        x, y, seed, state, progress, last_step, error, job (the id of its unfinished job or "")}. Raises NotFound with
        the known names."""
        made, shipped = self._definition(name)
        runs = self._shipped_members(made) if shipped else self._members(made)
        states = Counter(r["state"] for r in runs)
        whole = "done" if states["finished"] == len(runs) else "unfinished"
        state = "running" if any(states[s] for s in LIVE) else whole
        return {**made.model_dump(mode="json"), "shipped": shipped, "state": state, "done": states["finished"],
                "failed": states["failed"], "runs": runs}  # fmt: skip

    def diagram_metrics(self, name: str) -> list[str]:
        """Return the names of all metrics that the diagram's runs logged so far; none before the first line."""
        record = self.diagram(name)
        if record["shipped"]:
            return sorted(self._handed_on(name)["metric"].unique())
        seen = [r["run"] for r in record["runs"] if r["state"] != "missing" and r["state"] != "queued"]
        return sorted({m for run in seen[:1] + seen[-1:] for m in self.store.metric_names(run)})

    def declared_metrics(self, recipe: str) -> list[str]:
        """Return the names of the metrics without a place that a recipe says it logs; [] for an unknown recipe."""
        known = self.recipes().get(recipe)
        return [m.name for m in known.metrics if not m.per] if known else []

    def phase_metrics(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Return which of these metrics are accuracy on training and on held-out data, None where they are not
        there."""
        return next(((a, b) for a, b in PAIRS if a in names and b in names), None)

    def diagram_curves(
        self, name: str, metrics: Sequence[str] | None = None, runs: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Return [run, metric, step, value] of a diagram's runs, unthinned (a diagram that is handed on holds what it
        holds); a metric per layer or head is named `name/L1H2`."""
        record = self.diagram(name)
        if record["shipped"]:
            frame = self._handed_on(name)
            chosen = frame["metric"].isin(list(metrics)) if metrics else np.ones(len(frame), bool)
            chosen &= frame["run"].isin(list(runs)) if runs is not None else True
            return frame[chosen]
        asked = [r for r in record["runs"] if r["state"] != "missing" and (runs is None or r["run"] in runs)]
        frames = [self._curves_of(r, tuple(metrics or ())) for r in asked]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=diagrams.COLUMNS)

    def diagram_outcomes(
        self, name: str, accuracy: float = 0.9, delay: float = 1000.0, budget: float | None = None,
        train: str = "", test: str = "",
    ) -> pd.DataFrame:
        """Return one row per run: i, j, seed, state, progress, phase ("" while undecided), final (the run has ended;
        until then the phase is how it looks so far), the steps at which train and test reached `accuracy`, each with
        the logged step before it, and the delay in steps with its error.

        `train` and `test` name metrics, by default those of `phase_metrics`. Nothing is trained.
        """
        record = self.diagram(name)
        pair = (train, test) if train and test else self.phase_metrics(self.diagram_metrics(name))
        curves = self.diagram_curves(name, pair) if pair else pd.DataFrame(columns=diagrams.COLUMNS)
        found = dict(list(curves.groupby(["run", "metric"])))
        thresholds = Thresholds(accuracy, delay, budget)
        rows = [{**r, **_outcome_row(_outcome(r, found, pair, thresholds))} for r in record["runs"]]
        return pd.DataFrame(rows)

    def diagram_final(self, name: str, metric: str) -> pd.DataFrame:
        """Return one row per run: i, j, seed, state, progress, value = the last logged value of a metric (or NaN)."""
        last = self.diagram_curves(name, [metric]).sort_values("step").groupby("run")["value"].last()
        return pd.DataFrame([{**r, "value": last.get(r["run"], np.nan)} for r in self.diagram(name)["runs"]])

    def diagram_cells(self, outcomes: pd.DataFrame) -> pd.DataFrame:
        """Return one row per cell of `diagram_outcomes`: i, j, x, y, phase (majority of the runs that have ended),
        agree, counts {phase: runs}, provisional (none has ended: the phase is how it looks so far), n ended of n_seeds,
        delay in steps (median), running (mean progress of those under way, NaN where none), waiting, failed."""
        rows = [_cell(i, j, group) for (i, j), group in outcomes.groupby(["i", "j"], sort=True)]
        return pd.DataFrame(rows)

    def diagram_phases(
        self, name: str, accuracy: float = 0.9, delay: float = 1000.0, budget: float | None = None
    ) -> pd.DataFrame:
        """Return the cells of a diagram under these thresholds, as `diagram_cells` does."""
        return self.diagram_cells(self.diagram_outcomes(name, accuracy, delay, budget))

    def export_diagram(self, name: str, folder: str, metrics: Sequence[str] = (), command: str = "") -> list[str]:
        """Write a diagram's definition and curves into a folder, to be handed on without its run folders; returns the
        files. By default the metrics are accuracy and loss on training and held-out data."""
        record = self.diagram(name)
        fields = {k: v for k, v in record.items() if k in Diagram.model_fields}
        names = metrics or [m for m in self.diagram_metrics(name) if m.split("_")[0] in ("train", "test")]
        curves = self.diagram_curves(name, list(names) or None)
        made = Diagram(**{**fields, "command": command or fields["command"]})
        target = Path(folder)
        return [str(diagrams.write(target, made)), str(diagrams.write_curves(target, name, curves))]

    # ------------------------------------------------------------ parts

    def _diagram_files(self) -> dict[str, Path]:
        return diagrams.find([self.settings.runs, SHIPPED_RUNS])

    def _definition(self, name: str) -> tuple[Diagram, bool]:
        path = pick(self._diagram_files(), name, "Diagram")
        return diagrams.read(path), diagrams.curves_file(path.parent, name).exists()

    def _members(self, made: Diagram) -> list[dict[str, Any]]:
        training, members = self._training(), made.members()
        known = {r["name"]: r for r in self.runs()}
        return [self._member(made, m, known.get(m.run, {}), training.get(m.run)) for m in members]

    def _member(
        self, made: Diagram, member: Member, run: Mapping[str, Any], job: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        state = job["state"] if job else run.get("state", "missing")
        reached, steps = run.get("last_step") or 0, (run.get("params") or {}).get("steps")
        so_far = min(reached / steps, 1.0) if steps else 0.0  # a resumed run's job starts anew at 0
        progress = 1.0 if state == "finished" else max(job["progress"] if job else 0.0, so_far)
        return {"run": member.run, "i": member.i, "j": member.j, "x": made.xs[member.i], "y": made.ys[member.j],
                "seed": member.seed, "state": state, "progress": progress, "last_step": reached,
                "error": "" if job else run.get("error", ""), "job": job["id"] if job else ""}  # fmt: skip

    def _shipped_members(self, made: Diagram) -> list[dict[str, Any]]:
        last = self._handed_on(made.name).groupby("run")["step"].max()
        return [{"run": m.run, "i": m.i, "j": m.j, "x": made.xs[m.i], "y": made.ys[m.j], "seed": m.seed,
                 "state": "finished" if m.run in last else "missing", "progress": float(m.run in last),
                 "last_step": int(last.get(m.run, 0)), "error": "", "job": ""} for m in made.members()]  # fmt: skip

    def _handed_on(self, name: str) -> pd.DataFrame:
        places = [diagrams.curves_file(f, name) for f in (self.settings.runs, SHIPPED_RUNS)]
        path = next(p for p in places if p.exists())
        return self._kept(("file", name, path.stat().st_mtime_ns), lambda: diagrams.read_curves(path))

    def _curves_of(self, run: Mapping[str, Any], metrics: tuple[str, ...]) -> pd.DataFrame:
        """A finished run is read once, where the store has it to its last step."""
        key = ("run", run["run"], run["last_step"], metrics)
        kept = self._read_curves.get(key)
        if kept is not None:
            return kept
        frame = self.store.metrics(run["run"], list(metrics) or None, points=ALL_POINTS)
        named = frame.assign(run=run["run"], metric=_places(frame))[diagrams.COLUMNS]
        whole = run["state"] == "finished" and len(named) and named["step"].max() >= run["last_step"]
        return self._kept(key, lambda: named) if whole else named

    def _kept(self, key: Any, make: Any) -> pd.DataFrame:
        if key not in self._read_curves:
            if len(self._read_curves) >= KEPT_CURVES:
                self._read_curves.clear()
            self._read_curves[key] = make()
        return self._read_curves[key]


def _places(frame: pd.DataFrame) -> list[str]:
    rows = zip(frame["metric"], frame["layer"], frame["head"], strict=True)
    return [m + ("" if pd.isna(a) else f"/L{a}") + ("" if pd.isna(h) else f"H{h}") for m, a, h in rows]


def _outcome(
    run: Mapping[str, Any], curves: Mapping[Any, pd.DataFrame], pair: tuple[str, str] | None, thresholds: Thresholds
) -> Outcome:
    found = [curves.get((run["run"], metric)) for metric in pair or ()]
    ended = run["state"] == "finished"
    if len(found) < 2 or found[0] is None or found[1] is None:
        return Outcome(phases.OPEN, final=ended)
    train, test = ((c["step"].tolist(), c["value"].tolist()) for c in found if c is not None)
    return phases.of_run(train, test, thresholds, ended)


def _outcome_row(found: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"phase": found.phase, "final": found.final, "delay": found.delay,
                           "delay_low": found.delay_low, "delay_high": found.delay_high}  # fmt: skip
    for which, at in (("train", found.train), ("test", found.test)):
        row |= {f"{which}_step": at.step if at else np.nan, f"{which}_before": at.before if at else np.nan}
    return row


def _cell(i: Any, j: Any, runs: pd.DataFrame) -> dict[str, Any]:
    told = runs[["phase", "delay", "final"]].itertuples(index=False)
    cell = phases.majority([Outcome(p, delay=d, final=bool(f)) for p, d, f in told])
    under_way = runs.loc[runs["state"] == "running", "progress"]
    return {"i": int(i), "j": int(j), "x": runs["x"].iloc[0], "y": runs["y"].iloc[0], "phase": cell.phase,
            "agree": cell.agree, "counts": cell.counts, "provisional": cell.provisional, "n": cell.n,
            "n_seeds": len(runs), "delay": cell.delay,
            "running": float(under_way.mean()) if len(under_way) else np.nan,
            "waiting": int((runs["state"] == "queued").sum()), "failed": int((runs["state"] == "failed").sum()),
            "runs": list(runs["run"])}  # fmt: skip
