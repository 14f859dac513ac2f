"""Can a property of the tokens be read off a few coordinates of a point?

A k-sparse linear probe: on part of the rows, the k coordinates of the activation whose class means lie farthest apart
in standard deviations are chosen and a logistic regression is fitted on them; it is judged on the other rows, held out
whole because tokens of one row are alike. The property is that the token here, the one before or the next one is
`token`, or that the token occurred earlier in the row. `accuracy`, `f1` and `auc` (area under ROC) are of the held-out
tokens; `majority` is what always guessing the more frequent answer would score.

Controls, grey: `shuffled labels`, the whole procedure with the labels of whole rows exchanged between rows, so that
what follows from the position alone stays and the rest goes; `random coordinates`, k drawn at random instead of chosen.
Decodable is not used: compare with an ablation of the coordinates. [low, high] is a 95 % bootstrap interval of the
accuracy over held-out rows (controls: over rows of all draws; random coordinates: over draws). Classes are weighted
alike. Cost: one forward over the rows; per layer and k a small fit, and one per draw of either control.
Source: Gurnee et al. (2023), Finding Neurons in a Haystack: Case Studies with Sparse Probing; Hewitt and Liang (2019),
Designing and Interpreting Probes with Control Tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._units import batches, bootstrap, layer_of, rows_at_once
from backend.analyses._work import FEWER_ROWS, Plan, parts
from backend.contract import Axis, Corpus, Model, ModelCard, Params, Progress, Rows, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, label, lines

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONDITIONS = ("probe", "shuffled labels", "random coordinates")
COLUMNS = ["layer", "k", "condition", "accuracy", "accuracy_low", "accuracy_high", "f1", "auc", "majority", "n",
           "n_rows", "token", "coordinates"]  # fmt: skip
#: seconds that one fit takes per example, and at least, measured (4,096 examples, k = 1 to 16)
FIT_SECONDS, FIT_LEAST = 1e-5, 0.01


class SparseProbingParams(Params):
    """Which point, which property, and the controls."""

    point: Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z"] = Field(
        "resid_post", description="whose coordinates are read (mlp_post: neurons)")
    layer: int = Field(-1, ge=-1, le=1000, description="layer of the point; -1: every layer on its own")
    property: Literal["token here", "token before", "next token", "seen before"] = Field(
        "token before", description="what is to be read: which token stands here, before or next, or whether it is new")
    token: int = Field(-1, ge=-1, le=1_000_000, description="the token asked about; -1: the rows' most frequent one")
    most: int = Field(8, ge=1, le=256, description="coordinates at most: 1, 2, 4, ... up to this")
    held_out: float = Field(0.3, ge=0.1, le=0.9, description="share of the rows that the probe is judged on")
    shuffles: int = Field(3, ge=1, le=50, description="shuffles of the labels between rows")
    draws: int = Field(3, ge=1, le=50, description="random choices of coordinates")
    l2: float = Field(0.01, gt=0, le=100, description="penalty on the probe's weights")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the split and of the controls")


@analysis(
    version=1, group="Neurons & features", title="Sparse probing",
    asks="Can a property of the tokens be read off a few coordinates of a point?",
    subject=Corpus, params=SparseProbingParams,
    axes=[Axis("layer", "layer of the point, 0-based"), Axis("k", "coordinates that the probe reads"),
          Axis("condition", "probe, shuffled labels, random coordinates", kind="str")],
    values=[
        Value("accuracy", "share of held-out tokens that are told right"),
        Value("accuracy_low", "lower end of its 95 % interval"),
        Value("accuracy_high", "upper end of its 95 % interval"),
        Value("f1", "harmonic mean of precision and recall on held-out tokens"),
        Value("auc", "area under the ROC curve on held-out tokens; 0.5 is chance"),
        Value("majority", "accuracy of always guessing the more frequent answer"),
        Value("n", "held-out tokens (of all draws)", kind="int"),
        Value("n_rows", "held-out rows (of all draws); random coordinates: draws", kind="int"),
        Value("token", "the token asked about; -1: none", kind="int"),
        Value("coordinates", "those chosen, the strongest first, with the sign of their weight", kind="str"),
    ],
)  # fmt: skip
def sparse_probing(model: Model, subject: Rows, params: SparseProbingParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, k, condition)."""
    tokens = np.asarray(subject.tokens)
    labels, at, token = _labels(tokens, params)
    layers = range(model.card.n_layers) if params.layer < 0 else [layer_of(model, params.layer, "A probe")]
    acts = _activations(model, subject, params.point, list(layers), at, progress)
    dice, rows = np.random.default_rng(params.seed), []
    shuffled = [labels[_moved(dice, len(labels))] for _ in range(params.shuffles)]
    for done, layer in enumerate(layers):
        progress(0.2 + 0.8 * done / len(layers), f"Layer {layer}: fitting probes")
        for row in _layer(model, acts[layer], labels, shuffled, params):
            rows.append({"layer": layer, "token": token, **row})
    frame = pd.DataFrame(rows)[COLUMNS]
    return frame.sort_values(["layer", "k"], kind="stable", ignore_index=True)


