"""Cards without their tokenizer, and each tokenizer once: a Hugging Face one is megabytes of JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import zstandard

from backend.store.base import Base, as_json


class Tokenizers(Base):
    """Split a card into what is listed and the tokenizer that many cards share."""

    _tokenizers: dict[str, Any]  # hash -> decoded, shared by all cards handed out: read, do not change

    def _split_card(self, card: dict) -> tuple[dict, str]:
        """Return the card without its tokenizer and the hash under which the tokenizer is kept."""
        text = as_json(card.get("tokenizer", {}))
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._tokenizers:
            data = zstandard.compress(text.encode(), 3)
            self._writer.run(lambda cursor: _keep(cursor, key, data))
            self._tokenizers[key] = json.loads(text)
        return {k: v for k, v in card.items() if k != "tokenizer"}, key

    def _join_card(self, card: dict, key: str) -> dict:
        """Return the card whole again."""
        if key not in self._tokenizers:
            rows = self._rows("SELECT data FROM tokenizers WHERE hash = ?", [key])
            self._tokenizers[key] = json.loads(zstandard.decompress(rows[0][0])) if rows else {"kind": "ids"}
        return {**card, "tokenizer": self._tokenizers[key]}


def _keep(cursor: Any, key: str, data: bytes) -> None:
    if not cursor.execute("SELECT 1 FROM tokenizers WHERE hash = ?", [key]).fetchone():
        cursor.execute("INSERT INTO tokenizers VALUES (?, ?)", [key, data])


def sweep_tokenizers(cursor: Any) -> None:
    """Drop those that no card refers to; only at open, when nobody is between the two writes."""
    cursor.execute("DELETE FROM tokenizers WHERE hash NOT IN "
                   "(SELECT tokenizer FROM results UNION SELECT tokenizer FROM models)")
