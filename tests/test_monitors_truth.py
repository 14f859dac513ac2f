"""Monitors against closed forms: planted patterns, known norms, known dimensions, a circuit wired by hand."""

import math

import pytest
import torch

from backend import monitors
from backend.contract import Observation
from backend.maths import heads, norms, spectra
from backend.models.observe import observe
from tests.wired import distinct_rows, wired_induction

DICE = torch.Generator().manual_seed(5)


def normal(*shape):
    return torch.randn(*shape, generator=DICE, dtype=torch.float64)


def seen(logits, tokens, **more):
    return Observation(tokens, logits, **more)


def test_uniform_logits_have_entropy_and_loss_ln_v():
    tokens = torch.randint(11, (3, 40), generator=DICE)
    got = monitors.measure(["right_answers", "prediction_entropy", "icl_score", "repeated_block"],
                           seen(torch.zeros(3, 40, 11).double(), tokens, block=20))  # fmt: skip
    for name in ("loss", "prediction_entropy", "first_half_loss", "second_half_loss"):
        assert got[name] == pytest.approx(math.log(11), rel=1e-12), name
    assert got["icl_score"] == pytest.approx(0, abs=1e-12)


def test_a_perfect_copier_on_a_repeated_block():
    n, vocab = 32, 64
    tokens = torch.randint(vocab, (8, n), generator=DICE).repeat(1, 2)
    logits = torch.zeros(8, 2 * n, vocab).double()
    logits[:, n : 2 * n - 1] = 40.0 * torch.nn.functional.one_hot(tokens[:, 1:n], vocab)
    got = monitors.measure(["right_answers", "icl_score", "repeated_block"], seen(logits, tokens, block=n))
    assert got["second_copy_accuracy"] == 1 and got["second_half_loss"] < 1e-12
    assert got["first_half_loss"] == pytest.approx(math.log(vocab))
    assert got["icl_score"] == pytest.approx(-math.log(vocab))
    assert got["loss"] == pytest.approx(math.log(vocab) * n / (2 * n - 1))


def test_targets_are_the_right_answers_where_given():
    logits = torch.zeros(4, 3, 5).double()
    logits[:, -1, 2] = 50.0
    tokens = torch.zeros(4, 3).long()
    last = monitors.measure(["right_answers"], seen(logits, tokens, targets=torch.tensor([2, 2, 2, 1])))
    assert last["accuracy"] == 0.75 and last["loss"] == pytest.approx(50 / 4)
    everywhere = torch.full((4, 3), -1)
    everywhere[:, -1] = 2
    assert monitors.measure(["right_answers"], seen(logits, tokens, targets=everywhere))["accuracy"] == 1


def test_what_cannot_be_seen_is_left_out():
    short = seen(torch.zeros(2, 4, 5), torch.zeros(2, 4).long())
    assert monitors.measure(["repeated_block", "icl_score", "induction_score", "attention_entropy", "weight_norms",
                             "head_norms", "copying_score", "effective_dimension", "pace"], short) == {}  # fmt: skip


def test_attention_entropy_is_1_for_uniform_rows_and_0_for_one_key():
    uniform = torch.ones(2, 3, 9, 9).double().tril()
    uniform /= uniform.sum(-1, keepdim=True)
    single = torch.zeros(2, 3, 9, 9).double()
    single[..., 0] = 1
    got = monitors.measure(["attention_entropy"], seen(torch.zeros(2, 9, 4), torch.zeros(2, 9).long(),
                                                       patterns=[uniform, single]))  # fmt: skip
    assert [got[f"attention_entropy/L0H{h}"] for h in range(3)] == pytest.approx([1] * 3)
    assert [got[f"attention_entropy/L1H{h}"] for h in range(3)] == [0] * 3
    everything = torch.full((4, 4), 0.25).double()
    assert heads.normalised_entropy(everything, causal=False).tolist() == pytest.approx([1] * 4)
    whole = seen(torch.zeros(2, 4, 5), torch.zeros(2, 4).long(), patterns=[everything.expand(2, 3, 4, 4)],
                 extra={"causal": False})  # fmt: skip
    assert list(monitors.measure(["attention_entropy"], whole).values()) == pytest.approx([1] * 3)


