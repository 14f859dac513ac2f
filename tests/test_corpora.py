"""Rows of a corpus: each source is what it says, the same corpus gives the same rows, the rest is refused."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from backend.contract import Corpus
from backend.errors import BadInput, Unfit
from backend.models import sentences
from backend.runs import corpora, recipes

CHARS = {"kind": "chars", "symbols": [chr(c) for c in (10, *range(32, 127))]}


def card(**more):
    fields = {"spec": "run:toy", "n_ctx": 24, "d_vocab": 97, "tokenizer": {"kind": "ids"}, "training": {}, **more}
    return SimpleNamespace(**fields)


def trained(recipe, reads, knows, tokenizer=None, **params):
    made = recipes.get(recipe).params(**params)
    return card(n_ctx=reads, d_vocab=knows, tokenizer=tokenizer or {"kind": "ids"},
                training={"recipe": recipe, "params": made.model_dump()})


INDUCTION = trained("induction", 16, 12, n_ctx=16, d_vocab=12)
IOI = trained("synthetic_ioi", sentences.N_CTX, 70, {"kind": "words", "symbols": list(sentences.SYMBOLS)})


def rows(model, **given):
    found = corpora.rows_of(model, Corpus(**given))
    assert found.corpus == Corpus(**given) and found.tokens.dtype == np.int64 and found.tokens.flags.c_contiguous
    return found.tokens


@pytest.mark.parametrize(("model", "source"), [(card(), "random"), (INDUCTION, "training"), (IOI, "training"),
                                               (card(tokenizer=CHARS), "python")])  # fmt: skip
def test_shape_determinism_and_seed(model, source):
    ask = {"source": source, "rows": 6, "length": 10}
    found = rows(model, **ask, seed=1)
    assert found.shape == (6, 10) and found.min() >= 0 and found.max() < model.d_vocab
    assert np.array_equal(found, rows(model, **ask, seed=1)) and not np.array_equal(found, rows(model, **ask, seed=2))
    assert rows(model, source=source, rows=2, length=5000).shape == (2, model.n_ctx)  # cut to what the model reads


def test_training_rows_are_the_recipes_own():
    found = rows(INDUCTION, source="training", rows=40, length=16)
    for row in found:  # tiled blocks of 2 to 8 tokens
        assert any((row[n:] == row[:-n]).all() for n in range(2, 9))
    sampled = recipes.get("induction").sample(recipes.get("induction").params(n_ctx=16, d_vocab=12), 40, 0)
    assert np.array_equal(found, sampled.numpy())


def test_sentences_of_the_ioi_recipe():
    found = rows(IOI, source="training", rows=30, length=17)
    words = np.array(sentences.SYMBOLS)[found]
    assert (words[:, 0] == "BOS").all() and all(list(w).index("to") >= 0 for w in words)
    said = [" ".join(w).replace(" PAD", "") for w in words]
    assert all(s.endswith(" to") for s in said) and {len(s.split()) for s in said} <= {13, 14, 15, 17}


def test_random_tokens_are_uniform():
    counts = np.bincount(rows(card(d_vocab=8), source="random", rows=4000, length=8).ravel(), minlength=8) / 32_000
    assert np.abs(counts - 1 / 8).max() < 5 * (7 / 64 / 32_000) ** 0.5


def test_a_texts_rows_are_stretches_of_it(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat; ünder it a dog. " * 30)
    model = card(tokenizer=CHARS)
    digest = corpora.digest_of(str(path))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = rows(model, source="file", path=str(path), digest=digest, rows=9, length=24)
    known = "".join(c for c in path.read_text() if c in CHARS["symbols"])  # of unknown characters nothing is left
    assert len({tuple(r) for r in found.tolist()}) > 3
    for row in found:
        assert "".join(CHARS["symbols"][i] for i in row) in known
    path.write_text("another text " * 40)
    with pytest.raises(BadInput, match="another text than when it was asked for"):
        corpora.rows_of(model, Corpus(source="file", path=str(path), digest=digest))


def test_pythons_library_reads_like_python():
    found = rows(card(tokenizer=CHARS, n_ctx=2000), source="python", rows=3, length=2000)
    text = "".join(CHARS["symbols"][i] for i in found.ravel())
    assert "def " in text and "self" in text


def test_the_path_is_no_part_of_a_corpus_identity():
    one, two = (Corpus(source="file", path=p, digest="d").identity() for p in ("a", "b"))
    assert one == two != Corpus(source="file", path="a", digest="e").identity()


@pytest.mark.parametrize(("model", "given", "error", "words"), [
    (card(), {"source": "training"}, Unfit, "it is no run of a recipe"),
    (trained("linear_control", 24, 97), {"source": "training"}, Unfit, "draws no token rows"),
    (card(), {"source": "python"}, Unfit, "no tokenizer"), (IOI, {"source": "python"}, Unfit, "short list of words"),
    (card(), {"source": "file", "path": "x"}, Unfit, "no tokenizer"),
    (card(tokenizer=CHARS), {"source": "file", "path": "no/such.txt"}, BadInput, "no/such.txt"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused(model, given, error, words):
    with pytest.raises(error, match=words):
        corpora.rows_of(model, Corpus(**given))


def test_a_text_shorter_than_a_row_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(BadInput, match="it has 3 tokens, a row takes 24"):
        corpora.rows_of(card(tokenizer=CHARS), Corpus(source="file", path=str(tmp_path / "short.txt")))
    with pytest.raises(BadInput, match="cannot be read"):
        corpora.digest_of(str(tmp_path))
