"""What a request will cost before it runs, and the refusal of what would not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from backend import costs
from backend.contract import Analysis, ModelCard, Subject, subject_from
from backend.costs import Calls, Work
from backend.errors import BadInput, PhasescopeError
from backend.facade.base import validated
from backend.facade.models import Models
from backend.facade.results import Results
from backend.models import trained

REMEMBERED = 8  # kept results that the estimate is corrected by
SHORT = 1.0  # s predicted below which a result tells what it costs beside its calls, not how far the price is off


class Estimating(Models, Results):
    """The part of the facade that tells a price."""

    def estimate(
        self, analysis: str, card: ModelCard | Mapping[str, Any], subject: Subject,
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return {seconds, memory_bytes, room_bytes, calls, tokens, basis, refused}, None where it is not known.

        `basis`: probe (declared work, priced by the model's probe, corrected by kept results), history (results of
        this analysis alone, scaled by the price of one pass), or unknown. `refused` is the record of the error that
        asking would raise. Bytes lie beside the model. Raises BadInput or Unfit where the request cannot be served.
        """
        asked, card = self.analysis(analysis), _card(card)
        work, room = self._work(asked, card, subject, params or {}), self._room(card)
        pass_ = work or _one_pass(card, subject)
        predicted = costs.seconds(pass_, card.probe) if card.probe and pass_ else None
        seconds = self._corrected(asked, predicted, declared=work is not None)
        basis = "unknown" if seconds is None else "probe" if work and card.probe else "history"
        needed = int(costs.memory(work, card.probe)) if work and card.probe else None
        refused = _refusal(asked, card, work, needed, room)
        return {
            "seconds": seconds, "memory_bytes": needed, "room_bytes": room, "calls": work and work.n_calls,
            "tokens": work and work.tokens, "basis": basis, "refused": refused.record() if refused else None,
        }  # fmt: skip

    def refuse(self, analysis: str, card: ModelCard, subject: Subject, params: Mapping[str, Any]) -> None:
        """Raises BadInput, with the knob that helps, where a request would not fit in memory."""
        asked = self.analysis(analysis)
        work = self._work(asked, card, subject, params) if card.probe else None
        needed = costs.memory(work, card.probe) if work else None
        refused = _refusal(asked, card, work, needed, self._room(card))
        if refused:
            raise refused

    def _work(
        self, asked: Analysis, card: ModelCard, subject: Subject, params: Mapping[str, Any]
    ) -> Work | None:
        if not asked.work:
            return None
        chosen = validated(asked.params, params, asked.title)
        made = [trained.locate(run, step, self.settings).record["companion"] for run, step in chosen.companions()]
        return asked.work(card, subject, chosen, *made)

    def _room(self, card: ModelCard) -> int | None:
        """Return the bytes that the workers have left for it: of a GPU what was free when the model was opened."""
        if card.device != "cpu":
            return int(card.probe["room_bytes"]) if "room_bytes" in card.probe else None
        room = self.engine.room()
        if room is None or any(card.fingerprint in w["models"] for w in self.engine.workers()):
            return room
        return max(0, room - card.memory_bytes)  # it has to be loaded first

    def _corrected(self, asked: Analysis, predicted: float | None, declared: bool) -> float | None:
        """Correct a price by what kept results of the analysis took: short ones add, long ones multiply."""
        kept = self.store.results(analysis=asked.name, limit=REMEMBERED)
        if predicted is None or not len(kept):
            known = float(kept["seconds"].median()) if len(kept) else None
            return predicted if declared and predicted is not None else known
        pairs = [(spent, told) for key, spent in zip(kept["key"], kept["seconds"], strict=True)
                 if (told := self._told(asked, str(key)))]  # fmt: skip
        long = [spent / told for spent, told in pairs if told >= SHORT or not declared]
        more = [max(0.0, spent - told) for spent, told in pairs if told < SHORT and declared]
        if not declared and not long:
            return float(kept["seconds"].median())
        return predicted * (float(np.median(long)) if long else 1.0) + (float(np.median(more)) if more else 0.0)

    def _told(self, asked: Analysis, key: str) -> float | None:
        """Return the seconds that would have been told for a kept result, None where nothing was known."""
        record = self.store.record(key)
        if record is None or not record["card"].get("probe") or record["version"] != asked.version:
            return None
        try:
            card, subject = ModelCard(**record["card"]), subject_from(record["subject"])
            work = self._work(asked, card, subject, record["params"]) or _one_pass(card, subject)
            if work is None:
                return None
        except (PhasescopeError, ValueError):  # kept by an older house
            return None
        return costs.seconds(work, card.probe) or None


def _card(card: ModelCard | Mapping[str, Any]) -> ModelCard:
    return card if isinstance(card, ModelCard) else ModelCard(**card)


def _one_pass(card: ModelCard, subject: Subject) -> Work | None:
    """Return the work of one forward over the subject, what undeclared work is scaled by; None for weights alone."""
    if subject.kind == "pairs":
        return Work(tuple(Calls(len(which), length) for length, which in subject.by_length().items()))
    if subject.kind == "corpus":
        return Work((Calls(subject.rows, min(subject.length, card.n_ctx)),))
    return Work((Calls(1, len(subject.tokens)),)) if subject.kind == "prompt" else None


def _refusal(
    asked: Analysis, card: ModelCard, work: Work | None, needed: float | None, room: int | None
) -> BadInput | None:
    if work is None or needed is None or room is None or needed <= room:
        return None
    found = f"it needs about {_size(needed)} of memory beside the model, {_size(room)} are free"
    return BadInput(f"{asked.title} of {card.spec}", found, work.knobs)


def _size(n: float) -> str:
    unit, size = next(((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if n >= s), ("kB", 1e3))
    return f"{n / size:.3g} {unit}"