def test_an_induction_head_wired_by_hand():
    model, rows = wired_induction().double(), distinct_rows(40, 16, 6)
    names = ["repeated_block", "induction_score", "previous_token_score", "duplicate_token_score", "copying_score",
             "right_answers"]  # fmt: skip
    got = monitors.measure(names, observe(model, rows, 16))
    assert got["induction_score/L1H0"] == pytest.approx(1, abs=1e-9)
    assert got["previous_token_score/L0H0"] == pytest.approx(1, abs=1e-9)
    assert got["second_copy_accuracy"] == 1 and got["second_half_loss"] < 1e-6
    assert got["copying_score/L1H0"] == pytest.approx(1, abs=1e-9)
    assert got["copying_score/L1H1"] == 0  # a head that writes nothing
    assert max(got[f"induction_score/L0H{h}"] for h in range(2)) < 0.2
    assert got["duplicate_token_score/L1H0"] < 1e-6


def test_one_wired_layer_is_at_chance():
    got = monitors.measure(["repeated_block", "induction_score"],
                           observe(wired_induction(n_layers=1).double(), distinct_rows(40, 16, 6), 16))  # fmt: skip
    assert got["second_copy_accuracy"] < 0.1 and got["second_half_loss"] > 3


# ---------------------------------------------------------------- weights


def test_norms_of_products_without_the_products():
    left, right = normal(3, 20, 4), normal(3, 30, 4)
    dense = (left @ right.transpose(-1, -2)).norm(dim=(-2, -1))
    torch.testing.assert_close(norms.product_norm(left, right), dense, rtol=1e-12, atol=0)


def gauged(w, seed=0):
    """Rewrite every head: W_Q A, W_K A^-T; W_V B, B^-1 W_O. Nothing that the model computes changes."""
    dice = torch.Generator().manual_seed(seed)
    A, B = (torch.eye(4).double() + 0.5 * torch.randn(3, 4, 4, generator=dice, dtype=torch.float64) for _ in range(2))
    return {**w, "W_Q": [q @ A for q in w["W_Q"]], "W_K": [k @ torch.linalg.inv(A).transpose(-1, -2) for k in w["W_K"]],
            "W_V": [v @ B for v in w["W_V"]], "W_O": [torch.linalg.inv(B) @ o for o in w["W_O"]]}  # fmt: skip


def weights(kv=3):
    return {"W_E": normal(15, 12), "W_U": normal(12, 15), "W_Q": [normal(3, 12, 4)], "W_K": [normal(kv, 12, 4)],
            "W_V": [normal(kv, 12, 4)], "W_O": [normal(3, 4, 12)]}  # fmt: skip


def test_head_norms_and_copying_do_not_depend_on_the_gauge():
    w, bare = weights(), seen(torch.zeros(1, 2, 15), torch.zeros(1, 2).long())
    names = ["head_norms", "copying_score", "weight_norms"]
    one, other = (monitors.measure(names, Observation(bare.tokens, bare.logits, weights=g)) for g in (w, gauged(w)))
    free = [k for k in one if k.startswith(("qk", "ov", "copying"))]
    assert len(free) == 9 and {k: one[k] for k in free} == pytest.approx({k: other[k] for k in free}, rel=1e-9)
    assert abs(one["weight_norm_W_Q/L0"] / other["weight_norm_W_Q/L0"] - 1) > 0.05  # the plain norm does
    for h in range(3):
        assert one[f"qk_norm/L0H{h}"] == pytest.approx(float((w["W_Q"][0][h] @ w["W_K"][0][h].T).norm()))
        assert one[f"ov_norm/L0H{h}"] == pytest.approx(float((w["W_V"][0][h] @ w["W_O"][0][h]).norm()))
    assert one["weight_norm_W_Q/L0"] == pytest.approx(float(w["W_Q"][0].norm()))
    assert one["weight_norm_W_E"] == pytest.approx(float(w["W_E"].norm()))