def _labels(tokens: np.ndarray, params: SparseProbingParams) -> tuple[np.ndarray, slice, int]:
    """Return (labels [row, pos], the positions that have one, the token asked about or -1)."""
    at = {"token before": slice(1, None), "next token": slice(None, -1)}.get(params.property, slice(None))
    if params.property == "seen before":
        earlier = np.tril(np.ones((tokens.shape[1],) * 2, bool), -1)
        return ((tokens[:, :, None] == tokens[:, None, :]) & earlier).any(2), at, -1
    token = params.token if params.token >= 0 else int(np.bincount(tokens.ravel()).argmax())
    moved = {"token before": tokens[:, :-1], "next token": tokens[:, 1:]}.get(params.property, tokens)
    found = moved == token
    if found.any(1).sum() < 2 or (~found).any(1).sum() < 2:
        said = f"token {token} is {params.property.replace('token ', '')} in {int(found.any(1).sum())} of {len(found)}"
        raise BadInput("A probe for this token", f"{said} rows", "Choose a token of more rows, or more rows")
    return found, at, token


def _moved(dice: np.random.Generator, n: int) -> np.ndarray:
    """Return an order of n rows that leaves no row in its place."""
    order, moved = dice.permutation(n), np.empty(n, int)
    moved[order] = np.roll(order, 1)
    return moved


def _activations(
    model: Model, subject: Rows, point: str, layers: list[int], at: slice, progress: Progress
) -> dict[int, Any]:  # fmt: skip
    """Return {layer: [example, coordinate]}, rows one after the other; heads of z are joined."""
    import torch

    found: dict[int, list[Any]] = {layer: [] for layer in layers}
    for start, tokens in batches(model, subject, _width(model.card, point) * len(layers)):
        progress(0.2 * start / len(subject.tokens), f"Rows {start} on")
        seen = model.capture(tokens, [point], layers)
        for layer in layers:
            found[layer].append(seen[point, layer][:, at].flatten(2).float().cpu())
    return {layer: torch.cat(some).flatten(0, 1) for layer, some in found.items()}


def _width(card: ModelCard, point: str) -> int:
    return {"z": card.n_heads * card.d_head, "mlp_post": card.d_mlp}.get(point, card.d_model)


