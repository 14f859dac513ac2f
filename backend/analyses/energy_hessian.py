"""How is an energy model's own loss curved around its parameters, and which of its layers carry that curvature?

H = d2 L / dw2 of the denoising loss L that it was trained on, the squared error of its gradient field dE/dy against the
noise, on problems with one fixed noise at every annealing level (or one): a function of the parameters w alone. Or its
Gauss-Newton part G = 2 J'J / (entries), J the derivative of the gradient field by w: defined here since L is a squared
error of that field; it has no negative eigenvalue. G is all of H where the field is linear in w (the bias of fc4).
This is the space of parameters; EXP-001 bends the energy in the space of solutions y, which says nothing of training.
High, low, density, trace, participation ratio, gap and their errors are those of Hessian spectrum; `exact` the dense
matrix where the block is small, `pyhessian` what PyHessian 0.1 says where it is asked for. Rows with a `block` of their
own are a module's: its trace (they sum to the whole's), and the largest and smallest eigenvalue of its diagonal block
(the largest is at most the whole's).

The null: weights permuted within each tensor, or each noise made the target of another problem; G does not know the
targets, so that null is refused there. A contrastive term of the training is no part of L.
Exact products, two derivatives by w of one by y; of one set of problems. Cost: n_matvecs products, about 10 forwards.
Source: Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, algorithm 1; Ghorbani,
Krishnan and Xiao (2019), Hessian eigenvalue density; Golub and Van Loan (2013), Matrix Computations, chapter 10;
Martens (2020), New insights and perspectives on the natural gradient method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._curving import Curved, names_of, parts_of, size_of
from backend.analyses._denoising import Denoising, levels_of, plan_products, taken
from backend.analyses._energy import FEWER
from backend.analyses._spectrum import (
    AT,
    CONVERGED,
    ERROR,
    EXACT,
    OF,
    PYHESSIAN,
    RANK,
    SpectrumParams,
    beside_null,
    products_at_most,
    pyhessian_fits,
    rows_of,
    teller,
    with_pyhessian,
)
from backend.analyses._work import BYTES
from backend.contract import Axis, Claim, Energies, Matrices, ModelCard, Problems, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import bars
from backend.figures.spectrum import SQUARED_ERROR, ends, spectrum

PROBES, PRODUCTS = 10, 30  # of a module's trace and of its two ends, at most


class EnergyHessianParams(SpectrumParams):
    """Which matrix of which block at which levels, how much of its spectrum, and the null."""

    block: str = Field("all", max_length=200, description="all, a module (fc2), or one parameter by its name")
    level: int = Field(-1, ge=-1, le=999, description="annealing level of the loss, 0 the sharpest; -1: all of them")
    problems_used: int = Field(16, ge=1, le=4096, description="problems that the loss is the mean over, at most")
    null: Literal["shuffled weights", "shuffled noise", "none"] = Field(
        "shuffled weights", description="what the spectrum is compared with"
    )
    by_module: Literal["yes", "no"] = Field("yes", description="trace and both ends of every module beside the whole")


@analysis(
    version=2, group="Spectra", title="Energy Hessian",
    asks="How is an energy model's own loss curved around its parameters, and which layers carry that curvature?",
    subject=Problems, params=EnergyHessianParams,
    axes=[OF, Axis("block", "what was asked for, or the module that the row is about", kind="str"),
          Axis("quantity", "high, low, density, trace, participation_ratio, spectral_gap, loss, n_params, n_matvecs; "
               "of a module module_high, module_low, module_trace", kind="str"), RANK],
    values=[Value("value", "eigenvalue or trace in squared error per squared unit of weight; density: share per that"),
            ERROR, EXACT, PYHESSIAN, AT, CONVERGED],
)  # fmt: skip
def energy_hessian(
    model: Energies, problems: Matrices, params: EnergyHessianParams, progress: Progress
) -> pd.DataFrame:
    """Return the spectrum and sums of the model, those of its modules, then the spectrum of the null."""
    _check(model.card, params)
    some = taken(problems, slice(params.problems_used))
    frames, kinds = [], ["", *([params.null] if params.null != "none" else [])]
    for turn, null in enumerate(kinds):
        heard = _part(progress, turn, len(kinds))
        frames.append(_table(model, some, params, null, heard).assign(of="null" if null else "model"))
    declared: Any = energy_hessian
    return pd.concat(frames, ignore_index=True).reindex(columns=[c.name for c in (*declared.axes, *declared.values)])


def _part(progress: Progress, turn: int, of: int) -> Progress:
    return lambda share, words: progress((turn + share) / of, words)


def _table(
    model: Energies, problems: Matrices, params: EnergyHessianParams, null: str, progress: Progress
) -> pd.DataFrame:
    """Return the rows of the model, or of its null, which has no rows of modules."""
    known = list(model.card.parameters)
    names, levels = names_of(known, params.block, layered=False), levels_of(model.card, params.level)
    modules = parts_of(names, layered=False) if params.by_module == "yes" and not null else {}
    surface = Denoising(model, problems, levels, names, params.matrix, null, params.seed)
    dense = not null and surface.size(names) <= params.exact_up_to
    whole = products_at_most(surface.size(names), params, dense)
    most = whole + len(modules) * (PROBES + PRODUCTS)
    found = rows_of(surface, names, params, dense, teller(progress, 0, 1, most))
    if not null and params.pyhessian == "yes":
        found = with_pyhessian(found, surface, names, params, f"{FEWER} (problems_used)")
    rows = [row | {"block": params.block} for row in found]
    for i, (name, part) in enumerate(modules.items()):
        told = teller(progress, (whole + i * (PROBES + PRODUCTS)) / most, 1 / most, 1)
        rows += [row | {"block": name} for row in _module(surface, part, params, told)]
    return pd.DataFrame(rows)


def _module(
    surface: Curved, names: list[str], params: EnergyHessianParams, told: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Return trace and both ends of a module's diagonal block."""
    from backend.maths import curvature

    product, n, like = surface.product(names), surface.size(names), surface.like(names)
    summed, error = curvature.quadrature(product, n, PROBES, 1, params.seed, like, told).trace()
    found = curvature.extreme(product, n, 1, params.tolerance, PRODUCTS, params.seed, like, told)
    most = max(abs(found.high[0]), abs(found.low[0]), 1e-300)
    both = (("module_high", found.high[0], found.high_residual[0]), ("module_low", found.low[0], found.low_residual[0]))
    return [{"quantity": "module_trace", "rank": 0, "value": summed, "error": error}] + [
        {
            "quantity": name,
            "rank": 0,
            "value": float(v),
            "error": float(r),
            "converged": float(r <= params.tolerance * most),
        }
        for name, v, r in both
    ]


