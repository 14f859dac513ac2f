"""Opening models: cards, fingerprints, prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

import pandas as pd

from backend.analyses._curving import blocks_of
from backend.contract import (
    CAPABILITY_RULES,
    Corpus,
    EnergyWeights,
    ModelCard,
    ModelSpec,
    Pairs,
    Problems,
    Prompt,
    Subject,
    Weights,
    canonical_hash,
    parse_spec,
)
from backend.errors import BadInput, Unfit
from backend.facade.base import validated
from backend.facade.prompt_sets import PromptSets
from backend.models import fingerprints, registry, tokens
from backend.runs import corpora, recipes

TOUCH_EVERY = 60.0


class Models(PromptSets):
    """The part of the facade that opens models."""

    @cached_property
    def _touched(self) -> dict[tuple[str, int | None], float]:
        return {}

    def open(self, spec: str, step: int | None = None) -> dict[str, Any]:
        """Return {state: "kept", card} where the weights are known as they lie now, else start the opening job."""
        parsed = parse_spec(spec, step)
        located = self._located(parsed)
        card = self._known_card(located)
        if card is not None:
            self._touch(card.spec, card.step)
            return {"state": "kept", "card": card.model_dump(), "job": None}
        step = located.step
        key = canonical_hash(
            {
                "open": str(parsed),
                "step": step,
                "signature": located.signature,
                "dtype": self.settings.dtype,
                "device": self.settings.device,
            }
        )
        job = self.engine.submit(
            "open",
            key,
            f"Open {parsed}" + (f" at step {step}" if step is not None else ""),
            {"spec": str(parsed), "step": step},
            affinity=str(parsed),
            urgent=True,
        )
        return {"state": job.state, "card": None, "job": self._job_record(job)}

    def card(self, spec: str, step: int | None = None) -> ModelCard | None:
        """Return the card of an opened model whose weights have not changed since, or None."""
        return self._known_card(self._located(parse_spec(spec, step)))

    def _touch(self, spec: str, step: int | None) -> None:
        """Say that a model is in use, at most once in TOUCH_EVERY seconds: a page asks on every redraw."""
        now = time.monotonic()
        if now - self._touched.get((spec, step), -TOUCH_EVERY) >= TOUCH_EVERY:
            self._touched[spec, step] = now
            self.store.touch_model(spec, step)

    def _located(self, spec: ModelSpec) -> registry.Located:
        try:
            return registry.locate(spec, self.settings)
        except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte
            words = getattr(error, "strerror", None) or str(error)
            raise BadInput(f"Model {str(spec)[:80]!r}", words.lower(), "Check the path and who may read it") from None

    def _known_card(self, located: Any) -> ModelCard | None:
        kept = self.store.model(str(located.spec), located.step)
        if kept is not None and kept[1] == located.signature and self._as_set(kept[0]):
            return ModelCard(**kept[0])
        return self._card_of_sibling(located) if located.spec.scheme == "run" else None

    def _as_set(self, card: Mapping[str, Any]) -> bool:
        """Dtype and device are settings: a card made under others, or by older rules, does not hold now."""
        if card.get("rules", 0) != CAPABILITY_RULES:
            return False
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
        # the signature of a run covers the model in its run.json, so a rewritten one has no siblings
        if not kept or kept[1] != sibling.signature or not self._as_set(kept[0]):
            return None
        notes = list(kept[0]["notes"])
        if not any(n.startswith("Fidelity was measured") for n in notes):  # else the sibling's own card was derived
            notes.append(f"Fidelity was measured at step {step} of this run")
        print_ = fingerprints.fingerprint_safetensors(located.files, located.config)
        return ModelCard(
            **{**kept[0], "step": located.step, "fingerprint": print_, "source": located.source, "notes": notes}
        )

    def models(self) -> pd.DataFrame:
        """Return the models opened so far, last used first."""
        return self.store.models()

    def forget_model(self, spec: str) -> None:
        """Drop a model from the list; its results stay."""
        self.store.forget_model(spec)

    def tokenizer(self, card: Mapping[str, Any]) -> Any:
        """Return the torch-free tokenizer of a card: encode, labels, label."""
        return tokens.tokenizer_from(card["tokenizer"])

    def blocks(self, card: Mapping[str, Any]) -> list[str]:
        """Return what the curvature of a model can be asked of: all, its layers or modules, each parameter by name."""
        return blocks_of(list(card.get("parameters") or {}), layered=not card.get("energy"))

    def prompt(self, card: Mapping[str, Any], text: str = "", ids: Sequence[int] | str | None = None) -> Prompt:
        """Make a Prompt of a text or of token ids. Raises BadInput where it is empty, too long or out of vocabulary."""
        if ids is not None and text:
            raise BadInput("A prompt of text and token ids", "both were given", "Give one of them")
        if ids is not None:
            found = tokens.parse_ids(ids if isinstance(ids, str) else _spaced(ids), card["d_vocab"])
        else:
            found = self.tokenizer(card).encode(text)
        tokens.check_length(found, card["n_ctx"])
        return Prompt(tokens=tuple(found), text=text)

    def sources(self, card: Mapping[str, Any]) -> dict[str, str]:
        """Return {source of a corpus: '' or the reason why this model cannot read it}, the most telling first."""
        recipe = recipes.registry().get(card.get("training", {}).get("recipe", ""))
        reason = corpora.unreadable(card["tokenizer"].get("kind", "ids"))
        return {"training": "" if recipe and recipe.sample else "the model is no run whose recipe draws token rows",
                "python": reason, "random": "", "file": reason}  # fmt: skip

    def corpus(self, card: Mapping[str, Any], **given: Any) -> Corpus:
        """Make a Corpus; the source, where none is given, is the first that this model can read.

        Raises BadInput for a wrong field or an unreadable file, Unfit where the model cannot read the source.
        """
        reasons = self.sources(card)
        asked = validated(Corpus, {"source": next(s for s, why in reasons.items() if not why), **given}, "The corpus")
        if reasons[asked.source]:
            raise Unfit(f"Source {asked.source} for {card['spec']}", reasons[asked.source], "Choose another source")
        if asked.source == "file":
            return asked.model_copy(update={"digest": corpora.digest_of(asked.path)})
        return asked

    def subject(self, kind: type[Subject], card: Mapping[str, Any], given: Mapping[str, Any]) -> Subject:
        """Make a subject of `kind` from words: {text} or {ids}; {task, n, seed} or {pairs}; a corpus' or problems'
        fields."""
        if kind is Prompt:
            return self.prompt(card, given.get("text", ""), given.get("ids"))
        if kind is Pairs:
            return self._pairs_of(card, given)
        if kind is Problems:
            return self.problems(card, **given)
        if kind is Corpus:
            return self.corpus(card, **given)
        return EnergyWeights() if kind is EnergyWeights else Weights()

    def problems(self, card: Mapping[str, Any], **given: Any) -> Problems:
        """Make Problems for an energy model. Raises BadInput for a wrong field, Unfit where the model takes others."""
        asked = validated(Problems, given, "The problems")
        if not card.get("energy"):
            raise Unfit(f"Problems for {card['spec']}", "it is no energy model", "Choose an energy model")
        return asked

    def _pairs_of(self, card: Mapping[str, Any], given: Mapping[str, Any]) -> Pairs:
        if given.get("pairs"):
            return self.own_pairs(card, given["pairs"])
        task = given.get("task") or next((n for n, t in self.tasks(card).items() if not t["reason"]), None)
        if task is None:
            raise Unfit(f"Pairs for {card['spec']}", "no task fits this model", "Give pairs of your own")
        return self.pairs(card, str(task), _number(given, "n", 16), _number(given, "seed", 0))


def _number(given: Mapping[str, Any], name: str, usual: int) -> int:
    value = given.get(name, usual)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise BadInput(f"{name} of the pairs", f"{str(value)[:20]!r} is no whole number from 0", "Give a whole number")
    return int(value)


def _spaced(ids: Sequence[int]) -> str:
    odd = [i for i in ids if not isinstance(i, Integral) or isinstance(i, bool)]
    if odd:
        raise BadInput("The token ids", f"{str(odd[0])[:20]!r} is no number", "Give whole numbers such as 5, 17, 3")
    return " ".join(map(str, ids))
