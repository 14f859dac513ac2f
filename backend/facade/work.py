"""Jobs and training runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from backend.contract import Recipe, Request, canonical_hash
from backend.errors import BadInput, NotFound
from backend.facade.base import Base, pick, validated

LONGEST_NAME = 80  # characters of a run's folder


class Work(Base):
    """The part of the facade that watches jobs and runs."""

    def _job_changed(self, job: Any) -> None:
        self.store.put_job(job.record())
        if job.kind == "train" and job.ended:
            self.follower.poll()  # who waited for the job finds the run as it is now

    def _job_result(self, job: Any, output: Any) -> None:
        if job.kind == "analysis":
            request = Request(**job.payload["request"])
            self.store.put(self.analysis(request.analysis), request, output, card=job.payload["card"], job_id=job.id)
        elif job.kind == "open":
            self.store.put_model(output["card"], output["signature"])

    def jobs(self, states: Sequence[str] | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """Return jobs, newest first, with live progress."""
        return [self._live(r) for r in self.store.jobs(states=list(states) if states else None, limit=limit)]

    def job(self, job_id: str) -> dict[str, Any]:
        """Return one job. Raises NotFound."""
        record = self.store.job(job_id)
        if record is None:
            raise NotFound(f"Job {job_id}", "no such job", "Look at the Jobs page or `python -m backend jobs`")
        return self._live(record)

    def wait(self, job_id: str, timeout: float) -> dict[str, Any]:
        """Wait until a job has ended, at most `timeout` seconds; returns its record either way."""
        self.engine.wait(job_id, timeout)
        return self.job(job_id)

    def cancel(self, job_id: str, force: bool = False) -> dict[str, Any]:
        """Stop a job: at its next report, or by ending its worker where `force`."""
        self.engine.cancel(job_id, force=force)
        return self.job(job_id)

    def retry(self, job_id: str) -> dict[str, Any]:
        """Queue a failed, cancelled or interrupted job again; training goes on from its last checkpoint."""
        record = self.job(job_id)
        if self.engine.get(job_id) is None:
            self.engine.adopt([{k: v for k, v in record.items() if k != "position"}])
        job = self.engine.resume(job_id) if record["kind"] == "train" else self.engine.retry(job_id)
        return self._job_record(job)

    def workers(self) -> list[dict[str, Any]]:
        """Return one record per worker process."""
        return self.engine.workers()

    # ------------------------------------------------------------ runs

    def train(
        self, recipe: str, params: Mapping[str, Any], name: str = "", run_dir: str = "", resume: bool = False,
        group: str = "",
    ) -> dict[str, Any]:
        """Start (or resume) a training run as a job. Returns {run, job}. Raises BadInput for params or a taken name.

        A `group` (a family of runs, a phase diagram) is kept in run.json.
        """
        asked = self.recipe(recipe)
        checked = validated(asked.params, params, asked.title)
        given = checked.model_dump(mode="json", exclude_unset=resume)  # a default is not said against the run's own
        folder = (
            Path(run_dir)
            if run_dir
            else self.settings.runs / (self._run_name(name) if name else self._free_name(asked, checked))
        )
        written = (folder / "run.json").exists()
        if not resume and (written or self._training_into(folder)):
            todo = "Choose another name, or go on with it: --resume on the command line, Resume on its page"
            raise BadInput(f"Train into {folder.name}", "a run of that name exists", todo)
        if resume and not written:
            raise NotFound(f"Resume {folder.name}", f"there is no run in {folder}", "Correct the folder")
        extra = {"group": self._run_name(group)} if group else {}
        payload = {"recipe": recipe, "params": given, "run_dir": str(folder), "resume": resume, "extra": extra}
        job = self.engine.submit("train", canonical_hash({"train": str(folder)}), f"Train {folder.name}", payload)
        return {"run": folder.name, "job": self._job_record(job)}

    def train_many(
        self, recipe: str, runs: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, group: str = ""
    ) -> list[dict[str, Any]]:
        """Start one run per dict of params, all of one `group`; without names they are `<group>.0`, `<group>.1`, ...

        Returns [{run, job}]. Raises BadInput before any is started: params, taken or repeated names.
        """
        asked = self.recipe(recipe)
        for params in runs:
            validated(asked.params, params, asked.title)
        free = names if names is not None else self._free_names(group, len(runs)) if group else [""] * len(runs)
        self._check_names([*free, group] if group else free, len(runs) + bool(group))
        self._check_free(free)
        return [self.train(recipe, p, name=n, group=group) for p, n in zip(runs, free, strict=True)]

    def _check_names(self, names: Sequence[str], expected: int) -> None:
        if len(names) != expected:
            raise BadInput(f"Train {expected} runs", f"{len(names)} names were given", "Give one name per run")
        for name in filter(None, names):
            self._run_name(name)

    def _check_free(self, names: Sequence[str]) -> None:
        given = [n for n in names if n]
        known = {r["name"] for r in self.runs(expected=given)}
        for at, name in enumerate(given):
            if name in known or name in given[:at] or (self.settings.runs / name).exists():
                raise BadInput(f"Train into {name}", "a run of that name exists", "Choose other names")

    def _free_names(self, group: str, n: int) -> list[str]:
        taken = {p.name for p in self.settings.runs.glob(f"{group}.*")} | {r["name"] for r in self.runs()}
        return [name for i in range(n + len(taken)) if (name := f"{group}.{i}") not in taken][:n]

    def _run_name(self, name: str) -> str:
        if len(name) > LONGEST_NAME or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise BadInput(
                f"Run name {name!r}", "not a plain folder name", "Use letters, digits, dot, dash, underscore"
            )
        return name

    def _free_name(self, recipe: Recipe, params: Any) -> str:
        base = f"{recipe.called(params) if recipe.called else recipe.name}-seed{getattr(params, 'seed', 0)}"
        taken = {p.name for p in self.settings.runs.glob("*")} | {r["name"] for r in self.runs()}
        return next(n for n in [base, *(f"{base}-{i}" for i in range(2, 10_000))] if n not in taken)

    def _training_into(self, folder: Path) -> bool:
        return any(Path(j["payload"]["run_dir"]) == folder for j in self._training().values())

    def _training(self) -> dict[str, dict[str, Any]]:
        """Return {run: job} of the training that waits or runs."""
        jobs = [j for j in self.engine.jobs() if j.kind == "train" and not j.ended]
        return {Path(j.payload["run_dir"]).name: self._job_record(j) for j in jobs}

    def resume_run(self, name: str) -> dict[str, Any]:
        """Go on with a stopped or interrupted run from its last checkpoint."""
        info = self.run(name)
        if info.get("shipped") or not info.get("recipe"):
            raise BadInput(f"Resume {name}", "not a run of a recipe on this machine", "Start a new run with its params")
        return self.train(info["recipe"], info["params"], run_dir=info["folder"], resume=True)

    def job_of_run(self, name: str) -> dict[str, Any] | None:
        """Return the unfinished training job of a run, if any."""
        return self._training().get(name)

    def runs(self, expected: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return every run's record: name, folder, recipe, params, state, checkpoints, last_step.

        A run whose training waits for a worker, or has not written yet, is there as `queued` or `running`. Where a
        training ended since the last look, or one of the `expected` names is not known yet, the folders are looked at
        anew: it may have been written just now.
        """
        written = self.follower.runs()
        ended = max((j.finished or 0.0 for j in self.engine.jobs() if j.kind == "train"), default=0.0)
        if ended >= self.follower.looked or set(expected) - {r["name"] for r in written}:
            self.follower.poll()
            written = self.follower.runs()
        names = {r["name"] for r in written}
        coming = [
            {"name": n, "state": j["state"], "folder": j["payload"]["run_dir"], "recipe": j["payload"]["recipe"],
             "params": j["payload"]["params"], "checkpoints": [], "last_step": 0,
             "group": (j["payload"].get("extra") or {}).get("group", "")}
            for n, j in self._training().items()
            if n not in names
        ]  # fmt: skip
        return coming + written

    def run(self, name: str) -> dict[str, Any]:
        """Return one run's record. Raises NotFound with the known names."""
        return pick({r["name"]: r for r in self.runs(expected=[name])}, name, "Run")

    def siblings(self, spec: str) -> dict[str, list[int]]:
        """Return {run: its checkpoints} of the runs whose model has the shape of this run's, itself the first; {} where
        `spec` is no run's. Seeds may differ."""
        runs = {f"run:{r['name']}": r for r in self.runs() if r["checkpoints"] and isinstance(r.get("model"), dict)}
        if spec not in runs:
            return {}
        alike = [r for s, r in runs.items() if s != spec and _shape(r["model"]) == _shape(runs[spec]["model"])]
        return {r["name"]: list(r["checkpoints"]) for r in (runs[spec], *alike)}

    def metric_names(self, run: str) -> list[str]:
        """Return the names of a run's metrics, without their places, in alphabetical order."""
        return self.store.metric_names(run)

    def metrics(self, run: str, names: Sequence[str] | None = None, points: int = 2000) -> pd.DataFrame:
        """Return [step, metric, layer, head, value], thinned to `points` per series with minima and maxima kept."""
        return self.store.metrics(run, list(names) if names else None, points=points)


def _shape(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two models must share for the weights of one to fit the other."""
    config = {k: v for k, v in (model.get("config") or {}).items() if k not in ("seed", "device")}
    return {"kind": model.get("kind"), **config}
