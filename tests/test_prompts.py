"""Tasks of pairs: what they make is checked against a real vocabulary, or refused with the reason."""

import json
import re
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from backend.errors import BadInput, Unfit
from backend.models import prompts, sentences, tokens

IDS = {"spec": "run:toy", "n_ctx": 32, "d_vocab": 40, "d_vocab_out": 40, "capabilities": ["next_token"],
       "tokenizer": {"kind": "ids"}, "training": {}}
WORDS = {"kind": "words", "symbols": list(sentences.SYMBOLS)}
IOI = {**IDS, "n_ctx": sentences.N_CTX, "d_vocab": 70, "d_vocab_out": 70, "tokenizer": WORDS,
       "training": {"recipe": "synthetic_ioi", "params": {}}}
ADDS = {**IDS, "n_ctx": 3, "d_vocab": 12, "d_vocab_out": 11, "capabilities": [],
        "training": {"recipe": "modular_addition", "params": {"p": 11}}}


def told():
    """Text in which every name, word, year and argument of the tasks stands alone many times."""
    listed = [*prompts.NAMES, *prompts.PLACES, *prompts.OBJECTS, *prompts.WORDS]
    frames = [re.sub(r"[{].*?[}]", "", t) for t in prompts.IOI_TEMPLATES]
    nouns = ["war", "journey", "reign", "plague", "siege", "truce", "marriage", "conflict"]
    years = [f"The {noun} lasted from the year to the year" for noun in nouns]
    return [f" {w} {w}" for w in listed for _ in range(8)] + [*frames, *years, "def f(self, ):\n  :param: "] * 20


def bpe(alone=True):
    """A byte-level BPE whose merges make every listed word one token; without `alone`, no merges at all."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                  pre_tokenizers.ByteLevel(add_prefix_space=False)])
    size = 3000 if alone else 257
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, min_frequency=2,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    made.train_from_iterator(told(), trainer)
    return made


def card_with(made, n_ctx=128):
    n = made.get_vocab_size()
    return {**IDS, "n_ctx": n_ctx, "d_vocab": n, "d_vocab_out": n, "tokenizer": {"kind": "hf", "json": made.to_str()}}


@pytest.fixture(scope="module")
def text():
    return card_with(bpe())


@pytest.fixture(scope="module")
def two_digits():
    """A word-level vocabulary with years of two digits, as GPT-2 has them."""
    years = [f"{y:02d}" for y in range(100)]
    nouns = ["war", "journey", "reign", "plague", "siege", "truce", "marriage", "conflict"]
    words = ["The", "lasted", "from", "the", "year", "to", "?", *nouns, *years]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    pieces = pre_tokenizers.Split(__import__("tokenizers").Regex(r"[0-9]{2}|[A-Za-z]+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pieces])
    return card_with(made)


def words_of(card, ids):
    return tokens.tokenizer_from(card["tokenizer"]).labels(ids)


def assert_sound(card, made, n):
    assert len(made.pairs) == n == len(set(made.pairs))
    for pair in made.pairs:
        assert len(pair.clean) == len(pair.corrupted) <= card["n_ctx"] and pair.clean != pair.corrupted
        assert max(*pair.clean, *pair.corrupted) < card["d_vocab"] and pair.answer != pair.distractor
        assert max(pair.answer, pair.distractor) < card["d_vocab_out"]


@pytest.mark.parametrize(("card", "task"), [(IDS, "induction"), (IDS, "induction_previous"),
                                            (ADDS, "modular_addition"), (IOI, "synthetic_ioi")])  # fmt: skip
def test_the_same_seed_gives_the_same_pairs_and_another_gives_others(card, task):
    made = prompts.make(card, task, 12, 3)
    assert_sound(card, made, 12)
    assert prompts.make(card, task, 12, 3) == made
    assert prompts.make(card, task, 12, 4).pairs != made.pairs
    if len(made.by_length()) == 1:  # else a pair that is alone in its length makes way for another
        assert prompts.make(card, task, 5, 3).pairs == made.pairs[:5]


@pytest.mark.parametrize("n_ctx", [8, 32])
def test_induction_previous_moves_what_stands_before_the_answer_and_nothing_that_answers(n_ctx):
    for pair in prompts.make({**IDS, "n_ctx": n_ctx}, "induction_previous", 20, 0).pairs:
        n = n_ctx // 2
        last, changed = pair.clean[-1], [i for i in range(2 * n - 1) if pair.clean[i] != pair.corrupted[i]]
        assert pair.clean[pair.clean.index(last) + 1] == pair.answer
        assert pair.corrupted[pair.corrupted.index(last) + 1] == pair.distractor
        assert len(changed) == 2 and max(changed) < n and sorted(pair.clean) == sorted(pair.corrupted)
        assert all(pair.clean.index(t) == pair.corrupted.index(t) for t in (pair.answer, pair.distractor))


def test_induction_asks_for_what_followed_before():
    for pair in prompts.make(IDS, "induction", 20, 0).pairs:
        query = pair.clean[-1]
        at = pair.clean.index(query)
        assert pair.clean[at + 1] == pair.answer and pair.corrupted[at + 1] == pair.distractor
        assert sum(a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)) == 1


def test_modular_addition_is_right_on_both_sides():
    for pair in prompts.make(ADDS, "modular_addition", 20, 0).pairs:
        assert sum(pair.clean[:2]) % 11 == pair.answer and sum(pair.corrupted[:2]) % 11 == pair.distractor
        assert pair.clean[1:] == pair.corrupted[1:] and pair.clean[2] == 11


def test_synthetic_sentences_flip_their_answer_in_all_four_templates():
    made = prompts.make(IOI, "synthetic_ioi", 100, 0)
    assert_sound(IOI, made, 100)
    assert set(made.by_length()) == {13, 14, 15, 17}  # BOS and 12, 13, 14, 16 words: one length per template
    for pair in made.pairs:
        clean, corrupted = (words_of(IOI, ids) for ids in (pair.clean, pair.corrupted))
        answer, distractor = words_of(IOI, [pair.answer, pair.distractor])
        (place,) = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
        assert clean[place] == distractor and corrupted[place] == answer  # the giver is not who it is given to
        assert clean.count(answer) == 1 and clean.count(distractor) == 2 and clean[0] == "BOS" and clean[-1] == "to"


def test_no_prompt_is_alone_in_its_length():
    """Means over prompts are taken by length: alone, a prompt's mean would be itself."""
    for n, seed in ((16, 0), (16, 1), (5, 2), (2, 3), (3, 4)):
        lengths = Counter(len(p.clean) for p in prompts.make(IOI, "synthetic_ioi", n, seed).pairs)
        assert sum(lengths.values()) == n and 1 not in lengths.values()
    assert len(prompts.make(IOI, "synthetic_ioi", 1, 0).pairs) == 1


