"""What the experiments on low-rank geometry share: the rank asked about, how well it is told, lines over levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.contract import Claim, Matrices, ModelCard, Params
from backend.errors import Unfit
from backend.figures import NULL_GREY, Line

Tensor = Any  # torch's; this room imports it inside functions only
X_LEVEL = "annealing level (0 sharpest)"
TOLD = 0.1  # s_(r+1) / s_r below which the solutions have rank r
MORE = 1.25  # times a null below which a finding says no more than that null


class RankParams(Params):
    """The rank whose manifold is asked about."""

    rank: int = Field(1, ge=1, le=64, description="rank r of the manifold; below the side of the matrices. The tail "
                      "s_(r+1) / s_r of the solutions says whether they have that rank")  # fmt: skip


def checked(card: ModelCard, rank: int) -> int:
    """Return the side of the matrices. Raises Unfit where rank r leaves no normal space: r < side is needed."""
    side = int(card.energy["side"])
    if not rank < side:
        found = f"the matrices have {side} rows: every one of them has rank {side} at most, there is no outside"
        raise Unfit(f"The manifold of rank {rank}", found, f"Choose a rank from 1 to {side - 1}")
    return side


def as_matrices(flat: Tensor, side: int) -> Tensor:
    """Return [.., side, side] of [.., side * side], by rows."""
    return flat.unflatten(-1, (side, side))


def tails(problems: Matrices, rank: int) -> np.ndarray:
    """Return s_(r+1) / s_r of the solutions [n]: 0 where the rank is exact, 1 where there is none to tell."""
    import torch

    s = torch.linalg.svdvals(as_matrices(problems.y.double(), problems.side)).cpu().numpy()
    return np.divide(s[:, rank], s[:, rank - 1], out=np.ones(len(s)), where=s[:, rank - 1] > 0)


def medians(table: pd.DataFrame, values: str | Callable[[pd.DataFrame], np.ndarray], name: str) -> Line:
    """Return a line over levels: the median of a column, or of `values(rows of a level)`, and its 95 % interval; what
    is not finite is a gap."""
    from backend.maths.ranks import median_interval

    at = sorted(table.level.unique())
    rows = [table[table.level == k] for k in at]
    found = np.array([median_interval(r[values].to_numpy() if isinstance(values, str) else values(r)) for r in rows])
    low, mid, high = np.where(np.isfinite(found), found, np.nan).T
    return Line(name, np.array(at), mid, low, high)


def level_line(table: pd.DataFrame, height: float, name: str) -> Line:
    """Return a grey line of one height over the levels."""
    at = np.array(sorted(table.level.unique()))
    return Line(name, at, np.full(len(at), height), colour=NULL_GREY)


def spanned(low: float, mid: float, high: float) -> str:
    """Say an estimate with its interval."""
    words = {True: "undefined", False: "unbounded"}
    said = [f"{v:.3g}" if np.isfinite(v) else words[bool(np.isnan(v))] for v in (mid, low, high)]
    return f"{said[0]} [{said[1]}, {said[2]}]"


def has_rank(tail: float) -> bool:
    """Say whether solutions with this median s_(r+1) / s_r have rank r."""
    return tail < TOLD


def judged(claims: list[Claim], tail: float) -> list[Claim]:
    """Return claims on the manifold of rank r; where the solutions have not that rank (median s_(r+1) / s_r), they lie
    on no such manifold, and nothing is said of it."""
    return claims if has_rank(tail) else [replace(c, verdict="cannot be tested here") for c in claims]


def rank_words(tail: float, rank: int) -> str:
    """Say whether the solutions have the rank, from their median s_(r+1) / s_r."""
    has = "the solutions have this rank" if has_rank(tail) else "the solutions do not have this rank"
    return f"rank {rank}: s_{rank + 1} / s_{rank} = {tail:.2g}, {has}"
