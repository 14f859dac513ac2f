"""EXP-007: are an energy's answers of low rank, and is it a bias of its own?

Effective rank exp(H), H the entropy of the singular values as shares, of the answer as it stands after every level (0
the sharpest), mean over problems with its 95 % bootstrap interval. Through training: the page computes the same at each
checkpoint of a run. Beside it the simplest model with an implicit bias: products of 1, 2 or 3 matrices of the same size
fitted by gradient descent to the shown half of `targets` matrices, from a start of `init_scale`; a small start finds
the lowest rank that fits (depth 2 and 3), depth 1 leaves what is not shown. Two diagonals are always among the shown:
without them no method could tell a matrix of rank 1. At the sizes of the CPU presets few entries are shown for each
free number of a matrix of low rank: below 2 no depth is reliable, and the page says that it is too small to tell.

Answers smaller than a tenth of the solutions are about 0: their rank is that of a residue, and says nothing.
Targets: for completion the problems themselves with their own masks, for rank1 their solutions, else random matrices
of rank `rank`. Null of the answers' rank: the solutions' own, and white noise of this size, from which inference
starts. Trivial baseline: the best linear map of x. Ground truth: factorisation recovers a matrix of low rank (tests).
Where several solutions fit (completion, rank1) inference without noise returns their average E[y | x]: a matrix of full
rank, whatever the rank of each; it is no answer of low rank, and no bias towards one.
Exact but for the intervals. Cost: inference once, 3 x `steps` steps of small products.
Source: Arora et al. (2019), Implicit regularization in deep matrix factorization; Roy and Vetterli (2007), The
effective rank; Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion.
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
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines, marked
from backend.maths.patching import standard_error

DEPTHS = (1, 2, 3)
COMPLETED = tuple(f"depth {d}" for d in DEPTHS)
INNER, LR = 5, 0.1
SHOWN = 0.5  # of the entries of a target
STEP_SECONDS = 9e-4  # of a fit, on a CPU core, whatever the size up to 20 x 20
FIT = ("fit_step", "fit_rank", "fit_low", "fit_high")
AMBIGUOUS = ("completion", "rank1")
SCALES: Any = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0]  # offered for the start
RECORDS = 30  # points of a fit that are kept
#: shown entries for each free number of a target below which depth 3 misses some of 32 (measured, start 1e-3: 4 x 4 and
#: 5 x 5 of rank 1, 1.1 and 1.4: finds 75 % and 88 %; 8 x 8 of rank 1, 2.1: all; of rank 2, 1.2: 12 %)
ENOUGH = 2.0
SMALL = "; too small to tell: {:.1f} entries shown for each free number of a target, and below 2 no depth is reliable"
#: relative difference of effective ranks that counts as none
SAME = 0.05
FITS = 0.1  # relative error below which an answer fits
NOTHING = 0.1  # answers smaller than this share of the solutions are about 0


class ImplicitBiasParams(Params):
    """The factorisations."""

    init_scale: float = Field(1e-3, ge=1e-6, le=3.0, json_schema_extra={"slider": SCALES},
                              description="size of the factors' start; small: low rank")  # fmt: skip
    rank: int = Field(1, ge=1, le=64, description="rank of the targets where the task has none; under its side")
    targets: int = Field(4, ge=1, le=32, description="matrices that are completed")
    steps: int = Field(1500, ge=10, le=20_000, description="steps of each fit")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of targets, masks, starts and the bootstrap")


@analysis(
    version=4, group="Energy landscapes",
    title="EXP-007 Implicit bias", asks="Are an energy's answers of low rank, and is it a bias of its own?",
    subject=Problems, params=ImplicitBiasParams,
    axes=[_energy.LEVEL,
          Axis("who", "model; truth, noise, linear: the same at every level; target and depth 1 to 3: factorisations, "
               "the same at every level", kind="str")],
    values=[
        Value("effective_rank", "exp(entropy of the singular values), mean over matrices", "dimensions"),
        Value("rank_low", "lower end of its 95 % interval over matrices", "dimensions"),
        Value("rank_high", "upper end of its 95 % interval", "dimensions"),
        Value("error", "|X - Y| / |Y| over all entries, mean over matrices"),
        Value("error_se", "its standard error over matrices"),
        Value("hidden_error", "the same over the entries that are not shown; absent where all are"),
        Value("hidden_error_se", "its standard error over matrices"),
        Value("matrices", "matrices of the mean", kind="int"),
        Value("targets_error", "hidden_error over the matrices that are factorised as well; of completion"),
        Value("behind", "of linear and depth 1 to 3, of completion: its hidden error less the model's, mean over the "
              "matrices that are factorised"),
        Value("behind_se", "its standard error over matrices"),
        Value("size", "|X| over |Y|, root mean squares over all entries and matrices"),
        Value("singular", "singular values over the largest, mean over matrices", kind="array", dtype="float32"),
        Value("fit_step", "steps of a factorisation at which it is looked at; absent of the others", kind="array",
              dtype="float32"),
        Value("fit_rank", "effective rank of its product there, mean over targets", kind="array", dtype="float32"),
        Value("fit_low", "lower end of its 95 % interval over targets", kind="array", dtype="float32"),
        Value("fit_high", "upper end of its 95 % interval", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def exp007_implicit_bias(
    model: Energies, problems: Matrices, params: ImplicitBiasParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (level, who)."""
    from backend.maths import annealed_inference

    if params.rank >= problems.side and problems.task not in AMBIGUOUS:
        found = f"matrices of {problems.side} x {problems.side}"
        raise BadInput(f"Targets of rank {params.rank}", found, f"Use a rank below {problems.side}")
    fixed = _baselines(problems, params) | _factorised(problems, params, progress)
    answers = annealed_inference.infer(model.net, problems.x, problems.noise, model.schedule, INNER).solutions
    rows = []
    none = dict.fromkeys(FIT, np.full_like(fixed["depth 1"]["fit_step"], np.nan))
    for k, answer in enumerate(answers):
        mine = _answered(answer, problems, params)
        rows += [{"level": k, "who": who, **told, **_behind(who, told, mine), **({} if FIT[0] in told else none)}
                 for who, told in ({"model": mine} | fixed).items()]  # fmt: skip
    progress(1.0, "answers")
    declared: Any = exp007_implicit_bias
    return pd.DataFrame(rows)[[c.name for c in (*declared.axes, *declared.values)]]


