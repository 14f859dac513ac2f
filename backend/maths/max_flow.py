"""Maximum flow through layers of mixing weights: the other half of Abnar and Zuidema's attention flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

#: capacities are rounded to 1 / SCALE: the solver wants 32-bit integers, and no edge holds more than 1
SCALE = 2**24


def max_flow(mixing: Sequence[np.ndarray], query: int) -> np.ndarray:
    """Return the maximum flow from position `query` above the last layer to every position below the first: [key].

    Nodes are (layer, position), an edge from a position above layer l to one below has the capacity mixing[l][query,
    key]; nodes have none. By max-flow min-cut no flow exceeds `cut_bound`; it is at least the rollout
    prod(mixing)[query, key], for sending along each path the product of its edges is a flow. With one layer it is the
    mixing row itself. Exact but for rounded capacities: off by at most the edges of a minimal cut times 2^-25.
    Cost: one flow problem per key, on at most n_layers * pos^2 edges.
    Source: Abnar and Zuidema (2020), Quantifying Attention Flow in Transformers, section 3 (attention flow).

    Args:
        mixing: per layer, in order, [query, key], entries 0 to 1: half attention, half identity.
        query: the position that receives, 0-based.
    """
    graph, n = _graph(mixing), mixing[0].shape[0]
    source = len(mixing) * n + query
    return np.array([maximum_flow(graph, source, key).flow_value for key in range(n)]) / SCALE


def _graph(mixing: Sequence[np.ndarray]) -> csr_array:
    """Return the capacities as an integer matrix; node layer * n + position, layer 0 below the first."""
    n = mixing[0].shape[0]
    starts, ends, capacities = [], [], []
    for layer, matrix in enumerate(mixing):
        whole = np.rint(np.asarray(matrix, float) * SCALE).astype(np.int32)
        above, below = np.nonzero(whole)
        starts.append((layer + 1) * n + above)
        ends.append(layer * n + below)
        capacities.append(whole[above, below])
    size = (len(mixing) + 1) * n
    parts = [np.concatenate(p) for p in (capacities, starts, ends)]
    return csr_array((parts[0], (parts[1], parts[2])), shape=(size, size), dtype=np.int32)


def cut_bound(mixing: Sequence[np.ndarray], query: int) -> np.ndarray:
    """Return the smaller of two cuts: all that leaves the query above, all that can enter each key below: [key].

    Only positions that the query reaches count below.
    """
    reached = np.zeros(mixing[0].shape[0])
    reached[query] = 1
    for matrix in mixing[:0:-1]:
        reached = ((reached[:, None] * matrix) > 0).any(0).astype(float)
    return np.minimum(mixing[-1][query].sum(), (reached[:, None] * mixing[0]).sum(0))
