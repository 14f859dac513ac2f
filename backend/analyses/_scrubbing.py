"""Recursive resampling: what a model computes when inputs come from all prompts that a hypothesis allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from backend.analyses._causal import Edits, rows_at_once
from backend.analyses._edges import Receiver, Sender, output_weights
from backend.analyses._hypothesis import ANY, SAME, TOKEN, Claim, Hypothesis, as_receiver
from backend.contract import Model, Pair

TRIES = 50  # draws of other heads before there seem to be none

#: (conditions, prompts [n]) -> prompts [n] that agree in these
Choose = Callable[[tuple[str, ...], np.ndarray], np.ndarray]


def written_at(sender: Sender) -> tuple[str, int]:
    """Return the (point, layer) at which a sender's write is read off."""
    return ("embed", 0) if sender.kind == "embed" else ("z" if sender.kind == "head" else "mlp_out", sender.layer)


def read_at(node: Receiver) -> tuple[str, int]:
    """Return the (point, layer) of the stream that a node reads."""
    if node.reads == "logits":
        return "resid_post", node.layer - 1
    return "resid_pre" if node.head >= 0 else "resid_mid", node.layer


class Prompts:
    """Clean prompts of one length, and what the model computes on them as it is."""

    def __init__(self, model: Model, pairs: Sequence[Pair], w_o: list[Any] | None = None):
        import torch

        self.model, self.pairs, self.w_o = model, pairs, w_o or output_weights(model)
        self.tokens = torch.tensor([p.clean for p in pairs], device=model.card.device)
        self.step = rows_at_once(model, self.tokens.shape[1])
        self.kept: dict[tuple[str, int], Any] = {}

    def plain(self, point: str, layer: int) -> Any:
        """Return a point of the unchanged model on all prompts."""
        import torch

        if (point, layer) not in self.kept:
            layers = None if point == "embed" else [layer]
            parts = [self.model.capture(t, [point], layers) for t in self.tokens.split(self.step)]
            self.kept[point, layer] = torch.cat([p[point, layer] for p in parts])
        return self.kept[point, layer]

    def write(self, sender: Sender) -> Any:
        """Return what a sender writes in the unchanged model [prompt, pos, d_model]."""
        found = self.plain(*written_at(sender))
        return found[:, :, sender.head] @ self.w_o[sender.layer][sender.head] if sender.kind == "head" else found

    def groups(self, shares: tuple[str, ...]) -> list[np.ndarray]:
        """Return by prompt which prompts agree with it in all of this, itself among them."""
        signs = [tuple(_sign(p, s) for s in shares) for p in self.pairs]
        if shares == SAME:
            return [np.array([i]) for i in range(len(signs))]
        together: dict[tuple[int, ...], list[int]] = {}
        for i, sign in enumerate(signs):
            together.setdefault(sign, []).append(i)
        return [np.array(together[sign]) for sign in signs]


def _sign(pair: Pair, share: str) -> int:
    match = TOKEN.match(share)
    return pair.clean[int(match[1])] if match else pair.answer if share == "same answer" else pair.distractor


def chooser(prompts: Prompts, dice: np.random.Generator) -> Choose:
    """Return a drawer of prompts: each that agrees is as likely, the prompt itself among them."""
    known: dict[tuple[str, ...], list[np.ndarray]] = {}

    def choose(shares: tuple[str, ...], at: np.ndarray) -> np.ndarray:
        if shares == SAME:
            return at
        groups = known.setdefault(shares, prompts.groups(shares))
        return np.array([groups[i][int(dice.integers(len(groups[i])))] for i in at])

    return choose


def scrub(prompts: Prompts, hypothesis: Hypothesis, choose: Choose) -> Any:
    """Return the logits [prompt, d_vocab_out] at the last position of one draw of all that is exchanged."""
    return _Scrub(prompts, hypothesis, choose).logits()


