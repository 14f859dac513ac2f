"""Progress measures of modular addition: they see the circuit grow long before the test loss falls.

They need an observation of all p^2 inputs whose `logits` are those of the last position [p * p, 1, d_vocab_out], with
`extra`: p, `train` (bool [p * p]) and `neurons` [p * p, some neurons]; elsewhere they say nothing. Key frequencies
are those that explain more than 1 % of the logits' variance at this very reading; while there is none the
restricted loss is that of the mean logits (about ln p) and the excluded loss the train loss.
Source: Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability.
"""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

RESTRICTED = Metric("restricted_loss", "Restricted loss (test)", "nats", "cross-entropy on all test pairs with only "
                    "the key frequencies of a + b left in the logits", better="low")  # fmt: skip
EXCLUDED = Metric("excluded_loss", "Excluded loss (train)", "nats", "cross-entropy on the train pairs with the key "
                  "frequencies of a + b taken out of the logits; it rises as memorised answers are given up",
                  better="high")  # fmt: skip
WHOLE_TEST = Metric("full_test_loss", "Test loss, all test pairs", "nats", "cross-entropy on every test pair; "
                    "test_loss is that of a fixed random part of them", better="low")  # fmt: skip
N_KEY = Metric("n_key_frequencies", "Key frequencies", "", "frequencies that explain more than 1 % of the logits")
EXPLAINED = Metric("explained_fraction", "Explained fraction of the logits", "", "sum over all frequencies of the "
                   "fraction of the logits' variance that cos(w (a + b - c)) explains",
                   better="high", span=1.0)  # fmt: skip
FVE = Metric("fve", "Explained by one frequency", "", "fraction of the logits' variance that cos(w (a + b - c)) "
             "explains", per="frequency", span=1.0)  # fmt: skip
GINI_E = Metric("gini_W_E", "Gini of W_E over frequencies", "", "0: all Fourier components of the embedding are "
                "equally long, near 1: few hold all", better="high", span=1.0)  # fmt: skip
GINI_L = Metric("gini_W_L", "Gini of W_L over frequencies", "", "the same of the map from neurons to logits, "
                "W_L = W_out W_U", better="high", span=1.0)  # fmt: skip
CLUSTERS = Metric("neuron_clusters", "Neurons of one frequency", "", "share of neurons (in training of every 4th) with "
                  "more than 85 % of their variance in the block of one frequency",
                  better="high", span=1.0)  # fmt: skip


@monitor(RESTRICTED, EXCLUDED, WHOLE_TEST, N_KEY, EXPLAINED, FVE)
def modular_progress(seen: Observation) -> dict[str, Any] | None:
    """What the logits over all p^2 inputs say: restricted, excluded and full test loss, explained fractions."""
    if "train" not in seen.extra or "p" not in seen.extra:
        return None
    import torch
    import torch.nn.functional as F

    from backend.maths import fourier

    p, train = seen.extra["p"], seen.extra["train"]
    logits = seen.logits[:, -1, :p]
    own = torch.arange(p, device=logits.device)
    sums = (own[:, None] + own).flatten() % p
    means = fourier.class_means(logits)
    similar = fourier.cosine_similarities(means)
    key, fve = fourier.key_frequencies(similar), similar.clamp_min(0).square()
    test = F.cross_entropy(seen.logits[~train, -1].double(), sums[~train])
    return {
        "restricted_loss": fourier.loss_by_sum(
            fourier.restricted_logits(means, key), torch.bincount(sums[~train], minlength=p)),
        "excluded_loss": fourier.excluded_loss(logits[train], sums[train], fourier.projected(means, key)),
        "full_test_loss": test, "n_key_frequencies": len(key), "explained_fraction": similar.square().sum(),
        "fve": dict(enumerate(fve.tolist(), start=1)),
    }  # fmt: skip


@monitor(GINI_E, GINI_L)
def fourier_gini(seen: Observation) -> dict[str, Any] | None:
    """How unequal the Fourier components of W_E and of W_L = W_out W_U are, constant included."""
    p, weights = seen.extra.get("p"), seen.weights
    if p is None or "W_E" not in weights:
        return None
    from backend.maths import fourier

    found = {"gini_W_E": fourier.gini(fourier.component_norms(weights["W_E"][:p]))}
    if weights.get("W_out"):
        W_L = weights["W_out"][-1] @ weights["W_U"][:, :p]
        found["gini_W_L"] = fourier.gini(fourier.component_norms(W_L.T))
    return found


@monitor(CLUSTERS)
def neuron_clusters(seen: Observation) -> float | None:
    """Share of neurons that belong to one frequency."""
    neurons = seen.extra.get("neurons")
    if neurons is None:
        return None
    from backend.maths import fourier

    best = fourier.neuron_frequencies(neurons).amax(0)
    return float((best > fourier.IN_CLUSTER).double().mean())
