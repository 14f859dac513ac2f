"""What would the model say if it stopped after each layer?

The residual stream h after layer l (layer -1: the embeddings, before layer 0) goes through the final norm and W_U:
logits_l = unembed(h_l). For every layer, pos and rank: the token of that rank (0 = most likely) and its `log_prob`.
For every layer and pos, repeated over ranks: `entropy` of the layer's distribution, `kl_to_final` = KL(final || layer),
and of one target token its `target_log_prob` and `target_rank` (number of tokens with a strictly larger logit).
The target is `params.target`; else the prompt's next token, and where there is none (the last position, or a model
whose outputs are not its inputs) the final layer's top token.

Exact up to the model's dtype (at least float32 after the unembedding); the last layer is the model's own prediction,
its KL is 0. Cost: one forward, and one unembedding per layer; ranks beyond d_vocab_out are left out.
Source: nostalgebraist (2020), interpreting GPT: the logit lens; Belrose et al. (2023), Eliciting Latent Predictions
from Transformers with the Tuned Lens, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import prompt_tokens
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput, Broken
from backend.figures import CATEGORIES, Line, label, lines, pixels, stacked_lines

LOGIT_BYTES = 128 * 2**20  # what one block of logits may hold


class LogitLensParams(Params):
    """How much of each distribution is kept, and which token is followed."""

    top_k: int = Field(10, ge=1, le=50, description="most likely tokens kept per layer and position")
    target: int | None = Field(None, ge=0, description="token id that is followed through the layers; "
                               "empty follows the prompt's next token")


@analysis(
    version=1, group="Lenses",
    title="Logit lens", asks="What would the model predict if it stopped after each layer?", subject=Prompt,
    params=LogitLensParams, needs=["unembed"],
    axes=[Axis("layer", "after which layer the residual stream is read; -1 is the embedding"),
          Axis("pos", "position in the prompt, 0-based", "token"),
          Axis("rank", "place of the token among the predictions, 0 is the most likely")],
    values=[
        Value("token_id", "the token of this rank", kind="int"),
        Value("log_prob", "its log-probability", "nats"),
        Value("entropy", "entropy of the layer's prediction at this position", "nats"),
        Value("kl_to_final", "KL(final || layer): what is lost by stopping here", "nats"),
        Value("target_id", "the token that is followed", kind="int"),
        Value("target_log_prob", "log-probability of the target", "nats"),
        Value("target_rank", "number of tokens the layer finds more likely than the target", kind="int"),
    ],
)
def logit_lens(model: Model, subject: Prompt, params: LogitLensParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, pos, rank), ordered by layer."""
    import torch

    if params.target is not None and params.target >= model.card.d_vocab_out:
        raise BadInput(f"Target token {params.target}", f"the model's outputs are 0 to {model.card.d_vocab_out - 1}",
                       "Choose a token that it can predict")
    tokens = prompt_tokens(model, subject)
    with torch.no_grad():
        residuals = _residuals(model, tokens)
        rows = [row for block in _blocks(model, tokens.shape[1])
                for row in _read(model, residuals, tokens[0], block, params, progress)]
    frame = pd.concat(rows, ignore_index=True)
    return frame.sort_values(["layer", "pos", "rank"], kind="stable", ignore_index=True)


def _residuals(model: Model, tokens: Any) -> dict[int, Any]:
    """Return {layer: residual stream [pos, d_model]}, layer -1 the embedding, in order."""
    kept = model.capture(tokens, ["embed", "resid_post"])
    after = {layer: kept[("resid_post", layer)][0] for layer in range(model.card.n_layers)}
    return {-1: kept[("embed", 0)][0]} | after


def _blocks(model: Model, length: int) -> Iterator[slice]:
    """Yield runs of positions whose logits fit LOGIT_BYTES."""
    step = max(1, LOGIT_BYTES // (4 * model.card.d_vocab_out))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _read(model: Model, residuals: dict[int, Any], tokens: Any, block: slice, params: LogitLensParams,
          progress: Progress) -> Iterator[pd.DataFrame]:
    """Yield one frame per layer for a block of positions; the final layer is read first and kept."""
    from backend.maths import lens

    last = max(residuals)
    logits = _logits(model, residuals[last][block])
    final, targets = lens.final_of(logits), _targets(model, tokens, block, logits, params.target)
    for done, layer in enumerate(sorted(residuals, reverse=True)):
        logits = logits if layer == last else _logits(model, residuals[layer][block])
        found = lens.readout(logits, final, targets, min(params.top_k, model.card.d_vocab_out))
        if not bool(found.entropy.isfinite().all()):
            raise Broken(f"Logit lens of layer {layer}", "the logits hold NaN or infinity", "Try float32")
        yield _frame(layer, block.start, found, targets)
        progress((block.start + (block.stop - block.start) * (done + 1) / len(residuals)) / len(tokens),
                 f"positions {block.start} to {block.stop - 1}, layer {layer}")


