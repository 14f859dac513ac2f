"""A linear model has no transition: its loss falls as a sum of exponentials, known in closed form.

Data: inputs x ~ N(0, diag(s_1, ..., s_d)) with s_i = i^-spectrum, targets y = x W* + noise, W* ~ N(0, 1/d) of
[d_in, d_out], a fixed set of n_rows rows. Model: y = x W from W = 0; loss = mean over rows of |y - x W|^2 / 2.

With full batches and plain gradient descent, loss(t) = floor + 1/2 sum_i lambda_i |c_i|^2 (1 - lr lambda_i)^(2t):
lambda_i are the eigenvalues of the Gram matrix X'X / n_rows, c_i the components along its eigenvectors of the
least-squares answer (the start is zero), floor its loss. The curve is a mixture of straight lines in log loss and
has no sudden change; with spectrum 1 it is nearly straight in log-step from 1/(2 lr) to d_in/(2 lr) updates. It is
logged as `predicted_loss` beside the trained one.
Minibatches add noise; `lr_drop_at` adds a kink that comes from the schedule alone (a decoy: it must be called
exogenous). Nothing here can be opened as a transformer, so run.json names no model.

Source: Saxe et al. (2014), Exact solutions to the nonlinear dynamics of learning in deep linear neural networks,
section 1 (a shallow network's modes are exponentials).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from backend.contract import Metric, Params, Preset, Progress, recipe
from backend.runs.recipes._common import RecipeParams, log_steps
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from backend.runs.loop import Training

#: one seed gives three independent streams: the problem, the order of the rows, held-out rows
_BATCHES, _HELD_OUT = 1_000_003, 2_000_003
HELD_OUT_ROWS = 512


class LinearParams(RecipeParams):
    steps: int = Field(10_000, ge=1, le=1_000_000, description="number of updates")
    d_in: int = Field(256, ge=1, le=4096, description="inputs")
    d_out: int = Field(8, ge=1, le=1024, description="outputs")
    n_rows: int = Field(1024, ge=1, le=100_000, description="training rows")
    batch_size: int = Field(64, ge=0, le=100_000, description="rows per update; 0 takes all rows, without noise")
    spectrum: float = Field(1.0, ge=0, le=4, description="input i has variance i^-spectrum; 0 makes them alike")
    noise: float = Field(0.1, ge=0, le=100, description="standard deviation of the noise in the targets")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="plain gradient descent, or AdamW")
    lr: float = Field(0.01, gt=0, le=10, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, le=10, description="weight decay")
    log_every: int = Field(100, ge=1, le=10_000, description="steps between two lines of metrics; a step is cheap here")
    lr_drop_at: int = Field(0, ge=0, le=1_000_000, description="the learning rate drops after this step; 0: never")
    lr_drop_factor: float = Field(0.1, gt=0, le=1, description="what the learning rate is multiplied by at the drop")


@dataclass(frozen=True)
class Problem:
    """Rows x [row, d_in] and targets y [row, d_out] to train on and held out."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


METRICS = (
    Metric("loss", "Loss", "", "half the squared error over all training rows", better="low"),
    Metric("held_out_loss", "Held-out loss", "", "half the squared error over rows not trained on", better="low"),
    Metric("predicted_loss", "Predicted loss", "", "the loss that the closed form of gradient descent with all rows "
           "gives at this step"),
    Metric("weight_distance", "Distance to the answer", "", "|W - least-squares W|, Frobenius", better="low"),
)  # fmt: skip


def seconds(params: Params) -> float:
    """Estimate CPU seconds on one core: 0.12 ms an update and the products."""
    p: Any = params
    return p.steps * (1.2e-4 + 4 * (p.batch_size or p.n_rows) * p.d_in * p.d_out / 2e10)


