"""Answers to pairs: planted logits give closed forms, every architecture the plain forward's numbers."""

import numpy as np
import pytest
import torch

from backend.analyses import pair_answers as module
from backend.analyses import registry
from backend.contract import Pair, Pairs, View, parse_spec
from backend.models import prompts
from backend.models.load import open_model
from backend.settings import Settings
from tests.tiny_models import opened, quiet

ASK = registry()["pair_answers"]
PAIRS = Pairs(pairs=(
    Pair(clean=(1, 2, 3), corrupted=(1, 4, 3), answer=5, distractor=6),
    Pair(clean=(7, 8, 9, 1, 2), corrupted=(7, 8, 9, 3, 2), answer=1, distractor=3),
    Pair(clean=(9, 2, 4), corrupted=(9, 2, 5), answer=8, distractor=2),
))  # fmt: skip


class Planted:
    """A model whose last logits are the one-hot of (its last token + the second) mod 10, times 3."""

    class card:  # noqa: N801
        d_vocab_out, device = 10, "cpu"

    @staticmethod
    def logits(tokens):
        last = torch.zeros(len(tokens), tokens.shape[1], 10, dtype=torch.float64)
        last[torch.arange(len(tokens)), -1, (tokens[:, -1] + tokens[:, 1]) % 10] = 3.0
        return last


def ask(model, pairs=PAIRS):
    return ASK.compute(model, pairs, ASK.params(), quiet)


def test_planted_logits_give_closed_forms():
    made = ask(Planted()).set_index(["condition", "pair"])
    top, rest = np.exp(3) / (np.exp(3) + 9), 1 / (np.exp(3) + 9)
    first, second = made.loc["clean", 0], made.loc["corrupted", 0]  # 3 + 2 = 5, the answer; 3 + 4 = 7, neither
    assert (first.logit_diff, first.answer_rank, first.right, first.top_id) == (3.0, 0, 1, 5)
    assert first.answer_prob == pytest.approx(top) and first.distractor_prob == pytest.approx(rest)
    assert (second.logit_diff, second.answer_rank, second.right, second.top_id) == (0.0, 1, 0, 7)
    assert made.loc["clean", 1].top_id == 0 and made.loc["clean", 2].top_id == 6
    others = made.loc["other answers", 0]  # the clean prompt 0, asked for 1 and 3 of pair 1
    assert (others.logit_diff, others.answer_rank, others.top_id, others.right) == (0.0, 1, 5, 0)
    assert made.loc[("other answers", 2), "logit_diff"] == -3.0 and len(made) == 9  # 6 wins; pair 0 asks for 5 and 6


def test_corrupted_is_right_where_the_distractor_wins():
    pairs = Pairs(pairs=(Pair(clean=(1, 2, 3), corrupted=(1, 3, 3), answer=5, distractor=6),))
    made = ask(Planted(), pairs).set_index("condition")
    assert list(made.index) == ["clean", "corrupted"]  # one pair has no other
    assert made.loc["corrupted", "right"] == 1 and made.loc["corrupted", "logit_diff"] == -3.0
    assert module.summary(made.reset_index()).logit_diff_se.isna().all()


def test_means_and_standard_errors():
    made = ask(Planted())
    found = module.summary(made).set_index("condition")
    clean = made[made.condition == "clean"].logit_diff.to_numpy()
    assert found.loc["clean", "logit_diff"] == pytest.approx(clean.mean()) and found.loc["clean", "n"] == 3
    assert found.loc["clean", "logit_diff_se"] == pytest.approx(clean.std(ddof=1) / 3**0.5)
    assert list(found.index) == list(module.CONDITIONS)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama", "native"])
def test_every_architecture_gives_the_plain_forwards_numbers(kind, tmp_path):
    model = opened(kind, tmp_path)
    assert ASK.unfit(model.card.capabilities) == ""
    made = ask(model).set_index(["condition", "pair"])
    for i, pair in enumerate(PAIRS.pairs):
        for which in ("clean", "corrupted"):
            plain = model.logits([list(getattr(pair, which))])[0, -1].double()
            row = made.loc[(which, i)]
            assert row.logit_diff == pytest.approx(float(plain[pair.answer] - plain[pair.distractor]), abs=1e-9)
            assert row.answer_prob == pytest.approx(float(plain.softmax(0)[pair.answer]), abs=1e-12)
            assert row.answer_rank == int((plain > plain[pair.answer]).sum()) and row.top_id == int(plain.argmax())


def test_order_and_batches_do_not_matter(tmp_path, monkeypatch):
    model = opened("native", tmp_path)
    whole = ask(model)
    monkeypatch.setattr(module, "CAPTURE_BYTES", 1)
    monkeypatch.setitem(ASK.compute.__globals__, "CAPTURE_BYTES", 1)
    np.testing.assert_allclose(ask(model)["logit_diff"], whole["logit_diff"], rtol=0, atol=1e-12)


def test_the_shipped_run_before_and_after_it_learns():
    for step, low, high in ((0, -1, 1), (700, 8, 25)):
        model = open_model(parse_spec("run:ioi-demo", step), Settings(device="cpu"))
        found = module.summary(ask(model, prompts.make(model.card.model_dump(), "synthetic_ioi", 64, 0)))
        mean = found.set_index("condition")
        assert low < mean.loc["clean", "logit_diff"] < high and -high < mean.loc["corrupted", "logit_diff"] < -low
        assert (mean.loc["clean", "right"] > 0.97) == (step == 700)
        assert abs(mean.loc["other answers", "logit_diff"]) < 5 * mean.loc["other answers", "logit_diff_se"]


def test_figures_show_all_conditions_and_the_control_in_grey():
    made = ask(Planted())
    view = View(vocab=lambda i: f"w{i}")
    bars, lines = (f.build(made, view) for f in ASK.figures.values())
    assert list(bars.data[-1].x) == list(module.CONDITIONS) and bars.data[-1].marker.color[2] == module.NULL_GREY
    assert {t.name for t in lines.data} == set(module.CONDITIONS) and "top token w5" in " ".join(lines.data[-1].text)
