"""When does a small transformer learn whom a gift goes to? Indirect object identification on made-up sentences.

Data: four templates with the names A and B, a place P and an object O; S is A or B with probability 1/2 and the answer
is the other (IO). The vocabulary is 70 words: BOS, PAD, 8 words, 10 places, 10 objects, 40 names. A row is BOS and
12 to 16 words, padded right to 17 with PAD: attention is causal, so no position sees the padding behind it, and the
position of a word is its place in its sentence. The answer is not part of the row.

Model: 4 layers of 4 heads, attention only, pre-norm with LayerNorm, learned positions, no attention biases; embeddings
of tokens and positions N(0, 0.1^2), other matrices N(0, 1 / (3 d_model)), the variance that torch gives a Linear. AdamW
with betas (0.9, 0.98), constant rate, no clipping; cross-entropy in nats at the last word alone. With `head_dropout` =
r > 0 the z of every head is dropped whole, per row, with chance r while training, and the rest is divided by 1 - r.

With two names in a prompt the answer can be found by looking at S and copying it negatively; nothing forces a head that
attends to IO. Measured every `log_every` steps on 128 held-out rows, at the last word: `loss`, `accuracy` over the
whole vocabulary, `logit_diff` = logit(IO) - logit(S). The monitors look at held-out rows of the longest template, which
has no padding.

Source: Wang et al. (2022), Interpretability in the Wild (the task; templates and sizes here are our own).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, model_validator

from backend.contract import Metric, Params, Preset, Progress, recipe
from backend.models import sentences
from backend.runs.recipes._common import RecipeParams, heads_divide_width, log_steps, snapped
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from backend.runs.loop import Training

EVAL_ROWS = 128
#: one seed gives three independent streams
_DATA, _EVAL = 1_000_003, 2_000_003
MONITORS = ("attention_entropy", "effective_dimension", "previous_token_score", "weight_norms", "head_norms")


class SyntheticIoiParams(RecipeParams):
    steps: int = Field(1200, ge=1, le=100_000, description="number of updates")
    n_layers: int = Field(4, ge=1, le=8, description="attention layers")
    n_heads: int = Field(4, ge=1, le=16, description="attention heads per layer; must divide d_model")
    d_model: int = Field(64, ge=8, le=512, description="width of the residual stream")
    batch_size: int = Field(96, ge=1, le=4096, description="rows per update")
    lr: float = Field(2e-3, gt=0, le=1, description="learning rate of AdamW, constant")
    weight_decay: float = Field(0.01, ge=0, le=10, description="weight decay of AdamW")
    head_dropout: float = Field(0.0, ge=0, lt=1, description="chance that a head's whole z is dropped, per row, while "
                                "training")  # fmt: skip
    keep_from: int = Field(0, ge=0, le=1_000_000, description="with keep_to: half of the checkpoints lie evenly "
                           "between the two steps")  # fmt: skip
    keep_to: int = Field(0, ge=0, le=1_000_000, description="0: all checkpoints are log-spaced")

    _heads_divide_width = model_validator(mode="after")(heads_divide_width)


def seconds(params: Params) -> float:
    """Estimate CPU seconds on one core: 2 ms per layer and update, and what the words cost."""
    p: Any = params
    words = p.batch_size * sentences.N_CTX
    layer = 2e-3 + words * 24 * p.d_model**2 / 60e9 + words * sentences.N_CTX * p.n_heads * 1e-8
    return p.steps * (3e-3 + p.n_layers * layer) * 1.05


METRICS = (
    Metric("loss", "Loss", "nats", "cross-entropy of the indirect object on held-out rows", better="low"),
    Metric("accuracy", "Accuracy", "", "share of held-out rows whose largest logit is the indirect object",
           better="high", continuous="loss", span=1.0),
    Metric("logit_diff", "Logit difference IO - S", "logits", "logit of the indirect object minus that of the subject, "
           "mean over held-out rows; 0 where the two cannot be told apart", better="high"),
)  # fmt: skip


def sample(params: Any, rows: int, seed: int) -> Tensor:
    """Draw fresh rows of the training distribution: [rows, 17], padded right."""
    import torch

    return draw(rows, torch.Generator().manual_seed(seed)).tokens


@recipe(
    title="Indirect objects (synthetic IOI)",
    asks="When does a small transformer learn to name the person who is not the giver?",
    params=SyntheticIoiParams,
    presets=(
        Preset("reference", "four layers of four heads; right after some 400 of 1200 steps; 40 CPU seconds"),
        Preset("head dropout", "the same with whole heads dropped at random: do others take over?",
               ({"head_dropout": 0.1},)),
        Preset("three seeds", "the same from three seeds", tuple({"seed": s} for s in range(3))),
    ),
    metrics=METRICS,
    seconds=seconds,
    sample=sample,
)  # fmt: skip
def synthetic_ioi(params: SyntheticIoiParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one model into the run folder."""
    from backend.runs.loop import run_loop

    if resume_from is None:
        run.describe(model={"kind": "native", "config": model_config(params)},
                     tokenizer={"kind": "words", "symbols": list(sentences.SYMBOLS)})  # fmt: skip
    run_loop(make_training(params), run, params.steps, resume_from, progress)


def model_config(params: SyntheticIoiParams) -> dict[str, Any]:
    """Return the native model's config."""
    return {
        "n_layers": params.n_layers, "d_model": params.d_model, "n_heads": params.n_heads,
        "d_head": params.d_model // params.n_heads, "d_vocab": len(sentences.SYMBOLS), "n_ctx": sentences.N_CTX,
        "attn_only": True, "normalization_type": "LN", "positional_embedding_type": "standard", "seed": params.seed,
    }  # fmt: skip


