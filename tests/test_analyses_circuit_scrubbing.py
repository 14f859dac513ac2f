"""Causal scrubbing: all kept is the model, one draw by hand, wired and compiled truths; what is refused."""

import numpy as np
import pytest
import torch

from backend.analyses._circuits import name_of, nodes_of
from backend.analyses._hypothesis import parse
from backend.analyses._scrubbing import Prompts, chooser, other_heads, scrub
from backend.analyses.circuit_scrubbing import _ends, circuit_scrubbing
from backend.contract import View
from backend.errors import BadInput, Unfit
from tests.causal_kit import ask, pairs_for, swapped_keys
from tests.tiny_models import opened
from tests.tracr_models import program
from tests.wired import config, wired_induction, wired_run

RIGHT = ("embed > logits; L1H0 > logits: same answer; L0H0 > L1H0.k: same token at -1; embed > L1H0.q; "
         "embed > L1H0.v")  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return opened("native", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def induction(tmp_path_factory):
    """The wired circuit over 10 tokens, so that many prompts share an answer."""
    sizes = config(10, 16, n_heads=3)
    return wired_run(tmp_path_factory.mktemp("wired") / "w", wired_induction(10, 16, n_heads=3), sizes)


@pytest.fixture(scope="module")
def repeats():
    return swapped_keys(40, d_vocab=10, n=8)


def stated(table, what="stated", which=0):
    return table[(table["what"] == what) & (table["which"] == which)].iloc[0]


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_a_tree_that_keeps_every_prompt_is_the_model(kind, tmp_path):
    """Every write into the logits is computed again from streams put together of all writes before it."""
    model = opened(kind, tmp_path)
    prompts = Prompts(model, pairs_for(model, 2).pairs)
    first = [n for n in nodes_of(model) if n.layer == 0]
    names = ["embed", *(name_of(n.layer, n.head) for n in first)]
    into = ["L1H1.q", "L1H1.k", "L1H1.v", "L1H0", "L1 mlp"]
    text = [f"{s} > {r}" for s in names for r in into] + [f"{n} > logits" for n in ("L1H0", "L1H1", "L1 mlp", "L0H2")]
    text += ["embed > L0H2", "embed > L0H1", "L0H1 > L0 mlp", "all > L0 mlp", "all > logits", "L1H1 > L1 mlp",
             "all > L1 mlp"]  # fmt: skip
    hypothesis = parse("; ".join(text), model.card, 4)

    def choose(shares, at):
        return at

    found = scrub(prompts, hypothesis, choose)
    expected = model.run_with(prompts.tokens, {})[:, -1]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_one_draw_by_hand(tiny):
    """Prompts shifted by one where they are exchanged: L1H2 hears L0H1's write in k alone, the MLP of layer 0 whole."""
    prompts = Prompts(tiny, pairs_for(tiny, 4).pairs)

    def choose(shares, at):
        return at if shares == ("same prompt",) else (at + 1) % 4

    found = scrub(prompts, parse("L1H2 > logits; L0H1 > L1H2.k", tiny.card, 4), choose)
    w_o, tokens = tiny.weights()["W_O"], prompts.tokens
    other = tokens.roll(-1, 0)
    ours, theirs = (tiny.capture(t, ["z", "resid_pre", "resid_post"]) for t in (tokens, other))
    heard = theirs["resid_pre", 1] + (ours["z", 0] - theirs["z", 0])[:, :, 1] @ w_o[0][1]
    k = {}
    tiny.run_with(other, {("resid_pre", 1): lambda t: heard, ("k", 1): lambda t: k.setdefault("k", t.clone())})
    z = {}

    def only(t):
        t[:, :, 2] = k["k"][:, :, 2]
        return t

    tiny.run_with(other, {("k", 1): only, ("z", 1): lambda t: z.setdefault("z", t.clone())})
    stream = theirs["resid_post", 1] + (z["z"] - theirs["z", 1])[:, :, 2] @ w_o[1][2]
    np.testing.assert_allclose(found, tiny.unembed(stream)[:, -1].detach(), atol=1e-9)
    assert (found - tiny.run_with(tokens, {})[:, -1]).abs().max() > 1e-3


def test_all_kept_is_exactly_1_and_all_exchanged_about_0(induction, repeats):
    table = ask(circuit_scrubbing, induction, repeats, hypothesis="L1H0 > logits", samples=24, random=0)
    assert stated(table, "all kept")["recovered"] == pytest.approx(1, abs=1e-12)
    assert stated(table, "all kept")["loss_recovered"] == pytest.approx(1, abs=1e-12)
    none = stated(table, "all exchanged")
    assert abs(none["recovered"]) < 0.15 and none["moved"] > 10 and none["others"] == 39
    assert none["recovered_low"] < 0.05 and none["recovered_high"] > -0.05


def test_random_is_each_answer_held_against_every_prompt(tiny):
    pairs = pairs_for(tiny, 4)
    table = ask(circuit_scrubbing, tiny, pairs, hypothesis="L1H0 > logits", samples=1, random=0)
    last = [tiny.logits([p.clean])[0, -1].detach() for p in pairs.pairs]
    m = [[float(x[p.answer] - x[p.distractor]) for x in last] for p in pairs.pairs]
    model, chance = np.mean([m[i][i] for i in range(4)]), np.mean(m)
    loss = [[float(-x.log_softmax(-1)[p.answer]) for x in last] for p in pairs.pairs]
    row = stated(table)
    expected = (row["logit_diff"] - chance) / (model - chance), (row["loss"] - np.mean(loss)) / (
        np.trace(loss) / 4 - np.mean(loss))  # fmt: skip
    ends = _ends(Prompts(tiny, pairs.pairs))
    np.testing.assert_allclose(ends[1], [np.mean(m, 1), np.mean(loss, 1)], atol=1e-9)
    for name, value in zip(("recovered", "loss_recovered"), expected, strict=True):
        assert np.isnan(row[name]) or row[name] == pytest.approx(value, abs=1e-9)


def test_a_drawn_prompt_shares_what_is_stated_and_every_one_that_does_comes(induction, repeats):
    prompts = Prompts(induction, repeats.pairs)
    choose = chooser(prompts, np.random.default_rng(0))
    drawn = np.stack([choose(("same answer", "same token at -1"), np.arange(40)) for _ in range(200)], 1)
    signs = [(p.answer, p.clean[-1]) for p in repeats.pairs]
    for i, found in enumerate(drawn):
        assert {*found.tolist()} == {j for j in range(40) if signs[j] == signs[i]}


# ---------------------------------------------------------------- what is known to be true


def test_the_right_hypothesis_of_the_wired_circuit_keeps_all(induction, repeats):
    """Its head writes the answer and nothing else, whatever the rest of the prompt: exchange changes nothing at all."""
    table = ask(circuit_scrubbing, induction, repeats, hypothesis=RIGHT, samples=3, random=4)
    right = stated(table)
    assert right["recovered"] == pytest.approx(1, abs=1e-9) and right["moved"] < 1e-6 and right["others"] > 2
    assert (table.loc[table["what"] == "random heads", "recovered"] < 0.3).all()
    lost = table[table["what"] == "without a claim"].set_index("which")["recovered"]
    assert lost[0] > 0.9 and (lost.drop(0) < 0.5).all()  # the embedding itself does not speak for the answer
    for figure in circuit_scrubbing.figures.values():
        assert figure.build(table, View()).data


@pytest.mark.parametrize("wrong", [
    RIGHT.replace("L0H0", "L0H1"), RIGHT.replace("L1H0", "L1H2"), RIGHT.replace(": same token at -1", ": any"),
    RIGHT.replace("same answer", "same distractor"), RIGHT.replace("L1H0.v", "L1H0.v: any"),
])  # fmt: skip
def test_a_wrong_hypothesis_of_it_does_not(induction, repeats, wrong):
    table = ask(circuit_scrubbing, induction, repeats, hypothesis=wrong, samples=3, random=0)
    assert stated(table)["recovered"] < 0.5 and stated(table)["recovered_high"] < 0.6


@pytest.mark.parametrize(("hypothesis", "low", "high"), [
    ("L0 mlp > logits: same answer; L0H0 > L0 mlp: same answer", 0.999, 1.001),
    ("L0 mlp > logits: same answer; L0H0 > L0 mlp: any", -0.4, 0.6),
    ("L0H0 > logits", -0.2, 0.2),
])  # fmt: skip
def test_hist_counts_by_its_head_and_says_the_count_by_its_mlp(hypothesis, low, high, tmp_path):
    p = program("hist", tmp_path / "hist")
    table = ask(circuit_scrubbing, p.model, p.pairs(60), hypothesis=hypothesis, samples=8, random=0)
    assert low < stated(table)["recovered"] < high and stated(table, "all kept")["recovered"] == pytest.approx(1)


# ---------------------------------------------------------------- controls and refusals


def test_other_heads_keep_the_layers_and_are_never_the_same_claims(tiny):
    hypothesis, dice = parse("L1H2 > logits; L0H1 > L1H2.k; L0 mlp > L1H2", tiny.card, 4), np.random.default_rng(0)
    found = [str(other_heads(hypothesis, 4, dice)) for _ in range(300)]
    assert len(set(found)) == 15 and str(hypothesis) not in found
    assert all(parse(text, tiny.card, 4) and "L0 mlp > L1H" in text for text in found)
    everyone = parse("; ".join(f"L1H{h} > logits" for h in range(4)), tiny.card, 4)
    headless = parse("embed > logits", tiny.card, 4)
    assert other_heads(everyone, 4, dice) is None and other_heads(headless, 4, dice) is None


@pytest.mark.parametrize(("text", "words"), [
    ("", "it is empty"), ("L0H0", "not `sender > receiver`"), ("L0H0 > L1H0 > logits", "not `sender > receiver`"),
    ("L0X1 > logits", "'L0X1' names no part"), ("L7H0 > logits", "no L7H0: the model has 2 layers of 4 heads"),
    ("L0H4 > logits", "no L0H4"), ("L0H0.k > logits", "sends nothing"), ("logits > logits", "names no part"),
    ("L1H0 > logits; L1H1 > L1H0", "reads the stream before L1H1"), ("L0H0 > logits: mood", "'mood' is nothing"),
    ("L0H0 > logits: same token at 99", "no position 99"), ("L0H0 > logits; L0H0 > logits: any", "stated for this"),
    ("L1H0 > logits; embed > L1H0; embed > L1H0.k", "stated for this"), ("L0H0 > L1H0", "leads to nothing"),
    ("L0H0 > logits: same answer and any", "'any' is nothing"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_in_a_sentence(tiny, text, words):
    with pytest.raises(BadInput, match=words) as error:
        ask(circuit_scrubbing, tiny, pairs_for(tiny, 2), hypothesis=text)
    assert "\n" not in str(error.value)


def test_a_tree_without_end_is_refused(tiny):
    deep = tiny.card.model_copy(update={"n_layers": 6})
    claims = [f"L{n}H{h} > L{n + 1}H{g}" for n in range(5) for h in range(4) for g in range(4)]
    claims += [f"L5H{h} > logits" for h in range(4)] + [f"embed > L0H{h}" for h in range(4)]
    with pytest.raises(BadInput, match="more than 256 nodes"):
        parse("; ".join(claims), deep, 4)


def test_models_whose_heads_cannot_be_told_apart_are_refused(tmp_path):
    model = opened("llama", tmp_path)
    with pytest.raises(Unfit, match="share 2 keys"):
        ask(circuit_scrubbing, model, pairs_for(model, 2))


def test_as_it_is_written_so_it_is_read(tiny):
    text = "L1H3 > logits: same answer and same token at -2; L0H3 > L1H3.k: any; all > L1H3.q; L0 mlp > L1H3.v"
    assert str(parse(text, tiny.card, 4)) == text == str(parse(text.replace("; ", "\n").replace("L0 mlp", "L0mlp"),
                                                               tiny.card, 4))  # fmt: skip
    assert torch.is_grad_enabled()
