"""Which few directions of a site hold the variable that decides the answer?

Distributed alignment search: the activation h of the base prompt at one position of a point is given the coordinates of
the source prompt's in a subspace B [width, rank], h + B B^T (h_source - h), and B is learnt so that the base then says
the source's answer. Base and source are the two prompts of a pair, both ways round: under an interchange of the
variable the corrupted prompt should say `answer`, the clean one `distractor`. `accuracy`: share of interchanges, on
pairs held out from learning, after which the source's answer has a larger logit than the base's; `top`: after which it
is the most likely token. Conditions: `none` (no interchange: as the model answers), `learnt`, `random` (a random
subspace of that rank), `random, as far` (the same, moved as far as the learnt one moves: is it the direction or the
push?), `whole` (everything at the site: what B cannot exceed by much), `random targets` (learnt and judged on targets
drawn by a coin: chance is 0.5). The search can only find what it is shown: a subspace may follow whatever these pairs
change together.

[low, high] is a 95 % bootstrap interval of the mean over held-out pairs. Truth: a subspace as wide as the site is the
patch of the whole site. Cost, per layer: 2 epochs forwards with gradients over the pairs learnt from, and 5 + 2 draws
forwards over all.
Source: Geiger et al. (2023), Finding Alignments Between Interpretable Causal Variables and Distributed Neural
Representations; Makelov et al. (2023), Is This the Subspace You Are Looking For? (what a found subspace can mean).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _causal
from backend.analyses._units import bootstrap, layer_of
from backend.analyses._work import Plan, parts
from backend.contract import Axis, Described, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines

CONDITIONS = ("none", "learnt", "random", "random, as far", "whole", "random targets")
GREY = {"none": "solid", "random": "dot", "random, as far": "dash", "random targets": "dashdot"}


COLUMNS = ["layer", "condition", "accuracy", "accuracy_low", "accuracy_high", "top", "learnt_accuracy", "final_loss",
           "rank", "n"]  # fmt: skip


class InterchangeParams(Params):
    """Which site, how many directions, and how they are learnt."""

    point: Literal["resid_pre", "resid_post", "attn_out", "mlp_out"] = Field(
        "resid_post", description="where in the layer the activation is interchanged")
    layer: int = Field(-1, ge=-1, le=1000, description="layer of the site; -1: every layer on its own")
    pos: int = Field(-1, ge=-8192, le=8191, description="position of the site; negative: counted from the end")
    rank: int = Field(1, ge=1, le=1024, description="directions of the subspace")
    epochs: int = Field(20, ge=1, le=500, description="passes over the pairs that are learnt from")
    lr: float = Field(0.02, gt=0, le=1, description="learning rate of the rotation")
    held_out: float = Field(0.5, ge=0.1, le=0.9, description="share of the pairs that the accuracy is measured on")
    draws: int = Field(5, ge=1, le=50, description="random subspaces of each control")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of split, first rotation and controls")


@dataclass(frozen=True)
class Case:
    """Interchanges, two per pair: tokens [row, pos], each row's own as many as its `lengths`, what source and base
    call for [row], and whose they are."""

    base: Any
    source: Any
    target: Any
    other: Any
    lengths: Any
    pair: np.ndarray

    def part(self, which: Any) -> Case:
        """Return some of the rows."""
        return Case(self.base[which], self.source[which], self.target[which], self.other[which], self.lengths[which],
                    self.pair[which])  # fmt: skip


@analysis(
    version=1, group="Causal", title="Interchange of a subspace",
    asks="Which few directions of a site hold the variable that decides the answer?",
    subject=Pairs, params=InterchangeParams, needs=["gradients"],
    axes=[Axis("layer", "layer of the site, 0-based"),
          Axis("condition", "none, learnt, random, random (as far), whole, random targets", kind="str")],
    values=[
        Value("accuracy", "share of held-out interchanges after which the source's answer beats the base's"),
        Value("accuracy_low", "lower end of its 95 % interval over held-out pairs"),
        Value("accuracy_high", "upper end of its 95 % interval over held-out pairs"),
        Value("top", "share of them after which the source's answer is the most likely token"),
        Value("learnt_accuracy", "accuracy on the pairs that were learnt from"),
        Value("final_loss", "cross-entropy in the last epoch of learning; NULL where nothing is learnt", "nats"),
        Value("rank", "directions that are interchanged", kind="int"),
        Value("n", "held-out pairs", kind="int"),
    ],
)  # fmt: skip
def interchange(model: Model, subject: Pairs, params: InterchangeParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, condition)."""
    case, learn, held = _cases(model, subject, params)
    layers = range(model.card.n_layers) if params.layer < 0 else [layer_of(model, params.layer, "The site")]
    width = model.card.d_model
    if params.rank > width:
        raise BadInput(f"{params.rank} directions", f"the site has {width}", "Lower the rank")
    rows = []
    for at, layer in enumerate(layers):
        progress(at / len(layers), f"Layer {layer}: learning the rotation")
        for name, right, loss, rank in _layer(model, case, learn, params, (params.point, layer)):
            rows.append({"layer": layer, "condition": name, **_row(right, case, held, params.seed), "final_loss": loss,
                         "rank": rank, "n": len(set(case.pair[held]))})  # fmt: skip
    return pd.DataFrame(rows)[COLUMNS]


