"""A tuned lens: an affine translator per layer that makes a stream in mid-depth readable by the model's own W_U.

For the stream h that enters layer l (l = 0: the embedding) the lens reads unembed(h + A_l h + b_l). A and b are zero at
the start, where it is the logit lens; the stream after the last layer is read as it is. The model is frozen, the loss
is KL(final || lens) in nats, each layer by itself: what is learnt is a change of basis, not a better model.

Rows: a Corpus of the model (its own training data, Python's library, a text file, random tokens). The held-out rows
come from another seed; of a text, training rows that share 16 tokens in a row with a held-out one are left out. Where a
task has few different rows (modular addition) the held-out ones recur in training. Adam, betas (0.9, 0.999), the rate
falls linearly from `lr` to 0; it depends on the step alone. A checkpoint holds A [layer, d_model, d_model] and
b [layer, d_model]; run.json names the model, its step and fingerprint under "companion".

Measured on the held-out rows every `log_every` steps: `kl` per layer, and beside it the logit lens' `logit_lens_kl`,
which stays as it is. Cost of a step: one forward and an unembedding with its gradient per layer.
Source: Belrose et al. (2023), Eliciting Latent Predictions from Transformers with the Tuned Lens, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from backend.contract import Corpus, Metric, Preset, Progress, parse_spec, recipe
from backend.errors import BadInput, Unfit
from backend.runs.recipes._common import RecipeParams, log_steps
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from backend.models.open import LoadedModel
    from backend.runs.loop import Training

#: one seed gives three independent streams: the training rows, their order, the held-out rows
_ORDER, _HELD_OUT = 1_000_003, 2_000_003
SHARED = 16  # tokens in a row that a training row must not share with a held-out one


class TunedLensParams(RecipeParams):
    #: not 0, which a Corpus has by default: a lens is not to be measured on the rows that it learnt from
    seed: int = Field(1, ge=0, le=2**31 - 1, description="fixes the rows, their order and the held-out rows")
    model: str = Field("run:induction-demo", max_length=1000, pattern=r"^\S.*$",
                       description="the model it is for, as on the Models page (run:NAME, a folder, a hub name)")
    step: int | None = Field(None, ge=0, le=2**31 - 1, description="checkpoint of the model; none takes the last")
    steps: int = Field(250, ge=1, le=100_000, description="number of updates")
    source: Literal["training", "python", "file", "random"] = Field(
        "training", description="what the rows are: the model's training data, Python's library, a file, random tokens")
    path: str = Field("", max_length=1000, description="text file, where the source is file")
    rows: int = Field(2000, ge=1, le=65_536, description="training rows")
    held_out_rows: int = Field(32, ge=2, le=4096, description="rows that are measured and not trained on")
    length: int = Field(64, ge=2, le=8192, description="tokens of a row; cut to n_ctx")
    batch_size: int = Field(32, ge=1, le=1024, description="rows per update")
    lr: float = Field(3e-3, gt=0, le=1, description="learning rate of Adam; it falls linearly to 0")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of the model and the lens")
    log_every: int = Field(10, ge=1, le=10_000, description="steps between two lines of metrics")
    n_checkpoints: int = Field(6, ge=2, le=500, description="checkpoints, log-spaced, first and last included")


METRICS = (
    Metric("mean_kl", "KL of the tuned lens", "nats", "KL(final || lens) on held-out rows, mean over layers",
           better="low"),
    Metric("kl", "KL of the tuned lens by layer", "nats",
           "KL(final || tuned lens) of the stream that enters this layer, on held-out rows", per="layer", better="low"),
    Metric("logit_lens_kl", "KL of the logit lens by layer", "nats",
           "KL(final || logit lens) of the same stream and rows: what the lens started from", per="layer",
           better="low"),
)  # fmt: skip


@recipe(
    title="Tuned lens",
    asks="What would a model say at each layer, read in a basis learnt for that layer?",
    params=TunedLensParams,
    presets=(
        Preset("induction-demo", "for the shipped induction run, on its own training data"),
        Preset("induction-demo, five seeds", "the same lens from five draws of rows",
               tuple({"seed": s} for s in range(1, 6))),
    ),
    metrics=METRICS,
)  # fmt: skip
def tuned_lens(params: TunedLensParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, the translators of one model into the run folder."""
    from backend.runs import corpora
    from backend.runs.loop import run_loop

    model = opened(params)
    if resume_from is None:
        text = {"digest": corpora.digest_of(params.path)} if params.source == "file" else {}
        run.describe(companion={"kind": "tuned_lens", "spec": model.card.spec, "step": model.card.step,
                                "fingerprint": model.card.fingerprint, **text})  # fmt: skip
    elif run.info["companion"]["fingerprint"] != model.card.fingerprint:
        found = f"{params.model} holds other weights than when the lens was started"
        raise Unfit(f"Resuming {run.folder.name!r}", found, "Start a new lens")
    run_loop(make_training(params, model), run, params.steps, resume_from, progress)


