"""Along which directions do activations vary most, and what do they tell apart?

PCA of the activations at a point of a layer over all tokens of the corpus: the eigenvectors u_j of their covariance, by
falling variance. `variance` along u_j, `share` of the `total`; `high` and `low` are the tokens with the largest and
smallest u_j.(x - mean), each at the end of what stands before it; `raises`, `lowers` the tokens to which u_j adds and
takes most, read through W_U (mlp_post through W_out, z through W_O). `vector` is u_j; its largest entry is positive.

The null: every coordinate shuffled over tokens by itself (at most 8,192 of them), `draws` times; `null` is the share at
the same place, mean over draws, `null_high` the largest of them. Directions below it are what unrelated coordinates
give. `share_se` is the standard error over rows (u_j held); `stability` the |cosine| of u_j with its nearest among the
first directions of either half of the rows, the smaller of the two: near 1 where the direction is no accident.

Exact over the corpus. PCA finds variance, not use: ablate or steer along a direction to see whether the model reads it.
Cost: two forwards over the corpus, one eigenvalue problem of size d_in per draw.
Source: Jolliffe (2002), Principal Component Analysis; Horn (1965), A rationale and test for the number of factors
(parallel analysis, here with shuffled coordinates: Buja and Eyuboglu, 1992).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _saes
from backend.analyses._units import batches, layer_of, logit_effects, rows_at_once, token_words
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import Unfit
from backend.figures import CATEGORIES, NULL_GREY, Line, label, lines, pixels

SAMPLE = 8192  # tokens that the null shuffles
BEFORE = 6  # tokens shown before one at an end
TOKENS = 5
DRAWN = 12  # directions of the map of ends
MOST = 4096  # width above which the eigenvalue problem takes minutes
Point = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_post", "z"]


class PcaDirectionsParams(Params):
    """Where, how many, and the null."""

    point: Point = Field("resid_post", description="which activations; z: the heads' outputs joined")
    layer: int = Field(0, ge=0, le=1000, description="layer of the point")
    n: int = Field(16, ge=1, le=256, description="directions kept, the first ones")
    draws: int = Field(5, ge=1, le=50, description="shuffles of the null")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null")


@analysis(
    version=1, group="Neurons & features",
    title="Directions by PCA", asks="Along which directions do activations vary most, and what do they tell apart?",
    subject=Corpus, params=PcaDirectionsParams,
    axes=[Axis("direction", "principal direction, 0 the one of the largest variance")],
    values=[
        Value("variance", "variance of the activations along it"),
        Value("share", "its share of the total variance"),
        Value("share_se", "standard error of the share over rows; NULL for one row"),
        Value("total", "total variance (the same in every row)"),
        Value("null", "share at this place with every coordinate shuffled by itself, mean over draws"),
        Value("null_high", "the largest over draws"),
        Value("stability", "|cosine| with the nearest direction of either half of the rows; NULL for one row"),
        Value("high", "tokens at its upper end: ids with those before, joined by commas, the token itself last",
              kind="str"),
        Value("high_values", "their coordinates along it", kind="str"),
        Value("low", "tokens at its lower end, as `high`", kind="str"),
        Value("low_values", "their coordinates along it", kind="str"),
        Value("raises", "ids of the tokens that it raises most; empty where W_U is not known", kind="str"),
        Value("lowers", "ids of the tokens that it lowers most", kind="str"),
        Value("vector", "the direction itself, of length 1", kind="array", dtype="float32"),
    ],
)  # fmt: skip
def pca_directions(model: Model, subject: Rows, params: PcaDirectionsParams, progress: Progress) -> pd.DataFrame:
    """Return one row per direction."""
    made = {"point": params.point, "layer": layer_of(model, params.layer, params.point)}
    whole, halves, sample = _covariances(model, subject, made, params.seed, progress)
    values, vectors = eigen(whole.covariance())
    total, k = float(values.sum()), min(params.n, len(values))
    first = vectors[:k]
    ends = _ends(model, subject, made, first, whole.mean)
    shares = [eigen(_shuffled(sample, params.seed, draw))[0] for draw in range(params.draws)]
    null = np.stack([(s / s.sum().clamp_min(1e-30))[:k].numpy() for s in shares])
    return pd.DataFrame({
        "direction": range(k), "variance": values[:k].numpy(), "share": values[:k].numpy() / max(total, 1e-30),
        "share_se": ends.pop("variance_se") / max(total, 1e-30), "total": total, "null": null.mean(0),
        "null_high": null.max(0), "stability": _stability(first, halves, k), **ends, **_written(model, made, first),
        "vector": list(first.float().numpy()),
    })[[c.name for c in [*pca_directions.axes, *pca_directions.values]]]  # type: ignore[attr-defined]  # fmt: skip


def _covariances(model: Model, subject: Rows, made: dict[str, Any], seed: int, progress: Progress) -> tuple:
    """Return (Joint of all tokens, [Joint of even rows, of odd rows], a sample of tokens [token, d_in])."""
    from backend.maths.streaming import Joint, Reservoir

    whole, halves, sample = Joint(), [Joint(), Joint()], Reservoir(SAMPLE, seed)
    for start, tokens in batches(model, subject, 3 * model.card.d_model):
        progress(start / len(subject.tokens), f"Row {start} of {len(subject.tokens)}")
        x = _saes.read(model, made, tokens).cpu().double()
        if x.shape[2] > MOST:
            raise Unfit(f"PCA of {x.shape[2]} coordinates", "it would take minutes", "Choose a narrower point")
        whole.update(x.flatten(0, 1))
        sample.update(x.flatten(0, 1))
        for side, joint in enumerate(halves):
            if len(rows := x[(start + side) % 2 :: 2]):
                joint.update(rows.flatten(0, 1))
    return whole, halves, sample.kept


def eigen(covariance: Any) -> tuple[Any, Any]:
    """Return (variances [d] falling, directions as rows [d, d]); each direction's largest entry is positive."""
    import torch

    values, vectors = torch.linalg.eigh(covariance.double())
    rows = vectors.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return values.flip(0).clamp_min(0), rows * largest.sign()


