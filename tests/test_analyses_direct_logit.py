"""Direct logit attribution: the parts sum to the model's own logit difference; a part's effect is what it writes."""

import numpy as np
import pytest
import torch

from backend.analyses import direct_logit_attribution as room
from backend.analyses.direct_logit_attribution import WHOLE, direct_logit_attribution
from backend.contract import Pair, Pairs, View, parse_spec
from backend.errors import Broken, Unfit
from backend.models import bridge
from backend.models.open import open_model
from backend.settings import Settings
from benchmarks.direct import Direct
from tests.tiny_models import NATIVE, native_run, opened, quiet, settings

KINDS = ["gpt2", "neox", "llama", "native"]


def pairs(n=5, length=9, d_vocab=50, seed=0):
    dice = np.random.default_rng(seed)
    rows = [dice.integers(d_vocab, size=(2, length + i % 2)).tolist() for i in range(n)]  # two lengths
    answers = [dice.choice(d_vocab, 2, replace=False).tolist() for _ in range(n)]
    return Pairs(pairs=tuple(Pair(clean=c, corrupted=d, answer=a, distractor=b)
                             for (c, d), (a, b) in zip(rows, answers, strict=True)))


def ask(model, subject=None, **params):
    asked = direct_logit_attribution.params(**params)
    table = direct_logit_attribution.compute(model, subject or pairs(), asked, quiet)
    return table.set_index(["part", "layer", "head"]).sort_index()


def own_difference(model, subject):
    return [float(model.logits([p.clean])[0, -1, p.answer] - model.logits([p.clean])[0, -1, p.distractor])
            for p in subject.pairs]


def total_of(table, column="direct"):
    return table.loc[[part for part in WHOLE if part in table.index.levels[0]], column].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_sum_to_the_logit_difference(kind, tmp_path):
    model, subject = opened(kind, tmp_path), pairs()
    table = ask(model, subject)
    own = np.array(own_difference(model, subject))
    close = 1e-6 if kind != "llama" else 2e-5  # its norm computes in float32 whatever the weights' dtype
    assert total_of(table) == pytest.approx(own.mean(), abs=close) and abs(own.mean()) > 0.1
    total = table.loc["total"].iloc[0]
    assert total["direct"] == pytest.approx(own.mean(), abs=1e-6)  # NeoX and Llama: float32 rotary tables
    assert total["direct_se"] == pytest.approx(own.std(ddof=1) / np.sqrt(5), abs=1e-6)
    assert total_of(table, "null") == pytest.approx(total["null"], abs=close)
    assert table["direct_se"].notna().all() and (table["n"] == 5).all()
    assert ("pos_embed" in table.index.levels[0]) == (kind in ("gpt2", "native"))


@pytest.mark.parametrize("norm", [None, "LNPre", "RMS", "RMSPre"])
def test_the_parts_sum_under_every_norm_and_under_none(norm, tmp_path):
    model = open_model(parse_spec(f"run:{native_run(tmp_path / 'm', NATIVE | {'normalization_type': norm})}"),
                       settings(tmp_path))
    with torch.no_grad():  # b_O, b_out and the norm's own bias are zero at the start
        for weights in model.bare.parameters():
            weights.add_(0.1 * torch.randn_like(weights)) if weights.ndim == 1 else None
    close = 1e-6 if not norm or "RMS" not in norm else 2e-5
    assert total_of(ask(model)) == pytest.approx(np.mean(own_difference(model, pairs())), abs=close)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_their_bias_sum_to_their_attention_output(kind, tmp_path):
    table = ask(opened(kind, tmp_path))
    for layer, whole in table.loc["attn_out"].groupby("layer"):
        parts = table.loc["head"].loc[layer, "direct"].sum() + table.loc[("attn_bias", layer, -1), "direct"]
        assert parts == pytest.approx(float(whole["direct"].iloc[0]), abs=1e-9 if kind != "llama" else 2e-5)
    assert table.loc["head", "direct"].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_heads_effect_is_its_z_through_w_o_and_the_held_norm(kind, tmp_path):
    """By the bare module and its own matrices alone (benchmarks/direct.py); the output's bias is no head's."""
    model, subject = opened(kind, tmp_path), pairs(3)
    bare, by_hand = Direct(model.bare), []
    for p in subject.pairs:
        last = ("resid_post", model.card.n_layers - 1)
        seen = bare.seen(torch.tensor([p.clean]), [("z", 1), last])
        wrote = torch.einsum("he,hed->hd", seen["z", 1][0, -1], bare.W_O(1))
        way = bare.head.weight[p.answer] - bare.head.weight[p.distractor]
        by_hand.append(bare.frozen(wrote, seen[last][0, -1].expand_as(wrote)) @ way)
    close = 1e-9 if kind in ("gpt2", "native") else 2e-5  # rotary tables and Llama's norm are float32
    found = ask(model, subject).loc["head"].loc[1, "direct"].to_numpy()
    np.testing.assert_allclose(found, torch.stack(by_hand).mean(0).numpy(), rtol=0, atol=close)
    assert np.abs(found).min() > 10 * close


