"""When do induction heads form? An attention-only transformer learns to continue repeated random blocks.

Data: each row is a block of n ~ U{n_ctx/8 .. n_ctx/2} random tokens, tiled: x[t] = block[t mod n]. The random
period is essential: with a fixed one, a single layer that copies by position would do. Two layers go through a
sudden change (induction heads form), one layer never does; it is the control.

Model: pre-norm with LayerNorm, learned positions, no attention biases, weights N(0, 0.02^2). AdamW with betas
(0.9, 0.98), constant rate, no clipping; cross-entropy over all positions, in nats.

Measured every `log_every` steps on fixed rows: `loss` on 64 held-out rows of the training data; all else on 64
rows [A; A] of one random block each: loss on either half (the step from one to the other left out), accuracy on
the second half, the in-context learning score (loss over the last tenth of positions minus that over the second
tenth; it rises before it falls), and for each head its induction score (attention to the token after the earlier
occurrence) and previous-token score. Runs on the CPU.

Source: Olsson et al. (2022), In-context Learning and Induction Heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from backend.contract import Params, Progress, recipe
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from backend.runs.loop import Training

EVAL_ROWS = 64
#: the transition of the reference settings lies here: finer logging, half of the checkpoints
DENSE_LOG, DENSE_KEEP = (100, 300), (100, 400)
#: one seed gives three independent streams
_DATA, _EVAL = 1_000_003, 2_000_003


class InductionParams(Params):
    steps: int = Field(1200, ge=1, le=100_000, description="number of updates")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="fixes the first weights, the data and the held-out rows")
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

    @model_validator(mode="after")
    def _heads_divide_width(self) -> InductionParams:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model = {self.d_model} cannot be divided by n_heads = {self.n_heads}")
        return self


@recipe(
    title="Induction heads",
    asks="When does a small transformer learn to continue a repeated sequence, and which heads do it?",
    params=InductionParams,
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
    chosen = {0, steps} | _snapped((low + (high - low) * i / max(n // 2 - 1, 1) for i in range(n // 2)), unit, steps)
    for count in range(n, 20 * n):  # neighbours snap to one step, so ask for more until there are enough
        spaced = _snapped((steps ** (i / count) for i in range(count)), unit, steps)
        if len(chosen | spaced) >= n:
            return chosen | spaced
    return chosen | spaced


def _snapped(places: Iterable[float], unit: int, steps: int) -> set[int]:
    return {min(round(place / unit) * unit, steps) for place in places}


def log_due(step: int, every: int) -> bool:
    """Say whether a step is measured: every `every` steps, at most 10 apart where the transition lies."""
    return step % every == 0 or (DENSE_LOG[0] <= step <= DENSE_LOG[1] and step % min(every, 10) == 0)


def make_training(params: InductionParams) -> Training:
    """Build model, optimiser, data and measurements from the params alone."""
    import torch

    from backend.runs.loop import Training

    model = build(params)
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=params.lr, betas=(0.9, 0.98), weight_decay=params.weight_decay)
    generator = torch.Generator().manual_seed(params.seed + _DATA)
    held_out = torch.Generator().manual_seed(params.seed + _EVAL)
    tiled = tiled_rows(params, EVAL_ROWS, held_out)
    block = torch.randint(params.d_vocab, (EVAL_ROWS, params.n_ctx // 2), generator=held_out)
    doubled = torch.cat([block, block], 1)

    def update() -> None:
        optimizer.zero_grad()
        position_losses(model(x := tiled_rows(params, params.batch_size, generator)), x).mean().backward()
        optimizer.step()

    keep_at = checkpoint_steps(params.steps, params.n_checkpoints, params.log_every)
    return Training(
        model, optimizer, generator, update, lambda: measure(model, tiled, doubled),
        lambda step: log_due(step, params.log_every), keep_at,
    )  # fmt: skip


def build(params: InductionParams) -> nn.Module:
    """Build the bare model: weights N(0, 0.02^2), norms at identity, attention biases zero and frozen."""
    import torch

    from backend.models.bridge import build_native

    model = build_native(model_config(params), params.seed)
    generator = torch.Generator().manual_seed(params.seed)
    for name, weights in model.named_parameters():
        if weights.dim() == 2:
            torch.nn.init.normal_(weights, std=0.02, generator=generator)
        elif ".attn." in name:
            torch.nn.init.zeros_(weights)
            weights.requires_grad_(False)
    return model


def tiled_rows(params: InductionParams, rows: int, generator: Generator) -> Tensor:
    """Draw rows [rows, n_ctx] of x[t] = block[t mod n], n ~ U{n_ctx/8 .. n_ctx/2} for each row by itself."""
    import torch

    longest = params.n_ctx // 2
    n = torch.randint(params.n_ctx // 8, longest + 1, (rows, 1), generator=generator)
    block = torch.randint(params.d_vocab, (rows, longest), generator=generator)
    return block.gather(1, torch.arange(params.n_ctx) % n)


def position_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy in nats of every next token: [rows, pos - 1]."""
    import torch.nn.functional as F

    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def measure(model: nn.Module, tiled: Tensor, doubled: Tensor) -> dict[str, float]:
    """Return every metric of the module docstring on held-out `tiled` rows and on `doubled` rows [A; A]."""
    import torch

    from backend.maths.heads import prefix_matching, previous_token

    with torch.no_grad():
        logits, patterns = with_patterns(model, doubled)
        loss, n = position_losses(logits, doubled).mean(0), doubled.shape[1] // 2
        tenth = max(len(loss) // 10, 1)
        hit = logits[:, n : 2 * n - 1].argmax(-1) == doubled[:, n + 1 :]
        values = {
            "loss": position_losses(model(tiled), tiled).mean(), "first_half_loss": loss[: n - 1].mean(),
            "second_half_loss": loss[n:].mean(), "second_copy_accuracy": hit.double().mean(),
            "icl_score": loss[-tenth:].mean() - loss[tenth : 2 * tenth].mean(),
        }  # fmt: skip
        for layer, pattern in enumerate(patterns):
            values |= _per_head("induction_score", layer, prefix_matching(pattern, n).mean(0))
            values |= _per_head("previous_token_score", layer, previous_token(pattern).mean(0))
    return {name: float(value) for name, value in values.items()}


def _per_head(name: str, layer: int, scores: Tensor) -> dict[str, Tensor]:
    return {f"{name}/L{layer}H{head}": score for head, score in enumerate(scores)}


def with_patterns(model: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run the bare model once; return logits and each layer's attention pattern [rows, head, query, key]."""
    patterns: list[Tensor] = []
    hooks = [b.attn.register_forward_hook(lambda _m, _i, out: patterns.append(out[1])) for b in model.layers]
    try:
        return model(tokens), patterns
    finally:
        for hook in hooks:
            hook.remove()