def test_query_heads_that_share_keys_have_a_map_each():
    w = weights(kv=1)
    got = monitors.measure(["head_norms", "copying_score"],
                           Observation(torch.zeros(1, 2), torch.zeros(1, 2, 15), weights=w))  # fmt: skip
    for h in range(3):
        assert got[f"qk_norm/L0H{h}"] == pytest.approx(float((w["W_Q"][0][h] @ w["W_K"][0][0].T).norm()))
        assert got[f"ov_norm/L0H{h}"] == pytest.approx(float((w["W_V"][0][0] @ w["W_O"][0][h]).norm()))


def test_copying_score_through_the_small_matrix_is_that_of_the_whole_map():
    w = weights()
    small = heads.copying_score(w["W_V"][0], w["W_O"][0], heads.token_map(w["W_E"], w["W_U"]))
    for h in range(3):
        values = torch.linalg.eigvals(w["W_E"] @ w["W_V"][0][h] @ w["W_O"][0][h] @ w["W_U"])
        assert float(small[h]) == pytest.approx(float(values.sum().real / values.abs().sum()), abs=1e-9)


@pytest.mark.parametrize(("sign", "score"), [(1, 1), (-1, -1), (0, 0)])
def test_copying_score_of_identity_maps(sign, score):
    eye = torch.eye(6).double()[None]
    assert float(heads.copying_score(eye, sign * eye, heads.token_map(eye[0], eye[0]))) == pytest.approx(score)


# ---------------------------------------------------------------- dimensions


def test_effective_dimension_in_closed_form():
    many = torch.randn(20_000, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(spectra.participation_ratio(many)) == pytest.approx(10, rel=0.01)  # isotropic: d
    line = normal(50, 1) @ normal(1, 10) + 3.0
    assert float(spectra.participation_ratio(line)) == pytest.approx(1, abs=0.03)  # on a line: 1
    scales = torch.tensor([3.0, 2.0, 1.0, 1.0]).double()
    expected = float(scales.square().sum() ** 2 / scales.pow(4).sum())
    assert float(spectra.participation_ratio(many[:, :4] * scales)) == pytest.approx(expected, rel=0.02)
    with pytest.raises(ValueError, match="at least 4"):
        spectra.participation_ratio(many[:3])


def test_effective_dimension_is_not_bound_by_few_vectors():
    """30 isotropic vectors in 60 dimensions: the plain ratio stays below 30, the corrected one is 60 on average."""
    dice = torch.Generator().manual_seed(2)
    clouds = [torch.randn(30, 60, generator=dice, dtype=torch.float64) for _ in range(60)]
    plain = []
    for cloud in clouds:
        values = torch.linalg.eigvalsh(cloud.T.cov())
        plain.append(float(values.sum() ** 2 / values.square().sum()))
    corrected = [float(spectra.participation_ratio(cloud)) for cloud in clouds]
    assert max(plain) < 30 and sum(corrected) / 60 == pytest.approx(60, rel=0.06)


def test_effective_dimension_reads_the_last_residual_and_scale_is_free():
    resid = normal(4, 50, 8)
    got = [monitors.measure(["effective_dimension"], Observation(torch.zeros(4, 50), torch.zeros(4, 50, 3), resid=r))
           for r in (resid, 100 * resid + 7)]  # fmt: skip
    assert got[0] == pytest.approx(got[1]) and 7 < got[0]["effective_dimension"] < 9


def test_every_metric_has_words_and_its_continuous_twin_exists():
    words = monitors.metrics()
    assert {"loss", "accuracy", "update_norm", "steps_per_second", "induction_score", "ov_norm"} <= words.keys()
    for name, metric in words.items():
        assert metric.name == name and metric.title and metric.help
        assert not metric.continuous or metric.continuous in words
    assert words["second_copy_accuracy"].continuous == "second_half_loss"