@exp007_implicit_bias.costs
def work(card: ModelCard, subject: Problems, params: ImplicitBiasParams) -> Work:
    """Inference once, the linear fit, and the factorisations, which no model is asked for."""
    told = card.energy
    rows = subject.n * int(told["levels"]) * (1 + INNER)
    held = _energy.FIT_PROBLEMS * (int(told["d_x"]) + int(told["d_y"]))
    return _energy.work(card, energies=rows, gradients=rows, held_numbers=held, at_once=subject.n,
                        solver_seconds=STEP_SECONDS * sum(DEPTHS) / 2 * params.steps,
                        operations=4.0 * _energy.FIT_PROBLEMS * (int(told["d_x"]) + 1) ** 2)  # fmt: skip


def _behind(who: str, told: dict[str, Any], model: dict[str, Any]) -> dict[str, float]:
    """Return how far behind the model's its errors on the factorised matrices are; NaN where nothing is hidden."""
    more = told["each"] - model["each"] if who == "linear" or who in COMPLETED else np.array([np.nan])
    more = more[np.isfinite(more)]
    return {"behind": float(more.mean()) if len(more) else np.nan, "behind_se": float(standard_error(more))}


def _hidden(problems: Matrices) -> Any:
    """Return which entries of the solution x does not show [n, d], None where x shows none of them as they are."""
    return problems.x == 0 if problems.task == "completion" else None


