"""How much of the answer does each head carry, and does the cheap gradient estimate rank heads alike?

On the clean prompts of the pairs, metric logit_diff = logit(answer) - logit(distractor) at the last position:
`effect` = logit_diff of the intact model minus that with the head mean-ablated: its z replaced by the mean of z
(`mean_over` = position: over the clean prompts of the same length, position by position; all: over all positions of
all clean prompts). Positive: the head speaks for the answer. `effect_abs` is the mean over prompts of |effect|.
`gradient` = the first-order estimate, sum over positions and d_head of (z - mean z) * d logit_diff / d z, one backward
pass for all heads at once; `gradient_abs` the mean over prompts of its size. It is right only where the metric is
linear in z: softmaxes and norms saturate, and it can miss by a factor of ten. `rank_correlation` is Spearman's over
heads between effect_abs and gradient_abs, `rank_correlation_signed` between effect and gradient.
`control` = the effect of changing z by as much (the same norm at every position) in a random direction: what a push of
this size does whatever its direction. `low` and `high` are 95 % bootstrap intervals over prompts.

Exact but for the two `gradient` columns. Mean-ablation keeps what a head does on average over these prompts; where
another head steps in, an effect understates what the head did.
Cost: 2 forwards per head and prompt from its layer on, one backward; heads go in batches.
Source: Michel, Levy and Neubig (2019), Are Sixteen Heads Really Better than One?, section 2.2 and 4 (gradient proxy);
Wang et al. (2022), Interpretability in the Wild, section 2 (mean ablation).
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._causal import rows_at_once
from backend.analyses._scores import names, places
from backend.analyses._work import Plan, parts
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, bars, paired

MOST_BARS = 24


class HeadImportanceParams(Params):
    """What a head's mean is taken over, and the resampling."""

    mean_over: Literal["position", "all"] = Field(
        "position", description="replace z by its mean at the same position of prompts of the same length, or by one "
        "mean over all positions of all prompts")  # fmt: skip
    draws: int = Field(1000, ge=100, le=10_000, description="bootstrap resamples of the prompts")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random directions and of the resamples")


def _interval(name: str, words: str) -> list[Value]:
    return [Value(name, f"{words}, mean over prompts", "logits"),
            Value(f"{name}_low", f"lower end of the 95 % bootstrap interval of {name}", "logits"),
            Value(f"{name}_high", f"upper end of the 95 % bootstrap interval of {name}", "logits")]  # fmt: skip


