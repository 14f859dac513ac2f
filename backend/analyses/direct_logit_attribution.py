"""Which parts of the model write "A rather than B" directly?

The last residual stream at the last position is a sum of parts: embedding, every layer's attn_out and mlp_out. With
the final norm's scale s held at its actual value the logits are linear in it, so each part c has a `direct` effect
(gain * C c / s) . (W_U[answer] - W_U[distractor]); C c = c - mean(c) under LayerNorm, c under RMSNorm. `constant` is
what the norm's bias and b_U add. The rows of part embed, pos_embed, attn_out, mlp_out and constant sum to the row
`total`, the model's logit_diff on the clean prompts. Where W_O alone stands behind z (not in Gemma 2) an attn_out is
split further: head (z W_O, with what the head writes whatever it sees) and attn_bias for what all heads share (b_O);
these sum to their attn_out. Each value is a mean over pairs, `_se` its standard error over pairs. The control (`null`)
asks for the answer rather than a random token: a part that raises the answer as such has the same there; one that tells
it from the distractor alone has less.

Exact given the held scale (refused where the parts miss the logits by more than rounding); an effect through later
layers is not in it: patching tells that. Cost: one forward per length of prompt and batch.
Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits; Wang et al. (2022), Interpretability in
the Wild, section 3.1.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._output import named, output_maps, plan_output_maps
from backend.analyses._work import Plan
from backend.contract import Axis, Described, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import Broken, Unfit
from backend.figures import CATEGORIES, bars, pixels

BATCH_BYTES = 128 * 2**20  # what the parts of one batch may hold
WHOLE = ("embed", "pos_embed", "attn_out", "mlp_out", "constant")  # parts that sum to the total
MOST_BARS = 60
Name = tuple[str, int, int]  # part, layer, head; -1 where there is none


class DirectLogitAttributionParams(Params):
    """Whether attention is split by head, and the null's tokens."""

    heads: Literal["where known", "yes", "no"] = Field(
        "where known", description="split attention by head: where W_O alone stands behind z; yes refuses other models")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random tokens of the null")


