"""On which tokens is a neuron active: at its top, at quantiles, and at random?

mlp_post of one neuron over all tokens of the corpus. `top` are its largest activations; `q90`, `q50` those closest to
the 90 % and 50 % quantile of all tokens; `random` tokens drawn evenly. Each comes with `context` tokens on either side
of it, as far as the row goes, and the activation on every token shown. Within a kind windows that overlap are left
out (two centres of one row are more than 2 context apart), so a kind can hold fewer than `n` examples. Top examples
alone mislead: what a neuron does most of the time is in the others.

Exact over the corpus; of equal activations the earlier token stands first. Quantile and random examples are the
controls; nothing is estimated, so there is no error bar. Cost: one forward over the corpus.
Source: Bills et al. (2023), Language models can explain neurons in language models; Bolukbasi et al. (2021), An
Interpretability Illusion for BERT (why top examples mislead).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._units import batches, layer_of, neuron_of, neurons_at
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.figures import label, pixels

QUANTILES = {"q90": 0.9, "q50": 0.5}
KINDS = ("top", *QUANTILES, "random")


class NeuronExamplesParams(Params):
    """Which neuron, and how much of its context is shown."""

    layer: int = Field(0, ge=0, le=1000, description="layer of the neuron")
    neuron: int = Field(0, ge=0, le=1_000_000, description="neuron of the layer")
    n: int = Field(6, ge=1, le=50, description="examples of each kind, at most")
    context: int = Field(8, ge=0, le=64, description="tokens shown on either side")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random examples")


@analysis(
    version=1, group="Neurons & features",
    title="Examples of a neuron", asks="On which tokens is a neuron active, at its top and elsewhere?",
    subject=Corpus, params=NeuronExamplesParams, needs=["mlp"],
    axes=[Axis("kind", "top; q90, q50: closest to this quantile; random", kind="str"),
          Axis("example", "running number within the kind"),
          Axis("offset", "place from the example's token, which is 0", "token")],
    values=[
        Value("row", "row of the corpus", kind="int"),
        Value("pos", "position in the row", "token", kind="int"),
        Value("token", "the token there", kind="int"),
        Value("activation", "the neuron's activation on it"),
        Value("rank", "tokens of the corpus with a larger activation than the example's", kind="int"),
    ],
)
def neuron_examples(model: Model, subject: Rows, params: NeuronExamplesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (kind, example, offset)."""
    layer = layer_of(model, params.layer, "A neuron")
    neuron = neuron_of(model, layer, params.neuron)
    parts = []
    for start, tokens in batches(model, subject, model.card.d_mlp):
        progress(start / len(subject.tokens), f"Row {start}")
        parts.append(neurons_at(model, tokens, layer)[..., neuron].cpu().numpy())
    return examples(np.concatenate(parts), subject.tokens, params.n, params.context, params.seed)


def examples(acts: Any, tokens: Any, n: int, context: int, seed: int) -> pd.DataFrame:
    """Return the examples of activations [row, pos] over tokens of the same shape."""
    length, flat = acts.shape[1], acts.ravel()
    dice = np.random.default_rng(seed)
    orders = {"top": np.argsort(-flat, kind="stable"), "random": dice.permutation(flat.size)}
    for name, q in QUANTILES.items():
        orders[name] = np.argsort(np.abs(flat - np.quantile(flat, q)), kind="stable")
    rank = np.searchsorted(np.sort(-flat), -flat, side="left")
    rows = []
    for kind in KINDS:
        for at, place in enumerate(apart(orders[kind], length, n, context)):
            rows += _window(kind, at, place, acts, tokens, context, int(rank[place]))
    return pd.DataFrame(rows)


def apart(order: Iterable[int], length: int, n: int, context: int) -> list[int]:
    """Return the first n places of `order` whose windows of `context` on either side overlap no earlier one's."""
    chosen: list[int] = []
    taken: dict[int, list[int]] = {}
    for place in map(int, order):
        row, pos = divmod(place, length)
        if all(abs(pos - other) > 2 * context for other in taken.get(row, [])):
            chosen.append(place)
            taken.setdefault(row, []).append(pos)
        if len(chosen) == n:
            break
    return chosen


def _window(kind: str, example: int, place: int, acts: Any, tokens: Any, context: int, rank: int) -> list[dict]:
    row, pos = divmod(place, acts.shape[1])
    return [{"kind": kind, "example": example, "offset": at - pos, "row": row, "pos": at, "token": int(tokens[row, at]),
             "activation": float(acts[row, at]), "rank": rank}
            for at in range(max(0, pos - context), min(acts.shape[1], pos + context + 1))]  # fmt: skip


@neuron_examples.costs
def work(card: ModelCard, subject: Corpus, params: NeuronExamplesParams) -> Work:
    """The corpus once."""
    plan = Plan(card)
    plan.corpus(subject, card.d_mlp)
    return plan.total(64 * subject.rows * min(subject.length, card.n_ctx), knobs=FEWER_ROWS)


# ---------------------------------------------------------------- figures


@neuron_examples.figure("Examples")
def strips(table: pd.DataFrame, view: View) -> Any:
    """One line of tokens per example, coloured by the activation (blue: below 0); blank where the row ends."""
    return token_strips(table, view, "activation")


def token_strips(table: pd.DataFrame, view: View, value: str) -> Any:
    """Draw examples [kind, example] as lines of tokens over their offset."""
    names = list(dict.fromkeys(zip(table["kind"], table["example"], strict=True)))
    offsets = list(range(int(table["offset"].min()), int(table["offset"].max()) + 1))
    shape = len(names), len(offsets)
    z, text, hover = np.full(shape, np.nan), np.full(shape, "", object), np.full(shape, "", object)
    longest = max(2, min(10, 70 // len(offsets)))
    for row in table.to_dict("records"):
        cell = names.index((row["kind"], row["example"])), row["offset"] - offsets[0]
        word = view.vocab(row["token"])
        z[cell], text[cell] = row["activation"], label(word, longest)
        hover[cell] = (f"token {label(word, 40)}<br>{value}: {row['activation']:.3g}<br>row {row['row']}, position "
                       f"{row['pos']}<br>tokens above the example: {row['rank']}")  # fmt: skip
    figure = pixels(
        z, x=[f"{o:+d}" if o else "here" for o in offsets], y=[f"{kind}-{at + 1}" for kind, at in names], text=text,
        hover=hover, x_title="offset (tokens from the example)", y_title="example", value=value,
        diverging=bool(np.nanmin(z) < 0), numbered_y=False, height=int(np.clip(110 + 24 * len(names), 260, 1200)),
    )  # fmt: skip
    # the scale lies above and the words keep their size: in a narrow window they would shrink until nobody reads them
    bar = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom", "len": 0.5}
    figure.data[0].update(textfont={"size": 11}, colorbar={**bar, "title": {"side": "top"}})
    return figure
