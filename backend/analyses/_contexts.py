"""Examples of a unit in their context: tokens at its top, at quantiles and at random, as lines of coloured tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from backend.contract import View
from backend.figures import label, pixels

QUANTILES = {"q90": 0.9, "q50": 0.5}
KINDS = ("top", *QUANTILES, "random")


def examples(acts: Any, tokens: Any, n: int, context: int, seed: int, active: bool = False) -> pd.DataFrame:
    """Return the examples of activations [row, pos] over tokens of the same shape.

    With `active` top and quantiles are those of the tokens above 0 alone (there may be none); `random` is of all.
    """
    length, flat = acts.shape[1], acts.ravel()
    dice = np.random.default_rng(seed)
    orders = {"top": np.argsort(-flat, kind="stable"), "random": dice.permutation(flat.size)}
    pool = np.flatnonzero(flat > 0) if active else np.arange(flat.size)
    for name, q in QUANTILES.items() if len(pool) else ():
        orders[name] = pool[np.argsort(np.abs(flat[pool] - np.quantile(flat[pool], q)), kind="stable")]
    orders["top"] = orders["top"][: len(pool)]
    rank = np.searchsorted(np.sort(-flat), -flat, side="left")
    rows = []
    for kind in (k for k in KINDS if k in orders):
        for at, place in enumerate(apart(orders[kind], length, n, context)):
            rows += _window(kind, at, place, acts, tokens, context, int(rank[place]))
    return pd.DataFrame(rows)


def apart(order: Iterable[int], length: int, n: int, context: int) -> list[int]:
    """Return the first n places of `order` whose windows of `context` on either side overlap no earlier one's."""
    chosen: list[int] = []
    taken: dict[int, list[int]] = {}
    for place in map(int, order):
        row, pos = divmod(place, length)
        if all(abs(pos - other) > 2 * context for other in taken.get(row, [])):
            chosen.append(place)
            taken.setdefault(row, []).append(pos)
        if len(chosen) == n:
            break
    return chosen


def _window(kind: str, example: int, place: int, acts: Any, tokens: Any, context: int, rank: int) -> list[dict]:
    row, pos = divmod(place, acts.shape[1])
    return [{"kind": kind, "example": example, "offset": at - pos, "row": row, "pos": at, "token": int(tokens[row, at]),
             "activation": float(acts[row, at]), "rank": rank}
            for at in range(max(0, pos - context), min(acts.shape[1], pos + context + 1))]  # fmt: skip


def token_strips(table: pd.DataFrame, view: View, value: str) -> Any:
    """Draw examples [kind, example] as lines of tokens over their offset."""
    names = list(dict.fromkeys(zip(table["kind"], table["example"], strict=True)))
    offsets = list(range(int(table["offset"].min()), int(table["offset"].max()) + 1))
    shape = len(names), len(offsets)
    z, text, hover = np.full(shape, np.nan), np.full(shape, "", object), np.full(shape, "", object)
    longest = max(2, min(10, 70 // len(offsets)))
    for row in table.to_dict("records"):
        cell = names.index((row["kind"], row["example"])), row["offset"] - offsets[0]
        word = view.vocab(row["token"])
        z[cell], text[cell] = row["activation"], label(word, longest)
        hover[cell] = (f"token {label(word, 40)}<br>{value}: {row['activation']:.3g}<br>row {row['row']}, position "
                       f"{row['pos']}<br>tokens above the example: {row['rank']}")  # fmt: skip
    figure = pixels(
        z, x=[f"{o:+d}" if o else "here" for o in offsets], y=[f"{kind}-{at + 1}" for kind, at in names], text=text,
        hover=hover, x_title="offset (tokens from the example)", y_title="example", value=value,
        diverging=bool(np.nanmin(z) < 0), numbered_y=False, height=int(np.clip(110 + 24 * len(names), 260, 1200)),
    )  # fmt: skip
    # the scale lies above and the words keep their size: in a narrow window they would shrink until nobody reads them
    bar = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom", "len": 0.5}
    figure.data[0].update(textfont={"size": 11}, colorbar={**bar, "title": {"side": "top"}})
    return figure
