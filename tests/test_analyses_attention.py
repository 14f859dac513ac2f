"""Truth of the attention analysis: rows are distributions, equal the plain forward's, and scores are closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.analyses._asking import patterns
from backend.contract import Prompt, View
from backend.errors import BadInput, Broken
from tests.tiny_models import hugging_face, opened, quiet

TOKENS = (3, 9, 4, 9, 1, 3, 9, 9)


class Planted:
    """A model whose attention is what the test says: pattern [layer, head, query, key], the same for every row."""

    def __init__(self, pattern: torch.Tensor, n_ctx: int = 64):
        n_layers, n_heads = pattern.shape[:2]
        self.pattern = pattern
        self.card = SimpleNamespace(n_layers=n_layers, n_heads=n_heads, n_ctx=n_ctx, d_vocab=50, d_vocab_out=50,
                                    device="cpu", spec="planted", capabilities=["attention_patterns", "causal"])

    def capture(self, tokens, points, layers=None):
        return {("pattern", n): self.pattern[n].expand(len(tokens), *self.pattern[n].shape) for n in layers}


def ask(model, tokens=TOKENS):
    attention = registry()["attention"]
    return attention.compute(model, Prompt(tokens=tokens), attention.params(), quiet)


def planted(rows: torch.Tensor):
    return ask(Planted(rows[None, None]))


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_rows_sum_to_one_and_equal_the_plain_forward(kind, tmp_path):
    frame = ask(opened(kind, tmp_path, "float32"))
    got = np.stack(list(frame["pattern"])).astype(np.float64).reshape(3, 4, 8, 8)
    with torch.no_grad():
        own = hugging_face(kind)(torch.tensor([TOKENS]), output_attentions=True).attentions
    np.testing.assert_allclose(got, torch.cat(own).numpy(), atol=1e-3)
    np.testing.assert_allclose(got.sum(-1), 1, atol=4e-3)  # eight float16 roundings
    assert np.abs(got - 1 / 8).max() > 0.5  # a test on near-uniform attention would prove little


def test_patterns_equal_the_plain_forward_in_float64(tmp_path):
    model = opened("gpt2", tmp_path)
    own = model.bare(torch.tensor([TOKENS]), output_attentions=True).attentions
    for layer, pattern in patterns(model, torch.tensor([TOKENS])):
        torch.testing.assert_close(pattern, own[layer], rtol=0, atol=1e-12)
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]), rtol=0, atol=1e-12)


def test_uniform_attention():
    n = torch.arange(1, 9, dtype=torch.float64)
    frame = planted(torch.ones(8, 8, dtype=torch.float64).tril() / n[:, None])
    np.testing.assert_allclose(frame["entropy"], n.log().numpy(), atol=1e-12)
    np.testing.assert_allclose(frame["normalised_entropy"][1:], 1, atol=1e-12)
    np.testing.assert_allclose(frame["first_token"], (1 / n).numpy(), atol=1e-12)
    assert frame["normalised_entropy"].isna().tolist() == [True] + [False] * 7


def test_one_hot_attention_to_the_previous_token():
    rows = torch.eye(8, dtype=torch.float64).roll(-1, 1)
    rows[0] = torch.eye(8, dtype=torch.float64)[0]
    frame = planted(rows)
    assert (frame["entropy"] == 0).all() and (frame["normalised_entropy"][1:] == 0).all()


def previous_token_rows() -> torch.Tensor:
    rows = torch.diag_embed(torch.ones(7, dtype=torch.float64), offset=-1)
    rows[0, 0] = 1
    return rows


def test_previous_token():
    frame = planted(previous_token_rows())
    assert np.isnan(frame["previous_token"][0]) and (frame["previous_token"][1:] == 1).all()
    assert frame["first_token"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_induction_counts_every_earlier_occurrence_and_is_null_for_new_tokens():
    rows = torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril()
    rows /= rows.sum(-1, keepdim=True)
    found = planted(rows)["induction"]
    for query, token in enumerate(TOKENS):
        keys = [p + 1 for p in range(query) if TOKENS[p] == token]
        if keys:
            assert found[query] == pytest.approx(sum(rows[query, k].item() for k in keys), abs=1e-12)
        else:
            assert np.isnan(found[query])
    assert found.isna().tolist() == [True, True, True, False, True, False, False, False]


def test_rows_that_are_no_distribution_are_refused():
    for wrong in (0.9 * previous_token_rows(), torch.full((8, 8), float("nan"), dtype=torch.float64)):
        with pytest.raises(Broken, match="row sums to 1 with an error"):
            planted(wrong)


def test_capture_in_pieces_changes_nothing(tmp_path, monkeypatch):
    model = opened("native", tmp_path)
    whole = ask(model)
    monkeypatch.setattr("backend.analyses._asking.CAPTURE_BYTES", 1)  # one layer per forward
    again = ask(model)
    assert whole.drop(columns="pattern").equals(again.drop(columns="pattern"))


def test_too_long_a_prompt_is_refused_in_words(tmp_path):
    with pytest.raises(BadInput, match="24"):
        ask(opened("native", tmp_path), tuple(range(30)))


def test_the_head_figure_shows_the_chosen_head(tmp_path):
    frame = ask(opened("native", tmp_path))
    tokens = [" the", "\n", "<b>", "a" * 40, "x", "y", "", "·"]
    figure = registry()["attention"].figures["head"].build(
        frame, View(tokens=tokens, chosen={"layer": "1", "head": 2}))
    part = frame[(frame["layer"] == 1) & (frame["head"] == 2)]
    drawn = np.nan_to_num(np.asarray(figure.data[0].z, np.float16))  # what no query sees is not drawn
    np.testing.assert_array_equal(drawn, np.stack(list(part["pattern"])))
    shown = figure.layout.xaxis.ticktext
    assert shown[:3] == ("·the", "⏎", "&lt;b&gt;") and shown[3].endswith("…") and shown[6] == "∅"
    words = figure.data[1].text[8 * 7 + int(np.argmax(part["pattern"].iloc[7]))]  # the last query's largest
    assert "query position 7" in words and "rank 0 of this" in words
    assert figure.layout.title.text == "L1H2" and figure.layout.uirevision == "keep"


def test_a_chosen_head_of_one_part_only(tmp_path):
    """A page fetches the arrays of one head; the rows of the others hold no pattern."""
    frame = ask(opened("native", tmp_path))
    mine = (frame["layer"] == 1) & (frame["head"] == 3)
    frame["pattern"] = frame["pattern"].where(mine, None)
    figure = registry()["attention"].figures["head"].build(frame, View())
    assert figure.layout.title.text == "L1H3"