def _told(found: Any, truth: Any, hidden: Any, side: int, seed: int) -> dict[str, Any]:
    """Return what the table says of matrices [n, d] that should be `truth`."""
    import torch

    from backend.maths import random_matrix

    values = torch.linalg.svdvals(found.double().reshape(-1, side, side)).cpu().numpy()
    ranks = np.array([random_matrix.effective_rank(v) for v in values])
    ranks = ranks[np.isfinite(ranks)]
    low, high = bootstrap(ranks, seed) if len(ranks) else (float("nan"), float("nan"))
    error, among = relative(found, truth), np.full(1, np.nan) if hidden is None else relative(found, truth, hidden)
    among = among[np.isfinite(among)]
    return {
        "effective_rank": float(ranks.mean()) if len(ranks) else float("nan"), "rank_low": low, "rank_high": high,
        "error": float(error.mean()), "error_se": float(standard_error(error)),
        "hidden_error": float(among.mean()) if len(among) else float("nan"),
        "hidden_error_se": float(standard_error(among)),
        "matrices": len(ranks), "targets_error": float("nan"),
        "size": float(found.double().norm() / truth.double().norm()),
        "singular": (values / np.maximum(values[:, :1], 1e-300)).mean(0).astype(np.float32),
    }  # fmt: skip


def relative(found: Any, truth: Any, among: Any = None) -> np.ndarray:
    """Return |X - Y| / |Y| of each matrix [n, d], over the entries `among` [n, d] or all; NaN where these are all 0."""
    off, whole = (found - truth).double(), truth.double()
    kept = 1.0 if among is None else among.to(off)
    return ((off * kept).norm(dim=1) / (whole * kept).norm(dim=1)).cpu().numpy()


def _baselines(problems: Matrices, params: ImplicitBiasParams) -> dict[str, dict[str, Any]]:
    from backend.maths import trivial_answers

    fit = problems.more(_energy.FIT_PROBLEMS, 0)
    linear = trivial_answers.answers(fit.x, fit.y, problems.x)["linear"]
    some = {"truth": problems.y, "noise": problems.noise, "linear": linear}
    return {who: _answered(one, problems, params) for who, one in some.items()}


def _answered(found: Any, problems: Matrices, params: ImplicitBiasParams) -> dict[str, Any]:
    """Return what the table says of an answer [n, d] to every problem, and of those that are factorised."""
    hidden, n = _hidden(problems), _count(problems, params)
    told = _told(found, problems.y, hidden, problems.side, params.seed)
    if hidden is None:
        return told | {"each": np.full(n, np.nan)}
    each = relative(found[:n], problems.y[:n], hidden[:n])
    return told | {"targets_error": float(np.nanmean(each)), "each": each}


def _count(problems: Matrices, params: ImplicitBiasParams) -> int:
    """Return how many matrices are factorised."""
    return min(params.targets, len(problems.y)) if problems.task in AMBIGUOUS else params.targets


