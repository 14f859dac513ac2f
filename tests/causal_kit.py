"""Pairs and models for the tests of the causal analyses."""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.contract import Pair, Pairs
from backend.models import prompts
from tests.tiny_models import quiet
from tests.wired import config, wired_induction, wired_run

KINDS = ["native", "gpt2", "neox", "llama"]


def swapped_keys(n_pairs: int = 6, d_vocab: int = 40, n: int = 10, seed: int = 0) -> Pairs:
    """Pairs [A; A up to its i-th token]; corrupted: tokens i and j of the first A exchanged, so another one follows.

    What changes is which token stands before the answer: the previous-token head has to carry it.
    """
    dice, found = np.random.default_rng(seed), []
    for _ in range(n_pairs):
        block = [int(t) for t in dice.permutation(d_vocab)[:n]]
        i, j = 2, int(dice.integers(5, n - 1))
        other = [*block]
        other[i], other[j] = block[j], block[i]
        clean, corrupted = (tuple(first + block[: i + 1]) for first in (block, other))
        found.append(Pair(clean=clean, corrupted=corrupted, answer=block[i + 1], distractor=block[j + 1]))
    return Pairs(pairs=tuple(found))


def pairs_for(model: Any, n: int = 5, task: str = "induction") -> Pairs:
    """Pairs of a task for this model."""
    return prompts.make(model.card.model_dump(), task, n, 0)


def ask(analysis: Any, model: Any, subject: Any, **params: Any) -> Any:
    """Compute an analysis."""
    return analysis.compute(model, subject, analysis.params(**params), quiet)


def wired(folder: Any, n_heads: int = 3) -> Any:
    """The hand-wired induction circuit with idle heads beside it."""
    return wired_run(folder, wired_induction(40, n_heads=n_heads), config(40, n_heads=n_heads))
