"""What does each layer say, read in the basis that was learnt for it?

The residual stream h after layer l (layer -1: the embeddings) is read as unembed(h + A h + b) with the translator that
the run `lens` learnt for it (recipe tuned_lens), beside the logit lens unembed(h). For every layer, pos and rank: the
tuned lens' token of that rank and its `log_prob`, the logit lens' `logit_token_id` and `logit_log_prob`. Repeated over
ranks: `entropy`, `kl_to_final` = KL(final || tuned lens) and `logit_kl_to_final`, and of the final layer's top token
`final_rank`, the number of tokens the tuned lens finds more likely.

Exact given the translators; the last layer has none and is the model. A lens is learnt from data: what it adds to the
logit lens may be knowledge of the data rather than of this stream; tuned_lens_quality shows that share as its null. The
lens must have been trained for these very weights (checked). Cost: one forward, two unembeddings per layer.
Source: Belrose et al. (2023), Eliciting Latent Predictions from Transformers with the Tuned Lens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import prompt_tokens
from backend.analyses._lenses import (
    LAYER,
    LOGIT_BYTES,
    blocks,
    check_named,
    layer_axis,
    layer_names,
    lens_named,
    logits_of,
    streams,
    translators,
    tuned,
)
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, Line, label, lines, pixels


class TunedLensReadParams(Params):
    """Which lens, and how much of each distribution is kept."""

    lens: str = Field("", max_length=200, description="name of the run that trained the lens (recipe tuned_lens)")
    lens_step: int | None = Field(None, ge=0, le=2**31 - 1, description="its checkpoint; none takes its last step's")
    top_k: int = Field(5, ge=1, le=50, description="most likely tokens kept per layer and position")

    named: ClassVar = {"lens": "tuned_lens"}

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """The lens."""
        return lens_named(self.lens, self.lens_step)


@analysis(
    version=1, group="Lenses",
    title="Tuned lens", asks="What does each layer say, read in the basis that was learnt for it?",
    subject=Prompt, params=TunedLensReadParams, needs=["unembed"],
    axes=[Axis("layer", "after which layer the residual stream is read; -1 is the embedding"),
          Axis("pos", "position in the prompt, 0-based", "token"),
          Axis("rank", "place of the token among the predictions, 0 is the most likely")],
    values=[
        Value("token_id", "the tuned lens' token of this rank", kind="int"),
        Value("log_prob", "its log-probability", "nats"),
        Value("logit_token_id", "the logit lens' token of this rank", kind="int"),
        Value("logit_log_prob", "its log-probability under the logit lens", "nats"),
        Value("entropy", "entropy of the tuned lens' prediction", "nats"),
        Value("kl_to_final", "KL(final || tuned lens)", "nats"),
        Value("logit_kl_to_final", "KL(final || logit lens)", "nats"),
        Value("final_rank", "number of tokens the tuned lens finds more likely than the final top token", kind="int"),
    ],
)
def tuned_lens(model: Model, subject: Prompt, params: TunedLensReadParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, pos, rank), ordered by layer."""
    import torch

    lens, tokens = translators(model, params.lens, params.lens_step), prompt_tokens(model, subject)
    k = min(params.top_k, model.card.d_vocab_out)
    with torch.no_grad():
        plain = {n: h[0] for n, h in streams(model, tokens).items()}
        read = tuned(plain, lens)
        rows = [row for block in blocks(model, tokens.shape[1])
                for row in _read(model, plain, read, block, k, progress)]
    frame = pd.concat(rows, ignore_index=True)
    return frame.sort_values(["layer", "pos", "rank"], kind="stable", ignore_index=True)


def _read(model: Model, plain: dict[int, Any], read: dict[int, Any], block: slice, k: int,
          progress: Progress) -> Iterator[pd.DataFrame]:  # fmt: skip
    """Yield one frame per layer for a block of positions."""
    from backend.maths import lens

    logits = logits_of(model, plain[max(plain)][block])
    final, top = lens.final_of(logits), logits.argmax(-1)
    for done, layer in enumerate(plain, start=1):
        ours, theirs = (lens.readout(logits_of(model, h[layer][block]), final, top, k) for h in (read, plain))
        yield _frame(layer, block.start, ours, theirs)
        share = (block.start + (block.stop - block.start) * done / len(plain)) / len(plain[layer])
        progress(share, f"positions {block.start} to {block.stop - 1}, layer {layer}")