def _shuffled(sample: Any, seed: int, draw: int) -> Any:
    """Return the covariance of the sample with every coordinate shuffled by itself."""
    import torch

    from backend.maths.streaming import shuffled

    return torch.cov(shuffled(sample, _saes.dice(seed + draw)).T).reshape(sample.shape[1], sample.shape[1])


def _stability(first: Any, halves: list[Any], k: int) -> Any:
    """Return how well each direction is found again among the first 2 k of either half of the rows [k]."""
    if any(half.n < 2 for half in halves):
        return np.nan
    found = [(first @ eigen(half.covariance())[1][: 2 * k].T).abs().max(1).values for half in halves]
    return found[0].minimum(found[1]).clamp_max(1).numpy()


def _ends(model: Model, subject: Rows, made: dict[str, Any], first: Any, mean: Any) -> dict[str, Any]:
    """Return the columns high, low and their values, and variance_se over rows."""
    from backend.maths.streaming import Moments, Top

    high, low, by_row = Top(TOKENS), Top(TOKENS), Moments()
    for _, tokens in batches(model, subject, 3 * model.card.d_model):
        along = (_saes.read(model, made, tokens).cpu().double() - mean) @ first.T
        high.update(along.flatten(0, 1))
        low.update(-along.flatten(0, 1))
        by_row.update(along.square().mean(1))
    columns: dict[str, Any] = {"variance_se": by_row.standard_error().numpy()}
    for name, top, sign in (("high", high, 1), ("low", low, -1)):
        columns[name] = [" ".join(_window(subject.tokens, int(s)) for s in one) for one in top.samples.T]
        columns[f"{name}_values"] = [" ".join(f"{sign * float(v):.4g}" for v in one) for one in top.values.T]
    return columns


