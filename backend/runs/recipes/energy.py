"""An energy model learns to answer: the gradient of E(x, y, k) by y becomes the noise that y holds at level k.

Loss: mean squared error of grad_y E at y = sqrt(abar_k) y0 + sigma_k eps against eps, levels k drawn evenly from ten.
`contrastive` adds weight times the cross-entropy of telling y from a wrong solution by the energies at the same level
and noise: y0 noised three times as hard, two gradient steps kept where they lower the energy, cut to +-2. The official
code has it; it costs 3 to 4 times an update, and at equal time the error here is larger with it.
Problems are drawn fresh for every update, so there is nothing to overfit.
Adam, betas (0.9, 0.99), rate warmed up over 5 % of the steps, then a cosine to zero. Width, batch and rate are sized
for one CPU core; the official ones are 512, 2048 and 1e-4.

`mse` is the error per entry of whole answers (ten levels, no inner steps) on problems that are not trained on, beside
the errors of answering 0, the mean solution and the best linear map of x (fitted on 20,000 problems).
Source: Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, algorithm 1 and its code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from backend.contract import Metric, Params, Preset, Progress, recipe
from backend.runs.recipes._common import RecipeParams, log_steps
from backend.runs.recorder import Recorder
from backend.subjects import entries

if TYPE_CHECKING:
    from torch import Tensor

    from backend.models.energy_net import EnergyNet
    from backend.runs.energy_tasks import Drawn
    from backend.runs.loop import Training

LEVELS = 10
EVAL_PROBLEMS, FIT_PROBLEMS = 256, 20_000
#: one seed gives independent streams: the first weights, the problems of training, held-out ones, the linear fit
_DATA, _EVAL, _FIT = 1_000_003, 2_000_003, 3_000_003
#: CPU seconds per (row x multiplication of a forward) and per step, one core; measured on the presets (30 to 100)
SECONDS_PER_PRODUCT, STEP_SECONDS = 3.2e-10, 5.3e-3
METRICS = (
    Metric("loss", "Loss", "squared error", "of grad E against the noise, mean over entries; of 4 rows a level",
           better="low"),
    Metric("mse", "Error of whole answers", "", "squared error per entry, held-out problems", better="low"),
    Metric("mse_zero", "Error of answering 0", "", "mean square of the solutions", still=True),
    Metric("mse_mean", "Error of the mean solution", "", "variance of the solutions, entry by entry", still=True),
    Metric("mse_linear", "Error of a linear map", "", "of the best linear map from x to y, with a constant",
           still=True),
)  # fmt: skip
PRESETS = (
    Preset("gauss-4", "Gaussian 4 x 4, every answer known in closed form; about 30 CPU seconds",
           ({"task": "gauss", "side": 4, "width": 128, "steps": 3500},)),
    Preset("add-8", "sums of two 8 x 8 matrices; about 30 CPU seconds",
           ({"task": "addition", "side": 8, "width": 256, "steps": 1200},)),
    Preset("inverse-3", "inverses of 3 x 3 matrices; about 55 CPU seconds",
           ({"task": "inverse", "side": 3, "width": 128, "steps": 6000},)),
    Preset("inverse-5", "inverses of 5 x 5 matrices; about 90 CPU seconds",
           ({"task": "inverse", "side": 5, "width": 256, "steps": 5000},)),
    Preset("rank1-5", "all 5 x 5 matrices of rank 1, no problem given; about 95 CPU seconds",
           ({"task": "rank1", "side": 5, "width": 256, "steps": 5000},)),
    Preset("contrastive", "inverse-3 with the contrastive term, to compare with inverse-3",
           ({"task": "inverse", "side": 3, "width": 128, "steps": 6000, "contrastive": 0.5},)),
    Preset("sizes", "inverses of 3 x 3 to 6 x 6 matrices: four runs, about 5 CPU minutes",
           tuple({"task": "inverse", "side": n, "width": 256 if n > 3 else 128, "steps": 4000} for n in (3, 4, 5, 6))),
    Preset("ranks", "5 x 5 matrices of rank 1 to 3, half of each shown: three runs, about 4 CPU minutes",
           tuple({"task": "completion", "side": 5, "rank": r, "width": 256, "steps": 4000} for r in (1, 2, 3))),
    *(Preset(f"{name}-20", f"{name} of 20 x 20 matrices, the official size, width, batch and rate, without its "
             "contrastive term (.5); for a GPU, hours",
             ({"task": task, "side": 20, "rank": rank, "width": 512, "batch_size": 2048, "lr": 1e-4,
               "steps": 1_000_000, "log_every": 1000, "monitor_every": 5000},))
      for name, task, rank in (("inverse", "inverse", 1), ("add", "addition", 1), ("completion", "completion", 10))),
)  # fmt: skip


class EnergyParams(RecipeParams):
    steps: int = Field(5000, ge=1, le=10_000_000, description="number of updates, each on fresh problems")
    task: Literal["inverse", "addition", "completion", "gauss", "rank1"] = Field(
        "inverse", description="what is asked: the inverse of a matrix, the sum of two, a low-rank matrix of which "
        "half is shown, a Gaussian with a known answer, any matrix of rank 1")  # fmt: skip
    side: int = Field(5, ge=2, le=32, description="rows and columns of the matrices")
    rank: int = Field(1, ge=1, le=31, description="rank of completion's matrices, below side")
    width: int = Field(256, ge=8, le=2048, description="width of the three hidden layers")
    batch_size: int = Field(256, ge=1, le=65_536, description="problems per update")
    lr: float = Field(2e-3, gt=0, le=1, description="highest learning rate of Adam")
    contrastive: float = Field(0.0, ge=0, le=10, description="weight of the contrastive term; 0 leaves it out")
    log_every: int = Field(50, ge=1, le=10_000, description="steps between two lines of cheap metrics")
    monitor_every: int = Field(500, ge=1, le=100_000, description="steps between two readings of whole answers")


def seconds(params: Params) -> float:
    """Estimate CPU seconds on one core from the multiplications of a forward."""
    p: Any = params
    side = p.side**2
    products = 2 * p.width * (p.width + 2 * side)
    step = STEP_SECONDS + p.batch_size * products * SECONDS_PER_PRODUCT
    return p.steps * step * (4 if p.contrastive else 1)


def called(params: Params) -> str:
    """Name a run as the presets are, by its task and size: gauss-4, completion-5-rank2, inverse-3-contrastive."""
    p: Any = params
    task = {"addition": "add"}.get(p.task, p.task)
    return f"{task}-{p.side}" + f"-rank{p.rank}" * (task == "completion") + "-contrastive" * bool(p.contrastive)


@recipe(title="Energy model (IRED)", asks="Does an energy learn to reason, or to denoise?", params=EnergyParams,
        presets=PRESETS, metrics=METRICS, seconds=seconds, called=called)  # fmt: skip
def energy(params: EnergyParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one energy model into the run folder."""
    from backend.runs.loop import run_loop

    if resume_from is None:
        run.describe(model={"kind": "energy", "config": model_config(params)})
    run_loop(make_training(params), run, params.steps, resume_from, progress)


