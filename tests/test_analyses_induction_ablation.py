"""Ablation: a circuit wired by hand falls to chance, heads that write nothing change nothing, one layer has none."""

import pytest

from backend.analyses import induction_ablation as room
from backend.analyses.induction_ablation import induction_ablation
from backend.contract import View, Weights, parse_spec
from backend.models.open import open_model
from backend.settings import Settings
from tests.wired import config, distinct_rows, wired_induction, wired_run


def quiet(fraction, words):
    """Say nothing."""


def ablate(model, **more):
    return induction_ablation.compute(model, Weights(), induction_ablation.params(**more), quiet).set_index("condition")


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    return wired_run(tmp_path_factory.mktemp("wired") / "w", wired_induction(120, n_heads=3), config(120, n_heads=3))


def test_without_its_induction_head_the_wired_model_is_at_chance(wired):
    table = ablate(wired, block_length=12, rows=16)
    assert table.loc["intact", "second_copy_accuracy"] > 0.8  # a repeated token inside A has two continuations
    assert table.loc["suspects", "second_copy_accuracy"] < 0.15
    assert table.loc["suspects", "second_half_loss"] > table.loc["intact", "second_half_loss"] + 1
    assert table.loc["suspects", "heads"].startswith("L1H0 ") and table.loc["suspects", "n_heads"] == 1
    assert table.loc["random", "n"] == 5 and table.loc["random", "n_heads"] == 1  # all five choices
    assert "L0H0 costs most" in table.loc["one other", "heads"]  # the previous-token head feeds the other


def test_a_head_just_below_the_threshold_is_no_suspect(wired):
    score, _ = room._scores_and_means(wired, _rows(wired, 12, 16), 12)
    own = score[1, 0]
    assert 0.5 < own < 0.99
    below, above = (ablate(wired, block_length=12, rows=16, threshold=t) for t in (own * 0.99, own * 1.01))
    assert below.loc["suspects", "n_heads"] == 1 and list(above.index) == ["intact"]


def _rows(model, n, rows):
    """The sequences [A; A] that the analysis draws with seed 0."""
    import torch

    block = torch.randint(model.card.d_vocab, (rows, n), generator=torch.Generator().manual_seed(0))
    return torch.cat([block, block], 1)


def test_the_standard_error_is_that_of_the_mean_of_few():
    """Of two values a and b it is |a - b| / 2 (n - 1 in the variance); of one there is none."""
    import numpy as np

    row = room._row("x", np.array([0.0, 1.0]), np.array([2.0, 5.0]), 1, "")
    assert row["second_copy_accuracy_se"] == pytest.approx(0.5) and row["second_half_loss_se"] == pytest.approx(1.5)
    assert np.isnan(room._row("x", np.array([1.0]), np.array([2.0]), 1, "")["second_half_loss_se"])


def test_ablating_a_head_that_writes_nothing_changes_nothing(wired):
    import torch

    rows = distinct_rows(120, 12, 4)
    _, means = room._scores_and_means(wired, rows, 12)
    idle = room.ablated_logits(wired, rows, means, [(0, 1), (1, 2)])
    torch.testing.assert_close(idle, wired.logits(rows), rtol=0, atol=1e-12)
    assert not torch.allclose(room.ablated_logits(wired, rows, means, [(1, 0)]), wired.logits(rows), atol=1.0)


def test_the_mean_is_over_rows_at_each_position(wired):
    """Rows that are all alike are their own mean: ablation leaves them as they are."""
    import torch

    rows = distinct_rows(120, 12, 1).repeat(5, 1)
    _, means = room._scores_and_means(wired, rows, 12)
    torch.testing.assert_close(room.ablated_logits(wired, rows, means, [(1, 0), (0, 0)]), wired.logits(rows),
                               rtol=0, atol=1e-9)  # fmt: skip


def test_one_layer_has_no_suspect_and_says_so():
    model = open_model(parse_spec("run:induction-1layer"), Settings(device="cpu"))
    table = ablate(model, rows=16)
    assert list(table.index) == ["intact"] and table.loc["intact", "second_copy_accuracy"] < 0.3
    assert table.loc["intact", "heads"].startswith("no head above 0.5; the highest is L0H")


def test_the_shipped_run_loses_its_second_copy():
    model = open_model(parse_spec("run:induction-demo"), Settings(device="cpu"))
    table = ablate(model, rows=16)
    assert table.loc["intact", "second_copy_accuracy"] > 0.95 and table.loc["suspects", "second_copy_accuracy"] < 0.15
    assert table.loc["suspects", "n_heads"] >= 1
    flat = table.reset_index()
    assert room.accuracy(flat, View()).data and room.loss(flat, View()).data


def test_choices_are_all_of_them_or_as_many_as_asked():
    others = [(0, h) for h in range(6)]
    assert len(room._choices(others, 5, 10, 0)) == 6 and len(room._choices(others, 3, 10, 0)) == 10
    assert all(len(set(c)) == 3 for c in room._choices(others, 3, 10, 0))
    assert room._choices(others, 3, 10, 0) == room._choices(others, 3, 10, 0) != room._choices(others, 3, 10, 1)


def test_every_suspect_is_ablated_alone_and_the_drop_is_from_the_intact_model(wired):
    table = ablate(wired, block_length=12, rows=16)
    assert list(table.index) == ["intact", "suspects", "random", "one suspect", "one other", "L1H0"]
    alone, together = table.loc["L1H0"], table.loc["suspects"]  # the only suspect: alone is together
    names = ["second_copy_accuracy", "second_copy_accuracy_se", "second_half_loss", "drop", "n"]
    assert alone[names].tolist() == together[names].tolist()
    intact = table.loc["intact", "second_copy_accuracy"]
    assert table["drop"].tolist() == pytest.approx([intact - a for a in table["second_copy_accuracy"]])
    assert table.loc["intact", "drop"] == 0 and alone["drop"] > 0.6


def test_redundant_heads_cost_little_alone_and_all_together(tmp_path):
    """L1H1 is given L1H0's weights and each half the output: either suffices, without both the answer is gone."""
    import torch

    bare = wired_induction(120, n_heads=3)
    with torch.no_grad():
        heads = bare.layers[1].attn
        width = heads.q.weight.shape[1]
        for part in (heads.q.weight, heads.k.weight, heads.v.weight):
            part[width : 2 * width] = part[:width]
        heads.o.weight[:, :width] /= 2
        heads.o.weight[:, width : 2 * width] = heads.o.weight[:, :width]
    table = ablate(wired_run(tmp_path / "two", bare, config(120, n_heads=3)), block_length=12, rows=16)
    assert table.loc["suspects", "n_heads"] == 2 and table.loc["suspects", "drop"] > 0.6
    assert table.loc[["L1H0", "L1H1"], "drop"].abs().max() < 0.05


def test_fewer_others_than_suspects_are_said_to_be(wired):
    """Heads that attend evenly have a score of about 0.06 here, the previous-token head none."""
    table = ablate(wired, block_length=12, rows=8, threshold=0.03)
    suspects, other = table.loc["suspects", "n_heads"], table.loc["random", "n_heads"]
    assert suspects > other > 0 and f"fewer than the {suspects} suspects" in table.loc["random", "heads"]


def test_the_null_is_grey(wired):
    from backend.figures import NULL_GREY

    flat = ablate(wired, block_length=12, rows=8).reset_index()
    drawn = room.accuracy(flat, View()).data[0]
    assert dict(zip(drawn.x, drawn.marker.color, strict=True))["random"] == NULL_GREY
    assert list(drawn.marker.color).count(NULL_GREY) == 2 and list(drawn.error_y.array)[2] > 0
