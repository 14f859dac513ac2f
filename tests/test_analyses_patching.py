"""Activation patching and ablation: everything patched is 1, nothing 0, and a circuit wired by hand is found."""

import numpy as np
import pytest
import torch

from backend.analyses import _causal
from backend.analyses import ablation as taking
from backend.analyses.ablation import ablation
from backend.analyses.activation_patching import activation_patching
from backend.contract import Pair, Pairs, View
from backend.errors import BadInput, Unfit
from tests.causal_kit import KINDS, ask, pairs_for, swapped_keys, wired
from tests.tiny_models import opened


@pytest.fixture(scope="module")
def circuit(tmp_path_factory):
    return wired(tmp_path_factory.mktemp("wired") / "w")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: opened(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def by_head(table):
    return table.set_index(["layer", "head"])


# ---------------------------------------------------------------- activation patching


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_wired_circuit_is_found_and_nothing_else(circuit, direction):
    table = ask(activation_patching, circuit, swapped_keys(), direction=direction)
    found = by_head(table)
    for head in [(0, 0), (1, 0)]:
        assert found.loc[head, "effect"] == pytest.approx(1, abs=1e-9)
        assert found.loc[head, "recovered"] == pytest.approx(float(direction == "denoising"), abs=1e-9)
    idle = found.drop([(0, 0), (1, 0)])
    assert (idle["effect"].abs() < 1e-12).all() and (idle["change"].abs() < 1e-12).all() and len(idle) == 4
    assert found["clean"].iloc[0] == pytest.approx(30) and found["corrupted"].iloc[0] == pytest.approx(-30)
    at_slots = ask(activation_patching, circuit, swapped_keys(1), site="head_pos", direction=direction)
    told = at_slots[(at_slots["change"].abs() > 1) & (at_slots["head"] == 0)]
    pair = swapped_keys(1).pairs[0]
    j = pair.clean.index(pair.distractor) - 1
    assert set(told[told["layer"] == 0]["pos"]) == {3, j + 1}  # the two places whose previous token was exchanged
    assert told[told["layer"] == 1]["pos"].tolist() == [12]  # the last position


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_only_changed_token_is_all_and_the_others_are_nothing(models, kind, direction):
    """Before layer 0 the prompts of the induction task differ at one position alone."""
    model = models[kind]
    subject = pairs_for(model)
    pair = subject.pairs[0]
    changed = [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b]
    table = ask(activation_patching, model, subject, site="resid_pre", direction=direction)
    first = table[table["layer"] == 0].set_index("pos")["change"]
    whole = (table["clean"] - table["corrupted"])[0] * (1 if direction == "denoising" else -1)
    assert len(changed) == 1 and first[changed[0]] == pytest.approx(whole, abs=1e-9) and abs(whole) > 1e-3
    assert (first.drop(changed).abs() < 1e-9).all() and len(table) == subject.length * model.card.n_layers
    last = table[(table["layer"] == model.card.n_layers - 1) & (table["pos"] == subject.length - 1)]
    assert (last["change"].abs() > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_patching_everything_is_1_and_its_own_value_nothing(models, kind):
    model, subject = models[kind], pairs_for(models[kind])
    (batch,) = _causal.batches(model, subject)
    clean, corrupted = _causal.both_sides(model, subject)
    for layer in range(model.card.n_layers):
        whole = [_causal.Place("resid_pre", layer)]
        np.testing.assert_allclose(_causal.patched_sweep(model, batch, whole, "denoising")[0], clean, atol=1e-9)
        np.testing.assert_allclose(_causal.patched_sweep(model, batch, whole, "noising")[0], corrupted, atol=1e-9)
    points = ["z", "attn_out", "mlp_out", "resid_pre"]
    own = model.capture(batch.clean, points)
    places = [_causal.Place(p, layer, pos, 1 if p == "z" else -1) for p, layer in own for pos in (-1, 3)]
    same = _causal.sweep(model, batch, batch.clean, places, own)
    np.testing.assert_allclose(same, np.tile(clean, (len(places), 1)), atol=1e-9)
    assert abs(clean - corrupted).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_sweep_equals_a_loop_over_heads(models, kind):
    model, subject = models[kind], pairs_for(models[kind])
    table = by_head(ask(activation_patching, model, subject))
    (batch,) = _causal.batches(model, subject)
    source = model.capture(batch.clean, ["z"])
    rows = torch.arange(len(subject.pairs))
    for layer, head in table.index:
        def one(z, layer=layer, head=head):
            z[:, :, head] = source["z", layer][:, :, head]
            return z

        last = model.run_with(batch.corrupted, {("z", layer): one})[:, -1]
        alone = (last[rows, batch.answer] - last[rows, batch.distractor]).mean().item()
        assert table.loc[(layer, head), "patched"] == pytest.approx(alone, abs=1e-9)


def test_small_memory_and_several_lengths_give_the_same_numbers(circuit, monkeypatch):
    mixed = Pairs(pairs=(*swapped_keys(4).pairs, *swapped_keys(3, n=8, seed=1).pairs))
    whole = ask(activation_patching, circuit, mixed)
    alone = [ask(activation_patching, circuit, Pairs(pairs=mixed.pairs[part])) for part in (slice(4), slice(4, 7))]
    np.testing.assert_allclose(whole["patched"], (4 * alone[0]["patched"] + 3 * alone[1]["patched"]) / 7)
    row = _causal.RUN_BYTES // _causal.rows_at_once(circuit, 13)
    monkeypatch.setattr(_causal, "RUN_BYTES", 3 * row)
    assert len(_causal.batches(circuit, mixed)) > 2
    small = ask(activation_patching, circuit, mixed)
    np.testing.assert_allclose(small.to_numpy(float), whole.to_numpy(float), atol=1e-9)
    with pytest.raises(BadInput, match="prompts of 11 to 13 tokens"):
        ask(activation_patching, circuit, mixed, site="resid_pre")


def test_pairs_that_do_not_differ_have_no_recovered_and_still_a_picture(circuit):
    same = Pairs(pairs=tuple(Pair(clean=p.clean, corrupted=p.clean, answer=p.answer, distractor=p.distractor)
                             for p in swapped_keys(3).pairs))  # fmt: skip
    table = ask(activation_patching, circuit, same)
    assert table["recovered"].isna().all() and (table["change"].abs() < 1e-12).all()
    drawn = activation_patching.figures["overview"].build(table, View())
    assert "undefined" in drawn.data[0].colorbar.title.text


def test_what_a_model_lacks_is_refused(circuit):
    with pytest.raises(Unfit, match="no MLP layers"):
        ask(activation_patching, circuit, swapped_keys(2), site="mlp_out")


@pytest.mark.parametrize("site", ["head", "resid_pre", "attn_out", "head_pos"])
def test_maps_have_a_cell_per_place_and_symmetric_colours(circuit, site):
    subject = swapped_keys(2)
    table = ask(activation_patching, circuit, subject, site=site)
    view = View(tokens=[f"t{i}" for i in range(13)], params={"site": site, "direction": "denoising"})
    heat = activation_patching.figures["overview"].build(table, view).data[0]
    assert np.asarray(heat.z).size == len(table) and heat.zmin == -heat.zmax <= -1
    value = table[(table["layer"] == 1) & (table["head"] <= 0) & table["pos"].isin([-1, 12])]["effect"].iloc[0]
    row, column = (1, 0) if site == "head" else (3 if site == "head_pos" else 1, 12)
    assert np.asarray(heat.z)[row, column] == pytest.approx(value)


# ---------------------------------------------------------------- ablation


def test_without_its_head_the_wired_model_says_nothing_and_idle_heads_cost_nothing(circuit):
    for how in ("zero", "mean", "resample"):
        found = ask(ablation, circuit, swapped_keys(8), ablate=how).set_index(["component", "layer", "head"])
        idle = found.loc["head"].drop([(0, 0), (1, 0)])
        assert (idle["change"].abs() < 1e-12).all() and (idle["high"] - idle["low"] < 1e-12).all()
        assert found.loc[("head", 1, 0), "change"] < -20
        assert found.loc[("head", 0, 1), "others"] == pytest.approx(
            found.loc["head"].drop((0, 1))["change"].mean()) and "mlp" not in found.index.get_level_values(0)
    zero = ask(ablation, circuit, swapped_keys(8), ablate="zero").set_index(["component", "layer", "head"])
    assert zero.loc[("head", 1, 0), "ablated"] == pytest.approx(0, abs=1e-9)  # neither token stands at the end
    assert zero.loc[("attn", 1, -1), "change"] == pytest.approx(zero.loc[("head", 1, 0), "change"])  # no b_O here


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_are_alike_are_their_own_mean_and_each_others_resample(models, kind):
    model = models[kind]
    pair = pairs_for(model, 1).pairs[0]
    for how in ("mean", "resample"):
        table = ask(ablation, model, Pairs(pairs=(pair,) * 3), ablate=how)
        assert (table["change"].abs() < 1e-9).all()
        assert set(table["component"]) == {"head", "mlp", "attn"} and np.isfinite(table["others"]).all()
    zero = ask(ablation, model, Pairs(pairs=(pair,) * 3), ablate="zero")
    assert (zero["change"].abs() > 1e-6).all()


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_resampling_among_two_is_patching_from_the_other(models, kind):
    model, subject = models[kind], pairs_for(models[kind], 2)
    table = ask(ablation, model, subject, ablate="resample", resamples=1)
    clean = torch.tensor([p.clean for p in subject.pairs])
    other = model.capture(clean.flip(0), ["z", "mlp_out", "attn_out"])
    for row in table.itertuples():
        def swap(t, row=row):
            part = (slice(None), slice(None), row.head) if row.component == "head" else slice(None)
            t[part] = other[taking.KINDS[row.component], row.layer][part]
            return t

        last = model.run_with(clean, {(taking.KINDS[row.component], row.layer): swap})[:, -1]
        alone = np.mean([(x[p.answer] - x[p.distractor]).item() for x, p in zip(last, subject.pairs, strict=True)])
        assert row.ablated == pytest.approx(alone, abs=1e-9)


def test_several_resamples_are_the_mean_over_as_many_exchanges(models):
    model, subject = models["native"], swapped_keys(6)
    one = [ask(ablation, model, subject, ablate="resample", resamples=1, seed=s)["ablated"] for s in (3, 4)]
    both = ask(ablation, model, subject, ablate="resample", resamples=2, seed=3)["ablated"]
    np.testing.assert_allclose(both, (one[0] + one[1]) / 2, atol=1e-6)
    assert not np.allclose(one[0], one[1], atol=1e-3)


def test_the_mean_is_over_all_prompts_of_a_length_however_they_are_batched(circuit, monkeypatch):
    mixed = Pairs(pairs=(*swapped_keys(5).pairs, *swapped_keys(3, n=8, seed=1).pairs))
    whole = ask(ablation, circuit, mixed)
    row = _causal.RUN_BYTES // _causal.rows_at_once(circuit, 13)
    monkeypatch.setattr(_causal, "RUN_BYTES", 2 * row)
    np.testing.assert_allclose(ask(ablation, circuit, mixed)["ablated"], whole["ablated"], atol=1e-9)


def test_exchanges_are_of_one_length_seeded_and_leave_nobody(circuit):
    mixed = Pairs(pairs=(*swapped_keys(5).pairs, *swapped_keys(3, n=8, seed=1).pairs))
    one, two, three = (taking._exchange(mixed, s) for s in (0, 0, 1))
    assert one == two != three and all(a != b and (a < 5) == (b < 5) for a, b in one.items())
    assert sorted(one) == sorted(one.values()) == list(range(8))


def test_a_prompt_alone_has_no_mean_to_be_replaced_by(circuit):
    alone = Pairs(pairs=(*swapped_keys(2).pairs, *swapped_keys(1, n=8).pairs))
    for how in ("mean", "resample"):
        with pytest.raises(BadInput, match="only one prompt has 11 tokens"):
            ask(ablation, circuit, alone, ablate=how)
    assert len(ask(ablation, circuit, alone, ablate="zero")) == 8
