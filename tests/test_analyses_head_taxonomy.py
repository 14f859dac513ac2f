"""Truth of the taxonomy: wired heads get their labels and no others, an offset that fits one block length is no
induction, random models get none, and halves are judged by themselves."""

import json

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.analyses._syntax import kinds_of
from backend.analyses.head_taxonomy import LABELS, SYNTAX
from backend.contract import View, Weights
from backend.errors import BadInput
from backend.maths.attending import mass_on, uniform_rows
from tests.test_analyses_attention import Planted
from tests.test_analyses_attention_statistics import RandomRows
from tests.test_analyses_head_scores import offset, uniform
from tests.tiny_models import opened, quiet
from tests.wired import config, wired_induction, wired_run


def ask(model, **params):
    one = registry()["head_taxonomy"]
    return one.compute(model, Weights(), one.params(**params), quiet)


def earned(frame, flag="earned"):
    mine = frame[frame[flag]]
    return {(int(r.layer), int(r.head), r.label) for r in mine.itertuples()}


class Placed(Planted):
    """Heads given as functions of the number of tokens, for rows of several lengths."""

    def __init__(self, *heads, n_ctx=64):
        super().__init__(torch.zeros(1, len(heads), 1, 1), n_ctx)
        self.heads = heads

    def capture(self, tokens, points, layers=None):
        made = torch.stack([h(tokens.shape[1]) for h in self.heads])
        return {("pattern", n): made.expand(len(tokens), *made.shape) for n in layers}


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    return ask(wired_run(tmp_path_factory.mktemp("wired"), wired_induction(), config()), block_length=16)


def test_the_wired_model_gets_its_labels_and_no_others(wired):
    """The two heads that are all zero are uniform indeed; the induction head only while nothing repeats."""
    assert earned(wired) == {(0, 0, "previous-token"), (1, 0, "induction"), (0, 1, "uniform"), (1, 1, "uniform")}
    assert wired["stability"].eq(1).all() and wired["stable"].all()
    induction = wired[(wired["layer"] == 1) & (wired["head"] == 0) & (wired["label"] == "induction")].iloc[0]
    assert induction["score"] == pytest.approx(1, abs=1e-9) and induction["z"] > 50


def test_planted_heads_of_every_kind():
    frame = ask(Placed(*(lambda t, k=k: offset(k, t) for k in (0, 1, 2, 5)), lambda t: offset(t, t), uniform))
    assert earned(frame) == {(0, 0, "self"), (0, 1, "previous-token"), (0, 2, "positional"), (0, 3, "positional"),
                             (0, 4, "first-token"), (0, 5, "uniform")}  # fmt: skip
    positional = frame[frame["label"] == "positional"]
    assert positional["offset"].tolist()[2:4] == [2, 5] and frame["offset"].notna().sum() == 6
    assert frame["threshold"].unique().tolist() == [0.4, 0.95]


@pytest.mark.parametrize("back", [23, 24])  # n - 1 and n of the default n = 24: induction, duplicate for that n alone
def test_a_fixed_offset_is_no_induction_and_no_duplicate(back):
    assert {label for *_, label in earned(ask(Placed(lambda t: offset(back, t))))} <= {"positional", "first-token"}


class Reader(Placed):
    """A model of characters whose heads look at what the tokens say: `.`, `(`, behind the newline, at what is none."""

    def __init__(self):
        super().__init__(*[uniform] * 4)
        self.card.tokenizer = {"kind": "chars", "symbols": [*"abcdefghijkl", ".", ",", "(", "]", "\n"]}
        self.card.d_vocab = 17

    def capture(self, tokens, points, layers=None):
        symbols, made = self.card.tokenizer["symbols"], []
        said = [[symbols[t] for t in row] for row in tokens.tolist()]
        for wanted in (".,\n", "(]", "start", "abc"):
            marks = [[i > 0 and row[i - 1] == "\n" if wanted == "start" else c in wanted for i, c in enumerate(row)]
                     for row in said]  # fmt: skip
            marked = torch.tensor(marks)[:, None].expand(-1, tokens.shape[1], -1).tril().double()
            many, flat = marked.sum(-1, keepdim=True), uniform(tokens.shape[1]).double()
            made.append(torch.where(many == 0, flat, marked / many.clamp(min=1)))
        return {("pattern", n): torch.stack(made, 1) for n in layers}


def test_heads_that_read_the_form_of_a_text_and_one_that_does_not():
    frame = ask(Reader())
    assert earned(frame) == {(0, 0, "delimiter"), (0, 1, "bracket"), (0, 2, "line-start")}
    mine = frame[frame["label"].isin(SYNTAX)].set_index(["label", "head"])
    assert (mine.loc[[("delimiter", 0), ("bracket", 1), ("line-start", 2)], "score"] > 0.99).all()
    assert mine["null"].between(0.02, 0.4).all()  # a tenth is sown of each; a newline is a delimiter, too
    assert set(frame["label"]) == set(LABELS)
    with_others = ask(Placed(*[uniform] * 2))
    assert set(with_others["label"]) == set(LABELS) - set(SYNTAX), "no tokenizer, no such rows"