def _factorised(problems: Matrices, params: ImplicitBiasParams, progress: Progress) -> dict[str, dict[str, Any]]:
    """Complete the targets at every depth."""
    from backend.maths import factorisation

    target, shown = _targets(problems, params)
    side, hidden, flat = problems.side, ~shown.flatten(1), target.flatten(1)

    def told(product: Any) -> dict[str, Any]:
        return _told(product, flat, hidden, side, params.seed) | {"each": relative(product, flat, hidden)}

    found = {"target": told(flat)}
    for depth in DEPTHS:

        def said(step: int, depth: int = depth) -> None:
            if step % 50 == 0:
                progress(0.9 * (depth - 1 + step / params.steps) / len(DEPTHS), f"depth {depth}, step {step}")

        fit = factorisation.complete(
            target, shown, depth, params.init_scale, params.steps, LR, params.seed, -(-params.steps // RECORDS), said
        )
        found[f"depth {depth}"] = told(fit.product.flatten(1)) | _course(fit, params)
    return found


def _course(fit: Any, params: ImplicitBiasParams) -> dict[str, np.ndarray]:
    """Return how the effective rank of a fit's products goes, as the columns FIT."""
    from backend.maths import random_matrix

    ranks = np.array([[random_matrix.effective_rank(s) for s in one] for one in fit.singular.cpu().numpy()])
    ends = np.array([bootstrap(one, params.seed) for one in ranks])
    columns = (fit.steps, ranks.mean(1), ends[:, 0], ends[:, 1])
    return {name: np.asarray(c, np.float32) for name, c in zip(FIT, columns, strict=True)}


def _targets(problems: Matrices, params: ImplicitBiasParams) -> tuple[Any, Any]:
    """Return (matrices [t, n, n] in float64, which of their entries are shown)."""
    import torch

    n, dice = problems.side, torch.Generator().manual_seed(params.seed + 1)
    count = _count(problems, params)
    u, v = (torch.randn(count, n, params.rank, generator=dice, dtype=torch.float64) for _ in range(2))
    drawn = u @ v.mT / params.rank**0.5
    least = torch.eye(n, dtype=torch.bool) | torch.eye(n, dtype=torch.bool).roll(1, 1)  # these tell all of rank 1
    rest = max(0.0, (SHOWN * n * n - 2 * n) / max(n * n - 2 * n, 1))
    shown = (torch.rand(count, n, n, generator=dice) < rest) | least
    if problems.task in AMBIGUOUS:
        drawn = problems.y[:count].double().cpu().reshape(-1, n, n)
    if problems.task == "completion":
        shown = (problems.x[:count] != 0).cpu().reshape(-1, n, n)
    return drawn, shown


# ---------------------------------------------------------------- what it says of what was expected


@exp007_implicit_bias.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Is the answers' rank lower than the solutions', and does depth find what is hidden?"""
    last = table[table.level == 0].set_index("who")
    first = table[(table.level == table.level.max()) & (table.who == "model")].iloc[0]
    return [_falls(last, first), *_average(last, view), _depth(last, _shown_each(view)), *_completes(last)]


def _words(row: Any) -> str:
    interval = f" [{row.rank_low:.2f}, {row.rank_high:.2f}]" if np.isfinite(row.rank_low) else ""
    return f"{row.effective_rank:.2f}{interval}"


def _falls(last: pd.DataFrame, first: Any) -> Claim:
    """It must fall, and below that of the solutions, beyond the intervals of both."""
    model, truth, noise = (_row(last, who) for who in ("model", "truth", "noise"))
    return Claim("annealing is biased towards low rank: the effective rank of the answer falls",
                 f"white noise, the start, has {_words(noise)}; the solutions themselves {_words(truth)}",
                 f"from {_words(first)} at the smoothest level to {_words(model)} at level 0" + _residue(model),
                 "cannot be tested here" if _residue(model) else _fallen(first, model, truth))  # fmt: skip


def _fallen(first: Any, model: Any, truth: Any) -> Any:
    """Return the verdict of answers that are not about 0."""
    if not np.isfinite([model.rank_low, model.rank_high, first.rank_low, first.rank_high, truth.rank_high]).all():
        return "cannot be tested here"  # one matrix
    least, most = truth.rank_low * (1 - SAME), truth.rank_high * (1 + SAME)
    if first.rank_high <= model.rank_low or model.rank_low > most:
        return "fails"
    if model.rank_high >= first.rank_low:
        return "cannot be tested here"
    lower, alike = model.rank_high < least, model.rank_low > least  # as low as the solutions
    return "holds" if lower else "met by its null" if alike else "cannot be tested here"


def _residue(model: Any) -> str:
    """Return that the answers are about 0 where they are: their rank is then that of what is left."""
    if not model["size"] < NOTHING:
        return ""
    return f"; the answers are about 0 ({model['size']:.1%} of the solutions' size): that is the rank of a residue"


def _row(last: pd.DataFrame, who: str) -> Any:
    return last.loc[who]


def _average(last: pd.DataFrame, view: View) -> list[Claim]:
    task = (view.card.get("energy") or {}).get("task") if view else None
    if task not in AMBIGUOUS:
        return []
    from backend.maths import ranks

    model, truth = _row(last, "model"), _row(last, "truth")
    half = ranks.half_widths(int(model.matrices)) * model.error_se
    most = truth.rank_high * (1 + SAME)
    fits, low = model.error + half < FITS, model.rank_high <= most
    neither = model.error - half >= FITS or model.rank_low > most
    return [Claim(f"the answer is a matrix of low rank that fits (within {FITS:.0%})",
                  "inference without noise returns the average of all that fit, a matrix of full rank",
                  f"effective rank {_words(model)}, of the solutions {_words(truth)}; off by {model.error:.0%} +- "
                  f"{half:.1%}" + _residue(model),
                  "fails" if neither else "holds" if fits and low else "cannot be tested here")]  # fmt: skip


def _shown_each(view: View) -> float:
    """Return how many entries are shown for each free number r (2 n - r) of the targets; inf where that is unknown."""
    told = (view.card.get("energy") or {}) if view else {}
    if not told:
        return float("inf")
    rank = {"completion": told["rank"], "rank1": 1}.get(told["task"], view.params.get("rank", 1))
    shown = max(SHOWN * told["side"] ** 2, 2 * told["side"])  # two diagonals are always shown, see `_targets`
    return float(shown / (rank * (2 * told["side"] - rank)))


def _depth(last: pd.DataFrame, each: float = float("inf")) -> Claim:
    rows = {who: _row(last, who) for who in ("target", *(f"depth {d}" for d in DEPTHS))}
    words = "; ".join(f"{w} rank {r.effective_rank:.2f}, hidden entries off by {r.hidden_error:.1%}"
                      for w, r in rows.items() if w != "target")  # fmt: skip
    flat, deep = ([_found(rows[who], rows["target"].effective_rank, side) for side in (-1, 1)]
                  for who in ("depth 1", "depth 3"))  # fmt: skip
    found: Any = ("fails" if not deep[0] else "cannot be tested here" if not deep[1] else
                  "met by its null" if flat[0] else "holds")  # fmt: skip
    return Claim("a product of matrices finds low rank by itself (depth 3: hidden entries within 10 %)",
                 "depth 1 has no such bias: it leaves hidden entries at its start",
                 f"target rank {rows['target'].effective_rank:.2f}; {words}" + SMALL.format(each) * (each < ENOUGH),
                 "cannot be tested here" if each < ENOUGH or rows["target"].matrices < 2 else found)  # fmt: skip


def _found(row: Any, target: float, side: int) -> bool:
    """Say whether a factorisation found the target: at the near (-1) or at the far (1) ends of its intervals."""
    from backend.maths import ranks

    error = row.hidden_error + side * ranks.half_widths(int(row.matrices)) * row.hidden_error_se
    return bool((row.rank_low if side < 0 else row.rank_high) < 1.1 * target and error < FITS)


def _completes(last: pd.DataFrame) -> list[Claim]:
    """On the same matrices: those that are factorised."""
    from backend.maths import ranks

    model, beside = _row(last, "model"), {who: _row(last, who) for who in ("linear", *COMPLETED)}
    if np.isnan(model.targets_error):
        return []
    best, n = min(COMPLETED, key=lambda who: beside[who].hidden_error), int(_row(last, "target").matrices)
    half = {who: ranks.half_widths(n, len(DEPTHS)) * row.behind_se for who, row in beside.items()}
    less, more = (beside[best].behind + side * half[best] for side in (-1, 1))
    return [Claim("the energy completes matrices better than a factorisation of each by itself",
                  f"{best} is off by {beside[best].hidden_error:.1%} on hidden entries, the linear map by "
                  f"{beside['linear'].targets_error:.1%}",
                  f"off by {model.targets_error:.1%} on the same {n}: {best} is behind by {beside[best].behind:.1%} "
                  f"[{less:.1%}, {more:.1%}], the best of {len(DEPTHS)} depths",
                  "fails" if more <= 0 else "cannot be tested here" if not less > 0 else
                  "holds" if beside["linear"].behind > half["linear"] else "met by its null")]  # fmt: skip


# ---------------------------------------------------------------- figures

FLAT = {"truth": NULL_GREY, "noise": NULL_GREY, "linear": CATEGORIES[1], "depth 1": CATEGORIES[2],
        "depth 2": CATEGORIES[3], "depth 3": CATEGORIES[5]}  # fmt: skip


@exp007_implicit_bias.figure("Effective rank of the answer after each level", marks=["level"])
def over_levels(table: pd.DataFrame, view: View) -> Any:
    """The model with its interval; grey: the solutions' own rank, and that of white noise of this size."""
    curves = []
    for who, colour in {"model": "", "linear": CATEGORIES[1], "truth": NULL_GREY, "noise": NULL_GREY}.items():
        rows = table[(table.who == who) & table.effective_rank.notna()].sort_values("level")
        if len(rows):
            words = {"truth": "solutions", "noise": "white noise", "linear": "linear map"}.get(who, who)
            curves.append(Line(words, rows.level, rows.effective_rank, rows.rank_low, rows.rank_high, colour))
    figure = lines(curves, x_title="annealing level (0 sharpest, reached last)", y_title="effective rank (dimensions)")
    return marked(figure, view.chosen)


@exp007_implicit_bias.figure("Factorisations of the same size: the rank that each depth finds", whole=True)
def depths(table: pd.DataFrame, view: View) -> Any:
    """Effective rank over the steps of the fit, with its interval over targets; grey: the targets' own."""
    rows = table[table.level == table.level.min()].set_index("who")
    curves = []
    for depth in DEPTHS if "fit_rank" in rows else ():
        one: Any = rows.loc[f"depth {depth}"]
        curves.append(Line(f"depth {depth}", one.fit_step, one.fit_rank, one.fit_low, one.fit_high))
    if curves:
        at, own = np.asarray(curves[0].x, float)[[0, -1]], float(rows.effective_rank["target"])
        curves.append(Line("targets' own", at, np.full(2, own), colour=NULL_GREY, dash="dash"))
    return lines(curves, x_title=f"step of the fit, from factors of size {view.params.get('init_scale', 1e-3):g}",
                 y_title="effective rank (dimensions)")  # fmt: skip


@exp007_implicit_bias.figure("Singular values of one level", choose=["level"])
def singular(table: pd.DataFrame, view: View) -> Any:
    """Over the largest, mean over matrices."""
    rows = table[table.level == int(view.chosen.get("level", table.level.min()))]
    curves = []
    for _, row in rows[rows.who.isin(["model", "truth", "noise", "linear"])].iterrows():
        values = np.asarray(row.singular, float)
        words = {"truth": "solutions", "noise": "white noise", "linear": "linear map"}.get(row.who, row.who)
        curves.append(Line(words, np.arange(1, len(values) + 1), values, colour=FLAT.get(row.who, "")))
    figure = lines(curves, x_title="rank, largest first", y_title="singular value / largest")
    return figure.update_xaxes(dtick=max(1, len(curves[0].x) // 10) if curves else 1)


@exp007_implicit_bias.figure("Hidden entries: how far off")
def hidden(table: pd.DataFrame, view: View) -> Any:
    """Relative error on the entries that were not shown; 1 is leaving them at 0."""
    rows = table[(table.level == table.level.min()) & table.hidden_error.notna() & (table.who != "target")]
    rows = rows[~rows.who.isin(["truth", "noise"])]
    return bars(list(rows.who), rows.hidden_error, x_title="factorisation (or answer, where x hides entries)",
                y_title="relative error, hidden entries")  # fmt: skip
