"""When does a transformer learn to learn a Markov chain in context? From uniform over unigram to bigram guesses.

Data: each row has a transition matrix over k states of its own, its rows Dirichlet(1, ..., 1); the first state is
uniform, the rest are drawn from that matrix. Nothing can be learned by heart: a reader has to count inside the row.
Three strategies have closed forms: uniform 1/k; unigram (n_j + 1)/(n + k); bigram (n_ij + 1)/(n_i + k), the Bayes
answer. A model passes through all three; the step to the last is sudden, when its second layer begins to attend to
the states that followed earlier visits of the present state (a statistical induction head).

Model: two layers of attention only, pre-norm with LayerNorm, learned positions, no attention biases, weights
N(0, 0.02^2). AdamW with betas (0.9, 0.98), constant rate, no clipping; cross-entropy over all positions, in nats.
One layer cannot attend by what came before a position: it is the control and stays at unigram guesses.

Measured every `log_every` steps on 32 held-out rows: `loss`, how far it is above the Bayes loss of the same rows,
KL(strategy || model) of the three strategies, and per head the attention to successors of the present state.

Source: Edelman et al. (2024), The Evolution of Statistical Induction Heads (arXiv 2402.11004).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from backend.contract import Metric, Params, Preset, Progress, recipe
from backend.runs.recipes._common import RecipeParams, heads_divide_width, log_steps
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from backend.runs.loop import Training

EVAL_ROWS = 32
SEEN_ROWS = 16  # of them for the monitors
#: one seed gives three independent streams
_DATA, _EVAL = 1_000_003, 2_000_003
MONITORS = ("prediction_entropy", "effective_dimension", "attention_entropy", "previous_token_score", "weight_norms",
            "head_norms")  # fmt: skip


class MarkovParams(RecipeParams):
    steps: int = Field(2000, ge=1, le=100_000, description="number of updates")
    n_states: int = Field(3, ge=2, le=32, description="states k of every chain; also the vocabulary")
    n_ctx: int = Field(100, ge=8, le=512, description="states per row")
    n_layers: int = Field(2, ge=1, le=3, description="attention layers; 1 is the control that stays at unigram guesses")
    n_heads: int = Field(1, ge=1, le=16, description="attention heads per layer; must divide d_model")
    d_model: int = Field(64, ge=8, le=512, description="width of the residual stream")
    batch_size: int = Field(32, ge=1, le=1024, description="rows per update")
    lr: float = Field(3e-4, gt=0, le=1, description="learning rate of AdamW, constant")
    weight_decay: float = Field(0.01, ge=0, le=10, description="weight decay of AdamW")

    _heads_divide_width = model_validator(mode="after")(heads_divide_width)


def seconds(params: Params) -> float:
    """Estimate CPU seconds on one core: half a ms per layer and update, and what the states cost."""
    p: Any = params
    states = p.batch_size * p.n_ctx
    one = 1e-3 + p.n_layers * (5e-4 + states * (24 * p.d_model**2 + 24 * p.d_model * p.n_ctx) / 80e9
                               + states * p.n_ctx * p.n_heads * 1e-8)  # fmt: skip
    return p.steps * one * 1.1


METRICS = (
    Metric("loss", "Loss", "nats", "cross-entropy of the next state on held-out rows", better="low"),
    Metric("bayes_loss", "Bayes loss", "nats", "loss of the bigram guess on the same rows: the least there is in "
           "expectation"),
    Metric("excess_loss", "Excess loss", "nats", "loss above the Bayes loss of the same rows", better="low"),
    Metric("kl_uniform", "KL to uniform", "nats", "KL(1/k || model), mean over held-out positions"),
    Metric("kl_unigram", "KL to unigram", "nats", "KL(unigram guess || model): how far it is from counting states"),
    Metric("kl_bigram", "KL to bigram", "nats", "KL(bigram guess || model): how far it is from the Bayes answer, which "
           "counts transitions", better="low"),
    Metric("successor_mass", "Attention to successors", "", "attention to positions that follow an earlier visit of "
           "the present state; 1 for a statistical induction head", per="head", better="high", span=1.0),
)  # fmt: skip


def sample(params: Any, rows: int, seed: int) -> Tensor:
    """Draw fresh rows of the training distribution: [rows, n_ctx]."""
    import torch

    return draw(params, rows, torch.Generator().manual_seed(seed))


@recipe(
    title="Markov chains in context",
    asks="When does a small transformer stop counting states and begin to count transitions?",
    params=MarkovParams,
    presets=(
        Preset("transition", "two layers: uniform, unigram, then bigram guesses; about 50 CPU seconds"),
        Preset("five seeds", "the same from five seeds", tuple({"seed": s} for s in range(5))),
        Preset("control", "one layer: it stays at unigram guesses", ({"n_layers": 1},)),
    ),
    metrics=METRICS,
    seconds=seconds,
    sample=sample,
)
def markov_icl(params: MarkovParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one model into the run folder."""
    from backend.runs.loop import run_loop

    if resume_from is None:
        symbols = [str(state) for state in range(params.n_states)]
        tokenizer = {"tokenizer": {"kind": "chars", "symbols": symbols}} if params.n_states <= 10 else {}
        run.describe(model={"kind": "native", "config": model_config(params)}, **tokenizer)
    run_loop(make_training(params), run, params.steps, resume_from, progress)