def _frame(layer: int, start: int, ours: Any, theirs: Any) -> pd.DataFrame:
    """Lay two Readouts [n, k] out as rows (layer, pos, rank)."""
    n, k = ours.top_ids.shape

    def flat(x: Any) -> np.ndarray:
        x = x.double() if x.is_floating_point() else x
        return x.cpu().numpy().ravel() if x.ndim == 2 else x.cpu().numpy().repeat(k)

    return pd.DataFrame({
        "layer": layer, "pos": np.arange(start, start + n).repeat(k), "rank": np.tile(np.arange(k), n),
        "token_id": flat(ours.top_ids), "log_prob": flat(ours.top_log_probs),
        "logit_token_id": flat(theirs.top_ids), "logit_log_prob": flat(theirs.top_log_probs),
        "entropy": flat(ours.entropy), "kl_to_final": flat(ours.kl_to_final),
        "logit_kl_to_final": flat(theirs.kl_to_final), "final_rank": flat(ours.target_rank),
    })


@tuned_lens.costs
def work(card: ModelCard, subject: Prompt, params: TunedLensReadParams, *made: Mapping[str, Any]) -> Work:
    """One forward, a translation per layer, and two unembeddings per layer and position in blocks."""
    check_named(params.lens)
    plan, length = Plan(card), len(subject.tokens)
    plan.call(1, length)
    products = (card.n_layers + 1) * length * card.d_model * (2 * card.d_vocab_out + card.d_model)
    rows = (card.n_layers + 1) * length * min(params.top_k, card.d_vocab_out)
    held = 4 * card.n_layers * card.d_model**2 + 2 * plan.bytes(length, ["resid_post"]) + 240 * rows
    return plan.total(held + 8 * min(LOGIT_BYTES, 4 * length * card.d_vocab_out), 2 * products, SHORTER)


# ---------------------------------------------------------------- figures


def _grid(table: pd.DataFrame, view: View, title: str, token: str, log_prob: str, kl: str) -> Any:
    """Token by layer: the top token in each cell, coloured by KL; both lenses share the colours."""
    top = table[table["rank"] == 0].sort_values(["layer", "pos"])
    layers = sorted(top["layer"].unique())

    def block(column: Any) -> np.ndarray:
        return np.asarray(column).reshape(len(layers), -1)

    words = [label(view.vocab(int(t)), 7) for t in top[token]]
    hover = [f"top: {w} ({math.exp(p):.3g})<br>KL to final: {d:.3g} nats" for w, p, d in
             zip(words, top[log_prob], top[kl], strict=True)]
    most = max(float(top[["kl_to_final", "logit_kl_to_final"]].to_numpy().max()), 1e-6)
    names = view.tokens or [str(i) for i in range(len(top) // len(layers))]
    return pixels(block(top[kl]), x=names, y=layer_names(layers), x_title="position (token)", y_title=LAYER,
                  value="KL(final || lens) (nats)", limits=(0.0, most), text=block(words).tolist(),
                  hover=block(hover).tolist(), rank="map", reverse_y=False, numbered_y=False, title=title)


@tuned_lens.figure("Tuned lens: predictions by layer and token")
def grid(table: pd.DataFrame, view: View) -> Any:
    """The tuned lens' top token in each cell, coloured by its KL to the final prediction."""
    return _grid(table, view, "tuned lens", "token_id", "log_prob", "kl_to_final")


@tuned_lens.figure("Logit lens, same colours")
def logit_grid(table: pd.DataFrame, view: View) -> Any:
    """The logit lens' top token in each cell, coloured by its KL to the final prediction."""
    return _grid(table, view, "logit lens", "logit_token_id", "logit_log_prob", "logit_kl_to_final")


@tuned_lens.figure("KL to the final prediction")
def curves(table: pd.DataFrame, view: View) -> Any:
    """Mean over positions of either lens' KL; bands hold the middle 80 % of positions."""
    groups = table[table["rank"] == 0].groupby("layer")
    drawn = []
    for column, words, colour in (("logit_kl_to_final", "logit lens", CATEGORIES[1]),
                                  ("kl_to_final", "tuned lens", CATEGORIES[0])):
        mean, low, high = groups[column].mean(), groups[column].quantile(0.1), groups[column].quantile(0.9)
        drawn.append(Line(words, mean.index.to_numpy(), mean.to_numpy(), low.to_numpy(), high.to_numpy(), colour))
    figure = lines(drawn, x_title=LAYER, y_title="KL(final || lens), mean over positions (nats)")
    return figure.update_xaxes(**layer_axis(drawn[0].x))
