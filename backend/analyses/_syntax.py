"""Tokens that stand for the form of a text: delimiters, brackets, ends of lines; and rows in which they are sown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DELIMITERS, BRACKETS = set(".,;:!?|\n"), set("()[]{}<>")
#: how byte-level and sentence-piece vocabularies spell spaces and the newline
SPELT = {"Ġ": " ", "▁": " ", "Ċ": "\n", "<0x0A>": "\n", "č": "\r", "<0x0D>": "\r"}
SHARE = 0.1  # of a row's tokens, for each kind sown
LEAST = 8  # ordinary tokens that a vocabulary must have beside


def kinds_of(tokenizer: Mapping[str, Any], d_vocab: int) -> dict[str, list[int]]:
    """Return {delimiter, bracket, newline, other: token ids} of a card's tokenizer, kinds without tokens left out.

    A delimiter or bracket is a token of nothing else, spaces and carriage returns aside; a newline is a delimiter, too.
    Empty where the model has no tokenizer, or no other tokens to sow among.
    """
    found: dict[str, list[int]] = {"delimiter": [], "bracket": [], "newline": [], "other": []}
    for token, text in _texts(tokenizer).items():
        core = set(text) - {" ", "\r"}
        kind = "delimiter" if core and core <= DELIMITERS else "bracket" if core and core <= BRACKETS else "other"
        if token < d_vocab:
            found[kind] += [token]
            found["newline"] += [token] if core == {"\n"} else []
    if len(found["other"]) < LEAST or not (found["delimiter"] or found["bracket"]):
        return {}
    return {kind: sorted(ids) for kind, ids in found.items() if ids}


def _texts(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    if tokenizer.get("symbols"):
        return dict(enumerate(tokenizer["symbols"]))
    if tokenizer.get("kind") != "hf":
        return {}
    vocab = json.loads(tokenizer["json"])["model"]["vocab"]
    pieces = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    return {int(token): _plain(piece) for piece, token in pieces}


def _plain(piece: str) -> str:
    for spelt, text in SPELT.items():
        piece = piece.replace(spelt, text)
    return piece


def sown_rows(kinds: dict[str, list[int]], rows: int, length: int, dice: Any) -> Any:
    """Return random tokens [row, pos]: others, and of every kind SHARE of the positions at random, never the first.

    Every kind comes at least once, at position 1, 2 or 3 in random order.
    """
    import torch

    def drawn(kind: str) -> Any:
        ids = torch.tensor(kinds[kind])
        return ids[torch.randint(len(ids), (rows, length), generator=dice)]

    tokens, sown = drawn("other"), [kind for kind in kinds if kind != "other"]
    chance = torch.rand(rows, length, generator=dice)
    early = torch.rand(rows, 3, generator=dice).argsort(-1) + 1
    chance[:, 0] = 1.0
    chance.scatter_(1, early, 1.0)
    for at, kind in enumerate(sown):
        here = (chance >= at * SHARE) & (chance < (at + 1) * SHARE)
        here.scatter_(1, early[:, at : at + 1], True)
        tokens = torch.where(here, drawn(kind), tokens)
    return tokens


def keys_of(kinds: dict[str, list[int]], tokens: Any) -> dict[str, Any]:
    """Return {label: keys [row, pos] that a head of this label attends to}."""
    import torch

    def one_of(kind: str) -> Any:
        return torch.isin(tokens, torch.tensor(kinds[kind], device=tokens.device))

    found: dict[str, Any] = {kind: one_of(kind) for kind in ("delimiter", "bracket") if kind in kinds}
    if "newline" in kinds:
        found["line-start"] = torch.nn.functional.pad(one_of("newline")[:, :-1], (1, 0))
    return found
