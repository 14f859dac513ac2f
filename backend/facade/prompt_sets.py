"""Pairs of prompts: tasks that make them, and sets of the user's own kept by name; a set is the task `own: NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.contract import Pairs
from backend.errors import BadInput, PhasescopeError
from backend.facade.base import Base
from backend.models import prompts
from backend.runs import prompt_sets
from backend.subjects import MOST_PAIRS

OWN = "own: "


class PromptSets(Base):
    """The part of the facade that makes and keeps pairs of prompts."""

    def tasks(self, card: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        """Return {task: {title, help, reason}} of prompt pairs, the user's own sets last; `reason` says why this model
        cannot be asked, or ''."""
        reasons = prompts.fitting(card)
        made = {n: {"title": t.title, "help": t.help, "reason": reasons[n]} for n, t in prompts.TASKS.items()}
        return made | {OWN + name: self._own_task(card, name) for name in prompt_sets.names(self.settings.runs)}

    def _own_task(self, card: Mapping[str, Any], name: str) -> dict[str, str]:
        try:
            made, reason = f"{len(self._own_set(card, name).pairs)} pairs of your own", ""
        except PhasescopeError as error:
            made, reason = "pairs of your own", f"{error.asked[:1].lower()}{error.asked[1:]}: {error.found}"
        return {"title": OWN + name, "help": made, "reason": reason}

    def pairs(self, card: Mapping[str, Any], task: str, n: int = 16, seed: int = 0) -> Pairs:
        """Make n pairs of a task for this model; of a set of the user's own all of them, whatever n and seed.

        Raises BadInput for an unknown task, Unfit with the reason.
        """
        if task.startswith(OWN):
            return self._own_set(card, task.removeprefix(OWN))
        if not 1 <= n <= MOST_PAIRS:
            raise BadInput(f"{n} pairs", f"from 1 to {MOST_PAIRS} can be made", "Ask for fewer or more")
        return prompts.make(card, task, n, seed)

    def own_pairs(self, card: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Pairs:
        """Make pairs of the user's rows {clean, corrupted, answer, distractor}. Raises BadInput that names the row."""
        return prompts.own(card, rows)

    def _own_set(self, card: Mapping[str, Any], name: str) -> Pairs:
        made = prompts.own(card, prompt_sets.read(self.settings.runs, name)["rows"])
        return made.model_copy(update={"text": f"{OWN}{name}, {len(made.pairs)} pairs"})

    def prompt_set(self, name: str) -> dict[str, Any]:
        """Return a kept set {name, spec, rows}. Raises NotFound with the known names."""
        return prompt_sets.read(self.settings.runs, name)

    def keep_prompt_set(
        self, card: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]], replace: bool = False
    ) -> str:
        """Check rows against a model, keep them under a name and return the task's name, `own: NAME`.

        Raises BadInput for rows that do not fit, a bad name, or a taken one unless `replace`.
        """
        self.own_pairs(card, rows)
        prompt_sets.write(self.settings.runs, name, card["spec"], rows, replace)
        return OWN + name

    def delete_prompt_set(self, name: str) -> None:
        """Forget a kept set; results of its pairs stay."""
        prompt_sets.delete(self.settings.runs, name)
