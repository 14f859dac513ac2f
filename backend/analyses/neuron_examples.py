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

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._contexts import examples, token_strips
from backend.analyses._units import batches, layer_of, neuron_of, neurons_at
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work


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
