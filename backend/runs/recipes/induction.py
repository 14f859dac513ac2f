"""When do induction heads form? An attention-only transformer learns to continue repeated random blocks.

Data: each row is a block of n ~ U{n_ctx/8 .. n_ctx/2} random tokens, tiled: x[t] = block[t mod n]. The random
period is essential: with a fixed one, a single layer that copies by position would do. Two layers go through a
sudden change (induction heads form), one layer never does; it is the control.

Model: pre-norm with LayerNorm, learned positions, no attention biases, weights N(0, 0.02^2). AdamW with betas
(0.9, 0.98), constant rate, no clipping; cross-entropy over all positions, in nats.

Measured on fixed rows: `loss` on 8 held-out rows of the training data; all else on 16 rows [A; A] of one random block
each. Every `log_every` steps (every 10 from 100 to 300) the cheap monitors: the loss on either copy, accuracy on the
second, in-context-learning score, induction and previous-token score of each head. Every `monitor_every` steps the
others: entropies, norms, copying and duplicate-token scores, effective dimension. On a CPU a resumed run has the same
bits; on a GPU the same state is restored, and curves agree to rounding.

Source: Olsson et al. (2022), In-context Learning and Induction Heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from backend.contract import Params, Preset, Progress, recipe
from backend.runs.recipes._common import RecipeParams, heads_divide_width, snapped
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from backend.runs.loop import Training

#: held-out rows of the training data, and rows [A; A]: few, so that measuring stays below 3 % of the training
TILED_ROWS, EVAL_ROWS = 8, 16
#: read at every line, and rarely, of the rows [A; A]
CHEAP = ("repeated_block", "icl_score", "induction_score", "previous_token_score")
SLOW = ("prediction_entropy", "effective_dimension", "attention_entropy", "duplicate_token_score", "copying_score",
        "weight_norms", "head_norms")
#: the transition of the reference settings lies here: finer logging, half of the checkpoints
DENSE_LOG, DENSE_KEEP = (100, 300), (100, 400)
#: one seed gives three independent streams
_DATA, _EVAL = 1_000_003, 2_000_003


class InductionParams(RecipeParams):
    steps: int = Field(1200, ge=1, le=100_000, description="number of updates")
    n_layers: int = Field(2, ge=1, le=3, description="attention layers; 1 is the control that never forms induction")
    n_heads: int = Field(4, ge=1, le=16, description="attention heads per layer; must divide d_model")
    d_model: int = Field(64, ge=8, le=512, description="width of the residual stream")
    d_vocab: int = Field(64, ge=8, le=4096, description="number of different tokens")
    n_ctx: int = Field(64, ge=16, le=512, multiple_of=2, description="tokens per row")
    batch_size: int = Field(32, ge=1, le=1024, description="rows per update")
    lr: float = Field(3e-3, gt=0, le=1, description="learning rate of AdamW, constant")
    weight_decay: float = Field(0.01, ge=0, le=10, description="weight decay of AdamW")
    log_every: int = Field(20, ge=1, le=1000, description="steps between measurements; at most 10 from step 100 to 300")
    n_checkpoints: int = Field(
        30, ge=2, le=200, description="checkpoints, at measured steps: half between steps 100 and 400, half log-spaced"
    )

    _heads_divide_width = model_validator(mode="after")(heads_divide_width)


def seconds(params: Params) -> float:
    """Estimate CPU seconds on one core: 3 ms per layer and update, and what the tokens cost."""
    p: Any = params
    tokens = p.batch_size * p.n_ctx
    layer = 3e-3 + tokens * (24 * p.d_model**2 + 24 * p.d_model * p.n_ctx) / 80e9 + tokens * p.n_ctx * p.n_heads * 1e-8
    return p.steps * (2e-3 + p.n_layers * layer + tokens * p.d_vocab * p.d_model * 6 / 40e9)


def sample(params: Any, rows: int, seed: int) -> Tensor:
    """Draw fresh rows of the training distribution: [rows, n_ctx]."""
    import torch

    return tiled_rows(params, rows, torch.Generator().manual_seed(seed))


@recipe(
    title="Induction heads",
    asks="When does a small transformer learn to continue a repeated sequence, and which heads do it?",
    params=InductionParams,
    presets=(
        Preset("two layers", "induction heads form near step 200"),
        Preset("control: one layer", "one layer cannot form them", ({"n_layers": 1},)),
        Preset("five seeds", "the same change from five seeds", tuple({"seed": s} for s in range(5))),
    ),
    seconds=seconds,
    sample=sample,
)
def induction(params: InductionParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one model into the run folder."""
    from backend.runs.loop import run_loop

    if resume_from is None:
        run.describe(model={"kind": "native", "config": model_config(params)})
    run_loop(make_training(params), run, params.steps, resume_from, progress)


