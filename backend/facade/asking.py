"""From a question to a key: requests, jobs that compute them, sweeps over checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from backend.contract import Analysis, ModelCard, Pairs, Request, Subject
from backend.errors import BadInput, Unfit
from backend.facade.base import validated
from backend.facade.estimating import Estimating
from backend.models import trained


class Asking(Estimating):
    """The part of the facade that asks."""

    def request(
        self, analysis: str, card: ModelCard | Mapping[str, Any], subject: Subject, params: Mapping[str, Any]
    ) -> Request:
        """Name everything the number depends on.

        Raises BadInput (params), Unfit (the model cannot), NotFound (a lens or SAE that the params name is not there).
        """
        asked = self.analysis(analysis)
        card = card if isinstance(card, ModelCard) else ModelCard(**card)
        _fits(asked, card)
        chosen = validated(asked.params, params, asked.title)
        if isinstance(subject, Pairs):
            _answers_fit(subject, card)
        return Request(
            analysis=asked.name,
            version=asked.version,
            spec=card.spec,
            step=card.step,
            fingerprint=card.fingerprint,
            dtype=card.dtype,
            device=card.device,
            subject=subject.model_dump(),
            params=chosen.model_dump(),
            companions=trained.beside(chosen, card.spec, self.settings),
        )

    def kept(
        self,
        analysis: str,
        card: ModelCard | Mapping[str, Any],
        subject: Subject,
        params: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Return the key of the result where it is kept, else None; starts nothing."""
        key = self.request(analysis, card, subject, params or {}).key
        return key if self.store.has(key) else None

    def last_job(self, key: str) -> dict[str, Any] | None:
        """Return the newest job that was to compute this key, or None."""
        record = self.store.job_of_key(key)
        return self._live(record) if record else None

    def ask(
        self,
        analysis: str,
        card: ModelCard | Mapping[str, Any],
        subject: Subject,
        params: Mapping[str, Any] | None = None,
        recompute: bool = False,
        urgent: bool = True,
    ) -> dict[str, Any]:
        """Return {state: "kept", key} or the job that computes it {state, key, job}.

        Raises BadInput where it would not fit in memory, see `estimate`.
        Somebody waits for it unless `urgent` is False: it then comes after what is waited for.
        """
        card = card if isinstance(card, ModelCard) else ModelCard(**card)
        request = self.request(analysis, card, subject, params or {})
        if recompute:
            self.store.delete([request.key])
        if self.store.has(request.key):
            return {"state": "kept", "key": request.key, "job": None}
        self.refuse(analysis, card, subject, params or {})
        words = f"{self.analysis(analysis).title}: {card.spec}" + (
            f" at step {card.step}" if card.step is not None else ""
        )
        payload = {"request": request.model_dump(mode="json"), "card": card.model_dump()}
        job = self.engine.submit("analysis", request.key, words, payload, card.fingerprint, urgent)
        return {"state": job.state, "key": request.key, "job": self._job_record(job)}

    def submit(
        self,
        analysis: str,
        model: str,
        step: int | None = None,
        text: str = "",
        ids: Sequence[int] | str | None = None,
        params: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        plan: bool = False,
    ) -> dict[str, Any]:
        """Ask by words alone. An unopened model answers {state: "opening", job}: wait for it and ask again.

        With `plan` nothing starts: {state: "kept" or "planned", key, job: None, estimate} as `estimate` returns it.

        `about` words a subject that is no prompt: {task, n, seed} or {pairs} for pairs, Corpus' fields for a corpus.
        """
        opened = self.open(model, step)
        if opened["card"] is None:
            return {"state": "opening", "key": "", "job": opened["job"]}
        _fits(self.analysis(analysis), ModelCard(**opened["card"]))
        given = {**({"text": text} if text else {}), **({} if ids is None else {"ids": ids}), **(about or {})}
        subject = self.subject(self.analysis(analysis).subject, opened["card"], given)
        if plan:
            key = self.request(analysis, opened["card"], subject, params or {}).key
            told = self.estimate(analysis, opened["card"], subject, params)
            return {"state": "kept" if self.has(key) else "planned", "key": key, "job": None, "estimate": told}
        return self.ask(analysis, opened["card"], subject, params)

    def sweep(
        self,
        analysis: str,
        run: str,
        steps: Sequence[int],
        subject: Subject,
        params: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Ask the same at many checkpoints of a run; each is cached by itself. Returns [step, key, state, job_id]."""
        rows = []
        for step in steps:
            card = self.card(run, step)
            if card is None:
                raise BadInput(f"Sweep over {run}", "the run has not been opened yet", "Open it once, then sweep")
            answer = self.ask(analysis, card, subject, params, urgent=False)
            rows.append((step, answer["key"], answer["state"], (answer["job"] or {}).get("id", "")))
        return pd.DataFrame(rows, columns=["step", "key", "state", "job_id"])

    def sweep_table(self, sweep: pd.DataFrame) -> pd.DataFrame:
        """Return the kept tables of a sweep under each other, with the column `step` first."""
        asked = zip(sweep["step"].astype(int), sweep["key"].astype(str), strict=True)
        tables = [self.table(key, arrays=False).assign(step=step) for step, key in asked if self.store.has(key)]
        if not tables:
            return pd.DataFrame()
        joined = pd.concat(tables, ignore_index=True)
        return joined[["step", *(c for c in joined if c != "step")]]


def _fits(asked: Analysis, card: ModelCard) -> None:
    """Raises Unfit where the model cannot be asked."""
    if reason := asked.unfit(card.capabilities):
        raise Unfit(f"{asked.title} of {card.spec}", reason, "Choose another model or analysis")


def _answers_fit(pairs: Pairs, card: ModelCard) -> None:
    """Refuse answers that the model has no logit for; prompts are checked where they are run."""
    worst = max(max(p.answer, p.distractor) for p in pairs.pairs)
    if worst >= card.d_vocab_out:
        found = f"the model answers with 0..{card.d_vocab_out - 1}"
        raise BadInput(f"Answer token {worst} for {card.spec}", found, "Use pairs that were made for this model")