def test_ioi_on_a_real_tokenizer(text):
    made = prompts.make(text, "ioi", 30, 0)
    assert_sound(text, made, 30)
    for pair in made.pairs:
        (answer, distractor) = words_of(text, [pair.answer, pair.distractor])
        clean = words_of(text, pair.clean)
        assert answer[0] == "·" and answer[1:] in prompts.NAMES and distractor[1:] in prompts.NAMES
        assert clean.count(answer) == 1 and clean.count(distractor) == 2
        assert words_of(text, pair.corrupted).count(answer) == 2


def test_docstring_on_a_real_tokenizer(text):
    made = prompts.make(text, "docstring", 10, 1)
    assert_sound(text, made, 10)
    for pair in made.pairs:
        answer, distractor = words_of(text, [pair.answer, pair.distractor])
        clean, corrupted = ("".join(words_of(text, ids)) for ids in (pair.clean, pair.corrupted))
        assert f",{answer}):" in clean and f",{distractor}):" in corrupted and clean.endswith(":param")
        assert clean.replace(answer, distractor) == corrupted


def test_greater_than_on_a_tokenizer_of_two_digits(two_digits):
    made = prompts.make(two_digits, "greater_than", 30, 2)
    assert_sound(two_digits, made, 30)
    for pair in made.pairs:
        years = [w for w in words_of(two_digits, pair.clean) if w.isdigit()]
        answer, distractor = map(int, words_of(two_digits, [pair.answer, pair.distractor]))
        assert len(years) == 3 and years[0] == years[2] and answer > int(years[1]) > distractor > 1
        assert [w for w in words_of(two_digits, pair.corrupted) if w.isdigit()] == [years[0], "01", years[2]]


@pytest.mark.parametrize("task", ["greater_than"])
def test_single_digits_are_no_years(text, task):
    with pytest.raises(Unfit, match="is 2 tokens in this vocabulary"):
        prompts.make(text, task, 4, 0)
    assert "tokens in this vocabulary" in prompts.fitting(text)[task]


def test_names_of_several_tokens_are_refused():
    with pytest.raises(Unfit, match=r"Answer ' \w+': it is \d tokens in this vocabulary"):
        prompts.make(card_with(bpe(alone=False)), "ioi", 4, 0)


def test_a_short_context_is_refused(text):
    with pytest.raises(BadInput, match="too long by"):
        prompts.make({**text, "n_ctx": 8}, "docstring", 2, 0)


