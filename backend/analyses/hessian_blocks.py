"""In which layers and matrices does the curvature of the loss sit?

The diagonal blocks of the Hessian H = d2 L / dw2 (or of its Gauss-Newton part), one for every matrix of the model or
one for every layer: `trace` by Hutchinson with its standard error over `probes`, `lambda_max` and `lambda_min` by
Lanczos with their Ritz residuals (which bound the error), `mean` the trace per parameter, `share` the block's part of
the sum of all traces. L is the mean cross-entropy over the corpus' rows, as in Hessian spectrum.

The traces of all blocks sum to that of H; the largest eigenvalue of a block is at most that of H (Cauchy interlacing).
The null, `null_trace` with its error: the same block at weights whose entries are permuted within each tensor.
What a block's share says of its importance depends on the scale of its weights: where the loss does not change when one
matrix is multiplied and the next divided by c, the curvature moves between them by c^2. A key's bias adds the same to
all scores of a query, so its curvature is zero: what is shown there is rounding.
Exact products; of one corpus sample. Cost: probes + at most `products` products a block, about 2.5 forwards each.
Source: Hutchinson (1990) for traces; Golub and Van Loan (2013), Matrix Computations, chapter 10; Zhang et al. (2024),
Why transformers need Adam: a Hessian perspective, on blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._curving import Surface, layer_of, matrix_of, names_of, plan_surface
from backend.analyses._work import BYTES, FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import Unfit
from backend.figures import bars, pixels

MOST = 400  # blocks


class HessianBlocksParams(Params):
    """Which matrix, which blocks, how well."""

    matrix: Literal["hessian", "gauss-newton"] = Field("hessian", description="H, or its Gauss-Newton part")
    by: Literal["matrix", "layer"] = Field("matrix", description="a block for every matrix, or for every layer")
    probes: int = Field(10, ge=2, le=500, description="random vectors of each trace")
    products: int = Field(30, ge=5, le=500, description="products at most for the two ends of each block")
    tolerance: float = Field(1e-3, ge=1e-10, le=0.1, description="Ritz residual, relative to the largest |eigenvalue|")
    null: Literal["shuffled weights", "none"] = Field("shuffled weights", description="what traces are compared with")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random vectors and of the null")


@analysis(
    version=1, group="Spectra", title="Hessian by block",
    asks="In which layers and matrices does the curvature of the loss sit?",
    subject=Corpus, params=HessianBlocksParams, needs=["gradients"],
    axes=[Axis("layer", "layer of the block; -1 belongs to none"),
          Axis("matrix", "the parameter, by the name that the model gives it within its layer", kind="str")],
    values=[
        Value("n_params", "parameters of the block", kind="int"),
        Value("trace", "trace of the block", "nats per squared unit of weight"),
        Value("trace_se", "standard error of the trace over probes"),
        Value("share", "part of the sum of all traces"),
        Value("mean", "trace per parameter: the mean eigenvalue"),
        Value("lambda_max", "largest eigenvalue of the block"),
        Value("lambda_max_error", "its Ritz residual"),
        Value("lambda_min", "smallest eigenvalue of the block"),
        Value("lambda_min_error", "its Ritz residual"),
        Value("converged", "1 where both residuals are within the tolerance", kind="int"),
        Value("n_matvecs", "products made for the block", kind="int"),
        Value("null_trace", "trace of the block at shuffled weights; NULL where not asked"),
        Value("null_trace_se", "its standard error over probes"),
    ],
)  # fmt: skip
def hessian_blocks(model: Model, subject: Rows, params: HessianBlocksParams, progress: Progress) -> pd.DataFrame:
    """Return one row per block, in the order of the model's parameters."""
    known = list(model.parameters())
    blocks = blocks_by(known, params.by)
    if len(blocks) > MOST:
        raise Unfit(f"{len(blocks)} blocks of {model.card.spec}", f"at most {MOST} are told apart", "Choose by layer")
    kinds = ["", *(["shuffled weights"] if params.null != "none" else [])]
    found: dict[str, list[dict[str, Any]]] = {}
    for turn, null in enumerate(kinds):
        surface = Surface(model, subject.tokens, known, params.matrix, null, params.seed)
        found[null] = []
        for i, names in enumerate(blocks.values()):
            at = (turn + i / len(blocks)) / len(kinds)
            found[null].append(_block(surface, names, params, not null, _heard(progress, at, i, len(blocks))))
    return _table(blocks, found[""], found.get("shuffled weights"))


def blocks_by(known: Sequence[str], by: str) -> dict[tuple[int, str], list[str]]:
    """Return {(layer or -1, words): its parameters}."""
    if by == "matrix":
        return {(_layer(name), matrix_of(name)): [name] for name in known}
    layers = {n for name in known if (n := _layer(name)) >= 0}
    rest = [name for name in known if _layer(name) < 0]
    found = {(n, "all of the layer"): names_of(known, f"layer {n}") for n in sorted(layers)}
    return {**found, **({(-1, "all outside of layers"): rest} if rest else {})}


def _layer(name: str) -> int:
    layer = layer_of(name)
    return -1 if layer is None else layer


def _heard(progress: Progress, at: float, block: int, of: int) -> Callable[[int], None]:
    return lambda done: progress(at, f"Block {block + 1} of {of}, {done} products")


