"""Curvature beside PyHessian, curvlinops and geomstats: `python -m benchmarks.curvature [inputs parameters grassmann]`.

- inputs: all d2E/dy2 of an energy (inverse-5: side 5, width 256) at 64 problems x 10 levels with all their
  eigenvalues, beside PyHessian's top 20, which takes a problem at a time: some are timed and scaled to all.
- parameters: the 10 largest eigenvalues of a GPT's Hessian (1.2 M parameters, trained for some steps), and of one small
  enough for the dense matrix, which says how far each is off.
- grassmann: 200 distances on Gr(20, 2), beside scipy's subspace_angles too.
One thread, CPU seconds of the process, the least of `--repeats`. A peer that is not installed is said to be missing.
Writes results/curvature.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import subspace_angles
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import curvature_peers as peers
from benchmarks.table import head, line

PROBLEMS, LEVELS, TOP = 64, 10, 20
RESULTS = Path(__file__).parent / "results" / "curvature.csv"
COLUMNS = ("part", "what", "seconds", "ratio", "error", "note", "load")
#: models of `parameters`: (name, config, rows, tokens a row, dense)
GPTS: tuple[tuple[str, dict[str, Any], int, bool], ...] = (
    ("small", {"n_layers": 1, "d_model": 12, "d_head": 6, "n_heads": 2, "d_mlp": 36, "d_vocab": 24}, 8, True),
    ("large", {"n_layers": 4, "d_model": 144, "d_head": 36, "n_heads": 4, "d_mlp": 576, "d_vocab": 600}, 8, False),
)  # fmt: skip
LENGTH, STEPS, K = 32, 60, 10
TOL = 1e-4  # residual, relative to the largest eigenvalue; the same is told to eigsh, relative to each


@dataclass
class Told:
    """The rows of one run, printed as they come and kept for the file."""

    rows: list[list[str]]

    def row(self, part: str, what: str, seconds: float | None, ours: float | None, error: str, note: str = "") -> None:
        """Print one; `ours` are our seconds, by which a peer's are divided."""
        ratio = "" if seconds is None or ours is None or seconds == ours else f"{seconds / ours:.1f}"
        cells = [part, what, "" if seconds is None else f"{seconds:.4g}", ratio, error, note]
        self.rows.append([*cells, f"{os.getloadavg()[0]:.1f}"])
        line(*self.rows[-1])


