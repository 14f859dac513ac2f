"""What heads attend to, and what they copy: one number per head.

Scores on rows [A; A] need `block`; the others any rows. Source: Olsson et al. (2022); Elhage et al. (2021), A
Mathematical Framework for Transformer Circuits ("copying": sum of eigenvalues over the sum of their sizes).
"""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

INDUCTION = Metric("induction_score", "Induction score (prefix matching)", "", "attention to the token after the "
                   "earlier occurrence, on rows [A; A]", per="head", better="high", span=1.0)  # fmt: skip
PREVIOUS = Metric("previous_token_score", "Previous-token score", "", "attention to the position just before",
                  per="head", span=1.0)  # fmt: skip
DUPLICATE = Metric("duplicate_token_score", "Duplicate-token score", "", "attention to the earlier occurrence of the "
                   "same token, on rows [A; A]", per="head", span=1.0)  # fmt: skip
ENTROPY = Metric("attention_entropy", "Attention entropy", "", "entropy of a row divided by ln(keys it may see), mean "
                 "over queries with 2 or more: 1 for uniform attention, 0 for a single key",
                 per="head", span=1.0)  # fmt: skip
COPYING = Metric("copying_score", "Copying score", "", "sum of the eigenvalues of W_E W_V W_O W_U over the sum of "
                 "their sizes: 1 where attending to a token raises its own logit, -1 where it lowers it. Norms are "
                 "left out", per="head", span=2.0)  # fmt: skip


@monitor(INDUCTION)
def induction_score(seen: Observation) -> Any:
    """Prefix matching of every head, mean over rows."""
    from backend.maths import heads

    return [heads.prefix_matching(p, seen.block).mean(0) for p in _repeated(seen, 2)]


@monitor(PREVIOUS)
def previous_token_score(seen: Observation) -> Any:
    """Attention to the position before, mean over rows."""
    from backend.maths import heads

    return [heads.previous_token(p).mean(0) for p in _patterns(seen)]


@monitor(DUPLICATE)
def duplicate_token_score(seen: Observation) -> Any:
    """Attention to the same token's earlier occurrence, mean over rows."""
    from backend.maths import heads

    return [heads.duplicate_token(p, seen.block).mean(0) for p in _repeated(seen, 1)]


@monitor(ENTROPY)
def attention_entropy(seen: Observation) -> Any:
    """Normalised entropy of the attention rows, mean over rows and queries."""
    from backend.maths import heads

    causal = bool(seen.extra.get("causal", True))
    return [heads.normalised_entropy(p, causal).mean((0, -1)) for p in _patterns(seen)]


@monitor(COPYING)
def copying_score(seen: Observation) -> Any:
    """Elhage's copying score of every head; None where the weights are not known or its maps do not fit."""
    from backend.maths import heads

    w = seen.weights
    if not {"W_E", "W_U", "W_V", "W_O"} <= w.keys() or len(w["W_E"]) != w["W_U"].shape[1]:
        return None
    inner = heads.token_map(w["W_E"], w["W_U"])
    return [heads.copying_score(*heads.grouped(v, o), inner) for v, o in zip(w["W_V"], w["W_O"], strict=True)]


def _patterns(seen: Observation) -> list[Any]:
    wide = [p if p.element_size() >= 4 else p.float() for p in seen.patterns]
    return [p for p in wide if p.shape[-1] >= 2]


def _repeated(seen: Observation, least: int) -> list[Any]:
    fits = seen.block >= least and seen.tokens.shape[1] >= 2 * seen.block
    return _patterns(seen) if fits else []
