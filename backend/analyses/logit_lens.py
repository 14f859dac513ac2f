"""What would the model say if it stopped at each layer?

The residual stream h at `point` of every layer goes through the final norm and W_U: logits_l = unembed(h_l). `point` is
resid_post (after layer l), resid_pre (what enters layer l) or resid_mid (between attention and MLP of layer l). Every
choice shows the whole way: layer -1 is the embedding (resid_pre: layer 0 is), and the last row the model's own
prediction (resid_post: layer n_layers - 1; the others: layer n_layers).
For every layer, pos and rank: the token of that rank (0 = most likely) and its `log_prob`.
For every layer and pos, repeated over ranks: `entropy` of the layer's distribution, `kl_to_final` = KL(final || layer),
and of one target token its `target_log_prob` and `target_rank` (number of tokens with a strictly larger logit).
The target is `params.target`; else the prompt's next token, and where there is none (the last position, or a model
whose outputs are not its inputs) the final layer's top token. Where `params.distractor` names a second token, the same
of it: target_log_prob - distractor_log_prob is the layer's logit difference.

Exact up to the model's dtype (at least float32 after the unembedding); the last row's KL is 0. resid_pre of layer l + 1
is resid_post of layer l. Where attention and MLP read the same stream there is no resid_mid; it is refused.
Cost: one forward (resid_mid: two), and one unembedding per layer; ranks beyond d_vocab_out are left out.
Source: nostalgebraist (2020), interpreting GPT: the logit lens; Belrose et al. (2023), Eliciting Latent Predictions
from Transformers with the Tuned Lens, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import prompt_tokens
from backend.analyses._lenses import LOGIT_BYTES, blocks, layer_axis, layer_names, logits_of, point_streams
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, Line, label, lines, pixels, stacked_lines


class LogitLensParams(Params):
    """Which stream is read, how much of each distribution is kept, and which tokens are followed."""

    point: Literal["resid_pre", "resid_mid", "resid_post"] = Field(
        "resid_post", description="where each layer's stream is read: before it, between attention and MLP, after it")
    top_k: int = Field(10, ge=1, le=50, description="most likely tokens kept per layer and position")
    target: int | None = Field(None, ge=0, description="token id that is followed through the layers; "
                               "empty follows the prompt's next token")
    distractor: int | None = Field(None, ge=0, description="a second token id that is followed: why A rather than B")


@analysis(
    version=2, group="Lenses",
    title="Logit lens", asks="What would the model predict if it stopped at each layer?", subject=Prompt,
    params=LogitLensParams, needs=["unembed"],
    axes=[Axis("layer", "layer whose stream is read; -1 is the embedding, n_layers (resid_pre, resid_mid) the last"),
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
        Value("distractor_id", "the second token that is followed; NULL where none is", kind="int"),
        Value("distractor_log_prob", "its log-probability; NULL where none is followed", "nats"),
        Value("distractor_rank", "number of tokens the layer finds more likely; NULL where none is followed",
              kind="int"),
    ],
)
def logit_lens(model: Model, subject: Prompt, params: LogitLensParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, pos, rank), ordered by layer."""
    import torch

    for name, token in (("Target", params.target), ("Distractor", params.distractor)):
        if token is not None and token >= model.card.d_vocab_out:
            raise BadInput(f"{name} token {token}", f"the model's outputs are 0 to {model.card.d_vocab_out - 1}",
                           "Choose a token that it can predict")
    tokens = prompt_tokens(model, subject)
    with torch.no_grad():
        seen = {layer: stream[0] for layer, stream in point_streams(model, tokens, params.point).items()}
        rows = [row for block in blocks(model, tokens.shape[1])
                for row in _read(model, seen, tokens[0], block, params, progress)]
    frame = pd.concat(rows, ignore_index=True)
    return frame.sort_values(["layer", "pos", "rank"], kind="stable", ignore_index=True)


def _read(model: Model, seen: dict[int, Any], tokens: Any, block: slice, params: LogitLensParams,
          progress: Progress) -> Iterator[pd.DataFrame]:
    """Yield one frame per layer for a block of positions; the last stream is read first and kept."""
    from backend.maths import lens

    last = max(seen)
    logits = logits_of(model, seen[last][block])
    final, followed = lens.final_of(logits), _followed(model, tokens, block, logits, params)
    for done, layer in enumerate(sorted(seen, reverse=True)):
        logits = logits if layer == last else logits_of(model, seen[layer][block])
        found = lens.readout(logits, final, followed, min(params.top_k, model.card.d_vocab_out))
        yield _frame(layer, block.start, found, followed)
        progress((block.start + (block.stop - block.start) * (done + 1) / len(seen)) / len(tokens),
                 f"positions {block.start} to {block.stop - 1}, layer {layer}")