def spent(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return (the least CPU seconds of some calls, what the last returned)."""
    least, found = float("inf"), None
    for _ in range(repeats):
        began = time.process_time()
        found = work()
        least = min(least, time.process_time() - began)
    return least, found


# ---------------------------------------------------------------- input-space Hessians


def inputs(told: Told, repeats: int) -> None:
    """Time all Hessians of an energy in one batch, with their eigenvalues."""
    net, x, y, level = problems()

    def exact(net: Any = net, at: tuple[Tensor, ...] = (x, y, level)) -> Tensor:
        dense = sum(net.hessian(*at).values())
        return torch.linalg.eigvalsh((dense + dense.mT) / 2)

    exact()
    ours, values = spent(exact, max(repeats, 3))
    truth = exact(net.double(), tuple(t.double() for t in (x, y, level)))
    checked = torch.linalg.eigvalsh(by_autograd(net, x[:8].double(), y[:8].double(), level[:8].double()))
    assert torch.allclose(checked, truth[:8], rtol=1e-9, atol=1e-9)
    net.float()
    off = float((values - truth).abs().max() / truth.abs().max())
    n = len(x)
    told.row("inputs", f"ours: all {x.shape[1]} eigenvalues of {n} Hessians", ours, ours, f"{off:.1g}", "float32")
    if peers.missing("pyhessian"):
        return told.row("inputs", "PyHessian: not installed here", None, None, "")
    some = range(0, n, n // 20)
    began, errors = time.process_time(), []
    for i in some:
        at = slice(i, i + 1)
        theirs = peers.pyhessian_inputs(net, x[at], y[at], level[at], TOP)
        errors.append(worst(theirs, truth[i].numpy()))
    each = (time.process_time() - began) / len(some)
    told.row("inputs", f"PyHessian: top {TOP}, one at a time", each * n, ours,
             f"median {np.median(errors):.1g}, worst {max(errors):.1g}", f"{len(some)} timed, scaled to {n}")
    return None


def problems() -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return (an energy net trained for 600 steps, x, noised y, level) of PROBLEMS at every level."""
    from backend.maths import annealing
    from backend.runs import energy_tasks
    from backend.runs.recipes import energy

    params = energy.EnergyParams(task="inverse", side=5, width=256, steps=600)
    training = energy.make_training(params)
    for _ in range(params.steps):
        training.update()
    dice = torch.Generator().manual_seed(1)
    drawn = energy_tasks.draw("inverse", 5, PROBLEMS, dice)
    abar = torch.as_tensor(annealing.cosine(LEVELS).abar, dtype=torch.float32)
    level = torch.arange(LEVELS).repeat_interleave(PROBLEMS)
    x, y = drawn.x.repeat(LEVELS, 1), drawn.y.repeat(LEVELS, 1)
    noised = abar[level, None].sqrt() * y + (1 - abar[level, None]).sqrt() * torch.randn(y.shape, generator=dice)
    training.model.requires_grad_(False)
    return training.model, x, noised, level.float()


def by_autograd(net: Any, x: Tensor, y: Tensor, level: Tensor) -> Tensor:
    """Return d2E/dy2 [n, d, d] by double backward, one column at a time."""
    y = y.clone().requires_grad_()
    slope = torch.autograd.grad(net(x, y, level).sum(), y, create_graph=True)[0]
    return torch.stack([torch.autograd.grad(slope[:, i].sum(), y, retain_graph=True)[0] for i in range(y.shape[1])], 1)


def worst(theirs: np.ndarray, truth: np.ndarray) -> float:
    """Return how far their list, by falling |eigenvalue|, is from the true one at most, in units of the largest."""
    right = truth[np.argsort(-np.abs(truth))][: len(theirs)]
    return float(np.abs(np.sort(theirs) - np.sort(right)).max() / np.abs(truth).max())


# ---------------------------------------------------------------- parameter Hessians


def parameters(told: Told, repeats: int) -> None:
    """Time the largest eigenvalues of two GPTs' Hessians, each at the same tolerance."""
    for name, config, rows, dense in GPTS:
        gpt(told, name, config, rows, dense, repeats)


def gpt(told: Told, name: str, config: dict[str, Any], rows: int, dense: bool, repeats: int) -> None:
    """Time one model; the truth is the dense matrix, or our own list at a hundredth of the tolerance."""
    from backend.maths import curvature, pyhessian_column

    model, tokens = trained(config, rows)
    known = dict(model.named_parameters())
    tensors = [p.detach().requires_grad_() for p in known.values()]
    size, data = sum(p.numel() for p in tensors), (tokens[:, :-1], tokens[:, 1:].flatten())

    def forward(given: Sequence[Tensor], inputs: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.functional_call(model, dict(zip(known, given, strict=True)), (inputs,)).flatten(0, 1)

    def ours(tol: float = TOL) -> Any:
        product = product_of(forward, tensors, data)
        return curvature.extreme(product, size, K, tol, 1000, like=tensors[0], both=False)

    seconds, found = spent(ours, repeats)
    truth = dense_values(forward, tensors, data) if dense else ours(TOL / 100).high
    against = "the dense matrix" if dense else f"ours at {TOL / 100:g}"
    part = f"parameters, {name} ({size:,})"

    def say(what: str, took: float, values: np.ndarray, note: str) -> None:
        off = np.abs(values - truth[:K]).max() / truth[0]
        told.row(part, what, took, seconds, f"{off:.1g}", note)

    say(f"ours: top {K}", seconds, found.high, f"{found.n_matvecs} products; error against {against}")
    if peers.missing("pyhessian"):
        told.row(part, "PyHessian: not installed here", None, None, "")
    else:
        criterion = torch.nn.functional.cross_entropy
        took, values = spent(lambda: pyhessian_column.top(forward, criterion, tensors, data, K), 1)
        say(f"PyHessian: top {K}", took, np.sort(values)[::-1], "its defaults; its list goes by |eigenvalue|")
    if peers.missing("curvlinops"):
        return told.row(part, "curvlinops: not installed here", None, None, "")
    took, values = spent(lambda: peers.curvlinops_top(forward, tensors, data, K, TOL), repeats)
    say(f"curvlinops and eigsh: top {K}", took, values, f"tol {TOL:g}")
    return None


def product_of(forward: Any, tensors: Sequence[Tensor], data: tuple[Tensor, Tensor]) -> Any:
    """Return our product with the Hessian of the mean cross-entropy."""
    from backend.maths.products import hessian_product

    return hessian_product(torch.nn.functional.cross_entropy(forward(tensors, data[0]), data[1]), tensors)


def trained(config: dict[str, Any], rows: int) -> tuple[Any, Tensor]:
    """Return (a GPT after STEPS steps of Adam on rows of a random Markov chain, rows of it)."""
    from backend.models import bridge

    settings = {"n_ctx": LENGTH, "act_fn": "gelu", "normalization_type": "LN", **config}
    model, vocab = bridge.build_native(settings, seed=0), config["d_vocab"]
    dice = torch.Generator().manual_seed(0)
    following = torch.randint(vocab, (vocab, 4), generator=dice)

    def draw(n: int) -> Tensor:
        found = [torch.randint(vocab, (n,), generator=dice)]
        for _ in range(LENGTH):
            found.append(following[found[-1], torch.randint(4, (n,), generator=dice)])
        return torch.stack(found, 1)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        tokens = draw(rows)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    return model, draw(rows)


def dense_values(forward: Any, tensors: Sequence[Tensor], data: tuple[Tensor, Tensor]) -> np.ndarray:
    """Return all eigenvalues, largest first, of the dense Hessian in float64, by autograd row by row."""
    wide = [t.detach().double().requires_grad_() for t in tensors]
    loss = torch.nn.functional.cross_entropy(forward(wide, data[0]), data[1])
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, wide, create_graph=True)])
    rows = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(entry, wide, retain_graph=True)]) for entry in slope]
    matrix = torch.stack(rows)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0).numpy()


