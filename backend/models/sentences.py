"""The made-up sentences of the recipe synthetic_ioi: 70 words, four templates. No torch.

Source: Wang et al. (2022), Interpretability in the Wild, for the task; these words and templates are our own.
"""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BOS, PAD = "BOS", "PAD"
#: A and B are the names in order, S is one of them, P a place, O an object; the answer is the other name
TEMPLATES = tuple(t.split() for t in (
    "A and B went to the P , S gave a O to",
    "then A and B went to the P , S gave the O to",
    "A and B gave the P a O then S went to",
    "then , A and B went to P the O , S gave a O to",
))  # fmt: skip
SLOTS = ("A", "B", "S", "P", "O")
WORDS = ("and", "went", "to", "the", ",", "gave", "a", "then")
PLACES = ("store", "garden", "school", "office", "house", "station", "park", "museum", "market", "library")
OBJECTS = ("ring", "book", "drink", "snack", "ball", "lamp", "card", "coat", "cake", "stone")
NAMES = _listed(
    "Mary John Tom James Dan Martin Amy Rose Paul Mark Anna Jack Kate David Adam Luke Emma Alice Henry Peter Sarah "
    "Laura Robert George Michael Daniel Kevin Brian Steven Jason Scott Eric Andrew Lisa Karen Susan Helen Simon Carl "
    "Julia"
)
SYMBOLS = (BOS, PAD, *WORDS, *PLACES, *OBJECTS, *NAMES)
N_CTX = 1 + max(len(t) for t in TEMPLATES)


def ids(words: tuple[str, ...]) -> list[int]:
    """Return the ids of words."""
    return [SYMBOLS.index(w) for w in words]


def sentence(template: int, **filled: str) -> str:
    """Return a template's text, BOS first, with A, B, S, P and O filled in."""
    return " ".join([BOS, *(filled.get(w, w) for w in TEMPLATES[template])])


def frames() -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Return per template, padded right: word ids (PAD at slots), which slot stands where (-1: none), last position."""
    rows = [[BOS, *t, *[PAD] * (N_CTX - 1 - len(t))] for t in TEMPLATES]
    fixed = [[SYMBOLS.index(w) if w in SYMBOLS else SYMBOLS.index(PAD) for w in row] for row in rows]
    slots = [[SLOTS.index(w) if w in SLOTS else -1 for w in row] for row in rows]
    return fixed, slots, [len(t) for t in TEMPLATES]
