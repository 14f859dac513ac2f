"""What is one feature of a sparse autoencoder: where is it active, what does it write, which features are near?

`top`, `q90`, `q50`, `random`: tokens of the corpus with `context` tokens on either side and the feature's `value` on
each, chosen as in neuron_examples; the quantiles are those of the tokens on which it is active, `random` is of all. The
`rank` of an example is the number of tokens with a larger value. `raises` and `lowers`: the tokens to which its unit
direction adds and takes most, read through W_U with the mean over tokens taken off (`value`, a logit before the final
norm's scale; see sae_features). `near`: the other features whose directions have the largest cosine with it (`value`).

Exact over the corpus; nothing is estimated, so there is no error bar. The control of a list is `null`: the mean over
100 random directions of the value at the same place of their list. A list no longer than its null says nothing.
Cost: one forward over the corpus and one encoding per token.
Source: Bricken et al. (2023), Towards Monosemanticity (feature cards); Lin (2023), Neuronpedia; Bolukbasi et al.
(2021), An Interpretability Illusion for BERT (why top examples mislead).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _contexts, _saes
from backend.analyses._units import batches
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, bars, label

DRAWS = 100  # random directions of the null
LISTS = ("raises", "lowers", "near")


class FeatureCardParams(Params):
    """Which feature, and how much of everything."""

    sae: str = Field("", max_length=1000, description="run of the autoencoder (recipe sae), or a SAELens folder")
    sae_step: int = Field(-1, ge=-1, le=2**31 - 1, description="its checkpoint; -1: the last of its training")
    feature: int = Field(0, ge=0, le=1_000_000, description="feature of the autoencoder")
    n: int = Field(5, ge=1, le=50, description="examples of each kind, at most")
    context: int = Field(8, ge=0, le=64, description="tokens shown on either side")
    listed: int = Field(8, ge=1, le=50, description="tokens raised and lowered, and features near")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the random examples and directions")

    named: ClassVar = {"sae": "sae"}

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """The autoencoder."""
        return _saes.named((self.sae, self.sae_step))


@analysis(
    version=2, group="Neurons & features",
    title="Card of a feature", asks="Where is a feature active, what does it write, and which others are near?",
    subject=Corpus, params=FeatureCardParams,
    axes=[Axis("kind", "top; q90, q50: closest to this quantile; random; raises; lowers; near", kind="str"),
          Axis("example", "running number within the kind"),
          Axis("offset", "place from the example's token, which is 0; 0 in a list", "token")],
    values=[
        Value("row", "row of the corpus; NULL in a list", kind="int"),
        Value("pos", "position in the row; NULL in a list", "token", kind="int"),
        Value("token", "the token there; raises, lowers: the token; NULL for near", kind="int"),
        Value("value", "activation on the token; raises, lowers: logit; near: cosine"),
        Value("rank", "tokens of the corpus with a larger activation than the example's; NULL in a list", kind="int"),
        Value("feature", "near: the other feature; else NULL", kind="int"),
        Value("null", "in a list: the same place of a random direction's list, mean; else NULL"),
    ],
)  # fmt: skip
def feature_card(model: Model, subject: Rows, params: FeatureCardParams, progress: Progress) -> pd.DataFrame:
    """Return the examples, then the lists."""
    made, sae = _saes.opened(model, params.sae, params.sae_step)
    feature, parts = _saes.feature_of(sae, params.sae, params.feature), []
    for start, tokens in batches(model, subject, 3 * len(sae.W_dec)):
        progress(start / len(subject.tokens), f"Row {start} of {len(subject.tokens)}")
        parts.append(_saes.encoded(model, made, sae, tokens)[..., feature].cpu().numpy())
    found = _contexts.examples(
        np.concatenate(parts), subject.tokens, params.n, params.context, params.seed, active=True
    )
    listed = lists(model, made, sae.W_dec.detach(), feature, params.listed, params.seed)
    frame = pd.concat([found.rename(columns={"activation": "value"}), listed], ignore_index=True)
    whole = ["row", "pos", "token", "rank", "feature"]
    frame[whole] = frame[whole].astype("Int64")
    return frame[["kind", "example", "offset", "row", "pos", "token", "value", "rank", "feature", "null"]]


def lists(model: Model, made: dict[str, Any], W_dec: Any, feature: int, k: int, seed: int) -> pd.DataFrame:  # noqa: N803
    """Return the lists [kind, example] of one of the directions W_dec [feature, d_in], each beside its null."""
    import torch

    from backend.maths.sae import unit

    drawn = torch.randn(DRAWS, W_dec.shape[1], generator=_saes.dice(seed), dtype=torch.float64)
    every = unit(torch.cat([W_dec[feature : feature + 1].double().cpu(), drawn]))
    others = torch.cat([W_dec[:feature], W_dec[feature + 1 :]]).double().cpu()
    names = np.delete(np.arange(len(W_dec)), feature)
    rows = _list("near", every @ unit(others).T, k, "feature", names)
    through = _saes.written(model, made, every.to(W_dec.device))
    if through is not None:
        effect = (through[0] @ through[1].to(through[0].dtype)).cpu()
        effect = effect - effect.mean(1, keepdim=True)
        tokens = np.arange(effect.shape[1])
        rows = [*_list("raises", effect, k, "token", tokens), *_list("lowers", effect, k, "token", tokens, -1), *rows]
    return pd.DataFrame(rows, columns=["kind", "example", "offset", "token", "value", "feature", "null"])


def _list(kind: str, values: Any, k: int, name: str, names: np.ndarray, sign: int = 1) -> list[dict[str, Any]]:
    """Return the k largest (with sign -1 smallest) of values [0], beside the mean of the other rows at their places."""
    order = (sign * values).sort(dim=1, descending=True, stable=True)
    best, null = sign * order.values[0, :k], sign * order.values[1:, :k].mean(0)
    return [{"kind": kind, "example": i, "offset": 0, name: int(names[at]), "value": float(v), "null": float(n)}
            for i, (at, v, n) in enumerate(zip(order.indices[0, :k].tolist(), best, null, strict=True))]  # fmt: skip


@feature_card.costs
def work(card: ModelCard, subject: Corpus, params: FeatureCardParams, *made: Mapping[str, Any]) -> Work:
    """The corpus once through model and encoder; then the direction and random ones against features and tokens."""
    plan = Plan(card)
    n, d_in, batch, encoding = _saes.passed(plan, subject, params.sae, made)
    _saes.plan_written(plan, made[0]["point"])
    listed = 2 * (1 + DRAWS) * (d_in * n + card.d_model * card.d_vocab_out)
    held = 8 * n * d_in + 12 * batch * n + 32 * subject.rows * min(subject.length, card.n_ctx)
    return plan.total(held + 24 * (1 + DRAWS) * max(n, card.d_vocab_out), encoding + listed, FEWER_ROWS)


# ---------------------------------------------------------------- figures


@feature_card.figure("In context")
def contexts(table: pd.DataFrame, view: View) -> Any:
    """One line of tokens per example, coloured by the feature's activation; blank where the row ends."""
    shown = table[~table["kind"].isin(LISTS)].rename(columns={"value": "activation"})
    return _contexts.token_strips(shown, view, "activation")