def _followed(model: Model, tokens: Any, block: slice, final_logits: Any, params: LogitLensParams) -> Any:
    """Return the target, and where one is given the distractor, of each position of the block: [pos, 1 or 2]."""
    import torch

    targets = final_logits.argmax(-1)
    if params.target is not None:
        targets = torch.full_like(targets, params.target)
    elif model.card.d_vocab_out == model.card.d_vocab:
        following = tokens[block.start + 1 : block.stop + 1]
        targets[: len(following)] = following
    others = [] if params.distractor is None else [torch.full_like(targets, params.distractor)]
    return torch.stack([targets, *others], -1)


def _frame(layer: int, start: int, found: Any, followed: Any) -> pd.DataFrame:
    """Lay a Readout [n, k] out as rows (layer, pos, rank)."""
    n, k = found.top_ids.shape

    def per_position(x: Any) -> np.ndarray:
        return x.cpu().numpy().repeat(k)

    columns = {
        "layer": layer, "pos": np.arange(start, start + n).repeat(k), "rank": np.tile(np.arange(k), n),
        "token_id": found.top_ids.flatten().cpu().numpy(),
        "log_prob": found.top_log_probs.flatten().double().cpu().numpy(),
        "entropy": per_position(found.entropy.double()), "kl_to_final": per_position(found.kl_to_final.double()),
    }
    for at, name in enumerate(("target", "distractor")):
        there = at < followed.shape[1]
        parts = (followed, found.target_log_prob.double(), found.target_rank)
        columns |= {f"{name}_{what}": per_position(part[:, at]) if there else np.full(n * k, np.nan)
                    for what, part in zip(("id", "log_prob", "rank"), parts, strict=True)}
    return pd.DataFrame(columns)


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

WHERE = {"resid_pre": "before layer (final: after the last)", "resid_mid": "layer, between attention and MLP",
         "resid_post": "after layer (embed: before layer 0)"}


RANKS = (1, 2, 5)  # a narrow range of ranks still holds a tick


def _point(view: View) -> str:
    return str(view.params.get("point") or "resid_post")


def _final(table: pd.DataFrame, view: View) -> int | None:
    """Return the layer that stands for the last stream, where it is none of the layers' own."""
    return None if _point(view) == "resid_post" else int(table["layer"].max())


def _top(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rank-0 rows: one per (layer, pos)."""
    return table[table["rank"] == 0]


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


def _rank_ticks(most: int, steps: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """Return ticks of an axis of log10(rank + 1), at these multiples of powers of ten."""
    ranks = [r for r in (0, *(s * 10**d for d in range(6) for s in steps)) if r <= max(most, 1)]
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
                  y=layer_names(layers, _final(table, view)), x_title="position (token)",
                  y_title=WHERE[_point(view)], reverse_y=False, numbered_y=False,
                  text=block(words).tolist(), hover=block(hover).tolist(), **looks)


def _cell(row: Any, view: View) -> str:
    word, target = label(view.vocab(int(row.token_id))), label(view.vocab(int(row.target_id)))
    return (f"top: {word} ({math.exp(row.log_prob):.3g})<br>entropy: {row.entropy:.3g} nats<br>"
            f"KL to final: {row.kl_to_final:.3g} nats<br>target {target}: rank {row.target_rank}, "
            f"probability {math.exp(row.target_log_prob):.3g}")


@logit_lens.figure("The target through the layers", choose=("pos",))
def target_rank(table: pd.DataFrame, view: View) -> Any:
    """Log-probability and rank of the target, and of the distractor where there is one, at one position."""
    pos = int(view.chosen.get("pos", table["pos"].max()))
    rows = _top(table)
    rows = rows[rows["pos"] == pos].sort_values("layer")
    layer, final = rows["layer"].to_numpy(), _final(table, view)
    followed = ["target", *(["distractor"] if rows["distractor_id"].notna().all() else [])]
    words = {name: label(view.vocab(int(rows[f"{name}_id"].iloc[0]))) for name in followed}
    upper, lower, most = [], [], 0
    for at, name in enumerate(followed):
        log_prob, rank = (rows[f"{name}_{c}"].to_numpy(float) for c in ("log_prob", "rank"))
        hover = [f"{name} {words[name]}<br>layer {n}<br>rank {r:.0f}<br>probability {math.exp(p):.3g}" for n, r, p in
                 zip(layer_names(layer, final), rank, log_prob, strict=True)]
        upper.append(Line(f"{name} {words[name]}", layer, log_prob, hover=hover, colour=CATEGORIES[at]))
        lower.append(Line(f"{name} rank", layer, np.log10(rank + 1), hover=hover, colour=CATEGORIES[at]))
        most = max(most, int(rank.max()))
    ranks = _rank_ticks(most + 1, RANKS) | {"autorange": "reversed"}
    return stacked_lines(
        [(upper, "log-prob (nats)", {}), (lower, "rank (0-based)", ranks)],
        x_title=WHERE[_point(view)], x_axis=layer_axis(layer, final),
        title=", ".join(f"{name} {word}" for name, word in words.items()))


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
    figure = lines(drawn, x_title=WHERE[_point(view)], y_title="mean over positions (nats)")
    return figure.update_xaxes(**layer_axis(drawn[0].x, _final(table, view)))
