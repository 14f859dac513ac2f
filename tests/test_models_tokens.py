"""Tokenizers of the four kinds (words: tests/test_prompts.py), without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from backend.errors import BadInput, Unfit
from backend.models.tokens import check_length, parse_ids, tokenizer_from

CHARS = {"kind": "chars", "symbols": ["\n", " ", "a", "b"]}


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<|end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    made.train_from_iterator(["the cat the cat the hat"] * 9, trainer)
    return made


def test_byte_level_pieces_show_spaces_newlines_and_half_characters(byte_level: Tokenizer) -> None:
    made = tokenizer_from({"kind": "hf", "json": byte_level.to_str()})
    ids = made.encode("the cat\n€")
    assert ids == byte_level.encode("the cat\n€").ids
    labels = made.labels(ids)
    assert labels[:3] == ["the", "·cat", "⏎"] and labels[3:] == ["\\xe2", "\\x82", "\\xac"]
    assert made.label(0) == "<|end|>" and made.label(99999) == "99999" and made.kind == "hf"


def test_a_long_text_is_never_cut(byte_level: Tokenizer) -> None:
    cutting = Tokenizer.from_str(byte_level.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=50)
    ours = tokenizer_from({"kind": "hf", "json": cutting.to_str()})
    assert ours.encode("the " * 30) == byte_level.encode("the " * 30).ids and len(ours.encode("cat")) < 4


def test_sentencepiece_pieces_and_the_tokenizers_own_special_tokens() -> None:
    made = Tokenizer(models.BPE({"<s>": 0, "▁": 1, "h": 2, "i": 3, "▁h": 4, "▁hi": 5, "<0x0A>": 6},
                                [("▁", "h"), ("▁h", "i")], byte_fallback=True))  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    ours = tokenizer_from({"kind": "hf", "json": made.to_str()})
    assert ours.encode("hi hi") == [0, 5, 5]
    assert ours.labels([0, 5, 3, 6]) == ["<s>", "·hi", "i", "⏎"]


def test_characters() -> None:
    made = tokenizer_from(CHARS)
    assert made.encode("ab a\n") == [2, 3, 1, 2, 0]
    assert made.labels([2, 1, 0, 9]) == ["a", "·", "⏎", "9"]
    with pytest.raises(BadInput, match=r"symbol 'z' at position 2 is not among its 4 characters"):
        made.encode("abz")


def test_a_model_without_a_tokenizer_asks_for_ids() -> None:
    made = tokenizer_from({"kind": "ids"})
    assert made.labels([5, 17]) == ["5", "17"]
    with pytest.raises(Unfit, match=r"no tokenizer\. Type token ids instead"):
        made.encode("a")


@pytest.mark.parametrize("kind", ["hf", "chars"])
def test_empty_text(kind: str, byte_level: Tokenizer) -> None:
    with pytest.raises(BadInput, match="it is empty"):
        tokenizer_from(CHARS if kind == "chars" else {"kind": "hf", "json": byte_level.to_str()}).encode("")


def test_unreadable_tokenizers() -> None:
    with pytest.raises(BadInput, match="no such kind"):
        tokenizer_from({"kind": "syllables"})
    with pytest.raises(BadInput, match=r"tokenizer\.json cannot be read"):
        tokenizer_from({"kind": "hf", "json": "{}"})


def test_ids_from_text() -> None:
    assert parse_ids("5, 17 3", 20) == parse_ids("[5,17,3]", 20) == parse_ids("5;17\n3 ", 20) == [5, 17, 3]
    wrong = {"": "there are none", " , ": "there are none", "5, x": "'x' is no number", "3.5": "no number",
             "20": r"outside the vocabulary 0\.\.19", "-1": "Token -1"}  # fmt: skip
    for text, words in wrong.items():
        with pytest.raises(BadInput, match=words):
            parse_ids(text, 20)
    with pytest.raises(BadInput):
        parse_ids("9" * 5000, 20)


def test_length() -> None:
    check_length([1] * 8, 8)
    with pytest.raises(BadInput, match=r"too long by 3 \(n_ctx 8\)"):
        check_length([1] * 11, 8)
    with pytest.raises(BadInput, match="there are none"):
        check_length([], 8)


def test_the_torch_free_modules_stay_torch_free() -> None:
    code = ("import sys; from backend.models import fingerprints, hub, registry, tokens; "
            "from huggingface_hub import snapshot_download; import tokenizers; "
            "print([m for m in ('torch', 'transformers', 'transformer_lens') if m in sys.modules])")  # fmt: skip
    loud = code.replace("tokens; ", "tokens, load; ")
    said = [subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True) for c in (code, loud)]
    assert said[0].stdout.strip() == "[]"
    assert "torch" in said[1].stdout, "the check itself must be able to fail"
