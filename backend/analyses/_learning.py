"""What local learning coefficients share, whatever the model: knobs, chains, refusals, plateaus and figures.

Formulas, errors and sources: learning_coefficient.py, maths/learning_coefficient.py.
"""

from __future__ import annotations

import itertools
import textwrap
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._at_weights import LossesAt
from backend.contract import Axis, Params, Progress, Value
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, level, lines, logarithmic

SCAN = (0.1, 10**-0.5, 1.0, 10**0.5, 10.0)  # times the localisation
APART = 10**8  # between the seeds of neighbouring localisations; a generator knows 32 bits, a seed has 31
FLAT = 0.1  # |d ln lambda / d ln gamma| of a plateau
FREE = 12  # draws from the localiser alone
KNOBS = {
    "not mixed": "Give more draws and burn-in, or a larger localisation",
    "acceptance": "Give more burn-in, in which the step size is tuned, or a larger localisation",
    "negative": "Choose a later checkpoint, or rows like those it was trained on",
    "the chains": "Give a larger localisation",
}


class LearningParams(Params):
    """The sampling."""

    localisation: float = Field(3000.0, ge=1.0, le=1e7, description="gamma: how firmly chains are held at the weights")
    scan: Literal["no", "yes"] = Field("no", description="also at a tenth to ten times of it; five times the work")
    chains: int = Field(4, ge=2, le=64, description="chains, each from the model's weights; the interval is over them")
    draws: int = Field(100, ge=10, le=100_000, description="draws of each chain that are kept")
    burn: int = Field(40, ge=10, le=100_000, description="steps before, in which the step size is tuned")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the chains; in a scan of the middle ones")


AXES = (
    Axis("localisation", "gamma", kind="float"), Axis("chain", "chain"), Axis("draw", "draw after burn-in"),
)  # fmt: skip
VALUES = (
    Value("rise", "L(w) - L(w*) at this draw", "nats"),
    Value("chain_estimate", "lambda from this chain alone (the same in all its rows)"),
    Value("estimate", "lambda, mean of chains (the same in all rows of a gamma); NULL where refused"),
    Value("estimate_se", "its standard error over chains; NULL where refused"),
    Value("low", "lower end of the 95 % interval over chains; NULL where refused"),
    Value("high", "upper end"),
    Value("free", "the same of draws from the localiser alone"),
    Value("acceptance", "share of steps that were accepted, 0 to 1"),
    Value("r_hat", "R-hat of the loss: 1 where chains have mixed"),
    Value("step", "step size of the chains"),
    Value("tokens", "n: the predicted tokens, or of an energy model the entries of its field", kind="int"),
    Value("trouble", "why the estimate is refused, and what to turn; empty where it is not", kind="str"),
)


