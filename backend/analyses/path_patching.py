"""Which direct paths, head to head or head to logits, carry the difference between two prompts?

Of a sender head's output z only what reaches the receiver directly through the residual stream counts: every other
head's z and every MLP's output is frozen at its value in the run patched into (the corrupted run when denoising), the
sender's z is the other prompt's. To the logits: the logits of that frozen run. To a later head: the z that the receiver
computes in the frozen run (from all of its inputs, or from q, k or v alone, the other two frozen) is put into an
otherwise untouched run, from where it acts freely. Metric and `recovered` as in activation patching.

Exact for direct paths: a path through an MLP or a further head is none of them, so paths need not sum to the sender's
total effect. They do where nothing else stands between: a head of the last layer of a model without MLPs has its whole
effect on the path to the logits. k and v of grouped-query attention are read as the receiver alone would read them.
Null: grey marks paths within two standard errors of 0; 95 % bootstrap intervals over the pairs.
Cost: a forward per sender and pair, and one per path to a head: 9648 paths on 12 layers of 12 heads. `to` = auto asks
for all paths where these are at most 2048, else for those to the logits: begin there, then name a receiver.
Source: Wang et al. (2022), Interpretability in the Wild, appendix B; Goldowsky-Dill et al. (2023), Localizing Model
Behavior with Path Patching.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._causal import Batch, Edits, batches, both_sides, copies
from backend.analyses._effects import RECOVERED, hovers, records, recovered_columns, shown, strongest, symmetric
from backend.analyses._work import FEWER_PAIRS, Plan
from backend.contract import Axis, Described, Model, ModelCard, Pairs, Params, Progress, View, analysis
from backend.costs import Work
from backend.errors import BadInput, Unfit
from backend.figures import pixels

Head = tuple[int, int]
MANY_PATHS = 2048  # above which `auto` leaves out paths to heads
MOST_PATHS = 16_384
WIDEST = 48  # receivers that a matrix of paths can show


class PathPatchingParams(Params):
    """Where paths end, what of the receiver reads them, and in which direction values are patched."""

    to: Literal["auto", "all", "heads", "logits"] = Field(
        "auto", description="paths to later heads, to the logits, or all; auto: all where they are at most 2048, else "
        "to the logits"
    )  # fmt: skip
    receiver_layer: int = Field(-1, ge=-1, le=511, description="only heads of this layer receive; -1: all")
    receiver_head: int = Field(-1, ge=-1, le=511, description="only this head of each layer receives; -1: all")
    input: Literal["q k v", "q", "k", "v"] = Field("q k v", description="inputs of the receiver that the path reaches")
    direction: Literal["denoising", "noising"] = Field(
        "denoising", description="denoising: clean values into the corrupted run; noising: corrupted into the clean run"
    )
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the pairs")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the bootstrap")


@dataclass(frozen=True)
class Path:
    """A sender head and its receiver: a later head, or None for the logits."""

    sender: Head
    receiver: Head | None


@analysis(
    version=1, group="Causal", title="Path patching",
    asks="Which direct paths, head to head or head to logits, carry the difference between two prompts?",
    subject=Pairs, params=PathPatchingParams,
    axes=[Axis("sender_layer", "layer of the sending head, 0-based"), Axis("sender_head", "the sending head, 0-based"),
          Axis("receiver_layer", "layer of the receiving head; -1: the logits"),
          Axis("receiver_head", "the receiving head; -1: the logits")],
    values=RECOVERED,
)  # fmt: skip
def path_patching(model: Model, subject: Pairs, params: PathPatchingParams, progress: Progress) -> pd.DataFrame:
    """Return one row per path."""
    paths = paths_of(model, params)
    clean, corrupted = both_sides(model, subject)
    patched, groups = np.empty((len(paths), len(clean))), batches(model, subject)
    for i, batch in enumerate(groups):
        def said(done: int, i: int = i) -> None:
            progress((i + done / len(paths)) / len(groups), f"{done} of {len(paths)} paths")

        patched[:, batch.which] = patched_paths(model, batch, paths, params.input, params.direction, said)
    ends = [p.receiver or (-1, -1) for p in paths]
    where = {"sender_layer": [p.sender[0] for p in paths], "sender_head": [p.sender[1] for p in paths],
             "receiver_layer": [e[0] for e in ends], "receiver_head": [e[1] for e in ends]}  # fmt: skip
    return pd.DataFrame(
        where | recovered_columns(patched, clean, corrupted, params.direction, params.draws, params.seed)
    )


def paths_of(model: Described, params: PathPatchingParams) -> list[Path]:
    """Return the paths asked for. Raises BadInput for too many or no such receiver, Unfit where there is none."""
    card = model.card
    for name, most in (("receiver_layer", card.n_layers), ("receiver_head", card.n_heads)):
        if (got := getattr(params, name)) >= most:
            raise BadInput(f"{name} {got}", f"{card.spec} has 0..{most - 1}", "Choose one of them, or -1 for all")
    heads = [(layer, head) for layer in range(card.n_layers) for head in range(card.n_heads)]
    ends = [h for h in heads if params.receiver_layer in (-1, h[0]) and params.receiver_head in (-1, h[1])]
    inside = [Path(s, r) for s in heads for r in ends if s[0] < r[0]]
    to = params.to
    if to == "auto":
        to = "all" if len(inside) + len(heads) <= MANY_PATHS else "logits"
    paths = inside if to != "logits" else []
    paths += [Path(s, None) for s in heads if to != "heads"]
    if not paths:
        raise Unfit("Paths to heads", "no layer stands before the receivers", "Choose later receivers, or the logits")
    if len(paths) > MOST_PATHS:
        todo = "Give receiver_layer or receiver_head, or to = logits"
        raise BadInput(f"{len(paths)} paths", f"at most {MOST_PATHS} at once", todo)
    return sorted(paths, key=lambda p: (p.sender, p.receiver is None, p.receiver or (0, 0)))


def patched_paths(model: Model, batch: Batch, paths: Sequence[Path], reads: str, direction: str,
                  said: Callable[[int], None] = lambda done: None) -> np.ndarray:  # fmt: skip
    """Return logit_diff [path, pair] with each path patched on its own."""
    found, done = np.empty((len(paths), len(batch.which))), 0
    frozen = Frozen(model, batch, direction, reads)
    senders = list(dict.fromkeys(p.sender for p in paths))
    for _, some in copies(model, batch, senders):
        to_logits, live = frozen.send(some)
        mine = [i for i, p in enumerate(paths) if p.sender in some]
        ends = [i for i in mine if paths[i].receiver is None]
        found[ends] = to_logits[[some.index(paths[i].sender) for i in ends]]
        onwards = [i for i in mine if paths[i].receiver is not None]
        for start, part in copies(model, batch, onwards):
            ways = [(some.index(paths[i].sender), *(paths[i].receiver or (0, 0))) for i in part]
            found[list(part)] = frozen.receive(ways, live)
            said(done + start + len(part))
        said(done := done + len(mine))
    return found


class Frozen:
    """The run patched into, with every head and MLP held at its value there."""

    def __init__(self, model: Model, batch: Batch, direction: str, reads: str):
        self.model, self.batch, self.n = model, batch, len(batch.which)
        self.tokens, other = batch.sides(direction)
        self.fixed = [x for x in "qkv" if reads != "q k v" and x != reads]
        mlp = ["mlp_out"] if "mlp" in model.card.capabilities else []
        self.base = model.capture(self.tokens, ["z", *mlp, *self.fixed])
        self.source = model.capture(other, ["z"])

    def send(self, senders: Sequence[Head]) -> tuple[np.ndarray, dict[int, Any]]:
        """Patch each sender, all else frozen.

        Returns (logit_diff [sender, pair] at the frozen end, {layer: the z that its heads would compute, live,
        [sender * pair, pos, head, d_head]}).
        """
        live: dict[int, Any] = {}
        edits: Edits = {key: self._held(value) for key, value in self.base.items() if key[0] != "z"}
        for layer in range(self.model.card.n_layers):
            edits["z", layer] = self._sent(senders, layer, live)
        logits = self.model.run_with(self.tokens.repeat(len(senders), 1), edits, last=True)
        return self._logit_diff(logits), live

    def _held(self, value: Any) -> Callable[[Any], Any]:
        return lambda tensor: value.repeat(len(tensor) // self.n, *[1] * (value.ndim - 1))

    def _sent(self, senders: Sequence[Head], layer: int, live: dict[int, Any]) -> Callable[[Any], Any]:
        def edit(z: Any) -> Any:
            live[layer] = z.clone()
            z = self._held(self.base["z", layer])(z)
            for i, (at, head) in enumerate(senders):
                if at == layer:
                    z[i * self.n : (i + 1) * self.n, :, head] = self.source["z", layer][:, :, head]
            return z

        return edit

    def receive(self, ways: Sequence[tuple[int, int, int]], live: dict[int, Any]) -> np.ndarray:
        """Run on, nothing frozen, with one receiver's z per copy: ways are (which sender, layer, head)."""

        def edit_of(layer: int) -> Callable[[Any], Any]:
            def edit(z: Any) -> Any:
                for i, (sender, at, head) in enumerate(ways):
                    if at == layer:
                        rows = live[layer][sender * self.n : (sender + 1) * self.n]
                        z[i * self.n : (i + 1) * self.n, :, head] = rows[:, :, head]
                return z

            return edit

        edits: Edits = {("z", layer): edit_of(layer) for layer in {at for _, at, _ in ways}}
        return self._logit_diff(self.model.run_with(self.tokens.repeat(len(ways), 1), edits, last=True))

    def _logit_diff(self, logits: Any) -> np.ndarray:
        return self.batch.logit_diff(logits).reshape(-1, self.n).cpu().numpy()


