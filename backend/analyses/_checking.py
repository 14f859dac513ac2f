"""Approximate scores beside the exact effects of the largest few and of some at random: columns and their picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from backend.contract import Value
from backend.figures import CATEGORIES, NULL_GREY
from backend.figures.agreement import agreement


def values(name: str, words: str, exact: str, what: str, unit: str = "logits") -> list[Value]:
    """Declare the columns of `compared`: `name` in these words, `exact` in those; `what` are the things scored."""
    interval = "of its 95 % bootstrap interval over pairs"
    return [
        Value(name, words, unit),
        Value(f"{name}_low", f"lower end {interval}", unit), Value(f"{name}_high", f"upper end {interval}", unit),
        Value("exact", f"{exact}; NULL where not checked", unit),
        Value("exact_low", f"lower end {interval}", unit), Value("exact_high", f"upper end {interval}", unit),
        Value("checked", "why it was patched exactly: top (by score), random, or no; all: the score is exact itself",
              kind="str"),
        Value("rank_correlation", f"Spearman's, {name} against exact, over the {what} checked; NULL below 3, or all"),
    ]  # fmt: skip


def some_and_others(score: np.ndarray, top: int, others: int, seed: int) -> tuple[list[int], list[str]]:
    """Return (the `top` largest |score| and `others` of the rest at random, why by thing: top, random or no)."""
    order = np.argsort(-np.abs(score), kind="stable").tolist()
    first, rest = order[:top], order[top:]
    n = min(others, len(rest))
    drawn = np.random.default_rng(seed).choice(rest, n, replace=False).tolist() if n else []
    why = {**dict.fromkeys(first, "top"), **dict.fromkeys(drawn, "random")}
    return [*first, *drawn], [why.get(i, "no") for i in range(len(score))]


def checked_at_most(things: int, top: int, others: int) -> int:
    """Return how many `some_and_others` chooses."""
    return min(top, things) + min(others, things - min(top, things))


def compared(name: str, score: np.ndarray, exact_of: Callable[[list[int]], np.ndarray], top: int, others: int,
             draws: int, seed: int) -> dict[str, Any]:  # fmt: skip
    """Return the columns of `values`, intervals being over the pairs.

    Args:
        score: [thing, pair]; exact_of: the exact effects [chosen, pair] of some things, asked once for those chosen.
    """
    from backend.maths import patching

    chosen, why = some_and_others(score.mean(1), top, others, seed)
    weights = patching.draw_weights(score.shape[1], draws, seed)
    found, true = patching.mean_estimate(score, weights), np.full((3, len(score)), np.nan)
    if chosen:
        known = patching.mean_estimate(exact_of(chosen), weights)
        true[:, chosen] = known.value, known.low, known.high
    return {
        name: found.value, f"{name}_low": found.low, f"{name}_high": found.high,
        "exact": true[0], "exact_low": true[1], "exact_high": true[2], "checked": why,
        "rank_correlation": patching.rank_correlation(found.value[chosen], true[0][chosen]),
    }  # fmt: skip


def exact_already(name: str, score: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    """Return the columns of `values` where `score` [thing, pair] is the exact effect: there is nothing to correlate."""
    everything = lambda chosen: score[chosen]  # noqa: E731
    found = compared(name, score, everything, len(score), 0, draws, seed)
    return found | {"checked": "all", "rank_correlation": np.nan}


def told(r: Any) -> str:
    """Return the exact value of a row with its interval, in words."""
    return "not checked" if np.isnan(r.exact) else f"exact {r.exact:+.3g} ({r.exact_low:.3g} to {r.exact_high:.3g})"


def picture(table: pd.DataFrame, name: str, names: Sequence[str], hover: Sequence[str], *, x: str, y: str,
            what: str, title: str = "") -> Any:  # fmt: skip
    """Draw the things patched exactly, with intervals; grey: those drawn at random. On the dotted line both agree."""
    table, groups = table.assign(_name=list(names), _hover=list(hover)), []
    for why, colour, words in (("random", NULL_GREY, "random others"), ("top", CATEGORIES[0], "largest scores"),
                               ("all", CATEGORIES[0], "exact scores")):  # fmt: skip
        g = table[table["checked"] == why]
        if len(g):
            groups.append((words, colour, g[name], g["exact"], g["exact_low"].fillna(g["exact"]),
                           g["exact_high"].fillna(g["exact"]), g["_name"].tolist(), g["_hover"].tolist()))  # fmt: skip
    return agreement(groups, x_title=f"{x} (logits; {_extent(table, what)})", y_title=f"{y} (logits; 95 % interval)",
                     title=title)  # fmt: skip


def _extent(table: pd.DataFrame, what: str) -> str:
    """Say how many were checked, and how alike both rank them."""
    if (table["checked"] == "all").all():
        return f"all {len(table)} {what} are exact by themselves"
    rho, n = table["rank_correlation"].iloc[0], int((table["checked"] != "no").sum())
    return f"{n} {what} checked, {'too few to rank' if np.isnan(rho) else f'rank correlation {rho:.2g}'}"
