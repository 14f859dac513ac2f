"""What a follower saw in a run's lines that a person should know: counted as they come, said in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from backend.runs.folder import Chunk

#: the clock may step back by so much (seconds) without a word: time servers correct it
SLACK = 1.0
ONE_MANY = {
    "bad_lines": "{n} {line|lines} or {value|values} could not be read",
    "n_nan": "{n} {value was|values were} not a number (NaN): gaps in the curves",
    "n_inf": "{n} {value was|values were} infinite: gaps in the curves",
    "n_clock_back": "the clock went backwards {times}",
    "n_step_back": "the step went backwards {times} without a word of a resume; the later value of a step is shown",
    "n_repeated": "{n} {value was|values were} logged again for the same step; the later is shown",
    "n_started": "{n} scripts started it; their lines are shown together",
    "n_resumed": "it was resumed {times}",
    "n_damaged": "{n} event {file is|files are} damaged; {it is|they are} read up to the damage",
}


class Seen:
    """Counts over all lines of a run so far, whatever chunks they came in; `record()` and `Seen(record)` keep them."""

    def __init__(self, kept: Mapping[str, Any] | None = None):
        kept = kept or {}
        self.counts: dict[str, int] = {k: int(kept.get(k, 0)) for k in ONE_MANY}
        self._time: float | None = None
        self._step: int | None = None
        self._names: set[tuple] = set()

    def note(self, chunk: Chunk) -> None:
        """Count what the chunk holds."""
        self.counts["bad_lines"] += chunk.bad
        for event, name in (("started", "n_started"), ("resumed", "n_resumed")):
            self.counts[name] += sum(e.get("event") == event for e in chunk.events)
        if any(e.get("event") == "resumed" for e in chunk.events):
            self._step, self._names = None, set()  # going back is what a resume does
        if len(chunk.rows):
            self._rows(chunk.rows)

    def _rows(self, rows: pd.DataFrame) -> None:
        value, time, step = (rows[c].to_numpy() for c in ("value", "time", "step"))
        self.counts["n_nan"] += int(np.isnan(value).sum())
        self.counts["n_inf"] += int(np.isinf(value).sum())
        known = time[~np.isnan(time)]
        before = known[:1] if self._time is None else [self._time]
        self.counts["n_clock_back"] += int((np.diff(known, prepend=before) < -SLACK).sum())
        self._time = float(known[-1]) if len(known) else self._time
        change = np.diff(step, prepend=step[0] if self._step is None else self._step)
        self.counts["n_step_back"] += int((change < 0).sum())
        self._repeated(rows, change)
        self._step = int(step[-1])

    def _repeated(self, rows: pd.DataFrame, change: np.ndarray) -> None:
        """Count values of one name in a stretch of lines with one step, also where the stretch crosses chunks."""
        stretch = (change != 0).cumsum()
        same = rows.assign(step=stretch)[["step", "metric", "layer", "head"]]
        if (change[1:] == 0).any():
            self.counts["n_repeated"] += int(same.duplicated().sum())
        if not stretch[0]:
            first = same[stretch == 0].drop_duplicates()
            self.counts["n_repeated"] += sum(_key(r) in self._names for r in first.itertuples(index=False))
        last = {_key(r) for r in same[stretch == stretch[-1]].itertuples(index=False)}
        self._names = last | self._names if not stretch[-1] else last

    def record(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(self.counts)

    def sentences(self) -> list[str]:
        """Return a sentence per kind of thing that was seen at all."""
        least = {"n_started": 2}
        return [_say(words, self.counts[k]) for k, words in ONE_MANY.items() if self.counts[k] >= least.get(k, 1)]


def _key(row: Any) -> tuple:
    return row.metric, *(None if pd.isna(v) else int(v) for v in (row.layer, row.head))


def _say(words: str, n: int) -> str:
    times = {1: "once", 2: "twice"}.get(n, f"{n:,} times")
    said = words.replace("{n}", f"{n:,}").replace("{times}", times)
    while "|" in said:
        before, _, rest = said.partition("{")
        choice, _, after = rest.partition("}")
        said = before + choice.split("|")[n != 1] + after
    return said
