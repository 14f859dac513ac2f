"""A GPT-2 that writes character by character: a language model small enough to watch from its first update.

Data: Python's own standard-library source, or any text file; the first nine tenths are trained on, the rest held
out. A vocabulary holds at most 256 symbols; rare and unseen characters are one symbol of their own (runs/corpus.py).
Each update takes `batch_size` windows of n_ctx + 1 characters at random places.

Model: GPT2LMHeadModel of transformers, attention written out so that patterns can be read, exact GELU, tied
embeddings, no dropout. AdamW with betas (0.9, 0.99), weight decay on matrices alone, gradients clipped to length 1;
the rate rises over `warm_up` updates to `lr` and falls as half a cosine to a tenth of it at the last; it depends on
the step alone, so a resumed run has the same rates. Cross-entropy in nats.

Measured every `log_every` steps and at each checkpoint: `loss`, accuracy and entropy on 16 fixed windows of the
held-out text, and the loss of the last batch. Every `monitor_every` steps the monitors look at rows [A; A] of random
symbols. Models this small showed no induction heads on such text; a score near zero is then the right answer.

Source: Karpathy, nanoGPT (train.py, config/train_shakespeare_char.py and the CPU settings of its README).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from backend.contract import Metric, Observation, Params, Preset, Progress, recipe
from backend.errors import BadInput
from backend.runs.recipes._common import RecipeParams, heads_divide_width, log_steps
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backend.runs.corpus import Corpus
    from backend.runs.loop import Training

HELD_OUT_ROWS, REPEATED_ROWS = 16, 8
#: one seed gives independent streams: first weights, batches, rows [A; A]
_DATA, _REPEATED = 1_000_003, 2_000_003
#: the held-out windows are the same for every seed and size
_HELD_OUT = 3_000_003
MONITORS = ("attention_entropy", "previous_token_score", "duplicate_token_score", "induction_score", "repeated_block",
            "icl_score", "copying_score", "effective_dimension", "weight_norms", "head_norms")  # fmt: skip
#: those that look at the held-out text, at every log
ON_TEXT = ("right_answers", "prediction_entropy")
#: sizes of the scaling ladder: (n_layers, d_model, n_heads); head width varies, as stated there
LADDER = ((2, 16, 2), (2, 32, 2), (3, 56, 4), (4, 96, 4), (5, 152, 4), (6, 208, 8))


class CharParams(RecipeParams):
    seed: int = Field(0, ge=0, le=2**31 - 1, description="fixes the first weights and the order of the data")
    steps: int = Field(2000, ge=1, le=1_000_000, description="number of updates")
    n_layers: int = Field(3, ge=1, le=48, description="blocks of attention and MLP")
    n_heads: int = Field(4, ge=1, le=64, description="attention heads per layer; must divide d_model")
    d_model: int = Field(56, ge=8, le=4096, description="width of the residual stream")
    n_ctx: int = Field(64, ge=8, le=2048, multiple_of=2, description="characters per row")
    batch_size: int = Field(16, ge=1, le=1024, description="rows per update")
    lr: float = Field(1e-3, gt=0, le=1, description="highest learning rate; it falls to a tenth at the last step")
    warm_up: int = Field(100, ge=0, le=100_000, description="updates over which the learning rate rises from zero")
    weight_decay: float = Field(0.1, ge=0, le=10, description="weight decay of AdamW, on matrices alone")
    text: str = Field("", max_length=1000, description="path of a text file; empty: Python's standard-library source")
    max_characters: int = Field(
        1_000_000, ge=2000, le=200_000_000, description="characters of the text that are used, from its start"
    )
    log_every: int = Field(25, ge=1, le=10_000, description="steps between two lines of cheap metrics")
    n_checkpoints: int = Field(15, ge=2, le=500, description="checkpoints, log-spaced, first and last included")
    lr_drop_at: int = Field(0, ge=0, le=1_000_000, description="the learning rate drops after this step; 0: never")
    lr_drop_factor: float = Field(0.1, gt=0, le=1, description="what the learning rate is multiplied by at the drop")

    _heads_divide_width = model_validator(mode="after")(heads_divide_width)


def n_params(p: Any, d_vocab: int = 100) -> int:
    """Return the number of weights, tied ones once."""
    return (d_vocab + p.n_ctx + 2) * p.d_model + p.n_layers * (12 * p.d_model + 13) * p.d_model


def seconds(params: Params) -> float:
    """Estimate CPU seconds on one core: 6 N operations per character at 70 GFLOP/s, and the small change per layer."""
    p: Any = params
    characters = p.batch_size * p.n_ctx
    change = 1.5e-3 + p.n_layers * (1.2e-3 + 1.3e-6 * characters)
    return 4 + p.steps * (change + 6 * n_params(p) * characters / 70e9) * 1.1


def ladder(sizes: int, seeds: tuple[int, ...]) -> tuple[dict[str, Any], ...]:
    """Return the runs of the first `sizes` sizes of the ladder, `seeds[i]` seeds of size i."""
    return tuple(
        {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "seed": seed}
        for (n_layers, d_model, n_heads), n in zip(LADDER[:sizes], seeds, strict=True)
        for seed in range(n)
    )


METRICS = (
    Metric("loss", "Loss", "nats", "cross-entropy of the next character on fixed held-out windows", better="low"),
    Metric("train_loss", "Training loss", "nats", "cross-entropy of the last batch", better="low"),
    Metric("accuracy", "Accuracy", "", "share of held-out characters that were its first guess", better="high",
           continuous="loss", span=1.0),
    Metric("learning_rate", "Learning rate", "", "rate of the last update"),
)  # fmt: skip


def sample(params: Any, rows: int, seed: int) -> Tensor:
    """Draw windows of the held-out tenth of its text: [rows, n_ctx]."""
    import torch

    from backend.runs import corpus

    held_out = torch.from_numpy(corpus.load(params.text, params.max_characters).parts[1])
    return windows(held_out, params.n_ctx, rows, torch.Generator().manual_seed(seed))[:, :-1]


@recipe(
    title="Characters",
    asks="How does a small language model learn to write, and what changes with its size?",
    params=CharParams,
    presets=(
        Preset("small", "three layers on Python's own source; about one CPU minute"),
        Preset("family", "the scaling ladder: six sizes from 10 thousand to 3.2 million weights, five seeds of the "
               "three smallest, three of the others; 2000 steps each", ladder(6, (5, 5, 5, 3, 3, 3))),
        Preset("family small", "the three smallest sizes of the ladder, three seeds each", ladder(3, (3, 3, 3))),
        Preset("nanoGPT", "the CPU settings of nanoGPT's README: 4 layers, width 128, batch 12",
               ({"n_layers": 4, "n_heads": 4, "d_model": 128, "batch_size": 12},)),
        Preset("learning-rate drop", "a decoy: its kink comes from the schedule", ({"lr_drop_at": 600},)),
    ),
    metrics=METRICS,
    seconds=seconds, sample=sample,
)  # fmt: skip
def char_lm(params: CharParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one model into the run folder."""
    from backend.runs import corpus
    from backend.runs.loop import run_loop

    data = corpus.load(params.text, params.max_characters)
    if resume_from is None:
        run.describe(model={"kind": "hf", "config": model_config(params, len(data.symbols))},
                     tokenizer={"kind": "chars", "symbols": data.symbols}, corpus=data.source)  # fmt: skip
    elif (kept := run.info.get("corpus", {}).get("sha256")) != data.source["sha256"]:
        found = f"its text was another one (sha256 {str(kept)[:12]}, now {data.source['sha256'][:12]})"
        raise BadInput(f"Resuming run {run.folder.name!r}", found, "Put the old text back, or start a new run")
    run_loop(make_training(params, data), run, params.steps, resume_from, progress)


