"""EXP-008: which functions does training find first, and has it left the linear regime?

The empirical neural tangent kernel on the noised solutions of every level: K_ij = <d f_i / d w, d f_j / d w> over all
parameters w, for the energy f = E, and for the gradient field f = v.dE/dy, averaged over `probes` orthonormal
directions v (as many as y has entries: exactly the trace kernel / d). By level, 0 the sharpest: spectrum; effective
rank (tr K)^2 / tr K^2, raw and with the mean function taken out; centred alignment with the targets' kernel t t' with
its jackknife error over points; drift |K - K_0| / |K_0| and alignment with K_0, the kernel of the run's checkpoint
`first_step` (absent by default: not every run keeps its step 0).

Targets: for the field the noise that it is trained to be, for the energy that of an ideal one, |noise|^2 up to a
factor; beside them the solutions. Null: targets shuffled over points (95 % quantile). Trivial baseline: the plain inner
products of the inputs [x, y_t], no network at all. Ground truth: linear model exact, arc-cosine kernel of wide nets
(tests of maths/tangent_kernel.py). The energy's raw kernel is near rank 1, since energies are positive: centre it.
Exact for the energy; the field's is unbiased over v. Cost: a backward of all points per level and direction, twice
where a first checkpoint is named.
Source: Jacot, Gabriel and Hongler (2018), Neural Tangent Kernel; Cortes, Mohri and Rostamizadeh (2012), Algorithms for
learning kernels based on centered alignment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _energy
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
from backend.figures import NULL_GREY, Line, lines, logarithmic, marked

KERNELS = ("energy", "field")
FEWEST = 20  # points of which a tenth is twice the effective rank of one mode
NOT_ASKED = "not asked: set first step to 0 on a run that keeps it"


class KernelParams(Params):
    """How many points, directions and shuffles, and what the drift is from."""

    points: int = Field(48, ge=4, le=512, description="problems that the kernel stands on; those asked at most")
    probes: int = Field(32, ge=1, le=1024, description="directions of the gradient field; exact from d_y on")
    shuffles: int = Field(200, ge=20, le=2000, description="shuffles of the targets, the null")
    first_step: int = Field(
        -1, ge=-1, le=2**31 - 1, description="checkpoint of the run that the drift is from; -1: no drift"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of directions and shuffles")

    def siblings(self, spec: str) -> tuple[tuple[str, int | None], ...]:
        """The run's own checkpoint that the drift is from."""
        asked = spec.startswith("run:") and self.first_step >= 0
        return ((spec.removeprefix("run:"), self.first_step),) if asked else ()


