"""What the causal analyses tell: the columns of recovered, their words, and the pictures several of them draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from backend.contract import Value
from backend.figures import CATEGORIES, NULL_GREY, bars, pixels

MOST_BARS = 24

RECOVERED = [
    Value("recovered", "(patched - corrupted) / (clean - corrupted), means over prompts; NULL where |clean - corrupted|"
          " is below its standard error"),
    Value("recovered_se", "bootstrap standard error of recovered over prompts; NULL for one prompt"),
    Value("recovered_low", "lower end of its 95 % bootstrap interval over prompts"),
    Value("recovered_high", "upper end of its 95 % bootstrap interval over prompts"),
    Value("effect", "share of the way from the unpatched run to the run patched from: recovered when denoising, "
          "1 - recovered when noising"),
    Value("patched", "mean logit_diff of the patched runs", "logits"),
    Value("change", "patched minus the unpatched run's logit_diff, mean over prompts", "logits"),
    Value("change_se", "its standard error over prompts; NULL for one prompt", "logits"),
    Value("clean", "mean logit_diff of the clean runs", "logits"),
    Value("corrupted", "mean logit_diff of the corrupted runs", "logits"),
    Value("n", "pairs of prompts", kind="int"),
]  # fmt: skip


def recovered_columns(patched: np.ndarray, clean: np.ndarray, corrupted: np.ndarray, direction: str, draws: int,
                      seed: int) -> dict[str, Any]:  # fmt: skip
    """Return the columns RECOVERED of patched logit_diff [row, pair]."""
    from backend.maths import patching

    found = patching.recovered(patched, clean, corrupted, patching.draw_weights(len(clean), draws, seed))
    moved = patched - (corrupted if direction == "denoising" else clean)
    return {
        "recovered": found.value, "recovered_se": found.se, "recovered_low": found.low, "recovered_high": found.high,
        "effect": found.value if direction == "denoising" else 1 - found.value, "patched": patched.mean(1),
        "change": moved.mean(1), "change_se": patching.standard_error(moved), "clean": clean.mean(),
        "corrupted": corrupted.mean(), "n": len(clean),
    }  # fmt: skip


def records(table: pd.DataFrame) -> list[Any]:
    """Return the rows as named tuples."""
    return list(table.itertuples())


def shown(table: pd.DataFrame, direction: str) -> tuple[str, str]:
    """Return (column, words) that a map draws: the share where it is defined, else the change in logits."""
    if table["effect"].notna().any():
        return "effect", "recovered" if direction == "denoising" else "1 - recovered"
    return "change", "change of logit_diff (recovered: undefined)"


def hovers(table: pd.DataFrame) -> pd.Series:
    """Return the words of every row: recovered with its interval, the logits, and its 0-based rank by |change|."""
    rank = table["change"].abs().rank(ascending=False, method="min").astype(int) - 1
    words = [
        f"recovered {r.recovered:.3g} ({r.recovered_low:.3g} to {r.recovered_high:.3g})<br>logit_diff {r.patched:.3g}: "
        f"{r.change:+.3g} ± {r.change_se:.2g}<br>rank {k} of {len(table)} (0: the farthest from 0)"
        for r, k in zip(records(table), rank, strict=True)
    ]
    return pd.Series(words, table.index)


def strongest(table: pd.DataFrame, names: Sequence[str], what: str) -> Any:
    """Draw the MOST_BARS rows that change logit_diff most, with standard errors; grey: within two of them of 0."""
    sure = stands_out(table)
    best = table["change"].abs().sort_values(ascending=False, kind="stable").index[:MOST_BARS]
    kept, told = table.loc[best], f"{int(sure.sum())} of {len(table)} beyond 2 standard errors of 0; grey: the rest"
    return bars(pd.Series(names, table.index)[best].tolist(), kept["change"], errors=kept["change_se"],
                colours=[CATEGORIES[0] if s else NULL_GREY for s in sure[best]], hover=hovers(table)[best].tolist(),
                x_title=f"{what} ({told})", y_title="change of logit_diff (logits; error: s.e.)")  # fmt: skip


def stands_out(table: pd.DataFrame) -> pd.Series:
    """Say which changes are more than two standard errors from 0, and more than rounding."""
    error = 2 * table["change_se"].fillna(np.inf)
    return table["change"].abs() > np.maximum(error, 1e-5 * np.maximum(1.0, table["clean"].abs()))


def symmetric(values: Any, least: float = 1.0) -> tuple[float, float]:
    """Return limits around 0 that hold all values, at least `least` wide to each side: noise does not fill them."""
    finite = np.asarray(values, float)
    most = max([least, *np.abs(finite[np.isfinite(finite)])])
    return -most, most


def component_names(table: pd.DataFrame) -> list[str]:
    """Return L1H3, L0 mlp or L0 attn by row, of the axes component, layer and head."""
    return [f"L{r.layer}" + (f"H{r.head}" if r.component == "head" else f" {r.component}") for r in records(table)]


def component_map(table: pd.DataFrame, column: str, words: str, hover: Sequence[str], **more: Any) -> Any:
    """Draw a column by layer and component (heads, mlp, attn), diverging around 0; `text` stands in the cells."""
    across = pd.Series([f"H{r.head}" if r.component == "head" else r.component for r in records(table)], table.index)
    text = more.pop("text", [""] * len(table))
    drawn, order = table.assign(across=across, hover=list(hover), text=list(text)), list(dict.fromkeys(across.tolist()))
    z, hovers_, texts = (drawn.pivot(index="layer", columns="across", values=v)[order]
                         for v in (column, "hover", "text"))  # fmt: skip
    return pixels(z.to_numpy(), x=[str(c) for c in order], y=[str(i) for i in z.index], y_title="layer", value=words,
                  diverging=True, limits=symmetric(table[column]), hover=hovers_.fillna("no such part").to_numpy(),
                  text=texts.fillna("").to_numpy(), numbered_y=False, **more)  # fmt: skip
