"""What kind of change it is: smooth, kink, rapid crossover, size-sharpening crossover; and what may have made it.

A curve y(u), u = ln(step), near the change is fitted by least squares as quadratic, cubic or quartic (smooth), as
quadratic + a max(u - c, 0) (kink: the slope changes, the curve is continuous), and as quadratic + a ramp((u - c)/w)
(rapid crossover: a jump of finite width w). The least n_eff ln(RSS/n) + k ln(n_eff) wins: n_eff is the number of
independent points of AR(1) noise; k counts 1 for a coefficient, 2 for a place or width that was searched. One size
cannot tell a crossover from a transition: only a width that shrinks with the number of parameters over at least three
sizes may be called transition-like.

Metric-induced: Schaeffer et al. (2023), Are emergent abilities of large language models a mirage?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.maths.glr import Array, ramp
from backend.maths.logstep import clean

SMOOTH, KINK, CROSSOVER, SHARPENING = "smooth", "kink", "rapid crossover", "size-sharpening crossover"
#: ln-step to either side of the change that is looked at, beyond its width
REACH = 1.2
WIDTHS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
#: a learning rate that falls by more than this share between two points, and below its trend, has dropped
LR_JUMP = 0.3


@dataclass(frozen=True)
class Shape:
    """The verdict on one curve: its class, the width (ln-step) of a crossover, the lead in the criterion (nats * 2)."""

    verdict: str
    width: float
    centre: float
    lead: float


def shape_of(
    steps: Array, values: Array, step: float | None = None, width: float = 0.0, log: bool = False
) -> Shape:
    """Classify a curve: whole, or within REACH + width/2 of a step. Fewer than 12 points, or a constant: smooth."""
    steps, values = clean(steps, values, log)
    u = np.log(steps)
    if step is not None:
        near = np.abs(u - np.log(step)) <= REACH + width / 2
        u, values = u[near], values[near]
    return elect(u, values)


def elect(u: Array, values: Array) -> Shape:
    """Classify a whole curve of points ascending in u = ln(step), gaps and logarithms taken care of."""
    if len(u) < 12 or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return Shape(SMOOTH, 0.0, 0.0, 0.0)
    return _elect(u, values - values.mean())


def commonest(found: Sequence[str]) -> str:
    """Return the commonest verdict, the stronger one of equals."""
    order = (CROSSOVER, KINK, SMOOTH)
    return max(order, key=lambda v: (found.count(v), -order.index(v)))


def left(told: Sequence[str]) -> str:
    """Return what an alarm's curves leave of it: the commonest verdict of those that are not smooth, smooth where all
    are. An alarm has passed its threshold: one curve that shows the change is enough to keep it."""
    return commonest([t for t in told if t != SMOOTH] or [SMOOTH])


def _elect(u: Array, y: Array) -> Shape:
    x = (u - u[0]) / (u[-1] - u[0])
    base = np.vander(x, 3, increasing=True)
    centres = np.linspace(u[2], u[-3], 60)
    fits = {SMOOTH: [(_residual(np.vander(x, d + 1, increasing=True), y), d - 2, 0.0, 0.0) for d in (2, 3, 4)]}
    fits[KINK] = [_best(base, y, [(np.maximum(u - c, 0), c, 0.0) for c in centres], 3)]
    fits[CROSSOVER] = [_best(base, y, [(ramp(u, c, w), c, w) for w in WIDTHS for c in centres
                                       if c - w / 2 > u[1] and c + w / 2 < u[-2]], 5)]  # fmt: skip
    left: list[Array] = [r for f in fits.values() for r, *_ in f]
    least = min(left, key=lambda r: float(r @ r))
    phi = float(np.clip(least[1:] @ least[:-1] / max(float(least @ least), 1e-300) + 4 / len(u), 0.0, 0.9))
    n = max(len(u) * (1 - phi) / (1 + phi), 6.0)
    floor = (1e-7 * np.abs(y).max()) ** 2
    cost = {name: min(n * np.log(np.mean(r * r) + floor) + k * np.log(n) for r, k, *_ in f) for name, f in fits.items()}
    (least_cost, first), (next_cost, _) = sorted((float(c), name) for name, c in cost.items())[:2]
    _, _, centre, width = fits[first][0]
    return Shape(first, width if first == CROSSOVER else 0.0, centre, next_cost - least_cost)


def _residual(basis: Array, y: Array) -> Array:
    q = np.linalg.qr(basis)[0]
    return y - q @ (q.T @ y)


def _best(
    base: Array, y: Array, shapes: list[tuple[Array, float, float]], free: int
) -> tuple[Array, int, float, float]:
    """Return (residual, free parameters, centre, width) of the shape that leaves the least."""
    q = np.linalg.qr(base)[0]
    left = np.stack([s for s, _, _ in shapes], 1)
    left = left - q @ (q.T @ left)
    size = np.sqrt((left**2).sum(0))
    left = left * np.where(size > 1e-3, 1 / np.maximum(size, 1e-3), 0.0)
    r0 = y - q @ (q.T @ y)
    part = left.T @ r0
    best = int(np.abs(part).argmax())
    return r0 - left[:, best] * part[best], free, shapes[best][1], shapes[best][2]


# ---------------------------------------------------------------- several sizes


@dataclass(frozen=True)
class Sharpening:
    """The exponent of width ~ n_params^slope with its interval; `transition_like` only where all of it is below 0."""

    slope: float
    low: float
    high: float
    sizes: int
    transition_like: bool


def sharpening(n_params: Sequence[float], widths: Sequence[float], draws: int = 500, seed: int = 0) -> Sharpening:
    """Fit ln width = a + slope ln n_params over runs; interval 95 % by bootstrap over the runs of each size.

    Where a size has a single run, the residuals of the fit are drawn instead. Fewer than three sizes: never
    transition-like. Widths of 0 (sharper than the grid) count as half a cell.
    """
    x, y = np.log(np.asarray(n_params, float)), np.log(np.maximum(np.asarray(widths, float), 0.02))
    sizes = np.unique(x)
    if len(sizes) < 3:
        return Sharpening(float("nan"), float("nan"), float("nan"), len(sizes), False)
    rng = np.random.default_rng(seed)
    slope, level = np.polyfit(x, y, 1)
    left = (y - level - slope * x) * np.sqrt(len(x) / max(len(x) - 2, 1))
    seeded = min((x == s).sum() for s in sizes) > 1
    fitted = level + slope * x
    drawn = (_redrawn(rng, x, y, sizes) if seeded else fitted + rng.choice(left, len(x)) for _ in range(draws))
    slopes = [np.polyfit(x, again, 1)[0] for again in drawn]
    low, high = np.quantile(slopes, [0.025, 0.975])
    return Sharpening(float(slope), float(low), float(high), len(sizes), bool(high < 0))


def _redrawn(rng: np.random.Generator, x: Array, y: Array, sizes: Array) -> Array:
    again = y.copy()
    for size in sizes:
        again[x == size] = rng.choice(y[x == size], int((x == size).sum()))
    return again


# ---------------------------------------------------------------- what may have made it


def learning_rate_jumps(steps: Array, rates: Array) -> list[float]:
    """Return the steps at which a logged learning rate has dropped: by more than LR_JUMP of the point before, and by
    as much below where its last slope would have carried it, so neither a warm-up nor a steady decay is one."""
    steps, rates = clean(steps, rates)
    if len(steps) < 2:
        return []
    slope = np.diff(rates) / np.diff(steps)
    carried = rates[:-1] + np.concatenate([[0.0], slope[:-1]]) * np.diff(steps)
    least = LR_JUMP * np.abs(rates[:-1])
    return [float(s) for s in steps[1:][(rates[1:] < rates[:-1] - least) & (rates[1:] < carried - least)]]


#: ln-steps by which a change may follow its cause, or seem to come before it
AFTER, BEFORE = 0.5, 0.1


def exogenous(low: float, high: float, drops: Sequence[float]) -> str:
    """Return words where the learning rate was changed within the interval or shortly before it, else ''.

    A curve answers late, and noise hides the first part of its answer: a drop may lie AFTER ln-steps before `low`.
    """
    near = [d for d in drops if d > 0 and low * np.exp(-AFTER) <= d <= high * np.exp(BEFORE)]
    if not near:
        return ""
    return f"The learning rate was changed at step {near[-1]:.0f}, just before or within this: it may be the cause."


def artefact(jumped: Sequence[str], twins: dict[str, str], shows: Sequence[str], words: dict[str, str]) -> str:
    """Return words where every channel that carried the change has a continuous twin that does not show it, else ''.

    Args: jumped: the metrics that carried it; twins {metric: continuous twin}, of those that were measured; shows: the
        metrics that show the change; words {metric: title}.
    """
    if not jumped or any(m not in twins or twins[m] in shows for m in jumped):
        return ""
    said = [f"{words.get(m, m)} jumps and {words.get(twins[m], twins[m])} does not" for m in dict.fromkeys(jumped)]
    return f"Metric-induced: {', '.join(said)}."


def over_seeds(steps: Array, draws: int = 500, level: float = 0.9, seed: int = 0) -> tuple[float, float, float]:
    """Return (median, low, high) of the steps of several seeds: percentile bootstrap of the median, in log-step."""
    u = np.log(np.asarray(steps, float))
    again = np.median(np.random.default_rng(seed).choice(u, (draws, len(u))), axis=1)
    low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2])
    return float(np.exp(np.median(u))), float(np.exp(low)), float(np.exp(high))
