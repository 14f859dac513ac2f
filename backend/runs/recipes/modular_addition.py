"""When does a transformer stop remembering and start adding? One layer learns (a + b) mod p, and groks.

Data: the inputs are (a, b, '=') for all p^2 pairs, '=' being token p; the answer is read at the last position, over
p + 1 classes. The pairs in order are shuffled by `random.seed(seed); random.shuffle`; the first fraction is train, and
every update sees all of it. The train pairs are learnt by heart long before the test pairs are understood; without
weight decay (the control) they never are at a small train fraction.

Model: one layer, ReLU, no norm, no attention biases, no b_U; weights N(0, 1/d_model), W_U N(0, 1/(p + 1)), biases 0.
AdamW, betas (0.9, 0.98), lr warmed up linearly over 10 updates (the very first has rate 0), then constant;
cross-entropy in float64. Trained by the exact fast forward of the last position on the model's own weights:
bfloat16 rounds its matrix products and keeps float32 master weights, moments and tables.

Measured every `log_every` steps: loss and accuracy on all train pairs and on 256 fixed random test pairs. Every
`monitor_every` steps, on all p^2 inputs in float32 or better: the progress measures, the full test loss among them.
Resuming on a CPU gives the same bits; on a GPU sums run in no fixed order, so runs agree only closely.

Source: Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability, and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from backend.contract import Metric, Preset, Progress, recipe
from backend.runs.recipes._common import RecipeParams, heads_divide_width, log_steps, snapped
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backend.contract import Observation
    from backend.runs.loop import Training

TEST_ROWS = 256  # test pairs of the cheap reading: all of them would cost a third of an update or more
EVERY_NEURON = 4  # the clusters look at every 4th neuron, for their p^3 multiplications each
WARM_UP = 10
SEEN_ROWS = 128  # test inputs whose attention and residual stream the shared monitors look at, all three positions
MONITORS = ("modular_progress", "fourier_gini", "neuron_clusters", "prediction_entropy", "attention_entropy",
            "previous_token_score", "effective_dimension", "weight_norms", "head_norms")  # fmt: skip
#: CPU seconds per (train pair x multiplication of its forward), float32 on one core; bfloat16 takes about .4 of it
SECONDS_PER_PRODUCT = 8e-11
METRICS = (
    Metric("train_loss", "Train loss", "nats", "cross-entropy on all train pairs", better="low"),
    Metric("test_loss", "Test loss", "nats", "cross-entropy on 256 fixed random test pairs", better="low"),
    Metric("train_accuracy", "Train accuracy", "", "share of train pairs answered rightly", better="high",
           continuous="train_loss", span=1.0),
    Metric("test_accuracy", "Test accuracy", "", "share of 256 fixed random test pairs answered rightly",
           better="high", continuous="test_loss", span=1.0),
)  # fmt: skip
PRESETS = (
    Preset("live", "p = 59, half of the pairs, lr 3e-3: groks by step 430 to 760 (three seeds), 20 to 25 s of one core",
           ({"p": 59, "train_fraction": 0.5, "lr": 3e-3, "steps": 1000, "monitor_every": 80},)),
    Preset("paper", "p = 113, 30 % of the pairs, weight decay 1, bfloat16: groks near step 5,000 (seed 0), minutes",
           ({"p": 113, "train_fraction": 0.3, "lr": 1e-3, "steps": 13_000, "dtype": "bfloat16", "log_every": 20,
             "monitor_every": 250, "n_checkpoints": 100},)),
    Preset("control", "p = 113, 30 %, no weight decay, cut at 2,500 steps: never generalises",
           ({"p": 113, "train_fraction": 0.3, "lr": 1e-3, "weight_decay": 0.0, "steps": 2500, "dtype": "bfloat16",
             "log_every": 20, "monitor_every": 250},)),
    Preset("control-small", "p = 59, 30 %, no weight decay, 2,500 steps: the cheap control",
           ({"p": 59, "train_fraction": 0.3, "lr": 1e-3, "weight_decay": 0.0, "steps": 2500, "log_every": 20,
             "monitor_every": 150},)),
)  # fmt: skip


class ModularAdditionParams(RecipeParams):
    steps: int = Field(800, ge=1, le=1_000_000, description="number of updates, each on all train pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="fixes the first weights and the split into train and test")
    p: int = Field(59, ge=5, le=257, description="modulus, a prime from 5 to 257")
    train_fraction: float = Field(0.5, ge=0.01, le=0.99, description="share of the p^2 pairs that is trained on")
    weight_decay: float = Field(1.0, ge=0, le=10, description="weight decay of AdamW; 0 is the control")
    lr: float = Field(3e-3, gt=0, le=1, description="learning rate of AdamW after 10 steps of warm-up, then constant")
    d_model: int = Field(128, ge=8, le=1024, description="width of the residual stream")
    n_heads: int = Field(4, ge=1, le=16, description="attention heads; must divide d_model")
    d_mlp: int = Field(512, ge=8, le=4096, description="neurons of the MLP")
    log_every: int = Field(10, ge=1, le=10_000, description="steps between two lines of cheap metrics")
    monitor_every: int = Field(120, ge=1, le=100_000, description="steps between two readings of the monitors")
    n_checkpoints: int = Field(40, ge=2, le=500, description="checkpoints, log-spaced over the steps, first and last "
                               "included")  # fmt: skip
    keep_from: int = Field(0, ge=0, le=1_000_000, description="with keep_to: half of the checkpoints lie evenly "
                           "between the two steps")  # fmt: skip
    keep_to: int = Field(0, ge=0, le=1_000_000, description="0: all checkpoints are log-spaced")

    @model_validator(mode="after")
    def _fit_together(self) -> ModularAdditionParams:
        if any(self.p % k == 0 for k in range(2, self.p)):
            raise ValueError(f"p = {self.p} is no prime")
        heads_divide_width(self)
        if not 0 < int(self.train_fraction * self.p**2) < self.p**2:
            raise ValueError(f"train_fraction = {self.train_fraction} leaves no pair to train on or to test")
        return self


def seconds(params: Any) -> float:
    """Estimate the CPU seconds of one run on one core."""
    classes = params.p + 1
    products = params.d_model * (params.d_mlp + classes) + params.d_mlp * classes
    pace = SECONDS_PER_PRODUCT * {"bfloat16": 0.4, "float64": 2.0}.get(params.dtype, 1.0)
    return 2 + params.steps * (2e-3 + pace * params.train_fraction * params.p**2 * products)


def sample(params: Any, rows: int, seed: int) -> Tensor:
    """Draw inputs (a, b, '=') among all p^2, without replacement where there are enough: [rows, 3]."""
    import torch

    from backend.maths import modular_addition as task

    dice, every = torch.Generator().manual_seed(seed), task.all_inputs(params.p)
    if rows > len(every):
        return every[torch.randint(len(every), (rows,), generator=dice)]
    return every[torch.randperm(len(every), generator=dice)[:rows]]


@recipe(
    title="Modular addition (grokking)",
    asks="When does a transformer that knows its training pairs by heart learn to add modulo p?",
    params=ModularAdditionParams, presets=PRESETS, metrics=METRICS, seconds=seconds,
    sample=sample,
)  # fmt: skip
def modular_addition(params: Any, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one model into the run folder."""
    from backend.runs.loop import run_loop

    if resume_from is None:
        run.describe(model={"kind": "native", "config": model_config(params)})
    run_loop(make_training(params), run, params.steps, resume_from, progress)


