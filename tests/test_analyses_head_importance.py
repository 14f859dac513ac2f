"""Truth of head importance: an idle head has none, the wired circuit has all, effects equal the plain ablation prompt
by prompt, and the cheap estimate is exact where the metric is linear in z."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backend.analyses import _causal, registry
from backend.analyses import head_importance as room
from backend.analyses.induction_ablation import ablated_logits
from backend.contract import Pair, Pairs, View
from backend.errors import BadInput
from backend.maths import ranks
from backend.models import prompts
from tests.tiny_models import opened, quiet
from tests.wired import config, wired_induction, wired_run

KINDS = ["native", "gpt2", "neox", "llama"]


def ask(model, pairs, **params):
    one = registry()["head_importance"]
    return one.compute(model, pairs, one.params(**{"draws": 200, **params}), quiet)


def made(model, n=6):
    return prompts.make(model.card.model_dump(), "induction", n, 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: opened(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    return wired_run(tmp_path_factory.mktemp("wired"), wired_induction(), config())


def logit_diff(logits, pairs):
    return np.array([float(x[-1, p.answer] - x[-1, p.distractor]) for x, p in zip(logits, pairs.pairs, strict=True)])


def test_the_wired_circuit_carries_the_answer_and_idle_heads_nothing(wired):
    frame = ask(wired, made(wired, 12)).set_index(["layer", "head"])
    assert frame["logit_diff"].unique().round(6).tolist() == [30]
    for idle in ((0, 1), (1, 1)):
        columns = ["effect", "effect_low", "effect_high", "effect_abs", "gradient", "gradient_abs", "control"]
        assert (frame.loc[idle, columns] == 0).all()
    for used in ((0, 0), (1, 0)):
        assert frame.loc[used, "effect"] > 20 and frame.loc[used, "effect_low"] > 10
    # what L1H0 writes goes straight to the logits: the metric is linear there. L0H0 acts through a sharp softmax
    assert frame.loc[(1, 0), "gradient"] == pytest.approx(frame.loc[(1, 0), "effect"], abs=1e-9)
    assert abs(frame.loc[(0, 0), "gradient"]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_effects_are_those_of_the_plain_ablation(kind, models):
    model = models[kind]
    pairs = made(model)
    frame = ask(model, pairs)
    clean = torch.tensor([p.clean for p in pairs.pairs])
    means = [model.capture(clean, ["z"], [n])["z", n].mean(0) for n in range(model.card.n_layers)]
    intact = logit_diff(model.logits(clean), pairs)
    assert frame["logit_diff"].iloc[0] == pytest.approx(intact.mean(), abs=1e-5)
    for row in frame.itertuples():
        ablated = logit_diff(ablated_logits(model, clean, means, [(row.layer, row.head)]), pairs)
        assert row.effect == pytest.approx((intact - ablated).mean(), abs=1e-6)
        assert row.effect_abs == pytest.approx(np.abs(intact - ablated).mean(), abs=1e-6)
        lost = (intact - ablated)[:, None]
        low, high = ranks.interval(ranks.bootstrap_means(lost, 200, 0))  # as many prompts as there are
        assert (row.effect_low, row.effect_high) == pytest.approx((low[0], high[0]), abs=1e-6)
    assert frame["effect"].abs().max() > 1e-3


def test_the_gradient_estimate_is_exact_where_the_metric_is_linear(tmp_path):
    """One layer without norm and MLP: logits are affine in z."""
    model = wired_run(tmp_path, wired_induction(n_layers=1), config(n_layers=1))
    with torch.no_grad():
        for p in model.bare.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2), dtype=p.dtype))
    frame = ask(model, made(model))
    np.testing.assert_allclose(frame["gradient"], frame["effect"], atol=1e-9)
    np.testing.assert_allclose(frame["gradient_abs"], frame["effect_abs"], atol=1e-9)
    assert frame["rank_correlation"].iloc[0] == frame["rank_correlation_signed"].iloc[0] == pytest.approx(1)


def test_the_gradient_estimate_is_the_slope_of_a_small_step(models):
    """Finite differences: a step of 1e-5 towards the mean loses 1e-5 of the estimate."""
    model = models["native"]
    pairs, step = made(model), 1e-5
    clean = torch.tensor([p.clean for p in pairs.pairs])
    frame = ask(model, pairs)
    for layer, head in ((0, 1), (1, 3)):
        mean = model.capture(clean, ["z"], [layer])["z", layer].mean(0)

        def towards(z, mean=mean, head=head):
            z[:, :, head] += step * (mean[:, head] - z[:, :, head])
            return z

        near = model.run_with(clean, {("z", layer): towards})
        lost = logit_diff(model.logits(clean), pairs) - logit_diff(near, pairs)
        row = frame[(frame["layer"] == layer) & (frame["head"] == head)].iloc[0]
        assert row["gradient"] == pytest.approx(lost.mean() / step, rel=1e-3)


def test_the_control_is_a_push_as_large_as_the_ablation_in_another_direction(models, monkeypatch):
    changes = []
    lost = room._Group._lost

    def noted(self, layer, change):
        changes.append(change)
        return lost(self, layer, change)

    monkeypatch.setattr(room._Group, "_lost", noted)
    frame = ask(models["native"], made(models["native"]))
    for gap, push in zip(changes[::2], changes[1::2], strict=True):
        torch.testing.assert_close(push.norm(dim=-1), gap.norm(dim=-1))
        assert torch.cosine_similarity(push, gap, dim=-1).abs().mean() < 0.5
    assert not np.allclose(frame["control"], frame["effect"])


def test_batches_change_nothing_but_the_order_of_sums(models, monkeypatch):
    model = models["gpt2"]
    pairs = made(model, 5)
    whole = ask(model, pairs)
    row = _causal.RUN_BYTES // _causal.rows_at_once(model, pairs.length)
    monkeypatch.setattr(_causal, "RUN_BYTES", 7 * row)
    np.testing.assert_allclose(ask(model, pairs), whole, atol=1e-9)


def test_rank_correlation_is_of_the_columns(models):
    frame = ask(models["llama"], made(models["llama"]))
    expected = ranks.spearman(frame["effect_abs"].to_numpy(), frame["gradient_abs"].to_numpy())
    assert frame["rank_correlation"].iloc[0] == pytest.approx(expected)
    low, high = (frame[f"rank_correlation_{x}"].iloc[0] for x in ("low", "high"))
    assert -1 <= low <= high <= 1


def test_the_mean_over_all_positions_needs_no_equal_lengths(models):
    model = models["native"]
    pairs = Pairs(pairs=tuple(Pair(clean=(3, 9, 4, 1, 7)[:n], corrupted=(5, 9, 4, 1, 7)[:n], answer=2, distractor=8)
                              for n in (3, 4, 5)))  # fmt: skip
    with pytest.raises(BadInput, match="only one prompt has 3 tokens"):
        ask(model, pairs)
    frame = ask(model, pairs, mean_over="all")
    z = [model.capture(torch.tensor([p.clean]), ["z"], [1])["z", 1][0] for p in pairs.pairs]
    mean = torch.cat(z).mean(0)

    def edit(t):
        t[:, :, 2] = mean[2]
        return t

    lost = [logit_diff(f(torch.tensor([p.clean])), SimpleNamespace(pairs=[p]))[0] for p in pairs.pairs
            for f in (model.logits, lambda t: model.run_with(t, {("z", 1): edit}))]  # fmt: skip
    row = frame[(frame["layer"] == 1) & (frame["head"] == 2)].iloc[0]
    assert row["effect"] == pytest.approx(np.mean(np.array(lost[::2]) - np.array(lost[1::2])), abs=1e-9)


def test_a_single_prompt_is_its_own_mean_and_refused(models):
    one = Pairs(pairs=(made(models["native"]).pairs[0],))
    for mean_over in ("position", "all"):  # one prompt has no interval either
        with pytest.raises(BadInput, match="only one prompt"):
            ask(models["native"], one, mean_over=mean_over)


def test_figures_carry_intervals_and_the_control(models):
    frame, one = ask(models["native"], made(models["native"])), registry()["head_importance"]
    figure = one.figures["agreement"].build(frame, View())
    points = [t for t in figure.data if t.error_y.array is not None]
    assert sum(len(t.x) for t in points) == len(frame) and "rank correlation" in figure.layout.title.text
    control, measured = one.figures["ranking"].build(frame, View()).data[:2]
    assert control.name == "random push" and np.abs(measured.y[0]) == frame["effect"].abs().max()
    assert (np.array(measured.error_y.arrayminus) >= 0).all()
