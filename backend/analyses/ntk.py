"""How does a step of learning on one token move the others: the empirical neural tangent kernel, and how far it drifts.

K_ij = <df_i/dw, df_j/dw> over samples i (a position of a row), f_i being the logit of its right answer, its
log-probability, or the sum of its logits. Its eigenvalues; `effective_rank` = (tr K)^2 / tr K^2, and the same of the
centred kernel, from which the one mode that moves all samples alike is taken; `alignment`: the centred alignment of K
with Y_ij = [the right answers of i and j are the same], what is large where samples of one answer are learnt together.
`drift` = |K - K_0| / |K_0| and `likeness` = centred alignment of K and K_0, K_0 the kernel of the run's checkpoint
`first_step` (NULL for a model of no run): a kernel that stays is a model that learns as a linear one does.

The null: right answers shuffled over samples, `shuffles` times: mean, standard deviation, and `p`, the share that
aligns as well. Both kernels have a diagonal, so it is far from 0. With f the logit, samples of one answer share a
column of W_U, which aligns K by itself: `block` leaves parameters out. Standard errors: the jackknife over rows. Exact.
Cost: a forward per row, a backward per sample; a gradient of all parameters is held for each.
Source: Jacot, Gabriel and Hongler (2018), Neural Tangent Kernel; Cortes, Mohri and Rostamizadeh (2012), section 2;
Fort et al. (2020), Deep learning versus kernel learning (drift).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _at_weights
from backend.analyses._curving import blocks_of, names_of
from backend.analyses._units import answers, log_probs
from backend.analyses._work import BYTES, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines

MEASURES = ("effective_rank", "effective_rank_centred", "alignment", "alignment_first", "drift", "likeness")


class NtkParams(Params):
    """Which outputs, of which samples, by which parameters."""

    output: Literal["logit", "log-probability", "sum of logits"] = Field(
        "log-probability", description="f: the right answer's logit or log-probability, or the sum of all logits"
    )
    block: str = Field(
        "", max_length=200, json_schema_extra={"open_to_more": True},
        description="a layer, one parameter by its name, or all whose name contains this; empty: all",
    )  # fmt: skip
    first_step: int = Field(0, ge=-1, le=2**31 - 1, description="checkpoint that the drift is from; -1: no drift")
    rows_used: int = Field(16, ge=2, le=512, description="rows of the corpus, at most")
    positions: int = Field(4, ge=1, le=512, description="samples of each row, evenly over its predicted positions")
    shuffles: int = Field(200, ge=20, le=10_000, description="shuffles of the null")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null")

    def siblings(self, spec: str) -> tuple[tuple[str, int | None], ...]:
        """The run's own checkpoint that the drift is from."""
        return (
            ((spec.removeprefix("run:"), self.first_step),) if spec.startswith("run:") and self.first_step >= 0 else ()
        )


def _scalar(name: str, words: str) -> list[Value]:
    return [Value(name, f"{words} (the same in every row)"), Value(f"{name}_se", "its standard error over rows")]


