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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._curving import Surface, cross_entropy, names_of, plan_surface, size_of
from backend.analyses._work import BYTES, FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput, Unfit
from backend.figures.spectrum import MARGIN, SMOOTHING, ends, spectrum

POINTS = 301  # of the density
INSTALL = "pip install --no-deps pyhessian==0.1"
#: of PyHessian 0.1 on torch 2: its source and issues 17, 21 and 25, and what was measured (benchmarks/README.md)
FAILURES = (
    "its list goes by |eigenvalue| and comes from a power iteration that stops on a small change, so some are wrong or "
    "missing and the small end is not seen; its trace stops early, at once where it is negative; its density raises on "
    "torch 2 (torch.eig is gone)"
)


class HessianSpectrumParams(Params):
    """Which matrix of which block, how much of its spectrum, and the null."""

    matrix: Literal["hessian", "gauss-newton"] = Field("hessian", description="H, or its Gauss-Newton part")
    block: str = Field("all", max_length=200, description="all, layer N, or one parameter by its name")
    k: int = Field(5, ge=1, le=50, description="eigenvalues at each end")
    products: int = Field(120, ge=10, le=1000, description="products at most for both ends")
    tolerance: float = Field(1e-4, ge=1e-10, le=0.1, description="Ritz residual, relative to the largest |eigenvalue|")
    probes: int = Field(4, ge=2, le=50, description="random vectors of the density")
    steps: int = Field(30, ge=5, le=200, description="products for each of them")
    trace_probes: int = Field(20, ge=0, le=1000, description="more random vectors, for the trace alone")
    null: Literal["shuffled weights", "shuffled targets", "none"] = Field(
        "shuffled weights", description="what the spectrum is compared with"
    )
    exact_up_to: int = Field(600, ge=0, le=4000, description="parameters up to which the dense matrix is built beside")
    pyhessian: Literal["no", "yes"] = Field("no", description="PyHessian 0.1 beside it, where it is installed")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random vectors and of the null")


@dataclass(frozen=True)
class Operator:
    """A curvature matrix by its products: `product`, its size `n`, what its vectors are like, and what hears."""

    product: Callable[[Any], Any]
    n: int
    like: Any
    said: Callable[[int], None]


@analysis(
    version=1, group="Spectra", title="Hessian spectrum",
    asks="How is the loss curved around the weights: which eigenvalues at both ends, what density between?",
    subject=Corpus, params=HessianSpectrumParams, needs=["gradients"],
    axes=[Axis("of", "model, or its null", kind="str"),
          Axis("quantity", "high, low, density, trace, participation_ratio, spectral_gap, loss, n_params or n_matvecs",
               kind="str"),
          Axis("rank", "which one: 0 is the outermost eigenvalue, the lowest point of the density")],
    values=[
        Value("value", "eigenvalue or trace in nats per squared unit of weight; density: share per that unit"),
        Value("error", "residual (bounds the error) of an eigenvalue; standard error of density, trace, "
              "participation_ratio; NULL where there is none"),
        Value("exact", "the same of the dense matrix; NULL where that was not built"),
        Value("pyhessian", "what PyHessian 0.1 says: its list goes by |eigenvalue|; NULL where not asked"),
        Value("at", "eigenvalue at which the density is read; NULL elsewhere"),
        Value("converged", "1 where the residual is within the tolerance, 0 where not; NULL for what has none"),
    ],
)  # fmt: skip
def hessian_spectrum(model: Model, subject: Rows, params: HessianSpectrumParams, progress: Progress) -> pd.DataFrame:
    """Return the eigenvalues, the density and the sums, of the model and then of its null."""
    _check(model.card, params)
    names, frames = names_of(list(model.parameters()), params.block), []
    kinds = ["", *([params.null] if params.null != "none" else [])]
    for turn, null in enumerate(kinds):
        surface = Surface(model, subject.tokens, names, params.matrix, null, params.seed)
        n = sum(surface.parameters[name].numel() for name in names)
        exact = not null and n <= params.exact_up_to
        told = _teller(progress, turn / len(kinds), 1 / len(kinds), products_at_most(n, params, exact))
        found = _rows(surface, names, params, exact, told)
        if not null and params.pyhessian == "yes":
            found = _beside(found, surface, names, params)
        frames.append(pd.DataFrame(found).assign(of="null" if null else "model"))
    return pd.concat(frames, ignore_index=True).reindex(columns=_columns())


