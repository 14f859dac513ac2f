"""What spectra of a curvature matrix share, whatever the loss: the knobs, and the rows of one spectrum of a `Curved`.

Formulas, errors and sources: hessian_spectrum.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._curving import Curved
from backend.contract import Axis, Claim, Params, Progress, Value, View
from backend.errors import BadInput, Unfit
from backend.figures.spectrum import MARGIN, SMOOTHING

POINTS = 301  # of the density
INSTALL = "pip install --no-deps pyhessian==0.1"
#: of PyHessian 0.1 on torch 2: its source and issues 17, 21 and 25, and what was measured (benchmarks/README.md)
FAILURES = (
    "its list goes by |eigenvalue| and comes from a power iteration that stops on a small change, so some are wrong or "
    "missing and the small end is not seen; its trace stops early, at once where it is negative; its density raises on "
    "torch 2 (torch.eig is gone)"
)


class SpectrumParams(Params):
    """Which matrix of which block, and how much of its spectrum."""

    matrix: Literal["hessian", "gauss-newton"] = Field("hessian", description="H, or its Gauss-Newton part")
    block: str = Field("all", max_length=200, description="all, layer N, or one parameter by its name")
    k: int = Field(5, ge=1, le=50, title="Eigenvalues", description="eigenvalues at each end")
    products: int = Field(120, ge=10, le=1000, description="products at most for both ends")
    tolerance: float = Field(1e-4, ge=1e-10, le=0.1, description="Ritz residual, relative to the largest |eigenvalue|")
    probes: int = Field(4, ge=2, le=50, description="random vectors of the density")
    steps: int = Field(30, ge=5, le=200, description="products for each of them")
    trace_probes: int = Field(20, ge=0, le=1000, description="more random vectors, for the trace alone")
    exact_up_to: int = Field(600, ge=0, le=4000, description="parameters up to which the dense matrix is built beside")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random vectors and of the null")
    pyhessian: Literal["no", "yes"] = Field("no", description="PyHessian 0.1 beside it, where it is installed")


#: columns of every table of spectra
OF = Axis("of", "model, or its null", kind="str")
RANK = Axis("rank", "which one: 0 is the outermost eigenvalue, the lowest point of the density")
ERROR = Value("error", "residual (bounds the error) of an eigenvalue; standard error of density, trace, "
              "participation_ratio; NULL where there is none")  # fmt: skip
EXACT = Value("exact", "the same of the dense matrix; NULL where that was not built")
AT = Value("at", "eigenvalue at which the density is read; NULL elsewhere")
CONVERGED = Value("converged", "1 where the residual is within the tolerance, 0 where not; NULL for what has none")
PYHESSIAN = Value("pyhessian", f"what PyHessian 0.1 says where it is installed (`{INSTALL}`) and asked for, else NULL; "
                  f"known failures on torch 2: {FAILURES}")  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """A curvature matrix by its products: `product`, its size `n`, what its vectors are like, and what hears."""

    product: Callable[[Any], Any]
    n: int
    like: Any
    said: Callable[[int], None]


def teller(progress: Progress, start: float, share: float, most: int) -> Callable[[int], None]:
    """Return what hears the number of products made, of `most`, in this part of the progress."""
    return lambda done: progress(start + share * min(1.0, done / most), f"{done} of at most {most} products")


def products_at_most(n: int, params: SpectrumParams, exact: bool) -> int:
    """Return how many products one spectrum takes at most, with the dense matrix where it is `exact`."""
    estimates = min(n, params.products) + params.probes * min(n, params.steps) + params.trace_probes
    return estimates + (n if exact else 0)


# ---------------------------------------------------------------- one spectrum


def rows_of(
    surface: Curved, names: Sequence[str], params: SpectrumParams, dense: bool, told: Callable[[int], None]
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the rows of one surface as dicts."""
    from backend.maths import curvature

    product, like = surface.product(names), surface.like(names)
    n = surface.size(names)
    found = curvature.extreme(product, n, params.k, params.tolerance, params.products, params.seed, like, told)
    done = found.n_matvecs
    density = curvature.quadrature(product, n, params.probes, params.steps, params.seed, like, lambda d: told(done + d))
    done += density.n_matvecs
    more = curvature.quadrature(product, n, params.trace_probes, 1, params.seed + 1, like, lambda d: told(done + d))
    done += more.n_matvecs
    exact = all_of(Operator(product, n, like, lambda d: told(done + d))) if dense else None
    done += n if exact is not None else 0
    return [*_ends(found, params.tolerance, exact), *_sums(found, density, more, exact), *_density(density, exact),
            row_of("loss", surface.loss), row_of("n_params", n), row_of("n_matvecs", done)]  # fmt: skip


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


def row_of(quantity: str, value: float, rank: int = 0, **more: Any) -> dict[str, Any]:
    """Return one row of the table."""
    return {"quantity": quantity, "rank": rank, "value": float(value), **more}


def _ends(found: Any, tolerance: float, exact: np.ndarray | None) -> list[dict[str, Any]]:
    most = max(np.abs(found.high).max(), np.abs(found.low).max(), 1e-300)
    rows = []
    for name, values, residuals in (("high", found.high, found.high_residual), ("low", found.low, found.low_residual)):
        truth = (exact[::-1] if name == "high" else exact) if exact is not None else np.full(len(values), np.nan)
        rows += [row_of(name, v, i, error=float(r), exact=float(e), converged=float(r <= tolerance * most))
                 for i, (v, r, e) in enumerate(zip(values, residuals, truth[: len(values)], strict=True))]  # fmt: skip
    return rows