def _block(surface: Surface, names: Sequence[str], params: HessianBlocksParams, both_ends: bool,
           told: Callable[[int], None]) -> dict[str, Any]:  # fmt: skip
    """Return what one block is: trace, and where `both_ends` its outermost eigenvalues."""
    from backend.maths import curvature

    product, like = surface.product(names), surface.like(names)
    n = surface.size(names)
    summed = curvature.quadrature(product, n, params.probes, 1, params.seed, like, told)
    trace, error = summed.trace()
    found: dict[str, Any] = {"n_params": n, "trace": trace, "trace_se": error}
    if not both_ends:
        return found
    ends = curvature.extreme(product, n, 1, params.tolerance, params.products, params.seed, like, told)
    return found | {
        "lambda_max": ends.high[0], "lambda_max_error": ends.high_residual[0],
        "lambda_min": ends.low[0], "lambda_min_error": ends.low_residual[0],
        "converged": int(ends.converged), "n_matvecs": summed.n_matvecs + ends.n_matvecs,
    }  # fmt: skip


def _table(blocks: Any, mine: list[dict[str, Any]], null: list[dict[str, Any]] | None) -> pd.DataFrame:
    table = pd.DataFrame(mine)
    table["layer"], table["matrix"] = zip(*blocks, strict=True)
    total = table["trace"].sum()
    table["share"] = table["trace"] / total if total else np.nan
    table["mean"] = table["trace"] / table["n_params"]
    for column in ("trace", "trace_se"):
        table[f"null_{column}"] = [row[column] for row in null] if null else np.nan
    return table[[c.name for c in (*hessian_blocks.axes, *hessian_blocks.values)]]  # type: ignore[attr-defined]


@hessian_blocks.costs
def work(card: ModelCard, subject: Corpus, params: HessianBlocksParams) -> Work:
    """A forward with its graph per chunk, of the model and of the null; products of every block walk it."""
    plan, length = Plan(card), min(subject.length, card.n_ctx)
    names = blocks_by(list(card.parameters), params.by)
    count = max(1, len(names))
    largest = max((sum(card.parameters[n] for n in b) for b in names.values()), default=card.n_params)
    held, operations = plan_surface(plan, subject.rows, length, count * (params.probes + params.products))
    if params.null != "none":
        operations += plan_surface(plan, subject.rows, length, count * params.probes)[1]
    vectors = params.products + 10
    return plan.total(held + BYTES.get(card.dtype, 4) * (largest * vectors + 2 * card.n_params), operations,
                      f"{FEWER_ROWS}, fewer products, or by layer")  # fmt: skip


# ---------------------------------------------------------------- figures


def _names(table: pd.DataFrame) -> list[str]:
    return [(f"L{r['layer']} " if r["layer"] >= 0 else "") + r["matrix"] for r in table.to_dict("records")]


def _said(name: str, row: Any) -> str:
    beside = "" if pd.isna(row["null_trace"]) else f"<br>null: {row['null_trace']:.3g} ± {row['null_trace_se']:.2g}"
    return (f"{name}, {row['n_params']} parameters<br>trace {row['trace']:.4g} ± {row['trace_se']:.2g} "
            f"({row['share']:.1%}){beside}<br>largest eigenvalue {row['lambda_max']:.4g} ± "
            f"{row['lambda_max_error']:.1g}<br>smallest {row['lambda_min']:.4g}")  # fmt: skip


@hessian_blocks.figure("Trace by block")
def traces(table: pd.DataFrame, view: View) -> Any:
    """Trace of each block with its standard error; grey: at shuffled weights."""
    null = None if table["null_trace"].isna().all() else table["null_trace"]
    hover = [_said(name, row) for name, row in zip(_names(table), table.to_dict("records"), strict=True)]
    figure = bars(_names(table), table["trace"], errors=table["trace_se"], null=null, x_title="block", hover=hover,
                  y_title="trace (bar: s.e.)", names_of=("model", "shuffled weights (null)"), height=420)
    return figure.update_xaxes(tickangle=-60, title={"standoff": 8})


@hessian_blocks.figure("Largest eigenvalue by layer and matrix")
def largest(table: pd.DataFrame, view: View) -> Any:
    """The largest eigenvalue of every block within a layer; what belongs to no layer stands in the bars."""
    inside = table[table["layer"] >= 0] if (table["layer"] >= 0).any() else table
    grid = inside.pivot(index="layer", columns="matrix", values="lambda_max")[list(dict.fromkeys(inside["matrix"]))]
    low = inside.pivot(index="layer", columns="matrix", values="lambda_min")[list(grid.columns)]
    hover = [[f"largest {a:.4g}, smallest {b:.4g}" for a, b in zip(*rows, strict=True)]
             for rows in zip(grid.to_numpy(), low.to_numpy(), strict=True)]  # fmt: skip
    text = [[f"{a:.2g}" for a in row] for row in grid.to_numpy()]
    names = [name.removesuffix(".weight").replace(".bias", " b") for name in grid.columns]  # a label has 14 letters
    return pixels(grid.to_numpy(float), x=names, y=[str(n) for n in grid.index], x_title="matrix (b: its bias)",
                  y_title="layer", value="largest", text=text, hover=hover, numbered_y=False,
                  limits=(0.0, max(float(np.nanmax(grid.to_numpy(float))), 1e-9)),
                  height=220 + 40 * min(len(grid), 12)).update_xaxes(tickangle=-60, title={"standoff": 8})  # fmt: skip
