"""IRED's energy of a solution y to a problem x at a noise level k: E = |fc4(h3)|^2 of an MLP with FiLM on the level.

h1 = swish(fc1 [x, y]); h2 = swish(fc2(h1) (g2 + 1) + b2); h3 = swish(fc3(h2) (g3 + 1) + b3); (g, b) are linear in a
sinusoidal embedding of k. Parameters are named as in the official code, so that its checkpoints fit. Its gradient by y
is the noise that it takes y to hold.
Source: Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, appendix A; the official
`models.py`, class EBM.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FOURIER = TIME = 128
#: (gain, bias) of layer 2 and of layer 3, each [n, width]
Film = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
LAYERS = ("fc1", "fc2", "fc3", "fc4")


class Sinusoid(nn.Module):
    """Embed levels [n] as [n, FOURIER]: sines, then cosines, of 64 log-spaced frequencies."""

    def forward(self, level: Tensor) -> Tensor:
        half = FOURIER // 2
        rates = torch.exp(torch.arange(half, device=level.device) * (-math.log(10_000) / (half - 1)))
        angles = level[:, None] * rates.to(level.dtype)[None, :]
        return torch.cat([angles.sin(), angles.cos()], -1)


@dataclass
class Pass:
    """One forward: pre-activations z [layer] of [n, width], FiLM gains [n, width] of layers 2 and 3, and the output."""

    z: list[Tensor]
    gains: list[Tensor]
    output: Tensor


@dataclass
class LayerGradient:
    """d f_i / d W = sum over terms of outer(out[i], into[i]); d f_i / d b = the first term's out. Each [n, size]."""

    out: list[Tensor]
    into: list[Tensor]