class _Scrub:
    """One draw: a tree from the logits down; every node has prompts of its own by path."""

    def __init__(self, prompts: Prompts, hypothesis: Hypothesis, choose: Choose):
        self.prompts, self.hypothesis, self.choose = prompts, hypothesis, choose

    def logits(self) -> Any:
        import torch

        last = self.prompts.model.card.n_layers - 1
        stream = self._streams(Receiver("logits", last + 1), np.arange(len(self.prompts.pairs)))
        found = [self.prompts.model.run_with(tokens, {("resid_post", last): _put(x)})[:, -1]
                 for tokens, x in self._chunks(stream[""])]  # fmt: skip
        return torch.cat(found)

    def _chunks(self, *streams: Any) -> list[tuple[Any, ...]]:
        """Return (tokens, parts of the streams): so many rows as fit in a forward. The tokens are never read."""
        step = max(1, self.prompts.step // len(streams))
        return [(self.prompts.tokens[i : i + step], *(s[i : i + step] for s in streams))
                for i in range(0, len(streams[0]), step)]  # fmt: skip

    def _write(self, sender: Sender, at: np.ndarray) -> Any:
        """Return what a sender writes on the prompts `at`, its inputs exchanged where something is stated of them."""
        node = as_receiver(sender)
        if sender.kind == "embed" or node not in self.hypothesis.opened:
            return self.prompts.write(sender)[at]
        if sender.kind == "mlp":
            return self._mlp(sender.layer, self._streams(node, at)[""])
        streams = self._streams(node, at)
        return self._head(sender, *(streams[x] for x in "qkv"))

    def _streams(self, node: Receiver, at: np.ndarray) -> dict[str, Any]:
        """Return {reads: the stream that the node reads there}; "" for MLPs and the logits."""
        inputs = "qkv" if node.head >= 0 else ("",)
        mine = self.hypothesis.into(node, "" if node.head >= 0 else node.reads)
        other, shared = self._rest(mine, at), dict[Sender, Any]()
        for claim in mine:
            if claim.sender is not None:
                shared[claim.sender] = self._write(claim.sender, self.choose(claim.shares, at))
        found = {}
        for reads in inputs:
            only = self.hypothesis.into(node, reads) if reads else []
            rest = self._rest(only, at) if any(c.sender is None for c in only) else other
            heard = dict(shared)
            for claim in only:
                if claim.sender is not None:
                    heard[claim.sender] = self._write(claim.sender, self.choose(claim.shares, at))
            found[reads] = self.prompts.plain(*read_at(node))[rest] + sum(
                write - self.prompts.write(sender)[rest] for sender, write in heard.items())  # fmt: skip
        return found

    def _rest(self, claims: Sequence[Claim], at: np.ndarray) -> np.ndarray:
        """Return the prompts that everything unstated comes from: one for all of a node's senders."""
        stated = [c.shares for c in claims if c.sender is None]
        return self.choose(stated[0] if stated else ANY, at)

    def _mlp(self, layer: int, stream: Any) -> Any:
        import torch

        found: list[Any] = []
        for tokens, x in self._chunks(stream):
            edits: Edits = {("resid_pre", layer): _put(x), ("attn_out", layer): _put(torch.zeros_like(x)),
                            ("mlp_out", layer): _keep(found)}  # fmt: skip
            self.prompts.model.run_with(tokens, edits)
        return torch.cat(found)

    def _head(self, sender: Sender, q: Any, k: Any, v: Any) -> Any:
        """Return a head's write where q, k and v read streams of their own: three copies, put together in the first."""
        import torch

        found: list[Any] = []
        for tokens, *streams in self._chunks(q, k, v):
            edits: Edits = {("resid_pre", sender.layer): _put(torch.cat(streams)), ("z", sender.layer): _keep(found)}
            edits |= {(x, sender.layer): _third(i) for i, x in enumerate("qkv")}
            self.prompts.model.run_with(tokens.repeat(3, 1), edits)
            found[-1] = found[-1][: len(tokens), :, sender.head]
        return torch.cat(found) @ self.prompts.w_o[sender.layer][sender.head]


def _put(value: Any) -> Callable[[Any], Any]:
    return lambda tensor: value


def _keep(found: list[Any]) -> Callable[[Any], Any]:
    def edit(tensor: Any) -> Any:
        found.append(tensor.clone())
        return tensor

    return edit


def _third(i: int) -> Callable[[Any], Any]:
    """Return an edit that gives all thirds of the rows the i-th one's values."""

    def edit(tensor: Any) -> Any:
        n = len(tensor) // 3
        return tensor[i * n : (i + 1) * n].repeat(3, *[1] * (tensor.ndim - 1))

    return edit


# ---------------------------------------------------------------- other hypotheses to compare with


def other_heads(hypothesis: Hypothesis, n_heads: int, dice: np.random.Generator) -> Hypothesis | None:
    """Return the same claims about random heads: each head stands for one of its layer, all assignments as likely.

    Never the same claims; None where no assignment gives others.
    """
    ends = [e for c in hypothesis.claims for e in (c.sender, c.receiver) if e is not None and e.head >= 0]
    named: dict[int, list[int]] = {}
    for layer, head in sorted({(e.layer, e.head) for e in ends}):
        named.setdefault(layer, []).append(head)
    for _ in range(TRIES if named and n_heads > 1 else 0):
        drawn = {n: dice.permutation(n_heads) for n in named}
        to = {(n, h): int(new) for n, mine in named.items() for h, new in zip(mine, drawn[n], strict=False)}
        other = _renamed(hypothesis, to)
        if {*other.claims} != {*hypothesis.claims}:
            return other
    return None


def _renamed(hypothesis: Hypothesis, to: dict[tuple[int, int], int]) -> Hypothesis:
    def moved(end: Any) -> Any:
        return end if end is None or end.head < 0 else replace(end, head=to[end.layer, end.head])

    claims = tuple(replace(c, sender=moved(c.sender), receiver=moved(c.receiver)) for c in hypothesis.claims)
    return Hypothesis(claims, frozenset(moved(r) for r in hypothesis.opened))