def _cases(model: Model, subject: Pairs, params: InterchangeParams) -> tuple[Case, np.ndarray, np.ndarray]:
    """Return all interchanges and which are learnt from and held out. Raises BadInput where that cannot be."""
    import torch

    length, n = _length(model, subject), len(subject.pairs)
    shortest = min(subject.by_length())
    if not -shortest <= params.pos < shortest:
        raise BadInput(f"Position {params.pos}", f"a prompt has {shortest} tokens", "Choose one of them")
    padded = {name: [(*getattr(p, name), *[0] * (length - len(p.clean))) for p in subject.pairs]
              for name in ("clean", "corrupted")}  # fmt: skip
    clean, corrupted, answer, distractor, lengths = (torch.tensor(values, device=model.card.device) for values in (
        *padded.values(), *([getattr(p, name) for p in subject.pairs] for name in ("answer", "distractor")),
        [len(p.clean) for p in subject.pairs]))  # fmt: skip
    both = [torch.cat(two) for two in ((corrupted, clean), (clean, corrupted), (answer, distractor),
                                       (distractor, answer), (lengths, lengths))]  # fmt: skip
    case = Case(both[0], both[1], both[2], both[3], both[4], np.tile(np.arange(n), 2))
    chosen = np.random.default_rng(params.seed).permutation(n)[: _n_held(n, params)]
    held = np.isin(case.pair, chosen)
    return case, np.flatnonzero(~held), np.flatnonzero(held)


def _n_held(n: int, params: InterchangeParams) -> int:
    return min(n - 1, max(1, round(n * params.held_out)))


def _length(model: Described, subject: Pairs) -> int:
    """Return the longest prompt's tokens; shorter ones are padded at their end, which a causal model does not see."""
    lengths = sorted(subject.by_length())
    if len(subject.pairs) < 2:
        raise BadInput("Learning an interchange", "there is one pair", "Use two pairs or more")
    if len(lengths) > 1 and "causal" not in model.card.capabilities:
        found = f"prompts of {lengths[0]} to {lengths[-1]} tokens, and this model sees what follows"
        raise BadInput("Learning an interchange from these pairs", found, "Use pairs of one length")
    return lengths[-1]


Found = tuple[str, np.ndarray, float, int]


