"""How a growing circuit does on the pairs that chose it, on pairs held out, and beside random circuits of its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from backend.contract import Pairs, Value
from backend.figures import CATEGORIES, NULL_GREY, Line, lines

#: logit_diff [circuit, pair] of circuits [circuit, thing] of bool; the second argument hears the share done
Metric = Callable[..., np.ndarray]
Said = Callable[[float], None]


def _quantity(name: str, what: str) -> list[Value]:
    ends = [Value(f"{name}_{side}", f"{word} end of its 95 % bootstrap interval over these pairs")
            for side, word in (("low", "lower"), ("high", "upper"))]  # fmt: skip
    return [Value(name, what), *ends]


#: the columns that `grown` and `random_band` fill
CURVES = [
    *_quantity("faithfulness", "of this and those before, on the pairs that chose; NULL where there is nothing to "
               "explain or this size was not measured"),
    *_quantity("completeness", "share lost when this circuit alone is ablated, on the pairs that chose"),
    *_quantity("held_out_faithfulness", "the same circuit on the pairs that chose nothing; NULL where none is held "
               "out"),
    *_quantity("held_out_completeness", "share lost when this circuit alone is ablated, on the pairs held out"),
    Value("random_mean", "mean faithfulness of random circuits of this size, on the pairs held out (on all where none "
          "is); NULL where none was drawn"),
    Value("random_low", "smallest faithfulness among them"), Value("random_high", "largest faithfulness among them"),
    Value("whole", "mean logit_diff of the intact model on the clean prompts that chose", "logits"),
    Value("nothing", "mean logit_diff with everything cut", "logits"), Value("n", "pairs that chose", kind="int"),
    Value("n_held_out", "pairs held out", kind="int"),
]  # fmt: skip


def apart(subject: Pairs, share: float, seed: int) -> tuple[Pairs, Pairs | None]:
    """Return (the pairs that choose, those held out at random or None): at least one pair always chooses."""
    n = len(subject.pairs)
    held = min(n - 1, round(share * n))
    order = np.random.default_rng(seed).permutation(n)
    some = lambda which: subject.model_copy(update={"pairs": tuple(subject.pairs[i] for i in sorted(which))})  # noqa: E731
    return some(order[held:]), some(order[:held]) if held else None


def ends(metric: Metric, n_things: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logit_diff [pair] of (the whole model, nothing kept)."""
    whole, nothing = metric(np.array([[True] * n_things, [False] * n_things]))
    return whole, nothing


def grown(metric: Metric, order: np.ndarray, sizes: np.ndarray, draws: int, seed: int, prefix: str = "",
          said: Said = lambda share: None) -> dict[str, np.ndarray]:  # fmt: skip
    """Return faithfulness and completeness [thing by order], NaN but at these sizes, with intervals over the pairs."""
    from backend.maths import circuits, patching

    n = len(order)
    whole, nothing = ends(metric, n)
    weights, kept = patching.draw_weights(len(whole), draws, seed), circuits.nested(order, sizes)
    runs = metric(np.concatenate([kept, ~kept]), said)
    inside, rest = (circuits.faithfulness(r, whole, nothing, weights) for r in (runs[: len(sizes)], runs[len(sizes) :]))
    found = {"faithfulness": inside.value, "faithfulness_low": inside.low, "faithfulness_high": inside.high,
             "completeness": 1 - rest.value, "completeness_low": 1 - rest.high,
             "completeness_high": 1 - rest.low}  # fmt: skip
    return {prefix + name: _at(sizes, values, n) for name, values in found.items()}


def held_out(metric: Metric | None, order: np.ndarray, sizes: np.ndarray, draws: int, seed: int,
             said: Said = lambda share: None) -> dict[str, np.ndarray]:  # fmt: skip
    """Return `grown` on the pairs held out; all NaN where there are none."""
    if metric is not None:
        return grown(metric, order, sizes, draws, seed, "held_out_", said)
    names = [v.name for v in CURVES if v.name.startswith("held_out_")]
    return {name: np.full(len(order), np.nan) for name in names}


