"""Attribution: exact where the metric is linear, complete as steps grow; the reference's numbers repeated."""

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _causal
from backend.analyses import attribution_patching as room
from backend.analyses._checking import compared, some_and_others
from backend.analyses._effects import hovers
from backend.analyses.attribution_patching import attribution_patching
from backend.contract import Pair, Pairs, View
from tests import models_support
from tests.causal_kit import KINDS, ask, pairs_for, swapped_keys, wired
from tests.tiny_models import NATIVE, native_run, opened


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: opened(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Attention only, without norms: logits are linear in what the last layer's heads write."""
    from backend.contract import parse_spec
    from backend.models.open import open_model
    from tests.tiny_models import settings

    folder = tmp_path_factory.mktemp("linear")
    config = {**NATIVE, "attn_only": True, "normalization_type": None}
    config.pop("d_mlp"), config.pop("act_fn")
    return open_model(parse_spec(f"run:{native_run(folder / 'runs' / 'tiny', config)}"), settings(folder))


def table_of(model, subject, **params):
    table = ask(attribution_patching, model, subject, exact_top=99, exact_others=0, **params)
    return table.set_index(["component", "layer", "head"])


@pytest.mark.parametrize("method", ["layer path", "own path", "one step"])
def test_on_a_linear_metric_all_methods_are_exact(linear, method):
    table = table_of(linear, pairs_for(linear), method=method, steps=1)
    last, first = (table.xs(layer, level="layer") for layer in (1, 0))
    np.testing.assert_allclose(last["approx"], last["exact"], atol=1e-9)
    np.testing.assert_allclose(last["approx_low"], last["exact_low"], atol=1e-9)
    assert (last["exact"].abs() > 1e-3).all() and ((first["approx"] - first["exact"]).abs() > 1e-3).any()


@pytest.mark.parametrize(("kind", "direction"), [("native", "noising"), ("llama", "denoising")])
def test_many_steps_of_a_component_alone_are_its_exact_effect(models, kind, direction):
    model, subject = models[kind], pairs_for(models[kind], 2)
    many, few = (table_of(model, subject, method="own path", steps=k, direction=direction) for k in (30, 1))
    scale = many["exact"].abs().max()
    worst = [(t["approx"] - t["exact"]).abs().max() / scale for t in (few, many)]
    assert worst[1] < 0.02 and worst[0] > 5 * worst[1], worst


@pytest.mark.parametrize("kind", ["native", "neox"])
def test_the_heads_of_a_layer_together_share_its_exact_effect(models, kind):
    model, subject = models[kind], pairs_for(models[kind], 2)
    heads = table_of(model, subject, steps=30).loc["head"].groupby("layer")["approx"].sum()
    whole = [_causal.Place("z", layer) for layer in heads.index]
    exact = room.exact_changes(model, subject, whole, "denoising", lambda f: None).mean(1)
    np.testing.assert_allclose(heads, exact, atol=0.02 * abs(exact).max())


def test_exact_values_are_those_of_activation_patching_and_are_for_the_chosen(models):
    from backend.analyses.activation_patching import activation_patching

    model, subject = models["gpt2"], pairs_for(models["gpt2"])
    table = ask(attribution_patching, model, subject, exact_top=3, exact_others=4)
    patched = ask(activation_patching, model, subject).set_index(["layer", "head"])["change"]
    assert table["checked"].value_counts().to_dict() == {"no": 11, "random": 4, "top": 3}
    top = table["approx"].abs().nlargest(3).index
    assert (table.loc[top, "checked"] == "top").all()
    assert (table["exact"].isna() == (table["checked"] == "no")).all()
    for row in table[(table["checked"] != "no") & (table["component"] == "head")].itertuples():
        assert row.exact == pytest.approx(patched[row.layer, row.head], abs=1e-9)
        assert row.exact_low <= row.exact <= row.exact_high
    known = table.dropna(subset=["exact"])
    rho = known["approx"].rank().corr(known["exact"].rank())
    assert table["rank_correlation"].iloc[0] == pytest.approx(rho)
    none = ask(attribution_patching, model, subject, exact_top=0, exact_others=0)
    assert none["exact"].isna().all() and none["rank_correlation"].isna().all()
    assert attribution_patching.figures["check"].build(none, View()).data


def test_small_memory_and_several_lengths_give_the_same_scores(models, monkeypatch):
    model = models["native"]
    some = pairs_for(model, 3).pairs
    shorter = tuple(Pair(clean=p.clean[2:], corrupted=p.corrupted[2:], answer=p.answer, distractor=p.distractor)
                    for p in some)  # fmt: skip
    mixed = Pairs(pairs=(*some, *shorter))
    whole = {m: ask(attribution_patching, model, mixed, method=m)["approx"] for m in ("layer path", "one step")}
    row = _causal.RUN_BYTES // _causal.rows_at_once(model, 23, gradients=True)
    monkeypatch.setattr(_causal, "RUN_BYTES", 4 * row)
    for method, approx in whole.items():
        np.testing.assert_allclose(ask(attribution_patching, model, mixed, method=method)["approx"], approx, atol=1e-9)


def test_one_step_misses_a_saturated_head_and_says_so(tmp_path):
    """The wired heads switch at once: no slope where it is decided, yet the whole effect when patched."""
    model = wired(tmp_path / "w")
    table = table_of(model, swapped_keys(), method="one step")
    previous = table.loc[("head", 0, 0)]
    assert abs(previous["approx"]) < 1e-9 and previous["exact"] == pytest.approx(60)
    assert table.loc[("head", 1, 0), "approx"] == pytest.approx(60)  # the logits are linear in the last head
    for name in ("check", "overview"):
        drawn = attribution_patching.figures[name].build(table.reset_index(), View(params={"method": "one step"}))
        assert "saturates" in drawn.layout.title.text
        plain = attribution_patching.figures[name].build(table.reset_index(), View(params={"method": "own path"}))
        assert not plain.layout.title.text
    assert "**One step saturates**" in attribution_patching.doc


def test_palindrome_classifier_repeats_the_reference():
    """200 palindromes; corrupted: one token of the second half changed. The reference's own draws are seed 0's."""
    if not models_support.DATA.is_dir():
        pytest.skip("shared/data with models trained by others is not beside this checkout")
    model = models_support.opened(f"tl:{models_support.DATA / 'palindrome_classifier.pt'}", dtype="float64")
    torch.manual_seed(0)
    half = torch.randint(0, 31, (200, 10))
    clean, rows, pos = torch.cat([half, half.flip(-1)], 1), torch.arange(200), torch.randint(10, 20, (200,))
    corrupted = clean.clone()
    corrupted[rows, pos] = (clean[rows, pos] + torch.randint(1, 31, (200,))) % 31
    subject = Pairs(pairs=tuple(Pair(clean=(31, *a, 32), corrupted=(31, *b, 32), answer=1, distractor=0)
                                for a, b in zip(clean.tolist(), corrupted.tolist(), strict=True)))  # fmt: skip
    assert [round(float(side.mean()), 2) for side in _causal.both_sides(model, subject)] == [5.68, -5.43]
    tables = {steps: table_of(model, subject, steps=steps) for steps in (5, 20)}
    step, alone = (table_of(model, subject, method=m).loc["head"] for m in ("one step", "own path"))
    assert tables[5].loc["head", "exact"].round(2).tolist() == [10.72, 0.39, 10.25, 0.83]
    assert step["approx"].round(2).tolist() == [1.32, 0.04, 0.89, 0.46]
    assert tables[5].loc["head", "approx"].round(2).tolist() == [10.88, 0.52, 10.33, 0.84]
    assert tables[20].loc["head", "approx"].round(2).tolist() == [10.54, 0.50, 10.25, 0.84]
    assert alone["approx"].round(2).tolist() == [10.90, 0.39, 10.34, 0.83]  # each head alone: nearer, K runs per head


def test_the_others_that_are_patched_exactly_are_any():
    """Over seeds every component is met, not the next largest alone; the top ones always are."""
    score = np.linspace(1, 0, 30)
    drawn = [some_and_others(score, 3, 4, seed)[0] for seed in range(40)]
    assert all({0, 1, 2} <= set(d) and len(set(d)) == 7 for d in drawn)
    assert set().union(*drawn) == set(range(30))


def test_the_rank_correlation_is_over_all_that_were_checked_with_their_signs():
    """Over the largest three alone it would be 1, and of sizes alone 1, too."""
    score = np.array([9.0, 8.0, 7.0, -6.0, 1.0, 0.5])[:, None].repeat(2, 1)
    exact = np.array([9.0, 8.0, 7.0, 6.0, -2.0, 0.1])[:, None].repeat(2, 1)
    found = compared("score", score, lambda chosen: exact[chosen], 4, 2, 100, 0)
    assert sorted(found["checked"]) == ["random"] * 2 + ["top"] * 4
    # ranks of scores 6 5 4 1 3 2, of exact values 6 5 4 3 1 2: sum of squared differences 8
    assert found["rank_correlation"] == pytest.approx(1 - 6 * 8 / (6 * 35))


def test_a_hover_ranks_by_the_size_of_the_change():
    frame = pd.DataFrame({"change": [1.0, -5.0, 2.0], "change_se": 0.1, "patched": 0.0, "recovered": 0.5,
                          "recovered_low": 0.4, "recovered_high": 0.6})  # fmt: skip
    assert [words.rsplit("<br>", 1)[1] for words in hovers(frame)] == [
        f"rank {k} of 3 (0: the farthest from 0)" for k in (2, 0, 1)]
