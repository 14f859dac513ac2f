"""What does each feature of a sparse autoencoder stand for?

For every feature over all tokens of the corpus: `density` (share of tokens on which it is active), `mean_active`,
`max` and where it stands; `tops`, the tokens of its `examples` largest activations; `raises` and `lowers`, the tokens
to which its direction adds and takes most, read through W_U as in `neurons` (a direction of mlp_post through W_out, of
z through W_O); `nearest`, the other feature with the largest cosine. Features active on no token of the corpus are
kept: dead here, perhaps not elsewhere.

Exact over the corpus, with the autoencoder as used after training. `density_se` is the standard error over rows.
`tops` alone mislead: a feature of high density means little by them. Tokens raised are empty where the weights are not
known by name. Cost: one forward over the corpus and d_sae d_in multiplications per token.
Source: Bricken et al. (2023), Towards Monosemanticity (feature cards); Lin (2023), Neuronpedia.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _saes
from backend.analyses._units import batches, logit_effects, token_words
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, bars, label, scatter

TOKENS = 5
RANKED = 24
BINS = 24


class SaeFeaturesParams(Params):
    """Which autoencoder, and how many examples."""

    sae: str = Field("", max_length=1000, description="run of the autoencoder (recipe sae), or a SAELens folder")
    sae_step: int = Field(-1, ge=-1, le=2**31 - 1, description="its checkpoint; -1: the last of its training")
    examples: int = Field(5, ge=1, le=20, description="largest activations whose tokens are kept")

    named: ClassVar = {"sae": "sae"}

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """The autoencoder."""
        return _saes.named((self.sae, self.sae_step))


@analysis(
    version=2, group="Neurons & features",
    title="Features of an SAE", asks="What does each feature of a sparse autoencoder stand for?",
    subject=Corpus, params=SaeFeaturesParams,
    axes=[Axis("feature", "feature of the autoencoder")],
    values=[
        Value("density", "share of tokens on which it is active"),
        Value("density_se", "its standard error over rows; NULL for one row"),
        Value("mean_active", "mean activation where it is active; NULL where never"),
        Value("max", "largest activation"),
        Value("max_row", "row of the largest activation", kind="int"),
        Value("max_pos", "its position in the row", kind="int"),
        Value("tops", "ids of the tokens of its largest activations, the largest first; empty where never", kind="str"),
        Value("raises", "ids of the tokens that its direction raises most", kind="str"),
        Value("lowers", "ids of the tokens that its direction lowers most", kind="str"),
        Value("effect", "largest entry of its direction through W_U minus the mean over tokens"),
        Value("nearest", "the other feature whose direction is closest", kind="int"),
        Value("nearest_cosine", "cosine with it"),
    ],
)
def sae_features(model: Model, subject: Rows, params: SaeFeaturesParams, progress: Progress) -> pd.DataFrame:
    """Return one row per feature."""
    from backend.maths import streaming
    from backend.maths.sae import unit

    made, sae = _saes.opened(model, params.sae, params.sae_step)
    all_of, by_row, top = streaming.Moments(), streaming.Moments(), streaming.Top(params.examples)
    for start, tokens in batches(model, subject, 3 * len(sae.W_dec)):
        progress(start / len(subject.tokens), f"Row {start} of {len(subject.tokens)}")
        features = _saes.encoded(model, made, sae, tokens).cpu()
        by_row.update((features > 0).double().mean(1))
        all_of.update(features.flatten(0, 1))
        top.update(features.flatten(0, 1))
    directions = unit(sae.W_dec.detach())
    cosine, nearest = streaming.closest_other(directions @ directions.T)
    frame = _table(subject, all_of, by_row, top).assign(**_written(model, made, sae.W_dec.detach()))
    return frame.assign(nearest=nearest.cpu().numpy(), nearest_cosine=cosine.double().cpu().numpy())


def _table(subject: Rows, all_of: Any, by_row: Any, top: Any) -> pd.DataFrame:
    row, pos = np.divmod(top.samples.numpy(), subject.tokens.shape[1])
    values, tokens = top.values.numpy(), subject.tokens[row, pos]
    tops = [" ".join(str(t) for t, v in zip(tokens[:, i], values[:, i], strict=True) if v > 0)
            for i in range(values.shape[1])]
    return pd.DataFrame({
        "feature": range(len(tops)), **_saes.activity(all_of, by_row),
        "max": values[0].astype(float), "max_row": row[0], "max_pos": pos[0], "tops": tops,
    })  # fmt: skip


def _written(model: Model, made: dict[str, Any], directions: Any) -> dict[str, Any]:
    """Return the columns raises, lowers, effect; empty where the weights are not known by name."""
    found = _saes.written(model, made, directions)
    if found is None:
        return {"raises": "", "lowers": "", "effect": np.nan}
    high, low, effect = logit_effects(*found, TOKENS)
    return {"raises": high, "lowers": low, "effect": effect.astype(float)}


@sae_features.costs
def work(card: ModelCard, subject: Corpus, params: SaeFeaturesParams, *made: Mapping[str, Any]) -> Work:
    """The corpus once through model and encoder; every direction against every other and against all tokens."""
    plan = Plan(card)
    n, d_in, batch, encoding = _saes.passed(plan, subject, params.sae, made)
    _saes.plan_written(plan, made[0]["point"])
    written = 2 * n * (n * d_in + card.d_model * card.d_vocab_out)
    held = 8 * n * d_in + 32 * batch * n + 8 * n**2 + 16 * min(n, 1024) * card.d_vocab_out
    return plan.total(held, encoding + written, FEWER_ROWS)


# ---------------------------------------------------------------- figures


@sae_features.figure("Densities")
def densities(table: pd.DataFrame, view: View) -> Any:
    """How many features have which density, on a logarithmic scale; grey: active on no token of the corpus."""
    alive = table["density"][table["density"] > 0]
    edges = np.linspace(np.log10(alive.min()) if len(alive) else -4, 0, BINS + 1)
    counts, _ = np.histogram(np.log10(alive), edges)
    names = ["never", *(f"{10 ** (a + (b - a) / 2):.2g}" for a, b in zip(edges[:-1], edges[1:], strict=True))]
    names = [f"{name}{'​' * at}" for at, name in enumerate(names)]  # equal labels are still bars of their own
    return bars(names, [len(table) - len(alive), *counts], colours=[NULL_GREY, *[CATEGORIES[0]] * BINS],
                x_title="density (share of tokens, logarithmic bins)", y_title="features")  # fmt: skip


@sae_features.figure("Density and largest activation")
def cards(table: pd.DataFrame, view: View) -> Any:
    """Every feature that is active somewhere; its card is in the hover."""
    shown = table[table["density"] > 0]
    figure = scatter(shown["density"], shown["max"], hover=[_card(row, view) for row in shown.to_dict("records")],
                     x_title=f"density (share of tokens, logarithmic; {len(shown)} of {len(table)} features)",
                     y_title="largest activation")
    return figure.update_xaxes(type="log")


@sae_features.figure("The most active features")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The features of the highest density; what each stands for is in the hover."""
    shown = table.nlargest(RANKED, "density")
    return bars([f"F{i}" for i in shown["feature"]], shown["density"], errors=shown["density_se"],
                hover=[_card(row, view) for row in shown.to_dict("records")],
                x_title=f"feature ({len(shown)} of {len(table)} shown)", y_title="density (share of tokens)")


def _card(row: dict[Any, Any], view: View) -> str:
    words = [f"feature {row['feature']}: density {row['density']:.3g} ± {row['density_se']:.2g}, max {row['max']:.3g}",
             f"top tokens {label(token_words(row['tops'], view.vocab), 60)}"]
    if row["raises"]:
        words += [f"raises {label(token_words(row['raises'], view.vocab), 60)}",
                  f"lowers {label(token_words(row['lowers'], view.vocab), 60)}"]
    return "<br>".join([*words, f"nearest: feature {row['nearest']}, cosine {row['nearest_cosine']:.2f}"])