def _layer(model: Model, case: Case, learn: np.ndarray, params: InterchangeParams, place: tuple[str, int]
           ) -> Iterator[Found]:  # fmt: skip
    """Yield (condition, [0: beats the base's answer, 1: most likely] by row, last loss, rank) of one site."""
    import torch

    width, dice = model.card.d_model, np.random.default_rng(params.seed + 1)
    source = _at_source(model, case, place, params.pos)

    def told(move: Callable[[Any, Any], Any] | None, case: Case = case) -> np.ndarray:
        return _told(model, case, source, place, params.pos, move)

    yield "none", told(None), float("nan"), 0
    basis, loss = _learn(model, case.part(learn), place, params)
    learnt = _within(basis)
    yield "learnt", told(learnt), loss, params.rank
    shape = (params.draws, width, params.rank)
    drawn = [torch.linalg.qr(torch.from_numpy(g))[0].to(source) for g in dice.standard_normal(shape)]
    yield "random", np.mean([told(_within(b)) for b in drawn], 0), float("nan"), params.rank
    yield "random, as far", np.mean([told(_as_far(_within(b), learnt)) for b in drawn], 0), float("nan"), params.rank
    yield "whole", told(lambda base, new: new), float("nan"), width
    coin = torch.from_numpy(dice.random(len(case.pair)) < 0.5).to(case.target.device)
    swapped = Case(case.base, case.source, torch.where(coin, case.other, case.target),
                   torch.where(coin, case.target, case.other), case.lengths, case.pair)  # fmt: skip
    basis, loss = _learn(model, swapped.part(learn), place, params)
    yield "random targets", told(_within(basis), swapped), loss, params.rank


def _learn(model: Model, case: Case, place: tuple[str, int], params: InterchangeParams) -> tuple[Any, float]:
    basis, losses = model.aligned_subspace(
        place, case.base, case.source, case.target, case.lengths, position=params.pos, rank=params.rank,
        epochs=params.epochs, lr=params.lr, seed=params.seed, rows=_step(model, case.base.shape[1]))  # fmt: skip
    return basis, losses[-1]


def _step(model: Described, length: int) -> int:
    """Return how many interchanges are in a step of learning."""
    return min(64, _causal.rows_at_once(model, length, gradients=True))


def _within(basis: Any) -> Callable[[Any, Any], Any]:
    return lambda base, new: base + ((new - base) @ basis.to(base)) @ basis.to(base).T


