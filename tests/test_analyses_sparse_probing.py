"""A few coordinates that hold a property are found where the wiring put them, and shuffled labels hold nothing."""

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.analyses.sparse_probing import _labels, _moved
from backend.contract import Corpus, Rows, View
from backend.errors import BadInput
from backend.models.fitted import sparse_probes
from tests.causal_kit import ask, wired
from tests.wired import config

D_VOCAB, N_CTX = 40, 32
PROBE = registry()["sparse_probing"]
ONE = {"most": 1, "shuffles": 4, "draws": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wired(tmp_path_factory.mktemp("wired"))


@pytest.fixture(scope="module")
def rows():
    tokens = np.random.default_rng(0).integers(6, size=(30, 24))
    return Rows(tokens=tokens, corpus=Corpus(source="random", rows=30, length=24))


def part(frame, condition, layer=0, k=1):
    return frame[(frame["condition"] == condition) & (frame["layer"] == layer) & (frame["k"] == k)].iloc[0]


def test_the_previous_token_is_found_in_the_one_coordinate_that_holds_it(model, rows):
    """L0H0 writes token t before into coordinate d_vocab + n_ctx + t; before layer 0 nobody has."""
    slot = D_VOCAB + config(D_VOCAB)["n_ctx"] + 3
    frame = ask(PROBE, model, rows, token=3, layer=0, **ONE)
    found = part(frame, "probe")
    assert (found["coordinates"], found["accuracy"], found["f1"], found["auc"]) == (f"+{slot}", 1.0, 1.0, 1.0)
    before = part(ask(PROBE, model, rows, token=3, layer=0, point="resid_pre", **ONE), "probe")
    assert before["accuracy"] < 0.8 and 0.3 < before["auc"] < 0.7


def test_shuffled_labels_and_random_coordinates_are_at_chance(model, rows):
    frame = ask(PROBE, model, rows, property="token here", token=2, **ONE)
    assert part(frame, "probe")["accuracy"] == 1.0
    for condition in ("shuffled labels", "random coordinates"):
        assert abs(part(frame, condition)["auc"] - 0.5) < 0.12, condition
    null = part(frame, "shuffled labels")
    assert null["accuracy_low"] <= null["accuracy"] <= null["accuracy_high"] < 0.9
    assert null["n_rows"] == 4 * 9 and null["n"] == 4 * 9 * 24  # draws of whole held-out rows


def test_labels_are_what_they_say():
    tokens = np.array([[1, 2, 1, 3], [2, 2, 3, 1]])
    again = _labels(tokens, PROBE.params(property="seen before"))[0]
    assert again.astype(int).tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    many = np.tile(tokens, (4, 1))
    before, at, token = _labels(many, PROBE.params(property="token before", token=2))
    assert before[:2].astype(int).tolist() == [[0, 1, 0], [1, 1, 0]] and (at, token) == (slice(1, None), 2)
    assert _labels(many, PROBE.params(property="next token", token=3))[0][0].tolist() == [False, False, True]


def test_a_shuffle_moves_every_row_and_keeps_each_whole():
    for n in (2, 3, 17):
        moved = _moved(np.random.default_rng(0), n)
        assert sorted(moved) == list(range(n)) and (moved != np.arange(n)).all()


def test_coordinates_are_chosen_by_the_standardised_difference_and_groups_are_held_out_whole():
    """Coordinate 0 differs most in size and is all noise; coordinate 1 is small and exact."""
    dice = np.random.default_rng(0)
    y, groups = dice.random(400) < 0.5, np.repeat(np.arange(40), 10)
    x = np.stack([100 * dice.normal(size=400) + 20 * y, 0.01 * (y + 0.1 * dice.normal(size=400))], 1)
    (probe,) = sparse_probes(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(groups), [1], held_out=0.3,
                             l2=0.01, random=0, seed=0)  # fmt: skip
    assert probe.chosen == [1] and probe.right.all()
    held = set(groups[probe.held_out.numpy()])
    assert len(probe.held_out) == 10 * len(held)


def test_a_token_that_is_hardly_there_is_refused(model, rows):
    with pytest.raises(BadInput, match="in 0 of 30 rows"):
        ask(PROBE, model, rows, token=39, **ONE)


def test_the_figure_draws_controls_grey(model, rows):
    frame = ask(PROBE, model, rows, token=3, **ONE)
    figure = PROBE.figures["accuracy"].build(frame, View(params={"property": "token before"}))
    names = [t.name for t in figure.data if t.hoverinfo != "skip"]
    assert names == ["probe", "shuffled labels", "random coordinates", "the frequent answer"]
