"""Truth of the head scores: planted heads score 1 and get their label, uniform and random ones get none."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.contract import View, Weights
from backend.errors import BadInput
from tests.test_analyses_attention import Planted
from tests.tiny_models import opened, quiet

N = 25
LABELS = ["induction", "previous-token", "duplicate-token", "first-token"]
NAMES = ["induction", "previous_token", "duplicate_token", "first_token"]


def ask(model, **params):
    scores = registry()["head_scores"]
    return scores.compute(model, Weights(), scores.params(**params), quiet)


def offset(back: int, length: int) -> torch.Tensor:
    """Attention of 1 to the key `back` positions earlier, to position 0 where there is none."""
    rows = torch.zeros(length, length, dtype=torch.float64)
    query = torch.arange(length)
    rows[query, (query - back).clamp(min=0)] = 1
    return rows


def uniform(length: int) -> torch.Tensor:
    rows = torch.ones(length, length, dtype=torch.float64).tril()
    return rows / rows.sum(-1, keepdim=True)


def planted(n: int = N) -> Planted:
    """Two layers of three heads: induction, previous, duplicate; first-token, uniform, two back."""
    t = 2 * n
    heads = [offset(n - 1, t), offset(1, t), offset(n, t), offset(t, t), uniform(t), offset(2, t)]
    return Planted(torch.stack(heads).reshape(2, 3, t, t))


def test_planted_heads_score_one_and_get_their_label():
    frame = ask(planted())
    assert frame["label"].tolist() == [*LABELS, "none", "none"]
    for i, name in enumerate(NAMES):
        assert frame[f"{name}_score"][i] == pytest.approx(1, abs=1e-12)
        assert frame[f"{name}_score_se"][i] == pytest.approx(0, abs=1e-12)
        assert frame[f"{name}_z"][i] > 50
    assert frame["induction_score"].round(12).tolist() == [1, 0, 0, 0, pytest.approx(0.0277, abs=2e-3), 0]


def test_the_null_is_the_mean_over_visible_keys():
    """A shuffled row has the mean 1/(i+1) at any visible key, whatever the head does."""
    frame = ask(planted(), rows=1024)
    ranges = {"induction": range(N, 2 * N - 1), "previous_token": range(1, 2 * N),
              "duplicate_token": range(N, 2 * N), "first_token": range(1, 2 * N)}
    for name, queries in ranges.items():
        expected = np.mean([1 / (i + 1) for i in queries])
        np.testing.assert_allclose(frame[f"{name}_null"], expected, atol=0.01)
    assert frame["induction_null"].std() > 0  # shuffled, not replaced by its mean


def test_a_uniform_head_is_its_own_null():
    frame = ask(planted())
    for name in NAMES:
        assert frame[f"{name}_null"][4] == pytest.approx(frame[f"{name}_score"][4], abs=1e-12)


def test_entropy_of_uniform_and_one_hot_heads():
    frame = ask(planted())
    assert frame["entropy"][4] == pytest.approx(np.mean([math.log(i + 1) for i in range(2 * N)]), abs=1e-12)
    assert (frame["entropy"][[0, 1, 2, 3, 5]] == 0).all()


def test_a_score_below_the_threshold_earns_no_label():
    half = planted()
    half.pattern = 0.5 * half.pattern + 0.5 * uniform(2 * N)
    assert ask(half, threshold=0.5).loc[0, "label"] == "induction"
    assert ask(half, threshold=0.6)["label"].tolist() == ["none"] * 6


def test_a_score_within_the_errors_of_its_null_earns_no_label():
    """With n = 2 and two rows the shuffled score is as high as the head's own, above any threshold."""
    frame = ask(Planted(torch.stack([uniform(4)] * 2)[None]), block_length=2, rows=2, threshold=0.0)
    assert set(frame["label"]) == {"none"}


def test_standard_errors_are_over_rows(tmp_path):
    model = opened("native", tmp_path)
    few, many = ask(model, rows=8, seed=1), ask(model, rows=512, seed=1)
    ratio = (few["entropy_se"] / many["entropy_se"]).median()
    assert 4 < ratio < 16  # sqrt(512 / 8) = 8
    off = (few["entropy"] - many["entropy"]).abs() / few["entropy_se"]
    assert off.median() < 3


def test_scores_equal_the_definition_on_the_same_tokens(tmp_path):
    model, seen = opened("native", tmp_path), []
    spy = SimpleNamespace(card=model.card, capture=lambda t, *a: seen.append(t) or model.capture(t, *a))
    frame = ask(spy, rows=4)
    n = 12  # n_ctx 24
    tokens = seen[0]
    assert tokens.shape == (4, 2 * n) and torch.equal(tokens[:, :n], tokens[:, n:])
    for layer in range(2):
        p = model.capture(tokens, ["pattern"])[("pattern", layer)].double()
        for head in range(4):
            row = frame[(frame["layer"] == layer) & (frame["head"] == head)].iloc[0]
            per_row = [np.mean([p[b, head, i, i - n + 1].item() for i in range(n, 2 * n - 1)]) for b in range(4)]
            assert row["induction_score"] == pytest.approx(np.mean(per_row), abs=1e-12)
            assert row["induction_score_se"] == pytest.approx(np.std(per_row, ddof=1) / 2, abs=1e-12)


def test_random_models_have_no_labels_and_seeds_decide(tmp_path):
    model = opened("native", tmp_path)
    a, b, c = ask(model), ask(model), ask(model, seed=1)
    assert set(a["label"]) == {"none"}
    assert a.equals(b) and not a.equals(c)


def test_rows_in_batches_change_no_score(tmp_path, monkeypatch):
    model = opened("native", tmp_path)
    whole = ask(model, rows=6)
    monkeypatch.setattr("backend.analyses._asking.CAPTURE_BYTES", 4 * 8 * 24**2 * 4)  # four rows, then two
    split = ask(model, rows=6)
    kept = [c for c in whole if not c.endswith(("_null", "_z"))]
    np.testing.assert_allclose(whole[kept].drop(columns="label"), split[kept].drop(columns="label"), atol=1e-12)


def test_too_short_a_context_is_refused():
    with pytest.raises(BadInput, match="needs 4"):
        ask(Planted(uniform(3)[None, None], n_ctx=3))


def test_figures_show_labels_and_the_null():
    figures, frame = registry()["head_scores"].figures, ask(planted())
    heat = [t for t in figures["overview"].build(frame, View()).data if t.type == "heatmap"]
    assert [np.array(t.text).ravel().tolist().count("") for t in heat] == [5, 5, 5, 5]
    bars = figures["ranking"].build(frame, View(chosen={"score": "previous_token"})).data
    assert bars[1].x[0] == "L0H1" and bars[1].y[0] == pytest.approx(1)
    np.testing.assert_allclose(bars[0].y[0], frame["previous_token_null"][1])
    with pytest.raises(BadInput):
        figures["ranking"].build(frame, View(chosen={"score": "charm"}))