@analysis(
    version=1, group="Energy landscapes",
    title="EXP-008 Tangent kernel",
    asks="Which functions does training find first, and did it leave the linear regime?",
    subject=Problems, params=KernelParams,
    axes=[_energy.LEVEL, Axis("kernel", "energy, or field: its gradient by y", kind="str")],
    values=[
        Value("effective_rank", "(tr K)^2 / tr K^2", "dimensions"),
        Value("centred_rank", "the same with the mean function taken out", "dimensions"),
        Value("alignment", "centred alignment with the targets, 0 to 1"),
        Value("alignment_se", "its jackknife standard error over points"),
        Value("alignment_null", "mean over shuffled targets"),
        Value("alignment_null_high", "95 % quantile over shuffled targets"),
        Value("input_alignment", "alignment of the inputs' inner products with the targets"),
        Value("solution_alignment", "centred alignment with the solutions"),
        Value("solution_null_high", "its 95 % quantile over shuffled solutions"),
        Value("drift", "|K - K_0| / |K_0| from the checkpoint first_step; absent where it is -1"),
        Value("kept", "centred alignment of K with K_0"),
        Value("points", "points that the kernel stands on", kind="int"),
        Value("spectrum", "eigenvalues of K over its trace, largest first", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def exp008_kernel(model: Energies, problems: Matrices, params: KernelParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (level, kernel)."""
    n, levels = min(params.points, len(problems.y)), model.schedule.levels
    if n < 4:
        raise BadInput("A kernel", f"{n} problems", "Use 4 or more: it compares them with each other")
    first, rows = _first(model, params), []
    for k in range(levels):
        y = _energy.noised(model, problems, k)[:n]
        now, then = (net and kernels(net, problems.x[:n], y, model.level(k, n), params) for net in (model.net, first))
        for name in KERNELS:
            rows.append({"level": k, "kernel": name, **_row(now[name], then and then[name], name, problems, y, params)})
        progress((k + 1) / levels, f"level {k}")
    return pd.DataFrame(rows)


@exp008_kernel.costs
def work(card: ModelCard, subject: Problems, params: KernelParams) -> Work:
    """A forward and a backward of values and their derivatives per direction; twice with a first checkpoint."""
    told = card.energy
    n, levels, probes = min(params.points, subject.n), int(told["levels"]), min(params.probes, int(told["d_y"]))
    twice = 1 + len(params.siblings(card.spec))
    products = 5.0 * 2 * n * n * 10 * int(told["width"]) * (1 + 4 * probes)
    aligned = 2.0 * n * n * int(told["d_y"]) * 4 * (params.shuffles + n)
    return _energy.work(card, gradients=twice * levels * n * (1 + 2 * probes), at_once=n, held_numbers=40.0 * n * (
        int(told["width"]) + n), operations=levels * (twice * products + aligned))  # fmt: skip


def _first(model: Energies, params: KernelParams) -> Any:
    """Return the net that the drift is from, None where none is asked. NotFound: it is not kept."""
    if params.first_step < 0:
        return None
    siblings = params.siblings(model.card.spec)
    if not siblings:
        asked, found = f"The drift from step {params.first_step}", f"{model.card.spec} is no run: it has no other steps"
        raise BadInput(asked, found, "Set first step to -1, or choose a run")
    return model.sibling(*siblings[0])


def kernels(net: Any, x: Any, y: Any, level: Any, params: KernelParams) -> dict[str, Any]:
    """Return the tangent kernels [n, n] in float64 of the energy and of its gradient field."""
    from backend.maths import tangent_kernel

    d = y.shape[1]
    energy = tangent_kernel.of_layers(net.layer_gradients(x, y, level))
    probes = _directions(d, min(params.probes, d), params.seed).to(y)
    field = sum(tangent_kernel.of_layers(net.layer_gradients(x, y, level, v)) for v in probes)
    return {"energy": energy, "field": field / len(probes)}  # type: ignore[operator]


def _directions(d: int, m: int, seed: int) -> Any:
    """Return m orthonormal directions [m, d]."""
    import torch

    drawn = torch.randn(d, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.mT


def _row(now: Any, then: Any, name: str, problems: Matrices, y: Any, params: KernelParams) -> dict[str, Any]:
    """Return what the table says of one kernel."""
    import torch

    from backend.maths import tangent_kernel as maths

    n = len(y)
    noise, solution = problems.noise[:n].double(), problems.y[:n].double()
    target = noise if name == "field" else noise.square().sum(1, keepdim=True)
    inputs = torch.cat([problems.x[:n], y], 1).double()
    null = shuffled(now, target, params)
    values = torch.linalg.eigvalsh(now).flip(0) / now.trace()
    return {
        "effective_rank": maths.effective_rank(now), "centred_rank": maths.effective_rank(maths.centred(now)),
        "alignment": maths.alignment(now, maths.kernel(target)), "alignment_se": jackknife(now, target),
        "alignment_null": float(null.mean()), "alignment_null_high": float(np.quantile(null, 0.95)),
        "input_alignment": maths.alignment(maths.kernel(inputs), maths.kernel(target)),
        "solution_alignment": maths.alignment(now, maths.kernel(solution)),
        "solution_null_high": float(np.quantile(shuffled(now, solution, params), 0.95)),
        "drift": float("nan") if then is None else maths.drift(now, then),
        "kept": float("nan") if then is None else maths.alignment(now, then),
        "points": n, "spectrum": values.float().cpu().numpy(),
    }  # fmt: skip


def shuffled(kernel: Any, target: Any, params: KernelParams) -> np.ndarray:
    """Return the alignments of a kernel with targets [n, o] given to other points, one per shuffle."""
    import torch

    from backend.maths import tangent_kernel as maths

    dice = torch.Generator().manual_seed(params.seed + 1)
    orders = [torch.randperm(len(target), generator=dice).to(target.device) for _ in range(params.shuffles)]
    return np.array([maths.alignment(kernel, maths.kernel(target[order])) for order in orders])


def jackknife(kernel: Any, target: Any) -> float:
    """Return the standard error of the alignment over points, by leaving each out."""
    import torch

    from backend.maths import tangent_kernel as maths

    n, found = len(kernel), []
    for i in range(n):
        kept = torch.arange(n, device=kernel.device) != i
        found.append(maths.alignment(kernel[kept][:, kept], maths.kernel(target[kept])))
    return float(np.std(found) * (n - 1) ** 0.5)


# ---------------------------------------------------------------- what it says of what was expected


@exp008_kernel.judges
def judge(table: pd.DataFrame, view: View) -> list[Claim]:
    """Is the kernel aligned with what is asked, does it tell points apart, has it moved?"""
    per = {name: table[table.kernel == name].sort_values("level") for name in KERNELS}
    aligned = [_aligned(per["field"], "gradient field"), _aligned(per["energy"], "energy")]
    return [*aligned, _rank(per), _drift(per["field"])]


def _aligned(rows: pd.DataFrame, called: str) -> Claim:
    mean = rows.mean(numeric_only=True)
    above = mean.alignment > mean.alignment_null_high
    more = mean.alignment > mean.input_alignment + 2 * mean.alignment_se
    return Claim(f"the tangent kernel of the {called} is aligned with what training asks (mean over levels)",
                 f"shuffled targets {mean.alignment_null:.2f}, 95 % below {mean.alignment_null_high:.2f}; the inputs' "
                 f"inner products {mean.input_alignment:.2f}",
                 f"{mean.alignment:.2f}, standard error {mean.alignment_se:.2f}",
                 "holds" if above and more else "met by its null" if above else "fails")  # fmt: skip


def _rank(per: dict[str, pd.DataFrame]) -> Claim:
    energy, field = (per[name].mean(numeric_only=True) for name in KERNELS)
    n = int(energy.points)
    apart = "holds" if energy.effective_rank > 0.1 * n else "fails"
    verdict: Any = "cannot be tested here" if n < FEWEST else apart  # a tenth of few is about the null
    return Claim("the energy's kernel tells problems apart (effective rank over a tenth of the points)",
                 f"1 is one mode: all energies rise together; {FEWEST} points or more tell a tenth of them from it",
                 f"energy {energy.effective_rank:.1f}, centred {energy.centred_rank:.1f}; field "
                 f"{field.effective_rank:.1f} of {n} points",
                 verdict)  # fmt: skip


def _drift(rows: pd.DataFrame) -> Claim:
    criterion = "training leaves the linear regime: the kernel of the field moves by more than itself"
    if rows.drift.isna().any():
        return Claim(criterion, "0 at the first step", NOT_ASKED, "cannot be tested here")
    drift, kept = rows.drift.mean(), rows.kept.mean()
    return Claim(criterion, "0 at the first step; rescaling alone would keep an alignment of 1 with the first kernel",
                 f"|K - K_0| / |K_0| = {drift:.3g}, alignment with the first {kept:.2f}",
                 "fails" if not drift > 1 else "holds" if kept < 0.95 else "met by its null")  # fmt: skip


# ---------------------------------------------------------------- figures

LEVELS = "annealing level (0 sharpest)"


@exp008_kernel.figure("Alignment with what training asks", marks=["level"])
def alignment(table: pd.DataFrame, view: View) -> Any:
    """With twice its jackknife error; grey: 95 % of shuffled targets lie below."""
    curves = []
    for name in KERNELS:
        rows = table[table.kernel == name].sort_values("level")
        half = 2 * rows.alignment_se
        curves += [Line(f"{name}'s kernel", rows.level, rows.alignment, rows.alignment - half, rows.alignment + half),
                   Line(f"{name}: inputs' inner products", rows.level, rows.input_alignment),
                   Line(f"{name}: shuffled targets, 95 %", rows.level, rows.alignment_null_high,
                        colour=NULL_GREY)]  # fmt: skip
    figure = lines(curves, x_title=LEVELS, y_title="centred alignment", height=400)
    return marked(figure, view.chosen).update_yaxes(range=[0, 1.02])


@exp008_kernel.figure("Alignment with the solutions", marks=["level"])
def solutions(table: pd.DataFrame, view: View) -> Any:
    """Does the kernel group problems by their solutions?"""
    curves = []
    for name in KERNELS:
        rows = table[table.kernel == name].sort_values("level")
        curves += [Line(f"{name}'s kernel", rows.level, rows.solution_alignment),
                   Line(f"{name}: shuffled, 95 %", rows.level, rows.solution_null_high, colour=NULL_GREY)]  # fmt: skip
    figure = lines(curves, x_title=LEVELS, y_title="centred alignment")
    return marked(figure, view.chosen).update_yaxes(range=[0, 1.02])


@exp008_kernel.figure("Effective rank", marks=["level"])
def rank(table: pd.DataFrame, view: View) -> Any:
    """Of as many points as the kernel stands on; the energy's raw kernel is near one mode."""
    curves = []
    for name in KERNELS:
        rows = table[table.kernel == name].sort_values("level")
        curves += [Line(f"{name}", rows.level, rows.effective_rank),
                   Line(f"{name}, centred", rows.level, rows.centred_rank)]  # fmt: skip
    return marked(lines(curves, x_title=LEVELS, y_title="effective rank (dimensions)"), view.chosen)


@exp008_kernel.figure("Spectrum of one level", choose=["level"])
def spectrum(table: pd.DataFrame, view: View) -> Any:
    """Eigenvalues over the trace, largest first."""
    k = int(view.chosen.get("level", table.level.min()))
    curves = []
    for _, row in table[table.level == k].iterrows():
        values = np.maximum(np.asarray(row.spectrum, float), 1e-12)
        curves.append(Line(str(row.kernel), np.arange(1, len(values) + 1), values))
    return logarithmic(lines(curves, x_title="rank, largest first", y_title="eigenvalue / trace"))


@exp008_kernel.figure("How far the kernel moved from the first step", marks=["level"])
def drift(table: pd.DataFrame, view: View) -> Any:
    """Absent unless first step names a checkpoint that the run keeps."""
    curves = []
    for name in KERNELS:
        rows = table[table.kernel == name].sort_values("level")
        curves.append(Line(f"{name}: |K - K_0| / |K_0|", rows.level, rows.drift))
        curves.append(Line(f"{name}: alignment with K_0", rows.level, rows.kept))
    figure = marked(lines(curves, x_title=LEVELS, y_title="drift, alignment"), view.chosen)
    if table.drift.isna().all():
        return figure.add_annotation(text=NOT_ASKED.capitalize(), showarrow=False, x=0.5, y=0.5,
                                     xref="paper", yref="paper")  # fmt: skip
    return logarithmic(figure)
