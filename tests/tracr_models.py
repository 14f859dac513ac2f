"""Compiled RASP programs (tracr, Apache-2.0) as native models: which components they use is known exactly.

They ship in backend/models/programs, see backend/models/tracr.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.contract import Pair, Pairs, parse_spec
from backend.models.open import open_model
from backend.models.tracr import OUTPUT
from tests.tiny_models import settings

__all__ = ["OUTPUT", "TRUTH", "program"]
#: components with output weights that are not zero
TRUTH = {"reverse": {"L0H0", "L0 mlp", "L1 mlp", "L2 mlp", "L3H0"}, "hist": {"L0H0", "L0 mlp"},
         "sort_unique": {"L0H0", "L0 mlp", "L1H0"}}


@dataclass(frozen=True)
class Program:
    """An opened program, its words, and what it should answer."""

    name: str
    model: Any
    meta: dict[str, Any]
    outputs: list[str]  # class -> output value

    def ids(self, words: list[str]) -> list[int]:
        """Return the tokens of BOS and words."""
        return [self.meta["inmap"][w] for w in ["BOS", *words]]

    def answer(self, words: list[str]) -> list[str]:
        """Return what the program says, computed here in plain Python."""
        if self.name == "hist":
            return [str(words.count(w)) for w in words]
        return sorted(words) if self.name == "sort_unique" else words[::-1]

    def draw(self, dice: np.random.Generator, length: int = 0) -> list[str]:
        """Draw words of a random length (or this one); of sort_unique all different."""
        letters = [w for w in self.meta["inmap"] if w not in ("BOS", "compiler_pad")]
        length = length or int(dice.integers(1, self.model.card.n_ctx))
        return [str(w) for w in dice.choice(letters, length, replace=self.name != "sort_unique")]

    def pairs(self, n: int, seed: int = 0) -> Pairs:
        """Return pairs of equally long inputs whose last outputs differ; lengths vary over pairs."""
        dice, found = np.random.default_rng(seed), []
        while len(found) < n:
            clean = self.draw(dice)
            other = self.draw(dice, len(clean))
            a, b = (self.outputs.index(self.answer(w)[-1]) for w in (clean, other))
            if a != b:
                found.append(Pair(clean=tuple(self.ids(clean)), corrupted=tuple(self.ids(other)), answer=a,
                                  distractor=b))  # fmt: skip
        return Pairs(pairs=tuple(found))


def program(name: str, folder: Path) -> Program:
    """Open a shipped program in float64."""
    model: Any = open_model(parse_spec(f"tl:tracr_{name}"), settings(folder))
    told = model.card.training["params"]
    meta = {"inmap": {word: i for i, word in enumerate(model.card.tokenizer["symbols"])}, **told}
    return Program(name, model, meta, told["outputs"])