def model_config(params: MarkovParams) -> dict[str, Any]:
    """Return the native model's config."""
    return {
        "n_layers": params.n_layers, "d_model": params.d_model, "n_heads": params.n_heads,
        "d_head": params.d_model // params.n_heads, "d_vocab": params.n_states, "n_ctx": params.n_ctx,
        "attn_only": True, "normalization_type": "LN", "positional_embedding_type": "standard", "seed": params.seed,
    }  # fmt: skip


def make_training(params: MarkovParams) -> Training:
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
    held_out = draw(params, EVAL_ROWS, torch.Generator().manual_seed(params.seed + _EVAL))
    strategies, shown = guesses(held_out, params.n_states), held_out.to(device)

    def update() -> None:
        states = draw(params, params.batch_size, generator).to(device)
        optimizer.zero_grad()
        with schedule.forward_in(params.dtype, device):
            logits = model(states)
        next_losses(logits, states).mean().backward()
        optimizer.step()

    return Training(
        model, optimizer, generator, update, lambda: measure(model, shown, strategies),
        lambda step: step % params.log_every == 0, log_steps(params.steps, params.n_checkpoints, params.log_every),
        lambda: observe(model, shown[:SEEN_ROWS]), MONITORS, lambda step: step % params.monitor_every == 0,
    )  # fmt: skip


def build(params: MarkovParams) -> nn.Module:
    """Build the bare model with its first weights; see `_native.build_plain`."""
    from backend.runs.recipes._native import build_plain

    return build_plain(model_config(params), params.seed)


def draw(params: MarkovParams, rows: int, generator: Generator) -> Tensor:
    """Draw rows [rows, n_ctx], each from a transition matrix of its own."""
    from backend.maths import markov

    return markov.chains(markov.matrices(rows, params.n_states, generator), params.n_ctx, generator)


def guesses(states: Tensor, k: int) -> dict[str, Tensor]:
    """Return each strategy's probabilities [rows, pos, k] by name."""
    from backend.maths import markov

    return {"uniform": markov.uniform(states, k), "unigram": markov.unigram(states, k),
            "bigram": markov.bigram(states, k)}  # fmt: skip


def next_losses(logits: Tensor, states: Tensor) -> Tensor:
    """Return the cross-entropy in nats of every next state: [rows, pos - 1]."""
    import torch
    import torch.nn.functional as F

    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), states[:, 1:], reduction="none")


def measure(model: nn.Module, states: Tensor, strategies: dict[str, Tensor]) -> dict[str, float]:
    """Return every metric of METRICS on held-out `states` [rows, pos]; strategies as `guesses` gives them."""
    from backend.maths import markov
    from backend.models.observe import observe

    seen = observe(model, states)
    values = distances(seen.logits, states, strategies)
    for layer, pattern in enumerate(seen.patterns):
        for head, mass in enumerate(markov.successor_mass(pattern, states)):
            values[f"successor_mass/L{layer}H{head}"] = float(mass)
    return values


def distances(logits: Tensor, states: Tensor, strategies: dict[str, Tensor]) -> dict[str, float]:
    """Return loss, Bayes loss, excess loss and KL(strategy || model) of logits [rows, pos, k], in float64."""
    from backend.maths import markov

    log_q, rows = logits.double().cpu().log_softmax(-1), states.cpu()
    loss, bayes = markov.loss(log_q, rows), markov.loss(strategies["bigram"].log(), rows)
    values = {"loss": loss, "bayes_loss": bayes, "excess_loss": loss - bayes}
    values |= {f"kl_{name}": markov.kl(p, log_q)[:, :-1].mean() for name, p in strategies.items()}
    return {name: float(value) for name, value in values.items()}
