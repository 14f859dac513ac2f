"""EXP-009: has the energy learnt the task's own map, and which units carry it?

At a solution the gradient by y is 0, so y moves with x by the implicit function dy*/dx = -H_yy^-1 H_yx (exact Hessians
of [x, y] at sqrt(abar_k) E[y | x]). It should be sqrt(abar_k) times
- addition: [1, 1]; gauss: diag of v / (v + noise^2);
- inverse: -(A^-1 kron A^-T), of which symmetric changes of x alone are asked (the others never occur);
completion has no such form, rank1 no x. `error` is |map - known| / |known| (Frobenius), per problem. Null: the known
map of the next problem; where all problems share one, its rows turned by one. Trivial baseline: the best linear map of
x (fitted on 20,000 others), which is one map for all.

Units: each hidden unit of each layer is set to 0 by itself; `d_energy` and `d_mse` are what the energy and the squared
error of the guess then gain, mean over `ablated` problems at their noised solutions, with standard errors. Null: as
many equal units (effective number of units (sum |d|)^2 / sum d^2, of as many at most; 2/pi of them for Gaussian
effects). `share` says which layer's bend makes the Hessian: its trace over that of the whole ("output" is the
Gauss-Newton part); shares are signed and add to 1. First layer, addition only: cosine of the weights of a_i and b_i,
null: other pairs. FiLM, per layer: what energy and error gain where the level's (gain, bias) is set to its mean over
the levels, or to the identity; control: moved as far in a random direction, another for each problem.
Exact but for the errors over problems; intervals are Student's t, the best level's corrected for the looks at all.
Cost: a Hessian of [x, y] per problem and level, and per level a gradient for
every unit and ablated problem.
Source: Krantz and Parks (2002), The Implicit Function Theorem; Morcos et al. (2018), On the importance of single
directions; backend/models/energy_net.py for the Hessian by layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy, _energy_maps, _film
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
from backend.figures import NULL_GREY, Line, Panel, bars, lines, logarithmic, marked, panels

HIDDEN = ("h1", "h2", "h3")
PARTS = ("problem", "row", *HIDDEN, "share", "film", "units")
BENDS = ("output", "fc1", "fc2", "fc3")
CLOSE = 0.05  # the reference's tolerance of the map
FEW, DRAWS = 0.1, 400  # share of the units that are few; draws of the bootstrap over problems


class CircuitParams(Params):
    """How many problems units are ablated on."""

    ablated: int = Field(12, ge=2, le=256, description="problems that units are ablated on; those asked at most")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of FiLM's random directions and of the bootstrap")


@analysis(
    version=4, group="Energy landscapes",
    title="EXP-009 Circuit", asks="Has the energy learnt the task's own map, and which units carry it?",
    subject=Problems, params=CircuitParams,
    axes=[_energy.LEVEL,
          Axis("part", "0: problems; 1: rows of the first one's map; 2 to 4: units of h1 to h3; 5: layers; "
               "6: the level's FiLM; 7: all units together"),
          Axis("index", "problem, entry of y, unit, layer (output, fc1, fc2, fc3), or of FiLM fc2 and fc3: at its "
               "mean over levels, the identity")],
    values=[
        Value("what", "the part in words: problem, row, h1, h2, h3, share, film, units", kind="str"),
        Value("error", "of a problem: |map - known| / |known|; absent without a known map"),
        Value("null_error", "the same against the known map of another problem, or with its rows turned"),
        Value("linear_error", "the same of the best linear map of x"),
        Value("lambda_min", "of a problem: smallest eigenvalue of d2E/dy2; the map needs it positive"),
        Value("d_energy", "of a unit or of FiLM: rise of the energy without it"),
        Value("d_energy_se", "its standard error over problems"),
        Value("d_mse", "of a unit or of FiLM: rise of the guess's squared error per entry without it"),
        Value("d_mse_se", "its standard error over problems"),
        Value("d_energy_null", "of FiLM: rise of the energy where it is moved as far in a random direction"),
        Value("d_energy_null_se", "its standard error over problems"),
        Value("d_mse_null", "of FiLM: the same of the squared error"),
        Value("d_mse_null_se", "its standard error over problems"),
        Value("problems", "of a unit, a layer or FiLM: how many problems its means and errors are over"),
        Value("count", "of all units: how many of equal effect on the squared error would have their moments", "units"),
        Value("count_low", "lower end of its 95 % interval over problems, see maths/participation", "units"),
        Value("count_high", "upper end of its 95 % interval", "units"),
        Value("share", "of a layer: trace of its part of d2E/dy2 over the whole"),
        Value("share_se", "its standard error over problems"),
        Value("cosine", "of a row, addition only: cosine of the first layer's weights of a_i and b_i"),
        Value("cosine_null", "of the weights of a_i and b_(i+1)"),
        Value("slopes", "of a row: d y*_i / d x, on changes of x that occur", kind="array", dtype="float32"),
        Value("known", "of a row: what it should be", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def exp009_circuit(model: Energies, problems: Matrices, params: CircuitParams, progress: Progress) -> pd.DataFrame:
    """Return rows of problems, of the first one's map, of units and of layers, by level."""
    levels, linear = model.schedule.levels, _energy_maps.linear_map(problems)
    rows: list[dict[str, Any]] = []
    for k in range(levels):
        rows += _maps(model, problems, k, linear)
        rows += _shares(model, problems, k)
        rows += _films(model, problems, k, params.seed)
        progress((k + 0.3) / levels, f"level {k}: maps")
        rows += _units(model, problems, k, min(params.ablated, len(problems.y)), params.seed)
        progress((k + 1) / levels, f"level {k}: units")
    frame = pd.DataFrame(rows)
    frame["part"] = frame["what"].map(PARTS.index)
    columns = [a.name for a in exp009_circuit.axes] + [v.name for v in exp009_circuit.values]
    frame = frame.reindex(columns=columns)
    empty = np.full(max(problems.x.shape[1], 1), np.nan, np.float32)
    for name in ("slopes", "known"):
        frame[name] = pd.Series([a if isinstance(a, np.ndarray) else empty for a in frame[name]], dtype=object)
    return frame


