"""Where in its depth does the model settle on its prediction?

The residual stream at every point (resid_pre, resid_mid between attention and MLP, resid_post) of every layer goes
through the final norm and W_U. For each (point, layer, pos): `kl_to_final` = KL(final || point), `entropy`, and
`final_rank` = number of tokens that the point finds more likely than the final top token. `settled` says that the top
token here and at every later point is the final one. `settle_layer`, repeated for a position: the first layer after
which (at resid_post) the top token never changes again, -1 where the embedding has it. `kl_null` = KL(final of another
position || point): what a point shows that knows the text's tokens but not this position's answer; NULL for one token.

Exact. resid_pre of layer l + 1 is resid_post of layer l; the last resid_post is the model: KL 0. Where attention and
MLP read the same stream there is no resid_mid. Bands are over positions of one prompt, which are not independent.
Cost: one forward, one unembedding per point and layer.
Source: nostalgebraist (2020), interpreting GPT: the logit lens; Belrose et al. (2023), Eliciting Latent Predictions
from Transformers with the Tuned Lens, section 2; Halawi et al. (2023), Overthinking the Truth (sub-layer lens).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import prompt_tokens
from backend.analyses._lenses import LOGIT_BYTES, blocks, logits_of
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.errors import Unfit
from backend.figures import NULL_GREY, Line, bars, label, lines, pixels

POINTS = ("resid_pre", "resid_mid", "resid_post")
Place = tuple[str, int]  # point, layer


class LensConvergenceParams(Params):
    """Which points are read, and the null."""

    resid_mid: Literal["where it is", "yes", "no"] = Field(
        "where it is", description="read between attention and MLP too; yes refuses models without that point")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="by how many positions the null's answers are moved")


@analysis(
    version=1, group="Lenses",
    title="Lens convergence", asks="At which layer does each position settle on the model's prediction?",
    subject=Prompt, params=LensConvergenceParams, needs=["unembed"],
    axes=[Axis("point", "resid_pre, resid_mid or resid_post", kind="str"), Axis("layer", "layer, 0-based"),
          Axis("pos", "position in the prompt, 0-based", "token")],
    values=[
        Value("kl_to_final", "KL(final || point): what is lost by stopping here", "nats"),
        Value("kl_null", "KL(final of another position || point); NULL for one token", "nats"),
        Value("entropy", "entropy of the point's prediction", "nats"),
        Value("top_id", "the point's top token", kind="int"),
        Value("final_rank", "number of tokens the point finds more likely than the final top token", kind="int"),
        Value("settled", "the top token here and at every later point is the final one", kind="bool"),
        Value("settle_layer", "first layer after which the position's top token never changes; -1: the embedding",
              kind="int"),
    ],
)
def lens_convergence(
    model: Model, subject: Prompt, params: LensConvergenceParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (point, layer, pos), in the order of the forward."""
    import torch

    tokens = prompt_tokens(model, subject)
    with torch.no_grad():
        seen = _streams(model, tokens, params.resid_mid)
        length = tokens.shape[1]
        away = 1 + params.seed % (length - 1) if length > 1 else 0
        parts = [_read(model, seen, block, away, progress) for block in blocks(model, length)]
    columns = {name: np.concatenate([p[name] for p in parts], 1) for name in parts[0]}
    return _table(list(seen), columns | settle(columns["top_id"], list(seen)))


def _streams(model: Model, tokens: Any, mid: str) -> dict[Place, Any]:
    """Return {place: stream [pos, d_model]} in the order of the forward."""
    points: tuple[str, ...] = POINTS
    if mid == "no" or (mid != "yes" and not model.card.d_mlp):  # without an MLP resid_mid is resid_post
        points = ("resid_pre", "resid_post")
    try:
        seen = model.capture(tokens, points)
    except Unfit:
        if mid == "yes":
            raise
        points = ("resid_pre", "resid_post")
        seen = model.capture(tokens, points)
    return {(p, n): seen[p, n][0] for n in range(model.card.n_layers) for p in points}


def _read(model: Model, seen: dict[Place, Any], block: slice, away: int, progress: Progress) -> dict[str, np.ndarray]:
    """Return {column: [place, pos]} for a block of positions; the null's answers lie `away` positions on."""
    from backend.maths import lens

    last = seen[list(seen)[-1]]
    logits = logits_of(model, last[block])
    final, targets = lens.final_of(logits), logits.argmax(-1)
    other = lens.final_of(logits_of(model, last.roll(-away, 0)[block]))
    found: dict[str, list] = {}
    for done, ((point, layer), stream) in enumerate(seen.items(), start=1):
        read = _one(logits_of(model, stream[block]), final, other, targets, away)
        for name, values in read.items():
            found.setdefault(name, []).append(values.cpu().numpy())
        share = (block.start + (block.stop - block.start) * done / len(seen)) / len(last)
        progress(share, f"positions {block.start} to {block.stop - 1}, {point} of layer {layer}")
    return {name: np.stack(values) for name, values in found.items()}


def _one(logits: Any, final: Any, other: Any, targets: Any, away: int) -> dict[str, Any]:
    import torch

    from backend.maths import lens

    read = lens.readout(logits, final, targets, 1)
    null = lens.readout(logits, other, targets, 1).kl_to_final if away else torch.full_like(read.entropy, torch.nan)
    return {"kl_to_final": read.kl_to_final.double(), "kl_null": null.double(), "entropy": read.entropy.double(),
            "top_id": read.top_ids[:, 0], "final_rank": read.target_rank}


