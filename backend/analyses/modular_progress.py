"""How far has a model of modular addition come: which frequencies carry its answers, what is memorised?

On all p^2 inputs (a, b, '=') with logits L of the last position ('=' dropped): `fve` of frequency w is the fraction of
L's variance (each input's mean over classes taken off) that cos(w (a + b - c)) explains; key frequencies have more than
`least_fve`, or are those given. P projects on cos and sin of w (a + b) for all key w. `restricted_loss` is the
cross-entropy of P L - mean(P L) + mean(L) on test pairs, `excluded_loss` that of L - P L on train pairs, in all and
taking one frequency out at a time. `gini_W_E`, `gini_W_L`: Gini of the norms of the Fourier components. A neuron
belongs to the frequency whose block holds more than 85 % of its variance: `neurons` counts them by frequency,
`neuron_clusters` is the share that belongs to any.

Without a known split (a run of the recipe has one) every loss is over all pairs. Exact. One forward on p^2 inputs.
Source: Nanda et al. (2023), Progress measures for grokking; Chughtai et al. (2023), A toy model of universality.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from backend.analyses._modular import BATCH, MOST_P, modulus, seen_everywhere, split_of
from backend.analyses._work import Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Value, View, Weights, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import bars

LOSSES = ("train_loss", "test_loss", "restricted_loss", "excluded_loss")


class ModularProgressParams(Params):
    """The modulus, the split, and which frequencies are key."""

    p: int = Field(0, ge=0, le=MOST_P, description="modulus; 0: the run's own, else d_vocab - 1")
    train_fraction: float = Field(0.0, ge=0, le=0.99, description="share of train pairs; 0: the run's own split")
    split_seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the split, where train_fraction is given")
    least_fve: float = Field(0.01, ge=0, le=1, description="a frequency above this fraction of the logits is key")
    key: str = Field("", pattern=r"^(\d+(,\d+)*)?$", max_length=200, description="key frequencies such as 14,35,42 "
                     "(say those of the last checkpoint); empty: by least_fve")  # fmt: skip


@analysis(
    version=1, group="Training", title="Progress of modular addition",
    asks="Which frequencies carry the answers, and how much is memorised?",
    subject=Weights, params=ModularProgressParams, needs=["mlp", "named_weights"],
    axes=[Axis("measure", "which measure, as in the text above", kind="str"),
          Axis("frequency", "w it is of; 0: the whole model", "cycles per p")],
    values=[Value("value", "losses in nats; fractions 0 to 1; neurons and key frequencies are counts")],
)
def modular_progress(model: Model, subject: Weights, params: ModularProgressParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (measure, frequency)."""
    from backend.maths import fourier

    p = modulus(model, params.p, MOST_P)
    progress(0.05, f"{p * p} inputs")
    logits, neurons = seen_everywhere(model, p, neurons=True)
    progress(0.6, "Progress measures")
    means = fourier.class_means(logits[:, :p].double())
    similar = fourier.cosine_similarities(means)
    key = _given(params.key, p) or fourier.key_frequencies(similar, params.least_fve)
    train = split_of(model, p, params.train_fraction, params.split_seed)
    whole, by_frequency = _losses(logits.double(), means, key, train, p)
    held = fourier.neuron_frequencies(neurons)
    best = held.argmax(0).where(held.amax(0) > fourier.IN_CLUSTER, -1)
    counts = best[best >= 0].bincount(minlength=p // 2)
    whole |= {"explained_fraction": float(similar.square().sum()), "n_key_frequencies": float(len(key)),
              "neuron_clusters": float((best >= 0).double().mean()), **_gini(model.weights(), p)}  # fmt: skip
    rows = [(name, 0, value) for name, value in whole.items()]
    each = {"fve": similar.clamp_min(0).square().tolist(), "cosine_similarity": similar.tolist(),
            "key": [float(w in key) for w in range(1, 1 + p // 2)], "neurons": counts.double().tolist()}  # fmt: skip
    rows += [(name, w, value) for name, values in each.items() for w, value in enumerate(values, start=1)]
    rows += [("excluded_loss", w, value) for w, value in by_frequency.items()]
    return pd.DataFrame(rows, columns=["measure", "frequency", "value"])


def _given(key: str, p: int) -> list[int]:
    chosen = sorted({int(w) for w in key.split(",") if w})
    if any(not 1 <= w <= p // 2 for w in chosen):
        raise BadInput(f"Key frequencies {key}", f"they are from 1 to {p // 2} for p = {p}", "Correct them")
    return chosen


def _losses(logits: Any, means: Any, key: list[int], train: Any, p: int) -> tuple[dict[str, float], dict[int, float]]:
    """Return ({measure: nats}, {frequency: excluded loss with it alone taken out})."""
    import torch
    import torch.nn.functional as F

    from backend.maths import fourier, modular_addition

    sums = modular_addition.answers(modular_addition.all_pairs(p), p)
    every = torch.ones(p * p, dtype=torch.bool)
    fit, held_out = (every, every) if train is None else (train, ~train)

    def excluded(frequencies: list[int]) -> float:
        inside = fourier.projected(means, frequencies)
        return float(fourier.excluded_loss(logits[fit][:, :p], sums[fit], inside))

    restricted = fourier.loss_by_sum(fourier.restricted_logits(means, key), sums[held_out].bincount(minlength=p))
    whole = {"train_loss": float(F.cross_entropy(logits[fit], sums[fit])),
             "test_loss": float(F.cross_entropy(logits[held_out], sums[held_out])),
             "restricted_loss": float(restricted), "excluded_loss": excluded(key)}  # fmt: skip
    return whole, {w: excluded([w]) for w in key}


def _gini(weights: dict[str, Any], p: int) -> dict[str, float]:
    from backend.maths import fourier

    W_L = (weights["W_out"][-1] @ weights["W_U"][:, :p]).T
    wide = {"gini_W_E": weights["W_E"][:p].double(), "gini_W_L": W_L.double()}
    return {name: float(fourier.gini(fourier.component_norms(m))) for name, m in wide.items()}


@modular_progress.costs
def work(card: ModelCard, subject: Weights, params: ModularProgressParams) -> Work:
    """All inputs twice, for the logits and for the neurons; then products of these with waves."""
    plan, p = Plan(card), modulus(Plan(card), params.p, MOST_P)
    plan.call_parts(p * p, BATCH, 3, n=2)
    kept = 12 * p * p * (card.d_vocab_out + card.d_mlp) + 160 * p**2
    return plan.total(kept + 4 * BATCH * card.d_mlp, 2 * p**4, "Give a smaller p")


# ---------------------------------------------------------------- figures


@modular_progress.figure("Losses")
def losses(table: pd.DataFrame, view: View) -> Any:
    """Train, test, restricted and excluded loss side by side."""
    whole = table[table["frequency"] == 0].set_index("measure")["value"]
    return bars([name.replace("_", " ") for name in LOSSES], [whole[name] for name in LOSSES], x_title="loss",
                y_title="cross-entropy (nats)")


@modular_progress.figure("What each frequency explains")
def explained(table: pd.DataFrame, view: View) -> Any:
    """Fraction of the logits' variance by frequency."""
    rows = table[table["measure"] == "fve"]
    return bars([str(w) for w in rows["frequency"]], rows["value"], x_title="frequency w (cycles per p)",
                y_title="fraction of the logits' variance")


@modular_progress.figure("Neurons of each frequency")
def clusters(table: pd.DataFrame, view: View) -> Any:
    """How many neurons hold more than 85 % of their variance in one frequency."""
    rows = table[table["measure"] == "neurons"]
    return bars([str(w) for w in rows["frequency"]], rows["value"], x_title="frequency w (cycles per p)",
                y_title="neurons")
