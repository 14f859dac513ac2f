"""EXP-010: what does going down the levels give, beside answers that need no levels at all?

Every problem is answered from noise (ten jumps, after each `inner` gradient steps that are kept where the energy does
not rise). By level, 0 the sharpest: squared error per entry with its 95 % bootstrap interval over problems; share of
steps kept; the spread over `starts` other noises beside the root mean square error (path independence); and how much of
the truth's largest and smallest singular direction stands in the answer, sum (u'Xv) s / sum s^2 (coarse to fine).
The same with 0, 1, 5 and 20 steps, the gain over 0 steps paired by problem.

Trivial baselines: answers 0, the mean solution, x itself (`copy`), the best linear map of x (fitted on 20,000 others of
the same kind), the error left by cutting solutions to +-2 (`clamp`), and one jump from noise at that level with no
levels before. Null: answers to other problems (x shuffled). Ground truth: inference without noise gives the posterior
mean E[y | x], which is y itself for inverse and addition, 0 for rank1, a closed form for gauss: `to_mean` is the
squared distance to it, and `bayes` the error that it has.
Exact but for the intervals. Cost: per problem and level 1 + inner gradients for every start.
Source: Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, algorithm 2, table 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy
from backend.analyses._units import bootstrap
from backend.contract import (
    Axis,
    Claim,
    Energies,
    Matrices,
    ModelCard,
    Params,
    Problems,
    Progress,
    Value,
    View,
    analysis,
)
from backend.costs import Work
from backend.figures import NULL_GREY, Line, lines

INNER = (0, 1, 5, 20)  # steps after each jump that are always compared
ZERO = 1e-6  # singular values below this share of the largest are none
TRIVIAL = ("zero", "mean", "linear", "copy")
IGNORANT = ("zero", "mean")  # these do not look at x
AS_GOOD = 0.01  # as good as another answer: within this share of the error of the best ignorant one


class AnnealingParams(Params):
    """Steps and starts."""

    inner: int = Field(5, ge=0, le=50, description="gradient steps after each jump of the answers that are looked at")
    starts: int = Field(8, ge=2, le=64, description="noises that each problem is answered from")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the other starts, of the shuffle and the bootstrap")


@analysis(
    version=1, group="Energy landscapes",
    title="EXP-010 Annealing", asks="What does going down the levels give, beside answers that need no levels?",
    subject=Problems, params=AnnealingParams,
    axes=[_energy.LEVEL, Axis("inner", "gradient steps after each jump")],
    values=[
        Value("mse", "squared error per entry of the answer as it stands after this level"),
        Value("mse_low", "lower end of its 95 % interval"),
        Value("mse_high", "upper end of its 95 % interval"),
        Value("gain", "1 - mse / mse with 0 steps"),
        Value("gain_low", "lower end of its 95 % interval, paired by problem"),
        Value("gain_high", "upper end of its 95 % interval"),
        Value("accepted", "share of gradient steps that were kept; absent without steps"),
        Value("coarse", "share of the truth's largest singular direction in the answer"),
        Value("fine", "share of its smallest one that is not 0"),
        Value("to_mean", "squared distance per entry to E[y | x]; absent where it is not known"),
        Value("spread", "standard deviation over starts, root mean square over entries; of the chosen steps only"),
        Value("rms", "root of mse over all starts; of the chosen steps only"),
        Value("shuffled", "squared error of answers to other problems; absent without x"),
        Value("one_jump", "squared error of one jump from noise at this level, no levels before"),
        Value("zero", "squared error of answering 0"),
        Value("mean", "of the mean solution"),
        Value("linear", "of the best linear map of x"),
        Value("copy", "of x itself; absent where it has another size"),
        Value("clamp", "of the solutions cut to +-2"),
        Value("bayes", "of E[y | x]; absent where it is not known"),
        Value("linear_coarse", "share of the truth's largest singular direction in the linear map's answers"),
        Value("linear_fine", "share of its smallest one"),
    ],
)  # fmt: skip
def exp010_annealing(model: Energies, problems: Matrices, params: AnnealingParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (level, inner steps)."""
    fixed = _trivial(model, problems)
    progress(0.05, "trivial answers")
    counts = sorted({*INNER, params.inner})
    extra = _chosen(model, problems, params)
    progress(0.4, f"{params.starts} starts")
    per_level, plain = [], None
    for i, inner in enumerate(counts):
        found = _infer(model, problems.x, problems.noise, inner)
        errors = (found.solutions - problems.y).double().square().mean(-1).cpu().numpy()  # [level, problem]
        plain = errors if plain is None else plain
        for k in range(model.schedule.levels):
            row = {"level": k, "inner": inner, **_error(errors[k], plain[k], params.seed),
                   "accepted": float(found.accepted[k]), **_directions(found.solutions[k], problems),
                   "to_mean": _distance(found.solutions[k], problems)}  # fmt: skip
            per_level.append(row | (extra[k] if inner == params.inner else {}) | fixed[k])
        progress(0.4 + 0.6 * (i + 1) / len(counts), f"{inner} steps after each jump")
    return pd.DataFrame(per_level).reindex(columns=[c.name for c in exp010_annealing.scalars])


