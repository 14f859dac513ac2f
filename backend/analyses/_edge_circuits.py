"""Circuits of edges, run exactly: every edge outside carries what its sender writes on the corrupted prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from backend.analyses._causal import Batch, Edits, copies
from backend.analyses._edges import Receiver, Sender
from backend.analyses._work import Plan, parts
from backend.contract import Described, Model, Pairs

TOGETHER = 16  # circuits of like size that share a forward


def most_slots(model: Described) -> int:
    """Return how many copies of the pairs a circuit can need: readings of q, k and v in a layer that may differ."""
    heads, mlps = model.card.n_heads, int("mlp" in model.card.capabilities)
    senders = 1 + (model.card.n_layers - 1) * (heads + mlps)
    return min(3 * heads, 2 ** min(senders, 62))  # the last layer hears the most


class Cut:
    """A batch whose receivers read, of every sender, its own write along kept edges and its corrupted one along others.

    Own writes are those of the circuit's run: cut edges before the sender have changed them already. Exact: q, k and v
    of one head may read different streams, so each circuit runs in as many copies of the pairs as a layer has
    different readings, and every head takes q, k and v from the copy that read its own.
    """

    def __init__(self, model: Model, batch: Batch, edges: Sequence[tuple[Sender, Receiver]], w_o: list[Any]):
        self.model, self.batch, self.w_o = model, batch, w_o
        self.senders = list(dict.fromkeys(s for s, _ in edges))
        self.receivers = list(dict.fromkeys(r for _, r in edges))
        self.at = [(self.receivers.index(r), self.senders.index(s)) for s, r in edges]
        self.mlp = "mlp" in model.card.capabilities
        points = ["z", "resid_pre", "resid_post", *(["mlp_out", "resid_mid"] if self.mlp else [])]
        self.corrupted = model.capture(batch.corrupted, points) | model.capture(batch.corrupted, ["embed"])
        self.embed = model.capture(batch.clean, ["embed"])["embed", 0] - self.corrupted["embed", 0]

    def logit_diff(self, kept: np.ndarray) -> np.ndarray:
        """Return logit_diff [circuit, pair] of circuits [circuit, edge] of bool."""
        out, hears = np.empty((len(kept), len(self.batch.which))), self._hears(kept)
        for start, some in copies(self.model, self.batch, range(len(kept)), self._slots(hears)):
            out[start : start + len(some)] = self._run(hears[list(some)])
        return out

    def _hears(self, kept: np.ndarray) -> np.ndarray:
        """Return [circuit, receiver, sender] of bool."""
        hears = np.zeros((len(kept), len(self.receivers), len(self.senders)), bool)
        rows, columns = zip(*self.at, strict=True)
        hears[:, rows, columns] = kept
        return hears

    def _of_layer(self, layer: int) -> list[int]:
        return [i for i, r in enumerate(self.receivers) if r.layer == layer and r.reads in "qkv"]

    def _slots(self, hears: np.ndarray) -> int:
        """Return how many copies the circuit with most different readings in one layer needs."""
        layers = range(self.model.card.n_layers)
        return max(len(np.unique(h[self._of_layer(n)], axis=0)) for h in hears for n in layers)

    def _run(self, hears: np.ndarray) -> np.ndarray:
        import torch

        run = _CutRun(self, hears, self._slots(hears))
        tokens = self.batch.clean.repeat(len(hears) * run.slots, 1)
        logits = self.model.run_with(tokens, run.edits())
        first = logits.reshape(len(hears), run.slots, len(self.batch.which), *logits.shape[1:])[:, 0]
        with torch.no_grad():
            return self.batch.logit_diff(first.reshape(-1, *logits.shape[1:])).reshape(len(hears), -1).cpu().numpy()


class _CutRun:
    """One forward of some circuits: rows are [circuit, slot, pair]; `moved`: writes of each sender minus corrupted."""

    def __init__(self, cut: Cut, hears: np.ndarray, slots: int):
        self.cut, self.hears, self.slots, self.stream = cut, hears, slots, None
        self.moved = [cut.embed[None].expand(len(hears), *cut.embed.shape)]

    def edits(self) -> Edits:
        """Return the edits, heard in the order of the forward."""
        found: Edits = {}
        for n in range(self.cut.model.card.n_layers):
            own, slot_of = self._readings(n)
            found["resid_pre", n] = partial(self._split, own, n)
            found |= {(x, n): partial(self._gather, slot_of[x]) for x in "qkv"}
            found["z", n] = partial(self._heads, n)
            if self.cut.mlp:
                found["attn_out", n], found["mlp_out", n] = partial(self._into_mlp, n), partial(self._mlp, n)
        found["resid_post", n] = partial(self._into_logits, n)
        return found

    def _readings(self, layer: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (what each slot hears [circuit, slot, sender], {q, k, v: slot by [circuit, head]})."""
        which = self.cut._of_layer(layer)
        own = np.zeros((len(self.hears), self.slots, self.hears.shape[2]), bool)
        slot_of = {x: np.zeros((len(self.hears), self.cut.model.card.n_heads), int) for x in "qkv"}
        for c, hears in enumerate(self.hears):
            different, index = np.unique(hears[which], axis=0, return_inverse=True)
            own[c, : len(different)] = different
            for i, slot in zip(which, index.reshape(-1), strict=True):
                slot_of[self.cut.receivers[i].reads][c, self.cut.receivers[i].head] = slot
        return own, slot_of

    def _sum(self, own: np.ndarray, base: Any) -> Any:
        """Return base [pair, pos, d_model] + what is heard of each sender [circuit, slot, pair, pos, d_model]."""
        import torch

        out = base.expand(*own.shape[:2], *base.shape).clone()
        for s, moved in enumerate(self.moved):
            if own[:, :, s].any():
                out += torch.tensor(own[:, :, s], device=base.device)[:, :, None, None, None] * moved[:, None]
        return out

    def _heard(self, receiver: Receiver, point: tuple[str, int]) -> Any:
        """Return the stream that one receiver reads [circuit, 1, pair, pos, d_model]."""
        own = self.hears[:, [self.cut.receivers.index(receiver)]]
        return self._sum(own, self.cut.corrupted[point])

    def _spread(self, stream: Any) -> Any:
        return stream.expand(-1, self.slots, *stream.shape[2:]).reshape(-1, *stream.shape[3:])

    def _split(self, own: np.ndarray, layer: int, tensor: Any) -> Any:
        self.stream = self._sum(own, self.cut.corrupted["resid_pre", layer]).reshape(tensor.shape)
        return self.stream

    def _gather(self, slot_of: np.ndarray, tensor: Any) -> Any:
        """Give every slot the q (k, v) [pair, pos, head, d_head] that each head computed from its own reading."""
        import torch

        rows = self._rows(tensor)
        at = torch.tensor(slot_of, device=tensor.device)[:, None, None, None, :, None].expand(-1, 1, *rows.shape[2:])
        return rows.gather(1, at).expand_as(rows).reshape(tensor.shape)

    def _rows(self, tensor: Any) -> Any:
        return tensor.reshape(len(self.hears), self.slots, -1, *tensor.shape[1:])

    def _heads(self, layer: int, tensor: Any) -> Any:
        moved = self._rows(tensor)[:, 0] - self.cut.corrupted["z", layer]
        self.moved += [moved[:, :, :, h] @ w for h, w in enumerate(self.cut.w_o[layer])]
        return tensor

    def _into_mlp(self, layer: int, tensor: Any) -> Any:
        heard = self._spread(self._heard(Receiver("mlp", layer), ("resid_mid", layer)))
        return heard - self.stream

    def _mlp(self, layer: int, tensor: Any) -> Any:
        self.moved.append(self._rows(tensor)[:, 0] - self.cut.corrupted["mlp_out", layer])
        return tensor

    def _into_logits(self, layer: int, tensor: Any) -> Any:
        return self._spread(self._heard(Receiver("logits", layer + 1), ("resid_post", layer)))