def checkpoint_steps(params: SyntheticIoiParams) -> set[int]:
    """Return the steps that are kept, each a logged one (or the last); see `keep_from` and `keep_to`."""
    unit, n, half = params.log_every, params.n_checkpoints, (params.n_checkpoints + 1) // 2
    low, high = (min(edge, params.steps) for edge in (params.keep_from, params.keep_to))
    if high <= low:
        return log_steps(params.steps, n, unit)
    dense = snapped((low + (high - low) * i / max(half - 1, 1) for i in range(half)), unit, params.steps)
    return dense | log_steps(params.steps, max(n - len(dense), 2), unit)


def make_training(params: SyntheticIoiParams) -> Training:
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
    held_out = draw(EVAL_ROWS, torch.Generator().manual_seed(params.seed + _EVAL)).to(device)
    longest = held_out.tokens[held_out.last == sentences.N_CTX - 1]

    def update() -> None:
        rows = draw(params.batch_size, generator).to(device)
        optimizer.zero_grad()
        with schedule.forward_in(params.dtype, device), dropping_heads(model, params.head_dropout, generator):
            logits = model(rows.tokens)
        answer_losses(logits, rows).mean().backward()
        optimizer.step()

    return Training(
        model, optimizer, generator, update, lambda: measure(model, held_out),
        lambda step: step % params.log_every == 0, checkpoint_steps(params),
        lambda: observe(model, longest), MONITORS, lambda step: step % params.monitor_every == 0,
    )  # fmt: skip


def build(params: SyntheticIoiParams) -> nn.Module:
    """Build the bare model with its first weights: see the module's own words; norms at identity."""
    import torch

    from backend.runs.recipes._native import build_plain

    model: Any = build_plain(model_config(params), params.seed)
    generator = torch.Generator().manual_seed(params.seed)
    for name, weights in model.named_parameters():
        if weights.dim() == 2:
            embeds = name in ("tok_embed.weight", "pos.weight")
            torch.nn.init.normal_(weights, std=0.1 if embeds else (3 * params.d_model) ** -0.5, generator=generator)
    return model


# ---------------------------------------------------------------- data


class Rows(NamedTuple):
    """Sentences `tokens` [row, pos], padded right; `last`, `answer` (IO) and `subject` (S) [row]."""

    tokens: Tensor
    last: Tensor
    answer: Tensor
    subject: Tensor

    def to(self, device: Any) -> Rows:
        """Return the rows on another device."""
        return Rows(*(part.to(device) for part in self))


def draw(rows: int, generator: Generator) -> Rows:
    """Draw sentences: template, two different names, place, object and which name is the subject, all uniform."""
    import torch

    def dice(n: int) -> Tensor:
        return torch.randint(n, (rows,), generator=generator)

    kinds = (sentences.NAMES, sentences.PLACES, sentences.OBJECTS)
    names, places, objects = (torch.tensor(sentences.ids(words)) for words in kinds)
    template, first = dice(len(sentences.TEMPLATES)), dice(len(names))
    second = (first + 1 + dice(len(names) - 1)) % len(names)
    a, b = names[first], names[second]
    subject, answer = torch.where(dice(2).bool(), torch.stack([a, b]), torch.stack([b, a]))
    slots = torch.stack([a, b, subject, places[dice(len(places))], objects[dice(len(objects))]])
    frame, slot, last = (torch.tensor(part) for part in sentences.frames())
    filled = slots.T.gather(1, slot[template].clamp(min=0))
    return Rows(torch.where(slot[template] < 0, frame[template], filled), last[template], answer, subject)


def dropping_heads(model: Any, rate: float, generator: Generator) -> Any:
    """Return a context in which every head's z is dropped whole, per row, with chance `rate`, the rest rescaled."""
    import contextlib

    import torch

    def drop(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        z = inputs[0]
        kept = (torch.rand(len(z), 1, model.cfg.n_heads, generator=generator) >= rate).to(z) / (1 - rate)
        return (z * kept.repeat_interleave(z.shape[-1] // model.cfg.n_heads, -1),)

    taken = contextlib.ExitStack()
    if rate > 0:
        for block in model.layers:
            taken.callback(block.attn.o.register_forward_pre_hook(drop).remove)
    return taken


def last_logits(logits: Tensor, rows: Rows) -> Tensor:
    """Return the logits at each row's last word: [row, d_vocab]."""
    import torch

    return logits[torch.arange(len(rows.last), device=logits.device), rows.last]


def answer_losses(logits: Tensor, rows: Rows) -> Tensor:
    """Return the cross-entropy in nats of the indirect object at the last word: [row]."""
    import torch
    import torch.nn.functional as F

    at_end = last_logits(logits, rows)
    return F.cross_entropy(at_end.to(torch.promote_types(at_end.dtype, torch.float32)), rows.answer, reduction="none")


def measure(model: nn.Module, rows: Rows) -> dict[str, float]:
    """Return every metric of METRICS on held-out rows."""
    import torch

    with torch.no_grad():
        logits = model(rows.tokens)
        at_end = last_logits(logits, rows).double()
        gap = at_end.gather(1, torch.stack([rows.answer, rows.subject], 1))
        return {"loss": float(answer_losses(logits, rows).mean()),
                "accuracy": float((at_end.argmax(-1) == rows.answer).double().mean()),
                "logit_diff": float((gap[:, 0] - gap[:, 1]).mean())}  # fmt: skip
