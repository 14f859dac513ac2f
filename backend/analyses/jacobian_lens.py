"""What does a layer's stream do to the model's answer, to first order?

J_l = mean over source positions t of sum over t' >= t of d h_final,t' / d h_l,t [d_model, d_model]: how the last stream
moves when the stream after layer l (-1: the embedding) is moved. Sources and targets are the positions from
`skip_first` to the last but one. The Jacobian lens reads unembed(J_l h_l); J = 1 would be the logit lens, which stands
beside it. For every layer and pos: `kl_to_final` and `logit_kl_to_final`, KL(final || lens) of either; both top tokens;
`final_rank`, the number of tokens the Jacobian lens finds more likely than the final top one. The null, `null_kl`,
reads unembed(J_l P h_l) with the columns of J permuted: a transport as large that does not know this model's basis.

J is exact (automatic differentiation) for this prompt, but averaged over its positions and linear, so a reading is
first order. It is a definition, not an estimate of an effect: it scores nothing that a patch would measure, so no exact
column stands beside; what the model really says does (`kl_to_final`). For effects see Attribution patching. The paper
averages over a corpus and skips the first 16 positions. The last layer is the model. Bands are
over positions of one prompt, which are not independent. Cost: d_model forwards and gradients, batched.
Source: Gurnee et al. (2026), Verbalizable Representations Form a Global Workspace in Language Models, methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import prompt_tokens
from backend.analyses._lenses import LAYER, LOGIT_BYTES, blocks, layer_axis, layer_names, logits_of, streams
from backend.analyses._work import SHORTER, Plan, parts
from backend.contract import Axis, Described, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, label, lines, pixels

GRAPH_BYTES = 512 * 2**20  # what the graph of one batch may hold, by a rough count


class JacobianLensParams(Params):
    """Which positions J is averaged over, and the null."""

    skip_first: int = Field(0, ge=0, le=1024, description="first positions left out of J (often attention sinks)")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the null's permutation")


@analysis(
    version=1, group="Lenses",
    title="Jacobian lens", asks="What does each layer's stream do to the answer, to first order?",
    subject=Prompt, params=JacobianLensParams, needs=["unembed", "gradients"],
    axes=[Axis("layer", "after which layer the residual stream is read; -1 is the embedding"),
          Axis("pos", "position in the prompt, 0-based", "token")],
    values=[
        Value("kl_to_final", "KL(final || Jacobian lens)", "nats"),
        Value("logit_kl_to_final", "KL(final || logit lens)", "nats"),
        Value("null_kl", "KL(final || lens through J with permuted columns)", "nats"),
        Value("top_id", "the Jacobian lens' top token", kind="int"),
        Value("logit_top_id", "the logit lens' top token", kind="int"),
        Value("final_rank", "number of tokens the lens finds more likely than the final top token", kind="int"),
    ],
)
def jacobian_lens(model: Model, subject: Prompt, params: JacobianLensParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, pos), ordered by layer."""
    import torch

    tokens = prompt_tokens(model, subject)
    positions = list(range(params.skip_first, tokens.shape[1] - 1))
    if not positions:
        raise BadInput(f"A Jacobian of {tokens.shape[1]} tokens", f"none is left after the first {params.skip_first} "
                       "and without the last", "Give a longer text, or skip fewer")
    transport = jacobians(model, tokens, positions, progress)
    shuffle = torch.randperm(model.card.d_model, generator=torch.Generator().manual_seed(params.seed))
    with torch.no_grad():
        plain = {n: h[0] for n, h in streams(model, tokens).items()}
        frames = [_read(model, plain, transport, shuffle.to(tokens.device), block)
                  for block in blocks(model, tokens.shape[1])]
    return pd.concat(frames).sort_values(["layer", "pos"], kind="stable", ignore_index=True)


def jacobians(model: Model, tokens: Any, positions: list[int], progress: Progress) -> dict[int, Any]:
    """Return {layer: J [d_model, d_model]} for -1 to the last layer but one; row i is the gradient of coordinate i.

    Each copy of the prompt in a batch has one coordinate of the last stream, summed over `positions`, as its metric.
    """
    import torch

    card, rows = model.card, []
    places = {-1: ("embed", 0)} | {n: ("resid_post", n) for n in range(card.n_layers - 1)}
    size = coordinates_that_fit(model, tokens.shape[1])
    for start in range(0, card.d_model, size):
        wanted = torch.arange(start, min(start + size, card.d_model), device=tokens.device)
        grads = _gradients(model, tokens.expand(len(wanted), -1), wanted, positions, list(places.values()))
        rows.append(torch.stack([grads[place][:, positions].mean(1) for place in places.values()]))
        progress((start + len(wanted)) / card.d_model, f"{start + len(wanted)} of {card.d_model} coordinates")
    return dict(zip(places, torch.cat(rows, 1), strict=True))