class EnergyNet(nn.Module):
    """The energy; `d_x`, `d_y` entries of problem and solution, `width` of its three hidden layers."""

    def __init__(self, d_x: int, d_y: int, width: int = 512):
        super().__init__()
        self.d_x, self.d_y, self.width = d_x, d_y, width
        self.time_mlp = nn.Sequential(Sinusoid(), nn.Linear(FOURIER, TIME), nn.GELU(), nn.Linear(TIME, TIME))
        self.fc1 = nn.Linear(d_x + d_y, width)
        self.fc2, self.fc3 = nn.Linear(width, width), nn.Linear(width, width)
        self.fc4 = nn.Linear(width, d_y)
        self.t_map_fc2, self.t_map_fc3 = nn.Linear(TIME, 2 * width), nn.Linear(TIME, 2 * width)

    def film(self, level: Tensor) -> Film:
        """Return ((gain, bias) of layer 2, of layer 3), each [n, width], for levels [n]."""
        told = self.time_mlp(level.to(self.fc1.weight.dtype))
        two, three = self.t_map_fc2(told).chunk(2, -1), self.t_map_fc3(told).chunk(2, -1)
        return (two[0], two[1]), (three[0], three[1])

    def run(
        self, x: Tensor, y: Tensor, level: Tensor, kept: Sequence[Tensor] | None = None, film: Film | None = None
    ) -> Pass:
        """Return all of one forward on x [n, d_x], y [n, d_y], level [n].

        `kept` multiplies the hidden units of the three layers, each [n, width]: 0 takes a unit out. `film` stands in
        place of what the level gives.
        """
        (g2, b2), (g3, b3) = film or self.film(level)
        k1, k2, k3 = kept or (1.0, 1.0, 1.0)
        z1 = self.fc1(torch.cat([x, y], -1))
        z2 = self.fc2(swish(z1) * k1) * (g2 + 1) + b2
        z3 = self.fc3(swish(z2) * k2) * (g3 + 1) + b3
        return Pass([z1, z2, z3], [g2 + 1, g3 + 1], self.fc4(swish(z3) * k3))

    def forward(self, x: Tensor, y: Tensor, level: Tensor) -> Tensor:
        """Return the energies [n]."""
        return self.run(x, y, level).output.square().sum(-1)

    def gradient(self, x: Tensor, y: Tensor, level: Tensor, create_graph: bool = False) -> Tensor:
        """Return dE/dy [n, d_y]: the noise that the model takes y to hold."""
        with torch.enable_grad():
            y = y if create_graph and y.requires_grad else y.detach().requires_grad_()
            return torch.autograd.grad(self(x, y, level).sum(), y, create_graph=create_graph)[0]

    def layer_gradients(self, x: Tensor, y: Tensor, level: Tensor, v: Tensor | None = None) -> list[LayerGradient]:
        """Return d f_i / d W of every linear layer as outer products, for f = E, or f = v.dE/dy along v [d_y].

        One forward along v (values and their derivatives by it side by side) and one backward, for all rows at once.
        """
        told = self.time_mlp[0](level.to(self.fc1.weight.dtype)).requires_grad_()
        with torch.enable_grad():
            at: list[tuple[Tensor, Tensor | None]] = [(told, None)]
            hidden = self.time_mlp[1](told)
            at.append((self.time_mlp[2](hidden), None))
            embedded = self.time_mlp[3](at[-1][0])
            films = [layer(embedded) for layer in (self.t_map_fc2, self.t_map_fc3)]
            at += [(embedded, None), (embedded, None)]
            outs: list[list[Tensor]] = [[hidden], [embedded], [films[0]], [films[1]]]
            a = torch.cat([x, y], -1).detach().requires_grad_()
            da = None if v is None else torch.cat([torch.zeros_like(x), v.expand_as(y)], -1).requires_grad_()
            scales = [(1.0, 0.0), *((g + 1, b) for g, b in (f.chunk(2, -1) for f in films)), (1.0, 0.0)]
            for name, (scale, shift) in zip(LAYERS, scales, strict=True):
                layer = getattr(self, name)
                p, dp = layer(a), None if da is None else da @ layer.weight.mT
                at.append((a, da))
                outs.append([p] if dp is None else [p, dp])
                z, dz = p * scale + shift, None if dp is None else dp * scale
                a, da = swish(z), None if dz is None else slope(z) * dz
            value = p.square().sum() if dp is None else 2 * (p * dp).sum()
            found = iter(torch.autograd.grad(value, [t for pair in outs for t in pair]))
        return [
            LayerGradient([next(found) for _ in pair], [t.detach() for t in (a, da)[: len(pair)] if t is not None])
            for pair, (a, da) in zip(outs, at, strict=True)
        ]

    def joint(self) -> EnergyNet:
        """Return the same energy as one of [x, y] alone, sharing its weights: its Hessian holds that by x and y."""
        one = copy.copy(self)
        one.d_x, one.d_y = 0, self.d_x + self.d_y
        return one

    @torch.no_grad()
    def hessian(self, x: Tensor, y: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Return d2E/dy2 exactly, as what each layer's bend adds: {"output": .., "fc1": .., "fc2": .., "fc3": ..}.

        H = 2 J_o'J_o + sum_l J_l' diag(g_l phi''(z_l)) J_l with J_l = dz_l/dy and g_l = dE/d phi(z_l); the first is the
        Gauss-Newton part. Each [n, d_y, d_y]; the sum is symmetric to rounding. Cost: about d_y forwards.
        """
        found = self.run(x, y, level)
        (z1, z2, z3), (s2, s3) = found.z, found.gains
        n = max(len(x), len(y))
        j1 = self.fc1.weight[:, self.d_x :].expand(n, -1, -1)  # [n, width, d_y]
        j2 = s2[..., None] * torch.einsum("ij,njk->nik", self.fc2.weight, slope(z1)[..., None] * j1)
        j3 = s3[..., None] * torch.einsum("ij,njk->nik", self.fc3.weight, slope(z2)[..., None] * j2)
        out = torch.einsum("ij,njk->nik", self.fc4.weight, slope(z3)[..., None] * j3)
        g3 = 2 * found.output @ self.fc4.weight
        g2 = (g3 * slope(z3) * s3) @ self.fc3.weight
        g1 = (g2 * slope(z2) * s2) @ self.fc2.weight
        bends = {
            f"fc{i}": _bent(j, g * bend(z)) for i, (j, g, z) in enumerate(((j1, g1, z1), (j2, g2, z2), (j3, g3, z3)), 1)
        }
        return {"output": 2 * out.mT @ out, **bends}


def _bent(jacobian: Tensor, weight: Tensor) -> Tensor:
    return jacobian.mT @ (weight[..., None] * jacobian)


def swish(z: Tensor) -> Tensor:
    """z times its sigmoid."""
    return z * torch.sigmoid(z)


def slope(z: Tensor) -> Tensor:
    """The first derivative of swish."""
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def bend(z: Tensor) -> Tensor:
    """The second derivative of swish."""
    s = torch.sigmoid(z)
    return s * (1 - s) * (2 + z * (1 - 2 * s))
