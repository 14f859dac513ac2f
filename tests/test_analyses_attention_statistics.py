"""Truth of the attention statistics: closed forms for planted heads; the null's z is standard normal where keys are
exchangeable; the same numbers by hand from a real model's patterns."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.contract import Corpus, Rows, View
from backend.errors import BadInput
from tests.test_analyses_attention import Planted
from tests.test_analyses_head_scores import offset, uniform
from tests.tiny_models import opened, quiet

T = 16


def rows(n: int = 6, length: int = T) -> Rows:
    tokens = np.random.default_rng(0).integers(50, size=(n, length))
    return Rows(tokens=tokens, corpus=Corpus(source="random", rows=n, length=length))


def ask(model, given=None, **params):
    one = registry()["attention_statistics"]
    return one.compute(model, given or rows(), one.params(**params), quiet)


class RandomRows(Planted):
    """Attention with no preference for any place: softmax of independent numbers, new for every row."""

    def __init__(self, n_layers: int, n_heads: int):
        super().__init__(torch.zeros(n_layers, n_heads, 1, 1))
        self.dice = torch.Generator().manual_seed(3)

    def capture(self, tokens, points, layers=None):
        shape = (len(tokens), self.card.n_heads, tokens.shape[1], tokens.shape[1])
        hidden = torch.ones(shape[-2:], dtype=torch.bool).triu(1)
        drawn = {n: torch.randn(shape, generator=self.dice, dtype=torch.float64) * 2 for n in layers}
        return {("pattern", n): s.masked_fill(hidden, -torch.inf).softmax(-1) for n, s in drawn.items()}


@pytest.fixture(scope="module")
def planted():
    heads = [uniform(T), offset(0, T), offset(1, T), offset(3, T), offset(T, T), offset(2, T)]
    return ask(Planted(torch.stack(heads).reshape(2, 3, T, T)), top_keys=4)


def test_a_uniform_head(planted):
    row, n = planted.iloc[0], np.arange(2, T + 1)
    assert row["normalised_entropy"] == pytest.approx(1, abs=1e-12)
    assert row["effective_keys"] == pytest.approx(n.mean(), abs=1e-9)
    expected = (4 / n[n > 4]).mean()
    assert row["top_mass"] == row["top_mass_uniform"] == pytest.approx(expected, abs=1e-12)
    assert row["distance"] == pytest.approx(((n - 1) / 2).mean(), abs=1e-12)
    assert row["relative_distance"] == pytest.approx(0.5, abs=1e-12)
    assert row["first_token"] == row["diagonal"] == pytest.approx((1 / n).mean(), abs=1e-12)
    for name in ("distance", "first_token", "diagonal"):  # a uniform row is its own shuffle
        assert row[f"{name}_null"] == pytest.approx(row[name], abs=1e-9)


def test_one_hot_heads(planted):
    hot = planted.iloc[1:]
    assert (hot["normalised_entropy"] == 0).all() and (hot[["effective_keys", "top_mass"]] == 1).all(axis=None)
    assert hot["best_offset"].tolist()[:3] == [0, 1, 3] and hot["best_offset"].tolist()[4] == 2
    assert hot["offset_mass"].tolist()[:3] == [1, 1, 1]
    assert hot["diagonal"].tolist() == [1, 0, 0, 0, 0]
    i = np.arange(1, T)
    np.testing.assert_allclose(hot["distance"], [0, 1, np.minimum(3, i).mean(), i.mean(), np.minimum(2, i).mean()])
    assert hot["relative_distance"].tolist()[0] == 0 and hot["relative_distance"].tolist()[3] == 1
    assert hot["first_token"].tolist()[3] == 1
    assert (hot["offset_mass_z"].drop(4) > 10).all()


def test_the_z_of_attention_without_preferences_is_that_of_chance():
    frame = ask(RandomRows(3, 8), rows(40), max_offset=0)  # with one offset there is no choice of the best
    for name in ("distance", "relative_distance", "first_token", "diagonal", "offset_mass"):
        z = frame[f"{name}_z"]
        assert abs(z.mean()) < 0.7 and 0.6 < z.std() < 1.5 and z.abs().max() < 4, name


def test_the_best_of_many_offsets_is_set_against_the_best_of_as_many():
    frame = ask(RandomRows(3, 8), rows(40), max_offset=8)
    assert frame["offset_mass_z"].abs().mean() < 2
    many = ask(RandomRows(8, 8), rows(10), max_offset=8)
    more = many["offset_mass"] - many["offset_mass_null"]  # at the score's own offset the null would be lower each time
    assert abs(more.mean()) < 3 * more.std() / 64**0.5


def test_numbers_equal_the_definition_on_a_real_model(tmp_path):
    model, given = opened("native", tmp_path), rows()
    frame = ask(model, given, top_keys=3)
    pattern = model.capture(torch.as_tensor(given.tokens), ["pattern"])[("pattern", 1)].double().numpy()
    row = frame[(frame["layer"] == 1) & (frame["head"] == 2)].iloc[0]
    per_row = {"normalised_entropy": [], "top_mass": [], "distance": [], "first_token": []}
    for p in pattern[:, 2]:
        q = [p[i, : i + 1] for i in range(T)]
        per_row["normalised_entropy"].append(np.mean([-(x * np.log(x)).sum() / np.log(len(x)) for x in q[1:]]))
        per_row["top_mass"].append(np.mean([np.sort(x)[-3:].sum() for x in q[3:]]))
        per_row["distance"].append(np.mean([(x * (i - np.arange(i + 1))).sum() for i, x in enumerate(q)][1:]))
        per_row["first_token"].append(np.mean([x[0] for x in q[1:]]))
    for name, values in per_row.items():
        assert row[name] == pytest.approx(np.mean(values), abs=1e-6), name
        assert row[f"{name}_se"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(6), abs=1e-6), name


def test_rows_in_batches_change_nothing_but_the_null(tmp_path, monkeypatch):
    model = opened("native", tmp_path)
    whole = ask(model)
    monkeypatch.setattr("backend.analyses._asking.CAPTURE_BYTES", 4 * 8 * T**2 * 4)
    split = ask(model)
    kept = [c for c in whole if not c.endswith(("_null", "_z"))]
    np.testing.assert_allclose(whole[kept], split[kept], atol=1e-12)


def test_a_bidirectional_model_sees_all_keys():
    both = Planted(torch.full((1, 1, T, T), 1 / T, dtype=torch.float64))
    both.card = SimpleNamespace(**{**vars(both.card), "capabilities": ["attention_patterns"]})
    row = ask(both, top_keys=4).iloc[0]
    assert row["normalised_entropy"] == pytest.approx(1) and row["effective_keys"] == pytest.approx(T)
    assert row["top_mass"] == row["top_mass_uniform"] == pytest.approx(4 / T)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_every_architecture_answers(kind, tmp_path):
    frame = ask(opened(kind, tmp_path), rows(4, 10))
    assert len(frame) == 12 and frame["normalised_entropy"].between(0, 1).all()


def test_short_rows():
    with pytest.raises(BadInput, match="one token"):
        ask(Planted(uniform(1)[None, None]), rows(2, 1))
    three = ask(Planted(uniform(3)[None, None]), rows(1, 3))
    assert three["top_mass"].isna().all() and three["top_mass_uniform"].isna().all()  # no query sees more than 5
    assert three["distance_se"].isna().all() and three["best_offset"].le(1).all()  # one row has no error


def test_maps_have_limits_of_their_own(planted):
    figure = registry()["attention_statistics"].figures["overview"].build(planted, View())
    spans = {t.name: (t.zmin, t.zmax) for t in figure.data}
    assert spans["entropy / ln n"] == (0, 1) and spans["distance (tokens)"][1] > 5
    bars = registry()["attention_statistics"].figures["offsets"].build(planted, View()).data
    assert bars[0].name == "null" and "L1H0 −3" in bars[1].x
