"""Fourier analysis over the integers modulo n: spectra of matrices, and progress measures of modular addition.

Frequencies are w = 1 .. (n-1)/2 (n odd), each a cosine and a sine of unit length over 0..n-1.
Sources: Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability; Chughtai et al. (2023),
A toy model of universality (2302.03025), for the cosine similarities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_FVE = 0.01  # a frequency is key where it explains more than this of the logits' variance (reference 2.5)
IN_CLUSTER = 0.85  # a neuron belongs to a frequency that holds more than this of its variance (Nanda et al. 2023)


def basis(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the orthonormal real Fourier basis over 0..n-1, n odd: [n, n], rows constant, cos 1, sin 1, cos 2, ...

    Raises:
        ValueError: n is even or below 3.
    """
    if n < 3 or n % 2 == 0:
        raise ValueError(f"n = {n} is no odd number from 3")
    angle = 2 * torch.pi * torch.outer(torch.arange(1, n // 2 + 1), torch.arange(n)).double() / n
    waves = torch.stack([angle.cos(), angle.sin()], 1).flatten(0, 1) * (2 / n) ** 0.5
    return torch.cat([torch.full((1, n), n**-0.5, dtype=torch.float64), waves]).to(dtype)


def component_norms(matrix: Tensor) -> Tensor:
    """Return the length of each Fourier component over the rows of [n, width]: [n], ordered as `basis`."""
    return (basis(len(matrix), matrix.dtype).to(matrix.device) @ matrix).norm(dim=1)


def power(matrix: Tensor) -> Tensor:
    """Return the share of ||matrix||^2 that each frequency holds: [1 + (n-1)/2], the constant first; sums to 1."""
    squared = component_norms(matrix).square()
    return torch.cat([squared[:1], squared[1:].unflatten(0, (-1, 2)).sum(1)]) / squared.sum()


def gini(values: Tensor) -> Tensor:
    """Compute the Gini coefficient sum_i (2 i - n - 1) x_(i) / (n sum x) of n numbers >= 0, x_(i) ascending.

    0 where all are equal, (n - 1) / n where all but one are 0.
    """
    n, ordered = len(values), values.sort().values
    return ((2 * torch.arange(1, n + 1, device=values.device) - n - 1) * ordered).sum() / (n * ordered.sum())


@dataclass
class ClassMeans:
    """Logits of all p^2 inputs as their means over inputs of one sum s, and the size of what is explained.

    Every projection on cos or sin of w (a + b) sees the logits through these means only, so p x p numbers do.
    """

    by_sum: Tensor  # [s, class]: mean of the logits over the p inputs with (a + b) mod p = s
    variance: Tensor  # squared length of the logits, each input's mean over classes (which no softmax sees) taken off


def class_means(logits: Tensor) -> ClassMeans:
    """Summarise logits [p * p, p] (row a * p + b; the column of '=' dropped already)."""
    p = logits.shape[1]
    own = torch.arange(p, device=logits.device)
    by_sum = logits.new_zeros(p, p).index_add_(0, (own[:, None] + own).flatten() % p, logits) / p
    return ClassMeans(by_sum, logits.square().sum() - logits.sum(1).square().sum() / p)


def cosine_similarities(means: ClassMeans) -> Tensor:
    """Compute cs_w = <C_w, L> / (||C_w|| ||L||) of C_w = cos(2 pi w (a + b - c) / p): [(p-1)/2].

    L are the logits with each input's mean over classes taken off; this centring gives the published numbers of
    C113_T (over inputs instead it does not). FVE_w = cs_w^2 is the share of ||L||^2 that C_w explains; the C_w are
    orthogonal. Why p x p numbers do: C_w depends on s = a + b and c alone, so <C_w, L> = p <C_w, class means> and
    ||C_w||^2 = p^3 / 2.
    """
    p = len(means.by_sum)
    return p * _coefficients(means) / (p**3 / 2 * means.variance).sqrt()


def _coefficients(means: ClassMeans) -> Tensor:
    """Return sum over (s, c) of cos(2 pi w (s - c) / p) times the class means: [(p-1)/2]."""
    p = len(means.by_sum)
    own = torch.arange(p, device=means.by_sum.device)
    along = means.by_sum.gather(1, (own[:, None] - own) % p).sum(0)  # the class s - d of every sum s
    return (p / 2) ** 0.5 * basis(p, along.dtype).to(along.device)[1::2] @ along


def trace_logits(means: ClassMeans, frequencies: Sequence[int]) -> Tensor:
    """Project the logits on the C_w of the given w: [s, class]. Narrower than `projected`; Chughtai et al. use it."""
    p, chosen = len(means.by_sum), [w - 1 for w in frequencies]
    own = torch.arange(p, device=means.by_sum.device)
    angle = 2 * torch.pi * ((own[:, None] - own) % p).to(means.by_sum.dtype) / p
    weights = _coefficients(means)[chosen] * 2 / p**2
    waves = [weight * (w * angle).cos() for w, weight in zip(frequencies, weights, strict=True)]
    return torch.stack(waves).sum(0) if waves else torch.zeros_like(means.by_sum)


def key_frequencies(similarities: Tensor, least_fve: float = KEY_FVE) -> list[int]:
    """Return each w with FVE_w = cs_w^2 > least_fve and cs_w > 0 (against the answer is not towards it)."""
    return (1 + ((similarities > 0) & (similarities.square() > least_fve)).nonzero()[:, 0]).tolist()


def projected(means: ClassMeans, frequencies: Sequence[int]) -> Tensor:
    """Project the logits on cos and sin of w (a + b) for the given w: [s, class], a function of the sum s alone."""
    rows = basis(len(means.by_sum), means.by_sum.dtype).to(means.by_sum.device)
    chosen = rows[[2 * w - 1 + part for w in frequencies for part in (0, 1)]]
    return chosen.T @ (chosen @ means.by_sum)


def restricted_logits(means: ClassMeans, frequencies: Sequence[int]) -> Tensor:
    """Return P L - mean(P L) + mean(L) [s, class]: the logits with only the key frequencies and their mean left."""
    inside = projected(means, frequencies)
    return inside - inside.mean(0) + means.by_sum.mean(0)


def loss_by_sum(logits: Tensor, counts: Tensor) -> Tensor:
    """Compute the mean cross-entropy in nats (float64) of logits [s, class] that depend on the sum s alone.

    Args:
        counts: [p], how many inputs of each sum the mean is over (p of each: all inputs).
    """
    own = torch.arange(len(counts), device=counts.device)
    return (F.cross_entropy(logits.double(), own, reduction="none") * counts).sum() / counts.sum()


def excluded_loss(logits: Tensor, sums: Tensor, inside: Tensor) -> Tensor:
    """Compute the cross-entropy in nats (float64) of L - P L on some inputs.

    Args:
        logits: [rows, p]. sums: long [rows], their a + b. inside: P L [s, class], from `projected`.
    """
    return F.cross_entropy((logits - inside[sums]).double(), sums)


def neuron_frequencies(neurons: Tensor) -> Tensor:
    """Return which share of each neuron's variance over (a, b) the block of each frequency holds: [(p-1)/2, neuron].

    The block of w: the products of (1, cos w a, sin w a) with (1, cos w b, sin w b), all but the constant.
    Cost: p^3 multiplications per neuron.

    Args:
        neurons: [p * p, neuron], row a * p + b. A neuron that never changes holds 0 everywhere.
    """
    p = round(len(neurons) ** 0.5)
    rows = basis(p, neurons.dtype).to(neurons.device)
    grid = neurons.unflatten(0, (p, p))  # [a, b, neuron]
    along_a = (rows @ grid.flatten(1)).unflatten(1, (p, -1))  # [k, b, neuron]
    pairs = rows[1:].unflatten(0, (-1, 2))  # [w, 2, b]
    both = torch.einsum("wib,wjbn->wijn", pairs, along_a[1:].unflatten(0, (-1, 2))).square().sum((1, 2))
    only_a = (along_a[1:].sum(1).square() / p).unflatten(0, (-1, 2)).sum(1)
    only_b = (rows[1:] @ along_a[0]).square().unflatten(0, (-1, 2)).sum(1)
    variance = (neurons - neurons.mean(0)).square().sum(0)
    return torch.where(variance > 0, (both + only_a + only_b) / variance, 0.0)