def model_config(params: InductionParams) -> dict[str, Any]:
    """Return the native model's config."""
    return {
        "n_layers": params.n_layers, "d_model": params.d_model, "n_heads": params.n_heads,
        "d_head": params.d_model // params.n_heads, "d_vocab": params.d_vocab, "n_ctx": params.n_ctx,
        "attn_only": True, "normalization_type": "LN", "positional_embedding_type": "standard", "seed": params.seed,
    }  # fmt: skip


def checkpoint_steps(steps: int, n: int, unit: int) -> set[int]:
    """Return about n steps from 0 to `steps`, half of them evenly where the transition lies, the others log-spaced.

    Each is a multiple of `unit`, so a measured one; fewer where there are not as many.
    """
    low, high = (min(edge, steps) for edge in DENSE_KEEP)
    chosen = {0, steps} | snapped((low + (high - low) * i / max(n // 2 - 1, 1) for i in range(n // 2)), unit, steps)
    for count in range(n, 20 * n):  # neighbours snap to one step, so ask for more until there are enough
        spaced = snapped((steps ** (i / count) for i in range(count)), unit, steps)
        if len(chosen | spaced) >= n:
            return chosen | spaced
    return chosen | spaced


def log_due(step: int, every: int) -> bool:
    """Say whether a step is measured: every `every` steps, at most 10 apart where the transition lies."""
    return step % every == 0 or (DENSE_LOG[0] <= step <= DENSE_LOG[1] and step % min(every, 10) == 0)


def make_training(params: InductionParams) -> Training:
    """Build model, optimiser, data and measurements from the params alone."""
    import torch

    from backend.models.observe import observe
    from backend.runs import schedule
    from backend.runs.loop import Training

    device = schedule.device_of(params.device)
    model = build(params).to(device, schedule.weights_dtype(params.dtype))
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=params.lr, betas=(0.9, 0.98), weight_decay=params.weight_decay)
    generator = torch.Generator().manual_seed(params.seed + _DATA)
    tiled, doubled = (rows.to(device) for rows in held_out_rows(params))

    def update() -> None:
        rows = tiled_rows(params, params.batch_size, generator).to(device)
        optimizer.zero_grad()
        with schedule.forward_in(params.dtype, device):
            logits = model(rows)
        position_losses(logits, rows).mean().backward()
        optimizer.step()

    return Training(
        model, optimizer, generator, update, lambda: measure(model, tiled, doubled),
        lambda step: log_due(step, params.log_every),
        checkpoint_steps(params.steps, params.n_checkpoints, params.log_every),
        lambda: observe(model, doubled, params.n_ctx // 2), SLOW, lambda step: step % params.monitor_every == 0,
    )  # fmt: skip


def held_out_rows(params: InductionParams) -> tuple[Tensor, Tensor]:
    """Return TILED_ROWS rows of the training data and EVAL_ROWS rows [A; A], on the CPU."""
    import torch

    dice = torch.Generator().manual_seed(params.seed + _EVAL)
    tiled = tiled_rows(params, TILED_ROWS, dice)
    block = torch.randint(params.d_vocab, (EVAL_ROWS, params.n_ctx // 2), generator=dice)
    return tiled, torch.cat([block, block], 1)


def build(params: InductionParams) -> nn.Module:
    """Build the bare model with its first weights; see `_native.build_plain`."""
    from backend.runs.recipes._native import build_plain

    return build_plain(model_config(params), params.seed)


def tiled_rows(params: InductionParams, rows: int, generator: Generator) -> Tensor:
    """Draw rows [rows, n_ctx] of x[t] = block[t mod n], n ~ U{n_ctx/8 .. n_ctx/2} for each row by itself."""
    import torch

    longest = params.n_ctx // 2
    n = torch.randint(params.n_ctx // 8, longest + 1, (rows, 1), generator=generator)
    block = torch.randint(params.d_vocab, (rows, longest), generator=generator)
    return block.gather(1, torch.arange(params.n_ctx) % n)


def position_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy in nats of every next token: [rows, pos - 1]."""
    from backend.monitors import predictions

    return predictions.position_losses(logits, tokens)


def measure(model: nn.Module, tiled: Tensor, doubled: Tensor) -> dict[str, float]:
    """Return the cheap metrics: the loss on held-out `tiled` rows, the CHEAP monitors on `doubled` rows [A; A]."""
    import torch

    from backend import monitors
    from backend.contract import Observation
    from backend.models.observe import observe

    with torch.no_grad():
        values = monitors.measure(["loss"], Observation(tiled, model(tiled)))
    return values | monitors.measure(CHEAP, observe(model, doubled, doubled.shape[1] // 2, with_weights=False))