@recipe(
    title="Linear control",
    asks="What do the curves of a model that cannot have a transition look like?",
    params=LinearParams,
    presets=(
        Preset("smooth", "minibatches, no transition possible; about 1 CPU second"),
        Preset("exact", "all rows, plain gradient descent: the closed form to rounding",
               ({"batch_size": 0, "noise": 0.0, "dtype": "float64"},)),
        Preset("five seeds", "five smooth controls", tuple({"seed": s} for s in range(5))),
        Preset("learning-rate drop", "a decoy: its kink comes from the schedule", ({"lr_drop_at": 3000},)),
    ),
    metrics=METRICS,
    seconds=seconds,
)  # fmt: skip
def linear_control(params: LinearParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one linear map into the run folder."""
    from backend.runs.loop import run_loop

    run_loop(make_training(params), run, params.steps, resume_from, progress)


def make_training(params: LinearParams) -> Training:
    """Build the map, optimiser, data and measurements from the params alone."""
    import torch

    from backend.runs import schedule

    device, dtype = schedule.device_of(params.device), schedule.weights_dtype(params.dtype)
    rows = problem(params)
    x, y, held_x, held_y = (part.to(device, dtype) for part in (rows.x, rows.y, rows.held_x, rows.held_y))
    model = torch.nn.Linear(params.d_in, params.d_out, bias=False, device=device, dtype=dtype)
    torch.nn.init.zeros_(model.weight)
    kind = torch.optim.SGD if params.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(model.parameters(), lr=params.lr, weight_decay=params.weight_decay)
    generator = torch.Generator().manual_seed(params.seed + _BATCHES)
    curve = Curve(params, rows)

    def update() -> None:
        some = torch.randint(params.n_rows, (params.batch_size,), generator=generator).to(device)
        optimizer.zero_grad()
        with schedule.forward_in(params.dtype, device):
            answer = model(x[some] if params.batch_size else x)
        error(answer.to(dtype), y[some] if params.batch_size else y).backward()
        optimizer.step()

    def measure() -> dict[str, float]:
        with torch.no_grad():
            values = {"loss": error(model(x), y), "held_out_loss": error(model(held_x), held_y),
                      "weight_distance": (model.weight.T.double().cpu() - curve.answer).norm()}  # fmt: skip
        known = params.optimizer == "sgd" and not params.weight_decay
        return {k: float(v) for k, v in values.items()} | ({"predicted_loss": curve.loss(made.at)} if known else {})

    made = schedule.Scheduled(
        model, optimizer, generator, update, measure, lambda step: step % params.log_every == 0,
        log_steps(params.steps, params.n_checkpoints, params.log_every),
        rate=lambda step: params.lr * schedule.dropped(step, params.lr_drop_at, params.lr_drop_factor),
    )  # fmt: skip
    return made


def problem(params: LinearParams) -> Problem:
    """Draw the rows and targets of the module docstring, in float64."""
    import torch

    scale = torch.arange(1, params.d_in + 1, dtype=torch.float64) ** (-params.spectrum / 2)
    truth = torch.Generator().manual_seed(params.seed)
    held_out = torch.Generator().manual_seed(params.seed + _HELD_OUT)
    weights = _normal(params.d_in, params.d_out, truth) / params.d_in**0.5

    def rows(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        x = _normal(n, params.d_in, generator) * scale
        return x, x @ weights + params.noise * _normal(n, params.d_out, generator)

    return Problem(*rows(params.n_rows, truth), *rows(HELD_OUT_ROWS, held_out))


def _normal(rows: int, columns: int, generator: Generator) -> Tensor:
    import torch

    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def error(answer: Tensor, target: Tensor) -> Tensor:
    """Return half the squared error, summed over outputs, mean over rows."""
    return (answer - target).square().sum(1).mean() / 2


class Curve:
    """The closed form of the loss under gradient descent with all rows, from W = 0, in float64.

    `answer` [d_in, d_out] is the least-squares map (the shortest one where rows are too few).
    """

    def __init__(self, params: LinearParams, rows: Problem):
        import torch

        self.params, n = params, params.n_rows
        self.eigenvalues, vectors = torch.linalg.eigh(rows.x.T @ rows.x / n)
        seen = self.eigenvalues > self.eigenvalues[-1] * params.d_in * 1e-14
        along = torch.where(seen[:, None], vectors.T @ (rows.x.T @ rows.y / n), 0)
        components = along / torch.where(seen, self.eigenvalues, 1)[:, None]
        self.answer = vectors @ components
        self.floor = error(rows.x @ self.answer, rows.y)
        self.start = self.eigenvalues * components.square().sum(1) / 2

    def loss(self, step: int) -> float:
        """Return floor + sum_i start_i prod_t (1 - lr_t lambda_i)^2 after `step` updates."""
        p = self.params
        before = min(step, p.lr_drop_at) if p.lr_drop_at else step
        left = (1 - p.lr * self.eigenvalues) ** (2 * before)
        left *= (1 - p.lr * p.lr_drop_factor * self.eigenvalues) ** (2 * (step - before))
        return float(self.floor + (self.start * left).sum())