def random_band(metric: Metric, n_things: int, sizes: np.ndarray, draws: int, seed: int,
                said: Said = lambda share: None) -> dict[str, np.ndarray]:  # fmt: skip
    """Return mean, smallest and largest faithfulness of random circuits [size 1..n], NaN where none was drawn."""
    from backend.maths import circuits

    dice = np.random.default_rng(seed)
    whole, nothing = ends(metric, n_things)
    kept = np.concatenate([circuits.random_circuits(n_things, int(k), draws, dice) for k in sizes])
    runs, share = metric(kept, said), np.full(len(kept), np.nan)
    if circuits.explainable(whole, nothing):
        share = (runs - nothing).mean(1) / (whole - nothing).mean()
    by_size = share.reshape(len(sizes), -1)
    found = {"random_mean": by_size.mean(1), "random_low": by_size.min(1), "random_high": by_size.max(1)}
    return {name: _at(sizes, values, n_things) for name, values in found.items()}


def _at(sizes: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    out = np.full(n, np.nan)
    out[np.asarray(sizes) - 1] = values
    return out


def smallest(table: dict[str, np.ndarray], sizes: np.ndarray, least: float) -> int:
    """Return the smallest measured size whose faithfulness on the choosing pairs is at least `least`; 0 for none."""
    from backend.maths import circuits

    at = circuits.smallest_faithful(table["faithfulness"][np.asarray(sizes) - 1], least)
    return int(sizes[at]) if at >= 0 else 0


# ---------------------------------------------------------------- the picture


def curves(table: pd.DataFrame, names: Sequence[str], size: int, what: str) -> Any:
    """Draw faithfulness and completeness by size, held out beside chosen on, and random circuits in grey.

    `names` are of the rows by order, `size` is that of the chosen circuit, `what` is what circuits are made of.
    """
    grown = table.sort_values("order").assign(entering=list(names))
    grown, drawn = (grown[grown[c].notna()] for c in ("faithfulness", "random_mean"))
    band = [_line(drawn, "random_mean", "random", NULL_GREY, "random")] if len(drawn) else []
    held = int(table["n_held_out"].iloc[0])
    chose = f"faithful, {int(table['n'].iloc[0])} that chose"
    found = [*band, _line(grown, "faithfulness", chose, CATEGORIES[1])]
    if held:
        found.append(_line(grown, "held_out_faithfulness", f"faithful, {held} held out", CATEGORIES[0]))
    found.append(_line(grown, "held_out_completeness" if held else "completeness",
                       "complete" + (", held out" if held else ""), CATEGORIES[2]))  # fmt: skip
    told = f"{what} in the circuit (chosen: {size} of {len(table)}{_gap(grown, size) if held else ''})"
    return lines(found, x_title=told, y_title="share of the whole model's behaviour", height=380)


def _gap(grown: pd.DataFrame, size: int) -> str:
    """Say what the circuit is worth on either half."""
    at = grown[grown["order"] == size]
    if not len(at):
        return ""
    a, b = float(at["faithfulness"].iloc[0]), float(at["held_out_faithfulness"].iloc[0])
    return f", {a:.2g} faithful, held out {b:.2g}"


def _line(table: pd.DataFrame, column: str, name: str, colour: str, ends: str = "") -> Line:
    """Draw a column by size with its interval, from (0, 0) on."""
    low, high = (table[f"{ends or column}_{end}"] for end in ("low", "high"))
    entering = [""] * len(table) if ends else table["entering"]
    hover = [f"{name} {y:.3g} ({a:.3g} to {b:.3g})<br>size {k}" + (f", entering: {e}" if e else "")
             for y, a, b, k, e in zip(table[column], low, high, table["order"], entering, strict=True)]  # fmt: skip
    x, y, below, above = ([0, *v] for v in (table["order"], table[column], low, high))
    return Line(name, x, y, below, above, colour, [f"{name} 0 by definition<br>size 0", *hover])
