"""Truth of name movers: a head wired to move and copy, its negative, and the direct effects of another analysis."""

import numpy as np
import pytest
import torch

from backend.analyses.direct_logit_attribution import direct_logit_attribution
from backend.analyses.name_movers import name_movers
from backend.contract import Pair, Pairs, View, parse_spec
from backend.errors import BadInput
from backend.models import prompts
from backend.models.open import open_model
from tests import tiny_models
from tests.causal_kit import ask, swapped_keys, wired
from tests.tiny_models import opened
from tests.wired import LOGIT

PAIRS = swapped_keys(16)


def heads(table, token="answer"):
    return table[table["token"] == token].set_index(["layer", "head"]).sort_index()


def test_the_wired_head_moves_the_answer_and_no_other_does(tmp_path):
    table = ask(name_movers, wired(tmp_path / "w"), PAIRS)
    answer = heads(table)
    mover = answer.loc[1, 0]
    assert mover["label"] == "name-mover" and (table["label"] != "none").sum() == 1
    assert mover["attention"] == pytest.approx(1) and mover["copying"] == pytest.approx(LOGIT)
    assert mover["direct"] == pytest.approx(LOGIT) and mover["top_share"] == 1 and mover["n"] == 16
    rest = answer.drop((1, 0))
    assert (rest["copying"] == 0).all() and (rest["direct"] == 0).all()  # they write no token
    distractor = heads(table, "distractor").loc[1, 0]
    assert distractor["attention"] == pytest.approx(0) and distractor["copying"] == pytest.approx(LOGIT)
    assert distractor["label"] == "none"  # it would copy it, but does not look there


def test_the_same_head_with_its_output_negated_is_negative(tmp_path):
    model = wired(tmp_path / "w")
    with torch.no_grad():
        model.bare.layers[1].attn.o.weight.neg_()
    mover = heads(ask(name_movers, model, PAIRS)).loc[1, 0]
    assert mover["label"] == "negative name-mover" and mover["copying"] == pytest.approx(-LOGIT)
    assert mover["bottom_share"] == 1 and mover["direct"] == pytest.approx(-LOGIT)


def test_a_head_that_looks_at_the_distractor_and_lowers_it_is_a_suppressor(tmp_path):
    model = wired(tmp_path / "w")
    with torch.no_grad():
        model.bare.layers[1].attn.o.weight.neg_()
    turned = Pairs(
        pairs=tuple(p.model_copy(update={"answer": p.distractor, "distractor": p.answer}) for p in PAIRS.pairs)
    )
    table = ask(name_movers, model, turned)
    assert heads(table, "distractor").loc[1, 0]["label"] == "distractor-suppressor"
    assert heads(table, "distractor").loc[1, 0]["direct"] == pytest.approx(LOGIT)


def test_the_null_is_the_share_of_the_places_that_hold_the_token(tmp_path):
    """Shuffled keys: 1 of 13 visible keys holds the answer, so the mover's null is near 1/13, z far above."""
    mover = heads(ask(name_movers, wired(tmp_path / "w"), swapped_keys(200))).loc[1, 0]
    error = (1 / 13 * 12 / 13 / 200) ** 0.5
    assert abs(mover["null"] - 1 / 13) < 4 * error and mover["z"] > 20


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_direct_effects_are_those_of_direct_logit_attribution(kind, tmp_path):
    """Two ways to the same number, with norms and biases; a random model earns no label."""
    model = opened(kind, tmp_path)
    table = ask(name_movers, model, PAIRS)
    other = ask(direct_logit_attribution, model, PAIRS)
    other = other[other["part"] == "head"].set_index(["layer", "head"]).sort_index()
    np.testing.assert_allclose(heads(table)["direct"], other["direct"], atol=1e-9)
    np.testing.assert_allclose(heads(table)["direct_se"], other["direct_se"], atol=1e-9)
    assert (table["label"] == "none").all() and (table["direct"].abs() > 1e-3).any()


def test_grouped_queries_share_values_not_labels(tmp_path):
    """Llama with 2 values for 4 heads: attention is that of the pattern, to all places of the token."""
    model = opened("llama", tmp_path, "float32")
    table = ask(name_movers, model, PAIRS)
    got = np.zeros(4)
    for pair in PAIRS.pairs:
        pattern = model.capture([pair.clean], ["pattern"], [1])["pattern", 1][0, :, -1]
        got += pattern[:, torch.tensor(pair.clean) == pair.answer].sum(-1).numpy() / 16
    np.testing.assert_allclose(heads(table).loc[1]["attention"], got, atol=1e-6)


def test_pairs_without_the_token_are_refused_and_models_that_cannot_are_greyed(tmp_path):
    model = wired(tmp_path / "w")
    absent = Pairs(pairs=tuple(Pair(clean=(1, 2), corrupted=(1, 3), answer=a, distractor=a + 1) for a in (9, 12, 15)))
    with pytest.raises(BadInput, match="holds its answer"):
        ask(name_movers, model, absent)
    assert "norm stands behind" in name_movers.unfit([c for c in model.card.capabilities if c != "linear_attn_out"])


def test_the_shipped_ioi_model_has_movers_that_matter(tmp_path):
    """Its last checkpoint: L1 moves the answer, L0H2 suppresses the distractor; without L0H2 the answer is gone."""
    model = open_model(parse_spec("run:ioi-demo"), tiny_models.settings(tmp_path, "float32"))
    pairs = prompts.make(model.card.model_dump(), "synthetic_ioi", 32, 0)
    table = ask(name_movers, model, pairs)
    labels = table[table["label"] != "none"].set_index(["layer", "head"])["label"]
    assert labels.loc[0, 2] == "distractor-suppressor" and set(labels.loc[1]) == {"name-mover"}
    assert len(labels.loc[1]) >= 3


def test_few_names_are_joined_by_random_tokens(tmp_path):
    """One pair knows two names: the mover must still be told from a head that knows one token from another."""
    table = ask(name_movers, wired(tmp_path / "w"), Pairs(pairs=PAIRS.pairs[:1]))
    assert heads(table).loc[1, 0]["chance"] == 1 / 16 and heads(table).loc[1, 0]["top_share"] == 1
    assert (table["label"] == "none").all() and table["z"].isna().all()  # one pair has no error


def test_figures_mark_the_labelled_heads(tmp_path):
    table = ask(name_movers, wired(tmp_path / "w"), PAIRS)
    bars = name_movers.figures["direct"].build(table, View())
    assert bars.data[0].x[0] == "L1H0 ▲" and bars.data[0].y[0] == pytest.approx(LOGIT)
    cells = [t for trace in name_movers.figures["overview"].build(table, View()).data for t in np.ravel(trace.text)]
    assert [str(c) for c in cells if "▲" in str(c)] == ["▲"]