@exp009_circuit.costs
def work(card: ModelCard, subject: Problems, params: CircuitParams) -> Work:
    """Gradients of all units, and Hessians of [x, y] and of y."""
    told = card.energy
    levels, width, d, d_x = (int(told[n]) for n in ("levels", "width", "d_y", "d_x"))
    ablated = ((3 * width + 1) * min(params.ablated, subject.n) + _film.CALLS * subject.n) * levels
    wide = d + d_x
    joint = 2.0 * subject.n * levels * (2 * width * width * wide + 4 * width * wide * wide) * bool(d_x)
    fit = 4.0 * _energy.FIT_PROBLEMS * (d_x + 1) ** 2 + 4.0 * subject.n * levels * d * d * wide
    held = levels * (3 * width + 2 * d) * (d_x + 12) + _energy.FIT_PROBLEMS * wide
    held += min(subject.n, _energy.AT_ONCE) * (4 * width * wide + 5 * wide * wide)
    return _energy.work(card, energies=ablated, gradients=ablated, hessians=subject.n * levels, held_numbers=held,
                        operations=joint + fit, at_once=_energy_maps.ROWS)  # fmt: skip


# ---------------------------------------------------------------- the map


def _maps(model: Energies, problems: Matrices, k: int, linear: Any) -> list[dict[str, Any]]:
    """Return rows of problems and of the first problem's map at level k; none without x."""
    if not problems.x.shape[1]:
        return []
    found, low = _energy_maps.implicit_maps(model, problems, k)
    known, occurs = _energy_maps.known_maps(problems), _energy_maps.symmetric(problems)
    root = float(model.schedule.abar[k]) ** 0.5
    rows = [{"level": k, "what": "problem", "index": i, "lambda_min": low[i]} for i in range(len(found))]
    if known is not None:
        truth = (root * known) @ occurs
        size = truth.norm(dim=(1, 2))
        others = truth.roll(1, 0) if problems.task == "inverse" else truth.roll(1, 1)
        pairs = (("error", found @ occurs, truth), ("null_error", found @ occurs, others),
                 ("linear_error", (root * linear) @ occurs, truth))  # fmt: skip
        for name, one, other in pairs:
            for row, value in zip(rows, ((one - other).norm(dim=(1, 2)) / size).tolist(), strict=True):
                row[name] = value
    cosines = _first_layer(model, problems)
    first = (found[0] @ occurs).float().cpu().numpy()
    wanted = [{}] * len(first) if known is None else [{"known": t} for t in truth[0].float().cpu().numpy()]
    return rows + [{"level": k, "what": "row", "index": i, "slopes": s, **w, **c}
                   for i, (s, w, c) in enumerate(zip(first, wanted, cosines, strict=True))]  # fmt: skip