def estimated(losses: LossesAt, n: int, params: LearningParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (localisation, chain, draw) of a loss that is the mean negative log-likelihood of n samples.

    Raises BadInput for fewer than 3 samples, where log n is no temperature.
    """
    if n < 3:
        raise BadInput("The learning coefficient", f"{n} samples, at least 3 are needed", "Use more rows or problems")
    frames, gammas = [], gammas_of(params)
    for i, (gamma, seed) in enumerate(zip(gammas, seeds_of(params), strict=True)):
        told = _part(progress, i, len(gammas), gamma)
        held = params.model_copy(update={"localisation": gamma, "seed": seed})
        frames.append(_sampled(losses, n, held, told).assign(localisation=gamma))
    return pd.concat(frames, ignore_index=True)[[*(a.name for a in AXES), *(v.name for v in VALUES)]]


def gammas_of(params: LearningParams) -> list[float]:
    """Return the localisations that are asked about, ascending."""
    return [params.localisation * times for times in (SCAN if params.scan == "yes" else (1.0,))]


def seeds_of(params: LearningParams) -> list[int]:
    """Return the seed of each localisation: that asked for where it alone is asked about, and of a scan's middle."""
    n = len(gammas_of(params))
    return [params.seed + APART * ((i - n // 2) % n) for i in range(n)]


def _part(progress: Progress, turn: int, of: int, gamma: float) -> Progress:
    words = f", localisation {gamma:.3g}" if of > 1 else ""
    return lambda share, said: progress((turn + share) / of, said + words)


def _sampled(losses: LossesAt, n: int, params: LearningParams, progress: Progress) -> pd.DataFrame:
    """Return the rows of one localisation."""
    import torch

    from backend.maths import learning_coefficient as maths
    from backend.maths.products import flat, shaped

    names, like = list(losses.own), list(losses.own.values())
    start, turns = flat(like, like), params.burn + params.draws

    def loss(points: Any) -> Any:
        at = (dict(zip(names, shaped(point, like), strict=True)) for point in points)
        return torch.stack([losses.graph(one).mean() for one in at])

    def said(turn: int) -> None:
        progress(0.95 * turn / turns, f"Step {turn} of {turns}, {params.chains} chains")

    found = maths.estimate(loss, start, n, params.chains, params.draws, params.burn, params.localisation, params.seed,
                           said)  # fmt: skip
    free = _free(losses, start, params, lambda point: dict(zip(names, shaped(point, like), strict=True)))
    return _table(found, n, n / np.log(n) * free)


def _free(losses: Any, start: Any, params: LearningParams, named: Any) -> float:
    """Return the mean of L - L(w*) over draws from the localiser."""
    import torch

    dice, middle = torch.Generator().manual_seed(params.seed + 1), losses.rows(losses.own).mean()
    found = []
    for _ in range(FREE):
        drawn = torch.randn(start.shape, generator=dice, dtype=torch.float64).to(start)
        found.append(losses.rows(named(start + drawn / params.localisation**0.5)).mean() - middle)
    return float(np.mean(found))


def _table(found: Any, n: int, free: float) -> pd.DataFrame:
    """Return the rows of a Coefficient."""
    rises = found.losses.double().cpu().numpy()
    chains, draws = rises.shape
    told = (found.value, found.error, *found.interval())
    value, error, low, high = told if not found.trouble else (np.nan,) * 4
    table = pd.DataFrame({
        "chain": np.repeat(np.arange(chains), draws), "draw": np.tile(np.arange(draws), chains),
        "rise": rises.ravel(), "chain_estimate": np.repeat(n / np.log(n) * rises.mean(1), draws), "estimate": value,
        "estimate_se": error, "low": low, "high": high, "free": free, "acceptance": found.acceptance,
        "r_hat": found.r_hat, "step": found.step, "tokens": n, "trouble": in_words(found),
    })  # fmt: skip
    return table.replace([np.inf, -np.inf], np.nan)


def in_words(found: Any) -> str:
    """Return why an estimate is refused and which knob helps, '' where it is not."""
    if not found.trouble:
        return ""
    knob = next((todo for start, todo in KNOBS.items() if found.trouble.startswith(start)), "Ask again")
    return f"Refused: {found.trouble}. {knob}."


# ---------------------------------------------------------------- over localisations


def plateau(table: pd.DataFrame) -> str:
    """Say in words over which neighbouring localisations the estimate is flat, where a scan tells; '' without one.

    None reaches beyond a refused localisation; of several plateaus each is named, and whether they agree.
    """
    each = table.groupby("localisation").first()
    if len(each) < 2:
        return ""
    fine, chains = [not trouble for trouble in each["trouble"]], int(table["chain"].nunique())
    refused = f"{fine.count(False)} of {len(each)} localisations are refused"
    slopes = {i: _slope(each, i, i + 1, chains) for i in range(len(each) - 1) if fine[i] and fine[i + 1]}
    if not slopes:
        return f"No plateau can be told: {refused}{', no two neighbours are left' * (fine.count(True) > 1)}."
    spans = _spans([i for i, slope in slopes.items() if _within(slope)])
    if spans:
        said = [f"from gamma {each.index[start]:.3g} to {each.index[end]:.3g}, lambda {_mean(each, start, end):.3g}"
                for start, end in spans]  # fmt: skip
        across = [_slope(each, first[1], second[0], chains) for first, second in itertools.pairwise(spans)]
        return f"Plateau{'s' * (len(spans) > 1)} {'; '.join(said)}.{_agreeing(across)}"
    middle, low, high = min(slopes.values(), key=lambda slope: abs(slope[0]))
    steep = all(_beyond(slope) for slope in slopes.values())
    known = f"None is flat{f' of those told ({refused})' * (False in fine)}" if steep else "Not resolved"
    more = "lambda says as much of gamma as of the loss" if steep else "more chains or draws"
    return (f"{known}: the flattest slope of ln lambda by ln gamma is {middle:.2g}, 95 % [{low:.2g}, {high:.2g}] "
            f"(0: a plateau, -1: the localiser alone): {more}.")  # fmt: skip


Slope = tuple[float, float, float]


def _slope(each: pd.DataFrame, start: int, end: int, chains: int) -> Slope:
    """Return slope and interval of ln lambda by ln gamma between two localisations."""
    from backend.maths import learning_coefficient as maths

    two = each.iloc[[start, end]]
    values, errors = (two[name].to_numpy(float) for name in ("estimate", "estimate_se"))
    return maths.slopes(two.index.to_numpy(float), values, errors, chains)[0]


def _within(slope: Slope) -> bool:
    return max(abs(slope[1]), abs(slope[2])) <= FLAT


def _beyond(slope: Slope) -> bool:
    return min(abs(slope[1]), abs(slope[2])) > FLAT and slope[1] * slope[2] > 0


def _spans(flat: list[int]) -> list[tuple[int, int]]:
    """Return (first, last localisation) of each run of flat steps; step i leads from localisation i to i + 1."""
    spans: list[tuple[int, int]] = []
    for i in flat:
        spans = [*spans[:-1], (spans[-1][0], i + 1)] if spans and spans[-1][1] == i else [*spans, (i, i + 1)]
    return spans


def _mean(each: pd.DataFrame, start: int, end: int) -> float:
    return float(each["estimate"].iloc[start : end + 1].mean())


def _agreeing(across: list[Slope]) -> str:
    """Say whether plateaus agree, by the slopes from each to the next; '' for one."""
    if not across:
        return ""
    if any(_beyond(slope) for slope in across):
        return " They disagree: which is the loss's own is not known."
    return " They agree." if all(map(_within, across)) else " Whether they agree is not resolved: more chains or draws."


def asked_about(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the localisation that was asked for: the middle one of a scan."""
    known = sorted(table["localisation"].unique())
    return table[table["localisation"] == known[len(known) // 2]]


# ---------------------------------------------------------------- figures


def of_chains(table: pd.DataFrame) -> Any:
    """Draw lambda from each chain, their mean with its interval; dotted: the localiser alone, which no loss holds."""
    table = asked_about(table)
    row, each = table.iloc[0], table.groupby("chain")["chain_estimate"].first()
    names, values, errors = [f"chain {i}" for i in each.index], list(each), [0.0] * len(each)
    said = row["trouble"].replace(". ", ".<br>") or f"{row['estimate']:.3g}, 95 % [{row['low']:.3g}, {row['high']:.3g}]"
    if not row["trouble"]:
        names, values, errors = [*names, "all"], [*values, row["estimate"]], [*errors, row["high"] - row["estimate"]]
    colours = [CATEGORIES[7] if row["trouble"] else CATEGORIES[0]] * len(names)
    figure = bars(names, values, errors=errors, colours=colours, x_title=said, y_title="learning coefficient")
    level(figure, names, row["free"], f"localiser alone: {row['free']:.3g}")
    return figure.update_layout(showlegend=False)


def of_draws(table: pd.DataFrame, unit: str) -> Any:
    """Draw the loss above that of the model, draw by draw: chains that have mixed cannot be told apart."""
    table = asked_about(table)
    row = table.iloc[0]
    curves = [Line(f"chain {i}", rows["draw"], rows["rise"], colour=CATEGORIES[int(str(i)) % len(CATEGORIES)])
              for i, rows in table.groupby("chain")]  # fmt: skip
    mean = row["free"] * np.log(row["tokens"]) / row["tokens"]
    ends = [table["draw"].min(), table["draw"].max()]
    curves.append(Line("localiser alone", ends, [mean, mean], colour=NULL_GREY))
    said = f"draw (R-hat {row['r_hat']:.2f}, acceptance {row['acceptance']:.2f}, step {row['step']:.2g})"
    return lines(curves, x_title=said, y_title=f"L - L(w*) ({unit})", height=360)


def of_gammas(table: pd.DataFrame) -> Any:
    """Draw lambda at each gamma with its interval, refused ones left out; grey: the localiser alone."""
    each = table.groupby("localisation").first().reset_index()
    hover = [f"gamma {r['localisation']:.3g}: {r['trouble'] or format(r['estimate'], '.3g')}<br>R-hat "
             f"{r['r_hat']:.2f}, acceptance {r['acceptance']:.2f}, step {r['step']:.2g}"
             for r in each.to_dict("records")]  # fmt: skip
    refused = int((each["trouble"] != "").sum())
    said = plateau(table) or "one localisation: ask for a scan to see whether the estimate is flat"
    curves = [Line("localiser alone", each["localisation"], each["free"].where(each["free"] > 0), colour=NULL_GREY),
              Line("estimate (band: 95 % over chains)", each["localisation"], each["estimate"],
                   each["low"].clip(lower=each["estimate"] / 10), each["high"], CATEGORIES[0], hover)]  # fmt: skip
    title = [f"localisation gamma ({refused} of {len(each)} refused)", *textwrap.wrap(said, 80)]
    figure = logarithmic(lines(curves, x_title="<br>".join(title), y_title="lambda", height=400, log_x=True))
    return figure.update_traces(mode="lines+markers", selector={"name": curves[1].name})
