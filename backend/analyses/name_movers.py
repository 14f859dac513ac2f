"""Which heads move the answer's token to the end: they attend to it there, and what they write raises it?

On the clean prompts of the pairs. For each head and each of the two tokens (answer, distractor):
`attention` = mean over pairs of the attention from the last position to all positions that hold the token; `null` the
same after the last position's visible keys were shuffled, `z` = (attention - null) / sqrt(se^2 + null's se^2).
`copying` = what the head would do if it attended to that token alone: its value there through W_O, the final norm (its
scale held as it is at the last position) and W_U, on the token's own logit minus the mean over the other names (all
answers and distractors of the pairs; random tokens are added where they are fewer than 16), averaged over pairs. A head
that cannot tell names apart has 0 there; that is its null. `top_share` and `bottom_share`: share of pairs in which the
token's own logit is the largest or smallest among the names; `chance` = 1 / names. `direct` = what the head really
writes at the last position, on logit(answer) - logit(distractor).
`label` is given where attention > threshold and attention and copying exceed their nulls by 5 standard errors, and the
own logit is at the end of the names in more than half of the pairs: answer raised: name-mover; answer lowered: negative
name-mover; distractor lowered: distractor-suppressor; distractor raised: distractor-mover.

Pairs whose answer (distractor) is not in the clean prompt do not count for that token; tokens that are in none are left
out. Exact given the pairs; errors are over pairs. A label says what a head does directly, not that the answer needs it:
other heads may step in, and only ablation (Ablation, Head importance) says what is lost.
Cost: one forward with patterns and values, one product with W_U of the names per layer.
Source: Wang et al. (2022), Interpretability in the Wild, section 3.1 (name movers, copy score); McDougall et al.
(2023), Copy Suppression, section 2 (negative movers).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._causal import Batch, batches
from backend.analyses._output import output_maps, plan_output_maps
from backend.analyses._scores import SIGMAS, names, over_rows, z_score
from backend.analyses._work import Plan
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Panel, bars, panels

TOKENS = ("answer", "distractor")
LABELS = {("answer", 1): "name-mover", ("answer", -1): "negative name-mover",
          ("distractor", -1): "distractor-suppressor", ("distractor", 1): "distractor-mover"}  # fmt: skip
FEW_NAMES, MOST_NAMES, MOST_BARS = 16, 256, 24


class NameMoversParams(Params):
    """What earns a label, and the null."""

    threshold: float = Field(0.3, ge=0.0, le=1.0, description="least attention to the token that earns a label")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the shuffled null")


@analysis(
    version=1, group="Attention",
    title="Name movers", asks="Which heads attend to the answer's token at the end, and raise or lower it?",
    subject=Pairs, params=NameMoversParams,
    needs=["attention_patterns", "unembed", "uncapped_logits", "linear_attn_out"],
    axes=[Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based"),
          Axis("token", "answer or distractor of the pair", kind="str")],
    values=[
        Value("attention", "attention from the last position to the token, mean over pairs", "probability"),
        Value("attention_se", "its standard error over pairs; NULL for one pair", "probability"),
        Value("null", "attention after the visible keys were shuffled", "probability"),
        Value("z", "attention minus null, in standard errors; NULL where both errors are 0 or unknown"),
        Value("copying", "own logit minus the mean of the other names', attending to the token alone", "logits"),
        Value("copying_se", "its standard error over pairs; NULL for one pair", "logits"),
        Value("top_share", "share of pairs in which the own logit is the largest among the names"),
        Value("bottom_share", "share of pairs in which the own logit is the smallest among the names"),
        Value("chance", "1 / names"),
        Value("direct", "logit(answer) - logit(distractor) that the head writes; the same for both tokens", "logits"),
        Value("direct_se", "its standard error over pairs; NULL for one pair", "logits"),
        Value("label", "name-mover, negative name-mover, distractor-suppressor, distractor-mover or none", kind="str"),
        Value("n", "pairs that hold the token", kind="int"),
    ],
)  # fmt: skip
def name_movers(model: Model, subject: Pairs, params: NameMoversParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head, token)."""
    import torch

    known = _names(subject, model.card.d_vocab_out, params.seed)
    dice = torch.Generator().manual_seed(params.seed)
    found_by_token: dict[str, dict[str, list]] = {}
    with torch.no_grad():
        maps, groups = list(output_maps(model)), batches(model, subject)
        for i, batch in enumerate(groups):
            for token in TOKENS:
                measured = _measure(model, subject, batch, maps, token, known, dice)
                for name, values in measured.items():
                    found_by_token.setdefault(token, {}).setdefault(name, []).append(values)
            progress((i + 1) / len(groups), f"{i + 1} of {len(groups)} batches")
    joined = {t: {n: np.concatenate(v, 1) for n, v in found.items()} for t, found in found_by_token.items()}
    tables = [_table(token, found, len(known), params) for token, found in joined.items() if found["there"].any()]
    if not tables:
        raise BadInput("Name movers", "no prompt holds its answer or distractor", "Choose a task like IOI")
    return pd.concat(tables, ignore_index=True).sort_values(["layer", "head", "token"], ignore_index=True)


