"""How many directions the final residual stream uses."""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

DIMENSION = Metric("effective_dimension", "Effective dimension of the residual stream", "directions", "participation "
                   "ratio of the principal components of the last resid_post over rows and positions, corrected for "
                   "the number of vectors: 1 on a line, d_model where all directions are alike")  # fmt: skip


@monitor(DIMENSION)
def effective_dimension(seen: Observation) -> Any:
    """Unbiased participation ratio; None below 4 vectors or where they do not vary."""
    if seen.resid is None:
        return None
    from backend.maths import spectra

    vectors = seen.resid.reshape(-1, seen.resid.shape[-1])
    return spectra.participation_ratio(vectors) if len(vectors) >= 4 else None