def test_heads_are_refused_where_a_norm_stands_behind_them(tmp_path):
    model = opened("llama", tmp_path)
    model.card.capabilities.remove("linear_attn_out")
    assert "head" not in ask(model).index.levels[0]
    with pytest.raises(Unfit, match="norm stands behind its W_O"):
        ask(model, heads="yes")


def test_without_a_norm_a_parts_effect_is_what_the_logits_lose_without_it(tmp_path):
    """The last layer's MLP reaches the logits directly only: without a norm, taking it away takes its effect away."""
    folder = native_run(tmp_path / "m", NATIVE | {"normalization_type": None})
    model, subject = open_model(parse_spec(f"run:{folder}"), settings(tmp_path)), pairs()
    without = [model.run_with([p.clean], {("mlp_out", 1): torch.zeros_like})[0, -1] for p in subject.pairs]
    lost = np.mean([full - float(w[p.answer] - w[p.distractor])
                    for full, w, p in zip(own_difference(model, subject), without, subject.pairs, strict=True)])
    assert ask(model).loc[("mlp_out", 1, -1), "direct"] == pytest.approx(lost, abs=1e-9) and abs(lost) > 1e-3


def test_with_a_norm_the_effect_is_the_derivative_at_a_held_scale(tmp_path):
    """Against LayerNorm written out by hand, part by part."""
    model, subject = opened("gpt2", tmp_path), pairs(3)
    norm, head = model.bare.transformer.ln_f, model.bare.lm_head.weight.detach()
    by_hand = []
    for p in subject.pairs:
        seen = model.capture([p.clean], ["resid_post", "mlp_out"])
        whole, part = seen["resid_post", 2][0, -1], seen["mlp_out", 1][0, -1]
        scale = ((whole - whole.mean()).square().mean() + norm.eps).sqrt()
        normed = norm.weight.detach() * (part - part.mean()) / scale
        by_hand.append(float(normed @ (head[p.answer] - head[p.distractor])))
    assert ask(model, subject).loc[("mlp_out", 1, -1), "direct"] == pytest.approx(np.mean(by_hand), abs=1e-9)


def test_embedding_and_position_are_told_apart(tmp_path):
    folder = native_run(tmp_path / "m", NATIVE | {"normalization_type": None})
    model, subject = open_model(parse_spec(f"run:{folder}"), settings(tmp_path)), pairs()
    bare, by_hand = model.bare, {"embed": [], "pos_embed": []}
    for p in subject.pairs:
        direction = (bare.head.weight[p.answer] - bare.head.weight[p.distractor]).detach()
        by_hand["embed"].append(float(bare.tok_embed.weight[p.clean[-1]].detach() @ direction))
        by_hand["pos_embed"].append(float(bare.pos.weight[len(p.clean) - 1].detach() @ direction))
    table = ask(model, subject)
    for part, values in by_hand.items():
        assert table.loc[(part, -1, -1), "direct"] == pytest.approx(np.mean(values), abs=1e-9)


def test_parts_that_miss_the_logits_are_not_shown(tmp_path, monkeypatch):
    right = bridge._norm_scale
    monkeypatch.setattr(bridge, "_norm_scale", lambda view, x: right(view, x) ** 1.01)
    with pytest.raises(Broken, match="miss the logit difference"):
        ask(opened("gpt2", tmp_path))


def test_capped_logits_are_refused(tmp_path):
    model = opened("native", tmp_path)
    model.view.cfg.output_logits_soft_cap = 30.0
    with pytest.raises(Unfit, match="capped"):
        ask(model)


def test_batches_change_nothing_and_one_pair_has_no_error(tmp_path, monkeypatch):
    model = opened("native", tmp_path)
    whole = ask(model)
    monkeypatch.setattr(room, "BATCH_BYTES", 1)
    np.testing.assert_allclose(ask(model)["direct"], whole["direct"], atol=1e-12)
    assert ask(model, pairs(1))["direct_se"].isna().all()


def test_the_null_takes_another_token_than_the_answer(tmp_path):
    asked = room._asked(opened("native", tmp_path), pairs(400), 0)
    assert (asked[:, 0] != asked[:, 2]).all() and len(set(asked[:, 2])) > 40


def test_the_shipped_induction_run_is_written_by_its_induction_head():
    from backend.models.prompts import make

    model = open_model(parse_spec("run:induction-demo"), Settings(device="cpu"))
    flat = ask(model, make(model.card.model_dump(), "induction", 32, 0))
    heads = flat.loc["head", "direct"]
    assert heads.idxmax()[0] == 1 and heads.max() > 5 * flat.loc["embed", "direct"].abs().max()
    table = flat.reset_index()
    assert room.by_head(table, View()).data[0].zmin == -room.by_head(table, View()).data[0].zmax
    drawn = room.by_part(table, View()).data
    assert drawn[0].name.endswith("(control)") and drawn[1].error_y.array is not None