def model_config(params: EnergyParams) -> dict[str, Any]:
    """Return what the checkpoints need to be opened: sizes and the task."""
    d_x, d_y = entries(params.task, params.side)
    return {"task": params.task, "side": params.side, "rank": params.rank, "d_x": d_x, "d_y": d_y,
            "width": params.width, "levels": LEVELS}  # fmt: skip


def build(params: EnergyParams) -> EnergyNet:
    """Build the net with its first weights, PyTorch's own, drawn from the seed."""
    import torch

    from backend.models.energy_net import EnergyNet

    config = model_config(params)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return EnergyNet(config["d_x"], config["d_y"], config["width"])


def make_training(params: EnergyParams) -> Training:
    """Build net, optimiser, data and measurements from the params alone."""
    import torch

    from backend.maths import annealing
    from backend.runs import schedule
    from backend.runs.loop import Training

    device = schedule.device_of(params.device)
    net = build(params).to(device, schedule.weights_dtype(params.dtype))
    optimizer = torch.optim.Adam(net.parameters(), lr=params.lr, betas=(0.9, 0.99))
    dice = torch.Generator().manual_seed(params.seed + _DATA)
    levels, seen = annealing.cosine(LEVELS), HeldOut(params, net)

    def update() -> None:
        state = optimizer.state.values()
        done = int(next(iter(state))["step"]) if state else 0
        optimizer.param_groups[0]["lr"] = params.lr * rate(done, params.steps)
        optimizer.zero_grad()
        objective(params, net, levels, problems(params, params.batch_size, dice), dice).backward()
        optimizer.step()

    def measure() -> dict[str, float]:
        step = int(next(iter(optimizer.state.values()))["step"]) if optimizer.state else 0
        whole = seen.whole(levels) if step % params.monitor_every == 0 or step == params.steps else {}
        return {"loss": seen.loss(levels)} | whole

    return Training(net, optimizer, dice, update, measure, lambda step: step % params.log_every == 0,
                    log_steps(params.steps, params.n_checkpoints, params.log_every))  # fmt: skip


