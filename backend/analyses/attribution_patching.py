"""Which components would matter if patched, by gradients, and what does exact patching say of the first of them?

The approximate effect of a component (a head's z, an attn_out, an mlp_out, all positions) on logit_diff is
sum (source - base) * mean_k d logit_diff / d value: base is the run patched into, source the other prompt's.
`layer path`: K = `steps` midpoints (k + 1/2) / K between base and source, all heads of the layer moving together, so
that a layer costs K runs; the scores of its heads sum to the exact effect of the layer's z as K grows, a single head's
need not be its own. `own path`: only that head moves, so that as K grows the score is its exact effect (completeness),
for K runs per head: dearer than patching it. Where attention switches within less than 1 / K of the path, it can miss
or overcount the switch: compare with `exact` and raise `steps`.
`one step`: the gradient at base alone. **One step saturates**: where attention is decided either way its gradient
vanishes; on a palindrome classifier it read 1.32 where the exact effect is 10.72.

`exact` patches the `exact_top` components of largest |approximate| score, and as a control `exact_others` drawn at
random from the rest, in which a miss would show; intervals are 95 % bootstraps over the pairs. `rank_correlation` is
Spearman's of approximate against exact over the components checked: with a choice by score it speaks of those only.
Cost: layer path K forwards with gradients per (layer, point); own path K per component; one step one; exact one forward
per component checked; all times pairs, batched.
Source: Nanda (2023), Attribution Patching; Kramar et al. (2024), AtP*; Hanna et al. (2024), Have Faith in Faithfulness
(integrated gradients); Sundararajan et al. (2017), Axiomatic Attribution for Deep Networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _checking
from backend.analyses._causal import Batch, Place, batches, copies, patched_sweep
from backend.analyses._effects import component_map, component_names, records
from backend.analyses._work import Plan
from backend.analyses.ablation import KINDS, components
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work

SATURATES = "One step saturates: trust the exact values"  # it read 1.3 where the exact effect was 10.7


class AttributionPatchingParams(Params):
    """How effects are approximated, and how many are checked exactly."""

    method: Literal["layer path", "own path", "one step"] = Field(
        "layer path", description="integrated gradients, a layer's heads together or each alone; or one gradient step, "
        "which saturates"
    )
    steps: int = Field(5, ge=1, le=50, description="midpoints of integrated gradients; one step ignores it")
    direction: Literal["denoising", "noising"] = Field(
        "denoising", description="denoising: clean values into the corrupted run; noising: corrupted into the clean run"
    )
    exact_top: int = Field(8, ge=0, le=512, description="components with the largest |score| that are patched exactly")
    exact_others: int = Field(4, ge=0, le=512, description="components of the rest, at random, patched exactly as well")
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the bootstrap and of the random components")


@analysis(
    version=1, group="Causal", title="Attribution patching",
    asks="Which components would matter if patched, by gradients, and what does exact patching say of them?",
    subject=Pairs, params=AttributionPatchingParams, needs=["gradients"],
    axes=[Axis("component", "head, mlp or attn (a whole attention layer)", kind="str"),
          Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based; -1: the whole layer")],
    values=[
        *_checking.values("approx", "approximate change of logit_diff if patched, mean over pairs",
                          "exact change of logit_diff when patched", "components"),
        Value("n", "pairs of prompts", kind="int"),
    ],
)  # fmt: skip
def attribution_patching(model: Model, subject: Pairs, params: AttributionPatchingParams,
                         progress: Progress) -> pd.DataFrame:  # fmt: skip
    """Return one row per component."""
    places = components(model)
    approx = approximate(model, subject, places, params, lambda f: progress(0.7 * f, "Gradients"))
    exact = lambda chosen: exact_changes(model, subject, [places[i] for i in chosen], params.direction,  # noqa: E731
                                         lambda f: progress(0.7 + 0.3 * f, "Exact patching"))  # fmt: skip
    found = _checking.compared("approx", approx, exact, params.exact_top, params.exact_others, params.draws,
                               params.seed)  # fmt: skip
    kinds = {point: kind for kind, point in KINDS.items()}
    return pd.DataFrame({
        "component": [kinds[p.point] for p in places], "layer": [p.layer for p in places],
        "head": [p.head for p in places], **found, "n": approx.shape[1],
    })  # fmt: skip


def exact_changes(model: Model, subject: Pairs, places: list[Place], direction: str,
                  said: Callable[[float], None]) -> np.ndarray:  # fmt: skip
    """Return the change of logit_diff [place, pair] when each place is patched."""
    out, groups = np.empty((len(places), len(subject.pairs))), batches(model, subject)
    for i, batch in enumerate(groups):
        unpatched = batch.logit_diff(model.run_with(batch.sides(direction)[0], {}, last=True)).cpu().numpy()
        out[:, batch.which] = patched_sweep(model, batch, places, direction) - unpatched
        said((i + 1) / len(groups))
    return out


# ---------------------------------------------------------------- approximate effects


def approximate(model: Model, subject: Pairs, places: list[Place], params: AttributionPatchingParams,
                said: Callable[[float], None]) -> np.ndarray:  # fmt: skip
    """Return the approximate change of logit_diff [place, pair]."""
    out, groups = np.empty((len(places), len(subject.pairs))), batches(model, subject, gradients=True)
    for i, batch in enumerate(groups):
        part = lambda f, i=i: said((i + f) / len(groups))  # noqa: E731
        if params.method == "one step":
            found = one_step(model, batch, places, params.direction)
        else:
            alone = params.method == "own path"
            found = integrated(model, batch, places, params.direction, params.steps, alone, part)
        out[:, batch.which] = found
        part(1.0)
    return out


def _differences(model: Model, batch: Batch, places: list[Place], direction: str) -> dict[tuple[str, int], Any]:
    """Return source minus base of every point, [pair, pos, ...]."""
    base, source = batch.sides(direction)
    points, layers = list({p.point for p in places}), sorted({p.layer for p in places})
    ours, theirs = (model.capture(tokens, points, layers) for tokens in (base, source))
    return {key: theirs[key] - ours[key] for key in ours}


def one_step(model: Model, batch: Batch, places: list[Place], direction: str) -> np.ndarray:
    """Return the first-order change of logit_diff [place, pair]: one forward and backward for all places."""
    moved = _differences(model, batch, places, direction)
    _, _, slopes = model.gradients(batch.sides(direction)[0], batch.logit_diff, list(moved), last=True)
    return np.stack([_share(moved[p.point, p.layer] * slopes[p.point, p.layer], p) for p in places])


def integrated(model: Model, batch: Batch, places: list[Place], direction: str, steps: int, alone: bool,
               said: Callable[[float], None]) -> np.ndarray:  # fmt: skip
    """Return the integrated change of logit_diff [place, pair], midpoint rule; `alone`: one head moves at a time."""
    moved = _differences(model, batch, places, direction)
    out = np.zeros((len(places), len(batch.which)))
    for done, (point, layer) in enumerate(moved):
        mine = [i for i, p in enumerate(places) if (p.point, p.layer) == (point, layer)]
        if alone:
            for i in mine:
                out[i] = _path(model, batch, direction, places[i], [places[i]], moved[point, layer], steps)[0]
        else:
            together = [places[i] for i in mine]
            out[mine] = _path(model, batch, direction, Place(point, layer), together, moved[point, layer], steps)
        said((done + 1) / len(moved))
    return out


def _path(model: Model, batch: Batch, direction: str, walker: Place, places: list[Place], moved: Any,
          steps: int) -> np.ndarray:  # fmt: skip
    """Move `walker` from base to source, a midpoint per copy of the batch, and return what each place gathers."""
    from backend.maths.patching import midpoints

    tokens, n, key = batch.sides(direction)[0], len(batch.which), (walker.point, walker.layer)
    out = np.zeros((len(places), n))
    for _, some in copies(model, batch, midpoints(steps), gradients=True):

        def along(tensor: Any, some: Any = some) -> Any:
            for i, t in enumerate(some):
                tensor[i * n : i * n + n][walker.at] += t * moved[walker.at]
            return tensor

        _, _, slopes = model.gradients(tokens.repeat(len(some), 1), batch.logit_diff, [key], {key: along}, last=True)
        slope = slopes[key].reshape(len(some), n, *moved.shape[1:]).sum(0) / steps
        out += np.stack([_share(moved * slope, place) for place in places])
    return out


def _share(product: Any, place: Place) -> np.ndarray:
    """Sum a product [pair, pos, ...] over the place: [pair]."""
    return product[place.at].flatten(1).double().sum(1).cpu().numpy()


@attribution_patching.costs
def work(card: ModelCard, subject: Pairs, params: AttributionPatchingParams) -> Work:
    """The gradients of the method, and a row per component that is patched exactly and pair.

    Which ones these are is not known before: they count as lying in the first layers, from which most is computed;
    in many layers they would be more calls, each a smaller share of the model.
    """
    plan = Plan(card)
    places, held = components(plan), 0
    walkers = len(places) if params.method == "own path" else len({(p.point, p.layer) for p in places})
    for n, length in plan.batches(subject, gradients=True):
        plan.call(n, length, 2)
        held = max(held, 3 * plan.bytes(n * length, {p.point for p in places}))
        if params.method == "one step":
            plan.call(n, length, gradients=True, last=True)
        else:
            plan.sweep(n, length, params.steps, gradients=True, n=walkers)
    most = _checking.checked_at_most(len(places), params.exact_top, params.exact_others)
    checked = sorted(places, key=lambda p: p.layer)[:most]
    for n, length in plan.batches(subject) if checked else []:
        plan.call(n, length)
        plan.call(n, length, last=True)
        held = max(held, plan.places(n, length, checked) + plan.bytes(n * length, {p.point for p in checked}))
    return plan.total(held + 16 * len(places) * len(subject.pairs))


# ---------------------------------------------------------------- figures


def _words(table: pd.DataFrame) -> list[str]:
    rank = table["approx"].abs().rank(ascending=False, method="min").astype(int)
    return [f"{name}: approximate {r.approx:.3g} ({r.approx_low:.3g} to {r.approx_high:.3g})<br>{_checking.told(r)}"
            f"<br>rank {k} of {len(table)}"
            for name, r, k in zip(component_names(table), records(table), rank, strict=True)]  # fmt: skip


def _warning(view: View) -> str:
    return SATURATES if view.params.get("method") == "one step" else ""


@attribution_patching.figure("Approximate against exact")
def check(table: pd.DataFrame, view: View) -> Any:
    """The components patched exactly, with intervals; grey: those drawn at random. On the dotted line both agree."""
    return _checking.picture(table, "approx", component_names(table), _words(table), x="approximate change",
                             y="exact change", what="components", title=_warning(view))  # fmt: skip


@attribution_patching.figure("Map of approximate effects")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head, MLP and attention layer, diverging around 0; the exact value stands in the cell where known."""
    said = ["" if np.isnan(r.exact) else f"{round(r.exact, 1) + 0.0:.1f}" for r in records(table)]
    return component_map(table, "approx", "approximate change (logits)", _words(table), text=said,
                         x_title="component (in the cell: exact, where known)", title=_warning(view))  # fmt: skip