def _names(subject: Pairs, d_vocab_out: int, seed: int) -> list[int]:
    """Return the answers and distractors of the pairs, with random tokens where they are fewer than FEW_NAMES."""
    known = sorted({t for p in subject.pairs for t in (p.answer, p.distractor)})[:MOST_NAMES]
    others = [int(t) for t in np.random.default_rng(seed).permutation(d_vocab_out)[: 2 * FEW_NAMES] if t not in known]
    return known + others[: max(0, FEW_NAMES - len(known))]


def _measure(model: Model, subject: Pairs, batch: Batch, maps: list[Any], token: str, known: list[int],
             dice: Any) -> dict[str, np.ndarray]:  # fmt: skip
    """Return {name: [layer, pair, head]}; `there` says which pairs hold the token."""
    import torch

    from backend.maths import attending

    card, pairs = model.card, [subject.pairs[i] for i in batch.which]
    own = torch.tensor([getattr(p, token) for p in pairs], device=batch.clean.device)
    at = (batch.clean == own[:, None]).double()  # [pair, pos]
    seen = model.capture(batch.clean, ["pattern", "v", "z"])
    last = card.n_layers - 1
    resid = model.capture(batch.clean, ["resid_post"], [last])["resid_post", last][:, -1]
    shuffle = attending.shuffled_keys(len(pairs), batch.clean.shape[1], True, dice)[:, -1].to(own.device)
    asked = torch.tensor([[p.answer, p.distractor] for p in pairs], device=own.device)
    found: dict[str, list] = {}
    for layer, (w_o, _) in enumerate(maps):
        row = seen["pattern", layer][:, :, -1].double()  # [pair, head, key]
        weights = at / at.sum(1, keepdim=True).clamp(min=1)
        values = torch.einsum("nk,nkhd->nhd", weights.to(seen["v", layer]), seen["v", layer])
        wide = values.repeat_interleave(card.n_heads // values.shape[1], 1).to(w_o)
        z = seen["z", layer][:, -1].reshape(len(pairs), card.n_heads, -1).to(w_o)
        written = [torch.einsum("nhd,hdm->nhm", part, w_o).to(resid) for part in (wide, z)]
        measured = {
            "attention": (row * at[:, None]).sum(-1),
            "null": (row.gather(-1, shuffle[:, None].expand_as(row)) * at[:, None]).sum(-1),
            **_copies(model, resid, written[0], own, known),
            "direct": -model.direct_logits(resid, written[1], asked)[0].diff(dim=-1)[..., 0],
            "there": at.any(1)[:, None].expand(len(pairs), card.n_heads),
        }
        for name, part in measured.items():
            found.setdefault(name, []).append(part.double().cpu().numpy())
    return {name: np.stack(parts) for name, parts in found.items()}


def _copies(model: Model, resid: Any, written: Any, own: Any, known: list[int]) -> dict[str, Any]:
    """Return copying, top and bottom [pair, head] of what heads would write [pair, head, d_model]."""
    import torch

    columns = torch.tensor(known, device=own.device).expand(len(own), -1)
    others = columns != own[:, None]
    effects = model.direct_logits(resid, written, torch.cat([columns, own[:, None]], 1))[0]
    mine, rest = effects[..., -1], effects[..., :-1]
    mask = others[:, None].expand_as(rest)
    mean = (rest * mask).sum(-1) / mask.sum(-1)
    return {"copying": mine - mean, "top": (mine[..., None] > rest.masked_fill(~mask, -torch.inf)).all(-1),
            "bottom": (mine[..., None] < rest.masked_fill(~mask, torch.inf)).all(-1)}  # fmt: skip


def _table(token: str, found: dict[str, np.ndarray], n_names: int, params: NameMoversParams) -> pd.DataFrame:
    held = found.pop("there")[0, :, 0] > 0
    n_layers, _, n_heads = found["attention"].shape
    mean, error = {}, {}
    for name, values in found.items():
        mean[name], error[name] = over_rows(values[:, held] if name != "direct" else values)
    sign = np.where(mean["top"] > 0.5, 1, np.where(mean["bottom"] > 0.5, -1, 0))
    beyond = mean["attention"] - mean["null"] > SIGMAS * np.hypot(error["attention"], error["null"])
    sure = beyond & (mean["attention"] > params.threshold) & (np.abs(mean["copying"]) > SIGMAS * error["copying"])
    layer, head = (axis.ravel() for axis in np.indices((n_layers, n_heads)))
    columns = {
        "layer": layer, "head": head, "token": token, "attention": mean["attention"],
        "attention_se": error["attention"], "null": mean["null"],
        "z": z_score(mean["attention"], error["attention"], mean["null"], error["null"]), "copying": mean["copying"],
        "copying_se": error["copying"], "top_share": mean["top"], "bottom_share": mean["bottom"],
        "chance": 1 / n_names, "direct": mean["direct"], "direct_se": error["direct"],
        "label": [LABELS.get((token, s), "none") if ok else "none" for s, ok in zip(sign.ravel(), sure.ravel(),
                                                                                  strict=True)],
        "n": int(held.sum()),
    }  # fmt: skip
    return pd.DataFrame({name: v.ravel() if isinstance(v, np.ndarray) else v for name, v in columns.items()})


@name_movers.costs
def work(card: ModelCard, subject: Pairs, params: NameMoversParams) -> Work:
    """What heads write is read off, a call per layer; then every batch twice per token that is asked for."""
    plan, known = Plan(card), len(_names(subject, card.d_vocab_out, params.seed))
    plan_output_maps(plan)
    held, heads = 0, card.n_layers * card.n_heads
    for n, length in plan.batches(subject):
        plan.call(n, length, 2 * len(TOKENS))
        read = 8 * n * card.n_heads * (2 * length**2 + 4 * card.d_model + known) + 8 * n * known * card.d_model
        held = max(held, 4 * n * heads * length**2 + plan.bytes(n * length, ["z", "z"]) + read)
    products = len(TOKENS) * len(subject.pairs) * heads * card.d_model * (2 * card.d_head + known)
    return plan.total(held, 2 * products)


# ---------------------------------------------------------------- figures

MARK = {"name-mover": "▲", "negative name-mover": "▼", "distractor-suppressor": "▽", "distractor-mover": "△"}


@name_movers.figure("Where the last position looks, and what would be copied")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head: attention to the token and copying of it; ▲ raises, ▼ lowers the answer, △ ▽ the distractor."""
    drawn = {}
    for token in table["token"].unique():
        mine = table[table["token"] == token].set_index(["layer", "head"])
        mark = mine["label"].map(MARK).fillna("").unstack("head").to_numpy()
        hover = pd.Series([_words(r) for r in mine.reset_index().itertuples()], mine.index).unstack("head").to_numpy()
        drawn[f"attention to the {token}"] = Panel(mine["attention"].unstack("head").to_numpy(), (0.0, 1.0),
                                                   marks=mark, hover=hover)  # fmt: skip
    return panels(drawn, x_title="head", y_title="layer", value="attention")


@name_movers.figure("What heads write on answer minus distractor")
def direct(table: pd.DataFrame, view: View) -> Any:
    """The 24 heads with the largest direct effect, with standard errors; labelled ones in colour."""
    one = table.sort_values("label", key=lambda c: c == "none", kind="stable").drop_duplicates(["layer", "head"])
    best = one.loc[one["direct"].abs().nlargest(MOST_BARS).index]
    colour = dict(zip(MARK, CATEGORIES, strict=False))
    which = [f"{n} {MARK.get(label, '')}".strip() for n, label in zip(names(best["layer"], best["head"]),
                                                                     best["label"], strict=True)]  # fmt: skip
    return bars(which, best["direct"], errors=best["direct_se"], hover=[_words(r) for r in best.itertuples()],
                colours=[colour.get(label, NULL_GREY) for label in best["label"]],
                x_title="head (▲ name-mover, ▼ negative, ▽ suppresses, △ moves the distractor)",
                y_title="logit(answer) - logit(distractor)")  # fmt: skip


def _words(row: Any) -> str:
    return (
        f"L{row.layer}H{row.head} {row.token}: {row.label}<br>attention {row.attention:.3g} (shuffled "
        f"{row.null:.3g}, z {row.z:.3g})<br>copying {row.copying:.3g} ± {row.copying_se:.2g} logits; largest of the "
        f"names in {row.top_share:.0%}, smallest in {row.bottom_share:.0%}<br>direct {row.direct:.3g} logits"
    )
