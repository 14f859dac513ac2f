"""The experiment queue: many analyses of many models at once; how each stands, what it costs, its command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend import slurm
from backend.contract import Analysis, Corpus, ModelCard, Problems, Prompt, Subject, Weights
from backend.errors import PhasescopeError, Unfit
from backend.facade.asking import Asking
from backend.facade.work import Work
from backend.settings import SHIPPED_RUNS

#: written by `make experiments-energy`
CLAIMS = SHIPPED_RUNS / "energy-claims.json"
#: {analysis: {param: value}}
Told = Mapping[str, Mapping[str, Any]]
CANNOT = ("BadInput", "Unfit")  # errors that say that this cannot be asked


@dataclass(frozen=True)
class Place:
    """One analysis of one model: `state` is kept, queued, running, failed, missing, waits (for the model) or unfit.

    `why` says in words what it waits for or why it cannot be; `seconds` what it is expected to take, where known.
    """

    analysis: str
    spec: str
    state: str
    key: str = ""
    job: str = ""
    progress: float = 0.0
    why: str = ""
    seconds: float | None = None


class Queue(Work, Asking):
    """The part of the facade that queues experiments."""

    def experiments(self) -> dict[str, Analysis]:
        """Return the experiments on energy models, in their order."""
        return {n: a for n, a in sorted(self.analyses().items()) if n.startswith("exp") and a.subject is Problems}

    def queue(
        self, names: Sequence[str], specs: Sequence[str], about: Mapping[str, Any], params: Told | None = None
    ) -> list[Place]:
        """Return how every analysis of every model stands; starts nothing but the opening of a model.

        `params` {analysis: what its params are where they are not the defaults}.
        """
        jobs = {j["key"]: j for j in self.jobs(states=["queued", "running"])}
        found: list[Place] = []
        for spec in specs:
            card, waits = self._ready(spec)
            found += [self._place(n, spec, card, about, (params or {}).get(n, {}), jobs) if card else
                      Place(n, spec, "waits", why=waits) for n in names]  # fmt: skip
        return found

    def run_queue(
        self, names: Sequence[str], specs: Sequence[str], about: Mapping[str, Any], params: Told | None = None
    ) -> int:
        """Ask all that is missing or failed; returns how many. Nobody waits for one of them: what is looked at goes
        before. `params` as `queue` takes them."""
        asked = 0
        for place in self.queue(names, specs, about, params):
            if place.state in ("missing", "failed"):
                card = self.card(place.spec)
                if card is not None:
                    subject, told = self._about(place.analysis, card, about), (params or {}).get(place.analysis)
                    self.ask(place.analysis, card, subject, told, urgent=False)
                    asked += 1
        return asked

    def _ready(self, spec: str) -> tuple[ModelCard | None, str]:
        """Return the card, or what the model waits for: its training to end, to be opened, or its mistake."""
        name = spec.removeprefix("run:")
        run = next((r for r in self.runs() if f"run:{r['name']}" == spec), None)
        if run and run["state"] == "running":
            return None, f"{name} is still training"
        try:
            answer = self.open(spec)
        except PhasescopeError as error:
            return None, str(error)
        return (ModelCard(**answer["card"]), "") if answer["card"] else (None, f"{name} is being opened")

    def _about(self, name: str, card: ModelCard, about: Mapping[str, Any]) -> Subject:
        return self.subject(self.analysis(name).subject, card.model_dump(), about)

    def _place(
        self, name: str, spec: str, card: ModelCard, about: Mapping[str, Any], params: Mapping[str, Any],
        jobs: Mapping[str, Mapping[str, Any]],
    ) -> Place:  # fmt: skip
        try:
            subject = self._about(name, card, about)
            key = self.request(name, card, subject, params).key
            if self.has(key):
                return Place(name, spec, "kept", key)
            if key in jobs:
                job = jobs[key]
                return Place(name, spec, job["state"], key, job["id"], job["progress"], job["words"])
            told = self.estimate(name, card, subject, params)
            last = self.last_job(key)
        except PhasescopeError as error:
            return Place(name, spec, "unfit", why=error.found)
        failed = last is not None and last["state"] in ("failed", "interrupted")
        told_why = (last or {}).get("error") or {}
        why = f"{told_why['asked']}: {told_why['found']}" if told_why else str(last and last["state"])
        if failed and told_why.get("error") in CANNOT:  # said by the analysis itself: asking again would not help
            return Place(name, spec, "unfit", key, (last or {}).get("id", ""), why=why)
        if told["refused"]:
            return Place(name, spec, "unfit", key, why=str(told["refused"]["found"]))
        return Place(name, spec, "failed" if failed else "missing", key, (last or {}).get("id", ""), why=why * failed,
                     seconds=told["seconds"])  # fmt: skip

    def shipped_claims(self) -> dict[str, Any]:
        """Return what `make experiments-energy` found: {command, seconds, machine, claims}; {} where it is not here."""
        try:
            return dict(json.loads(CLAIMS.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    # ------------------------------------------------------------ the same on a command line

    def command(
        self, analysis: str, card: ModelCard | Mapping[str, Any], subject: Subject,
        params: Mapping[str, Any] | None = None, out: str = "",
    ) -> list[str]:  # fmt: skip
        """Return the words of the command line that asks the same. Raises Unfit for pairs, which a file would hold."""
        card = card if isinstance(card, ModelCard) else ModelCard(**card)
        chosen = self.request(analysis, card, subject, params or {}).params
        usual = self.analysis(analysis).params().model_dump()
        changed = {n: v for n, v in chosen.items() if v != usual.get(n)}
        return slurm.command(analysis, card.spec, card.step, flags(subject), changed, out)

    def job_script(self, commands: Sequence[Sequence[str]], **more: Any) -> str:
        """Return the text of a SLURM script that runs these commands on this house's runs, see `slurm.script`."""
        return slurm.script(commands, **{"runs": self.settings.runs_elsewhere, **more})


def flags(subject: Subject) -> dict[str, Any]:
    """Return a subject as flags of `python -m backend run`. Raises Unfit for pairs."""
    if isinstance(subject, Problems):
        return {"n-problems": subject.n, "problem-seed": subject.seed, "harder": subject.harder, "task": subject.task}
    if isinstance(subject, Prompt):
        return {"tokens": ",".join(map(str, subject.tokens))}
    if isinstance(subject, Corpus):
        file = {"file": subject.path} if subject.source == "file" else {"source": subject.source}
        return {**file, "n-rows": subject.rows, "row-length": subject.length, "corpus-seed": subject.seed}
    if isinstance(subject, Weights):
        return {}
    raise Unfit("A command line for pairs of prompts", "they do not fit into one", "Give --task, or --pairs FILE")