def _as_far(move: Callable[[Any, Any], Any], other: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return `move`, each activation moved as far as `other` moves it."""

    def moved(base: Any, new: Any) -> Any:
        step, far = move(base, new) - base, (other(base, new) - base).norm(dim=-1, keepdim=True)
        return base + step * far / step.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    return moved


def _at_source(model: Model, case: Case, place: tuple[str, int], pos: int) -> Any:
    """Return the sources' activations at the site [row, width]."""
    import torch

    step = _causal.rows_at_once(model, case.source.shape[1])
    parts_ = zip(case.source.split(step), (pos % case.lengths).split(step), strict=True)
    return torch.cat([model.capture(some, [place[0]], [place[1]])[place][torch.arange(len(some)), at]
                      for some, at in parts_])  # fmt: skip


def _told(
    model: Model, case: Case, source: Any, place: tuple[str, int], pos: int, move: Callable[[Any, Any], Any] | None
) -> np.ndarray:
    """Return [2, row]: does the source's answer beat the base's, and is it the most likely, after the move."""
    found = []
    step = _causal.rows_at_once(model, case.base.shape[1])
    for start in range(0, len(case.base), step):
        some = slice(start, start + step)
        edits = {} if move is None else {place: _edit(move, source[some], pos % case.lengths[some])}
        logits = model.run_with(case.base[some], edits)
        logits = logits[range(len(logits)), case.lengths[some] - 1]
        ours, theirs = (logits.gather(1, t[some, None])[:, 0] for t in (case.target, case.other))
        found.append(np.stack([(ours > theirs).cpu().numpy(), (logits.argmax(-1) == case.target[some]).cpu().numpy()]))
    return np.concatenate(found, 1)


def _edit(move: Callable[[Any, Any], Any], new: Any, at: Any) -> Callable[[Any], Any]:
    def edit(acts: Any) -> Any:
        rows = range(len(acts))
        acts[rows, at] = move(acts[rows, at], new)
        return acts

    return edit


def _row(right: np.ndarray, case: Case, held: np.ndarray, seed: int) -> dict[str, Any]:
    """Average over the two ways round of each pair: the pair is what was drawn."""
    by_pair = pd.DataFrame({"pair": case.pair[held], "right": right[0][held]}).groupby("pair")["right"].mean()
    low, high = bootstrap(by_pair.to_numpy(), seed)
    learnt = np.delete(right[0], held)
    return {"accuracy": by_pair.mean(), "accuracy_low": low, "accuracy_high": high, "top": right[1][held].mean(),
            "learnt_accuracy": learnt.mean()}  # fmt: skip


@interchange.costs
def work(card: ModelCard, subject: Pairs, params: InterchangeParams) -> Work:
    """Per layer: the sources, learning twice, and a run of all interchanges per condition and draw."""
    plan, n = Plan(card), len(subject.pairs)
    length = _length(plan, subject)
    layers = card.n_layers if params.layer < 0 else 1
    learn, step = 2 * (n - _n_held(n, params)), _step(plan, length)
    for some in parts(learn, step):
        plan.call(some, length, 2 * layers)  # the sources of what is learnt from
        plan.call(some, length, 2 * layers * params.epochs, gradients=True)
    for some in parts(2 * n, _causal.rows_at_once(plan, length)):
        plan.call(some, length, layers * (5 + 2 * params.draws))
    steps = 2 * layers * params.epochs * len(parts(learn, step))
    return plan.total(8 * 2 * n * card.d_model * 4, steps * 4.0 * card.d_model * params.rank**2)


# ---------------------------------------------------------------- figures


@interchange.figure("Interchange accuracy")
def accuracy(table: pd.DataFrame, view: View) -> Any:
    """One layer: a bar per condition with its interval; several: a curve per condition over layers. Grey: controls."""
    words = "interchange accuracy on held-out pairs"
    if table["layer"].nunique() == 1:
        return _bars(table, words)
    drawn = []
    for name in CONDITIONS:
        rows = table[table["condition"] == name].sort_values("layer")
        colour = NULL_GREY if name in GREY else CATEGORIES[1 if name == "whole" else 0]
        drawn.append(Line(name, rows["layer"], rows["accuracy"], rows["accuracy_low"].fillna(rows["accuracy"]),
                          rows["accuracy_high"].fillna(rows["accuracy"]), colour=colour))  # fmt: skip
    figure = lines(drawn, x_title="layer", y_title=words)
    for name, dash in GREY.items():  # controls are grey, told apart by their dashes
        figure.update_traces(line={"dash": dash}, selector={"name": name, "mode": "lines+markers"})
    return figure.update_yaxes(range=[-0.03, 1.03]).update_xaxes(tickmode="array", tickvals=sorted(set(table["layer"])))


def _bars(table: pd.DataFrame, words: str) -> Any:
    hover = [f"{r['condition']}: {r['accuracy']:.3g} [{r['accuracy_low']:.3g}, {r['accuracy_high']:.3g}]<br>"
             f"most likely token: {r['top']:.3g}<br>on the pairs learnt from: {r['learnt_accuracy']:.3g}<br>"
             f"{r['rank']} directions, {r['n']} held-out pairs" for r in table.to_dict("records")]  # fmt: skip
    errors = table["accuracy_high"] - table["accuracy"], table["accuracy"] - table["accuracy_low"]
    return bars(table["condition"].tolist(), table["accuracy"], errors=errors[0], errors_below=errors[1], hover=hover,
                colours=[NULL_GREY if c in GREY else CATEGORIES[1 if c == "whole" else 0] for c in table["condition"]],
                x_title="what is interchanged", y_title=words)  # fmt: skip