def model_config(params: ModularAdditionParams) -> dict[str, Any]:
    """Return the native model's config."""
    return {
        "n_layers": 1, "d_model": params.d_model, "n_heads": params.n_heads, "d_head": params.d_model // params.n_heads,
        "d_mlp": params.d_mlp, "act_fn": "relu", "normalization_type": None, "d_vocab": params.p + 1,
        "d_vocab_out": params.p + 1, "n_ctx": 3, "positional_embedding_type": "standard", "seed": params.seed,
    }  # fmt: skip


def checkpoint_steps(params: ModularAdditionParams) -> set[int]:
    """Return the steps that are kept, each a logged one (or the last); see `keep_from` and `keep_to`."""
    unit, n, half = params.log_every, params.n_checkpoints, (params.n_checkpoints + 1) // 2
    low, high = (min(edge, params.steps) for edge in (params.keep_from, params.keep_to))
    if high <= low:
        return log_steps(params.steps, n, unit)
    dense = snapped((low + (high - low) * i / max(half - 1, 1) for i in range(half)), unit, params.steps)
    return dense | log_steps(params.steps, max(n - len(dense), 2), unit)


def build(params: ModularAdditionParams) -> nn.Module:
    """Build the bare model on the CPU, float32: the published first weights, attention biases zero and frozen."""
    import torch

    from backend.models.bridge import build_native

    model = build_native(model_config(params), params.seed)
    generator = torch.Generator().manual_seed(params.seed)
    for name, weights in model.named_parameters():
        if weights.dim() == 2:
            variance = 1 / (params.p + 1 if name == "head.weight" else params.d_model)
            torch.nn.init.normal_(weights, std=variance**0.5, generator=generator)
        else:
            torch.nn.init.zeros_(weights)
            weights.requires_grad_(".attn." not in name)
    return model