def opened(params: TunedLensParams) -> LoadedModel:
    """Open the model, frozen. Raises what opening raises, and Unfit where it cannot be read through W_U."""
    from backend import settings
    from backend.models.open import open_model

    house = settings.load().model_copy(update={"dtype": params.dtype})
    house = house if params.device == "auto" else house.model_copy(update={"device": params.device})
    model = open_model(parse_spec(params.model, params.step), house)
    if "unembed" not in model.card.capabilities:
        found = "its residual stream cannot be read through W_U"
        raise Unfit(f"A lens for {params.model}", found, "Choose another model")
    model.bare.requires_grad_(False)
    return model


def make_training(params: TunedLensParams, model: LoadedModel) -> Training:
    """Build translators, optimiser, rows and measurements from the params and the model."""
    import torch

    from backend.runs import schedule

    rows, held_out = (torch.from_numpy(part).to(model.device) for part in split_rows(params, model.card))
    lens = translators(model)
    optimizer = torch.optim.Adam(lens.parameters(), lr=params.lr)
    generator = torch.Generator().manual_seed(params.seed + _ORDER)
    reference = kl_by_layer(model, translators(model), held_out)

    def update() -> None:
        some = torch.randint(len(rows), (params.batch_size,), generator=generator).to(model.device)
        optimizer.zero_grad()
        kl_by_layer(model, lens, rows[some], learn=True)
        optimizer.step()

    def measure() -> dict[str, float]:
        found = kl_by_layer(model, lens, held_out)
        return {"mean_kl": sum(found) / len(found), **_named("kl", found), **_named("logit_lens_kl", reference)}

    return schedule.Scheduled(
        lens, optimizer, generator, update, measure, lambda step: step % params.log_every == 0,
        log_steps(params.steps, params.n_checkpoints, params.log_every),
        headline="mean_kl", rate=lambda step: params.lr * (1 - (step - 1) / params.steps),
    )  # fmt: skip


def _named(name: str, by_layer: list[float]) -> dict[str, float]:
    return {f"{name}/L{layer}": value for layer, value in enumerate(by_layer)}


def translators(model: LoadedModel) -> nn.Module:
    """Return A [layer, d_model, d_model] and b [layer, d_model], zero: the logit lens."""
    import torch

    lens, like = torch.nn.Module(), next(model.bare.parameters())
    layers, width = model.card.n_layers, model.card.d_model
    lens.A = torch.nn.Parameter(like.new_zeros(layers, width, width))
    lens.b = torch.nn.Parameter(like.new_zeros(layers, width))
    return lens


def kl_by_layer(model: LoadedModel, lens: Any, tokens: Tensor, learn: bool = False) -> list[float]:
    """Return KL(final || lens) in nats of every layer, mean over rows and positions; with `learn` add its gradients.

    A layer's gradient is taken before the next layer is read, so the logits of one layer are held at a time.
    """
    import torch

    from backend.maths.divergence import kl
    from backend.maths.lens import translate
    from backend.models import bridge

    logits, seen = model.run(tokens, ["resid_pre"])
    final, found = torch.log_softmax(logits, -1), []
    with torch.set_grad_enabled(learn):
        for layer in range(model.card.n_layers):
            read = bridge.unembed(model.view, translate(seen["resid_pre", layer], lens.A[layer], lens.b[layer]))
            loss = kl(final, torch.log_softmax(read, -1)).mean()
            if learn:
                loss.backward()
            found.append(loss.detach())
    return torch.stack(found).tolist()


def split_rows(params: TunedLensParams, card: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return training rows and held-out rows [row, pos]; of a text, none of the former shares text with the latter."""
    import numpy as np

    from backend.runs import corpora

    def draw(rows: int, seed: int) -> np.ndarray:
        asked = Corpus(source=params.source, rows=rows, length=params.length, seed=seed % 2**31, path=params.path)
        return corpora.rows_of(card, asked).tokens

    rows, held_out = draw(params.rows, params.seed), draw(params.held_out_rows, params.seed + _HELD_OUT)
    if params.source == "random" or card.tokenizer.get("kind", "ids") == "ids":
        return rows, held_out
    known = {piece for row in held_out for piece in _pieces(row)}
    apart = np.array([known.isdisjoint(_pieces(row)) for row in rows])
    if apart.mean() < 0.5:
        found = f"{int((~apart).sum())} of {len(rows)} training rows share text with the held-out ones"
        raise BadInput(f"Rows from {params.source}", found, "Give a longer text, or fewer held-out rows")
    return rows[apart], held_out


def _pieces(row: np.ndarray) -> set[bytes]:
    size = min(SHARED, len(row))
    return {row[i : i + size].tobytes() for i in range(len(row) - size + 1)}
