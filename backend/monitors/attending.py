"""What each head attends to. Scores of repeated blocks need rows [A; A]."""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

ENTROPY = Metric("attention_entropy", "Attention entropy", "", "mean entropy of a head's attention rows over "
                 "ln(visible keys), first row left out: 1 is uniform, 0 is all on one key", per="head")  # fmt: skip
PREVIOUS = Metric("previous_token_score", "Previous-token score", "attention probability",
                  "mean attention to the position just before", per="head")  # fmt: skip
INDUCTION = Metric("induction_score", "Induction score per head", "attention probability", "prefix matching: mean "
                   "attention to the token after the earlier occurrence, on rows [A; A]", per="head")  # fmt: skip
DUPLICATE = Metric("duplicate_token_score", "Duplicate-token score", "attention probability",
                   "mean attention to the earlier occurrence of the token, on rows [A; A]", per="head")  # fmt: skip


@monitor(ENTROPY)
def attention_entropy(seen: Observation) -> Any:
    """Normalised entropy of causal attention rows, per head."""
    from backend.maths import heads

    if not seen.patterns or seen.patterns[0].shape[-1] < 2:
        return None
    visible = seen.tokens.new_tensor(range(2, seen.patterns[0].shape[-1] + 1)).double().log()
    return [(heads.attention_entropy(p)[..., 1:].double() / visible).mean((0, -1)) for p in seen.patterns]


@monitor(PREVIOUS)
def previous_token_score(seen: Observation) -> Any:
    """Attention to the position before, per head."""
    from backend.maths import heads

    if not seen.patterns or seen.patterns[0].shape[-1] < 2:
        return None
    return [heads.previous_token(p).mean(0) for p in seen.patterns]


@monitor(INDUCTION, DUPLICATE)
def repeated_attention(seen: Observation) -> dict[str, Any] | None:
    """Prefix matching and attention to the duplicate, per head."""
    from backend.maths import heads

    if not seen.patterns or seen.block < 2:
        return None
    n = seen.block
    return {"induction_score": [heads.prefix_matching(p, n).mean(0) for p in seen.patterns],
            "duplicate_token_score": [heads.duplicate_token(p, n).mean(0) for p in seen.patterns]}  # fmt: skip