@pca_directions.costs
def work(card: ModelCard, subject: Corpus, params: PcaDirectionsParams) -> Work:
    """The corpus twice; covariances of it and of every shuffle, and what their eigenvectors take (about 10 d^3)."""
    plan, length = Plan(card), min(subject.length, card.n_ctx)
    plan.corpus(subject, 3 * card.d_model, n=2)
    _saes.plan_written(plan, params.point)
    d, tokens = plan.width(params.point), subject.rows * length
    sample = min(SAMPLE, tokens)
    products = 4 * tokens * d**2 + 2 * params.draws * sample * d**2 + 10 * (3 + params.draws) * d**3
    batch = min(subject.rows, rows_at_once(plan, length, 3 * card.d_model)) * length
    return plan.total(8 * d * (3 * sample + 2 * batch + 6 * d), products, FEWER_ROWS)


def _window(tokens: np.ndarray, sample: int) -> str:
    row, pos = divmod(sample, tokens.shape[1])
    return ",".join(str(t) for t in tokens[row, max(0, pos - BEFORE) : pos + 1])


def _written(model: Model, made: dict[str, Any], first: Any) -> dict[str, Any]:
    found = _saes.written(model, made, first.to(model.card.device))
    if found is None:
        return {"raises": "", "lowers": ""}
    high, low, _ = logit_effects(*found, TOKENS)
    return {"raises": high, "lowers": low}


# ---------------------------------------------------------------- figures


@pca_directions.figure("Share of the variance")
def spectrum(table: pd.DataFrame, view: View) -> Any:
    """Share of the variance per direction, with its error; grey: coordinates shuffled by themselves."""
    at, share, error = table["direction"], table["share"], table["share_se"]
    said = f"direction ({len(table)} kept: {share.sum():.0%} of the variance)"
    null = Line("shuffled coordinates", at, table["null"], table["null"], table["null_high"], NULL_GREY)
    hover = [_words(row, view) for row in table.to_dict("records")]
    mine = Line("these activations", at, share, share - error, share + error, CATEGORIES[0], hover)
    return lines([null, mine], x_title=said, y_title="share of the variance (band: ± s.e.)")


@pca_directions.figure("Tokens at both ends")
def ends(table: pd.DataFrame, view: View) -> Any:
    """Tokens with the largest and smallest coordinate on each direction; the hover says what stands before them."""
    shown = table.head(DRAWN)
    rows, z, text, hover = [], [], [], []
    for row in shown.to_dict("records"):
        for name, sign in (("high", "+"), ("low", "−")):
            windows = [[int(t) for t in w.split(",")] for w in str(row[name]).split()]
            rows.append(f"{row['direction']} {sign}")
            z.append([float(v) for v in str(row[f"{name}_values"]).split()])
            text.append([label(view.vocab(w[-1]), 12) for w in windows])
            hover.append([f"{label(' '.join(view.vocab(t) for t in w), 90)}<br>{_words(row, view)}" for w in windows])
    places = [f"{i + 1}." for i in range(len(z[0]))]
    figure = pixels(np.array(z), x=places, y=rows, text=text, hover=hover, diverging=True, numbered_y=False,
                    x_title=f"place from the end ({len(shown)} of {len(table)} directions)", y_title="direction, end",
                    value="coordinate", height=110 + 26 * len(rows))  # fmt: skip
    figure.data[0].update(textfont={"size": 11})
    return figure


def _words(row: dict[Any, Any], view: View) -> str:
    stable = "" if pd.isna(row["stability"]) else f", found again in half the rows with cosine {row['stability']:.2f}"
    said = [f"direction {row['direction']}: {row['share']:.2%} of the variance (shuffled {row['null']:.2%}){stable}"]
    if row["raises"]:
        said += [f"raises {label(token_words(row['raises'], view.vocab), 60)}",
                 f"lowers {label(token_words(row['lowers'], view.vocab), 60)}"]  # fmt: skip
    return "<br>".join(said)
