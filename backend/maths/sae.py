"""Sparse autoencoders: x is written as b_dec + sum of few features f_i times unit directions W_dec[i].

pre = (x - b_dec) W_enc + b_enc. `topk`: the k largest entries of relu(pre) per sample. `batch_topk`: in training the
k n largest of a batch of n samples, afterwards those above `threshold`, a running mean of the smallest value kept.
`l1`: all of relu(pre), held small by lambda |f|_1 in the loss (the baseline). Rows of W_dec have norm 1.

Loss: |x - x'|^2 / spread, with spread the data's mean |x - mean|^2; for `l1` plus lambda |f|_1 / spread; for the others
plus AuxK: features that were silent for long reconstruct what is left over (their largest d_in / 2, relative error,
times 1/32), which brings most of them back.
Tensors are named and shaped as SAELens names them, so that others can open them.
Source: Gao et al. (2024), Scaling and evaluating sparse autoencoders, sections 2.3 and A.2 (TopK, AuxK); Bussmann
et al. (2024), BatchTopK Sparse Autoencoders; Bricken et al. (2023), Towards Monosemanticity (L1, unit directions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

KINDS = ("topk", "batch_topk", "l1")
AUX_WEIGHT = 1 / 32  # Gao et al., A.2
THRESHOLD_MEMORY = 0.99  # of the running mean, per update


class Sae(nn.Module):
    """The autoencoder: W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec; for batch_topk threshold [d_sae]."""

    threshold: Tensor

    def __init__(self, d_in: int, d_sae: int, k: int, kind: str = "topk", seed: int = 0, dtype: Any = torch.float32):
        super().__init__()
        self.k, self.kind = k, kind
        directions = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        directions = (directions / directions.norm(dim=1, keepdim=True)).to(dtype)
        self.W_enc, self.b_enc = nn.Parameter(directions.T.contiguous()), nn.Parameter(torch.zeros(d_sae, dtype=dtype))
        self.W_dec, self.b_dec = nn.Parameter(directions), nn.Parameter(torch.zeros(d_in, dtype=dtype))
        if kind == "batch_topk":
            self.register_buffer("threshold", torch.zeros(d_sae, dtype=dtype))

    def pre(self, x: Tensor) -> Tensor:
        """Return what the activation is applied to [..., d_sae]."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Return the features [..., d_sae] of x [..., d_in], as used after training."""
        pre = self.pre(x)
        if self.kind == "topk":
            return largest(pre, self.k)
        return pre.relu() * (pre > self.threshold) if self.kind == "batch_topk" else pre.relu()

    def decode(self, features: Tensor) -> Tensor:
        """Return x' [..., d_in]."""
        return features @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of x [..., d_in]."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def to_unit(self) -> None:
        """Give every direction norm 1; W_enc stays: a scale of its own that training sets."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def without_radial(self) -> None:
        """Take from W_dec's gradient what would change norms: the update then moves along the sphere."""
        if self.W_dec.grad is not None:
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def scaled(self, scale: float) -> dict[str, Tensor]:
        """Return the tensors of the same autoencoder for inputs `scale` times as large."""
        state = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        return {name: t * scale if name in ("b_enc", "b_dec", "threshold") else t for name, t in state.items()}


def largest(pre: Tensor, k: int) -> Tensor:
    """Keep the k largest entries of relu(pre) along the last axis, the others are 0."""
    values, places = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, places, values.relu())


def from_tensors(tensors: Mapping[str, Tensor], kind: str, k: int) -> Sae:
    """Build the autoencoder that these tensors belong to."""
    d_in, d_sae = tensors["W_enc"].shape
    sae = Sae(d_in, d_sae, k, kind, dtype=tensors["W_enc"].dtype).to(tensors["W_enc"].device)
    sae.load_state_dict(dict(tensors))
    return sae


def objective(sae: Sae, x: Tensor, silent: Tensor, spread: float, l1: float) -> tuple[Tensor, Tensor]:
    """Return (loss, which features were active [d_sae]) of a batch [sample, d_in]; moves a batch_topk's threshold.

    `silent` [d_sae] says which features were silent for long.
    """
    pre = sae.pre(x)
    features = _training_features(sae, pre)
    left = x - sae.decode(features)
    loss = left.square().sum(1).mean() / spread
    if sae.kind == "l1":
        return loss + l1 * features.sum(1).mean() / spread, (features > 0).any(0)
    return loss + AUX_WEIGHT * _auxk(sae, pre, left.detach(), silent), (features > 0).any(0)


