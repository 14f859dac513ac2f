"""Text to train character models on: Python's own standard library, or any text file. No torch.

A vocabulary holds at most 256 symbols: the characters that occur at least 10 times, the most frequent ones first
where there are more, and U+FFFD for all the rest, seen or not. In the dashboard a typed character that is not in
the vocabulary is refused with a sentence.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import BadInput

OTHER = "\ufffd"
MOST_SYMBOLS, LEAST_COUNT = 256, 10
LEAST_CHARACTERS = 2_000
MOST_BYTES = 200_000_000
SHARE = 0.9  # of the characters, from the first on, to train on; the rest is held out


@dataclass(frozen=True)
class Corpus:
    """Symbol ids of a text [character] and what they mean; `source` is what run.json says of it."""

    ids: np.ndarray
    symbols: list[str]
    source: dict[str, Any]

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """The first nine tenths, to train on, and the held-out rest."""
        cut = int(len(self.ids) * SHARE)
        return self.ids[:cut], self.ids[cut:]


def load(text: str, max_characters: int) -> Corpus:
    """Read the standard library ("") or the text file of this path, at most `max_characters` from the start.

    Raises BadInput for a file that is missing, no text, shorter than 2,000 characters or above 200 MB.
    """
    words, source = _words(text, max_characters)
    if len(words) < LEAST_CHARACTERS:
        raise BadInput(f"Text {source['text']}", f"it has only {len(words)} characters",
                       f"Give at least {LEAST_CHARACTERS}")  # fmt: skip
    symbols = vocabulary(words)
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
    return Corpus(encode(words, symbols), symbols, {**source, "characters": len(words), "sha256": digest})


def read(text: str, max_characters: int) -> str:
    """Return the standard library's source ("") or a text file, at most `max_characters`. Raises as `load` does."""
    return _words(text, max_characters)[0]


def _words(text: str, max_characters: int) -> tuple[str, dict[str, Any]]:
    words, source = _file(text) if text else _library(max_characters)
    return words[:max_characters], source


def vocabulary(words: str) -> list[str]:
    """Return the symbols of a text in code order, U+FFFD (for all others) last."""
    counted = Counter(words)
    counted.pop(OTHER, None)
    often = [c for c, n in sorted(counted.items(), key=lambda item: (-item[1], item[0])) if n >= LEAST_COUNT]
    return [*sorted(often[: MOST_SYMBOLS - 1]), OTHER]


def encode(words: str, symbols: list[str]) -> np.ndarray:
    """Return the id of each character [character] as int64; one that is no symbol gets the id of U+FFFD."""
    points = np.frombuffer(words.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    places = np.full(0x110000, symbols.index(OTHER), dtype=np.int64)
    places[[ord(s) for s in symbols]] = np.arange(len(symbols))
    return places[points]


def _library(max_characters: int) -> tuple[str, dict[str, Any]]:
    folder, read, n_files = Path(sysconfig.get_path("stdlib")), [], 0
    length = 0
    for path in sorted(folder.glob("*.py"), key=lambda p: p.name):
        read.append(path.read_text(encoding="utf-8", errors="replace"))
        length, n_files = length + len(read[-1]), n_files + 1
        if length >= max_characters:
            break
    if not read:
        raise BadInput("Python's standard library", "its source is not installed here", "Give a text file")
    return "".join(read), {"text": "Python's standard library", "files": n_files}


def _file(text: str) -> tuple[str, dict[str, Any]]:
    path, asked = Path(text).expanduser(), f"Text {text!r}"
    if not path.is_file():
        raise BadInput(asked, "a folder" if path.is_dir() else "no such file", "Give the path of a text file")
    if path.stat().st_size > MOST_BYTES:
        found = f"{path.stat().st_size / 1e6:.0f} MB is more than {MOST_BYTES / 1e6:.0f} MB"
        raise BadInput(asked, found, "Give a part of it")
    try:
        words = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(asked, f"byte {error.start} is no UTF-8 text", "Give a text file in UTF-8") from None
    except OSError as error:
        raise BadInput(asked, f"it cannot be read ({error.strerror})", "Correct its rights") from None
    if "\0" in words:
        raise BadInput(asked, f"character {words.index(chr(0))} is a zero byte: no text", "Give a text file")
    return words, {"text": path.name}
