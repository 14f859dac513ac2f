"""Hypotheses about a circuit as text: claims `sender > receiver: what its prompt must share`, read and checked.

    L1H3 > logits: same answer; L0H3 > L1H3.k: same token at -1; embed > L1H3.v; all > L1H3.q

Senders: embed, L1H3, L0 mlp, or all (every sender that nothing else is said of). Receivers: logits, L0 mlp, L1H3 or one
of its inputs L1H3.q, .k, .v. After the colon: same prompt (where nothing stands), any, same answer, same distractor,
same token at P (0-based, negative from the end), several joined by `and`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from backend.analyses._edges import Receiver, Sender
from backend.contract import ModelCard
from backend.errors import BadInput

NODE = re.compile(r"L(\d+)\s*(?:H(\d+)(?:\.([qkv]))?|mlp)$")
TOKEN = re.compile(r"same token at (-?\d+)$")
PLAIN = ("same answer", "same distractor")
MOST = 256  # nodes that one draw computes: a hypothesis is a tree, a node counts once per path to the logits
EXAMPLE = "Write claims such as L1H3 > logits: same answer; embed > L1H3.v"
#: the whole prompt, and no condition at all
SAME, ANY = ("same prompt",), ()


@dataclass(frozen=True)
class Claim:
    """What a receiver hears of a sender (None: of all others) comes from a prompt equal in `shares` to its own."""

    sender: Sender | None
    receiver: Receiver  # reads "": q, k and v of the head alike
    shares: tuple[str, ...] = SAME

    def __str__(self) -> str:
        said = f": {' and '.join(self.shares) or 'any'}" if self.shares != SAME else ""
        return f"{name_of(self.sender)} > {name_of(self.receiver)}{said}"


@dataclass(frozen=True)
class Hypothesis:
    """Claims, and the receivers of which something is stated: what is not stated of these is exchanged at random.

    Receivers in `opened` have reads "": a node hears q, k and v. Of other nodes everything is kept as it is.
    """

    claims: tuple[Claim, ...]
    opened: frozenset[Receiver]

    def into(self, receiver: Receiver, reads: str) -> list[Claim]:
        """Return the claims about one input of a node, or ("") about all of it."""
        return [c for c in self.claims if c.receiver == replace(receiver, reads=reads)]

    def nodes(self, at: Receiver) -> Iterator[tuple[Receiver, list[Claim]]]:
        """Yield (node, the claims about its inputs) of the tree from `at` down, a node once per path to it."""
        claims = [c for reads in ((at.reads,) if at.head < 0 else ("", *"qkv")) for c in self.into(at, reads)]
        yield at, claims
        for claim in claims:
            if claim.sender is not None and as_receiver(claim.sender) in self.opened:
                yield from self.nodes(as_receiver(claim.sender))

    def without(self, i: int) -> Hypothesis:
        """Return it without one claim: its sender is then exchanged at random."""
        return Hypothesis(self.claims[:i] + self.claims[i + 1 :], self.opened)

    def __str__(self) -> str:
        return "; ".join(str(c) for c in self.claims)


def name_of(end: Sender | Receiver | None) -> str:
    """Return the end of a claim as it is written."""
    if end is None:
        return "all"
    word = end.kind if isinstance(end, Sender) else end.reads
    if word in ("embed", "logits"):
        return word
    return f"L{end.layer} mlp" if end.head < 0 else f"L{end.layer}H{end.head}" + (f".{word}" if word in "qkv" and word
                                                                                 else "")  # fmt: skip


def whole(receiver: Receiver) -> Receiver:
    """Return the node that reads: a head instead of its q, k or v."""
    return replace(receiver, reads="") if receiver.head >= 0 else receiver


def as_receiver(sender: Sender) -> Receiver:
    """Return the node that sends as one that reads."""
    return Receiver("mlp" if sender.kind == "mlp" else "", sender.layer, sender.head)


def parse(text: str, card: ModelCard, shortest: int) -> Hypothesis:
    """Read a hypothesis about a model whose prompts have at least `shortest` tokens. Raises BadInput with the claim."""
    parts = [" ".join(p.split()) for p in re.split(r"[;\n]", text) if p.strip()]
    if not parts:
        raise BadInput("The hypothesis", "it is empty", EXAMPLE)
    claims = [_claim(part, card, shortest) for part in parts]
    for i, claim in enumerate(claims):
        if any(_twice(claim, other) for other in claims[:i]):
            found = "this sender is stated for this receiver already"
            raise BadInput(f"The claim {parts[i]!r}", found, "State it once")
    hypothesis = Hypothesis(tuple(claims), frozenset(whole(c.receiver) for c in claims))
    _check_use(hypothesis, parts)
    return hypothesis


def _twice(a: Claim, b: Claim) -> bool:
    overlap = a.receiver == b.receiver or (
        whole(a.receiver) == whole(b.receiver) and "" in (a.receiver.reads, b.receiver.reads)
    )
    return a.sender == b.sender and overlap and (a.sender is not None or a.receiver == b.receiver)


def _claim(part: str, card: ModelCard, shortest: int) -> Claim:
    edge, colon, shares = part.partition(":")
    ends = [e.strip() for e in edge.split(">")]
    if len(ends) != 2 or not all(ends):
        raise BadInput(f"The claim {part!r}", "it is not `sender > receiver`", EXAMPLE)
    sender = None if ends[0] == "all" else _sender(part, ends[0], card)
    receiver = _receiver(part, ends[1], card)
    if sender and not receiver.hears(sender):
        found = f"{name_of(receiver)} reads the stream before {name_of(sender)} writes to it"
        raise BadInput(f"The claim {part!r}", found, "Name a sender of an earlier layer")
    return Claim(sender, receiver, _shares(part, shares if colon else "same prompt", shortest))


def _sender(part: str, word: str, card: ModelCard) -> Sender:
    if word == "embed":
        return Sender("embed", -1)
    layer, head, reads = _node(part, word, card)
    if reads:
        found = f"{word} is an input of a head, which sends nothing"
        raise BadInput(f"The claim {part!r}", found, f"Leave out the .{reads}")
    return Sender("mlp" if head < 0 else "head", layer, head)


def _receiver(part: str, word: str, card: ModelCard) -> Receiver:
    if word == "logits":
        return Receiver("logits", card.n_layers)
    layer, head, reads = _node(part, word, card)
    return Receiver("mlp" if head < 0 else reads, layer, head)


def _node(part: str, word: str, card: ModelCard) -> tuple[int, int, str]:
    match = NODE.match(word)
    if not match:
        todo = "Write embed, L1H3, L1H3.k, L0 mlp, logits, or all for every other sender"
        raise BadInput(f"The claim {part!r}", f"{word!r} names no part of the model", todo)
    layer, head = int(match[1]), -1 if match[2] is None else int(match[2])
    if layer >= card.n_layers or head >= card.n_heads or (head < 0 and "mlp" not in card.capabilities):
        has = f"{card.n_layers} layers of {card.n_heads} heads" + ("" if "mlp" in card.capabilities else " and no MLP")
        raise BadInput(f"The claim {part!r}", f"there is no {word}: the model has {has}", "Count from 0")
    return layer, head, match[3] or ""


def _shares(part: str, text: str, shortest: int) -> tuple[str, ...]:
    """Return the conditions; () for any."""
    words = [" ".join(w.split()) for w in re.split(r"\band\b", text)]
    if words in (["any"], ["same prompt"]):
        return ANY if words == ["any"] else SAME
    for word in words:
        match = TOKEN.match(word)
        if not match and word not in PLAIN:
            known = "same prompt, any, same answer, same distractor or same token at P"
            raise BadInput(f"The claim {part!r}", f"{word!r} is nothing that prompts can share here", f"Write {known}")
        if match and not -shortest <= int(match[1]) < shortest:
            raise BadInput(f"The claim {part!r}", f"a prompt has {shortest} tokens, no position {match[1]}",
                           f"Use {-shortest} to {shortest - 1}")  # fmt: skip
    return tuple(words)


def _check_use(found: Hypothesis, parts: Sequence[str]) -> None:
    """Refuse claims that lead nowhere and trees that are too large."""
    logits = Receiver("logits", max((c.receiver.layer for c in found.claims), default=0))
    tree = list(islice(found.nodes(logits), MOST + 1))
    if len(tree) > MOST:
        size = f"more than {MOST} nodes, counted once per path to the logits"
        todo = "Leave out claims about early layers: a node of which nothing is stated is kept whole"
        raise BadInput("The hypothesis", size, todo)
    used = {claim for _, claims in tree for claim in claims}
    for claim, part in zip(found.claims, parts, strict=True):
        if claim not in used:
            todo = f"State what hears {name_of(whole(claim.receiver))}, up to the logits"
            raise BadInput(f"The claim {part!r}", "it leads to nothing that reaches the logits", todo)