def test_the_mass_on_marked_keys():
    """A uniform causal head: marked keys among those visible, over the queries from the first marked key on."""
    marked = torch.tensor([[False, True, False, True]])
    mean = (1 / 2 + 1 / 3 + 2 / 4) / 3
    assert float(mass_on(uniform_rows(4, True)[None, None], marked, True)) == pytest.approx(mean)
    assert float(mass_on(uniform_rows(4, False)[None, None], marked, False)) == pytest.approx(1 / 2)


def test_pieces_of_a_vocabulary_are_told_apart():
    vocab = {piece: i for i, piece in enumerate([*"abcdefgh", "Ġ.", "Ċ", "();", "▁(", "a."])}
    found = kinds_of({"kind": "hf", "json": json.dumps({"model": {"vocab": vocab}})}, 13)
    assert found == {"delimiter": [8, 9], "bracket": [11], "newline": [9], "other": [*range(8), 10, 12]}
    assert kinds_of({"kind": "ids"}, 13) == {}


@pytest.mark.parametrize("newline", ["Ċ", "<0x0A>", "\n", "čĊ", "\r\n", "ĠĊ"])
def test_a_newline_is_one_however_it_is_spelt(newline):
    """Byte-level, by byte fallback, as itself; with a carriage return before it, or a space."""
    vocab = [[piece, 0.0] for piece in [*"abcdefgh", newline, "<0x0D>", "č"]]
    found = kinds_of({"kind": "hf", "json": json.dumps({"model": {"vocab": vocab}})}, 11)
    assert found == {"delimiter": [8], "newline": [8], "other": [*range(8), 9, 10]}


def test_a_head_may_earn_two_labels():
    frame = ask(Placed(lambda t: (offset(0, t) + offset(1, t)) / 2))
    assert earned(frame) == {(0, 0, "self"), (0, 0, "previous-token")}


def test_random_attention_earns_nothing_and_its_z_is_chance(tmp_path):
    frame = ask(RandomRows(2, 6), threshold=0.0, uniform_threshold=1.0, rows=40)
    assert earned(frame) == set() and np.isnan(frame["stability"]).all()
    z = frame.loc[~frame["label"].isin(["uniform", "positional"]), "z"]
    assert abs(z.mean()) < 1.5 and z.abs().max() < SIGMAS_SEEN
    for kind in ("native", "gpt2", "neox", "llama"):
        found = ask(opened(kind, tmp_path / kind))
        assert {label for *_, label in earned(found)} <= {"uniform"}, kind
        assert (found["label"].value_counts() == len(found) / found["label"].nunique()).all()


SIGMAS_SEEN = 4.5  # the least of four kinds of rows lies lower than its own null on average


def test_uniform_is_earned_without_a_null(wired):
    mine = wired[wired["label"] == "uniform"]
    assert mine["z"].isna().all() and mine["null"].isna().all() and mine["earned"].sum() == 2


def test_seeds_decide(tmp_path):
    model = opened("native", tmp_path)
    a, b, c = ask(model), ask(model), ask(model, seed=1)
    assert a.equals(b) and not a.equals(c)


class Halves(Placed):
    """One head that is sure, one that looks at the previous token on the first half of the rows alone."""

    def capture(self, tokens, points, layers=None):
        half, made = len(tokens) // 2, super().capture(tokens, points, layers)[("pattern", 0)].clone()
        made[half:, 1] = offset(3, tokens.shape[1])
        return {("pattern", 0): made}


def test_halves_are_judged_by_themselves():
    frame = ask(Halves(*[lambda t: offset(1, t)] * 2), rows=8)
    assert earned(frame, "earned_first") == {(0, 0, "previous-token"), (0, 1, "previous-token")}
    assert earned(frame, "earned_second") == {(0, 0, "previous-token"), (0, 1, "positional")}
    assert earned(frame) == {(0, 0, "previous-token")}  # over all rows the second head is unsure
    assert frame["stability"].unique().tolist() == [pytest.approx(1 / 3)]
    assert frame.loc[~frame["stable"], "label"].tolist() == ["previous-token", "positional"]


def test_too_short_a_context_is_refused():
    with pytest.raises(BadInput, match="context of 8"):
        ask(Placed(uniform, n_ctx=6))


def test_figures_mark_what_was_earned(wired):
    figures = registry()["head_taxonomy"].figures
    marks = {t.name: np.array(t.text).ravel().tolist() for t in figures["overview"].build(wired, View()).data}
    assert marks["induction"] == ["", "", "•", ""] and marks["uniform"] == ["", "•", "", "•"]
    assert set(marks) == set(LABELS) - set(SYNTAX)
    bars = figures["earned"].build(wired, View()).data[1]
    assert sorted(bars.x) == ["L0H0 previous-token", "L0H1 uniform", "L1H0 induction", "L1H1 uniform"]
    nothing = ask(RandomRows(1, 2))
    assert "no label was earned" in figures["earned"].build(nothing, View()).layout.xaxis.title.text