def _first_layer(model: Energies, problems: Matrices) -> list[dict[str, float]]:
    """Return per entry the cosine of the weights that read it in both summands, and of another pair."""
    import torch

    d = problems.y.shape[1]
    if problems.task != "addition":
        return [{}] * d
    a, b = model.net.fc1.weight.double()[:, : 2 * d].split(d, 1)
    own, other = (torch.cosine_similarity(a, w, dim=0).tolist() for w in (b, b.roll(1, 1)))
    return [{"cosine": c, "cosine_null": o} for c, o in zip(own, other, strict=True)]


# ---------------------------------------------------------------- layers and units


def _shares(model: Energies, problems: Matrices, k: int) -> list[dict[str, Any]]:
    """Return rows of layers: the share of each in the trace of d2E/dy2 at the noised solutions."""
    y, traces = _energy.noised(model, problems, k), []
    for some in _energy.slices(len(y)):
        found = _energy.layered_hessian(model.net, problems.x[some], y[some], model.level(k, some.stop - some.start))
        traces.append(np.stack([found[b].diagonal(dim1=1, dim2=2).sum(1).double().cpu().numpy() for b in BENDS], 1))
    trace = np.concatenate(traces)
    share = trace / trace.sum(1, keepdims=True)
    return [{"level": k, "what": "share", "index": i, "share": m, "share_se": s, "problems": len(y)}
            for i, (m, s) in enumerate(zip(share.mean(0), _se(share), strict=True))]  # fmt: skip


def _films(model: Energies, problems: Matrices, k: int, seed: int) -> list[dict[str, Any]]:
    """Return rows of FiLM: what energy and error gain without what the level says to a layer."""
    rows = []
    for i, found in enumerate(_film.ablated(model, problems, k, seed)):
        told = {name: float(values.mean()) for name, values in found.items()}
        errors = {f"{name}_se": float(_se(values[:, None])[0]) for name, values in found.items()}
        rows.append({"level": k, "what": "film", "index": i, "problems": len(found["d_mse"]), **told, **errors})
    return rows


def _units(model: Energies, problems: Matrices, k: int, n: int, seed: int) -> list[dict[str, Any]]:
    """Return rows of units: what energy and error gain without each, on the first n problems."""
    rows, errors = [], []
    for layer, name in enumerate(HIDDEN):
        energy, error = _energy_maps.ablated(model, problems, k, n, layer)
        columns = zip(energy.mean(1), _se(energy.T), error.mean(1), _se(error.T), strict=True)
        rows += [{"level": k, "what": name, "index": u, "d_energy": e, "d_energy_se": es, "d_mse": m, "d_mse_se": ms,
                  "problems": n} for u, (e, es, m, ms) in enumerate(columns)]  # fmt: skip
        errors.append(error)
    return [*rows, {"level": k, "what": "units", "index": 0, **_counted(np.concatenate(errors).T, seed)}]


def _counted(errors: np.ndarray, seed: int) -> dict[str, float]:
    """Return over how many units the rise of the error [problem, unit] is spread."""
    from backend.maths import participation

    low, high = participation.effective_range(errors, DRAWS, seed)
    return {"count": float(participation.effective(errors.mean(0))), "count_low": low, "count_high": high}


def _se(values: np.ndarray) -> np.ndarray:
    return values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(values.shape[1], np.nan)


# ---------------------------------------------------------------- what it says of what was expected


@exp009_circuit.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Is the map the task's, is it carried by few units, does the first layer add?"""
    return [_map_claim(table), _unit_claim(table), _film_claim(table), *_first_claim(table)]


def _map_claim(table: pd.DataFrame) -> Claim:
    """A map within the tolerance that is not closer than the linear one says nothing of the energy.

    The best of several levels is judged by an interval that holds for all of them at once.
    """
    from backend.maths import ranks

    criterion = f"the energy has learnt the task's own map (within {CLOSE:.0%} at its best level)"
    mine = table[(table.what == "problem") & table.error.notna()]
    if not len(mine):
        return Claim(criterion, "none: this task has no map in closed form", "no x, or no known map",
                     "cannot be tested here")  # fmt: skip
    best = int(str(mine.groupby("level").error.mean().idxmin()))
    at = mine[mine.level == best]
    levels = mine.level.nunique()
    null, linear, mean = (float(at[c].mean()) for c in ("null_error", "linear_error", "error"))
    wide, gain = ranks.half_widths(len(at), levels) / len(at) ** 0.5, at.linear_error - at.error
    low, high, less = mean - wide * at.error.std(), mean + wide * at.error.std(), gain.mean() - wide * gain.std()
    told = f"[{low:.1%}, {high:.1%}], {levels} levels at once," if len(at) > 1 else "of one problem, no interval,"
    verdict: Any = ("fails" if low > CLOSE else "cannot be tested here" if not high <= CLOSE else "holds" if less > 0
                    else "met by its null")  # fmt: skip
    return Claim(criterion, f"another map {null:.0%}; the best linear map of x {linear:.1%}",
                 f"off by {mean:.1%} {told} at level {best}", verdict)  # fmt: skip