def coordinates_that_fit(model: Described, length: int) -> int:
    """Return how many copies of the prompt, a coordinate each, one graph holds."""
    card = model.card
    per_copy = 4 * length * card.n_layers * (24 * card.d_model + 4 * card.n_heads * length)
    return int(np.clip(GRAPH_BYTES // per_copy, 1, card.d_model))


def _gradients(model: Model, tokens: Any, wanted: Any, positions: list[int], places: list[Any]) -> dict[Any, Any]:
    """Return {place: gradient [copy, pos, d_model]} of coordinate wanted[copy] of the last stream over `positions`."""
    last: list[Any] = []

    def keep(stream: Any) -> Any:
        last.append(stream)
        return stream

    def metric(logits: Any) -> Any:
        import torch

        return last[-1][torch.arange(len(wanted), device=wanted.device), :, wanted][:, positions].sum(1)

    return model.gradients(tokens, metric, places, {("resid_post", model.card.n_layers - 1): keep})[2]


def _read(model: Model, plain: dict[int, Any], transport: dict[int, Any], shuffle: Any, block: slice) -> pd.DataFrame:
    """Read a block of positions of every layer through J, as it is, and through the permuted J."""
    from backend.maths import lens

    logits = logits_of(model, plain[max(plain)][block])
    final, top = lens.final_of(logits), logits.argmax(-1)
    frames = []
    for layer, stream in plain.items():
        h, J = stream[block], transport.get(layer)  # noqa: N806 - a matrix; the last layer has none
        read = [h, h, h] if J is None else [h @ J.T, h, h @ J[:, shuffle].T]
        ours, theirs, null = (lens.readout(logits_of(model, x), final, top, 1) for x in read)
        kls = {name: r.kl_to_final.double().cpu().numpy() for name, r in
               (("kl_to_final", ours), ("logit_kl_to_final", theirs), ("null_kl", null))}
        ids = {"top_id": ours.top_ids[:, 0], "logit_top_id": theirs.top_ids[:, 0], "final_rank": ours.target_rank}
        frames.append(pd.DataFrame({"layer": layer, "pos": np.arange(block.start, block.stop)} | kls
                                   | {name: column.cpu().numpy() for name, column in ids.items()}))
    return pd.concat(frames)


@jacobian_lens.costs
def work(card: ModelCard, subject: Prompt, params: JacobianLensParams) -> Work:
    """A row with gradients per coordinate of the stream, one forward, and three unembeddings per layer."""
    plan, length = Plan(card), len(subject.tokens)
    for rows in parts(card.d_model, coordinates_that_fit(plan, length)):
        plan.call(rows, length, gradients=True)
    plan.call(1, length)
    gathered = 2 * plan.bytes(coordinates_that_fit(plan, length) * length, ["resid_post"])
    products = 3 * (card.n_layers + 1) * length * card.d_model * (card.d_vocab_out + card.d_model)
    held = gathered + 2 * plan.bytes(card.d_model, ["resid_post"]) + 8 * min(LOGIT_BYTES, 4 * length * card.d_vocab_out)
    return plan.total(held, 2 * products, SHORTER)


# ---------------------------------------------------------------- figures


@jacobian_lens.figure("Jacobian lens: predictions by layer and token")
def grid(table: pd.DataFrame, view: View) -> Any:
    """The Jacobian lens' top token in each cell, coloured by KL; the hover names the logit lens' token."""
    layers = sorted(table["layer"].unique())
    words = [label(view.vocab(int(t)), 7) for t in table["top_id"]]
    hover = [f"top: {w}<br>KL to final: {k:.3g} nats<br>rank of the final top: {r}<br>"
             f"logit lens: {label(view.vocab(int(t)))}, KL {o:.3g} nats" for w, k, r, t, o in
             zip(words, table["kl_to_final"], table["final_rank"], table["logit_top_id"],
                 table["logit_kl_to_final"], strict=True)]

    def block(column: Any) -> np.ndarray:
        return np.asarray(column).reshape(len(layers), -1)

    most = max(float(table[["kl_to_final", "logit_kl_to_final"]].to_numpy().max()), 1e-6)
    names = view.tokens or [str(i) for i in range(len(table) // len(layers))]
    return pixels(block(table["kl_to_final"]), x=names, y=layer_names(layers), x_title="position (token)",
                  y_title=LAYER, value="KL(final || lens) (nats)", limits=(0.0, most), text=block(words).tolist(),
                  hover=block(hover).tolist(), reverse_y=False, numbered_y=False)


@jacobian_lens.figure("KL to the final prediction")
def curves(table: pd.DataFrame, view: View) -> Any:
    """Mean over positions with bands of 2 standard errors; grey: J with permuted columns."""
    groups, drawn = table.groupby("layer"), []
    for column, words, colour in (("null_kl", "permuted J (null)", NULL_GREY),
                                  ("logit_kl_to_final", "logit lens", CATEGORIES[1]),
                                  ("kl_to_final", "Jacobian lens", CATEGORIES[0])):
        mean, se = groups[column].mean(), 2 * groups[column].sem().fillna(0)
        drawn.append(Line(words, mean.index.to_numpy(), mean, mean - se, mean + se, colour))
    figure = lines(drawn, x_title=LAYER, y_title="KL(final || lens), mean over positions (nats)")
    return figure.update_xaxes(**layer_axis(drawn[0].x))