def _logits(model: Model, residual: Any) -> Any:
    import torch

    logits = model.unembed(residual[None])[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _targets(model: Model, tokens: Any, block: slice, final_logits: Any, asked: int | None) -> Any:
    """Return the followed token of each position of the block (see the module's docstring)."""
    import torch

    targets = final_logits.argmax(-1)
    if asked is not None:
        return torch.full_like(targets, asked)
    if model.card.d_vocab_out == model.card.d_vocab:
        following = tokens[block.start + 1 : block.stop + 1]
        targets[: len(following)] = following
    return targets


def _frame(layer: int, start: int, found: Any, targets: Any) -> pd.DataFrame:
    """Lay a Readout [n, k] out as rows (layer, pos, rank)."""
    n, k = found.top_ids.shape

    def per_position(x: Any) -> np.ndarray:
        return x.cpu().numpy().repeat(k)

    return pd.DataFrame({
        "layer": layer, "pos": np.arange(start, start + n).repeat(k), "rank": np.tile(np.arange(k), n),
        "token_id": found.top_ids.flatten().cpu().numpy(),
        "log_prob": found.top_log_probs.flatten().double().cpu().numpy(),
        "entropy": per_position(found.entropy.double()), "kl_to_final": per_position(found.kl_to_final.double()),
        "target_id": per_position(targets), "target_log_prob": per_position(found.target_log_prob.double()),
        "target_rank": per_position(found.target_rank),
    })


@logit_lens.costs
def work(card: ModelCard, subject: Prompt, params: LogitLensParams) -> Work:
    """One forward, and an unembedding per layer and position in blocks."""
    plan, length = Plan(card), len(subject.tokens)
    plan.call(1, length)
    block = min(LOGIT_BYTES, 4 * length * card.d_vocab_out)
    rows = (card.n_layers + 1) * length * min(params.top_k, card.d_vocab_out)
    products = (card.n_layers + 1) * length * card.d_model * card.d_vocab_out
    return plan.total(plan.bytes(length, ["resid_post"]) + 6 * block + 3 * 80 * rows, 2 * products, SHORTER)


# ---------------------------------------------------------------- figures

LAYER = "layer (embed: before layer 0)"


def _top(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rank-0 rows: one per (layer, pos)."""
    return table[table["rank"] == 0]


def _layer_names(layers: Any) -> list[str]:
    return ["embed" if x == -1 else str(x) for x in layers]


def _colour(name: str, top: pd.DataFrame, n_words: int) -> tuple[pd.Series, dict[str, Any]]:
    """Return the coloured quantity and how to colour it; limits depend on the vocabulary alone, where they can."""
    ln = math.log(max(n_words, 2))
    choices: dict[str, tuple[pd.Series, dict[str, Any]]] = {
        "probability": (np.exp(top["log_prob"]), {"value": "probability of the top token", "limits": (0.0, 1.0)}),
        "entropy": (top["entropy"], {"value": "entropy (nats)", "limits": (0.0, ln)}),
        "kl_to_final": (top["kl_to_final"], {"value": "KL(final || layer) (nats)",
                                             "limits": (0.0, max(float(top["kl_to_final"].max()), 1e-6))}),
        "target_log_prob": (top["target_log_prob"], {"value": "log-prob of the target (nats)",
                                                     "limits": (-2 * ln, 0.0)}),
        "target_rank": (np.log10(top["target_rank"] + 1), {
            "value": "rank of the target (0-based)", "limits": (0.0, math.log10(max(n_words, 2))),
            "colour_ticks": _rank_ticks(n_words)}),
    }
    if name not in choices:
        raise BadInput(f"Colour {name!r}", "not a quantity of the logit lens", f"Use one of {sorted(choices)}")
    return choices[name]


def _rank_ticks(most: int) -> dict[str, Any]:
    """Return ticks of an axis of log10(rank + 1)."""
    ranks = [r for r in (0, 1, 10, 100, 1000, 10_000, 100_000) if r <= max(most, 1)]
    return {"tickvals": [math.log10(r + 1) for r in ranks], "ticktext": [str(r) for r in ranks]}


@logit_lens.figure("Predictions by layer and token")
def grid(table: pd.DataFrame, view: View) -> Any:
    """Token by layer: the top token in each cell, coloured by `view.chosen["colour"]`."""
    top = _top(table).sort_values(["layer", "pos"])
    n_words = int(view.card.get("d_vocab_out", 0)) or int(table[["token_id", "target_id"]].to_numpy().max()) + 1
    colour, looks = _colour(view.chosen.get("colour", "probability"), top, n_words)
    layers = sorted(top["layer"].unique())

    def block(column: Any) -> np.ndarray:
        return np.asarray(column).reshape(len(layers), -1)

    words = [label(view.vocab(int(t)), 7) for t in top["token_id"]]
    hover = [_cell(row, view) for row in top.itertuples()]
    n_pos = len(top) // len(layers)
    return pixels(block(colour).astype(np.float32), x=view.tokens or [str(i) for i in range(n_pos)],
                  y=_layer_names(layers), x_title="position (token)", y_title=LAYER, reverse_y=False, numbered_y=False,
                  text=block(words).tolist(), hover=block(hover).tolist(), **looks)


def _cell(row: Any, view: View) -> str:
    word, target = label(view.vocab(int(row.token_id))), label(view.vocab(int(row.target_id)))
    return (f"top: {word} ({math.exp(row.log_prob):.3g})<br>entropy: {row.entropy:.3g} nats<br>"
            f"KL to final: {row.kl_to_final:.3g} nats<br>target {target}: rank {row.target_rank}, "
            f"probability {math.exp(row.target_log_prob):.3g}")


@logit_lens.figure("The target through the layers", choose=("pos",))
def target_rank(table: pd.DataFrame, view: View) -> Any:
    """Log-probability and rank of the target at one position, layer by layer."""
    pos = int(view.chosen.get("pos", table["pos"].max()))
    rows = _top(table)
    rows = rows[rows["pos"] == pos].sort_values("layer")
    word = label(view.vocab(int(rows["target_id"].iloc[0])))
    hover = [f"layer {n}<br>rank {r}<br>probability {math.exp(p):.3g}" for n, r, p in
             zip(_layer_names(rows["layer"]), rows["target_rank"], rows["target_log_prob"], strict=True)]
    layer = rows["layer"].to_numpy()
    log_rank = np.log10(rows["target_rank"] + 1)
    return stacked_lines(
        [(Line("log-prob", layer, rows["target_log_prob"], hover=hover), "log-prob (nats)", {}),
         (Line("rank", layer, log_rank, hover=hover, colour=CATEGORIES[1]), "rank (0-based)",
          _rank_ticks(int(rows["target_rank"].max()) + 1) | {"autorange": "reversed"})],
        x_title=LAYER, x_axis=_layer_axis(layer), title=f"target {word} at position {pos}")


def _layer_axis(layers: Any) -> dict[str, Any]:
    shown = list(layers)[:: -(-len(layers) // 32)]
    return {"tickmode": "array", "tickvals": [int(x) for x in shown], "ticktext": _layer_names(shown)}


@logit_lens.figure("Convergence over layers")
def curves(table: pd.DataFrame, view: View) -> Any:
    """Mean over positions of entropy and KL to the final layer; bands hold the middle 80 % of positions."""
    by_layer = _top(table).groupby("layer")
    drawn = []
    for name, words in {"entropy": "entropy", "kl_to_final": "KL(final || layer)"}.items():
        column = by_layer[name]
        mean = column.mean()
        drawn.append(Line(words, mean.index.to_numpy(), mean.to_numpy(), column.quantile(0.1).to_numpy(),
                          column.quantile(0.9).to_numpy()))
    figure = lines(drawn, x_title=LAYER, y_title="mean over positions (nats)")
    return figure.update_xaxes(**_layer_axis(drawn[0].x))