def _columns() -> list[str]:
    return [c.name for c in (*hessian_spectrum.axes, *hessian_spectrum.values)]  # type: ignore[attr-defined]


def _check(card: ModelCard, params: HessianSpectrumParams) -> None:
    """Raise where what is asked has no answer."""
    from_answers = "with permuted answers it is the same matrix: it does not know the right ones"
    if params.matrix == "gauss-newton" and params.null == "shuffled targets":
        raise BadInput("A null for the Gauss-Newton matrix", from_answers, "Choose shuffled weights")
    if params.pyhessian == "yes" and params.matrix != "hessian":
        raise BadInput("PyHessian beside the Gauss-Newton matrix", "it knows the Hessian only", "Choose pyhessian no")
    if card.parameters:
        names_of(list(card.parameters), params.block)


def _teller(progress: Progress, start: float, share: float, most: int) -> Callable[[int], None]:
    return lambda done: progress(start + share * min(1.0, done / most), f"{done} of at most {most} products")


def products_at_most(n: int, params: HessianSpectrumParams, exact: bool) -> int:
    """Return how many products one spectrum takes at most, with the dense matrix where it is `exact`."""
    estimates = min(n, params.products) + params.probes * min(n, params.steps) + params.trace_probes
    return estimates + (n if exact else 0)


# ---------------------------------------------------------------- one spectrum


