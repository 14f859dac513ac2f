"""A learnt subspace carries the variable where the wiring puts it, and no further."""

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.analyses.interchange import _as_far, _within
from backend.contract import Pair, Pairs, View
from backend.errors import BadInput
from tests.causal_kit import ask, swapped_keys, wired

DAS = registry()["interchange"]
QUICK = {"epochs": 8, "draws": 3, "lr": 0.1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wired(tmp_path_factory.mktemp("wired"))


def two_answers(n: int = 24, length: int = 10) -> Pairs:
    """[A; A up to its 4th token]: what followed was token 7 (clean) or 9 (corrupted), the rest is drawn at random."""
    dice, found = np.random.default_rng(0), []
    for _ in range(n):
        block = [int(t) for t in dice.permutation([t for t in range(40) if t not in (7, 9)])[:length]]
        one, other = [*block], [*block]
        one[4], other[4] = 7, 9
        clean, corrupted = ((*first, *block[:4]) for first in (one, other))
        found.append(Pair(clean=clean, corrupted=corrupted, answer=7, distractor=9))
    return Pairs(pairs=tuple(found))


@pytest.fixture(scope="module")
def frame(model):
    return ask(DAS, model, two_answers(), layer=1, **QUICK)


def row(frame, condition):
    return frame[frame["condition"] == condition].iloc[0]


def test_one_direction_holds_which_of_two_tokens_follows(model, frame):
    """After L1H0 the last position holds LOGIT times the token that followed: one direction tells 7 from 9."""
    assert [row(frame, c)["accuracy"] for c in ("none", "learnt", "whole")] == [0.0, 1.0, 1.0]
    assert row(frame, "learnt")["top"] == 1.0 and row(frame, "learnt")["n"] == 12
    pairs = two_answers().pairs
    clean, corrupted = (torch.tensor([getattr(p, side) for p in pairs]) for side in ("clean", "corrupted"))
    basis, _ = model.aligned_subspace(("resid_post", 1), corrupted, clean, torch.full((24,), 7), epochs=20, lr=0.1)
    way = torch.zeros(len(basis), dtype=basis.dtype)
    way[7], way[9] = 1.0, -1.0
    assert abs(float(basis[:, 0] @ way) / 2**0.5) > 0.9
    torch.testing.assert_close(basis.T @ basis, torch.eye(1, dtype=basis.dtype))


def test_random_subspaces_do_not_and_random_targets_are_at_chance(frame):
    for condition in ("random", "random, as far"):
        assert row(frame, condition)["accuracy"] < 0.3, condition
    null = row(frame, "random targets")
    assert abs(null["accuracy"] - 0.5) < 0.3 and null["accuracy_low"] < 0.5 < null["accuracy_high"]


def test_the_variable_is_not_where_nobody_has_written_it(model):
    """Before layer 1 the last position does not know what followed."""
    before = ask(DAS, model, two_answers(), layer=0, **QUICK)
    assert row(before, "whole")["accuracy"] == 0.0 and row(before, "learnt")["accuracy"] == 0.0


def test_a_subspace_as_wide_as_the_site_is_a_patch_of_the_site(model):
    """The exchanged tokens stand before the answer, so the variable is at another position of layer 0's stream."""
    pairs = swapped_keys(6)
    width = model.card.d_model
    found = ask(DAS, model, pairs, layer=1, point="attn_out", rank=width, epochs=1, draws=1, held_out=0.34)
    same = ["accuracy", "top", "learnt_accuracy"]
    for condition in ("learnt", "random", "random, as far"):
        assert row(found, condition)[same].tolist() == row(found, "whole")[same].tolist(), condition


def test_as_far_is_as_far_and_the_other_way_stays_the_same():
    dice = torch.Generator().manual_seed(0)
    base, new = (torch.randn(5, 8, generator=dice) for _ in range(2))
    one, two = (torch.linalg.qr(torch.randn(8, 2, generator=dice))[0] for _ in range(2))
    moved, reference = _as_far(_within(one), _within(two))(base, new) - base, _within(two)(base, new) - base
    torch.testing.assert_close(moved.norm(dim=-1), reference.norm(dim=-1))
    torch.testing.assert_close(moved @ one @ one.T, moved)


def test_weights_and_what_they_ask_for_stay_as_they_were(model):
    before = {n: (p.clone(), p.requires_grad) for n, p in model.bare.named_parameters()}
    ask(DAS, model, two_answers(4), layer=1, epochs=1, draws=1)
    assert all(torch.equal(p, before[n][0]) and p.requires_grad == before[n][1] and p.grad is None
               for n, p in model.bare.named_parameters())  # fmt: skip


@pytest.mark.parametrize(("more", "said"), [
    ({"rank": 1000}, "1000 directions"), ({"pos": 40}, "Position 40"), ({"layer": 9}, "The site"),
])  # fmt: skip
def test_what_cannot_be_is_refused(model, more, said):
    with pytest.raises(BadInput, match=said):
        ask(DAS, model, two_answers(4), **more)


def test_prompts_of_several_lengths_are_read_at_their_own_last_token(model):
    mixed = Pairs(pairs=(*two_answers(4).pairs, *two_answers(4, 12).pairs))
    found = ask(DAS, model, mixed, layer=1, **QUICK)
    assert [row(found, c)["top"] for c in ("none", "learnt", "whole")] == [0.0, 1.0, 1.0]
    with pytest.raises(BadInput, match="a prompt has 14 tokens"):
        ask(DAS, model, mixed, pos=14)


def test_both_figures_name_every_condition(model, frame):
    bars = DAS.figures["accuracy"].build(frame, View())
    assert len(bars.data[0].x) == 6
    both = DAS.figures["accuracy"].build(ask(DAS, model, two_answers(4), epochs=1, draws=1), View())
    assert len([t for t in both.data if t.hoverinfo != "skip"]) == 6
