"""What ablations of units share: many changes of one point on the same rows, a row per condition, and its bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from backend.analyses._units import batches, bootstrap, log_probs, row_kl, row_losses
from backend.contract import Model, Progress, Rows, Value
from backend.figures import CATEGORIES, NULL_GREY, bars

ALONE = 24  # units of the choice that are ablated one by one, too
#: a change of the point's tensor; None leaves the model as it is
Edit = Callable[[Any], Any] | None


def values(units: str) -> list[Value]:
    """Return the columns of a table with a row per condition; `units` are what is ablated."""
    return [
        Value("loss", "mean loss; NULL where no right answer is known", "nats"),
        Value("loss_change", "loss minus the intact model's", "nats"),
        Value("loss_change_low", "lower end of its 95 % interval", "nats"),
        Value("loss_change_high", "upper end of its 95 % interval", "nats"),
        Value("kl", "KL(intact || ablated) of the predictions", "nats"),
        Value("kl_low", "lower end of its 95 % interval", "nats"),
        Value("kl_high", "upper end of its 95 % interval", "nats"),
        Value(f"n_{units}", f"{units} ablated at once", kind="int"),
        Value("n", "rows (a random control: draws) that the interval is over", kind="int"),
        Value(units, f"which {units}, or how they were drawn", kind="str"),
    ]


def sweep(
    model: Model,
    subject: Rows,
    place: tuple[str, int],
    edits_of: Callable[[Any], Sequence[Edit]],
    width: int,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Run every change of `place` on every row: (loss, kl), each [change, row]; NaN where no answer is known.

    `edits_of(tokens)` gives the changes for a batch, the same number each time; `width` floats per token fit a batch.
    """
    losses, kls = [], []
    for start, tokens in batches(model, subject, width + 3 * model.card.d_vocab_out):
        intact, part = log_probs(model.run_with(tokens, {})), []
        edits = edits_of(tokens)
        for at, edit in enumerate(edits):
            done = (start + len(tokens) * at / len(edits)) / len(subject.tokens)
            progress(done, f"Ablation {at + 1} of {len(edits)}")
            told = log_probs(model.run_with(tokens, {place: edit})) if edit else intact
            loss = row_losses(model, tokens, told)
            part.append((np.full(len(tokens), np.nan) if loss is None else loss.cpu().numpy(),
                         row_kl(model, intact, told).cpu().numpy()))  # fmt: skip
        losses.append([loss for loss, _ in part])
        kls.append([kl for _, kl in part])
    return np.concatenate(losses, 1), np.concatenate(kls, 1)


#: a condition: its name, which change (of a control a slice: its draws), how many units, which ones in words
Condition = tuple[str, int | slice, int, str]


def table(losses: np.ndarray, kls: np.ndarray, conditions: Sequence[Condition], units: str, seed: int) -> pd.DataFrame:
    """Return the table of `sweep`'s values, change 0 being the intact model; a control's are means over rows."""
    rows = []
    for name, at, k, said in conditions:
        loss, change, kl = (
            x[at].mean(1) if isinstance(at, slice) else x[at] for x in (losses, losses - losses[0], kls)
        )
        (low, high), (kl_low, kl_high) = bootstrap(change, seed), bootstrap(kl, seed)
        rows.append({"condition": name, "loss": loss.mean(), "loss_change": change.mean(), "loss_change_low": low,
                     "loss_change_high": high, "kl": kl.mean(), "kl_low": kl_low, "kl_high": kl_high, f"n_{units}": k,
                     "n": len(kl), units: said})  # fmt: skip
    return pd.DataFrame(rows)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def drawn(frame: pd.DataFrame, name: str, words: str, units: str, controls: Sequence[str], chosen: str) -> Any:
    """Draw a value per condition with its interval; controls are grey."""
    shown = frame[frame["condition"] != "intact"]
    hover = [
        f"{r['condition']}: {r[name]:.3g} [{r[f'{name}_low']:.3g}, {r[f'{name}_high']:.3g}]<br>{r[units]}"
        for r in shown.to_dict("records")
    ]
    special = {chosen: CATEGORIES[1], **dict.fromkeys(controls, NULL_GREY)}
    errors = (shown[f"{name}_high"] - shown[name], shown[name] - shown[f"{name}_low"])
    return bars(shown["condition"].tolist(), shown[name], errors=errors[0], errors_below=errors[1], hover=hover,
                colours=[special.get(c, CATEGORIES[0]) for c in shown["condition"]],
                x_title="what is ablated", y_title=words)  # fmt: skip


def loss_words(frame: pd.DataFrame) -> str:
    """Return the title of the axis of loss changes."""
    unit = "nats" if frame["loss_change"].notna().any() else "no right answer is known here"
    return f"change of the loss ({unit})"
