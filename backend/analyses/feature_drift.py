"""Is a dictionary that was trained at one checkpoint still, or already, that of another?

The autoencoder `sae`, trained for any checkpoint of the run, reads its point at the checkpoint that is asked about: for
every feature over all tokens of the corpus `density`, `mean_active`, `max`; of the dictionary as a whole, the same in
every row, `fvu` (sum |x - x'|^2 / sum |x - mean|^2) and `l0` (features active per token). At the checkpoint it was
trained for the first three are those of sae_features. Asked at every checkpoint they say when a feature comes and goes.

The null: as many tokens (at most 8,192) drawn from the Gaussian with the mean and covariance that the point has at this
checkpoint, read by the same dictionary: `density_null`, `fvu_null`, `l0_null`. A feature as active on these follows the
covariance alone. `density_se` is the standard error over rows, [fvu_low, fvu_high] a 95 % bootstrap interval over rows
(the variance held). A basis that turned while training went on makes a feature vanish here, though one like it may
serve the model: sae_agreement of two autoencoders says that. Cost: one forward over the corpus, two encodings a token.
Source: Xu et al. (2024), Tracking the Feature Dynamics in LLM Training; Gao et al. (2024), section 2 (fvu).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _saes
from backend.analyses._units import batches, bootstrap
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, bars, scatter

GAUSSIAN = 8192  # tokens of the null
SHOWN = 24


class FeatureDriftParams(Params):
    """Which autoencoder."""

    sae: str = Field("", max_length=1000, description="run of the autoencoder, trained for any checkpoint of this run")
    sae_step: int = Field(-1, ge=-1, le=2**31 - 1, description="its checkpoint; -1: the last of its training")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null and of the bootstrap")

    named: ClassVar = {"sae": "sae"}

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """The autoencoder."""
        return _saes.named((self.sae, self.sae_step))


@analysis(
    version=1, group="Neurons & features",
    title="Features at another checkpoint", asks="Is a dictionary trained at one checkpoint that of another?",
    subject=Corpus, params=FeatureDriftParams,
    axes=[Axis("feature", "feature of the autoencoder")],
    values=[
        Value("density", "share of tokens on which it is active"),
        Value("density_se", "its standard error over rows; NULL for one row"),
        Value("density_null", "share of tokens of the Gaussian null"),
        Value("mean_active", "mean activation where it is active; NULL where never"),
        Value("max", "largest activation"),
        Value("fvu", "fraction of variance unexplained by the dictionary (the same in every row)"),
        Value("fvu_low", "lower end of its 95 % interval"),
        Value("fvu_high", "upper end of its 95 % interval"),
        Value("fvu_null", "the same of the Gaussian null"),
        Value("l0", "features active per token (the same in every row)"),
        Value("l0_null", "the same of the Gaussian null"),
    ],
)  # fmt: skip
def feature_drift(model: Model, subject: Rows, params: FeatureDriftParams, progress: Progress) -> pd.DataFrame:
    """Return one row per feature."""
    import torch

    from backend.maths import sae as maths
    from backend.maths.streaming import Moments, Reservoir, Top

    made, sae = _saes.opened(model, params.sae, params.sae_step, own=False)
    features, by_row, stream, top, some = Moments(), Moments(), Moments(), Top(1), Reservoir(GAUSSIAN, params.seed)
    left = []
    for start, tokens in batches(model, subject, 3 * len(sae.W_dec)):
        progress(start / len(subject.tokens), f"Row {start} of {len(subject.tokens)}")
        x = _saes.read(model, made, tokens).to(sae.W_dec.dtype)
        with torch.no_grad():
            found = sae.encode(x)
            left.append((x - sae.decode(found)).double().square().sum((1, 2)).cpu())
        by_row.update((found > 0).double().mean(1).cpu())
        for part, whole in ((features, found), (top, found), (stream, x), (some, x)):
            part.update(whole.flatten(0, 1).cpu())
    null = _null(maths, sae, some.kept, params.seed)
    own = _saes.activity(features, by_row) | {"max": top.values[0].double().numpy()}
    whole = _fit(torch.cat(left).numpy(), stream, params.seed) | {"l0": float(features.density.sum())}
    frame = pd.DataFrame({"feature": range(len(sae.W_dec)), **own, **whole, **null})
    return frame[["feature", *(v.name for v in feature_drift.values)]]


def _null(maths: Any, sae: Any, tokens: Any, seed: int) -> dict[str, Any]:
    """Return the columns of the null: of draws from the Gaussian with the tokens' [token, d_in] covariance."""
    import torch

    drawn = maths.gaussian_like(tokens, len(tokens), _saes.dice(seed)).to(sae.W_dec.device)
    with torch.no_grad():
        density = (sae.encode(drawn) > 0).double().mean(0).cpu().numpy()
    told = maths.measures(sae, drawn)
    return {"density_null": density, "fvu_null": told["fvu"], "l0_null": told["l0"]}


def _fit(left: np.ndarray, stream: Any, seed: int) -> dict[str, float]:
    """Return fvu and its interval from the squared error of every row [row]."""
    variance = max(float(stream.m2.sum()), 1e-30)
    low, high = bootstrap(left * len(left) / variance, seed)
    return {"fvu": float(left.sum() / variance), "fvu_low": low, "fvu_high": high}


@feature_drift.costs
def work(card: ModelCard, subject: Corpus, params: FeatureDriftParams, *made: Mapping[str, Any]) -> Work:
    """The corpus once through model, encoder and decoder; a Gaussian like it through them, too."""
    plan = Plan(card)
    n, d_in, batch, encoding = _saes.passed(plan, subject, params.sae, made)
    drawn = min(GAUSSIAN, subject.rows * min(subject.length, card.n_ctx))
    null = 2 * drawn * d_in * (3 * n + 2 * d_in) + 10 * d_in**3
    held = 8 * n * d_in + 24 * max(batch, drawn) * n + 40 * drawn * d_in + 32 * d_in**2
    return plan.total(held, 2 * encoding + null, FEWER_ROWS)


# ---------------------------------------------------------------- figures


@feature_drift.figure("Densities beside the null")
def densities(table: pd.DataFrame, view: View) -> Any:
    """Density here against that on the Gaussian null; a feature on the diagonal follows the covariance alone."""
    first = table.iloc[0]
    hover = [f"feature {r['feature']}: density {r['density']:.3g} ± {r['density_se']:.2g}, null {r['density_null']:.3g}"
             for r in table.to_dict("records")]  # fmt: skip
    words = f"density on the Gaussian null (fvu {first['fvu']:.3g}, null {first['fvu_null']:.3g})"
    figure = scatter(table["density_null"], table["density"], hover=hover, x_title=words, y_title="density here")
    most = float(np.nanmax(table[["density", "density_null"]].to_numpy()))
    return figure.add_scatter(x=[0, most], y=[0, most], mode="lines", hoverinfo="skip", showlegend=False,
                              line={"color": NULL_GREY, "dash": "dot", "width": 1})  # fmt: skip


@feature_drift.figure("The most active features here")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The features of the highest density at this checkpoint; grey: on the Gaussian null."""
    shown = table.nlargest(SHOWN, "density")
    return bars([f"F{i}" for i in shown["feature"]], shown["density"], errors=shown["density_se"],
                null=shown["density_null"], colours=[CATEGORIES[0]] * len(shown),
                x_title=f"feature ({len(shown)} of {len(table)} shown)", y_title="density (share of tokens)",
                names_of=("here", "Gaussian null"))  # fmt: skip