def test_every_task_says_why_it_does_not_fit():
    assert prompts.fitting(IDS) == {
        "induction": "", "induction_previous": "", "modular_addition": "it was not trained on modular addition",
        "synthetic_ioi": "it was not trained on the made-up sentences", "ioi": "it has no tokenizer",
        "greater_than": "it has no tokenizer", "docstring": "it has no tokenizer"}
    reasons = prompts.fitting(IOI)
    assert [t for t, why in reasons.items() if not why] == ["synthetic_ioi", "induction", "induction_previous"]
    assert "its own made-up sentences" in reasons["ioi"] == reasons["docstring"]
    chars = {**IDS, "tokenizer": {"kind": "chars", "symbols": list("abc")}}
    assert "characters" in prompts.fitting(chars)["ioi"]
    assert prompts.fitting(ADDS)["induction"] == "it does not predict its own vocabulary"
    assert "below 8" in prompts.fitting({**IDS, "n_ctx": 4})["induction"]
    other = {**IOI, "tokenizer": {"kind": "words", "symbols": ["a"] * 70}}
    assert prompts.fitting(other)["synthetic_ioi"]


def test_an_unknown_task_is_named():
    with pytest.raises(BadInput, match="no such task.*synthetic_ioi"):
        prompts.make(IDS, "nothing", 1, 0)


def test_fewer_pairs_than_asked_are_said():
    tiny = {**ADDS, "training": {"recipe": "modular_addition", "params": {"p": 2}}, "d_vocab_out": 2, "d_vocab": 3}
    made = prompts.make(tiny, "modular_addition", 100, 0)
    assert 1 <= len(made.pairs) <= 4 and f"{len(made.pairs)} pairs" in made.text


# ---------------------------------------------------------------- the user's own

ROW = {"clean": "1 2 3", "corrupted": "1 4 3", "answer": "2", "distractor": "4"}


def test_own_pairs_of_ids_and_of_text(text):
    (pair,) = prompts.own(IDS, [ROW]).pairs
    assert (pair.clean, pair.corrupted, pair.answer, pair.distractor) == ((1, 2, 3), (1, 4, 3), 2, 4)
    listed = {"clean": [1, 2, 3], "corrupted": [1, 4, 3], "answer": 2, "distractor": 4}
    assert prompts.own(IDS, [listed]).pairs == (pair,)
    row = {"clean": " Mary gave", "corrupted": " John gave", "answer": " Mary", "distractor": " John"}
    (spoken,) = prompts.own(text, [json.loads(json.dumps(row))]).pairs
    assert words_of(text, [spoken.answer, spoken.distractor]) == ["·Mary", "·John"]


@pytest.mark.parametrize(("change", "words"), [
    ({"clean": "1 2"}, "clean prompt has 2 tokens, the corrupted one 3"),
    ({"answer": "4"}, "answer and distractor are the same"), ({"answer": "2 3"}, "it is 2 tokens"),
    ({"answer": ""}, "no answer"), ({"clean": "1 2 99"}, "outside the vocabulary 0..39"),
    ({"clean": [1, 2, -3]}, "Token -3"), ({"answer": -1}, "Token -1"), ({"clean": "a b c"}, "no number"),
    ({"clean": 5}, "neither text nor a list"), ({"clean": ["x", 2, 3]}, "neither text"),
    ({"answer": 2.5}, "neither text"), ({"answer": True}, "neither text"),
    ({"clean": " ".join("1" * 33), "corrupted": " ".join("2" * 33)}, "too long by 1"),
])  # fmt: skip
def test_own_pairs_name_the_row_and_what_is_wrong(change, words):
    with pytest.raises(BadInput, match=words) as told_:
        prompts.own(IDS, [ROW, {**ROW, **change}])
    assert told_.value.asked.startswith("Pair 2")


def test_own_pairs_are_neither_none_nor_too_many():
    for rows in ([], [ROW] * 513):
        with pytest.raises(BadInput, match="Give 1 to 512 rows"):
            prompts.own(IDS, rows)
    for rows in ("abc", ["abc"], {"clean": "1"}, [[1]]):
        with pytest.raises(BadInput, match="no list of rows"):
            prompts.own(IDS, rows)


def test_words_are_read_at_spaces_and_an_unknown_one_is_named():
    made = tokens.tokenizer_from(WORDS)
    assert made.labels(made.encode("  Mary  and John ")) == ["Mary", "and", "John"] and made.kind == "words"
    assert made.encode(",") == [sentences.SYMBOLS.index(",")] and len(set(sentences.SYMBOLS)) == 70
    with pytest.raises(BadInput, match="word 'Bob' at position 2 is not among its 70 words"):
        made.encode("Mary and Bob")
    for text_ in ("", "  \n"):
        with pytest.raises(BadInput):
            made.encode(text_)
