"""Which sparse features does a model use? A sparse autoencoder (SAE) of the activations at one point of a model.

Data: the point's activations on every token of a corpus, captured once and kept in memory; of the rows, a tenth is
held out (at most 64). Each update takes `batch_size` tokens at random. With `surrogate` they are replaced by draws from
the Gaussian of the same mean and covariance: the null, whatever it reaches is no structure beyond correlations.

The autoencoder and its loss: backend/maths/sae.py. It starts with b_dec at the data's mean, random unit directions and
W_enc = W_dec'. Adam; the rate falls to 0 over the last fifth of the steps; W_dec keeps norm 1. Inputs are scaled by a
power of 2 so that their spread per coordinate is near 1 (`l1_weight` refers to these), and the saved tensors are for
inputs as they are.

Measured on held-out tokens: `l0`, `fvu`, and `loss_recovered` = (zero - spliced) / (zero - clean), where the loss is
that of the model with the reconstruction put in the point's place, with zeros there, and as it is: cross-entropy of the
next token, of the sum for a run of modular addition. Without a right answer, and for a surrogate, it is left out. It
can exceed 1. `dead_share`: features that no training token of the last `dead_after` updates made active.

run.json says which model it is for ("companion"); the folder's saelens/ holds the last checkpoint as SAELens loads it.
Reconstruction does not rank quality (reference: of L1 autoencoders the one with the lowest fvu found 9 of 128 true
features); compare two seeds, and the surrogate. Source: Gao et al. (2024), Scaling and evaluating sparse autoencoders;
Bussmann et al. (2024), BatchTopK Sparse Autoencoders; Bricken et al. (2023), Towards Monosemanticity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from backend.contract import Metric, Params, Preset, Progress, recipe
from backend.runs.recipes._common import RecipeParams, log_steps
from backend.runs.recorder import Recorder

if TYPE_CHECKING:
    from backend.runs.sae_data import Data
    from backend.runs.schedule import Scheduled


class SaeParams(RecipeParams):
    spec: str = Field("run:induction-demo", max_length=1000, description="the model: run:NAME, dir:PATH, hub:NAME, "
                      "nanogpt:PATH or tl:PATH")  # fmt: skip
    model_step: int = Field(-1, ge=-1, le=2**31 - 1, description="checkpoint of a run; -1: the last")
    point: Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_pre", "mlp_post", "z"] = Field(
        "resid_post", description="which activations are read; z: the heads' outputs joined; mlp_pre: before act_fn"
    )
    layer: int = Field(0, ge=0, le=1000, description="layer of the point")
    d_sae: int = Field(256, ge=2, le=131_072, description="features in the dictionary")
    k: int = Field(8, ge=1, le=4096, description="features active per token (topk, batch_topk: on average)")
    kind: Literal["topk", "batch_topk", "l1"] = Field("topk", description="what keeps the features sparse")
    l1_weight: float = Field(0.5, ge=0, le=1000, description="lambda of kind l1; others do not use it")
    source: Literal["training", "python", "random"] = Field(
        "training", description="text: the model's own training data, Python's source, or random tokens"
    )
    rows: int = Field(1024, ge=2, le=65_536, description="rows of the corpus")
    length: int = Field(64, ge=1, le=8192, description="tokens of a row; cut to n_ctx")
    corpus_seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the corpus and of the surrogate")
    surrogate: bool = Field(False, description="train on a Gaussian of the same mean and covariance: the null")
    steps: int = Field(2000, ge=1, le=1_000_000, description="number of updates")
    batch_size: int = Field(256, ge=1, le=65_536, description="tokens per update")
    lr: float = Field(3e-3, gt=0, le=1, description="learning rate of Adam; it falls to 0 over the last fifth")
    dead_after: int = Field(100, ge=1, le=1_000_000, description="updates of silence after which a feature is dead")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="fixes the first directions and the order of the tokens")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of the autoencoder")
    log_every: int = Field(50, ge=1, le=10_000, description="steps between two lines of metrics")
    n_checkpoints: int = Field(6, ge=2, le=500, description="checkpoints, log-spaced, first and last included")

    @model_validator(mode="after")
    def _fits(self) -> SaeParams:
        if self.k > self.d_sae:
            raise ValueError(f"k = {self.k} is more than d_sae = {self.d_sae} features")
        return self


def seconds(params: Params) -> float:
    """Estimate CPU seconds on one core, for a point 128 wide: 4 ms and 6 products per feature and coordinate."""
    p: Any = params
    return 3 + p.steps * (4e-3 + p.batch_size * p.d_sae * (128 * 8 / 40e9 + 1e-8))


METRICS = (
    Metric("objective", "SAE objective", "", "what the last update made smaller: relative squared error "
           "and the sparsity terms", better="low"),
    Metric("fvu", "Fraction of variance unexplained", "", "squared error over variance, held-out tokens", better="low"),
    Metric("l0", "Active features", "", "features active per held-out token"),
    Metric("loss_recovered", "Loss recovered", "", "(zero - spliced) / (zero - clean) of the model's loss; 1: nothing "
           "is lost, 0: as if the point were zero", better="high"),
    Metric("dead_share", "Dead features", "", "share silent for `dead_after` updates", better="low", span=1.0),
)  # fmt: skip


@recipe(
    title="Sparse autoencoder", asks="Which sparse features does a model use at one of its points?", params=SaeParams,
    presets=(
        Preset("topk", "TopK on the shipped induction run"),
        Preset("two seeds", "the same twice: compare them with sae_agreement", ({"seed": 0}, {"seed": 1})),
        Preset("with its null", "beside it a Gaussian of the same covariance", ({}, {"surrogate": True})),
        Preset("kinds", "TopK, BatchTopK and the L1 baseline",
               ({"kind": "topk"}, {"kind": "batch_topk"}, {"kind": "l1"})),
    ),
    metrics=METRICS, seconds=seconds,
)  # fmt: skip
def sae(params: SaeParams, run: Recorder, resume_from: int | None, progress: Progress) -> None:
    """Train, or go on training, one autoencoder into the run folder."""
    from backend.runs import sae_data
    from backend.runs.loop import run_loop

    data = sae_data.read(params, run.folder.parent, progress)
    if resume_from is None:
        run.describe(companion=sae_data.companion(params, data))
    else:
        sae_data.same_model(run, data)
    training = make_training(params, data)
    run_loop(training, run, params.steps, resume_from, progress)
    sae_data.export(run, params, data)


def make_training(params: SaeParams, data: Data) -> Scheduled:
    """Build autoencoder, optimiser and measurements from the params and the data alone."""
    import torch

    from backend.maths import sae as maths
    from backend.runs.sae_data import SaeTraining

    net = maths.Sae(data.train.shape[1], params.d_sae, params.k, params.kind, params.seed, data.train.dtype)
    net.to(data.train.device)
    with torch.no_grad():
        net.b_dec.copy_(data.train.mean(0))
    optimizer = torch.optim.Adam(net.parameters(), lr=params.lr)
    generator = torch.Generator().manual_seed(params.seed + 1_000_003)
    keep_at = log_steps(params.steps, params.n_checkpoints)
    return SaeTraining(
        net, optimizer, generator, lambda: None, dict, lambda step: step % params.log_every == 0 or step in keep_at,
        keep_at, headline="fvu", rate=lambda step: rate(params, step), data=data, params=params,
    )  # fmt: skip


def rate(params: SaeParams, step: int) -> float:
    """Return the learning rate of update `step` (from 1): see maths/sae.py."""
    from backend.maths import sae as maths

    return maths.rate(params.lr, step, params.steps)
