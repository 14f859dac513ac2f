"""Circuits of nodes: compiled programs and the wired induction circuit are found exactly; identities; refusals."""

import numpy as np
import pytest
import torch

from backend.analyses import _circuit_curves as curves_room
from backend.analyses import circuit_nodes as room
from backend.analyses._circuits import name_of, nodes_of
from backend.analyses.ablation import ablation
from backend.analyses.circuit_nodes import circuit_nodes
from backend.contract import View
from backend.errors import BadInput
from backend.maths import circuits
from tests.causal_kit import KINDS, ask, pairs_for, swapped_keys, wired
from tests.tiny_models import opened
from tests.tracr_models import OUTPUT, TRUTH, program

INDUCTION = {"L0H0", "L1H0"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return {name: program(name, tmp_path_factory.mktemp("tracr") / name) for name in OUTPUT}


@pytest.fixture(scope="module")
def induction(tmp_path_factory):
    return wired(tmp_path_factory.mktemp("wired") / "w", n_heads=3)


def named(table):
    return [name_of(r.layer, r.head) for r in table.itertuples()]


def chosen(table):
    return {n for n, kept in zip(named(table), table["in_circuit"], strict=True) if kept}


# ---------------------------------------------------------------- compiled programs: the truth is known


@pytest.mark.parametrize(("name", "n"), [("reverse", 18), ("hist", 18), ("sort_unique", 20)])
def test_a_program_decodes_as_tracr_did(programs, name, n):
    p, said = programs[name], []
    for words, out in zip(p.meta["seqs"], p.meta["outs"], strict=True):
        classes = p.model.logits([p.ids(words[1:])])[0].argmax(-1).tolist()[1:]
        said += [p.outputs[c] == o for c, o in zip(classes, out[1:], strict=True)]
    assert all(said) and len(said) == n


@pytest.mark.parametrize("name", list(OUTPUT))
def test_zero_ablation_of_all_outputs_names_the_true_components(programs, name):
    """Share of inputs of varied length whose decoded outputs change: exactly 0 for all but the true components."""
    p, dice, changed = programs[name], np.random.default_rng(3), {}
    inputs = [torch.tensor([p.ids(p.draw(dice))]) for _ in range(30)]
    for place in nodes_of(p.model):
        edits = {(place.point, place.layer): torch.zeros_like}
        different = [(p.model.run_with(x, edits)[:, 1:].argmax(-1) != p.model.logits(x)[:, 1:].argmax(-1)).any()
                     for x in inputs]  # fmt: skip
        changed[name_of(place.layer, place.head)] = np.mean(different)
    found = {c for c, share in changed.items() if share > 0}
    assert circuits.precision_recall(found, TRUTH[name]) == (1, 1) and min(changed[c] for c in TRUTH[name]) > 0.2


@pytest.mark.parametrize("name", list(OUTPUT))
@pytest.mark.parametrize("search", ["by score", "greedy exact"])
def test_the_circuit_of_a_program_is_found_exactly(programs, name, search):
    p = programs[name]
    table = ask(circuit_nodes, p.model, p.pairs(24), ablate="zero", search=search, least=0.99, random=4)
    assert circuits.precision_recall(chosen(table), TRUTH[name]) == (1, 1)
    if search == "by score":
        true = np.array([n in TRUTH[name] for n in named(table)])
        assert true.all() or circuits.area_under_roc(table["score"].abs().to_numpy(), true) == 1
        assert (table["score"].abs() > 1e-4).tolist() == true.tolist()


def test_truth_is_relative_to_the_pairs(programs):
    """Values of another input as long: reverse's length never differs, so the four nodes that compute it look idle."""
    p = programs["reverse"]
    table = ask(circuit_nodes, p.model, p.pairs(24), ablate="corrupted", random=4)
    assert circuits.precision_recall(chosen(table), TRUTH["reverse"]) == (1, 1 / 5) and chosen(table) == {"L3H0"}
    assert (table["score"].abs() < 1e-9).sum() == 7


# ---------------------------------------------------------------- the wired induction circuit


@pytest.mark.parametrize("ablate", ["mean", "corrupted", "zero"])
@pytest.mark.parametrize("search", ["by score", "greedy exact"])
def test_the_wired_circuit_is_found_exactly(induction, ablate, search):
    subject = swapped_keys(5, n=8)
    table = ask(circuit_nodes, induction, subject, ablate=ablate, search=search, least=0.99, random=8)
    assert chosen(table) == INDUCTION
    at = table.set_index("order").sort_index()
    assert at.loc[2, "faithfulness"] >= 0.99 and at.loc[2, "completeness"] >= 0.99
    assert at.loc[2, "random_mean"] < 0.5 and at.loc[1, "faithfulness"] < 0.5
    assert set(table.loc[table["order"] <= 2, "head"]) == {0}


def test_the_shipped_pairs_do_not_move_the_previous_token(induction):
    """Their corrupted prompt changes what followed, not what stood before: under `corrupted` L0H0 looks idle."""
    table = ask(circuit_nodes, induction, pairs_for(induction, 3), ablate="corrupted", random=4)
    assert chosen(table) == {"L1H0"}
    assert chosen(ask(circuit_nodes, induction, pairs_for(induction, 3), ablate="zero", random=4)) == INDUCTION
    moved = pairs_for(induction, 4, "induction_previous")
    assert chosen(ask(circuit_nodes, induction, moved, ablate="corrupted", random=4)) == INDUCTION


# ---------------------------------------------------------------- identities on random models


def speaking_for(model, subject, ablate):
    """Exchange answer and distractor where a random model has them the other way: there is something to explain."""
    task = room.task_of(model, subject, ablate)
    n = len(task.nodes)
    nothing, whole = task.metric(np.array([[False] * n, [True] * n]))
    turned = [p if more > 0 else p.model_copy(update={"answer": p.distractor, "distractor": p.answer})
              for p, more in zip(subject.pairs, whole - nothing, strict=True)]  # fmt: skip
    return subject.model_copy(update={"pairs": tuple(turned)})


@pytest.mark.parametrize("kind", KINDS)
def test_ends_and_scores_on_every_architecture(kind, tmp_path):
    model = opened(kind, tmp_path)
    subject = speaking_for(model, pairs_for(model, 5), "zero")
    table = ask(circuit_nodes, model, subject, ablate="zero", random=2, draws=100, held_out=0)
    last = table.set_index("order").loc[len(table)]
    assert last["faithfulness"] == pytest.approx(1, abs=1e-9) and last["completeness"] == pytest.approx(1, abs=1e-9)
    assert last["random_low"] == pytest.approx(1, abs=1e-9) == last["random_high"]
    single = ask(ablation, model, subject, ablate="zero", draws=100)
    single = single[single["component"] != "attn"].reset_index(drop=True)
    np.testing.assert_allclose(table["score"], -single["change"], atol=1e-9)
    assert sorted(table["order"]) == list(range(1, len(table) + 1))


def test_held_out_pairs_choose_nothing_and_are_measured_as_if_asked_alone(tmp_path):
    """Scores of the choosing half are those it gives when asked alone; the other half's curve, too."""
    model = opened("native", tmp_path)
    subject = speaking_for(model, pairs_for(model, 7), "corrupted")
    asked = {"ablate": "corrupted", "random": 2, "draws": 100}
    table = ask(circuit_nodes, model, subject, **asked)
    chose, held = curves_room.apart(subject, 0.5, 0)
    assert {*chose.pairs, *held.pairs} == {*subject.pairs} and (len(chose.pairs), len(held.pairs)) == (3, 4)
    assert table["n"].eq(3).all() and table["n_held_out"].eq(4).all()
    alone = ask(circuit_nodes, model, chose, **asked, held_out=0)
    same = ["score", "order", "in_circuit", "faithfulness", "completeness_high", "whole"]
    np.testing.assert_allclose(table[same].astype(float), alone[same].astype(float), atol=1e-9)
    assert alone["held_out_faithfulness"].isna().all() and alone["n_held_out"].eq(0).all()
    task = room.task_of(model, held, "corrupted")
    order = table.sort_values("order").index.to_numpy()
    grown = curves_room.grown(task.metric, order, np.arange(1, len(order) + 1), 100, 0)
    found = table.sort_values("order")
    np.testing.assert_allclose(found["held_out_faithfulness"], grown["faithfulness"], atol=1e-9)
    assert (found["held_out_faithfulness"] - found["faithfulness"]).abs().max() > 1e-3
    some = np.flatnonzero(found["random_mean"].notna()) + 1
    band = curves_room.random_band(task.metric, len(order), some, 2, 0)  # of the pairs held out, too
    np.testing.assert_allclose(found["random_mean"], band["random_mean"], atol=1e-9)
    for ends in ("completeness", "faithfulness", "held_out_completeness", "held_out_faithfulness"):
        low, high = found[f"{ends}_low"], found[f"{ends}_high"]
        assert (low <= found[ends] + 1e-9).all() and (found[ends] <= high + 1e-9).all()


def test_random_circuits_of_a_size_differ():
    """A metric that tells which things were kept: as many values as circuits that are drawn."""
    weight = 2.0 ** np.arange(12)
    band = curves_room.random_band(lambda kept, said=None: (kept * weight).sum(1)[:, None], 12, np.array([6]), 8, 0)
    assert band["random_low"][5] < band["random_mean"][5] < band["random_high"][5]


def test_faithfulness_by_hand(tmp_path):
    """One head and one MLP kept, edits written out: the same logit_diff."""
    model = opened("native", tmp_path)
    subject = pairs_for(model, 4)
    task = room.task_of(model, subject, "corrupted")
    kept = np.array([p.layer == 1 and p.head in (2, -1) for p in task.nodes])
    (batch,) = task.groups
    other = model.capture(batch.corrupted, ["z", "mlp_out"])

    def all_but_2(z):
        out = other["z", 1].clone()
        out[:, :, 2] = z[:, :, 2]
        return out

    edits = {("z", 0): lambda t: other["z", 0], ("mlp_out", 0): lambda t: other["mlp_out", 0], ("z", 1): all_but_2}
    expected = batch.logit_diff(model.run_with(batch.clean, edits))
    np.testing.assert_allclose(task.metric(kept[None])[0], expected, atol=1e-12)


def test_the_mean_is_over_all_pairs_of_one_length(programs, monkeypatch):
    """In batches of one pair the values outside are those of one large batch."""
    p = programs["hist"]
    whole = ask(circuit_nodes, p.model, p.pairs(9), random=2)
    monkeypatch.setattr("backend.analyses._causal.RUN_BYTES", 1)
    np.testing.assert_allclose(ask(circuit_nodes, p.model, p.pairs(9), random=2)["score"], whole["score"], atol=1e-12)


def test_integrated_gradients_agree_with_exact_scores_and_have_them_beside(tmp_path):
    """The exact column is score="exact"'s own, of the largest few and of some at random; intervals are its, too."""
    model = opened("native", tmp_path)
    subject = pairs_for(model, 4)
    asked = {"ablate": "corrupted", "random": 2, "held_out": 0, "draws": 100}
    exact = ask(circuit_nodes, model, subject, **asked)
    near = ask(circuit_nodes, model, subject, **asked, score="integrated gradients", steps=50, exact_top=2)
    mlp = exact["component"] == "mlp"  # an MLP moves alone on its path: completeness
    np.testing.assert_allclose(near["score"][mlp], exact["score"][mlp], rtol=0.02, atol=1e-3)
    assert exact["checked"].eq("all").all() and exact["rank_correlation"].isna().all()
    known = near["exact"].notna()
    assert near["checked"].value_counts().to_dict() == {"top": 2, "random": 4, "no": 4} and known.sum() == 6
    for end in ("", "_low", "_high"):
        assert exact[f"exact{end}"].equals(exact[f"score{end}"])
        np.testing.assert_allclose(near.loc[known, f"exact{end}"], exact.loc[known, f"score{end}"], atol=1e-12)
    among = near[known]
    rho = among["score"].corr(among["exact"], method="spearman")
    assert near["rank_correlation"].iloc[0] == pytest.approx(rho)
    greedy = ask(circuit_nodes, model, subject, **asked, search="greedy exact", threshold=1, exact_top=99)
    np.testing.assert_allclose(greedy["exact"], exact["score"], atol=1e-12)
    assert (greedy["exact"] - greedy["score"]).abs().max() > 1e-3  # alone, not when the search tried it
    with pytest.raises(BadInput, match="Ablate by corrupted"):
        ask(circuit_nodes, model, subject, score="integrated gradients")


@pytest.mark.parametrize("threshold", [0.2, 0.3])
def test_the_greedy_threshold_is_a_share_of_the_mean_difference(threshold, tmp_path):
    """A pair with answer and distractor exchanged takes as much from the whole as from every loss."""
    model = opened("native", tmp_path)
    subject = pairs_for(model, 4)
    back = [p.model_copy(update={"answer": p.distractor, "distractor": p.answer}) for p in subject.pairs]
    asked = {"search": "greedy exact", "threshold": threshold, "random": 2, "held_out": 0, "exact_top": 0,
             "exact_others": 0, "ablate": "corrupted"}  # fmt: skip
    once, thrice = (ask(circuit_nodes, model, subject.model_copy(update={"pairs": tuple(pairs)}), **asked) for pairs in
                    (subject.pairs, (*subject.pairs, *subject.pairs, *back)))  # fmt: skip
    assert once["in_circuit"].tolist() == thrice["in_circuit"].tolist() and 0 < once["in_circuit"].sum() < len(once)


def test_nothing_to_explain_is_null_and_drawn(tmp_path):
    """A pair whose prompts are equal, ablated by its own values: no share is defined and no circuit chosen."""
    model = opened("native", tmp_path)
    subject = pairs_for(model, 3)
    same = subject.model_copy(update={"pairs": tuple(p.model_copy(update={"corrupted": p.clean}) for p in
                                                     subject.pairs)})  # fmt: skip
    table = ask(circuit_nodes, model, same, ablate="corrupted", random=2)
    assert table["faithfulness"].isna().all() and not table["in_circuit"].any()
    for figure in circuit_nodes.figures.values():
        assert figure.build(table, View()).data
