"""Pairs of prompts for causal questions: named tasks, each checked against the model's own vocabulary. No torch.

A task makes clean and corrupted prompts of as many tokens, with single-token answers; what does not fit the model is
refused with the reason, never cut or padded. The same task, n and seed give the same pairs.
Sources: Wang et al. (2022), Interpretability in the Wild (IOI: templates, names swapped at S2); Hanna et al. (2023),
How does GPT-2 compute greater-than?; Heimersheim and Janiak (2023), A circuit for Python docstrings; Olsson et al.
(2022), In-context Learning and Induction Heads (repeated random tokens).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from backend.contract import Pair, Pairs
from backend.errors import BadInput, PhasescopeError, Unfit
from backend.models import sentences
from backend.models import tokens as words
from backend.subjects import MOST_PAIRS

TRIES = 50  # draws per wanted pair before a task gives up


@dataclass(frozen=True)
class Task:
    """A generator of pairs: `draw(maker, dice)` returns one pair, or raises a PhasescopeError that says what is wrong.

    `fits(card)` returns why a model cannot be asked at all, or ''.
    """

    name: str
    title: str
    help: str
    draw: Callable[[Maker, random.Random], Pair]
    fits: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Maker:
    """What a task may use: the model's card and tokenizer, and checked ways to a pair."""

    card: Mapping[str, Any]
    tokenizer: Any

    def one_token(self, text: str) -> int:
        """Return the id of a text that must be one token. Raises Unfit."""
        ids = self.tokenizer.encode(text)
        if len(ids) != 1:
            raise Unfit(f"Answer {text!r}", f"it is {len(ids)} tokens in this vocabulary", "Use a one-token answer")
        return int(ids[0])

    def pair(self, clean: str, corrupted: str, answer: str, distractor: str) -> Pair:
        """Return the pair of four texts. Raises where the prompts differ in length or an answer is no single token."""
        a, b = (self.tokenizer.encode(t) for t in (clean, corrupted))
        return self.of_ids(a, b, self.one_token(answer), self.one_token(distractor))

    def of_ids(self, clean: Sequence[int], corrupted: Sequence[int], answer: int, distractor: int) -> Pair:
        """Return the pair of token ids, checked against the model."""
        if len(clean) != len(corrupted):
            found = f"the clean prompt has {len(clean)} tokens, the corrupted one {len(corrupted)}"
            raise BadInput("A pair of prompts", found, "Positions must correspond: change words of as many tokens")
        words.check_length(clean, self.card["n_ctx"])
        limits = self.card["d_vocab"], self.card["d_vocab_out"]
        for ids, most in zip(((*clean, *corrupted), (answer, distractor)), limits, strict=True):
            wrong = [i for i in ids if not 0 <= i < most]
            if wrong:
                raise BadInput(f"Token {wrong[0]}", f"outside the vocabulary 0..{most - 1}", "Use ids of this model")
        if answer == distractor:
            raise BadInput("A pair of prompts", "answer and distractor are the same token", "Choose two answers")
        return Pair(clean=tuple(clean), corrupted=tuple(corrupted), answer=answer, distractor=distractor)


def make(card: Mapping[str, Any], task: str, n: int, seed: int) -> Pairs:
    """Return n different pairs of a task. Raises NotFound-like BadInput for an unknown one, Unfit with the reason.

    Where a task has prompts of several lengths, none stands alone in its own: means over prompts are taken by length.
    """
    if task not in TASKS:
        raise BadInput(f"Task {task!r}", "no such task", f"Use one of {', '.join(TASKS)}")
    one = TASKS[task]
    reason = one.fits(card)
    if reason:
        raise Unfit(f"{one.title} for {card['spec']}", reason, "Choose another task or model")
    maker, dice = Maker(card, words.tokenizer_from(card["tokenizer"])), random.Random(seed)
    found: dict[Pair, None] = {}
    problem: PhasescopeError | None = None
    for _ in range(TRIES * n):
        try:
            found.setdefault(one.draw(maker, dice))
        except PhasescopeError as error:
            problem = error
        if len(found) == n:
            break
    if not found:
        raise problem or Unfit(f"{one.title} for {card['spec']}", "no pair could be made", "Choose another task")
    pairs = _in_company(list(found), lambda: one.draw(maker, dice))
    return Pairs(pairs=tuple(pairs), text=f"{task}, {len(pairs)} pairs, seed {seed}")


