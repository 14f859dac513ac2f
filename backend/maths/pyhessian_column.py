"""PyHessian 0.1 as a column of comparison, where it is installed; never the source of a number that stands alone.

It is not among the requirements: its LICENSE says MIT, the header of its utils.py GPL-3. What is known to be wrong with
the released version on torch 2 is in FAILURES; its code is called here, not copied or mended.
Source: Yao, Gholami, Keutzer and Mahoney (2020), PyHessian: neural networks through the lens of the Hessian.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

INSTALL = "pip install --no-deps pyhessian==0.1"
FAILURES = (
    "its eigenvalues come ordered by |lambda| from a power iteration that stops on a small change, so some are wrong "
    "or missing and the small end is not seen; its trace stops early, at once where it is negative; its density raises "
    "on torch 2 (torch.eig is gone)"
)


def installed() -> bool:
    """Say whether it can be imported here."""
    return importlib.util.find_spec("pyhessian") is not None


class _Module(nn.Module):
    """A function of inputs and parameters as the module that PyHessian takes."""

    def __init__(self, forward: Callable[[Sequence[Tensor], Tensor], Tensor], parameters: Sequence[Tensor]):
        super().__init__()
        self.mine = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in parameters])
        self.function = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(list(self.mine), inputs)


def top_and_trace(
    forward: Callable[[Sequence[Tensor], Tensor], Tensor], criterion: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[Tensor], data: tuple[Tensor, Tensor], k: int, seed: int = 0,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Return (what it says are the k largest eigenvalues, its trace) at its own defaults (100 iterations, tol 1e-3).

    Args:
        forward: (parameters, inputs) -> outputs; criterion: (outputs, targets) -> a mean loss; data: all at once.
    Raises ImportError where it is not installed. Its random numbers are torch's global ones, seeded and put back.
    """
    from pyhessian import hessian

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = hessian(_Module(forward, parameters), criterion, data=data, cuda=False)
        values, _ = found.eigenvalues(top_n=k)
        trace = found.trace()
    return np.array(values, float), float(np.mean(trace))