def _unit_claim(table: pd.DataFrame) -> Claim:
    sharp = table[table.level == table.level.min()]
    n, row = int(sharp.what.isin(HIDDEN).sum()), sharp[sharp.what == "units"].iloc[0]
    told = f" [{row.count_low:.0f}, {row.count_high:.0f}]" if np.isfinite(row.count_low) else ", of too few problems,"
    few = FEW * n
    return Claim("few units carry the answer (a tenth of them, by their effect on the error at level 0)",
                 f"{n} units with Gaussian effects count as {2 / np.pi * n:.0f}",
                 f"they count as {row['count']:.0f}{told} of {n}",
                 "holds" if row.count_high < few else "fails" if row.count_low >= few else
                 "cannot be tested here")  # fmt: skip


def _film_claim(table: pd.DataFrame) -> Claim:
    """The layer whose effect is further above its null, with intervals of both at once over problems."""
    from backend.maths import ranks

    rows = table[(table.what == "film") & (table.level == table.level.min())]
    rows = rows[rows["index"] % len(_film.INSTEAD) == 0]
    best: Any = rows.iloc[int((rows.d_mse - rows.d_mse_null).to_numpy().argmax())]
    criterion = "the answer needs what the level says through FiLM (set to its mean over levels, level 0)"
    if not np.isfinite(best.d_mse_se):
        return Claim(criterion, "0 where the level says nothing", "one problem: no interval", "cannot be tested here")
    wide = ranks.half_widths(int(best.problems), 2)
    half, null_half = wide * best.d_mse_se, wide * best.d_mse_null_se
    low, null = best.d_mse - half, best.d_mse_null + null_half
    return Claim(criterion, f"moved as far in a random direction: error {best.d_mse_null:+.2g} +- {null_half:.1g}; 0 "
                 "where the level says nothing",
                 f"error {best.d_mse:+.2g} +- {half:.1g}, energy {best.d_energy:+.2g}; "
                 f"{_film.PARTS[int(best['index'])]}, of two layers the one further above that",
                 "fails" if best.d_mse + half <= 0 else "cannot be tested here" if low <= 0 else
                 "holds" if low > null else "met by its null")  # fmt: skip


def _first_claim(table: pd.DataFrame) -> list[Claim]:
    from backend.maths import ranks

    rows = table[(table.what == "row") & (table.level == table.level.min()) & table.cosine.notna()]
    if not len(rows):
        return []
    wide = ranks.half_widths(len(rows)) / len(rows) ** 0.5
    more, mean = rows.cosine - rows.cosine_null, rows.cosine.mean()
    low, high, above = mean - wide * rows.cosine.std(), mean + wide * rows.cosine.std(), more.mean() - wide * more.std()
    verdict: Any = ("fails" if high <= 0.5 else "cannot be tested here" if not low > 0.5 else "holds" if above > 0
                    else "met by its null")  # fmt: skip
    interval = f"[{low:.3f}, {high:.3f}]" if len(rows) > 1 else "of one entry, no interval"
    return [Claim("the first layer reads a + b: its weights of a_i and b_i are alike (cosine over .5)",
                  f"of a_i and b_(i+1): {rows.cosine_null.mean():.3f}", f"cosine {mean:.3f} {interval}",
                  verdict)]  # fmt: skip


# ---------------------------------------------------------------- figures


def _level(table: pd.DataFrame, view: View) -> pd.DataFrame:
    return table[table.level == int(view.chosen.get("level", table.level.min()))]


@exp009_circuit.figure("How far the energy's map is from the task's own", marks=["level"])
def error(table: pd.DataFrame, view: View) -> Any:
    """Median and the middle 80 % of the problems, beside another map and the best linear one."""
    mine, curves = table[table.what == "problem"], []
    words = {"error": ("the energy's map", ""), "linear_error": ("best linear map of x", ""),
             "null_error": ("another problem's map, or rows turned", NULL_GREY)}  # fmt: skip
    for name, (said, colour) in words.items():
        low, mid, high = (mine.groupby("level")[name].quantile(q) for q in (0.1, 0.5, 0.9))
        if len(mid) and mid.min() > 1e-9:  # a linear map of sums is exact
            curves.append(Line(said, mid.index.to_numpy(), mid.to_numpy(), low.to_numpy(), high.to_numpy(), colour))
    if not curves:
        return _nothing("No map of this task is known in closed form", "annealing level", "relative error of the map")
    figure = lines(curves, x_title="annealing level (0 sharpest)", y_title="relative error of the map")
    return logarithmic(marked(figure, view.chosen))


