"""How large the weights are, in themselves and in the products that no change of basis inside a head alters."""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

WHOLE = ("W_E", "W_pos", "W_U")
LAYERED = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")
NORMS = tuple(
    Metric(f"weight_norm_{name}", f"Norm of {name}", "", f"Frobenius norm of {name}",
           per="layer" if name in LAYERED else "")
    for name in (*WHOLE, *LAYERED)
)  # fmt: skip
QK = Metric("qk_norm", "Norm of W_Q W_K^T", "", "Frobenius norm, the same in every basis of the head", per="head")
OV = Metric("ov_norm", "Norm of W_V W_O", "", "Frobenius norm, the same in every basis of the head", per="head")
COPYING = Metric("copying_score", "Copying score", "", "eigenvalues of W_E W_V W_O W_U, their sum over that of their "
                 "moduli: 1 where a head raises the logit of what it attends to, -1 where it lowers it",
                 per="head")  # fmt: skip
DIMENSION = Metric("effective_dimension", "Effective dimension", "", "participation ratio of the principal components "
                   "of the last residual stream over all positions: d_model if round, 1 if a line")  # fmt: skip


@monitor(*NORMS)
def weight_norm(seen: Observation) -> dict[str, Any] | None:
    """Frobenius norm of every matrix (of a layer: all heads together)."""
    found: dict[str, Any] = {f"weight_norm_{n}": seen.weights[n].norm() for n in WHOLE if n in seen.weights}
    found |= {f"weight_norm_{n}": [w.norm() for w in seen.weights[n]] for n in LAYERED if n in seen.weights}
    return found or None


@monitor(QK, OV)
def gauge_free_norms(seen: Observation) -> dict[str, Any] | None:
    """Norms of the QK and OV matrices, per head."""
    from backend.maths import norms

    w = seen.weights
    if not all(name in w for name in ("W_Q", "W_K", "W_V", "W_O")):
        return None
    return {"qk_norm": [norms.qk_norm(q, k) for q, k in zip(w["W_Q"], w["W_K"], strict=True)],
            "ov_norm": [norms.ov_norm(v, o) for v, o in zip(w["W_V"], w["W_O"], strict=True)]}  # fmt: skip


@monitor(COPYING)
def copying_score(seen: Observation) -> Any:
    """Elhage's eigenvalue score of the OV circuit, per head; nothing where input and output vocabularies differ."""
    from backend.maths import norms

    w = seen.weights
    if not all(n in w for n in ("W_E", "W_U", "W_V", "W_O")) or w["W_E"].shape[0] != w["W_U"].shape[1]:
        return None
    return [norms.copying(w["W_E"], v, o, w["W_U"]) for v, o in zip(w["W_V"], w["W_O"], strict=True)]


@monitor(DIMENSION)
def effective_dimension(seen: Observation) -> Any:
    """Participation ratio of the last residual stream."""
    from backend.maths import norms

    if seen.resid is None or seen.resid.shape[0] * seen.resid.shape[1] < 2:
        return None
    return norms.effective_dimension(seen.resid.flatten(0, 1))