@path_patching.costs
def work(card: ModelCard, subject: Pairs, params: PathPatchingParams) -> Work:
    """Both sides, the frozen values, a row per sender and pair, and one per path to a head and pair."""
    plan, held = Plan(card), 0
    paths = paths_of(plan, params)
    onwards = Counter(p.sender for p in paths if p.receiver)
    senders = list(dict.fromkeys(p.sender for p in paths))
    for n, length in plan.batches(subject):
        plan.call(n, length, 2)
        plan.call(n, length, 2, last=True)
        done = 0
        for some in plan.copies(n, length, len(senders)):
            plan.call(some * n, length, last=True)
            plan.sweep(n, length, sum(onwards[s] for s in senders[done : done + some]))
            held = max(held, plan.bytes(n * length, ["z", "z", "mlp_out"]) + plan.bytes(some * n * length, ["z"]))
            done += some
    table = 8 * len(paths) * (2 * len(subject.pairs) + 40)
    return plan.total(held + table, knobs=f"{FEWER_PAIRS}, or name receiver_layer or receiver_head")


# ---------------------------------------------------------------- figures


def _head(layer: int, head: int) -> str:
    return f"L{layer}H{head}" if layer >= 0 else "logits"


def _ends(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the names of senders and receivers by row."""
    senders = [_head(r.sender_layer, r.sender_head) for r in records(table)]
    return senders, [_head(r.receiver_layer, r.receiver_head) for r in records(table)]


@path_patching.figure("Strongest paths")
def ranking(table: pd.DataFrame, view: View) -> Any:
    """The 24 paths that change logit_diff most, with standard errors; grey: within two standard errors of 0."""
    return strongest(table, [f"{s} → {r}" for s, r in zip(*_ends(table), strict=True)], "path")


@path_patching.figure("Paths from sender to receiver")
def matrix(table: pd.DataFrame, view: View) -> Any:
    """Sender by receiver, diverging around 0; of more than 48 receivers the strongest. Empty: no path leads there."""
    column, words = shown(table, view.params.get("direction", "denoising"))
    senders, receivers = _ends(table)
    drawn = table.assign(sender=senders, receiver=receivers, hover=hovers(table), strength=table["change"].abs())
    kept = drawn.groupby("receiver")["strength"].max().nlargest(WIDEST).index
    drawn = drawn[drawn["receiver"].isin(kept)]
    rows = list(dict.fromkeys(drawn["sender"]))
    order = [r for r in dict.fromkeys(sorted(drawn["receiver"], key=_order)) if r in kept]
    z, hover = (drawn.pivot(index="sender", columns="receiver", values=v).loc[rows, order] for v in (column, "hover"))
    return pixels(z.to_numpy(), x=order, y=rows, x_title="receiver", y_title="sender", value=words, diverging=True,
                  limits=symmetric(table[column], 1.0 if column == "effect" else 0.1), numbered_y=False,
                  hover=hover.fillna("no direct path").to_numpy())  # fmt: skip


def _order(receiver: str) -> tuple[int, ...]:
    """Sort heads by layer and number, the logits last."""
    return (1 << 20,) if receiver == "logits" else tuple(int(i) for i in receiver[1:].split("H"))