@exp010_annealing.costs
def work(card: ModelCard, subject: Problems, params: AnnealingParams) -> Work:
    """Per level a jump and the steps of every start and count; energies one more than steps; the linear fit."""
    told = card.energy
    levels, width = int(told["levels"]), int(told["d_x"]) + int(told["d_y"])
    counts = [*sorted({*INNER, params.inner}), *[params.inner] * (params.starts + bool(told["d_x"]))]
    rows = subject.n * levels * sum(1 + inner for inner in counts)
    fit = 4.0 * (_energy.FIT_PROBLEMS + subject.n) * (int(told["d_x"]) + 1) ** 2
    held = _energy.FIT_PROBLEMS * width + params.starts * subject.n * int(told["d_y"]) * (levels + 4)
    return _energy.work(card, energies=rows, gradients=rows + subject.n * levels, held_numbers=held, operations=fit,
                        at_once=subject.n)  # fmt: skip


def _infer(model: Energies, x: Any, start: Any, inner: int) -> Any:
    from backend.maths import annealed_inference

    return annealed_inference.infer(model.net, x, start, model.schedule, inner)


def _trivial(model: Energies, problems: Matrices) -> list[dict[str, float]]:
    """Return by level the errors of what needs no levels."""
    from backend.maths import annealed_inference, trivial_answers

    fit = problems.more(_energy.FIT_PROBLEMS, 0)
    told = trivial_answers.errors(fit.x, fit.y, problems.x, problems.y)
    linear = trivial_answers.answers(fit.x, fit.y, problems.x)["linear"]
    shares = {f"linear_{name}": value for name, value in _directions(linear, problems).items()}
    mean = _energy.posterior_mean(problems)
    bayes = float("nan") if mean is None else float(_energy.squared_error(mean, problems).mean())
    known = {name: float(e.mean()) for name, e in told.items()} | shares | {"bayes": bayes}
    rows = []
    for k in range(model.schedule.levels):
        level = model.level(k, len(problems.y))
        jump = annealed_inference.guess(model.net, problems.x, problems.noise, level, model.schedule, k)
        rows.append(known | {"one_jump": float(_energy.squared_error(jump, problems).mean())})
    return rows


def _chosen(model: Energies, problems: Matrices, params: AnnealingParams) -> list[dict[str, float]]:
    """Return by level what many starts, and problems exchanged for others, give with the chosen steps."""
    import torch

    n, d = problems.y.shape
    dice = torch.Generator().manual_seed(params.seed + 1)
    others = torch.randn(params.starts - 1, n, d, generator=dice).to(problems.noise)
    start = torch.cat([problems.noise[None], others]).flatten(0, 1)
    found = _infer(model, problems.x.repeat(params.starts, 1), start, params.inner)
    answers = found.solutions.unflatten(1, (params.starts, n)).double()
    spread = answers.var(1).mean((1, 2)).sqrt().tolist()
    rms = (answers - problems.y.double()).square().mean((1, 2, 3)).sqrt().tolist()
    shuffled = [float("nan")] * len(rms)
    if problems.x.shape[1] and n > 1:
        turned = _infer(model, problems.x.roll(1, 0), problems.noise, params.inner).solutions
        shuffled = (turned - problems.y).double().square().mean((1, 2)).tolist()
    return [{"spread": s, "rms": r, "shuffled": o} for s, r, o in zip(spread, rms, shuffled, strict=True)]


def _error(errors: np.ndarray, plain: np.ndarray, seed: int) -> dict[str, float]:
    """Return the mean error and its gain over 0 steps with their intervals, over problems."""
    low, high = bootstrap(errors, seed)
    drawn = np.random.default_rng(seed).integers(len(errors), size=(1000, len(errors)))
    gains = 1 - errors[drawn].mean(1) / plain[drawn].mean(1)
    ends = np.quantile(gains, [0.025, 0.975])
    return {"mse": float(errors.mean()), "mse_low": low, "mse_high": high,
            "gain": float(1 - errors.mean() / plain.mean()), "gain_low": ends[0], "gain_high": ends[1]}  # fmt: skip