def _rows(
    surface: Surface, names: Sequence[str], params: HessianSpectrumParams, dense: bool, told: Callable[[int], None]
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the rows of one surface as dicts."""
    from backend.maths import curvature

    product, like = surface.product(names), surface.like(names)
    n = sum(surface.parameters[name].numel() for name in names)
    found = curvature.extreme(product, n, params.k, params.tolerance, params.products, params.seed, like, told)
    done = found.n_matvecs
    density = curvature.quadrature(product, n, params.probes, params.steps, params.seed, like, lambda d: told(done + d))
    done += density.n_matvecs
    more = curvature.quadrature(product, n, params.trace_probes, 1, params.seed + 1, like, lambda d: told(done + d))
    done += more.n_matvecs
    exact = all_of(Operator(product, n, like, lambda d: told(done + d))) if dense else None
    done += n if exact is not None else 0
    return [*_ends(found, params.tolerance, exact), *_sums(found, density, more, exact), *_density(density, exact),
            _row("loss", surface.loss), _row("n_params", n), _row("n_matvecs", done)]  # fmt: skip


def all_of(operator: Operator) -> np.ndarray:
    """Return all eigenvalues, ascending, of the matrix built column by column and made symmetric."""
    import torch

    columns = []
    for at in range(operator.n):
        unit = torch.zeros(operator.n, dtype=operator.like.dtype, device=operator.like.device)
        unit[at] = 1.0
        columns.append(operator.product(unit).double().cpu())
        operator.said(at)
    matrix = torch.stack(columns)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()


def _row(quantity: str, value: float, rank: int = 0, **more: Any) -> dict[str, Any]:
    return {"quantity": quantity, "rank": rank, "value": float(value), **more}


def _ends(found: Any, tolerance: float, exact: np.ndarray | None) -> list[dict[str, Any]]:
    most = max(np.abs(found.high).max(), np.abs(found.low).max(), 1e-300)
    rows = []
    for name, values, residuals in (("high", found.high, found.high_residual), ("low", found.low, found.low_residual)):
        truth = (exact[::-1] if name == "high" else exact) if exact is not None else np.full(len(values), np.nan)
        rows += [_row(name, v, i, error=float(r), exact=float(e), converged=float(r <= tolerance * most))
                 for i, (v, r, e) in enumerate(zip(values, residuals, truth[: len(values)], strict=True))]  # fmt: skip
    return rows


def _sums(found: Any, density: Any, more: Any, exact: np.ndarray | None) -> list[dict[str, Any]]:
    """Return trace, participation ratio and gap; the trace from all probes, those of the density included."""
    samples = np.concatenate([density.trace_samples, more.trace_samples])
    rows = [_row("trace", samples.mean(), error=float(samples.std(ddof=1) / np.sqrt(len(samples))),
                 exact=np.nan if exact is None else float(exact.sum()))]  # fmt: skip
    ratio, error = density.participation_ratio(), density.participation_ratio_error()
    truth = np.nan if exact is None or not exact.any() else float(exact.sum() ** 2 / (exact**2).sum())
    rows.append(_row("participation_ratio", ratio, error=error, exact=truth))
    if len(found.high) > 1:
        rows.append(_row("spectral_gap", found.high[0] - found.high[1], error=float(found.high_residual[:2].sum()),
                         exact=np.nan if exact is None else float(exact[-1] - exact[-2])))  # fmt: skip
    return rows


def _density(found: Any, exact: np.ndarray | None) -> list[dict[str, Any]]:
    """Return the density on POINTS eigenvalues over its extent, and that of the dense matrix smoothed alike."""
    used = found.nodes[found.weights > 0]
    extent = max(float(np.ptp(used)), 1e-3 * float(np.abs(used).max()), 1e-12)
    width = SMOOTHING * extent
    grid = np.linspace(used.min() - MARGIN * width, used.max() + MARGIN * width, POINTS)
    values, errors = found.density(grid, width)
    truth = np.full(POINTS, np.nan) if exact is None else smoothed(exact, grid, width)
    return [_row("density", v, i, error=float(e), exact=float(t), at=float(x))
            for i, (v, e, t, x) in enumerate(zip(values, errors, truth, grid, strict=True))]  # fmt: skip


def smoothed(values: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """Return the density of these values on a grid, as a Gaussian of standard deviation `width` smooths it."""
    gaps = (grid[:, None] - values) / width
    return np.exp(-(gaps**2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))


def _beside(rows: list[dict], surface: Surface, names: Sequence[str], params: HessianSpectrumParams) -> list[dict]:
    """Add what PyHessian says. Raises Unfit where it is not installed or cannot take the rows at once."""
    from backend.maths import pyhessian_column

    if not pyhessian_column.installed():
        raise Unfit("PyHessian beside the spectrum", "it is not installed where the workers run",
                    f"Run `{INSTALL}` there, or choose pyhessian no")  # fmt: skip
    if len(surface.chunks) > 1:
        raise Unfit("PyHessian on these rows", "it takes all rows at once", FEWER_ROWS)

    def forward(tensors: Sequence[Any], tokens: Any) -> Any:
        given = {**surface.parameters, **dict(zip(names, tensors, strict=True))}
        return surface.model.logits_at(given, tokens)[:, surface.positions]

    tensors = [surface.parameters[name] for name in names]
    asked = forward, cross_entropy, tensors, (surface.tokens, surface.right)
    told = {("high", i): float(v) for i, v in enumerate(pyhessian_column.top(*asked, params.k, params.seed))}
    told["trace", 0] = pyhessian_column.trace(*asked, params.seed)
    return [{**row, "pyhessian": told.get((row["quantity"], row["rank"]), np.nan)} for row in rows]


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


# ---------------------------------------------------------------- figures


@hessian_spectrum.figure("Spectral density")
def density(table: pd.DataFrame, view: View) -> Any:
    """Density with its band over probes, on a logarithmic scale; the eigenvalues found at both ends stand above."""
    return spectrum(table)


@hessian_spectrum.figure("Eigenvalues at both ends")
def both_ends(table: pd.DataFrame, view: View) -> Any:
    """Largest and smallest eigenvalues with their residuals, beside the null, the dense matrix and PyHessian."""
    return ends(table)
