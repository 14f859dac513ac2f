"""What others published of a few models, and where these come from: facts with their source, nothing computed."""

from __future__ import annotations

from dataclasses import dataclass

ARENA = "ARENA 2.0 (McDougall), July 2023 problem: palindromes"
REP = "Chughtai et al. (2023), A Toy Model of Universality: C113_T seed 1, summary_metrics.json"
PLAIN = "no publication: an independent computation in plain torch"
TRACR = "true by construction (Lindner et al. 2023, Tracr)"
DIGITS = 0.0005  # half a unit of the third decimal


@dataclass(frozen=True)
class Line:
    """A published quantity; `tolerance` is what its printed digits leave open, or what another dtype may move."""

    quantity: str
    source: str
    published: float
    tolerance: float


@dataclass(frozen=True)
class Known:
    """A model of which numbers are published. `file` below the folder of such files; '' where it ships here."""

    name: str
    title: str
    told: str
    lines: tuple[Line, ...]
    file: str = ""
    origin: str = ""
    fingerprint: str = ""


HEADS = ("L0H0", "L0H1", "L1H0", "L1H1")


def _heads(words: str, source: str, values: tuple[float, ...], tolerance: float) -> tuple[Line, ...]:
    return tuple(Line(f"{words} {h}", source, v, tolerance) for h, v in zip(HEADS, values, strict=True))


PALINDROMES = Known(
    "palindromes", "Palindrome classifier", "two layers of two heads say whether twenty digits read the same backwards",
    (
        Line("palindromes among 2500 sequences", PLAIN, 1252, 0),
        Line("accuracy", PLAIN, 0.9988, 0.00005),
        Line("cross-entropy (nats)", ARENA, 0.008, DIGITS),
        Line("logit difference, mean", ARENA, 7.489, DIGITS),
        *_heads("logit difference, mean-ablated", ARENA, (0.614, 6.642, 0.299, 6.815), DIGITS),
        *_heads("patching one head, exact", PLAIN, (10.72, 0.39, 10.25, 0.83), 0.005),
        *_heads("attribution, one step (it saturates)", PLAIN, (1.32, 0.04, 0.89, 0.46), 0.005),
        *_heads("integrated gradients, 5 steps", PLAIN, (10.88, 0.52, 10.33, 0.84), 0.005),
        *_heads("integrated gradients, 20 steps", PLAIN, (10.54, 0.50, 10.25, 0.84), 0.005),
    ),
    "palindrome_classifier.pt",
    "callummcdougall/ARENA_2.0 on GitHub, chapter1_transformers/exercises/monthly_algorithmic_problems/"
    "july23_palindromes/palindrome_classifier.pt",
    "a954c67f985e0517d5a0373f25f74eed",
)  # fmt: skip
KEY = (16, 30, 56)
C113 = Known(
    "c113", "Addition modulo 113", "one layer of four heads, trained by others until it generalised",
    (
        *(Line(f"key frequency {i}", f"{REP}; key_reps.txt", w, 0) for i, w in enumerate(KEY, start=1)),
        Line("accuracy, all pairs", REP, 1.0, 0),
        Line("cross-entropy, all pairs (nats)", REP, 1.5851601308126488e-07, 1.6e-10),
        Line("share of logits explained", REP, 0.9685423374176025, 1e-5),
        *(Line(f"similarity to cos w(a + b - c), w = {w}", REP, cs, 1e-5)
          for w, cs in zip(KEY, (0.7779734134674072, 0.5176708102226257, 0.30873191356658936), strict=True)),
        Line("restricted loss (nats)", REP, 4.1262065193873725e-08, 4.2e-12),
        Line("share of W_E in the key frequencies", REP, 0.9008326530456543, 1e-5),
    ),
    "c113_t_seed1/model.pt",
    "bilal-chughtai/rep-theory-mech-interp on GitHub, rep_theory/batch_experiments/C113_T_seed1/model.pt",
    "99d0a4a413a7b3847727a971c8983b55",
)  # fmt: skip
#: components with output weights that are not zero
TRUTH = {
    "reverse": ("L0H0", "L0 mlp", "L1 mlp", "L2 mlp", "L3H0"),
    "hist": ("L0H0", "L0 mlp"),
    "sort_unique": ("L0H0", "L0 mlp", "L1H0"),
}
OUTPUTS = {"reverse": 18, "hist": 18, "sort_unique": 20}


def _program(name: str, told: str) -> Known:
    lines = (
        Line("outputs decoded as tracr decodes them", TRACR, OUTPUTS[name], 0),
        Line("nodes of the true circuit", TRACR, len(TRUTH[name]), 0),
        Line("circuit by score: precision", TRACR, 1.0, 0), Line("circuit by score: recall", TRACR, 1.0, 0),
        Line("greedy circuit: precision", TRACR, 1.0, 0), Line("greedy circuit: recall", TRACR, 1.0, 0),
    )  # fmt: skip
    return Known(f"tracr_{name}", f"Compiled program {name}", told, lines)


KNOWN = (
    PALINDROMES,
    C113,
    _program("reverse", "a sequence backwards"),
    _program("hist", "how often each token occurs"),
    _program("sort_unique", "different tokens in order"),
)