def rate(done: int, steps: int) -> float:
    """Return the share of the highest rate after `done` updates: warmed up over 5 %, then a cosine to zero."""
    warm = max(1, steps // 20)
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def problems(params: EnergyParams, n: int, dice: Any) -> Drawn:
    """Draw problems of the params' task."""
    from backend.runs import energy_tasks

    return energy_tasks.draw(params.task, params.side, n, dice, params.rank)


def objective(params: EnergyParams, net: EnergyNet, levels: Any, some: Drawn, dice: Any) -> Tensor:
    """Return the loss of a batch: denoising, and the contrastive term where it is asked for."""
    import torch
    import torch.nn.functional as F

    where = net.fc1.weight
    level = torch.randint(LEVELS, (len(some.y),), generator=dice)
    noise = torch.randn(some.y.shape, generator=dice)
    root, sigma = (torch.as_tensor(v, dtype=where.dtype)[level][:, None].to(where)
                   for v in (levels.abar**0.5, levels.sigma))  # fmt: skip
    x, y0, noise, level = some.x.to(where), some.y.to(where), noise.to(where), level.to(where.device)
    y = (root * y0 + sigma * noise).requires_grad_()
    loss = F.mse_loss(net.gradient(x, y, level, create_graph=True), noise)
    if params.contrastive:
        wrong = root * negatives(net, levels, x, y0, level, dice) + sigma * noise
        energies = torch.stack([net(x, y.detach(), level), net(x, wrong, level)], 1)
        right = torch.zeros(len(y0), dtype=torch.long, device=y0.device)
        loss = loss + params.contrastive * F.cross_entropy(-energies, right)
    return loss


def negatives(net: EnergyNet, levels: Any, x: Tensor, y0: Tensor, level: Tensor, dice: Any) -> Tensor:
    """Return wrong solutions [n, d]: noised three times as hard, two gradient steps where they help, cut to +-2."""
    import torch

    from backend.maths.annealed_inference import CUT

    root, sigma, step = (torch.as_tensor(v, dtype=y0.dtype)[level.cpu()][:, None].to(y0)
                         for v in (levels.abar**0.5, levels.sigma, levels.step))  # fmt: skip
    y = root * y0 + 3 * sigma * torch.randn(y0.shape, generator=dice).to(y0)
    with torch.no_grad():
        now = net(x, y, level)
        for _ in range(2):
            moved = y - step * net.gradient(x, y, level)
            then = net(x, moved, level)
            y, now = torch.where((then <= now)[:, None], moved, y), torch.minimum(then, now)
    return (y / root).clamp(-CUT, CUT)


class HeldOut:
    """Problems that are not trained on, with fixed noise, and what answers them without a net."""

    def __init__(self, params: EnergyParams, net: EnergyNet):
        import torch

        from backend.maths import trivial_answers

        self.net = net
        dice = torch.Generator().manual_seed(params.seed + _EVAL)
        some = problems(params, EVAL_PROBLEMS, dice)
        self.noise = torch.randn(some.y.shape, generator=dice).to(net.fc1.weight)
        self.x, self.y = some.x.to(net.fc1.weight), some.y.to(net.fc1.weight)
        fit = problems(params, FIT_PROBLEMS, torch.Generator().manual_seed(params.seed + _FIT))
        told = trivial_answers.errors(fit.x, fit.y, some.x, some.y)
        self.trivial = {f"mse_{name}": float(told[name].mean()) for name in ("zero", "mean", "linear")}

    def loss(self, levels: Any) -> float:
        """Return the squared error of the gradient, mean over all levels, of the first 4 LEVELS problems."""
        import torch

        from backend.maths.annealed_inference import noised

        some, errors = slice(0, 4), []
        for k in range(LEVELS):
            y = noised(self.y[some], self.noise[some], levels, k)
            level = torch.full((len(y),), k, device=y.device)
            errors.append((self.net.gradient(self.x[some], y, level) - self.noise[some]).square().mean())
        return float(torch.stack(errors).mean())

    def whole(self, levels: Any) -> dict[str, float]:
        """Return the error of whole answers, and the trivial ones beside it."""
        from backend.maths.annealed_inference import infer

        answer = infer(self.net, self.x, self.noise, levels, inner=0).solutions[0]
        return {"mse": float((answer - self.y).square().mean()), **self.trivial}
