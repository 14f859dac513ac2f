"""Text to token ids and back to labels, from the tokenizer a card carries. No torch.

Four kinds: hf (a tokenizer.json as text), chars (one symbol per id), words (one word per id, text split at spaces),
ids (numbers only).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from backend.errors import BadInput, Unfit

MARKS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


class Tokenizer(Protocol):
    """What a page may ask: ids of a text, a short label per id."""

    kind: str

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises BadInput where it is empty or cannot be written in this vocabulary."""
        ...

    def label(self, token: int) -> str:
        """Return a short visible label of one id."""
        ...

    def labels(self, ids: Sequence[int]) -> list[str]:
        """Return a label per id."""
        ...


def visible(text: str) -> str:
    """Show a space as ·, a newline as ⏎, a tab as ⇥ and other control characters as \\xNN."""
    return "".join(MARKS.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)


def _given(text: str) -> str:
    if not text:
        raise BadInput("The text", "it is empty", "Type some text")
    return text


class Ids:
    """No tokenizer: an id is its own label."""

    kind = "ids"

    def encode(self, text: str) -> list[int]:
        raise Unfit("The text", "this model has no tokenizer", "Type token ids instead, such as 5, 17, 3")

    def label(self, token: int) -> str:
        return str(token)

    def labels(self, ids: Sequence[int]) -> list[str]:
        return [self.label(int(i)) for i in ids]


class Chars(Ids):
    """One symbol per id; nanoGPT's characters."""

    kind = "chars"

    def __init__(self, symbols: Sequence[str]):
        self.symbols = list(symbols)
        self.places = {s: i for i, s in enumerate(self.symbols)}

    def encode(self, text: str) -> list[int]:
        for at, symbol in enumerate(_given(text)):
            if symbol not in self.places:
                found = f"symbol {visible(symbol)!r} at position {at} is not among its {len(self.symbols)} characters"
                raise BadInput("The text", found, "Leave the symbol out")
        return [self.places[s] for s in text]

    def label(self, token: int) -> str:
        return visible(self.symbols[token]) if 0 <= token < len(self.symbols) else str(token)


class Words(Chars):
    """One word per id: the vocabulary of a small made-up language; text is split at spaces."""

    kind = "words"

    def encode(self, text: str) -> list[int]:
        words = _given(text).split()
        if not words:
            raise BadInput("The text", "it holds no word", "Type some words of this vocabulary, with spaces between")
        for at, word in enumerate(words):
            if word not in self.places:
                some = ", ".join(self.symbols[:8])
                found = f"word {visible(word[:40])!r} at position {at} is not among its {len(self.symbols)} words"
                raise BadInput("The text", found, f"Use its words, with spaces between; they begin with {some}")
        return [self.places[w] for w in words]


class HF(Ids):
    """A Hugging Face tokenizer.json, read by the Rust library alone."""

    kind = "hf"

    def __init__(self, text: str):
        from tokenizers import Tokenizer as Rust

        try:
            self.rust = Rust.from_str(text)
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            found = f"tokenizer.json cannot be read ({str(error)[:80]})"
            raise BadInput("The tokenizer", found, "Type token ids instead") from None
        self.rust.no_padding()
        self.rust.no_truncation()  # a long text is refused by its length, never cut in silence
        self.bytes = '"ByteLevel"' in text

    def encode(self, text: str) -> list[int]:
        ids = list(self.rust.encode(_given(text)).ids)
        if not ids:
            raise BadInput("The text", "it holds no token of this tokenizer", "Type some other text")
        return ids

    def label(self, token: int) -> str:
        piece = self.rust.id_to_token(int(token))
        if piece is None:
            return str(token)
        return visible(_bytes_to_text(piece) if self.bytes else _pieces_to_text(piece))


def _bytes_to_text(piece: str) -> str:
    """Return the text of a byte-level piece; half a character is shown as \\xNN bytes."""
    table = _byte_of()
    if any(c not in table for c in piece):
        return piece  # an added token, stored as it is
    raw = bytes(table[c] for c in piece)
    return raw.decode("utf-8", errors="backslashreplace")


def _pieces_to_text(piece: str) -> str:
    """Return the text of a SentencePiece or WordPiece piece: ▁ is a space, <0x0A> a byte."""
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
    return bytes([int(byte[1], 16)]).decode("utf-8", errors="backslashreplace") if byte else piece.replace("▁", " ")


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """Return GPT-2's table of printable stand-ins for the 256 bytes. Source: Radford et al. (2019), encoder.py."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {**{chr(b): b for b in plain}, **{chr(256 + n): b for n, b in enumerate(others)}}


def tokenizer_from(tokenizer: Mapping[str, Any]) -> Tokenizer:
    """Make the tokenizer of a card's `tokenizer` field. Raises BadInput for an unknown kind."""
    kind = tokenizer.get("kind")
    if kind == "hf":
        return _hf(tokenizer["json"])
    if kind == "chars":
        return Chars(tokenizer["symbols"])
    if kind == "words":
        return Words(tokenizer["symbols"])
    if kind == "ids":
        return Ids()
    raise BadInput(f"Tokenizer {kind!r}", "no such kind", "Use hf, chars, words or ids")


@lru_cache(maxsize=8)
def _hf(text: str) -> HF:
    return HF(text)


def parse_ids(text: str, d_vocab: int) -> list[int]:
    """Read "5, 17 3" as ids. Raises BadInput where it is empty, no number, or outside 0..d_vocab - 1."""
    words = re.split(r"[,;\s]+", text.strip(" \t\n,;[]()"))
    if words == [""]:
        raise BadInput("The token ids", "there are none", "Type numbers such as 5, 17, 3")
    for word in words:
        if not re.fullmatch(r"[+-]?\d{1,18}", word):
            raise BadInput("The token ids", f"{word[:20]!r} is no number", "Type numbers such as 5, 17, 3")
        if not 0 <= int(word) < d_vocab:
            raise BadInput(f"Token {int(word)}", f"outside the vocabulary 0..{d_vocab - 1}", "Use ids of this model")
    return [int(w) for w in words]


def check_length(tokens: Sequence[int], n_ctx: int) -> None:
    """Raise BadInput where there are no tokens or more than n_ctx."""
    if len(tokens) == 0:
        raise BadInput("The tokens", "there are none", "Give at least one token")
    if len(tokens) > n_ctx:
        over = len(tokens) - n_ctx
        raise BadInput(f"{len(tokens)} tokens", f"too long by {over} (n_ctx {n_ctx})", "Shorten the text")