def _check(card: ModelCard, params: EnergyHessianParams) -> None:
    """Raise where what is asked has no answer."""
    if params.matrix == "gauss-newton" and params.null == "shuffled noise":
        found = "with other targets it is the same matrix: J'J does not know them"
        raise BadInput("A null for the Gauss-Newton matrix", found, "Choose shuffled weights")
    pyhessian_fits(params.matrix, params.pyhessian)
    levels_of(card, params.level)
    if card.parameters:
        names_of(list(card.parameters), params.block, layered=False)


@energy_hessian.costs
def work(card: ModelCard, subject: Problems, params: EnergyHessianParams) -> Work:
    """A gradient with its graph per chunk of rows, of the model and of the null; products walk it."""
    _check(card, params)
    rows = min(params.problems_used, subject.n) * len(levels_of(card, params.level))
    names = names_of(list(card.parameters), params.block, layered=False)
    n, modules = size_of(card, params.block), len(parts_of(names, layered=False))
    calls, held, operations = [], 0.0, 0.0
    for null in range(1 + (params.null != "none")):
        most = products_at_most(n, params, not null and n <= params.exact_up_to)
        most += modules * (PROBES + PRODUCTS) if params.by_module == "yes" and not null else 0
        some, held, more = plan_products(card, rows, most)
        calls += some
        operations += more + 4 * n * min(n, params.products) ** 2
    vectors = max(min(n, params.products) + 4 * params.k, params.steps) + 6
    square = 16 * n**2 if n <= params.exact_up_to else 0
    held += BYTES.get(card.dtype, 4) * (n * vectors + card.n_params) + square
    return Work(tuple(calls), held, operations, knobs=f"{FEWER} (problems_used), fewer products, or a smaller block")


@energy_hessian.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Do trace and participation ratio differ from those of the null, as far as the random vectors tell?"""
    return beside_null(table, view)


# ---------------------------------------------------------------- figures


@energy_hessian.figure("Spectral density")
def density(table: pd.DataFrame, view: View) -> Any:
    """Density with its band over probes, on a logarithmic scale; the eigenvalues found at both ends stand above."""
    return spectrum(table, SQUARED_ERROR)


@energy_hessian.figure("Eigenvalues at both ends")
def both_ends(table: pd.DataFrame, view: View) -> Any:
    """Largest and smallest eigenvalues with their residuals, beside the null and the dense matrix."""
    return ends(table)


@energy_hessian.figure("Trace by module")
def by_module(table: pd.DataFrame, view: View) -> Any:
    """Trace of every module's diagonal block with its standard error; the eigenvalues at its ends where one points."""
    rows = table[table["quantity"].str.startswith("module_")]
    if not len(rows):
        return bars(["not asked for (by_module)"], [0.0], x_title="module", y_title="trace")
    each = rows.pivot(index="block", columns="quantity", values="value").loc[list(dict.fromkeys(rows["block"]))]
    error = rows[rows["quantity"] == "module_trace"].set_index("block")["error"].loc[each.index]
    total = float(np.nansum(each["module_trace"]))
    hover = [f"{name}<br>trace {r['module_trace']:.4g} ± {se:.2g} ({r['module_trace'] / total:.1%})<br>largest "
             f"eigenvalue {r['module_high']:.4g}, smallest {r['module_low']:.4g}"
             for name, r, se in zip(each.index, each.to_dict("records"), error, strict=True)]  # fmt: skip
    return bars(list(each.index), each["module_trace"], errors=error, hover=hover, x_title="module (weight and bias)",
                y_title="trace (bar: s.e.)", names_of=("model", ""), height=340)  # fmt: skip