def _layer(
    model: Model, acts: Any, labels: np.ndarray, shuffled: list[np.ndarray], params: SparseProbingParams
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one layer: the probe and its two controls at every k."""
    import torch

    ks = [k for k in KS if k <= min(params.most, acts.shape[1])]
    groups = torch.arange(len(labels)).repeat_interleave(labels.shape[1])

    def fitted(y: np.ndarray, random: int) -> list[Any]:
        told = torch.from_numpy(y.ravel())
        return model.sparse_probes(acts, told, groups, ks, held_out=params.held_out, l2=params.l2, random=random,
                                   seed=params.seed)  # fmt: skip

    probes, controls = fitted(labels, params.draws), [fitted(y, 0) for y in shuffled]
    for at, probe in enumerate(probes):
        yield {"condition": "probe", **_judged([probe], groups, [labels], params.seed), "coordinates": _said(probe)}
        null = _judged([c[at] for c in controls], groups, shuffled, params.seed)
        yield {"condition": "shuffled labels", **null, "coordinates": "chosen anew for each shuffle"}
        drawn, (low, high) = probe.random, bootstrap(probe.random["accuracy"], params.seed)
        yield {**_judged([probe], groups, [labels], params.seed), "condition": "random coordinates",
               **{name: float(np.mean(v)) if v else np.nan for name, v in drawn.items()}, "accuracy_low": low,
               "accuracy_high": high, "n_rows": len(drawn["accuracy"]), "coordinates": "drawn at random"}


def _judged(probes: list[Any], groups: Any, labels: list[np.ndarray], seed: int) -> dict[str, Any]:
    """Average probes over held-out tokens; the interval is over held-out rows, whose tokens are alike."""
    rows = [pd.DataFrame({"row": groups[p.held_out].numpy(), "right": p.right.numpy(), "label": y.ravel()[p.held_out]})
            for p, y in zip(probes, labels, strict=True)]  # fmt: skip
    by_row = np.concatenate([r.groupby("row")["right"].mean() for r in rows])
    low, high = bootstrap(by_row, seed)
    often = float(np.mean([r["label"].mean() for r in rows]))
    return {"k": probes[0].k, "accuracy": float(by_row.mean()), "accuracy_low": low, "accuracy_high": high,
            "f1": float(np.mean([p.f1 for p in probes])), "auc": float(np.mean([p.auc for p in probes])),
            "majority": max(often, 1 - often), "n": sum(map(len, rows)), "n_rows": len(by_row)}  # fmt: skip


def _said(probe: Any, most: int = 16) -> str:
    """Name the coordinates, the largest weight first."""
    order = np.argsort(-np.abs(probe.weights), kind="stable")
    names = [f"{'+' if probe.weights[i] > 0 else '−'}{probe.chosen[i]}" for i in order[:most]]
    return " ".join(names) + (f" and {len(order) - most} more" if len(order) > most else "")


@sparse_probing.costs
def work(card: ModelCard, subject: Corpus, params: SparseProbingParams) -> Work:
    """One forward per batch of rows; per layer and k a fit, and one per draw of a control."""
    plan, length = Plan(card), min(subject.length, card.n_ctx)
    layers = card.n_layers if params.layer < 0 else 1
    width = _width(card, params.point)
    for rows in parts(subject.rows, rows_at_once(plan, length, width * layers)):
        plan.call(rows, length)
    examples, n_ks = subject.rows * length, sum(k <= min(params.most, width) for k in KS)
    fits = layers * (n_ks * (1 + params.draws) + (n_ks + 1) * params.shuffles + 1)
    return plan.total(examples * width * (4 * layers + 24), knobs=FEWER_ROWS,
                      solver_seconds=fits * max(FIT_LEAST, FIT_SECONDS * examples))  # fmt: skip


# ---------------------------------------------------------------- figures


@sparse_probing.figure("Held-out accuracy")
def accuracy(table: pd.DataFrame, view: View) -> Any:
    """Over layers with the most coordinates, or of one layer over k; grey: controls, and always the frequent answer."""
    token = int(table["token"].iloc[0])
    about = f"{view.params.get('property', 'label')}" + (f" {label(view.vocab(token))}" if token >= 0 else "")
    if table["layer"].nunique() > 1:
        shown, across, words = table[table["k"] == table["k"].max()], "layer", "layer"
        about += f"; {int(table['k'].max())} coordinates"
    else:
        shown, across, words = table, "k", "coordinates of the probe"
    drawn = []
    for name in CONDITIONS:
        rows = shown[shown["condition"] == name].sort_values(across)
        low, high = (rows[f"accuracy_{end}"].fillna(rows["accuracy"]) for end in ("low", "high"))
        colour = CATEGORIES[0] if name == "probe" else NULL_GREY
        hover = [f"{name}<br>{across} {r[across]}<br>accuracy {r['accuracy']:.3g}, F1 {r['f1']:.3g}, AUC {r['auc']:.3g}"
                 f"<br>{r['n']} tokens of {r['n_rows']} rows or draws<br>{r['coordinates']}"
                 for r in rows.to_dict("records")]  # fmt: skip
        drawn.append(Line(name, rows[across], rows["accuracy"], low, high, colour, hover))
    rows = shown[shown["condition"] == "probe"].sort_values(across)
    drawn.append(Line("the frequent answer", rows[across], rows["majority"], colour=NULL_GREY))
    figure = lines(drawn, x_title=words, y_title=f"held-out accuracy ({about})", log_x=across == "k")
    for name, dash in (("random coordinates", "dash"), ("the frequent answer", "dot")):
        figure.update_traces(line={"dash": dash}, selector={"name": name, "mode": "lines+markers"})
    ticks = sorted(set(shown[across]))
    return figure.update_xaxes(tickmode="array", tickvals=ticks, ticktext=[str(t) for t in ticks])
