"""How large the weights are: each matrix by itself, and each head's two maps free of the gauge.

|W_Q| and |W_K| may be traded against each other (W_Q A, W_K A^-T) without any effect; |W_Q W_K^T| may not, nor may
|W_V W_O|. Where several query heads share keys (GQA), each query head has its own map.
"""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

WHOLE, BY_LAYER = ("W_E", "W_pos", "W_U"), ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")


def _norm(name: str, per: Any) -> Metric:
    return Metric(f"weight_norm_{name}", f"Norm of {name}", "", f"Frobenius norm of {name}", per=per)


QK = Metric("qk_norm", "Norm of the QK map", "", "|W_Q W_K^T| (Frobenius), the same in every gauge", per="head")
OV = Metric("ov_norm", "Norm of the OV map", "", "|W_V W_O| (Frobenius), the same in every gauge", per="head")


@monitor(*(_norm(n, "") for n in WHOLE), *(_norm(n, "layer") for n in BY_LAYER))
def weight_norms(seen: Observation) -> dict[str, Any] | None:
    """The Frobenius norm of every matrix (of all heads together)."""
    found: dict[str, Any] = {f"weight_norm_{n}": seen.weights[n].norm() for n in WHOLE if n in seen.weights}
    for name in BY_LAYER:
        if name in seen.weights:
            found[f"weight_norm_{name}"] = [w.norm() for w in seen.weights[name]]
    return found or None


@monitor(QK, OV)
def head_norms(seen: Observation) -> dict[str, Any] | None:
    """The gauge-free norms of every head's QK and OV map, through d_head x d_head Gram matrices."""
    from backend.maths import heads, norms

    w = seen.weights
    if not {"W_Q", "W_K", "W_V", "W_O"} <= w.keys():
        return None
    qk = [norms.product_norm(*heads.grouped(k, q)[::-1]) for q, k in zip(w["W_Q"], w["W_K"], strict=True)]
    ov = [norms.product_norm(v, o.transpose(-1, -2))
          for v, o in (heads.grouped(*pair) for pair in zip(w["W_V"], w["W_O"], strict=True))]  # fmt: skip
    return {"qk_norm": qk, "ov_norm": ov}
