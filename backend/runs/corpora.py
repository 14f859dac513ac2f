"""Rows of tokens for a Corpus: from the model's own recipe, Python's library, a text file, or drawn at random."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from backend.contract import Corpus, Rows
from backend.errors import BadInput, Unfit
from backend.models import tokens as words
from backend.runs import corpus as texts
from backend.runs import recipes

CHARACTERS = 2_000_000  # read of a text at most


def rows_of(card: Any, asked: Corpus) -> Rows:
    """Return tokens [row, pos] of a corpus for a model's card. The same corpus gives the same rows.

    Raises Unfit where the model cannot read the source, BadInput for a file that is missing or another by now.
    """
    length = min(asked.length, card.n_ctx)
    draw = {"training": _training, "python": _text, "file": _text, "random": _random}[asked.source]
    return Rows(tokens=np.ascontiguousarray(draw(card, asked, length), dtype=np.int64), corpus=asked)


def _random(card: Any, asked: Corpus, length: int) -> np.ndarray:
    return np.random.default_rng(asked.seed).integers(card.d_vocab, size=(asked.rows, length))


def _training(card: Any, asked: Corpus, length: int) -> np.ndarray:
    name = card.training.get("recipe")
    sample = recipes.registry()[name].sample if name in recipes.registry() else None
    if sample is None:
        found = f"recipe {name} draws no token rows" if name else "it is no run of a recipe"
        raise Unfit(f"The training data of {card.spec}", found, "Choose random tokens or a text")
    params = recipes.get(name).params(**card.training["params"])
    return np.asarray(sample(params, asked.rows, asked.seed))[:, :length]


def _text(card: Any, asked: Corpus, length: int) -> np.ndarray:
    tokenizer = words.tokenizer_from(card.tokenizer)
    reason = unreadable(tokenizer.kind)
    if reason:
        raise Unfit(f"A text for {card.spec}", reason, "Choose random tokens or training data")
    text = texts.read(asked.path if asked.source == "file" else "", CHARACTERS)
    if asked.source == "file" and asked.digest and asked.digest != digest_of(asked.path):
        raise BadInput(f"Text {asked.path!r}", "it is another text than when it was asked for", "Ask again")
    ids = np.asarray(encoded(tokenizer, text))
    if len(ids) < length:
        raise BadInput("The text", f"it has {len(ids)} tokens, a row takes {length}", "Give a longer text")
    starts = np.random.default_rng(asked.seed).integers(len(ids) - length + 1, size=(asked.rows, 1))
    return ids[starts + np.arange(length)]


def unreadable(kind: str) -> str:
    """Return why a model with this kind of tokenizer cannot read a text of the world, or ''."""
    words = "its vocabulary is a short list of words, so a text would lose most of what it says"
    return {"ids": "the model has no tokenizer", "words": words}.get(kind, "")


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text; of a character model those of the characters that it knows, the others left out."""
    if tokenizer.kind != "chars":
        return tokenizer.encode(text)
    places = tokenizer.places
    return [places[c] for c in text if c in places]


def digest_of(path: str) -> str:
    """Return the sha256 of a text file. Raises BadInput where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        found = f"it cannot be read ({error.strerror})"
        raise BadInput(f"Text {path!r}", found, "Give the path of a text file") from None