def settle(top: np.ndarray, places: list[Place]) -> dict[str, np.ndarray]:
    """Return settled [place, pos] and settle_layer [place, pos] of the top tokens [place, pos].

    settled = all top tokens from here on equal the last one. A stream after layer l is read at resid_post of l, the
    embedding at resid_pre of layer 0; settle_layer is the first of those from which all later ones are alike.
    """
    settled = np.logical_and.accumulate((top == top[-1])[::-1])[::-1]
    rows = [i for i, place in enumerate(places) if place == ("resid_pre", 0) or place[0] == "resid_post"]
    whole = np.logical_and.accumulate((top[rows] == top[-1])[::-1])[::-1]
    return {"settled": settled, "settle_layer": np.broadcast_to(whole.argmax(0) - 1, top.shape)}


def _table(places: list[Place], columns: dict[str, np.ndarray]) -> pd.DataFrame:
    length = columns["top_id"].shape[1]
    axes = {"point": np.repeat([p for p, _ in places], length), "layer": np.repeat([n for _, n in places], length),
            "pos": np.tile(np.arange(length), len(places))}
    return pd.DataFrame(axes | {name: values.ravel() for name, values in columns.items()})[
        [*axes, "kl_to_final", "kl_null", "entropy", "top_id", "final_rank", "settled", "settle_layer"]]


@lens_convergence.costs
def work(card: ModelCard, subject: Prompt, params: LensConvergenceParams) -> Work:
    """One forward, and an unembedding per stream in blocks of positions; beside them the answer's own and another's."""
    plan, length = Plan(card), len(subject.tokens)
    plan.call(1, length)
    with_mid = params.resid_mid == "yes" or (params.resid_mid != "no" and card.d_mlp > 0)
    points = 3 if with_mid and "resid_mid" in card.capabilities else 2
    products = (points * card.n_layers + 2) * length * card.d_model * card.d_vocab_out
    held = plan.bytes(length, ["resid_pre"] * points) + 10 * min(LOGIT_BYTES, 4 * length * card.d_vocab_out)
    return plan.total(held + 200 * points * card.n_layers * length, 2 * products, SHORTER)


# ---------------------------------------------------------------- figures

SHORT = {"resid_pre": "pre", "resid_mid": "mid", "resid_post": "post"}


def _places(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a column `place`, its words in the order of the forward, each stream once."""
    once = table[(table["point"] != "resid_pre") | (table["layer"] == 0)]
    words = ["embed" if p == "resid_pre" else f"L{n}/{SHORT[p]}" for p, n in zip(once["point"], once["layer"],
                                                                                strict=True)]
    return once.assign(place=pd.Categorical(words, list(dict.fromkeys(words)), ordered=True))


@lens_convergence.figure("KL to the final prediction")
def kl_map(table: pd.DataFrame, view: View) -> Any:
    """Point x position; a dot marks points from which the top token stays the final one."""
    rows = _places(table)
    wide = {c: rows.pivot(index="place", columns="pos", values=c) for c in ("kl_to_final", "settled", "top_id",
                                                                            "final_rank", "entropy")}
    z = wide["kl_to_final"].to_numpy()
    hover = [[f"KL to final: {kl:.3g} nats<br>entropy: {h:.3g} nats<br>top: {label(view.vocab(int(t)))}<br>"
              f"rank of the final top: {r}" for kl, h, t, r in zip(*line, strict=True)]
             for line in zip(z, *(wide[c].to_numpy() for c in ("entropy", "top_id", "final_rank")), strict=True)]
    text = [["●" if s else "" for s in line] for line in wide["settled"].to_numpy()]
    names = view.tokens or [str(i) for i in range(z.shape[1])]
    return pixels(z, x=names, y=list(wide["settled"].index), x_title="position (token); ● settled",
                  y_title="point", value="KL(final || point) (nats)", limits=(0.0, max(float(z.max()), 1e-6)),
                  text=text, hover=hover, rank="map", reverse_y=False, numbered_y=False)


@lens_convergence.figure("Convergence over depth")
def curves(table: pd.DataFrame, view: View) -> Any:
    """Mean over positions of KL and entropy, bands of 2 standard errors; grey: another position's answer."""
    groups = _places(table).groupby("place", observed=True)
    drawn = []
    for column, words, colour in (("kl_null", "KL of another position's answer (null)", NULL_GREY),
                                  ("kl_to_final", "KL(final || point)", ""), ("entropy", "entropy", "")):
        mean, se = groups[column].mean(), groups[column].sem().fillna(0)
        if mean.notna().all():
            drawn.append(Line(words, np.arange(len(mean)), mean.to_numpy(), (mean - 2 * se).to_numpy(),
                              (mean + 2 * se).to_numpy(), colour=colour))
    figure = lines(drawn, x_title="point, in the order of the forward", y_title="mean over positions (nats)")
    names = list(groups["kl_to_final"].mean().index)
    shown = range(0, len(names), -(-len(names) // 24))
    return figure.update_xaxes(tickmode="array", tickvals=list(shown), ticktext=[names[i] for i in shown])


@lens_convergence.figure("Where positions settle")
def settle_layers(table: pd.DataFrame, view: View) -> Any:
    """Number of positions that settle after each layer."""
    per_pos = table.groupby("pos")["settle_layer"].first()
    layers = range(-1, int(table["layer"].max()) + 1)
    counts = [int((per_pos == n).sum()) for n in layers]
    return bars(["embed" if n < 0 else f"L{n}" for n in layers], counts, x_title="settles after",
                y_title=f"positions (of {len(per_pos)})")
