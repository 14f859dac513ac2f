"""What does each neuron do: how often and how strongly is it active, which tokens does it write, is it alone?

For mlp_post of every neuron over all tokens of the corpus: `density` (share above 0), `mean`, `max` and where it stands
(`max_row`, `max_pos`, `max_token`), `q99` (99 % quantile), excess `kurtosis`. `raises` and `lowers` are the tokens to
which its row of W_out adds and takes most, read as W_out W_U minus the mean over tokens; the final norm's scale and
gain are left out, so it is an order of tokens, not a change of logits. `max_corr` is the largest |Pearson r| with
another neuron of the layer and `max_corr_null` the same where every neuron's values were shuffled among the tokens of
a batch: what a layer of this width shows by chance.

Exact over the corpus, gathered batch by batch; `q99` comes from at most 4096 tokens. `density_se` is the standard error
over rows (tokens of a row depend on each other). Correlations are NULL above 4096 neurons; tokens are empty and their
effect NULL where a norm stands behind W_out (Gemma 2). A GELU's small negative values do not count as active.
Cost: one forward over the corpus per layer, and d_mlp^2 multiplications per token for the correlations.
Source: Bills et al. (2023), Language models can explain neurons in language models; Gurnee et al. (2024), Universal
Neurons in GPT2 Language Models, sections 3 and 4 (statistics, effect on the vocabulary).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._output import mlp_map, plan_mlp_map
from backend.analyses._units import batches, layer_of, logit_effects, neurons_at, token_words
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import Unfit
from backend.figures import CATEGORIES, NULL_GREY, bars, scatter

SAMPLE = 4096  # tokens that quantiles are taken from
WIDEST = 4096  # neurons above which the matrix of correlations would not fit
TOKENS = 5
COLUMNS = ["layer", "neuron", "density", "density_se", "mean", "max", "q99", "kurtosis", "max_row", "max_pos",
           "max_token", "raises", "lowers", "effect", "max_corr", "partner", "max_corr_null", "of"]
RANKED = 24


class NeuronsParams(Params):
    """Which neurons, and the seed of the null."""

    layer: int = Field(-1, ge=-1, le=1000, description="layer whose neurons are read; -1: all")
    most: int = Field(512, ge=1, le=65_536, description="neurons kept per layer, those with the largest activation")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the shuffled null and of the quantiles' tokens")


@analysis(
    version=2, group="Neurons & features",
    title="Neurons", asks="How often is each neuron active, how strongly, and which tokens does it write?",
    subject=Corpus, params=NeuronsParams, needs=["mlp"],
    axes=[Axis("layer", "layer"), Axis("neuron", "neuron of the layer")],
    values=[
        Value("density", "share of tokens on which it is above 0"),
        Value("density_se", "its standard error over rows; NULL for one row"),
        Value("mean", "mean activation"),
        Value("max", "largest activation"),
        Value("q99", "99 % quantile of the activation"),
        Value("kurtosis", "excess kurtosis, 0 for a Gaussian; NULL where constant"),
        Value("max_row", "row of the largest activation", kind="int"),
        Value("max_pos", "its position in the row", kind="int"),
        Value("max_token", "the token there", kind="int"),
        Value("raises", "ids of the tokens that its output raises most, the strongest first", kind="str"),
        Value("lowers", "ids of the tokens that its output lowers most", kind="str"),
        Value("effect", "largest entry of W_out W_U minus its mean over tokens, per unit of activation"),
        Value("max_corr", "largest |r| with another neuron of the layer"),
        Value("partner", "that neuron", kind="int"),
        Value("max_corr_null", "largest |r| where each neuron's values are shuffled"),
        Value("of", "neurons in the layer", kind="int"),
    ],
)
def neurons(model: Model, subject: Rows, params: NeuronsParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, neuron), the `most` with the largest activation."""
    layers = range(model.card.n_layers)
    asked = layers if params.layer < 0 else [layer_of(model, params.layer, "Neurons")]
    parts = []
    for done, layer in enumerate(asked):
        progress(done / len(asked), f"Layer {layer}")
        table = _layer(model, subject, layer, params.seed)
        table = table.nlargest(params.most, "max").sort_values("neuron")
        parts.append(_with_tokens(model, table, layer))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _layer(model: Model, subject: Rows, layer: int, seed: int) -> pd.DataFrame:
    import torch

    from backend.maths import streaming

    narrow, dice = model.card.d_mlp <= WIDEST, torch.Generator().manual_seed(seed)
    all_of, by_row, top = streaming.Moments(), streaming.Moments(), streaming.Top(1)
    sample, joint, null = streaming.Reservoir(SAMPLE, seed), streaming.Joint(), streaming.Joint()
    for _, tokens in batches(model, subject, 4 * model.card.d_mlp):
        acts = neurons_at(model, tokens, layer).cpu()
        by_row.update((acts > 0).double().mean(1))
        flat = acts.flatten(0, 1)
        for gathered in (all_of, top, sample):
            gathered.update(flat)
        if narrow:
            joint.update(flat)
            null.update(streaming.shuffled(flat, dice))
    return _table(model, subject, layer, all_of, by_row, top, sample, (joint, null) if narrow else None)