@analysis(
    version=2, group="Lenses", title="Direct logit attribution",
    asks="Which parts of the model write the answer rather than the distractor directly?",
    subject=Pairs, params=DirectLogitAttributionParams, needs=["unembed", "uncapped_logits"],
    axes=[Axis("part", "embed, pos_embed, attn_out, mlp_out, constant; head, attn_bias (within attn_out); total",
               kind="str"),
          Axis("layer", "layer, 0-based; -1 where the part has none"),
          Axis("head", "head within the layer; -1 where the part is no head")],
    values=[
        Value("direct", "mean over pairs of what the part adds to logit(answer) - logit(distractor)", "logits"),
        Value("direct_se", "standard error of direct over pairs; NULL for one pair", "logits"),
        Value("null", "the same for logit(answer) - logit(a random token)", "logits"),
        Value("null_se", "standard error of the null over pairs; NULL for one pair", "logits"),
        Value("share", "direct of the part as a share of the total"),
        Value("n", "pairs", kind="int"),
    ],
)
def direct_logit_attribution(
    model: Model, subject: Pairs, params: DirectLogitAttributionParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per part."""
    import torch

    w_o = _w_o(model, params.heads)
    asked = _asked(model, subject, params.seed)
    n_pairs = len(subject.pairs)
    effects: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for batch in _batches(model, subject):
            clean = [subject.pairs[i].clean for i in batch]
            names, found = _effects(model, clean, asked[batch], w_o)
            effects |= dict(zip(batch, found.double().cpu().numpy(), strict=True))
            progress(len(effects) / n_pairs, f"{len(effects)} of {n_pairs} pairs")
    return _table(names, np.stack([effects[i] for i in range(n_pairs)]))


def _w_o(model: Model, heads: str) -> list[Any] | None:
    """Return W_O per layer [head, d_head, d_model], None where heads are not told apart."""
    if heads == "no":
        return None
    if "linear_attn_out" in model.card.capabilities:
        return [W_O for W_O, _ in output_maps(model)]  # noqa: N806 - the glossary's name
    if heads == "yes":
        raise Unfit(f"Heads of {model.card.spec}", "a norm stands behind its W_O", "Set heads to where known")
    return None


def _asked(model: Model, subject: Pairs, seed: int) -> np.ndarray:
    """Return [pair, 3]: answer, distractor, and a random token that is not the answer."""
    n_words = model.card.d_vocab_out
    answers = np.array([p.answer for p in subject.pairs])
    other = (answers + np.random.default_rng(seed).integers(1, max(n_words, 2), len(answers))) % n_words
    return np.stack([answers, [p.distractor for p in subject.pairs], other], 1)


def _batches(model: Described, subject: Pairs) -> list[list[int]]:
    """Return pairs of one length, as many together as BATCH_BYTES holds."""
    card, batches = model.card, []
    for length, pairs in subject.by_length().items():
        per_row = 8 * length * card.d_model * (2 + 4 * card.n_layers) + 8 * card.d_model * card.n_layers * card.n_heads
        step = max(1, BATCH_BYTES // per_row)
        batches += [pairs[i : i + step] for i in range(0, len(pairs), step)]
    return batches


def _effects(model: Model, clean: list[Any], asked: np.ndarray, w_o: list[Any] | None) -> tuple[list[Name], Any]:
    """Return the parts' names and [pair, part, 2]: logit differences to the distractor and to the random token."""
    import torch

    tokens = torch.tensor(clean, dtype=torch.long, device=model.card.device)
    ids = torch.as_tensor(asked, device=tokens.device)
    parts, resid = _parts(model, tokens, w_o)
    effects, constant = model.direct_logits(resid, torch.stack(list(parts.values()), 1), ids)
    logits = model.logits(tokens)[:, -1].gather(-1, ids)
    names = [*parts, ("constant", -1, -1), ("total", -1, -1)]
    all_parts = torch.cat([effects, constant[:, None], logits[:, None]], 1)
    differences = all_parts[..., :1] - all_parts[..., 1:]
    _check(model, names, differences)
    return names, differences


def _parts(model: Model, tokens: Any, w_o: list[Any] | None) -> tuple[dict[Name, Any], Any]:
    """Return {part: what it writes at the last position [pair, d_model]} and the last stream [pair, d_model]."""
    mlp = ["mlp_out"] if model.card.d_mlp else []
    points = ["embed", "resid_post", "attn_out", *mlp, *(["z"] if w_o else [])]
    seen = {place: tensor[:, -1] for place, tensor in model.capture(tokens, points).items()}
    parts = _embeddings(model, tokens, seen["embed", 0])
    for layer in range(model.card.n_layers):
        parts["attn_out", layer, -1] = seen["attn_out", layer]
        if w_o:
            parts |= _heads(layer, seen["z", layer], w_o[layer], seen["attn_out", layer])
        if mlp:
            parts["mlp_out", layer, -1] = seen["mlp_out", layer]
    return parts, seen["resid_post", model.card.n_layers - 1]


def _embeddings(model: Model, tokens: Any, both: Any) -> dict[Name, Any]:
    """Return embed and, where it is added to it, pos_embed; else their sum as embed."""
    pos = named(model, "W_pos")
    if pos is not None and both.allclose(named(model, "W_E")[tokens[:, -1]] + pos[tokens.shape[1] - 1], atol=1e-5):
        here = pos[tokens.shape[1] - 1].expand_as(both)
        return {("embed", -1, -1): both - here, ("pos_embed", -1, -1): here}
    return {("embed", -1, -1): both}


def _heads(layer: int, z: Any, w_o: Any, attn_out: Any) -> dict[Name, Any]:
    """Return z W_O per head, and what attn_out holds beside them (b_O)."""
    import torch

    written = torch.einsum("nhe,hed->nhd", z, w_o.to(z))
    heads = {("head", layer, h): written[:, h] for h in range(written.shape[1])}
    return heads | {("attn_bias", layer, -1): attn_out - written.sum(1)}


def _check(model: Model, names: list[Name], differences: Any) -> None:
    """Raises Broken where the parts do not sum to the model's own logit difference, up to rounding."""
    whole = [i for i, (part, _, _) in enumerate(names) if part in WHOLE]
    gap = (differences[:, whole].sum(1) - differences[:, -1]).abs().max()
    size = differences[:, whole].abs().sum(1).max()
    if not float(gap) <= {"float64": 1e-5, "float32": 1e-3}.get(model.card.dtype, 0.1) * float(size + 1):
        raise Broken(f"Direct logit attribution of {model.card.spec}",
                     f"its parts miss the logit difference by {float(gap):.3g}", "Try float32, or another model")


def _table(names: list[Name], effects: np.ndarray) -> pd.DataFrame:
    """Average [pair, part, 2] over pairs."""
    n, mean = len(effects), effects.mean(0)
    se = effects.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.full_like(mean, np.nan)
    total = mean[-1, 0]
    frame = pd.DataFrame(names, columns=["part", "layer", "head"])
    return frame.assign(direct=mean[:, 0], direct_se=se[:, 0], null=mean[:, 1], null_se=se[:, 1],
                        share=mean[:, 0] / total if total else np.nan, n=n)


@direct_logit_attribution.costs
def work(card: ModelCard, subject: Pairs, params: DirectLogitAttributionParams) -> Work:
    """Every batch twice: once for the parts, once for the model's own logits."""
    plan, held = Plan(card), 0
    if params.heads != "no" and "linear_attn_out" in card.capabilities:
        plan_output_maps(plan)
    points = ["resid_post", "attn_out", "z", *(["mlp_out"] if card.d_mlp else [])]
    for batch in _batches(plan, subject):
        length = len(subject.pairs[batch[0]].clean)
        plan.call(len(batch), length, 2)
        parts = 4 * len(batch) * card.d_model * (2 + card.n_layers * (3 + card.n_heads))
        held = max(held, plan.bytes(len(batch) * length, points) + 3 * parts)
    return plan.total(held)


# ---------------------------------------------------------------- figures

LOGITS = "logit(answer) - logit(distractor)"


def _words(row: Any) -> str:
    if row.part == "head":
        return f"L{row.layer}H{row.head}"
    return row.part.replace("_out", "") + (f" L{row.layer}" if row.layer >= 0 else "")


def _bars(rows: pd.DataFrame, what: str) -> Any:
    names = [_words(r) for r in rows.itertuples()]
    hover = [f"{name}<br>direct: {r.direct:.3g} ± {r.direct_se:.2g}<br>null: {r.null:.3g} ± {r.null_se:.2g}"
             f"<br>share of the total: {r.share:.3g}" for name, r in zip(names, rows.itertuples(), strict=True)]
    colours = [CATEGORIES[{"attn_out": 0, "head": 0, "mlp_out": 1}.get(p, 2)] for p in rows["part"]]
    figure = bars(names, rows["direct"], errors=rows["direct_se"].fillna(0), null=rows["null"], colours=colours,
                  x_title=what, y_title=f"{LOGITS} (logits)", hover=hover)
    return figure.update_traces(name="answer - a random token (control)", selector={"name": "null"})


@direct_logit_attribution.figure("What each part adds")
def by_part(table: pd.DataFrame, view: View) -> Any:
    """Bars that sum to the logit difference, with standard errors; grey: against a random token."""
    rows = table[table["part"].isin(WHOLE)]
    total = table[table["part"] == "total"].iloc[0]
    if len(rows) > MOST_BARS:
        rows = rows.loc[rows["direct"].abs().nlargest(MOST_BARS).index.sort_values()]
    cut = "" if len(rows) <= MOST_BARS - 1 else f"; the {len(rows)} largest parts"
    return _bars(rows, f"part; all sum to {total.direct:.3g} ± {total.direct_se:.2g} over {total.n} pairs{cut}")


@direct_logit_attribution.figure("Heads by layer")
def by_head(table: pd.DataFrame, view: View) -> Any:
    """Layer x head, signed; layers whose heads are not told apart show their whole attention output."""
    rows = table[table["part"] == "head"]
    whole = rows.empty
    rows = table[table["part"] == "attn_out"].assign(head=0) if whole else rows
    z = rows.pivot(index="layer", columns="head", values="direct")
    se = rows.pivot(index="layer", columns="head", values="direct_se").to_numpy()
    null = rows.pivot(index="layer", columns="head", values="null").to_numpy()
    hover = [[f"direct: {v:.3g} ± {e:.2g} logits<br>null: {o:.3g}" for v, e, o in zip(*line, strict=True)]
             for line in zip(z.to_numpy(), se, null, strict=True)]
    text = [[f"{v:.2f}" for v in line] for line in z.to_numpy()] if z.size <= 64 else None
    return pixels(z.to_numpy(), x=["all heads"] if whole else [str(c) for c in z.columns],
                  y=[str(r) for r in z.index], x_title="head", y_title="layer", value="logits", diverging=True,
                  hover=hover, text=text, rank="map",
                  title="a norm stands behind W_O here: whole layers" if whole else "")


@direct_logit_attribution.figure("Largest heads and MLPs")
def largest(table: pd.DataFrame, view: View) -> Any:
    """The parts with the largest direct effect either way, heads apart where they are known."""
    fine = table[table["part"].isin(["head", "mlp_out", "embed", "pos_embed", "constant"])]
    fine = fine if (fine["part"] == "head").any() else table[table["part"].isin(WHOLE)]
    rows = fine.loc[fine["direct"].abs().nlargest(16).index].sort_values("direct", ascending=False)
    return _bars(rows, "part, largest first")