def update(
    sae: Sae, optimizer: torch.optim.Optimizer, x: Tensor, silent: Tensor, dead_after: int, spread: float, l1: float
) -> tuple[Tensor, Tensor]:
    """Make one update on a batch [sample, d_in]; `silent` [d_sae] counts updates without activity.

    Returns (loss, the new counts).
    """
    optimizer.zero_grad()
    loss, active = objective(sae, x, silent >= dead_after, spread, l1)
    loss.backward()
    sae.without_radial()
    optimizer.step()
    sae.to_unit()
    return loss.detach(), torch.where(active, 0, silent + 1)


def rate(lr: float, step: int, steps: int) -> float:
    """Return the learning rate of update `step` (from 1): constant, then a line to nearly 0 over the last fifth."""
    return lr * min(1.0, (steps - step + 1) / max(steps / 5, 1))


def fit(
    x: Tensor, d_sae: int, k: int, steps: int, seed: int, lr: float = 3e-3, batch: int = 256, dead_after: int = 100,
    said: Callable[[int], None] = lambda step: None,
) -> tuple[Sae, Tensor]:  # fmt: skip
    """Train a TopK autoencoder on samples [sample, d_in] of spread near 1 per coordinate, as the recipe `sae` does.

    Returns (the autoencoder, for how many updates each feature has been silent [d_sae]).
    """
    sae = Sae(x.shape[1], d_sae, k, "topk", seed, x.dtype).to(x.device)
    spread = max(float((x - x.mean(0)).square().sum(1).double().mean()), 1e-30)
    dice, silent = torch.Generator().manual_seed(seed), torch.zeros(d_sae, dtype=torch.long, device=x.device)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    with torch.enable_grad():
        for step in range(1, steps + 1):
            optimizer.param_groups[0]["lr"] = rate(lr, step, steps)
            rows = torch.randint(len(x), (batch,), generator=dice).to(x.device)
            silent = update(sae, optimizer, x[rows], silent, dead_after, spread, 0.0)[1]
            said(step)
    return sae.requires_grad_(False), silent


def _training_features(sae: Sae, pre: Tensor) -> Tensor:
    if sae.kind != "batch_topk":
        return largest(pre, sae.k) if sae.kind == "topk" else pre.relu()
    features = largest(pre.flatten(), sae.k * len(pre)).view_as(pre)
    with torch.no_grad():
        kept = features[features > 0]
        if len(kept):
            old = sae.threshold
            new = kept.min().expand_as(old)
            sae.threshold.copy_(torch.where(old > 0, THRESHOLD_MEMORY * old + (1 - THRESHOLD_MEMORY) * new, new))
    return features


def _auxk(sae: Sae, pre: Tensor, left: Tensor, silent: Tensor) -> Tensor:
    """Return how badly the silent features reconstruct what is left over, 1 = not at all."""
    if not bool(silent.any()):
        return pre.new_zeros(())
    k = min(int(silent.sum()), max(1, left.shape[1] // 2))
    features = largest(pre.masked_fill(~silent, -math.inf), k)
    return (left - features @ sae.W_dec).square().sum() / left.square().sum().clamp_min(1e-30)


def measures(sae: Sae, x: Tensor) -> dict[str, float]:
    """Return l0 (features active per sample) and fvu (sum |x - x'|^2 / sum |x - mean|^2) on x [sample, d_in]."""
    with torch.no_grad():
        features = sae.encode(x)
        left = (x - sae.decode(features)).square().sum()
        return {"l0": float((features > 0).sum(1).double().mean()),
                "fvu": float(left / (x - x.mean(0)).square().sum().clamp_min(1e-30))}  # fmt: skip


def gaussian_like(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n samples of the Gaussian with the mean and covariance of x [sample, d_in]: the null without structure."""
    wide = x.double()
    values, vectors = torch.linalg.eigh(torch.cov(wide.T).reshape(x.shape[1], x.shape[1]))
    noise = torch.randn(n, x.shape[1], generator=generator, dtype=torch.float64).to(x.device)
    return (noise * values.clamp_min(0).sqrt() @ vectors.T + wide.mean(0)).to(x.dtype)


def match(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Pair the directions a [n, d] with b [m, d] one to one so that the sum of cosines is largest (Hungarian method).

    Returns (for each row of a the row of b, -1 where b has none left [n]; the cosine, 0 there [n]). Their mean over
    the smaller set is the MCC, mean correlation coefficient. Cost: n^2 m at most, seconds for a few thousand.
    """
    cosine = unit(a.double()) @ unit(b.double()).T
    rows, columns = linear_sum_assignment(cosine.cpu().numpy(), maximize=True)
    partner, found = torch.full((len(a),), -1), torch.zeros(len(a), dtype=torch.float64)
    rows, columns = torch.as_tensor(rows), torch.as_tensor(columns)
    partner[rows], found[rows] = columns, cosine.cpu()[rows, columns]
    return partner, found


def unit(rows: Tensor) -> Tensor:
    """Scale each row to norm 1; a row of zeros stays."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