def _table(model: Model, subject: Rows, layer: int, all_of: Any, by_row: Any, top: Any, sample: Any,
           joint: Any) -> pd.DataFrame:  # fmt: skip
    from backend.maths.streaming import strongest_other

    row, pos = np.divmod(top.samples[0].numpy(), subject.tokens.shape[1])
    r, partner = strongest_other(joint[0].correlation()) if joint else (np.nan, None)
    null = strongest_other(joint[1].correlation())[0] if joint else np.nan
    which = pd.Series([pd.NA] * model.card.d_mlp if partner is None else partner.tolist(), dtype="Int64")
    return pd.DataFrame({
        "layer": layer, "neuron": np.arange(model.card.d_mlp), "density": all_of.density,
        "density_se": by_row.standard_error(), "mean": all_of.mean, "max": top.values[0].double(),
        "q99": sample.quantile(0.99), "kurtosis": all_of.kurtosis(), "max_row": row, "max_pos": pos,
        "max_token": subject.tokens[row, pos], "max_corr": r, "partner": which, "max_corr_null": null,
        "of": model.card.d_mlp,
    })  # fmt: skip


def _with_tokens(model: Model, table: pd.DataFrame, layer: int) -> pd.DataFrame:
    try:
        W_out, W_U = mlp_map(model, layer), model.unembedding()  # noqa: N806 - the glossary's names
    except Unfit:
        return table.assign(raises="", lowers="", effect=np.nan)
    high, low, effect = logit_effects(W_out[table["neuron"].tolist()], W_U, TOKENS)
    return table.assign(raises=high, lowers=low, effect=effect.astype(float))


@neurons.costs
def work(card: ModelCard, subject: Corpus, params: NeuronsParams) -> Work:
    """The corpus once per layer, two products of all neurons per token, and the tokens that each one writes."""
    plan, layers = Plan(card), card.n_layers if params.layer < 0 else 1
    plan.corpus(subject, 4 * card.d_mlp, n=layers)
    plan_mlp_map(plan, layers)
    tokens, narrow = subject.rows * min(subject.length, card.n_ctx), card.d_mlp <= WIDEST
    products = 2 * tokens * card.d_mlp * narrow + min(params.most, card.d_mlp) * card.d_vocab_out
    held = plan.bytes(min(tokens, SAMPLE), ["mlp_post"], 1) + 8 * 6 * card.d_mlp**2 * narrow
    return plan.total(held, 2 * layers * card.d_mlp * products, f"{FEWER_ROWS}, or name a layer")


# ---------------------------------------------------------------- figures


@neurons.figure("How often and how strongly")
def density_and_max(table: pd.DataFrame, view: View) -> Any:
    """Every neuron: share of tokens on which it is active against its largest activation."""
    hover = [_hover(row, view) for row in table.to_dict("records")]
    kept = f"{len(table)} of {int(table.drop_duplicates('layer')['of'].sum())} neurons"
    return scatter(table["density"], table["max"], group=[f"layer {n}" for n in table["layer"]], hover=hover,
                   x_title=f"density (share of tokens with activation above 0; {kept})", y_title="largest activation")


@neurons.figure("Neurons with the largest activation")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The largest activations, and what the neuron's output raises."""
    shown = table.nlargest(RANKED, "max")
    return bars([f"L{n}N{i}" for n, i in zip(shown["layer"], shown["neuron"], strict=True)], shown["max"],
                hover=[_hover(row, view) for row in shown.to_dict("records")],
                x_title=f"neuron ({len(shown)} of {len(table)} shown)", y_title="largest activation")


@neurons.figure("Correlation with another neuron of the layer")
def correlation(table: pd.DataFrame, view: View) -> Any:
    """Largest |r| of each neuron in order, and in grey that of shuffled values."""
    from backend.figures import Line, lines

    known = table.dropna(subset=["max_corr"])
    curves = []
    for at, (layer, part) in enumerate(known.groupby("layer")):
        share = np.linspace(0, 1, len(part)) if len(part) > 1 else np.zeros(1)
        curves += [Line(f"layer {layer}, shuffled", share, part["max_corr_null"].sort_values().to_numpy(),
                        colour=NULL_GREY),
                   Line(f"layer {layer}", share, part["max_corr"].sort_values().to_numpy(),
                        colour=CATEGORIES[at % 7])]  # fmt: skip
    return lines(curves, x_title="share of neurons, in order of |r|", y_title="largest |r| with another neuron")


def _hover(row: dict[Any, Any], view: View) -> str:
    from backend.figures import label

    words = [f"L{row['layer']}N{row['neuron']}", f"max {row['max']:.3g} at token {label(view.vocab(row['max_token']))}",
             f"density {row['density']:.3g} ± {row['density_se']:.2g}"]
    if row["raises"]:
        words += [f"raises {label(token_words(row['raises'], view.vocab), 60)}",
                  f"lowers {label(token_words(row['lowers'], view.vocab), 60)}"]
    if pd.notna(row["max_corr"]):
        words.append(f"|r| {row['max_corr']:.2f} with N{int(row['partner'])} (shuffled {row['max_corr_null']:.2f})")
    return "<br>".join(words)