def _in_company(pairs: list[Pair], draw: Callable[[], Pair]) -> list[Pair]:
    """Replace pairs that are alone in their length by others, as far as some can be drawn."""
    for _ in range(TRIES * len(pairs)):
        lengths = Counter(len(p.clean) for p in pairs)
        alone = next((p for p in pairs if lengths[len(p.clean)] == 1), None)
        if alone is None or len(pairs) == 1:
            break
        with suppress(PhasescopeError):
            new = draw()
            if len(new.clean) != len(alone.clean) and lengths[len(new.clean)] and new not in pairs:
                pairs[pairs.index(alone)] = new
    return pairs


def fitting(card: Mapping[str, Any]) -> dict[str, str]:
    """Return {task: '' or the reason why this model cannot be asked}; tasks that draw nothing are tried once."""
    reasons = {}
    for name, one in TASKS.items():
        reasons[name] = one.fits(card)
        if not reasons[name]:
            try:
                make(card, name, 1, 0)
            except PhasescopeError as error:
                reasons[name] = error.found
    return reasons


def own(card: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Pairs:
    """Return the user's own pairs: rows of {clean, corrupted, answer, distractor}, each text or token ids.

    Raises BadInput that names the row and what is wrong with it.
    """
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        todo = "Give a list of {clean, corrupted, answer, distractor}"
        raise BadInput("Your pairs", "they are no list of rows", todo)
    if not 0 < len(rows) <= MOST_PAIRS:
        found = f"there are {len(rows)}" if rows else "there are none"
        raise BadInput("Your pairs", found, f"Give 1 to {MOST_PAIRS} rows of clean, corrupted, answer and distractor")
    maker, pairs = Maker(card, words.tokenizer_from(card["tokenizer"])), []
    for i, row in enumerate(rows, 1):
        missing = [k for k in ("clean", "corrupted", "answer", "distractor") if row.get(k) in (None, "", [])]
        if missing:
            raise BadInput(f"Pair {i}", f"it has no {missing[0]}", "Give clean, corrupted, answer and distractor")
        try:
            clean, corrupted = (_ids(maker, row[k]) for k in ("clean", "corrupted"))
            pairs.append(maker.of_ids(clean, corrupted, *(_answer(maker, row[k]) for k in ("answer", "distractor"))))
        except PhasescopeError as error:
            raise BadInput(f"Pair {i}: {error.asked}", error.found, error.todo) from None
    return Pairs(pairs=tuple(pairs), text=f"{len(pairs)} pairs of your own")


def _ids(maker: Maker, given: Any) -> list[int]:
    if not isinstance(given, str):
        return _whole(given)
    if maker.tokenizer.kind == "ids":
        return words.parse_ids(given, maker.card["d_vocab"])
    return maker.tokenizer.encode(given)


def _whole(given: Any) -> list[int]:
    """Return token ids that came as a list, as of JSON."""
    if not isinstance(given, list | tuple) or not all(isinstance(i, int) and not isinstance(i, bool) for i in given):
        raise BadInput(f"The prompt {str(given)[:40]!r}", "neither text nor a list of ids", "Give text or token ids")
    return list(given)


def _answer(maker: Maker, given: Any) -> int:
    if not isinstance(given, str):
        return _whole([given])[0]
    if maker.tokenizer.kind != "ids":
        return maker.one_token(str(given))
    ids = words.parse_ids(str(given), maker.card["d_vocab_out"])
    if len(ids) != 1:
        raise BadInput(f"Answer {given!r}", f"it is {len(ids)} tokens", "Give one token")
    return ids[0]


# ---------------------------------------------------------------- what fits which model


def _next_token(card: Mapping[str, Any]) -> str:
    return "" if "next_token" in card["capabilities"] else "it does not predict its own vocabulary"


def _reads_words(card: Mapping[str, Any]) -> str:
    if _next_token(card):
        return _next_token(card)
    kind = card["tokenizer"].get("kind", "ids")
    return {"ids": "it has no tokenizer", "chars": "it reads characters, so a name is several tokens",
            "words": "it knows only the words of its own made-up sentences"}.get(kind, "")  # fmt: skip


def _repeats(card: Mapping[str, Any]) -> str:
    small = min(card["n_ctx"], card["d_vocab"]) < 8
    return _next_token(card) or ("its context or vocabulary is below 8" if small else "")


def _tells_ioi(card: Mapping[str, Any]) -> str:
    """A run of the recipe, so that the vocabulary is that of its sentences."""
    trained = card.get("training", {}).get("recipe")
    known = card["tokenizer"].get("symbols", []) == list(sentences.SYMBOLS)
    return "" if trained == "synthetic_ioi" and known else "it was not trained on the made-up sentences"


def _adds(card: Mapping[str, Any]) -> str:
    trained = card.get("training", {}).get("recipe")
    return "" if trained == "modular_addition" else "it was not trained on modular addition"


# ---------------------------------------------------------------- the tasks


def _induction(maker: Maker, dice: random.Random) -> Pair:
    """[A; A up to its k-th token]; corrupted: the token that followed it at first is another one, the distractor."""
    n = min(maker.card["n_ctx"] // 2, maker.card["d_vocab"] - 1, 24)
    *block, other = dice.sample(range(maker.card["d_vocab"]), n + 1)
    k = n - 2
    changed = [*block]
    changed[k + 1] = other
    return maker.of_ids([*block, *block[: k + 1]], [*changed, *block[: k + 1]], block[k + 1], other)


def _induction_previous(maker: Maker, dice: random.Random) -> Pair:
    """[A; A up to its k-th token]; corrupted: the k-th token stood elsewhere in the first A, before the distractor.

    Tokens k and j of the first A are exchanged, so what differs is which token stands before which: a previous-token
    head has to carry it. Neither answer nor distractor moves.
    """
    n = min(maker.card["n_ctx"] // 2, maker.card["d_vocab"], 24)
    block = dice.sample(range(maker.card["d_vocab"]), n)
    k, j = n - 2, dice.randrange(n - 3)
    changed = [*block]
    changed[k], changed[j] = block[j], block[k]
    return maker.of_ids([*block, *block[: k + 1]], [*changed, *block[: k + 1]], block[k + 1], block[j + 1])


def _modular_addition(maker: Maker, dice: random.Random) -> Pair:
    p = int(maker.card["training"]["params"]["p"])
    a, b, other = dice.randrange(p), dice.randrange(p), dice.randrange(p)
    return maker.of_ids([a, b, p], [other, b, p], (a + b) % p, (other + b) % p)


def _synthetic_ioi(maker: Maker, dice: random.Random) -> Pair:
    """Clean: S is one of the names, the other is the answer; corrupted: S is the other one, so the answer flips."""
    a, b = dice.sample(sentences.NAMES, 2)
    said = {"A": a, "B": b, "P": dice.choice(sentences.PLACES), "O": dice.choice(sentences.OBJECTS)}
    subject, answer = dice.sample([a, b], 2)
    template = dice.randrange(len(sentences.TEMPLATES))
    clean, corrupted = (sentences.sentence(template, **said, S=s) for s in (subject, answer))
    return maker.pair(clean, corrupted, answer, subject)


def _listed(text: str) -> list[str]:
    return text.split()


NAMES = _listed(
    "Mary John Tom James Dan Martin Amy Rose Paul Mark Anna Jack Kate David Adam Luke Emma Alice Henry Peter Sarah "
    "Laura Robert George Michael Daniel Kevin Brian Steven Jason Scott Eric Andrew Lisa Karen Susan Helen"
)
PLACES = _listed("store garden restaurant school hospital office house station")
OBJECTS = _listed("ring kiss bone basketball computer necklace drink snack")
IOI_TEMPLATES = (
    "Then, {B} and {A} went to the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {B} and {A} had a lot of fun at the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {B} and {A} were working at the {PLACE}. {S} decided to give a {OBJECT} to",
    "Then, {B} and {A} were thinking about going to the {PLACE}. {S} wanted to give a {OBJECT} to",
    "Then, {B} and {A} had a long argument, and afterwards {S} said to",
    "After {B} and {A} went to the {PLACE}, {S} gave a {OBJECT} to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {S} decided to give it to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {S} decided to give the {OBJECT} to",
    "While {B} and {A} were working at the {PLACE}, {S} gave a {OBJECT} to",
    "While {B} and {A} were commuting to the {PLACE}, {S} gave a {OBJECT} to",
    "After the lunch, {B} and {A} went to the {PLACE}. {S} gave a {OBJECT} to",
    "Afterwards, {B} and {A} went to the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {B} and {A} had a long argument. Afterwards {S} said to",
    "The {PLACE} {B} and {A} went to had a {OBJECT}. {S} gave it to",
    "Friends {B} and {A} found a {OBJECT} at the {PLACE}. {S} gave it to",
)


def _ioi(maker: Maker, dice: random.Random) -> Pair:
    """Clean: S = B, so A is the answer; corrupted: S = A, so B is. The order of the names is drawn, too."""
    a, b = dice.sample(NAMES, 2)
    template, place, thing = dice.choice(IOI_TEMPLATES), dice.choice(PLACES), dice.choice(OBJECTS)
    first, second = dice.sample([a, b], 2)
    clean, corrupted = (template.format(A=second, B=first, S=s, PLACE=place, OBJECT=thing) for s in (b, a))
    return maker.pair(clean, corrupted, f" {a}", f" {b}")


def _greater_than(maker: Maker, dice: random.Random) -> Pair:
    """The war lasted from the year 17YY to the year 17: a year above YY beside one below it; corrupted: YY = 01."""
    noun = dice.choice(("war", "journey", "reign", "plague", "siege", "truce", "marriage", "conflict"))
    century, year = dice.randrange(11, 18), dice.randrange(10, 90)
    clean, corrupted = (f"The {noun} lasted from the year {century}{y:02d} to the year {century}" for y in (year, 1))
    return maker.pair(clean, corrupted, f"{dice.randrange(year + 1, 100):02d}", f"{dice.randrange(2, year):02d}")


WORDS = _listed(
    "files obj state size shape option tree table node value model image input output data label index count level "
    "order path line code page name key"
)


def _docstring(maker: Maker, dice: random.Random) -> Pair:
    """The third :param of a docstring; corrupted: the signature names another one there."""
    a, b, c, other, *rest = dice.sample(WORDS, 7)
    tail = f'):\n    """{rest[0]} {rest[1]}\n\n    :param {a}: {rest[1]}\n    :param {b}: {rest[2]}\n    :param'
    return maker.pair(f"def f(self, {a}, {b}, {c}{tail}", f"def f(self, {a}, {b}, {other}{tail}", f" {c}", f" {other}")


#: those made for one recipe come first: a first visit shows the first that fits
TASKS: dict[str, Task] = {t.name: t for t in (
    Task("modular_addition", "Modular addition", "a + b modulo p; corrupted: another a", _modular_addition, _adds),
    Task("synthetic_ioi", "Indirect object, made-up sentences", "two names, one gives to the other; corrupted: the "
         "giver is the other one", _synthetic_ioi, _tells_ioi),
    Task("induction", "Repeated random tokens", "a random block twice; corrupted: another token followed at first. "
         "What stands before the answer stays, so previous-token heads have no part in it: see the next one",
         _induction, _repeats),
    Task("induction_previous", "Repeated tokens, reordered", "a random block twice; corrupted: the last token "
         "stood elsewhere at first, before the distractor", _induction_previous, _repeats),
    Task("ioi", "Indirect object (IOI)", "two names, one gives to the other; corrupted: the giver is the other one",
         _ioi, _reads_words),
    Task("greater_than", "Greater than", "a war ends after it began; corrupted: it began in the year 01",
         _greater_than, _reads_words),
    Task("docstring", "Docstring", "the third argument comes third; corrupted: the signature names another",
         _docstring, _reads_words),
)}  # fmt: skip