@analysis(
    version=1, group="Attention", title="Head importance",
    asks="How much of the answer does each head carry, and does the cheap estimate rank heads alike?",
    subject=Pairs, params=HeadImportanceParams, needs=["gradients"],
    axes=[Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based")],
    values=[
        *_interval("effect", "logit_diff lost by mean-ablating the head (exact)"),
        *_interval("effect_abs", "size of effect prompt by prompt (exact)"),
        *_interval("gradient", "first-order estimate of effect"),
        *_interval("gradient_abs", "size of gradient prompt by prompt"),
        *_interval("control", "logit_diff lost by as large a push of z in a random direction"),
        Value("logit_diff", "logit_diff of the intact model on the clean prompts; the same in every row", "logits"),
        Value("n", "prompts", kind="int"),
        Value("rank_correlation", "Spearman's, of effect_abs with gradient_abs over heads; the same in every row"),
        Value("rank_correlation_low", "lower end of its 95 % bootstrap interval over prompts"),
        Value("rank_correlation_high", "upper end of its 95 % bootstrap interval over prompts"),
        Value("rank_correlation_signed", "Spearman's, of effect with gradient over heads; the same in every row"),
    ],
)  # fmt: skip
def head_importance(model: Model, subject: Pairs, params: HeadImportanceParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head)."""
    import torch

    groups = subject.by_length()
    _check_means(groups, params.mean_over)
    dice = torch.Generator().manual_seed(params.seed)
    rows: dict[str, list] = {}
    overall = _overall_means(model, subject) if params.mean_over == "all" else None
    done, every = 0, len(subject.pairs) * model.card.n_layers
    for chosen in groups.values():
        group = _Group(model, [subject.pairs[i] for i in chosen], overall, dice)
        for name, values in group.cheap().items():
            rows.setdefault(name, []).append(values)
        parts: dict[str, list] = {}
        for layer in range(model.card.n_layers):
            for name, values in group.exact(layer).items():
                parts.setdefault(name, []).append(values)
            done += len(chosen)
            progress(done / every, f"layer {layer + 1} of {model.card.n_layers}, {len(chosen)} prompts")
        for name, layers in parts.items():
            rows.setdefault(name, []).append(np.stack(layers, 1))
    return _table({name: np.concatenate(values) for name, values in rows.items()}, params)


def _check_means(groups: dict[int, list[int]], mean_over: str) -> None:
    """Refuse groups whose mean is the prompt itself: every effect would be 0 by construction."""
    alone = [length for length, chosen in groups.items() if len(chosen) < 2]
    if alone and (mean_over == "position" or len(groups) == 1):
        raise BadInput("Head importance", f"only one prompt has {alone[0]} tokens: its mean would be itself",
                       "Use more pairs, pairs of one length, or mean_over = all")  # fmt: skip


def _overall_means(model: Model, subject: Pairs) -> list[Any]:
    """Return per layer the mean of z over all positions of all clean prompts: [head, d_head]."""
    total, count = [0.0] * model.card.n_layers, 0
    for length, chosen in subject.by_length().items():
        z = _captured(model, _clean(model, [subject.pairs[i] for i in chosen]))
        total = [t + layer.sum((0, 1)) for t, layer in zip(total, z, strict=True)]
        count += length * len(chosen)
    return [t / count for t in total]


def _clean(model: Model, pairs: list[Any]) -> Any:
    import torch

    return torch.tensor([p.clean for p in pairs], dtype=torch.long, device=model.card.device)


def _captured(model: Model, tokens: Any) -> list[Any]:
    found = model.capture(tokens, ["z"])
    return [found["z", layer] for layer in range(model.card.n_layers)]


class _Group:
    """Clean prompts of one length with their metric, the heads' z and what replaces it."""

    def __init__(self, model: Model, pairs: list[Any], overall: list[Any] | None, dice: Any):
        import torch

        self.model, self.dice, self.tokens = model, dice, _clean(model, pairs)
        self.right, self.wrong = (torch.tensor([getattr(p, n) for p in pairs], device=self.tokens.device)
                                  for n in ("answer", "distractor"))  # fmt: skip
        length = self.tokens.shape[1]
        self.most, self.graphs = (rows_at_once(model, length, gradients) for gradients in (False, True))
        found = model.capture(self.tokens, ["z", "resid_pre"])
        self.z, self.resid = ([found[p, n] for n in range(model.card.n_layers)] for p in ("z", "resid_pre"))
        self.mean = overall or [z.mean(0) for z in self.z]
        everyone = torch.arange(len(pairs)).split(self.most)
        self.intact = torch.cat([self.metric(p)(model.run_with(self.tokens[p], {}, last=True)) for p in everyone])

    def metric(self, prompts: Any) -> Any:
        """Return the function from logits of these prompts to the logit_diff of each."""
        right, wrong = self.right[prompts], self.wrong[prompts]

        def logit_diff(logits: Any) -> Any:
            last = logits[:, -1]
            return last.gather(1, right[:, None])[:, 0] - last.gather(1, wrong[:, None])[:, 0]

        return logit_diff

    def cheap(self) -> dict[str, np.ndarray]:
        """Return the first-order estimates [prompt, layer, head] and the intact logit_diff [prompt]."""
        import torch

        points, found = [("z", layer) for layer in range(self.model.card.n_layers)], []
        for prompts in torch.arange(len(self.tokens)).split(self.graphs):
            _, z, grad = self.model.gradients(self.tokens[prompts], self.metric(prompts), points, last=True)
            found.append(torch.stack([((z[p] - self.mean[p[1]]) * grad[p]).sum((1, 3)) for p in points], 1))
        return {"gradient": torch.cat(found).double().cpu().numpy(),
                "logit_diff": self.intact.double().cpu().numpy()}  # fmt: skip

    def exact(self, layer: int) -> dict[str, np.ndarray]:
        """Return what ablation and the random push cost [prompt, head] in one layer."""
        import torch

        gap = (self.mean[layer] - self.z[layer]).expand_as(self.z[layer])
        way = torch.randn(gap.shape, generator=self.dice, dtype=torch.float64).to(gap)
        push = way / way.norm(dim=-1, keepdim=True) * gap.norm(dim=-1, keepdim=True)
        return {"effect": self._lost(layer, gap), "control": self._lost(layer, push)}

    def _lost(self, layer: int, change: Any) -> np.ndarray:
        """Return the logit_diff lost by adding `change` to z [prompt, pos, head, d_head], one head at a time."""
        import torch

        n, n_heads = len(self.tokens), self.model.card.n_heads
        found = []
        for rows in torch.arange(n * n_heads).split(self.most):  # every prompt with every head
            prompts, heads = rows // n_heads, rows % n_heads
            known = {("resid_pre", layer): self.resid[layer][prompts], ("z", layer): self.z[layer][prompts]}
            edit = {("z", layer): _added(change, prompts, heads)}
            logits = self.model.run_with(self.tokens[prompts], edit, known, last=True)
            found.append(self.intact[prompts] - self.metric(prompts)(logits))
        return torch.cat(found).unflatten(0, (n, n_heads)).double().cpu().numpy()


def _added(change: Any, prompts: Any, heads: Any) -> Any:
    """Return the edit that adds to row i the change [pos, d_head] of its own prompt and head."""

    def edit(z: Any) -> Any:
        z[range(len(heads)), :, heads] += change[prompts, :, heads]
        return z

    return edit


def _table(rows: dict[str, np.ndarray], params: HeadImportanceParams) -> pd.DataFrame:
    """Average over prompts; rows are [prompt, layer, head], `logit_diff` [prompt]."""
    from backend.maths import ranks

    rows |= {f"{name}_abs": np.abs(rows[name]) for name in ("effect", "gradient")}
    columns: dict[str, Any] = places(*rows["effect"].shape[1:])
    draws = {}
    for name in ("effect", "effect_abs", "gradient", "gradient_abs", "control"):
        draws[name] = ranks.bootstrap_means(rows[name].reshape(len(rows[name]), -1), params.draws, params.seed)
        low, high = ranks.interval(draws[name])
        columns |= {name: rows[name].mean(0).ravel(), f"{name}_low": low, f"{name}_high": high}
    columns |= {"logit_diff": rows["logit_diff"].mean(), "n": len(rows["logit_diff"])}
    columns["rank_correlation"] = ranks.spearman(columns["effect_abs"], columns["gradient_abs"])
    between = ranks.interval(ranks.spearman(draws["effect_abs"], draws["gradient_abs"]))
    columns |= dict(zip(("rank_correlation_low", "rank_correlation_high"), between, strict=True))
    columns["rank_correlation_signed"] = ranks.spearman(columns["effect"], columns["gradient"])
    return pd.DataFrame({n: np.broadcast_to(v, columns["layer"].shape) for n, v in columns.items()})


@head_importance.costs
def work(card: ModelCard, subject: Pairs, params: HeadImportanceParams) -> Work:
    """Prompts of a length at once for z, then two rows per head and prompt; a gradient per prompt."""
    plan, held = Plan(card), 0
    for length, which in subject.by_length().items():
        n, most = len(which), rows_at_once(plan, length)
        plan.call(n, length, 1 + (params.mean_over == "all"))
        for rows in parts(n, most):
            plan.call(rows, length, last=True)
        for rows in parts(n, rows_at_once(plan, length, gradients=True)):
            plan.call(rows, length, gradients=True, last=True)
        for rows, layer in product(parts(n * card.n_heads, most), range(card.n_layers)):
            plan.call(rows, length, 2, share=(card.n_layers - layer) / card.n_layers, last=True)
        copied = plan.bytes(min(most, n * card.n_heads) * length, ["z", "resid_pre"], layers=1)
        held = max(held, 2 * plan.bytes(n * length, ["z", "resid_pre"]) + copied)
    return plan.total(held)


# ---------------------------------------------------------------- figures


@head_importance.figure("Exact against cheap")
def agreement(table: pd.DataFrame, view: View) -> Any:
    """One point per head with its interval on both axes; on the dashed line the estimate is right."""
    one = table.iloc[0]
    who = names(table["layer"], table["head"])
    hover = [f"{n}<br>exact {r.effect:.3g} ({r.effect_low:.3g} to {r.effect_high:.3g})<br>"
             f"gradient {r.gradient:.3g} ({r.gradient_low:.3g} to {r.gradient_high:.3g})"
             for n, r in zip(who, table.itertuples(), strict=True)]  # fmt: skip
    said = "" if np.isnan(one["rank_correlation"]) else (
        f"rank correlation of sizes {one['rank_correlation']:.2f} "
        f"({one['rank_correlation_low']:.2f} to {one['rank_correlation_high']:.2f})<br>"
        f"with sign {one['rank_correlation_signed']:.2f}; {one['n']:.0f} prompts")
    spans = {axis: (table[f"{name}_low"], table[f"{name}_high"]) for axis, name in (("x", "gradient"), ("y", "effect"))}
    return paired(table["gradient"], table["effect"], names=who, hover=hover, x_span=spans["x"], y_span=spans["y"],
                   groups=[f"layer {n}" for n in table["layer"]] if table["layer"].nunique() <= 8 else None,
                   x_title="gradient estimate (logits)", y_title="exact effect of mean-ablation (logits)", title=said)


@head_importance.figure("Heads ranked by their effect, beside a random push")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The 24 heads with the largest |effect|, with intervals; the control in grey."""
    best = table.loc[table["effect"].abs().nlargest(MOST_BARS).index]
    low, high = (best["effect"] - best["effect_low"]).clip(0), (best["effect_high"] - best["effect"]).clip(0)
    who = names(best["layer"], best["head"])
    hover = [f"{n}: {r.effect:.3g} ({r.effect_low:.3g} to {r.effect_high:.3g})<br>random push {r.control:.3g} "
             f"({r.control_low:.3g} to {r.control_high:.3g})" for n, r in zip(who, best.itertuples(), strict=True)]
    figure = bars(who, best["effect"], errors=high, null=best["control"], hover=hover,
                  colours=[CATEGORIES[0]] * len(best), x_title="head",
                  y_title="logit_diff lost (logits; error: 95 % interval)")  # fmt: skip
    figure.data[-1].error_y.update(symmetric=False, arrayminus=low.to_numpy())
    figure.data[0].name = "random push"
    return figure