def model_config(params: CharParams, d_vocab: int) -> dict[str, Any]:
    """Return the config of the GPT2LMHeadModel."""
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": d_vocab,
        "n_positions": params.n_ctx, "n_embd": params.d_model, "n_layer": params.n_layers, "n_head": params.n_heads,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def build(params: CharParams, d_vocab: int) -> nn.Module:
    """Build the bare model with GPT-2's first weights (N(0, 0.02^2), residual outputs scaled) from the seed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {k: v for k, v in model_config(params, d_vocab).items() if k not in ("model_type", "architectures")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return GPT2LMHeadModel._from_config(GPT2Config(**config, use_cache=False), attn_implementation="eager")


def make_training(params: CharParams, data: Corpus) -> Training:
    """Build model, optimiser, data and measurements from the params and the text alone."""
    import torch

    from backend import monitors
    from backend.models.observe import observe
    from backend.runs import schedule

    device = schedule.device_of(params.device)
    model = build(params, len(data.symbols)).to(device, schedule.weights_dtype(params.dtype))
    optimizer = torch.optim.AdamW(decay_groups(model, params.weight_decay), lr=params.lr, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(params.seed + _DATA)
    train, held_out = (torch.from_numpy(part) for part in data.parts)
    shown = windows(held_out, params.n_ctx, HELD_OUT_ROWS, torch.Generator().manual_seed(_HELD_OUT)).to(device)
    doubled = repeated_rows(params, len(data.symbols)).to(device)
    last: dict[str, Any] = {}

    def logits(rows: Tensor) -> Tensor:
        with schedule.forward_in(params.dtype, device):
            told = model(rows[:, :-1], use_cache=False).logits
        return told if told.dtype == torch.float64 else told.float()

    def update() -> None:
        rows = windows(train, params.n_ctx, params.batch_size, generator).to(device)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(rows).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last.update(train_loss=loss.detach(), learning_rate=optimizer.param_groups[0]["lr"])

    def measure() -> dict[str, float]:
        with torch.no_grad():
            seen = Observation(shown[:, :-1], logits(shown), targets=shown[:, 1:])
        return monitors.measure(ON_TEXT, seen) | {k: float(v) for k, v in last.items()}

    keep_at = log_steps(params.steps, params.n_checkpoints)
    return schedule.Scheduled(
        model, optimizer, generator, update, measure, lambda step: step % params.log_every == 0 or step in keep_at,
        keep_at, lambda: observe(model, doubled, params.n_ctx // 2), MONITORS,
        lambda step: step % params.monitor_every == 0, rate=lambda step: rate(params, step),
    )  # fmt: skip


def rate(params: CharParams, step: int) -> float:
    """Return the learning rate of update `step` (from 1)."""
    from backend.runs import schedule

    drop = schedule.dropped(step, params.lr_drop_at, params.lr_drop_factor)
    return drop * schedule.cosine(step, params.steps, params.lr, params.lr / 10, params.warm_up)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups: matrices (embeddings among them) decay, gains and biases do not."""
    named = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in named if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in named if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip


def windows(ids: Tensor, n_ctx: int, rows: int, generator: Any) -> Tensor:
    """Draw windows [rows, n_ctx + 1] of a text at random places."""
    import torch

    if len(ids) <= n_ctx:
        found = f"its held-out tenth of {len(ids)} characters is no longer than n_ctx = {n_ctx}"
        raise BadInput("The text", found, "Give a longer text, or lower n_ctx")
    starts = torch.randint(len(ids) - n_ctx, (rows, 1), generator=generator)
    return ids[starts + torch.arange(n_ctx + 1)]


def repeated_rows(params: CharParams, d_vocab: int) -> Tensor:
    """Draw rows [A; A] of random symbols that fill the context: [row, n_ctx]."""
    import torch

    generator = torch.Generator().manual_seed(params.seed + _REPEATED)
    block = torch.randint(d_vocab, (REPEATED_ROWS, params.n_ctx // 2), generator=generator)
    return torch.cat([block, block], 1)