def _sums(found: Any, density: Any, more: Any, exact: np.ndarray | None) -> list[dict[str, Any]]:
    """Return trace, participation ratio and gap; the trace from all probes, those of the density included."""
    samples = np.concatenate([density.trace_samples, more.trace_samples])
    rows = [row_of("trace", samples.mean(), error=float(samples.std(ddof=1) / np.sqrt(len(samples))),
                 exact=np.nan if exact is None else float(exact.sum()))]  # fmt: skip
    ratio, error = density.participation_ratio(), density.participation_ratio_error()
    truth = np.nan if exact is None or not exact.any() else float(exact.sum() ** 2 / (exact**2).sum())
    rows.append(row_of("participation_ratio", ratio, error=error, exact=truth))
    if len(found.high) > 1:
        rows.append(row_of("spectral_gap", found.high[0] - found.high[1], error=float(found.high_residual[:2].sum()),
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
    return [row_of("density", v, i, error=float(e), exact=float(t), at=float(x))
            for i, (v, e, t, x) in enumerate(zip(values, errors, truth, grid, strict=True))]  # fmt: skip


def smoothed(values: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """Return the density of these values on a grid, as a Gaussian of standard deviation `width` smooths it."""
    gaps = (grid[:, None] - values) / width
    return np.exp(-(gaps**2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))


# ---------------------------------------------------------------- beside PyHessian


def pyhessian_fits(matrix: str, asked: str) -> None:
    """Raise where PyHessian is asked for beside what it does not know."""
    if asked == "yes" and matrix != "hessian":
        raise BadInput("PyHessian beside the Gauss-Newton matrix", "it knows the Hessian only", "Choose pyhessian no")


def with_pyhessian(
    rows: list[dict[str, Any]], surface: Curved, names: Sequence[str], params: SpectrumParams, fewer: str
) -> list[dict[str, Any]]:
    """Add what PyHessian says. Raises Unfit where it is not installed, or cannot take all rows at once: `fewer`."""
    from backend.maths import pyhessian_column

    if not pyhessian_column.installed():
        raise Unfit("PyHessian beside the spectrum", "it is not installed where the workers run",
                    f"Run `{INSTALL}` there, or choose pyhessian no")  # fmt: skip
    if len(surface.chunks) > 1:
        raise Unfit("PyHessian on these rows", "it takes all rows at once", fewer)
    asked = surface.handed(names)
    told = {("high", i): float(v) for i, v in enumerate(pyhessian_column.top(*asked, params.k, params.seed))}
    told["trace", 0] = pyhessian_column.trace(*asked, params.seed)
    return [{**row, "pyhessian": told.get((row["quantity"], row["rank"]), np.nan)} for row in rows]


# ---------------------------------------------------------------- beside the null


def beside_null(table: pd.DataFrame, view: View) -> list[Claim]:
    """Say of trace and participation ratio whether these probes tell the model from its null, and each from 0."""
    fields = SpectrumParams.model_fields
    probes, more = (int(view.params.get(name, fields[name].default)) for name in ("probes", "trace_probes"))
    samples = {"trace": (probes + more, f"trace_probes ({more} now)"),
               "participation_ratio": (probes, f"probes ({probes} now)")}  # fmt: skip
    null = str(view.params.get("null", "")) or "the null"
    apart = [claim for name, told in samples.items() if (claim := _apart(table, name, null, *told))]
    return apart + [claim for name, told in samples.items() for claim in _of_nothing(table, name, null, *told)]


def _of_nothing(table: pd.DataFrame, quantity: str, null: str, n: int, knob: str) -> list[Claim]:
    """Say of whom the quantity is not told from 0: its sign, and what is made of it, is then not known."""
    from backend.maths import ranks

    found = []
    for of, whose in (("model", "the model"), ("null", null)):
        rows = table[(table["quantity"] == quantity) & (table["of"] == of)]
        for value, error in rows[["value", "error"]].dropna().to_numpy(float):
            low, high = ranks.difference(value, error, n, 0.0, 0.0, n)
            if low <= 0 <= high and error:
                said = f"{value:.3g} ± {error:.2g}, 95 % [{low:.3g}, {high:.3g}]: not resolved at this sample"
                said += f". Raise {knob}"
                criterion = f"these random vectors tell the {quantity.replace('_', ' ')} of {whose} from 0"
                found.append(Claim(criterion, "0", said, "cannot be tested here"))
    return found


def _apart(table: pd.DataFrame, quantity: str, null: str, n: int, knob: str) -> Claim | None:
    from backend.maths import ranks

    rows = table[table["quantity"] == quantity].set_index("of")[["value", "error"]].astype(float)
    if "null" not in rows.index or rows.isna().any(axis=None):
        return None
    (a, error_a), (b, error_b) = rows.loc[["model", "null"]].to_numpy()
    low, high = ranks.difference(a, error_a, n, b, error_b, n)
    words, resolved = quantity.replace("_", " "), not low <= 0 <= high
    said = f"{a:.4g} ± {error_a:.2g}; difference {a - b:.3g}, 95 % [{low:.3g}, {high:.3g}] over random vectors"
    if not resolved:
        said += f": not resolved at this sample. Raise {knob}; more rows or problems where they differ among themselves"
    return Claim(f"its {words} is not that of {null}", f"{b:.4g} ± {error_b:.2g} ({null})", said,
                 "holds" if resolved else "cannot be tested here")  # fmt: skip
