"""How is the loss curved around a model's weights: which eigenvalues at both ends, what density between?

H = d2 L / dw2 of the mean cross-entropy L over the corpus' rows (the next token; the task's own answer for a run that
adds modulo p), over all parameters or one block of them; or its Gauss-Newton part G = J'(d2 L / d logits^2) J, which
has no negative eigenvalue. Everything from products H v on kept graphs, attention computed by the MATH kernel.
`high`, `low`: the largest and smallest eigenvalues by Lanczos with double reorthogonalisation; `error` bounds what the
value is off: the Ritz residual, and how far the products are off (in float32, of a model that errs little, far more
than rounding). `density`: stochastic Lanczos quadrature, smoothed by a Gaussian (`error`: standard error over probes).
`trace`: Hutchinson, with standard error. `participation_ratio` (tr H)^2 / tr H^2: how many equal eigenvalues would have
these two moments (error: jackknife over probes).
`spectral_gap`: largest minus second. `exact`: the dense matrix' own, where the block is small enough.

The null: the same at weights whose entries are permuted within each tensor (norms and histograms kept, what was learned
lost), or with the right answers permuted. With permuted answers G does not change for a cross-entropy, since
d2 L / d logits^2 = diag(p) - pp' does not know them: refused.
`pyhessian`: what PyHessian 0.1 says of the model, where it is installed: by falling |lambda|, so not the same list;
some are wrong or missing, its trace stops early (at once where it is negative), its density raises on torch 2.
Exact products; of one corpus sample: other rows give another H. A residual says that some eigenvalue is that near, not
that none was passed over: a multiple eigenvalue may be listed once.
Cost: n_matvecs products, each about 2.5 forwards over the rows; memory: a vector of the block's size per Lanczos step.
Source: Ghorbani, Krishnan and Xiao (2019), An investigation into neural net optimization via Hessian eigenvalue
density; Golub and Van Loan (2013), Matrix Computations, chapter 10; Martens (2020), New insights and perspectives on
the natural gradient method; Yao et al. (2020), PyHessian.
"""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from pydantic import Field

from backend.analyses._curving import Surface, names_of, plan_surface, size_of
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
from backend.analyses._work import BYTES, FEWER_ROWS, Plan
from backend.contract import Axis, Claim, Corpus, Model, ModelCard, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures.spectrum import ends, spectrum


class HessianSpectrumParams(SpectrumParams):
    """Which matrix of which block, how much of its spectrum, and the null."""

    null: Literal["shuffled weights", "shuffled targets", "none"] = Field(
        "shuffled weights", description="what the spectrum is compared with"
    )


@analysis(
    version=1, group="Spectra", title="Hessian spectrum",
    asks="How is the loss curved around the weights: which eigenvalues at both ends, what density between?",
    subject=Corpus, params=HessianSpectrumParams, needs=["gradients"],
    axes=[OF, Axis("quantity", "high, low, density, trace, participation_ratio, spectral_gap, loss, n_params or "
                   "n_matvecs", kind="str"), RANK],
    values=[
        Value("value", "eigenvalue or trace in nats per squared unit of weight; density: share per that unit"),
        ERROR, EXACT,
        PYHESSIAN, AT, CONVERGED,
    ],
)  # fmt: skip
def hessian_spectrum(model: Model, subject: Rows, params: HessianSpectrumParams, progress: Progress) -> pd.DataFrame:
    """Return the eigenvalues, the density and the sums, of the model and then of its null."""
    _check(model.card, params)
    names, frames = names_of(list(model.parameters()), params.block), []
    kinds = ["", *([params.null] if params.null != "none" else [])]
    for turn, null in enumerate(kinds):
        surface = Surface(model, subject.tokens, names, params.matrix, null, params.seed)
        n = surface.size(names)
        exact = not null and n <= params.exact_up_to
        told = teller(progress, turn / len(kinds), 1 / len(kinds), products_at_most(n, params, exact))
        found = rows_of(surface, names, params, exact, told)
        if not null and params.pyhessian == "yes":
            found = with_pyhessian(found, surface, names, params, FEWER_ROWS)
        frames.append(pd.DataFrame(found).assign(of="null" if null else "model"))
    return pd.concat(frames, ignore_index=True).reindex(columns=_columns())


def _columns() -> list[str]:
    return [c.name for c in (*hessian_spectrum.axes, *hessian_spectrum.values)]  # type: ignore[attr-defined]


def _check(card: ModelCard, params: HessianSpectrumParams) -> None:
    """Raise where what is asked has no answer."""
    from_answers = "with permuted answers it is the same matrix: it does not know the right ones"
    if params.matrix == "gauss-newton" and params.null == "shuffled targets":
        raise BadInput("A null for the Gauss-Newton matrix", from_answers, "Choose shuffled weights")
    pyhessian_fits(params.matrix, params.pyhessian)
    if card.parameters:
        names_of(list(card.parameters), params.block)


@hessian_spectrum.costs
def work(card: ModelCard, subject: Corpus, params: HessianSpectrumParams) -> Work:
    """A forward with its graph per chunk, of the model and of the null; products walk it."""
    _check(card, params)
    plan, length, n = Plan(card), min(subject.length, card.n_ctx), size_of(card, params.block)
    surfaces = 1 + (params.null != "none")
    held, operations = 0.0, 0.0
    for turn in range(surfaces):
        most = products_at_most(n, params, turn == 0 and n <= params.exact_up_to)
        held, more = plan_surface(plan, subject.rows, length, most)
        operations += more + 4 * n * min(n, params.products) ** 2
    vectors = max(min(n, params.products) + 4 * params.k, params.steps) + 6
    square = 16 * n**2 if n <= params.exact_up_to else 0
    return plan.total(held + BYTES.get(card.dtype, 4) * (n * vectors + card.n_params) + square, operations,
                      f"{FEWER_ROWS}, fewer products, or a smaller block")  # fmt: skip


@hessian_spectrum.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Do trace and participation ratio differ from those of the null, as far as the random vectors tell?"""
    return beside_null(table, view)


# ---------------------------------------------------------------- figures


@hessian_spectrum.figure("Spectral density")
def density(table: pd.DataFrame, view: View) -> Any:
    """Density with its band over probes, on a logarithmic scale; the eigenvalues found at both ends stand above."""
    return spectrum(table)


@hessian_spectrum.figure("Eigenvalues at both ends")
def both_ends(table: pd.DataFrame, view: View) -> Any:
    """Largest and smallest eigenvalues with their residuals, beside the null, the dense matrix and PyHessian."""
    return ends(table)