# ---------------------------------------------------------------- distances


def grassmann(told: Told, repeats: int, pairs: int = 200, n: int = 20, r: int = 2) -> None:
    """Time distances between spans; the error is against scipy's angles."""
    from backend.maths import grassmann as ours

    dice = torch.Generator().manual_seed(0)
    first, second = (ours.span(torch.randn(pairs, n, r, generator=dice, dtype=torch.float64)) for _ in range(2))
    ours.distance(first, second)
    seconds, found = spent(lambda: [ours.distance(first, second) for _ in range(100)][-1], max(repeats, 3))
    seconds /= 100
    took, angles = spent(lambda: [subspace_angles(a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)],
                         max(repeats, 3))  # fmt: skip
    truth = np.linalg.norm(np.array(angles), axis=1)
    part = f"{pairs} distances on Gr({n}, {r})"
    told.row(part, "ours", seconds, seconds, f"{np.abs(found.numpy() - truth).max():.1g}", "error against scipy")
    told.row(part, "scipy's subspace_angles, one by one", took, seconds, "")
    if peers.missing("geomstats"):
        return told.row(part, "geomstats: not installed here", None, None, "")
    distance = peers.geomstats_distance(n, r)
    distance(first[:2], second[:2])
    took, theirs = spent(lambda: distance(first, second), repeats)
    told.row(part, "geomstats", took, seconds, f"{np.abs(theirs - truth).max():.1g}", "numpy, in one call; / sqrt(2)")
    return None


PARTS: dict[str, Callable[[Told, int], None]] = {"inputs": inputs, "parameters": parameters, "grassmann": grassmann}


def main() -> None:
    """Read the command line, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    told = Told([])
    head(*COLUMNS)
    for name in asked.parts or PARTS:
        PARTS[name](told, asked.repeats)
    if not asked.parts:
        with RESULTS.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *told.rows])


if __name__ == "__main__":
    main()