@exp009_circuit.figure("The first problem's map beside the known one", choose=["level"])
def maps(table: pd.DataFrame, view: View) -> Any:
    """Each row is an entry of the solution, each column one of the problem."""
    rows = _level(table, view)
    rows = rows[rows.what == "row"]
    if not len(rows) or "slopes" not in rows:
        return _nothing("The task has no x: there is no map", "entry of x", "entry of y")
    found, known = (np.stack([np.asarray(a, float) for a in rows[c]]) for c in ("slopes", "known"))
    most = float(np.nanmax(np.abs(np.stack([found, known]))))
    drawn = {"-H_yy^-1 H_yx": found} | ({} if np.isnan(known).all() else {"known": known, "difference": found - known})
    return panels({n: Panel(z, (-most, most), diverging=True) for n, z in drawn.items()}, x_title="entry of x",
                  y_title="entry of y", columns=3, value="d y* / d x", square=True)  # fmt: skip


def _nothing(words: str, x_title: str, y_title: str) -> Any:
    figure = lines([Line("none", [0], [float("nan")])], x_title=x_title, y_title=y_title)
    return figure.add_annotation(text=words, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")


@exp009_circuit.figure("Error of the guess without each unit, largest first", choose=["level"])
def units(table: pd.DataFrame, view: View) -> Any:
    """Rise of the squared error with its 95 % band; equal effects would be a flat line."""
    from backend.maths import ranks

    curves = []
    for name, rows in _level(table, view).groupby("what"):
        if name in HIDDEN:
            order = rows.sort_values("d_mse", ascending=False)
            half = ranks.half_widths(int(order.problems.max())) * order.d_mse_se
            hover = [f"{name!s}, unit {u}: {d:.3g} +- {h:.2g}; energy {e:+.3g}" for u, d, h, e in
                     zip(order["index"], order.d_mse, half, order.d_energy, strict=True)]  # fmt: skip
            curves.append(Line(str(name), np.arange(1, len(order) + 1), order.d_mse.to_numpy(),
                               (order.d_mse - half).to_numpy(), (order.d_mse + half).to_numpy(),
                               hover=hover))  # fmt: skip
    return lines(curves, x_title="unit, by its effect", y_title="rise of the squared error", log_x=True)


def _spread(row: Any, name: str) -> str:
    from backend.maths import ranks

    return f"{row[name]:+.3g} +- {ranks.half_widths(int(row['problems'])) * row[name + '_se']:.2g}"


@exp009_circuit.figure("Without what the level says through FiLM: rise of the squared error", choose=["level"])
def film(table: pd.DataFrame, view: View) -> Any:
    """With 95 % intervals over problems; grey: moved as far in a random direction."""
    from backend.maths import ranks

    rows = _level(table, view)
    rows = rows[rows.what == "film"].sort_values("index")
    numbers: list[Any] = rows.to_dict("records")
    hover = [f"{n}: error {_spread(r, 'd_mse')}, energy {_spread(r, 'd_energy')}; at random error "
             f"{_spread(r, 'd_mse_null')}, energy {_spread(r, 'd_energy_null')}"
             for n, r in zip(_film.PARTS, numbers, strict=True)]  # fmt: skip
    wide = ranks.half_widths(int(rows.problems.max()))
    return bars(list(_film.PARTS), rows.d_mse, errors=wide * rows.d_mse_se, null=rows.d_mse_null, hover=hover,
                x_title="layer, and what stands in place of its (gain, bias)", y_title="rise of the squared error",
                names_of=("taken away", "moved as far at random"))  # fmt: skip


@exp009_circuit.figure("Which layer bends the energy", marks=["level"])
def shares(table: pd.DataFrame, view: View) -> Any:
    """Share of each layer's part in the trace of the Hessian; "output" is the Gauss-Newton part."""
    from backend.maths import ranks

    curves = []
    for i, rows in table[table.what == "share"].groupby("index"):
        half = ranks.half_widths(int(rows.problems.max())) * rows.share_se
        curves.append(Line(BENDS[int(str(i))], rows.level.to_numpy(), rows.share.to_numpy(),
                           (rows.share - half).to_numpy(), (rows.share + half).to_numpy()))  # fmt: skip
    return marked(lines(curves, x_title="annealing level (0 sharpest)", y_title="share of tr H"), view.chosen)
