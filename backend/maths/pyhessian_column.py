"""PyHessian 0.1 as a column of comparison, where it is installed; never the source of a number that stands alone.

It is not among the requirements: its LICENSE says MIT, the header of its utils.py GPL-3. Its code is called here, not
copied or mended; what is known to be wrong with it is said where it is shown (analyses/hessian_spectrum.py).
Source: Yao, Gholami, Keutzer and Mahoney (2020), PyHessian: neural networks through the lens of the Hessian.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


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


Forward = Callable[[Sequence[Tensor], Tensor], Tensor]  # (parameters, inputs) -> outputs
Criterion = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> a mean loss


def top(
    forward: Forward, criterion: Criterion, parameters: Sequence[Tensor], data: tuple[Tensor, Tensor], k: int,
    seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """Return what it says are the k largest eigenvalues [k] at its own defaults (100 iterations, tol 1e-3).

    Raises ImportError where it is not installed. Its random numbers are torch's global ones, seeded and put back.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values, _ = _opened(forward, criterion, parameters, data).eigenvalues(top_n=k)
    return np.array(values, float)


def trace(
    forward: Forward, criterion: Criterion, parameters: Sequence[Tensor], data: tuple[Tensor, Tensor], seed: int = 0
) -> float:
    """Return its trace, the mean of its probes; as `top`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return float(np.mean(_opened(forward, criterion, parameters, data).trace()))


def _opened(forward: Forward, criterion: Criterion, parameters: Sequence[Tensor], data: tuple[Tensor, Tensor]) -> Any:
    from pyhessian import hessian

    return hessian(_Module(forward, parameters), criterion, data=data, cuda=False)
