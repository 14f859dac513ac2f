"""What a table of exp010_annealing says of what was expected: a claim each.

`mine`: rows of the chosen steps, by level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from backend.analyses._annealed import settled
from backend.contract import Claim

INNER = (0, 1, 5, 20)  # steps after each jump that are always compared
TRIVIAL = ("zero", "mean", "linear", "copy")
IGNORANT = ("zero", "mean")  # these do not look at x
SLACK = 0.1  # of the error of a solution that is drawn from those that fit
GAIN = 0.1  # of the error: an improvement
AS_GOOD = 0.01  # as good as another answer: within this share of the error of the best ignorant one


def better(mine: pd.DataFrame) -> Claim:
    end: Any = mine.loc[0]
    best, known = _least(end, TRIVIAL), _least(end, IGNORANT)
    as_good = end.mse <= end[best] + AS_GOOD * end[known]
    return Claim("the model solves the task", f"the best trivial answer ({best}) has {end[best]:.3g}; {_floor(end)}",
                 f"error {end.mse:.3g}{_interval(end.mse_low, end.mse_high)}",
                 "holds" if _beats(end, best) else "met by its null" if as_good else "fails")  # fmt: skip


def _least(end: Any, names: tuple[str, ...]) -> str:
    return min((name for name in names if np.isfinite(end[name])), key=lambda name: end[name])


def _beats(end: Any, trivial: str) -> bool:
    return bool((end.mse_high if np.isfinite(end.mse_high) else end.mse) < end[trivial])


def _floor(end: pd.Series) -> str:
    known = "" if np.isnan(end.bayes) else f"E[y | x] has {end.bayes:.3g}, "
    return f"{known}the cut to +-2 alone leaves {end.clamp:.3g}"


def _interval(low: float, high: float, form: str = ".3g") -> str:
    return f" [{low:{form}}, {high:{form}}]" if np.isfinite([low, high]).all() else ""


def steps(table: pd.DataFrame) -> Claim:
    """Less of an error that is still no better than knowing nothing is no better answer."""
    last = table[(table.level == 0) & table.inner.isin(INNER)].set_index("inner")
    most: Any = last.loc[max(INNER)]
    words = ", ".join(f"{i}: {last.mse[i]:.3g}" for i in INNER)
    gain = f"20 steps gain {most.gain:.1%}" + _interval(most.gain_low, most.gain_high, ".1%")
    known = _least(most, IGNORANT)
    answers, ends = _beats(most, known), np.nan_to_num([most.gain_low, most.gain_high], nan=most.gain)
    if not answers:
        gain += f"; but no better than answering without x ({known}: {most[known]:.3g})"
    return Claim("minimising the energy improves the answer (20 steps per level by a tenth or more)",
                 f"jumps without any step: {last.mse[0]:.3g}", f"error by steps {words}; {gain}",
                 "fails" if ends[1] < GAIN else "holds" if answers and ends[0] >= GAIN else
                 "cannot be tested here")  # fmt: skip


def emergence(mine: pd.DataFrame) -> Claim:
    """The level from which on a direction stays within a tenth of its last share."""
    criterion = "coarse to fine: the largest singular direction settles at a smoother level than the smallest"
    end: Any = mine.loc[0]
    null = "0 levels: both settle at once"
    if len(mine) < 2 or np.isclose(mine.coarse, mine.fine).all():
        why = "one level: there is no order" if len(mine) < 2 else "solutions of rank 1: there is one direction"
        return Claim(criterion, null, why, "cannot be tested here")
    found = {name: settled(mine[name].to_numpy()) for name in ("coarse", "fine")}
    value = (f"largest {end.coarse:.2f}, within a tenth from level {found['coarse']} down; smallest {end.fine:.2f}, "
             f"from level {found['fine']} down: {end.ahead:.0f} [{end.ahead_low:.0f}, {end.ahead_high:.0f}] levels "
             f"before; a linear map, without any level, holds {end.linear_coarse:.2f} and {end.linear_fine:.2f}"
             )  # fmt: skip
    return Claim(criterion, null, value, "holds" if end.ahead_low > 0 else "fails" if end.ahead_high <= 0 else
                 "cannot be tested here")  # fmt: skip


def one_answer(mine: pd.DataFrame) -> Claim:
    """Starts do not matter to a model that answers all alike either: it must also know something of the problem."""
    end: Any = mine.loc[0]
    known = _least(end, IGNORANT)
    knows = _beats(end, known)
    ratio = end.spread / end.rms
    return Claim("the answer does not depend on the noise that it starts from (spread under a tenth of the error)",
                 "a model that ignored its start, answering 0 say, has spread 0 too",
                 f"spread {end.spread:.2g}, {ratio:.2g} of the error {end.rms:.2g}"
                 + f"; no better than answering without x ({known}: {end[known]:.3g})" * (not knows),
                 "fails" if not ratio < 0.1 else "holds" if knows else "met by its null")  # fmt: skip


def uses_x(mine: pd.DataFrame) -> list[Claim]:
    end: Any = mine.loc[0]
    if np.isnan(end.shuffled):
        return []
    return [Claim("the answer is to the problem that was asked", f"answers to other problems have {end.shuffled:.3g}",
                  f"error {end.mse:.3g}", "holds" if end.mse < 0.5 * end.shuffled else "fails")]  # fmt: skip


def mean(mine: pd.DataFrame) -> list[Claim]:
    """Where several solutions fit, what is returned is their average.

    One drawn from those that fit is off by twice the error of their mean. Where that is no less than knowing nothing,
    an error that is not small says nothing of whether the answer fits.
    """
    end: Any = mine.loc[0]
    if np.isnan(end.bayes) or end.bayes == 0:
        return []
    known, drawn = end[_least(end, IGNORANT)], 2 * end.bayes
    high = end.mse_high if np.isfinite(end.mse_high) else end.mse
    average, fits = end.to_mean < 0.5 * end.mse, high < min(0.5 * known, (1 + SLACK) * drawn)
    far: Any = "cannot be tested here" if drawn >= known else "fails"
    return [Claim("the answer is one of the solutions that fit",
                  f"inference without noise returns their mean E[y | x], whose error is {end.bayes:.3g}; one drawn "
                  f"from those that fit has {drawn:.3g}, answering without x {known:.3g}",
                  f"squared distance to that mean {end.to_mean:.2g}, to the solution {end.mse:.3g}"
                  + _interval(end.mse_low, end.mse_high),
                  "fails" if average else "holds" if fits else far)]  # fmt: skip
