"""The facade: introduces the rooms to each other. Every argument could be JSON, every answer a table, a figure
or a small record; never a model, never a connection."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from backend import analyses as analyses_room
from backend import settings as settings_room
from backend.contract import (
    Analysis, ModelCard, Params, Prompt, Recipe, Request, View, Weights, canonical_hash, parse_spec,
)
from backend.errors import BadInput, NotFound, Unfit
from backend.jobs.engine import Engine
from backend.models import fingerprints, registry, tokens
from backend.runs import follow, recipes
from backend.store.store import Store
from backend.tables import block, unpack

UNFINISHED = ("queued", "running")


class Backend:
    """One owner of the store, the engine and the follower. Close it when done.

    `inline=True` computes in this process (command line without a dashboard, unit tests); otherwise Dask workers do.
    Raises Busy when another process holds the store.
    """

    def __init__(self, settings: settings_room.Settings | None = None, inline: bool = False):
        self.settings = settings or settings_room.load()
        self.store = Store.open(self.settings.cache, int(self.settings.cache_gb * 1e9))
        self.engine = Engine(self._driver(inline), on_change=self._job_changed, on_result=self._job_result)
        self.engine.adopt(self.store.jobs(states=list(UNFINISHED)))
        self.follower = follow.Follower([self.settings.runs, settings_room.SHIPPED_RUNS], self.store)
        self.follower.start()

    def _driver(self, inline: bool) -> Any:
        if inline:
            from backend.jobs.inline import InlineDriver

            return InlineDriver(self.settings)
        from backend.jobs.dask_driver import DaskDriver

        return DaskDriver(self.settings)

    def close(self) -> None:
        """End the workers, stop following, close the file. Safe to call twice."""
        self.follower.stop()
        self.engine.close()
        self.store.close()

    @property
    def notices(self) -> list[str]:
        """What a person should be told: files set aside, analyses that could not be read."""
        return [*self.store.notices, *analyses_room.problems()]

    # ------------------------------------------------------------ analyses and recipes

    def analyses(self) -> dict[str, Analysis]:
        """Return every registered analysis by name."""
        return analyses_room.registry()

    def analysis(self, name: str) -> Analysis:
        """Return one analysis. Raises NotFound with the known names."""
        return _pick(self.analyses(), name, "Analysis")

    def recipes(self) -> dict[str, Recipe]:
        """Return every training recipe by name."""
        return recipes.registry()

    def recipe(self, name: str) -> Recipe:
        """Return one recipe. Raises NotFound with the known names."""
        return _pick(self.recipes(), name, "Recipe")

    # ------------------------------------------------------------ models

    def open(self, spec: str, step: int | None = None) -> dict[str, Any]:
        """Return {state: "kept", card} when the weights are known as they lie now, else start the job that opens them."""
        parsed = parse_spec(spec, step)
        located = registry.locate(parsed, self.settings)
        card = self._known_card(located)
        if card is not None:
            return {"state": "kept", "card": card.model_dump(), "job": None}
        step = located.step
        key = canonical_hash({"open": str(parsed), "step": step, "signature": located.signature,
                              "dtype": self.settings.dtype, "device": self.settings.device})
        job = self.engine.submit("open", key, f"Open {parsed}" + (f" at step {step}" if step is not None else ""),
                                 {"spec": str(parsed), "step": step}, affinity=str(parsed))
        return {"state": job.state, "card": None, "job": self._job_record(job)}

    def card(self, spec: str, step: int | None = None) -> ModelCard | None:
        """Return the card of an opened model whose weights have not changed since, or None."""
        return self._known_card(registry.locate(parse_spec(spec, step), self.settings))

    def _known_card(self, located: Any) -> ModelCard | None:
        kept = self.store.model(str(located.spec), located.step)
        if kept is not None and kept[1] == located.signature and self._as_set(kept[0]):
            return ModelCard(**kept[0])
        return self._card_of_sibling(located) if located.spec.scheme == "run" else None

    def _as_set(self, card: Mapping[str, Any]) -> bool:
        """Dtype and device are settings: a card made under others does not hold now."""
        return card["dtype"] == self.settings.dtype and self.settings.device in ("auto", card["device"].split(":")[0])

    def _card_of_sibling(self, located: Any) -> ModelCard | None:
        """A checkpoint shares all but its weights with the others of its run: hash them here, without torch."""
        opened = self.store.models()
        for step in opened["step"][opened["spec"] == str(located.spec)].dropna().astype(int):
            card = self._valid_sibling(located, step)
            if card is not None:
                self.store.put_model(card.model_dump(), located.signature)
                return card
        return None

    def _valid_sibling(self, located: Any, step: int) -> ModelCard | None:
        if step not in located.steps:
            return None
        sibling = registry.locate(located.spec.model_copy(update={"step": step}), self.settings)
        kept = self.store.model(str(located.spec), step)
        if not kept or kept[1] != sibling.signature or sibling.config_signature != located.config_signature or not self._as_set(kept[0]):
            return None
        note = f"Fidelity was measured at step {step} of this run"
        notes = [*(n for n in kept[0]["notes"] if not n.startswith("Fidelity was measured")), note]
        print_ = fingerprints.fingerprint_safetensors(located.files, located.config)
        return ModelCard(**{**kept[0], "step": located.step, "fingerprint": print_, "source": located.source, "notes": notes})

    def models(self) -> pd.DataFrame:
        """Return the models opened so far, last used first."""
        return self.store.models()

    def forget_model(self, spec: str) -> None:
        """Drop a model from the list; its results stay."""
        self.store.forget_model(spec)

    def tokenizer(self, card: Mapping[str, Any]) -> Any:
        """Return the torch-free tokenizer of a card: encode, labels, label."""
        return tokens.tokenizer_from(card["tokenizer"])

    def prompt(self, card: Mapping[str, Any], text: str = "", ids: Sequence[int] | str | None = None) -> Prompt:
        """Make a Prompt of a text or of token ids. Raises BadInput where it is empty, too long or out of the vocabulary."""
        if ids:
            found = tokens.parse_ids(ids if isinstance(ids, str) else " ".join(map(str, ids)), card["d_vocab"])
        else:
            found = self.tokenizer(card).encode(text)
        tokens.check_length(found, card["n_ctx"])
        return Prompt(tokens=tuple(found), text=text)

    # ------------------------------------------------------------ asking

    def request(self, analysis: str, card: ModelCard | Mapping[str, Any], subject: Prompt | Weights, params: Mapping[str, Any]) -> Request:
        """Name everything the number depends on. Raises BadInput (params) or Unfit (the model cannot)."""
        asked = self.analysis(analysis)
        card = card if isinstance(card, ModelCard) else ModelCard(**card)
        reason = asked.unfit(card.capabilities)
        if reason:
            raise Unfit(f"{asked.title} of {card.spec}", reason, "Choose another model or analysis")
        return Request(
            analysis=asked.name, version=asked.version, spec=card.spec, step=card.step, fingerprint=card.fingerprint,
            dtype=card.dtype, device=card.device, subject=subject.model_dump(),
            params=validated(asked.params, params, asked.title).model_dump(),
        )

    def kept(self, analysis: str, card: ModelCard | Mapping[str, Any], subject: Prompt | Weights,
             params: Mapping[str, Any] | None = None) -> str | None:
        """Return the key of the result where it is kept, else None; starts nothing."""
        key = self.request(analysis, card, subject, params or {}).key
        return key if self.store.has(key) else None

    def last_job(self, key: str) -> dict[str, Any] | None:
        """Return the newest job that was to compute this key, or None."""
        record = self.store.job_of_key(key)
        return self._live(record) if record else None

    def ask(self, analysis: str, card: ModelCard | Mapping[str, Any], subject: Prompt | Weights,
            params: Mapping[str, Any] | None = None, recompute: bool = False) -> dict[str, Any]:
        """Return {state: "kept", key} or the job that computes it {state, key, job}."""
        card = card if isinstance(card, ModelCard) else ModelCard(**card)
        request = self.request(analysis, card, subject, params or {})
        if recompute:
            self.store.delete([request.key])
        if self.store.has(request.key):
            return {"state": "kept", "key": request.key, "job": None}
        words = f"{self.analysis(analysis).title}: {card.spec}" + (f" at step {card.step}" if card.step is not None else "")
        payload = {"request": request.model_dump(mode="json"), "card": card.model_dump()}
        job = self.engine.submit("analysis", request.key, words, payload, affinity=card.fingerprint)
        return {"state": job.state, "key": request.key, "job": self._job_record(job)}

    def submit(self, analysis: str, model: str, step: int | None = None, text: str = "",
               ids: Sequence[int] | str | None = None, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask by words alone. An unopened model answers {state: "opening", job}: wait for it and ask again."""
        opened = self.open(model, step)
        if opened["card"] is None:
            return {"state": "opening", "key": "", "job": opened["job"]}
        asked = self.analysis(analysis)
        subject = self.prompt(opened["card"], text, ids) if asked.subject is Prompt else Weights()
        return self.ask(analysis, opened["card"], subject, params)

    def sweep(self, analysis: str, run: str, steps: Sequence[int], subject: Prompt | Weights,
              params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Ask the same at many checkpoints of a run; each is cached by itself. Returns [step, key, state, job_id]."""
        rows = []
        for step in steps:
            card = self.card(run, step)
            if card is None:
                raise BadInput(f"Sweep over {run}", "the run has not been opened yet", "Open it once, then sweep")
            answer = self.ask(analysis, card, subject, params)
            rows.append((step, answer["key"], answer["state"], (answer["job"] or {}).get("id", "")))
        return pd.DataFrame(rows, columns=["step", "key", "state", "job_id"])

    def sweep_table(self, sweep: pd.DataFrame) -> pd.DataFrame:
        """Return the kept tables of a sweep under each other, with the column `step` first."""
        kept = [(r.step, r.key) for r in sweep.itertuples() if self.store.has(r.key)]
        tables = [self.table(key, arrays=False).assign(step=step) for step, key in kept]
        if not tables:
            return pd.DataFrame()
        joined = pd.concat(tables, ignore_index=True)
        return joined[["step", *(c for c in joined if c != "step")]]

    def seconds_expected(self, analysis: str) -> float | None:
        """Return the median seconds that kept results of this analysis took, or None."""
        kept = self.store.results(analysis=analysis, limit=20)
        return float(kept["seconds"].median()) if len(kept) else None

    # ------------------------------------------------------------ results

    def has(self, key: str) -> bool:
        """Say whether a result is kept under this key."""
        return self.store.has(key)

    def record(self, key: str) -> dict[str, Any]:
        """Return the provenance of a kept result. Raises NotFound."""
        record = self.store.record(key)
        if record is None:
            raise NotFound(f"Result {key}", "not kept (never computed, deleted or evicted)", "Ask the analysis again")
        return record

    def _declaration(self, record: Mapping[str, Any]) -> Analysis:
        found = self.analysis(record["analysis"])
        if found.version != record["version"]:
            raise NotFound(f"Result {record['key']}", f"made by version {record['version']}, now {found.version}",
                           "Compute it again, or read its table by SQL")
        return found

    def table(self, key: str, where: Mapping[str, int] | None = None, arrays: bool = True) -> pd.DataFrame:
        """Return the tidy table of a result, or of one part of it; array columns only where `arrays`."""
        asked = self._declaration(self.record(key))
        part = dict(where or {})
        frame = self.store.table(asked, key, part or None)
        if not arrays or not asked.arrays:
            return frame
        blobs = [b for v in asked.arrays for b in self.store.arrays(key, v.name, part or None)]
        return unpack(asked, frame, blobs)

    def array(self, key: str, column: str, where: Mapping[str, int]) -> Any:
        """Return one packed block (a head: [query_pos, key_pos]) as a numpy array."""
        found = self.store.arrays(key, column, dict(where))
        if not found:
            raise NotFound(f"{column} of {key} at {dict(where)}", "no such part", "Choose a layer and head of the model")
        return block(found[0])

    def thumbnails(self, key: str, column: str) -> tuple[list[dict[str, int]], Any]:
        """Return (parts, uint8 [n, rows, cols]): the small display copies of an array column."""
        import numpy as np

        found = self.store.arrays(key, f"{column}@display")
        return [b.part for b in found], np.stack([block(b) for b in found])

    def figure(self, key: str, name: str, chosen: Mapping[str, Any] | None = None) -> Any:
        """Build one figure of a kept result; reads the array columns of the chosen part only."""
        record = self.record(key)
        asked = self._declaration(record)
        figure = _pick(asked.figures, name, "Figure")
        where = {a: int((chosen or {})[a]) for a in figure.choose if a in (chosen or {})}
        return figure.build(self.table(key, where, arrays=bool(figure.choose)), self._view(record, chosen))

    def _view(self, record: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> View:
        card = record["card"]
        words = self.tokenizer(card)
        ids = record["subject"].get("tokens", [])
        return View(tokens=words.labels(ids), vocab=words.label, params=record["params"], chosen=dict(chosen or {}), card=card)

    def results(self, analysis: str | None = None, text: str = "", limit: int = 200, offset: int = 0) -> pd.DataFrame:
        """Return kept results, last used first."""
        return self.store.results(analysis=analysis, text=text, limit=limit, offset=offset)

    def count_results(self, analysis: str | None = None, text: str = "") -> int:
        """Return how many results fit the filter."""
        return self.store.count_results(analysis=analysis, text=text)

    def delete(self, keys: Sequence[str]) -> int:
        """Delete results with their arrays; returns how many there were."""
        return self.store.delete(list(keys))

    def pin(self, key: str, pinned: bool) -> None:
        """Keep a result from eviction, or let it go."""
        self.store.pin(key, pinned)

    def sql(self, key: str) -> str:
        """Return the SQL that fetches the numbers of a result."""
        return self.store.sql_for(self._declaration(self.record(key)), key)

    def query(self, sql: str) -> pd.DataFrame:
        """Run one reading SQL statement. Raises BadInput for anything else."""
        return self.store.query(sql)

    # ------------------------------------------------------------ jobs

    def _job_record(self, job: Any) -> dict[str, Any]:
        return {**job.record(), "position": self.engine.position(job.id)}

    def _job_changed(self, job: Any) -> None:
        self.store.put_job(job.record())

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

    def _live(self, record: dict[str, Any]) -> dict[str, Any]:
        live = self.engine.get(record["id"])
        return self._job_record(live) if live is not None else {**record, "position": None}

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
        job = self.engine.resume(job_id) if record["kind"] == "train" else self.engine.retry(job_id)
        return self._job_record(job)

    def workers(self) -> list[dict[str, Any]]:
        """Return one record per worker process."""
        return self.engine.workers()

    # ------------------------------------------------------------ runs

    def train(self, recipe: str, params: Mapping[str, Any], name: str = "", run_dir: str = "",
              resume: bool = False) -> dict[str, Any]:
        """Start (or resume) a training run as a job. Returns {run, job}. Raises BadInput for params or a taken name."""
        asked = self.recipe(recipe)
        given = validated(asked.params, params, asked.title).model_dump(mode="json")
        folder = Path(run_dir) if run_dir else self.settings.runs / (self._run_name(name) if name else self._free_name(recipe, given))
        if not resume and (folder / "run.json").exists():
            raise BadInput(f"Train into {folder.name}", "a run of that name exists", "Choose another name or resume it")
        payload = {"recipe": recipe, "params": given, "run_dir": str(folder), "resume": resume}
        job = self.engine.submit("train", canonical_hash({"train": str(folder)}), f"Train {folder.name}", payload)
        return {"run": folder.name, "job": self._job_record(job)}

    def _run_name(self, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
            raise BadInput(f"Run name {name!r}", "not a plain folder name", "Use letters, digits, dot, dash, underscore")
        return name

    def _free_name(self, recipe: str, params: Mapping[str, Any]) -> str:
        base = f"{recipe}-seed{params.get('seed', 0)}"
        taken = {p.name for p in self.settings.runs.glob("*")} | {j["payload"].get("run_dir", "").rsplit("/", 1)[-1]
                                                                for j in self.jobs(states=UNFINISHED) if j["kind"] == "train"}
        return next(n for n in [base, *(f"{base}-{i}" for i in range(2, 10_000))] if n not in taken)

    def resume_run(self, name: str) -> dict[str, Any]:
        """Go on with a stopped or interrupted run from its last checkpoint."""
        info = self.run(name)
        if info.get("shipped") or not info.get("recipe"):
            raise BadInput(f"Resume {name}", "not a run of a recipe on this machine", "Start a new run with its params")
        return self.train(info["recipe"], info["params"], run_dir=info["folder"], resume=True)

    def job_of_run(self, name: str) -> dict[str, Any] | None:
        """Return the unfinished training job of a run, if any."""
        wanted = [j for j in self.jobs(states=UNFINISHED) if j["kind"] == "train" and Path(j["payload"]["run_dir"]).name == name]
        return wanted[0] if wanted else None

    def runs(self) -> list[dict[str, Any]]:
        """Return every run's record: name, folder, recipe, params, state, checkpoints, last_step."""
        return self.follower.runs()

    def run(self, name: str) -> dict[str, Any]:
        """Return one run's record. Raises NotFound with the known names."""
        return _pick({r["name"]: r for r in self.runs()}, name, "Run")

    def metrics(self, run: str, names: Sequence[str] | None = None, points: int = 2000) -> pd.DataFrame:
        """Return [step, metric, layer, head, value], thinned to `points` per series with minima and maxima kept."""
        return self.store.metrics(run, list(names) if names else None, points=points)

    # ------------------------------------------------------------ health

    def health(self) -> dict[str, Any]:
        """Return a small record for the API and the Home page."""
        workers = self.workers()
        return {"ok": True, "time": time.time(), "workers": len(workers), "cache_bytes": self.store.size_bytes(),
                "cache": str(self.settings.cache), "notices": self.notices, "unfinished": len(self.jobs(states=UNFINISHED))}


def validated(model: type[Params], given: Mapping[str, Any], what: str) -> Params:
    """Return frozen params. Raises BadInput that names the first wrong field and its range."""
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(model.model_fields) or "none"
        todo = f"Params are: {known}" if first["type"] == "extra_forbidden" else "Correct it"
        raise BadInput(f"{what}: {field}={first['input']!r}", first["msg"], todo) from None


def _pick(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise NotFound(f"{what} {name!r}", "no such name", f"Known: {', '.join(sorted(known)) or 'none yet'}")
    return known[name]
