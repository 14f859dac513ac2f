"""Cross-entropy of modular addition with its gradients in one pass, in memory that every step uses again.

Autograd would allocate its [rows, d_mlp] tensors anew at every step; on a CPU the first touch of fresh memory can cost
as much as a matrix product. Source: the chain rule; held against autograd in tests/test_maths_modular.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backend.maths.modular_addition import Folded, attend


class Workspace:
    """Memory for one set of rows. `hits` (bool [rows]) says which the last call answered rightly."""

    def __init__(self, rows: int, width: int, d_mlp: int, classes: int, dtype: torch.dtype, device: Any = "cpu"):
        def empty(n: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.empty(rows, n, dtype=kind, device=device)

        self.hidden, self.d_hidden = (empty(d_mlp) for _ in range(2))
        self.logits, self.d_logits = (empty(classes) for _ in range(2))
        self.z, self.d_z, self.a, self.b, self.mixed = (empty(width) for _ in range(5))
        self.wide = empty(classes, torch.float64)
        self.hits = torch.zeros(rows, dtype=torch.bool, device=device)


class FusedLoss(torch.autograd.Function):
    """The loss of `fused_loss`, a function of (pattern, values, W1, c1, W2, c2, W3)."""

    @staticmethod
    def forward(ctx: Any, rows: tuple[Tensor, Tensor], targets: Tensor, space: Workspace, *given: Tensor) -> Tensor:
        pattern, values, W1, c1, W2, c2, W3 = (t.to(space.z.dtype) for t in given)
        z = _mix(pattern, values, rows, space)
        hidden = torch.mm(z, W1, out=space.hidden).add_(c1).relu_()
        torch.mm(z, W2, out=space.logits).addmm_(hidden, W3).add_(c2)
        loss, d = _cross_entropy(targets, space)
        back = torch.mm(d, W3.T, out=space.d_hidden)
        torch.ops.aten.threshold_backward.grad_input(back, hidden, 0, grad_input=back)  # zero where the ReLU was
        torch.mm(back, W1.T, out=space.d_z).addmm_(d, W2.T)
        grads = (*_unmix(pattern, values, rows, space), z.T @ back, back.sum(0), (d.T @ z).T, d.sum(0),
                 (d.T @ hidden).T)  # fmt: skip
        ctx.save_for_backward(*(g.to(t.dtype) for g, t in zip(grads, given, strict=True)))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(g * grad[0].to(g.dtype) for g in ctx.saved_tensors)


def _heads(t: Tensor, pattern: Tensor) -> Tensor:
    return t.unflatten(1, (pattern.shape[2], -1))


def _mix(pattern: Tensor, values: Tensor, rows: tuple[Tensor, Tensor], space: Workspace) -> Tensor:
    """Return the heads' mixed values [rows, head * d_head]."""
    a, b = (torch.index_select(values, 0, i, out=out) for i, out in zip(rows, (space.a, space.b), strict=True))
    weight = pattern[..., None]
    torch.mul(weight[0], _heads(a, pattern), out=_heads(space.z, pattern))
    _heads(space.z, pattern).addcmul_(weight[1], _heads(b, pattern))
    return space.z


def _unmix(pattern: Tensor, values: Tensor, rows: tuple[Tensor, Tensor], space: Workspace) -> tuple[Tensor, Tensor]:
    """Return the gradients of pattern and values from that of z."""
    d, part = _heads(space.d_z, pattern), _heads(space.mixed, pattern)
    d_values, d_pattern = torch.zeros_like(values), torch.empty_like(pattern)
    for at, (own, index) in enumerate(zip((space.a, space.b), rows, strict=True)):
        torch.sum(torch.mul(d, _heads(own, pattern), out=part), -1, out=d_pattern[at])
        torch.mul(d, pattern[at][..., None], out=part)
        d_values.index_add_(0, index, space.mixed)
    return d_pattern, d_values


def _cross_entropy(targets: Tensor, space: Workspace) -> tuple[Tensor, Tensor]:
    """Return (mean cross-entropy in float64 nats, its gradient by the logits)."""
    own, n = targets[:, None], len(targets)
    wide = torch.sub(space.wide.copy_(space.logits), space.logits.amax(1, keepdim=True), out=space.wide)
    chosen = wide.gather(1, own)
    space.hits = chosen[:, 0] == 0  # the right answer's logit is the largest
    total = wide.exp_().sum(1, keepdim=True)
    loss = (total.log() - chosen).mean()
    wide.mul_(1 / (n * total)).scatter_add_(1, own, wide.new_full((n, 1), -1 / n))
    return loss, space.d_logits.copy_(wide)


def fused_loss(folded: Folded, rows: tuple[Tensor, Tensor], targets: Tensor, space: Workspace) -> Tensor:
    """Compute the mean cross-entropy in nats (float64) of logits z W2 + c2 + ReLU(z W1 + c1) W3, gradients ready.

    Rows are computed in the workspace's dtype (bfloat16 leaves the folded float32 tensors as masters), cross-entropy
    in float64: float32 rounds losses near 0 to multiples of 1.2e-7 (reference section 2.1).

    Args:
        folded: from `modular_addition.fold`. rows: from `modular_addition.table_rows`. targets: long [rows].
        space: memory for these sizes; its `hits` are those of this call until the next.
    """
    f, pattern = folded, attend(folded.scores, rows)
    loss: Tensor = FusedLoss.apply(rows, targets, space, pattern, f.values, f.W1, f.c1, f.W2, f.c2, f.W3)
    return loss