@feature_card.figure("Logits")
def logits(table: pd.DataFrame, view: View) -> Any:
    """Tokens that its direction raises and lowers most; grey: a random direction's at the same place."""
    if not table["kind"].isin(["raises", "lowers"]).any():
        return bars(["unknown"], [0.0], x_title="token (a norm stands behind what the feature writes through)",
                    y_title="logit")  # fmt: skip
    high, low = table[table["kind"] == "raises"], table[table["kind"] == "lowers"].iloc[::-1]
    shown = pd.concat([high, low])
    names = [label(view.vocab(int(t))) + "\u200b" * at for at, t in enumerate(shown["token"])]
    colours = [CATEGORIES[5 if v > 0 else 0] for v in shown["value"]]
    words = "token (raised most … lowered most)"
    return bars(names, shown["value"], null=shown["null"], colours=colours, x_title=words,
                y_title="logit, unit direction", names_of=("this feature", "random direction"))  # fmt: skip


@feature_card.figure("Nearest features")
def near(table: pd.DataFrame, view: View) -> Any:
    """The features whose directions are closest; grey: those closest to a random direction."""
    shown = table[table["kind"] == "near"]
    return bars([f"F{i}" for i in shown["feature"]], shown["value"], null=shown["null"], x_title="other feature",
                y_title="cosine", names_of=("this feature", "random direction"))  # fmt: skip
