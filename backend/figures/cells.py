"""What the cells of a map say on hover (place, value, rank), and how many of them are sent.

A rank is 0-based: how many cells of the same row, or of the whole map, are larger (farther from 0 where the map is
signed). It is counted before a large map is thinned, and a cell without a value has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

#: raw bytes of numbers per figure; base64 makes them a third longer, and the house allows 2 MB per interaction
MOST_BYTES = 1_400_000
MOST_WORDED = 7_000  # cells with a hover in words of their own, some 130 bytes each
NUMBERED = 12  # bytes of a cell at most: its value in float32, its rank, a second number

Among = Literal["", "row", "map"]


@dataclass
class Cells:
    """The cells that are sent: z and rank [row, column], what else they say, and the first row and column of each."""

    z: np.ndarray
    rank: np.ndarray | None
    more: Any
    at: tuple[list[int], list[int]]

    @property
    def customdata(self) -> Any:
        """[row, column] the rank, or [row, column, 2] rank and second number."""
        if self.more is None or self.rank is None:
            return self.rank
        return np.stack([self.rank, self.more], -1).astype(np.float32)


def ranks(z: Any, among: Among = "map", signed: bool = False) -> np.ndarray:
    """Return how many cells of the map (or of the same row) are larger than each: int [row, column], -1 for NaN.

    Equal cells share the smaller rank. Cost: one sort.
    """
    z = np.asarray(z, float)
    size = np.abs(z) if signed else z
    lines = size.reshape(1, -1) if among == "map" else size
    found = [np.searchsorted(np.sort(-line[~np.isnan(line)]), -line, side="left") for line in lines]
    rank = np.where(np.isnan(z), -1, np.reshape(found, z.shape))
    return rank.astype(np.int16 if rank.size <= 1 or rank.max() < 2**15 else np.int32)


def ranked_words(among: Among, n: int, signed: bool = False, row: str = "row", rank: Any = "%{customdata}") -> str:
    """Say a rank: the template's placeholder, or a number; '' where none is told."""
    first = "the farthest from 0" if signed else "the largest"
    whole = f"of {n} cells" if among == "map" else f"of this {row}'s cells"
    return f"rank {rank} {whole} (0: {first})" if among else ""


def seen(pattern: Any) -> np.ndarray:
    """Return a map [query, key] with NaN for keys that no query may see: all behind it, where none looks ahead."""
    block = np.array(pattern, np.float32)
    if block.shape[0] == block.shape[1] and not np.triu(block, 1).any():
        block[np.triu_indices(len(block), 1)] = np.nan
    return block


def sent(
    z: np.ndarray, among: Among, signed: bool = False, more: Any = None, words: Any = None, maps: int = 1
) -> Cells:  # fmt: skip
    """Rank the cells of z [row, column] and keep as many as may be sent; `more` is a second number of each, `words` its
    hover (fewer are sent then). Of each block of cells the one farthest from 0 stands for all."""
    rank = ranks(z, among, signed) if among else None
    most = MOST_BYTES // (NUMBERED * maps) if words is None else MOST_WORDED // maps
    pick, at = _picked(z, most)
    if pick is None:
        return Cells(z, rank, words if words is not None else more, at)
    rank, more, words = (None if part is None else np.asarray(part)[pick] for part in (rank, more, words))
    return Cells(z[pick], rank, words if words is not None else more, at)


def _picked(z: np.ndarray, most: int) -> tuple[Any, tuple[list[int], list[int]]]:
    """Return the index (rows, columns) of the cells kept, None for all, and the first row and column of each block."""
    shape = list(z.shape)
    long = int(np.argmax(shape))
    shape[long] = max(min(shape[long], most // max(shape[1 - long], 1)), min(shape[1 - long], int(most**0.5)))
    shape[1 - long] = min(shape[1 - long], max(1, most // shape[long]))
    starts = [list(range(0, n, -(-n // m))) if n else [] for n, m in zip(z.shape, shape, strict=True)]
    at = (starts[0], starts[1])
    if [len(s) for s in starts] == list(z.shape):
        return None, at
    size = np.abs(np.nan_to_num(z, nan=-np.inf, posinf=np.inf, neginf=np.inf)) * np.where(np.isnan(z), -1, 1)
    index = np.arange(z.size).reshape(z.shape)
    for axis, first in enumerate(starts):
        blocks = np.split(size, first[1:], axis)
        pick = np.stack([b.argmax(axis) + f for b, f in zip(blocks, first, strict=True)], axis)
        size, index = np.take_along_axis(size, pick, axis), np.take_along_axis(index, pick, axis)
    return np.unravel_index(index, z.shape), at


def said(title: str, at: Sequence[int], labels: Sequence[Any]) -> str:
    """Return an axis' title that says how many of its labels are drawn, where it is not all."""
    return title if len(at) == len(labels) else f"{title}, {len(at)} of {len(labels)}: the largest of each block"


def short(title: str) -> str:
    """Return an axis' title without its explanation."""
    return title.split(" (")[0]


def worded(
    z: np.ndarray, value: str, hover: Any, rows: Sequence[str], columns: Sequence[str], ranked: Any = None,
    blank: str = "no value",
) -> list[str]:  # fmt: skip
    """Return the hover of every cell, row by row: its place, its value (or its own words), its rank."""
    last = np.asarray(hover, object).ravel().tolist()
    if hover is None:
        last = [blank if v != v else f"{value}: {v:.3g}" for v in z.flat]
    places = [f"{r}<br>{c}" for r in rows for c in columns]
    after = [""] * len(places) if ranked is None else [f"<br>{w}" if w else "" for w in np.asarray(ranked, object).flat]
    return [f"{place}<br>{words}{rank}" for place, words, rank in zip(places, last, after, strict=True)]


def ranks_in_words(rank: np.ndarray | None, among: Among, n: int, signed: bool = False, row: str = "row") -> Any:
    """Return the words of each cell's rank [row, column], '' where it has none; None where none are told."""
    if rank is None:
        return None
    return [["" if r < 0 else ranked_words(among, n, signed, row, r) for r in line] for line in rank.tolist()]


def joined(hover: Any, ranked: Any) -> Any:
    """Return each cell's own words and its rank."""
    if ranked is None:
        return hover
    return [[f"{w}<br>{r}" if r else w for w, r in zip(*line, strict=True)] for line in zip(hover, ranked, strict=True)]