def run_edge_circuits(model: Model, groups: Sequence[Batch], edges: Sequence[tuple[Sender, Receiver]], w_o: list[Any],
                      kept: np.ndarray, said: Callable[[float], None] = lambda share: None) -> np.ndarray:  # fmt: skip
    """Return logit_diff [circuit, pair] of the clean prompts, all edges outside the circuits `kept` corrupted.

    Args:
        kept: [circuit, edge] of bool.
    """
    out = np.empty((len(kept), sum(len(b.which) for b in groups)))
    for i, batch in enumerate(groups):
        cut = Cut(model, batch, edges, w_o)
        for k in range(0, len(kept), TOGETHER):
            out[k : k + TOGETHER, batch.which] = cut.logit_diff(kept[k : k + TOGETHER])
            said((i + min(1.0, (k + TOGETHER) / len(kept))) / len(groups))
    return out


def plan_circuits(plan: Plan, subject: Pairs, circuits: int) -> tuple[int, int]:
    """Add the runs of so many circuits, two being the whole and nothing; return (bytes held, operations) beside.

    How many copies of the pairs a circuit takes depends on its edges: as many count as it could take.
    """
    slots = 1 if circuits == 2 else most_slots(plan)
    done = plan_cuts(plan, subject), plan_runs(plan, subject, parts(circuits, TOGETHER), slots)
    return done[0] + done[1][0], done[1][1]


def plan_cuts(plan: Plan, subject: Pairs, together: bool = False) -> int:
    """Add what every batch is captured by; return the bytes held by the widest, or by all of them `together`."""
    mlp = "mlp" in plan.card.capabilities
    points = ["z", "resid_pre", "resid_post", *(["mlp_out", "resid_mid"] if mlp else [])]
    held = []
    for n, length in plan.batches(subject):
        plan.call(n, length, 3)
        held.append(plan.bytes(n * length, points))
    return sum(held) if together else max(held, default=0)


def plan_runs(plan: Plan, subject: Pairs, circuits: Sequence[int], slots: int) -> tuple[int, int]:
    """Add runs of so many circuits each, in `slots` copies of the pairs; return (bytes held, operations) beside."""
    card, held, operations = plan.card, 0, 0
    senders = 1 + card.n_layers * (card.n_heads + ("mlp" in card.capabilities))
    for n, length in plan.batches(subject):
        for some_circuits in circuits:
            for some in plan.copies(n * slots, length, some_circuits):
                rows = some * slots * n
                plan.call(rows, length)
                streams = (3 * rows + senders * some * n) * length  # the stream, two sums on the way; writes
                held = max(held, plan.bytes(streams, ["resid_pre"], layers=1))
                operations += 2 * rows * length * card.d_model * senders * card.n_layers
    return held, operations
