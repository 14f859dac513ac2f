"""How much better than the logit lens does a tuned lens read each layer?

On rows of a corpus, per layer (-1: the embedding): KL(final || lens) in nats, mean over positions and rows, of the
logit lens unembed(h) (`logit_kl`) and of the tuned lens unembed(h + A h + b) (`tuned_kl`); `gain` is their difference
row by row. `_se` are standard errors over rows. The null, `constant_kl`, is KL(final || mean final prediction of the
same rows): what the best single answer reaches that never looks at the stream. A tuned lens that is no better reads
nothing there, however far it lies below the logit lens.

Exact given rows and translators; the last layer has no translator and is the model. Rows of the source and seed that
the lens learnt from are refused; of a text, windows may still overlap with those it saw. Rows of a periodic or
repetitive source are alike, which makes standard errors too small.
Cost: one forward per batch of rows, two unembeddings per layer.
Source: Belrose et al. (2023), Eliciting Latent Predictions from Transformers with the Tuned Lens, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._lenses import (
    LAYER,
    LOGIT_BYTES,
    check_named,
    layer_axis,
    layer_names,
    lens_named,
    logits_of,
    mean_and_se,
    streams,
    translators,
    tuned,
)
from backend.analyses._work import FEWER_ROWS, Plan
from backend.contract import Axis, Corpus, Described, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines


class TunedLensQualityParams(Params):
    """Which lens."""

    lens: str = Field("", max_length=200, description="name of the run that trained the lens (recipe tuned_lens)")
    lens_step: int | None = Field(None, ge=0, le=2**31 - 1, description="its checkpoint; none takes its last step's")

    named: ClassVar = {"lens": "tuned_lens"}

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """The lens."""
        return lens_named(self.lens, self.lens_step)


def _with_error(name: str, words: str) -> list[Value]:
    return [Value(name, words, "nats"), Value(f"{name}_se", f"standard error over rows of {name}; NULL for one row",
                                              "nats")]  # fmt: skip


@analysis(
    version=3, group="Lenses", title="Tuned lens quality",
    asks="How much better than the logit lens does a tuned lens read each layer?",
    subject=Corpus, params=TunedLensQualityParams, needs=["unembed"],
    axes=[Axis("layer", "after which layer the residual stream is read; -1 is the embedding")],
    values=[
        *_with_error("logit_kl", "KL(final || logit lens)"),
        *_with_error("tuned_kl", "KL(final || tuned lens)"),
        *_with_error("gain", "logit_kl - tuned_kl, row by row"),
        *_with_error("constant_kl", "KL(final || mean final prediction): the null"),
        Value("n", "rows", kind="int"),
    ],
)
def tuned_lens_quality(
    model: Model, subject: Rows, params: TunedLensQualityParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per layer."""
    import torch

    lens = translators(model, params.lens, params.lens_step, subject.corpus)
    tokens = torch.as_tensor(subject.tokens, device=model.card.device)
    size = rows_at_once(model, tokens.shape[1])
    found: list[np.ndarray] = []  # per batch [row, layer, 3]
    with torch.no_grad():
        batches = tokens.split(size)
        constant = torch.stack([_final(model, batch).exp().sum((0, 1)) for batch in batches]).sum(0)
        constant = (constant / constant.sum()).log()
        for done, batch in enumerate(batches, start=1):
            found.append(_kls(model, batch, lens, constant))
            progress(done / len(batches), f"{sum(map(len, found))} of {len(tokens)} rows")
    return _table(np.concatenate(found), model.card.n_layers)


def rows_at_once(model: Described, length: int) -> int:
    """Return of how many rows LOGIT_BYTES hold the logits, at least one."""
    return max(1, LOGIT_BYTES // (4 * model.card.d_vocab_out * length))


def _final(model: Model, tokens: Any) -> Any:
    import torch

    logits = model.logits(tokens)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def _kls(model: Model, tokens: Any, lens: Any, constant: Any) -> np.ndarray:
    """Return [row, layer, 3]: KL of the logit lens, the tuned lens and the constant answer, mean over positions."""
    import torch

    from backend.maths.divergence import kl

    plain = streams(model, tokens)
    read, final = tuned(plain, lens), _log_probs(model, plain[max(plain)])
    null = kl(final, constant.expand_as(final)).mean(-1)
    layers = [torch.stack([kl(final, _log_probs(model, h[n])).mean(-1) for h in (plain, read)] + [null], -1)
              for n in plain]
    return torch.stack(layers, 1).double().cpu().numpy()


def _log_probs(model: Model, stream: Any) -> Any:
    return logits_of(model, stream.flatten(0, 1)).log_softmax(-1).unflatten(0, stream.shape[:2])


def _table(kls: np.ndarray, n_layers: int) -> pd.DataFrame:
    """Average [row, layer, 3] over rows."""
    columns = {"logit_kl": kls[..., 0], "tuned_kl": kls[..., 1], "gain": kls[..., 0] - kls[..., 1],
               "constant_kl": kls[..., 2]}
    frame: dict[str, Any] = {"layer": np.arange(-1, n_layers)}
    for name, values in columns.items():
        frame[name], frame[f"{name}_se"] = mean_and_se(values)
    return pd.DataFrame(frame | {"n": len(kls)})


@tuned_lens_quality.costs
def work(card: ModelCard, subject: Corpus, params: TunedLensQualityParams, *made: Mapping[str, Any]) -> Work:
    """Every batch twice, for the constant answer and for the streams; translations and two unembeddings per layer."""
    check_named(params.lens)
    plan, length = Plan(card), min(subject.length, card.n_ctx)
    step = rows_at_once(plan, length)
    plan.call_parts(subject.rows, step, length, n=2)
    batch, layers = min(step, subject.rows) * length, card.n_layers + 1
    products = layers * subject.rows * length * card.d_model * (2 * card.d_vocab_out + card.d_model)
    held = 4 * card.n_layers * card.d_model**2 + 2 * plan.bytes(batch, ["resid_post"]) + 24 * batch * card.d_vocab_out
    return plan.total(held, 2 * products, FEWER_ROWS)


# ---------------------------------------------------------------- figures


@tuned_lens_quality.figure("KL to the final prediction by layer")
def by_layer(table: pd.DataFrame, view: View) -> Any:
    """Both lenses with bands of 2 standard errors; grey: the best answer that never looks at the stream."""
    drawn = []
    for name, words, colour in (("constant_kl", "constant answer (null)", NULL_GREY),
                                ("logit_kl", "logit lens", CATEGORIES[1]), ("tuned_kl", "tuned lens", CATEGORIES[0])):
        mean, se = table[name], 2 * table[f"{name}_se"].fillna(0)
        drawn.append(Line(words, table["layer"], mean, mean - se, mean + se, colour))
    figure = lines(drawn, x_title=LAYER, y_title=f"KL(final || lens), mean of {table['n'].iloc[0]} rows (nats)")
    return figure.update_xaxes(**layer_axis(table["layer"]))


@tuned_lens_quality.figure("What the tuned lens gains")
def gains(table: pd.DataFrame, view: View) -> Any:
    """Logit lens minus tuned lens, row by row, with standard errors."""
    return bars(layer_names(table["layer"]), table["gain"], errors=table["gain_se"].fillna(0), x_title=LAYER,
                y_title="KL of the logit lens - tuned lens (nats)")
