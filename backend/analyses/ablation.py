"""How much does the answer lose when a head, an MLP or an attention layer is taken out?

On the clean prompts of the pairs each component is ablated on its own, at all positions: `zero` puts 0 in its place,
`mean` its mean over the clean prompts of the same length, position by position, `resample` its value on another of
these prompts (a random cyclic exchange, `resamples` times, averaged per prompt). A head is its output z, an MLP
mlp_out, an attention layer attn_out (b_O goes with it, a head leaves b_O).
`change` = logit_diff ablated - logit_diff intact, mean over prompts: negative where the component helps the answer.

Exact for the weights as they are: no norm is folded and nothing is centred, on which zero-ablation depends and
mean-ablation does not. A mean over n prompts holds 1 / n of each prompt itself. `low` and `high` are a 95 % bootstrap
over prompts. The control is the other components of the same kind: their mean change and range, in grey; a component
inside that range is nothing special. A component that others replace (self-repair) changes less than it does.
Cost: components x prompts rows in batches (times `resamples`), and one forward for the values.
Source: Wang et al. (2022), Interpretability in the Wild, section 2 (mean-ablation); Chan et al. (2022), Causal
Scrubbing (resampling).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._causal import Batch, Place, batches, sweep
from backend.analyses._effects import MOST_BARS, component_map, component_names, records, stands_out
from backend.analyses._work import Plan
from backend.contract import Axis, Described, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, bars

Tensors = dict[tuple[str, int], Any]
KINDS = {"head": "z", "mlp": "mlp_out", "attn": "attn_out"}


class AblationParams(Params):
    """What stands in the place of a component, and how intervals are drawn."""

    ablate: Literal["mean", "zero", "resample"] = Field(
        "mean", description="mean over the clean prompts per position, zero, or values of another prompt"
    )
    resamples: int = Field(4, ge=1, le=64, description="exchanges of prompts that resample is averaged over")
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the prompts")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the exchanges and of the bootstrap")


@analysis(
    version=1, group="Causal", title="Ablation", asks="How much does the answer lose when a component is taken out?",
    subject=Pairs, params=AblationParams,
    axes=[Axis("component", "head, mlp or attn (a whole attention layer)", kind="str"),
          Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based; -1: the whole layer")],
    values=[
        Value("change", "logit_diff ablated minus intact, mean over prompts", "logits"),
        Value("change_se", "bootstrap standard error over prompts; NULL for one prompt", "logits"),
        Value("low", "lower end of the 95 % bootstrap interval of change", "logits"),
        Value("high", "upper end of the 95 % bootstrap interval of change", "logits"),
        Value("ablated", "mean logit_diff with the component ablated", "logits"),
        Value("clean", "mean logit_diff of the intact model", "logits"),
        Value("others", "mean change of the other components of this kind; NULL where there is none", "logits"),
        Value("others_low", "smallest change among them", "logits"),
        Value("others_high", "largest change among them", "logits"),
        Value("n", "prompts", kind="int"),
    ],
)  # fmt: skip
def ablation(model: Model, subject: Pairs, params: AblationParams, progress: Progress) -> pd.DataFrame:
    """Return one row per component."""
    _check_others(subject, params.ablate)
    places, groups = components(model), batches(model, subject)
    intact, ablated = np.empty(len(subject.pairs)), np.zeros((len(places), len(subject.pairs)))
    draws = params.resamples if params.ablate == "resample" else 1
    means = _means(model, groups, places) if params.ablate == "mean" else {}
    for draw in range(draws):
        others = _exchange(subject, params.seed + draw)
        for i, batch in enumerate(groups):
            done = draw * len(groups) + i
            said = _said(progress, done / (draws * len(groups)), 1 / (draws * len(groups)), len(places))
            values = _values(model, subject, batch, places, params.ablate, means, others)
            ablated[:, batch.which] += sweep(model, batch, batch.clean, places, values, said) / draws
    for batch in groups:
        intact[batch.which] = batch.logit_diff(model.run_with(batch.clean, {}, last=True)).cpu().numpy()
    return _table(places, ablated, intact, params)


def components(model: Described) -> list[Place]:
    """Return every head, MLP and attention layer that the model has."""
    layers, heads = range(model.card.n_layers), range(model.card.n_heads)
    places = [Place("z", layer, head=head) for layer in layers for head in heads]
    mlps = layers if "mlp" in model.card.capabilities else []
    return [*places, *(Place("mlp_out", layer) for layer in mlps), *(Place("attn_out", layer) for layer in layers)]


def _check_others(subject: Pairs, ablate: str) -> None:
    alone = [length for length, which in subject.by_length().items() if len(which) < 2]
    if alone and ablate != "zero":
        found = f"only one prompt has {alone[0]} tokens, so there is no other to take values from"
        raise BadInput(f"Ablation by {ablate}", found, "Give at least two pairs of each length, or ablate by zero")


def _said(progress: Progress, before: float, share: float, places: int) -> Callable[[int], None]:
    return lambda done: progress(before + share * done / places, f"{done} of {places} components")


def _points(places: list[Place]) -> tuple[list[str], list[int]]:
    return list(dict.fromkeys(p.point for p in places)), sorted({p.layer for p in places})


def _means(model: Model, groups: list[Batch], places: list[Place]) -> dict[int, Tensors]:
    """Return {length: {(point, layer): mean over the clean prompts of that length, [pos, ...]}}."""
    total: dict[int, Tensors] = {}
    count: dict[int, int] = {}
    for batch in groups:
        length = batch.clean.shape[1]
        mine = total.setdefault(length, {})
        count[length] = count.get(length, 0) + len(batch.which)
        for key, tensor in model.capture(batch.clean, *_points(places)).items():
            mine[key] = mine.get(key, 0) + tensor.double().sum(0)
    return {length: {key: t / count[length] for key, t in mine.items()} for length, mine in total.items()}


def _exchange(subject: Pairs, seed: int) -> dict[int, int]:
    """Return {pair: another pair of the same length}: one random cycle per length, so none keeps its own value."""
    dice = np.random.default_rng(seed)
    others: dict[int, int] = {}
    for which in subject.by_length().values():
        order = dice.permutation(which)
        others.update(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return others


def _values(model: Model, subject: Pairs, batch: Batch, places: list[Place], ablate: str, means: dict[int, Tensors],
            others: dict[int, int]) -> Tensors:  # fmt: skip
    """Return what stands in the place of each point, [pair, pos, ...]."""
    import torch

    if ablate == "resample":
        tokens = torch.tensor([subject.pairs[others[i]].clean for i in batch.which], device=model.card.device)
        return model.capture(tokens, *_points(places))
    shapes = model.capture(batch.clean, *_points(places))
    if ablate == "zero":
        return {key: torch.zeros_like(t) for key, t in shapes.items()}
    return {key: means[t.shape[1]][key].to(t.dtype).expand_as(t) for key, t in shapes.items()}


def _table(places: list[Place], ablated: np.ndarray, intact: np.ndarray, params: AblationParams) -> pd.DataFrame:
    from backend.maths import patching

    found = patching.mean_estimate(ablated - intact, patching.draw_weights(len(intact), params.draws, params.seed))
    kinds = {point: kind for kind, point in KINDS.items()}
    frame = pd.DataFrame({
        "component": [kinds[p.point] for p in places], "layer": [p.layer for p in places],
        "head": [p.head for p in places], "change": found.value, "change_se": found.se, "low": found.low,
        "high": found.high, "ablated": ablated.mean(1), "clean": intact.mean(),
    })  # fmt: skip
    others = [_others(frame, i) for i in frame.index]
    return frame.assign(**dict(zip(("others", "others_low", "others_high"), zip(*others, strict=True), strict=True)),
                        n=len(intact))  # fmt: skip


def _others(frame: pd.DataFrame, i: int) -> tuple[float, float, float]:
    """Return mean, smallest and largest change of the other components of this kind; NaN where there is none."""
    change = frame["change"][(frame["component"] == frame["component"][i]) & (frame.index != i)]
    return float(change.mean()), float(change.min()), float(change.max())


@ablation.costs
def work(card: ModelCard, subject: Pairs, params: AblationParams) -> Work:
    """The values once per batch, then a row per component and prompt, all times the exchanges of prompts."""
    plan, held = Plan(card), 0
    places, draws = components(plan), params.resamples if params.ablate == "resample" else 1
    for n, length in plan.batches(subject):
        plan.call(n, length, last=True)
        plan.call(n, length, draws + (params.ablate == "mean"))
        streams = plan.places(n, length, places, n=draws)
        held = max(held, streams + 2 * plan.bytes(n * length, KINDS.values()))
    return plan.total(held + 8 * len(places) * (2 * len(subject.pairs) + 40))


# ---------------------------------------------------------------- figures


def _words(table: pd.DataFrame) -> list[str]:
    return [f"{name}: {r.change:+.3g} logits ({r.low:.3g} to {r.high:.3g})<br>logit_diff {r.ablated:.3g}, intact "
            f"{r.clean:.3g}<br>other {r.component}s: {r.others:.3g} ({r.others_low:.3g} to {r.others_high:.3g})"
            for name, r in zip(component_names(table), records(table), strict=True)]  # fmt: skip


@ablation.figure("Components that matter most")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The 24 largest changes with standard errors; behind each, in grey, the mean of the others of its kind."""
    best = table.loc[table["change"].abs().sort_values(ascending=False, kind="stable").index[:MOST_BARS]]
    sure = stands_out(best)
    kinds = [list(KINDS).index(k) for k in best["component"]]
    colours = [CATEGORIES[k] if s else NULL_GREY for k, s in zip(kinds, sure, strict=True)]
    title = f"component, {view.params.get('ablate', 'mean')}-ablated (narrow and grey: within 2 s.e. of 0)"
    figure = bars(component_names(best), best["change"], errors=best["change_se"], null=best["others"],
                colours=colours, hover=_words(best), x_title=title,
                y_title="change of logit_diff (logits; error: s.e.)")  # fmt: skip
    return figure.update_traces(name="mean of the others of its kind", selector={"name": "null"})


@ablation.figure("Map of all components")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head, MLP and attention layer, diverging around 0."""
    return component_map(table, "change", "change of logit_diff (logits)", _words(table), x_title="component")
