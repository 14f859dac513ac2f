"""Which activations carry the difference between a clean and a corrupted prompt?

Every place is patched on its own: denoising runs the corrupted prompt with the clean run's value there, noising runs
the clean prompt with the corrupted value. Places (`site`): resid_pre, attn_out or mlp_out at one position; the output z
of one head at all positions, or at one. The metric is logit_diff = logit(answer) - logit(distractor) at the last token;
`recovered` = (patched - corrupted) / (clean - corrupted), means over the pairs, NULL where |clean - corrupted| is below
its standard error. `effect` is recovered when denoising and 1 - recovered when noising: 0 where patching did nothing,
1 where it did all; it is neither bounded nor additive over places.

Exact: every patch is a forward of its own, many in one batch. Null: an idle place has effect 0 and every map says how
many of its places differ from 0 by two standard errors. Intervals are 95 % bootstrap over the pairs (`draws`, `seed`):
they speak of prompts drawn like these, not of other tasks. Positions need pairs of one length. What noising and
denoising find differs: a denoised place suffices where all else is corrupted, a noised one is needed where all else is
clean.
Cost: a forward per pair and place, (2 + places) x pairs rows in batches of at most 64 MiB (1 GiB on a GPU).
Source: Meng et al. (2022), Locating and Editing Factual Associations in GPT, section 2; Wang et al. (2022),
Interpretability in the Wild; Heimersheim and Nanda (2024), How to use and interpret activation patching.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._causal import Place, batches, both_sides, patched_sweep
from backend.analyses._effects import RECOVERED, hovers, records, recovered_columns, shown, strongest, symmetric
from backend.analyses._work import FEWER_PAIRS, Plan
from backend.contract import Axis, Described, Model, ModelCard, Pairs, Params, Progress, View, analysis
from backend.costs import Work
from backend.errors import Unfit
from backend.figures import pixels

POINTS = {"resid_pre": "resid_pre", "attn_out": "attn_out", "mlp_out": "mlp_out", "head": "z", "head_pos": "z"}


class ActivationPatchingParams(Params):
    """What is patched, in which direction, and how the interval is drawn."""

    site: Literal["head", "resid_pre", "attn_out", "mlp_out", "head_pos"] = Field(
        "head", description="head: z of a head at all positions; head_pos: at one; the others by layer and position"
    )
    direction: Literal["denoising", "noising"] = Field(
        "denoising", description="denoising: clean values into the corrupted run; noising: corrupted into the clean run"
    )
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the bootstrap")


@analysis(
    version=1, group="Causal", title="Activation patching",
    asks="Which activations carry the difference between a clean and a corrupted prompt?",
    subject=Pairs, params=ActivationPatchingParams,
    axes=[Axis("layer", "layer, 0-based"), Axis("pos", "position, 0-based; -1: all positions", "token"),
          Axis("head", "head within the layer, 0-based; -1: the whole point")],
    values=RECOVERED,
)
def activation_patching(model: Model, subject: Pairs, params: ActivationPatchingParams,
                        progress: Progress) -> pd.DataFrame:  # fmt: skip
    """Return one row per (layer, pos, head)."""
    places = places_of(model, subject, params.site)
    clean, corrupted = both_sides(model, subject)
    patched = np.empty((len(places), len(clean)))
    groups = batches(model, subject)
    for i, batch in enumerate(groups):
        def said(done: int, i: int = i) -> None:
            progress((i + done / len(places)) / len(groups), f"{done} of {len(places)} places")

        patched[:, batch.which] = patched_sweep(model, batch, places, params.direction, said)
    where = {axis: [getattr(p, axis) for p in places] for axis in ("layer", "pos", "head")}
    return pd.DataFrame(
        where | recovered_columns(patched, clean, corrupted, params.direction, params.draws, params.seed)
    )


def places_of(model: Described, subject: Pairs, site: str) -> list[Place]:
    """Return the places of a site. Raises Unfit where there are no MLPs, BadInput for pairs of several lengths."""
    if site == "mlp_out" and "mlp" not in model.card.capabilities:
        raise Unfit(f"Patching mlp_out of {model.card.spec}", "it has no MLP layers", "Choose another site")
    layers, point = range(model.card.n_layers), POINTS[site]
    positions = [-1] if site == "head" else list(range(subject.length))
    heads = range(model.card.n_heads) if point == "z" else [-1]
    return [Place(point, layer, pos, head) for layer in layers for pos in positions for head in heads]


@activation_patching.costs
def work(card: ModelCard, subject: Pairs, params: ActivationPatchingParams) -> Work:
    """Both sides once, the values once per batch, then a row per place and pair."""
    plan, places, held = Plan(card), places_of(Plan(card), subject, params.site), 0
    for n, length in plan.batches(subject):
        plan.call(n, length)
        plan.call(n, length, 2, last=True)
        streams = plan.places(n, length, places)
        held = max(held, streams + plan.bytes(n * length, {p.point for p in places}))
    table = 8 * len(places) * (2 * len(subject.pairs) + 40)
    return plan.total(held + table, knobs=f"{FEWER_PAIRS}, or a site without positions (head)")


# ---------------------------------------------------------------- figures


@activation_patching.figure("Map of the effect")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by position (or head), diverging around 0; tokens are those of the first clean prompt."""
    direction = view.params.get("direction", "denoising")
    column, words = shown(table, direction)
    table = table.assign(hover=hovers(table), row=_rows(table))
    across = "pos" if (table["pos"] >= 0).any() else "head"
    z, hover = (table.pivot(index="row", columns=across, values=c) for c in (column, "hover"))
    names = dict(zip(table["row"], _names(table), strict=True))
    by_pos = across == "pos"
    return pixels(
        z.to_numpy(), x=_tokens(view, z.shape[1]) if by_pos else [str(h) for h in z.columns],
        y=[names[r] for r in z.index], x_title="position (token of the first clean prompt)" if by_pos else "head",
        y_title="layer and head" if (table["head"] >= 0).any() and by_pos else "layer", value=words, diverging=True,
        limits=symmetric(table[column], 1.0 if column == "effect" else 0.1), hover=hover.to_numpy(), numbered_y=False,
    )


def _rows(table: pd.DataFrame) -> pd.Series:
    """Number the map's rows: layers, or layer and head where there is a row per head and position."""
    each = table["head"].max() + 1 if (table["pos"] >= 0).any() and (table["head"] >= 0).any() else 1
    return table["layer"] * each + (table["head"] if each > 1 else 0)


def _names(table: pd.DataFrame) -> list[str]:
    if (table["pos"] >= 0).any() and (table["head"] >= 0).any():
        return [f"L{layer}H{head}" for layer, head in zip(table["layer"], table["head"], strict=True)]
    return [str(layer) for layer in table["layer"]]


def _tokens(view: View, length: int) -> list[str]:
    return view.tokens if len(view.tokens) == length else [str(i) for i in range(length)]


@activation_patching.figure("Strongest places with their interval")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The 24 places that change logit_diff most, standard errors over pairs; grey: within two standard errors of 0."""
    return strongest(table, [_place(view, r) for r in records(table)], "place")


def _place(view: View, row: Any) -> str:
    head = f"H{row.head}" if row.head >= 0 else ""
    token = f" {view.tokens[row.pos].strip()}" if 0 <= row.pos < len(view.tokens) else ""
    return f"L{row.layer}{head}" + (f" {row.pos}{token}" if row.pos >= 0 else "")