@dataclass
class Addition:
    """One model on its task: the loss with its gradients, one update, and what is seen of it."""

    params: ModularAdditionParams
    model: Any

    def __post_init__(self) -> None:
        import torch

        from backend.maths import fused_loss
        from backend.maths import modular_addition as task

        p, device = self.params.p, next(self.model.parameters()).device
        self.every = task.all_pairs(p).to(device)
        train, test = task.split(p, self.params.train_fraction, self.params.seed)
        self.is_train = torch.zeros(p * p, dtype=torch.bool).index_fill_(0, train, True).to(device)
        pairs = self.every[train.to(device)]
        self.rows, self.targets = task.table_rows(pairs, p), task.answers(pairs, p)
        self.test_pairs = self.every[test[:TEST_ROWS].to(device)]  # the split is shuffled, so its first rows are random
        self.shown = torch.nn.functional.pad(self.test_pairs[:SEEN_ROWS], (0, 1), value=p)
        self.space = fused_loss.Workspace(len(pairs), self.params.d_model, self.params.d_mlp, p + 1,
                                          getattr(torch, self.params.dtype), device)  # fmt: skip
        free = [w for w in self.model.parameters() if w.requires_grad]
        self.optimizer = torch.optim.AdamW(free, lr=self.params.lr, betas=(0.9, 0.98),
                                           weight_decay=self.params.weight_decay, fused=True)  # fmt: skip
        self.loss: Tensor | None = None

    def differentiate(self) -> Tensor:
        """Return the train loss of the weights as they are, their gradients left in place; once per update."""
        from backend.maths import fused_loss
        from backend.maths import modular_addition as task
        from backend.models.observe import live_weights

        if self.loss is None:
            self.optimizer.zero_grad()
            loss = fused_loss.fused_loss(task.fold(live_weights(self.model)), self.rows, self.targets, self.space)
            loss.backward()  # type: ignore[no-untyped-call]
            self.loss = loss.detach()
        return self.loss

    def update(self) -> None:
        """Make one step of AdamW."""
        self.differentiate()
        state = self.optimizer.state.values()
        done = int(next(iter(state))["step"]) if state else 0
        self.optimizer.param_groups[0]["lr"] = self.params.lr * min(done / WARM_UP, 1.0)
        self.optimizer.step()
        self.loss = None

    def measure(self) -> dict[str, float]:
        """Return the cheap metrics. The train loss is the next update's own, so it costs nothing."""
        import torch
        import torch.nn.functional as F

        from backend.maths import modular_addition as task
        from backend.models.observe import live_weights

        loss = self.differentiate()
        hits = self.space.hits.double().mean()
        with torch.no_grad():
            logits = task.fast_forward(live_weights(self.model), self.test_pairs)[0].double()
            right = task.answers(self.test_pairs, self.params.p)
            values = {"train_loss": loss, "test_loss": F.cross_entropy(logits, right), "train_accuracy": hits,
                      "test_accuracy": (logits.argmax(1) == right).double().mean()}  # fmt: skip
        return {name: float(value) for name, value in values.items()}

    def observe(self) -> Observation:
        """Look at all p^2 inputs at the last position; patterns and residual stream are those of SEEN_ROWS inputs."""
        import torch

        from backend.contract import Observation
        from backend.maths import modular_addition as task
        from backend.models.observe import live_weights, observe

        with torch.no_grad():
            weights = live_weights(self.model)
            logits, neurons = task.fast_forward(weights, self.every)
        extra = {"p": self.params.p, "train": self.is_train, "neurons": neurons[:, ::EVERY_NEURON].contiguous()}
        detached = {k: [t.detach() for t in v] if isinstance(v, list) else v.detach() for k, v in weights.items()}
        right = task.answers(self.every, self.params.p)
        whole = observe(self.model, self.shown)
        return Observation(self.every, logits[:, None], whole.patterns, whole.resid, detached, targets=right,
                           extra=extra)  # fmt: skip


def make_training(params: ModularAdditionParams) -> Training:
    """Build model, optimiser, data and measurements from the params alone."""
    import torch

    from backend.runs import schedule
    from backend.runs.loop import Training

    model = build(params).to(schedule.device_of(params.device), schedule.weights_dtype(params.dtype))
    task = Addition(params, model)
    return Training(
        model, task.optimizer, torch.Generator(), task.update, task.measure,
        lambda step: step % params.log_every == 0, checkpoint_steps(params), observe=task.observe, monitors=MONITORS,
        monitor_at=lambda step: step % params.monitor_every == 0, headline="test_loss",
    )  # fmt: skip