def _directions(answers: Any, problems: Matrices) -> dict[str, float]:
    """Return the share of the truth's first and last singular direction that answers [n, d] hold."""
    import torch

    n = problems.side
    u, s, vt = torch.linalg.svd(problems.y.double().reshape(-1, n, n), full_matrices=False)
    held = torch.einsum("bir,bij,brj->br", u, answers.double().reshape(-1, n, n), vt)
    weight = s.square().sum(0)
    share = ((held * s).sum(0) / weight)[weight > ZERO * weight[0]]
    return {"coarse": float(share[0]), "fine": float(share[-1])}


def _distance(answers: Any, problems: Matrices) -> float:
    mean = _energy.posterior_mean(problems)
    return float("nan") if mean is None else float((answers - mean).double().square().mean())


# ---------------------------------------------------------------- what it says of what was expected


@exp010_annealing.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Is it better than trivial, do the steps matter, does it go from coarse to fine, one answer per problem?"""
    inner = int((view.params if view else {}).get("inner", 5))
    mine = table[table.inner == inner].set_index("level").sort_index()
    return [_better(mine), _steps(table), _emergence(mine), _one_answer(mine), *_uses_x(mine), *_mean(mine)]


def _better(mine: pd.DataFrame) -> Claim:
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


def _interval(low: float, high: float) -> str:
    return f" [{low:.3g}, {high:.3g}]" if np.isfinite([low, high]).all() else ""


def _steps(table: pd.DataFrame) -> Claim:
    """Less of an error that is still no better than knowing nothing is no better answer."""
    last = table[(table.level == 0) & table.inner.isin(INNER)].set_index("inner")
    most: Any = last.loc[max(INNER)]
    words = ", ".join(f"{i}: {last.mse[i]:.3g}" for i in INNER)
    gain = f"20 steps gain {most.gain:.1%}{_interval(most.gain_low, most.gain_high)}"
    known = _least(most, IGNORANT)
    answers, gains = _beats(most, known), most.gain >= 0.1 and most.gain_low > 0
    if not answers:
        gain += f"; but no better than answering without x ({known}: {most[known]:.3g})"
    return Claim("minimising the energy improves the answer (20 steps per level by a tenth or more)",
                 f"jumps without any step: {last.mse[0]:.3g}", f"error by steps {words}; {gain}",
                 "fails" if not gains else "holds" if answers else "cannot be tested here")  # fmt: skip


def _emergence(mine: pd.DataFrame) -> Claim:
    """The level from which on a direction stays within a tenth of its last share."""
    criterion = "coarse to fine: the largest singular direction settles at a smoother level than the smallest"
    end: Any = mine.loc[0]
    null = (f"a linear map, without any level, holds {end.linear_coarse:.2f} of the largest, {end.linear_fine:.2f} "
            f"of the smallest; one jump at level {mine.one_jump.idxmin()} alone has error {mine.one_jump.min():.3g}")
    if np.isclose(mine.coarse, mine.fine).all():
        return Claim(criterion, null, "solutions of rank 1: there is one direction", "cannot be tested here")
    settled = {name: _settled(mine[name].to_numpy()) for name in ("coarse", "fine")}
    value = (f"largest {end.coarse:.2f}, within a tenth from level {settled['coarse']} down; smallest {end.fine:.2f}, "
             f"from level {settled['fine']} down")  # fmt: skip
    return Claim(criterion, null, value, "holds" if settled["coarse"] > settled["fine"] else "fails")


def _settled(share: np.ndarray) -> int:
    off = np.flatnonzero(np.abs(share - share[0]) > 0.1 * abs(share[0]))
    return int(off[0] - 1) if len(off) else len(share) - 1


def _one_answer(mine: pd.DataFrame) -> Claim:
    end: Any = mine.loc[0]
    ratio = end.spread / end.rms
    return Claim("the answer does not depend on the noise that it starts from (spread under a tenth of the error)",
                 "a model that ignored its start, answering 0 say, has spread 0 too",
                 f"spread {end.spread:.2g}, {ratio:.2g} of the error {end.rms:.2g}",
                 "holds" if ratio < 0.1 else "fails")  # fmt: skip


def _uses_x(mine: pd.DataFrame) -> list[Claim]:
    end: Any = mine.loc[0]
    if np.isnan(end.shuffled):
        return []
    return [Claim("the answer is to the problem that was asked", f"answers to other problems have {end.shuffled:.3g}",
                  f"error {end.mse:.3g}", "holds" if end.mse < 0.5 * end.shuffled else "fails")]  # fmt: skip


def _mean(mine: pd.DataFrame) -> list[Claim]:
    """Where several solutions fit, what is returned is their average."""
    end: Any = mine.loc[0]
    if np.isnan(end.bayes) or end.bayes == 0:
        return []
    return [Claim("the answer is one of the solutions that fit",
                  f"inference without noise returns their mean E[y | x], whose error is {end.bayes:.3g}",
                  f"squared distance to that mean {end.to_mean:.2g}, to the solution {end.mse:.3g}",
                  "fails" if end.to_mean < 0.5 * end.mse else "holds")]  # fmt: skip


# ---------------------------------------------------------------- figures

LEVELS = "annealing level (0 sharpest, reached last)"


def _mine(table: pd.DataFrame, view: View) -> pd.DataFrame:
    inner = int(view.params.get("inner", 5))
    return table[table.inner == inner].sort_values("level")


def _count(inner: Any) -> str:
    return f"{inner} step" + "s" * (inner != 1)


def _log(figure: Any) -> Any:
    return figure.update_yaxes(type="log", exponentformat="power")


@exp010_annealing.figure("Error of the answer after each level, beside answers that need none")
def error(table: pd.DataFrame, view: View) -> Any:
    """The model with its interval; flat lines are trivial answers."""
    mine = _mine(table, view)
    at = mine.level.to_numpy()
    curves = [Line("energy model", at, mine.mse, mine.mse_low, mine.mse_high), Line("one jump", at, mine.one_jump)]
    if mine.shuffled.notna().all():
        curves.append(Line("x of other problems", at, mine.shuffled))
    words = {"zero": "0", "mean": "mean solution", "linear": "linear map", "copy": "x itself", "clamp": "cut to +-2",
             "bayes": "E[y | x]"}  # fmt: skip
    for name, said in words.items():
        if mine[name].notna().all() and (mine[name] > 1e-12).all():
            curves.append(Line(said, at, mine[name], colour="" if name == "linear" else NULL_GREY))
    figure = _log(lines(curves, x_title=LEVELS, y_title="squared error per entry", height=400))
    for line in (c for c in curves if c.colour == NULL_GREY):  # all are grey: their names stand at their ends
        figure.add_annotation(x=1, xref="paper", xanchor="left", y=float(np.log10(line.y.iloc[0])), text=line.name,
                              showarrow=False, font={"size": 11, "color": NULL_GREY})  # fmt: skip
    return figure.update_layout(margin={"r": 96})


@exp010_annealing.figure("Error by the number of gradient steps after each jump")
def steps(table: pd.DataFrame, view: View) -> Any:
    """What minimising the energy adds to the jumps; bands: 95 % over problems."""
    curves = [Line(_count(inner), rows.level, rows.mse, rows.mse_low, rows.mse_high)
              for inner, rows in table.sort_values("level").groupby("inner")]  # fmt: skip
    return _log(lines(curves, x_title=LEVELS, y_title="squared error per entry"))


@exp010_annealing.figure("Steps that were kept")
def accepted(table: pd.DataFrame, view: View) -> Any:
    """Share of gradient steps that did not raise the energy."""
    curves = [Line(_count(inner), rows.level, rows.accepted)
              for inner, rows in table[table.inner > 0].sort_values("level").groupby("inner")]  # fmt: skip
    return lines(curves, x_title=LEVELS, y_title="share of steps kept")


@exp010_annealing.figure("Does the answer depend on the start?")
def starts(table: pd.DataFrame, view: View) -> Any:
    """Spread over starts beside the error: where it is far below, all starts end at one answer."""
    mine = _mine(table, view)
    return _log(lines([Line("error (root mean square)", mine.level, mine.rms),
                       Line("spread over starts", mine.level, mine.spread)],
                      x_title=LEVELS, y_title="per entry"))  # fmt: skip


@exp010_annealing.figure("Coarse to fine: how much of the truth's singular directions stands in the answer")
def emergence(table: pd.DataFrame, view: View) -> Any:
    """1 is all of it. Grey: what a linear map holds without any level."""
    mine = _mine(table, view)
    at = mine.level.to_numpy()
    curves = [Line("largest", at, mine.coarse), Line("smallest", at, mine.fine),
              Line("linear map, largest", at, mine.linear_coarse, colour=NULL_GREY),
              Line("linear map, smallest", at, mine.linear_fine, colour=NULL_GREY)]  # fmt: skip
    figure = lines(curves, x_title=LEVELS, y_title="share of the singular direction")
    return figure.update_yaxes(range=[-0.6, 1.6])  # the first guess is noise: it may be far outside