@analysis(
    version=2, group="Spectra",
    title="NTK", asks="How does a step of learning on one token move the others, and does that change in training?",
    subject=Corpus, params=NtkParams, needs=["gradients"],
    axes=[Axis("rank", "eigenvalue of the kernel, 0 the largest")],
    values=[
        Value("eigenvalue", "eigenvalue of K"),
        Value("eigenvalue_centred", "of the centred kernel"),
        Value("eigenvalue_first", "of the kernel at first_step; NULL where there is none"),
        *_scalar("effective_rank", "(tr K)^2 / tr K^2"),
        *_scalar("effective_rank_centred", "the same of the centred kernel"),
        *_scalar("alignment", "centred alignment of K with equal right answers, -1 to 1"),
        Value("alignment_null", "the same with right answers shuffled, mean"),
        Value("alignment_null_sd", "its standard deviation over shuffles"),
        Value("p", "share of shuffles that align as well"),
        *_scalar("alignment_first", "alignment of the kernel at first_step; NULL where there is none"),
        Value("alignment_first_null", "that kernel's with right answers shuffled, mean"),
        *_scalar("drift", "|K - K_0| / |K_0|; NULL where there is no first checkpoint"),
        *_scalar("likeness", "centred alignment of K and K_0, 0 to 1; NULL likewise"),
        Value("samples", "samples (the same in every row)", kind="int"),
    ],
)  # fmt: skip
def ntk(model: Model, subject: Rows, params: NtkParams, progress: Progress) -> pd.DataFrame:
    """Return one row per eigenvalue."""
    losses = _at_weights.Losses(model, _at_weights.used(subject, params.rows_used))
    now, right = kernel_of(losses, losses.own, params, progress, 0.0)
    siblings, first = params.siblings(model.card.spec), None
    if siblings:
        first, _ = kernel_of(losses, model.sibling(*siblings[0]), params, progress, 0.5)
    row_of = np.repeat(np.arange(len(losses.tokens)), len(right) // len(losses.tokens))
    columns = _measured(now, first, right, row_of) | _shuffled(now, right, params)
    columns["alignment_first_null"] = _shuffled(first, right, params)["alignment_null"] if siblings else np.nan
    table = pd.DataFrame({"rank": range(len(now)), **_spectra(now, first), **columns, "samples": len(now)})
    declared: Any = ntk
    return table[[c.name for c in (*declared.axes, *declared.values)]]


def _named(known: list[str], block: str) -> list[str]:
    """Return the parameters of a block that `names_of` knows, else those whose name contains it."""
    if block in blocks_of(known):
        return names_of(known, block)
    if names := [name for name in known if block in name]:
        return names
    raise BadInput(f"Parameters named {block!r}", f"there are {', '.join(known[:12])}", "Name one of them")


def kernel_of(
    losses: Any, at: dict[str, Any], params: NtkParams, progress: Progress, begin: float
) -> tuple[Any, np.ndarray]:
    """Return (K [sample, sample] in float64, the right answer of every sample) at these weights, row by row."""
    import torch

    from backend.maths import tangent_kernel

    names = _named(list(at), params.block)
    at = {name: tensor.detach().clone().requires_grad_(name in names) for name, tensor in at.items()}
    found, right = [], []
    for i, row in enumerate(losses.tokens):
        progress(begin + 0.5 * i / len(losses.tokens), f"Gradients of row {i} of {len(losses.tokens)}")
        values, told = outputs(losses.model, at, row[None], params)
        found.append(tangent_kernel.jacobian(values, [at[name] for name in names]))
        right.append(told)
    return tangent_kernel.kernel(torch.cat(found)).cpu(), np.concatenate(right)


def outputs(model: Model, at: dict[str, Any], row: Any, params: NtkParams) -> tuple[Any, np.ndarray]:
    """Return (f of the samples of a row [sample] with its graph, their right answers [sample])."""
    known = answers(model, row)
    assert known is not None  # Losses has looked
    logits = model.logits_at(at, row)[0, known[0]]
    chosen = np.unique(np.linspace(0, len(logits) - 1, min(params.positions, len(logits))).round().astype(int))
    logits, right = logits[chosen], known[1][0, chosen]
    if params.output == "sum of logits":
        return logits.sum(1), right.cpu().numpy()
    told = logits if params.output == "logit" else log_probs(logits)
    return told.gather(1, right[:, None])[:, 0], right.cpu().numpy()


def _same(right: np.ndarray) -> Any:
    import torch

    return torch.as_tensor((right[:, None] == right[None]).astype(float))


def _measures(now: Any, first: Any, same: Any) -> dict[str, float]:
    """Return the measures of a kernel [n, n], NaN where they need a first one."""
    from backend.maths import tangent_kernel as maths

    centred, none = maths.centred(now), first is None
    values = (
        maths.effective_rank(now), maths.effective_rank(centred) if centred.any() else np.nan,
        maths.alignment(now, same), np.nan if none else maths.alignment(first, same),
        np.nan if none else maths.drift(now, first), np.nan if none else maths.alignment(now, first),
    )  # fmt: skip
    return dict(zip(MEASURES, values, strict=True))


def _measured(now: Any, first: Any, right: np.ndarray, row_of: np.ndarray) -> dict[str, float]:
    """Return the measures and their jackknife errors over rows: each is taken again without the samples of a row."""
    whole, left_out = _measures(now, first, _same(right)), []
    for row in np.unique(row_of):
        kept = np.flatnonzero(row_of != row)
        less = first[kept][:, kept] if first is not None else None
        left_out.append(_measures(now[kept][:, kept], less, _same(right[kept])))
    errors = {}
    for name in MEASURES:
        spread = np.array([one[name] for one in left_out])
        errors[f"{name}_se"] = float(np.sqrt((len(spread) - 1) * spread.var())) if len(spread) > 1 else np.nan
    return whole | errors


def _shuffled(now: Any, right: np.ndarray, params: NtkParams) -> dict[str, float]:
    """Return the null of the alignment."""
    from backend.maths import tangent_kernel

    dice, own = np.random.default_rng(params.seed), tangent_kernel.alignment(now, _same(right))
    found = np.array([tangent_kernel.alignment(now, _same(dice.permutation(right))) for _ in range(params.shuffles)])
    return {"alignment_null": found.mean(), "alignment_null_sd": found.std(ddof=1),
            "p": (1 + (found >= own).sum()) / (1 + len(found)) if own == own else np.nan}  # fmt: skip


def _spectra(now: Any, first: Any) -> dict[str, Any]:
    import torch

    from backend.maths import tangent_kernel

    kernels = {"eigenvalue": now, "eigenvalue_centred": tangent_kernel.centred(now), "eigenvalue_first": first}
    return {name: np.nan if k is None else torch.linalg.eigvalsh(k).flip(0).clamp_min(0).numpy()
            for name, k in kernels.items()}  # fmt: skip


@ntk.costs
def work(card: ModelCard, subject: Corpus, params: NtkParams) -> Work:
    """A forward and the backwards of its samples per row, here and at the first checkpoint; all gradients are held."""
    plan, rows = Plan(card), min(params.rows_used, subject.rows)
    length, kernels = min(subject.length, card.n_ctx), 1 + len(params.siblings(card.spec))
    samples = rows * min(params.positions, max(1, length - 1))
    plan.call(1, length, kernels * rows, gradients=True)
    backwards = kernels * samples * 4 * card.n_params * length
    products = kernels * 2 * samples**2 * card.n_params + kernels * params.shuffles * 20 * samples**2
    held = samples * card.n_params * (2 * BYTES.get(card.dtype, 4) + 8)
    return plan.total(held, backwards + products, "Use fewer rows (rows_used) or positions, or a block of parameters")


# ---------------------------------------------------------------- figures


@ntk.figure("Spectrum of the kernel")
def spectrum(table: pd.DataFrame, view: View) -> Any:
    """Eigenvalues of the kernel, and of the one with its common mode taken out; grey: at the first checkpoint."""
    row, curves = table.iloc[0], []
    if table["eigenvalue_first"].notna().any():
        curves.append(_line("at the first checkpoint", table["eigenvalue_first"], NULL_GREY))
    curves.append(_line("here", table["eigenvalue"], CATEGORIES[0]))
    curves.append(_line("here, centred", table["eigenvalue_centred"], CATEGORIES[1]))
    said = (f"rank (of {int(row['samples'])} samples; effective rank {row['effective_rank']:.3g} ± "
            f"{row['effective_rank_se']:.1g}, centred {row['effective_rank_centred']:.3g})")  # fmt: skip
    figure = lines(curves, x_title=said, y_title="eigenvalue", log_x=True, height=380)
    return figure.update_yaxes(type="log", exponentformat="power", dtick=1)


def _line(name: str, values: pd.Series, colour: str) -> Line:
    kept = values[values > 1e-9 * values.max()]  # the others are rounding
    return Line(name, np.arange(1, len(kept) + 1), kept, colour=colour)


@ntk.figure("Alignment with the right answers, and likeness to the first kernel")
def alignment(table: pd.DataFrame, view: View) -> Any:
    """Alignment here and at the first checkpoint beside shuffled answers, and how alike the two kernels are."""
    row = table.iloc[0]
    shown = {"alignment": "alignment, here", "alignment_first": "alignment, first checkpoint", "likeness": "likeness"}
    known = [name for name in shown if pd.notna(row[name])]
    null = [row.get(f"{name}_null", np.nan) for name in known]
    hover = [f"{shown[name]}: {row[name]:.3g} ± {row[f'{name}_se']:.2g}" for name in known]
    drift = f"; drift {row['drift']:.3g} ± {row['drift_se']:.2g}" if pd.notna(row["drift"]) else ""
    return bars([shown[name] for name in known], [row[name] for name in known], null=null, hover=hover,
                errors=[row[f"{name}_se"] for name in known],
                x_title=f"null {row['alignment_null']:.3g} ± {row['alignment_null_sd']:.2g}, p = {row['p']:.2g}{drift}",
                y_title="centred alignment", names_of=("measured", "answers shuffled"))  # fmt: skip
