"""How much do interventions change the answer, over a set of prompts?

For every pair: logit_diff = logit(answer) - logit(distractor) at the last token of the clean prompt, as it is and with
the list of interventions; the effect is after minus before. `mean` over pairs: its interval is 95 %, percentile
bootstrap over pairs (1,000 draws); effect_size = mean effect / standard deviation of it over pairs (Cohen's d of paired
values). The control is the same list at other heads or neurons of the same layers, and with as long a step in a random
direction in place of each that is added, drawn `controls` times; NULL where the list names none of these.

Exact for each pair. `patch` takes its values from the corrupted prompt, `resample` from another pair's clean prompt of
the same length (a random cycle of its seed; the corrupted partner where there is no other).
Over the checkpoints of a run: --step all. Cost: 2 + controls forwards per length of prompt, and
one more per edited one and `patch` or `resample`. `mean` and `resample` are over the prompts of a length: a prompt that
is alone in its length is refused with them, unless all are.
Source: Wang et al. (2022), Interpretability in the Wild, section 3 (knock-outs); Efron (1979) for the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _intervening as intervening
from backend.analyses._work import Plan
from backend.contract import Axis, Described, Model, ModelCard, Pairs, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, bars
from backend.maths import interventions as language

DRAWS = 1000


class InterventionEffectParams(intervening.InterventionParams):
    """The list, and its control."""

    controls: int = Field(8, ge=0, le=64, description="draws of other heads or neurons of the same layers, and of "
                          "random directions in place of those added")  # fmt: skip
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the control and of the bootstrap")


@analysis(
    version=2, group="Causal", title="Effect of interventions",
    asks="How much do interventions change the answer, over a set of prompts?",
    subject=Pairs, params=InterventionEffectParams, needs=["next_token"],
    axes=[Axis("pair", "which pair, 0-based; -1: the mean over pairs")],
    values=[Value("before", "logit_diff of the clean prompt as it is", "logits"),
            Value("after", "logit_diff with the interventions", "logits"),
            Value("effect", "after minus before", "logits"),
            Value("effect_low", "lower end of its 95 % interval; the mean's alone", "logits"),
            Value("effect_high", "upper end; the mean's alone", "logits"),
            Value("effect_size", "mean effect over its standard deviation; the mean's alone"),
            Value("control", "effect of the list at other heads, neurons or along random directions, mean of its draws",
                  "logits")],
)  # fmt: skip
def intervention_effect(
    model: Model, subject: Pairs, params: InterventionEffectParams, progress: Progress
) -> pd.DataFrame:
    """Return a row per pair and one for their mean."""
    _check_lengths(subject, params.edits)
    known: dict[str, Any] = {}
    before = logit_diffs(model, subject, "", known)
    progress(0.2, "With interventions")
    after = logit_diffs(model, subject, params.edits, known)
    control = _control(model, subject, params, before, known, progress)
    table = pd.DataFrame({"pair": range(len(before)), "before": before, "after": after, "effect": after - before,
                          "control": control})  # fmt: skip
    both = pd.concat([_mean(table, params.seed), table], ignore_index=True)
    return both[[c.name for c in intervention_effect.scalars]]


def _check_lengths(subject: Pairs, edits: str) -> None:
    """Refuse what would be a mean over prompts here and over positions there, or another prompt's value and no other's.

    Raises BadInput where one prompt is alone in its length and others are not.
    """
    ops = sorted({one.op for one in language.parse(edits)} & {"mean", "resample"})
    counts = {length: len(which) for length, which in subject.by_length().items()}
    alone = [length for length, n in counts.items() if n == 1]
    if ops and alone and len(alone) < len(counts):
        found = f"only one prompt has {alone[0]} tokens: positions would stand in for the prompts that others have"
        raise BadInput(f"`{ops[0]}` over these pairs", found, "Use pairs of one length, or two of each")


def logit_diffs(model: Model, subject: Pairs, edits: str, known: dict[str, Any] | None = None) -> np.ndarray:
    """Return logit(answer) - logit(distractor) at the last token of every clean prompt [pair], edited."""
    import torch

    found = np.zeros(len(subject.pairs))
    for rows in subject.by_length().values():
        pairs = [subject.pairs[i] for i in rows]
        clean, corrupted = (torch.tensor([getattr(p, side) for p in pairs], device=model.card.device)
                            for side in ("clean", "corrupted"))  # fmt: skip
        last = intervening.run(model, clean, edits, corrupted, known)[:, -1].double()
        right, wrong = (last[torch.arange(len(pairs)), [getattr(p, side) for p in pairs]]
                        for side in ("answer", "distractor"))  # fmt: skip
        found[rows] = (right - wrong).cpu().numpy()
    return found


def _control(
    model: Model, subject: Pairs, params: InterventionEffectParams, before: np.ndarray, known: dict[str, Any],
    progress: Progress,
) -> Any:
    """Return the effect [pair] at places drawn among the others of the same layers, NaN where there are none."""
    dice = np.random.default_rng(params.seed)
    lists = [l for _ in range(params.controls) if (l := elsewhere(model, params.edits, dice))]
    effects = []
    for i, edits in enumerate(lists):
        progress(0.3 + 0.7 * i / len(lists), f"Control {i + 1} of {len(lists)}")
        effects.append(logit_diffs(model, subject, edits, known) - before)
    return np.mean(effects, 0) if effects else np.full(len(before), np.nan)


def elsewhere(model: Described, edits: str, dice: np.random.Generator) -> str:
    """Return the list with every head and neuron replaced by another of its layer that the list does not name, and
    every direction by a random one of the same length; '' where it names none of these, or no other is left."""
    found = language.parse(edits)
    moved = []
    for kind, count in (("head", model.card.n_heads), ("neuron", model.card.d_mlp)):
        for layer in sorted({one.layer for one in found if getattr(one, kind) is not None}):
            named = {getattr(one, kind) for one in found if one.layer == layer and getattr(one, kind) is not None}
            others = [i for i in range(count) if i not in named]
            if len(others) < len(named):
                return ""
            drawn = dice.permutation(others)[: len(named)]
            moved.append((kind, layer, dict(zip(sorted(named), map(int, drawn), strict=True))))
    steered = any(one.op == "add" for one in found)
    return "; ".join(str(_turned(_moved(one, moved), dice)) for one in found) if moved or steered else ""


def _turned(one: language.Intervention, dice: np.random.Generator) -> language.Intervention:
    """Return an `add` along a direction drawn at random, by the same amount; other interventions as they are."""
    if one.op != "add":
        return one
    plain = language.Intervention(one.op, one.point, one.layer, amount=one.amount, positions=one.positions)
    return replace(plain, random=int(dice.integers(2**31)))


def _moved(one: language.Intervention, moved: list[tuple[str, int, dict[int, int]]]) -> language.Intervention:
    for kind, layer, places in moved:
        if one.layer == layer and getattr(one, kind) is not None:
            at = places[getattr(one, kind)]
            return replace(one, head=at) if kind == "head" else replace(one, neuron=at)
    return one


def _mean(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    effect, n = table["effect"].to_numpy(), len(table)
    again = effect[np.random.default_rng(seed).integers(n, size=(DRAWS, n))].mean(1)
    low, high = np.quantile(again, [0.025, 0.975]) if n > 1 else (np.nan, np.nan)
    spread = effect.std(ddof=1) if n > 1 else 0.0
    mean = table.mean(numeric_only=True).to_dict() | {"pair": -1, "effect_low": low, "effect_high": high}
    return pd.DataFrame([{**mean, "effect_size": effect.mean() / spread if spread > 0 else np.nan}])


@intervention_effect.costs
def work(card: ModelCard, subject: Pairs, params: InterventionEffectParams, *made: Mapping[str, Any]) -> Work:
    """Pairs of a length at once: as they are, edited, and with each control's list; some lines read more each time."""
    plan, dice = Plan(card), np.random.default_rng(params.seed)
    lists = [params.edits, *(x for _ in range(params.controls) if (x := elsewhere(plan, params.edits, dice)))]
    intervening.plan_directions(plan, params.edits)
    reads, held = sum(one.op in ("patch", "resample") for one in language.parse(params.edits)), 0
    for length, which in subject.by_length().items():
        plan.call(len(which), length)
        for edits in lists:
            intervening.plan_runs(plan, edits, len(which), length)
        held = max(held, plan.bytes(len(which) * length, ["resid_pre"], layers=1 + reads))
    return plan.total(held + 8 * len(subject.pairs) * card.d_vocab_out)


@intervention_effect.figure("Logit difference, before and after")
def before_and_after(table: pd.DataFrame, view: View) -> Any:
    """Mean over pairs before, after, and with the control, with the interval of the effect."""
    mean = table[table["pair"] == -1].iloc[0]
    names, values = ["before", "after"], [mean["before"], mean["after"]]
    errors, colours = [0.0, (mean["effect_high"] - mean["effect_low"]) / 2], [CATEGORIES[0], CATEGORIES[1]]
    if np.isfinite(mean["control"]):
        names, values = [*names, "control: elsewhere or random"], [*values, mean["before"] + mean["control"]]
        errors, colours = [*errors, 0.0], [*colours, NULL_GREY]
    return bars(names, values, errors=np.nan_to_num(errors), colours=colours, x_title="clean prompts",
                y_title="logit_diff (error: 95 %)")  # fmt: skip
