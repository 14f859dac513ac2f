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

from backend.analyses import _annealed, _energy
from backend.analyses import _annealing_claims as _claims
from backend.analyses._annealing_claims import INNER
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
from backend.figures import CATEGORIES, NULL_GREY, Line, Panel, bars, lines, logarithmic, marked, panels


class AnnealingParams(Params):
    """Steps and starts."""

    inner: int = Field(5, ge=0, le=50, description="gradient steps after each jump of the answers that are looked at")
    starts: int = Field(8, ge=2, le=64, description="noises that each problem is answered from")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the other starts, of the shuffle and the bootstrap")


@analysis(
    version=2, group="Energy landscapes",
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
        Value("coarse_low", "lower end of its 95 % interval"),
        Value("coarse_high", "upper end of its 95 % interval"),
        Value("fine", "share of its smallest one that is not 0"),
        Value("fine_low", "lower end of its 95 % interval"),
        Value("fine_high", "upper end of its 95 % interval"),
        Value("ahead", "levels by which the largest settles (within a tenth of its last share) before the smallest"),
        Value("ahead_low", "lower end of its 95 % interval"),
        Value("ahead_high", "upper end of its 95 % interval"),
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
        Value("problem", "x of the first three problems, by rows", kind="array", dtype="float32"),
        Value("answer", "their answers", kind="array", dtype="float32"),
        Value("solution", "their solutions", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def exp010_annealing(model: Energies, problems: Matrices, params: AnnealingParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (level, inner steps)."""
    fixed = _annealed.trivial(model, problems)
    progress(0.05, "trivial answers")
    counts = sorted({*INNER, params.inner})
    extra = _annealed.chosen(model, problems, params.starts, params.inner, params.seed)
    progress(0.4, f"{params.starts} starts")
    rows, plain = [], None
    for i, inner in enumerate(counts):
        found = _annealed.infer(model, problems.x, problems.noise, inner)
        errors = (found.solutions - problems.y).double().square().mean(-1).cpu().numpy()  # [level, problem]
        plain = errors if plain is None else plain
        some = _annealed.level_rows(found, errors, plain, problems, params.seed)
        rows += [{"level": k, "inner": inner, **row, **(extra[k] if inner == params.inner else {}), **fixed[k]}
                 for k, row in enumerate(some)]  # fmt: skip
        progress(0.4 + 0.6 * (i + 1) / len(counts), f"{inner} steps after each jump")
    declared: Any = exp010_annealing
    return pd.DataFrame(rows).reindex(columns=[c.name for c in (*declared.axes, *declared.values)])


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


# ---------------------------------------------------------------- what it says of what was expected


@exp010_annealing.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Is it better than trivial, do the steps matter, does it go from coarse to fine, one answer per problem?"""
    inner = int((view.params if view else {}).get("inner", 5))
    mine = table[table.inner == inner].set_index("level").sort_index()
    return [_claims.better(mine), _claims.steps(table), _claims.emergence(mine), _claims.one_answer(mine),
            *_claims.uses_x(mine), *_claims.mean(mine)]  # fmt: skip


# ---------------------------------------------------------------- figures

LEVELS = "annealing level (0 sharpest, reached last)"
WORDS = {"zero": "0", "mean": "mean solution", "linear": "linear map", "copy": "x itself", "clamp": "cut to +-2",
         "bayes": "E[y | x]"}  # fmt: skip
EXACT = 1e-12  # an error below it is rounding, and no place on a logarithmic axis


def _mine(table: pd.DataFrame, view: View) -> pd.DataFrame:
    inner = int(view.params.get("inner", 5))
    return table[table.inner == inner].sort_values("level")


def _at(table: pd.DataFrame, view: View) -> pd.DataFrame:
    mine = _mine(table, view)
    return mine[mine.level == int(view.chosen.get("level", 0))]


def _count(inner: Any) -> str:
    return f"{inner} step" + "s" * (inner != 1)


@exp010_annealing.figure("Error of the answer after each level, beside answers that need none", marks=["level"])
def error(table: pd.DataFrame, view: View) -> Any:
    """The model with its interval; flat lines are trivial answers."""
    mine = _mine(table, view)
    at = mine.level.to_numpy()
    curves = [Line("energy model", at, mine.mse, mine.mse_low, mine.mse_high), Line("one jump", at, mine.one_jump)]
    if mine.shuffled.notna().all():
        curves.append(Line("x of other problems", at, mine.shuffled))
    for name, said in WORDS.items():
        if mine[name].notna().all() and (mine[name] > EXACT).all():
            curves.append(Line(said, at, mine[name], colour="" if name == "linear" else NULL_GREY))
    figure = lines(curves, x_title=LEVELS, y_title="squared error per entry", height=400)
    return marked(logarithmic(figure), view.chosen)


@exp010_annealing.figure("Error at this level beside each trivial answer", choose=["level"])
def beside(table: pd.DataFrame, view: View) -> Any:
    """With its interval; above the bars what was kept of the steps, and how far other starts end from this answer."""
    row = _at(table, view).iloc[0]
    known = {"energy model": row.mse, "one jump": row.one_jump, "x of other problems": row.shuffled}
    known |= {said: row[name] for name, said in WORDS.items()}
    drawn = {words: v for words, v in known.items() if np.isfinite(v) and v > EXACT}
    colours = [CATEGORIES[0] if n == "energy model" else CATEGORIES[1] if n in known and i < 3 else NULL_GREY
               for i, n in enumerate(drawn)]  # fmt: skip
    high, low = (np.array([v] + [0.0] * (len(drawn) - 1)) for v in (row.mse_high - row.mse, row.mse - row.mse_low))
    hover = [f"{words}: {v:.3g}" + ("" if words == "energy model" else f", {v / row.mse:.3g} of the model's")
             for words, v in drawn.items()]  # fmt: skip
    figure = bars(list(drawn), list(drawn.values()), errors=high, errors_below=low, colours=colours, hover=hover,
                  x_title="answer", y_title="squared error per entry")  # fmt: skip
    figure.add_annotation(text=_told(row), x=0, xref="paper", y=1.02, yref="paper", yanchor="bottom", showarrow=False,
                          align="left", xanchor="left", font={"size": 12})  # fmt: skip
    return logarithmic(figure).update_layout(margin={"t": 56})


def _told(row: Any) -> str:
    kept = "no steps" if np.isnan(row.accepted) else f"{row.accepted:.0%} of the steps kept"
    return f"{kept}<br>other starts end {row.spread:.2g} apart, {row.spread / row.rms:.1%} of the error {row.rms:.2g}"


@exp010_annealing.figure("The first problems: x, the answer at this level, the solution", choose=["level"])
def matrices(table: pd.DataFrame, view: View) -> Any:
    """A row per problem; y, y* and their difference are on the scale of y*, x on one of its own."""
    side, found = int(view.card["energy"]["side"]), _looked(table, view)
    maps: dict[str, Panel] = {}
    for i, (x, y, truth) in enumerate(found):
        most = float(np.abs(truth).max())
        given = x.reshape(-1, side, side) if len(x) else ()
        widest = float(np.abs(x).max()) if len(x) else 0.0
        for n, one in enumerate(given, start=1):
            maps[f"{i}: x {n}" if len(given) > 1 else f"{i}: x"] = Panel(one, (-widest, widest), diverging=True,
                                                                         bar=n == len(given))  # fmt: skip
        for words, flat in ((f"{i}: y", y), (f"{i}: y*", truth), (f"{i}: y - y*", y - truth)):
            maps[words] = Panel(flat.reshape(side, side), (-most, most), diverging=True, bar=words.endswith("- y*"))
    columns = max(1, len(maps) // max(1, len(found)))
    if not maps:
        return lines([], x_title="column", y_title="row")
    return panels(maps, x_title="column", y_title="row", columns=columns, square=True)


@exp010_annealing.figure("Their singular values", choose=["level"])
def singular(table: pd.DataFrame, view: View) -> Any:
    """Of the answers at this level beside those of the solutions (dashed)."""
    side, curves = int(view.card["energy"]["side"]), []
    for i, (_, y, truth) in enumerate(_looked(table, view)):
        for words, flat, dash in ((f"{i}: y", y, ""), (f"{i}: y*", truth, "dash")):
            s = np.linalg.svd(flat.reshape(side, side), compute_uv=False)
            curves.append(Line(words, np.arange(1, side + 1), s, colour=CATEGORIES[i], dash=dash))
    return lines(curves, x_title="index, largest first", y_title="singular value").update_xaxes(
        dtick=max(1, side // 10))  # fmt: skip


def _looked(table: pd.DataFrame, view: View) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (x, y, y*) of each problem that was kept, by rows; [] of a table without arrays."""
    rows = _at(table, view)
    if "answer" not in rows or not len(rows):
        return []
    told, d = view.card["energy"], int(view.card["energy"]["d_y"])
    x, y, truth = (np.asarray(rows[name].iloc[0], float) for name in ("problem", "answer", "solution"))
    n = len(y) // d
    given = x.reshape(n, -1) if int(told["d_x"]) else np.empty((n, 0))
    return list(zip(given, y.reshape(n, d), truth.reshape(n, d), strict=True))


@exp010_annealing.figure("Error by the number of gradient steps after each jump", marks=["level"])
def steps(table: pd.DataFrame, view: View) -> Any:
    """What minimising the energy adds to the jumps; bands: 95 % over problems."""
    curves = [Line(_count(inner), rows.level, rows.mse, rows.mse_low, rows.mse_high)
              for inner, rows in table.sort_values("level").groupby("inner")]  # fmt: skip
    return marked(logarithmic(lines(curves, x_title=LEVELS, y_title="squared error per entry")), view.chosen)


@exp010_annealing.figure("Steps that were kept", marks=["level"])
def accepted(table: pd.DataFrame, view: View) -> Any:
    """Share of gradient steps that did not raise the energy."""
    curves = [Line(_count(inner), rows.level, rows.accepted)
              for inner, rows in table[table.inner > 0].sort_values("level").groupby("inner")]  # fmt: skip
    return marked(lines(curves, x_title=LEVELS, y_title="share of steps kept"), view.chosen)


@exp010_annealing.figure("Does the answer depend on the start?", marks=["level"])
def starts(table: pd.DataFrame, view: View) -> Any:
    """Spread over starts beside the error: where it is far below, all starts end at one answer."""
    mine = _mine(table, view)
    return marked(logarithmic(lines([Line("error (root mean square)", mine.level, mine.rms),
                              Line("spread over starts", mine.level, mine.spread)],
                             x_title=LEVELS, y_title="per entry")), view.chosen)  # fmt: skip


@exp010_annealing.figure("Coarse to fine: how much of the truth's singular directions stands in the answer",
                         marks=["level"])  # fmt: skip
def emergence(table: pd.DataFrame, view: View) -> Any:
    """1 is all of it; with intervals over problems. Grey: what a linear map holds without any level."""
    mine = _mine(table, view)
    at = mine.level.to_numpy()
    curves = [Line("largest", at, mine.coarse, mine.coarse_low, mine.coarse_high),
              Line("smallest", at, mine.fine, mine.fine_low, mine.fine_high),
              Line("linear map, largest", at, mine.linear_coarse, colour=NULL_GREY),
              Line("linear map, smallest", at, mine.linear_fine, colour=NULL_GREY)]  # fmt: skip
    figure = marked(lines(curves, x_title=LEVELS, y_title="share of the singular direction"), view.chosen)
    return figure.update_yaxes(range=[-0.6, 1.6])  # the first guess is noise: it may be far outside
