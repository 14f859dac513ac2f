"""Edges of a circuit: linear identities, the wired path, the exact effect by hand; what cannot be asked is refused."""

import numpy as np
import pytest
import torch

from backend.analyses import _causal, _edges
from backend.analyses._circuit_curves import apart
from backend.analyses._circuits import nodes_of, outside_values, run_circuits
from backend.analyses._edge_circuits import run_edge_circuits
from backend.analyses._edge_search import greedy, joined
from backend.analyses._edges import Receiver, Sender
from backend.analyses.circuit_edges import circuit_edges
from backend.analyses.path_patching import path_patching
from backend.contract import Pairs, View, parse_spec
from backend.errors import Unfit
from backend.maths import circuits
from backend.models.open import open_model
from tests.causal_kit import ask, pairs_for, swapped_keys, wired
from tests.tiny_models import NATIVE, native_run, opened, settings
from tests.tracr_models import program

AXES = [a.name for a in circuit_edges.axes]


def native(folder, **more):
    return open_model(parse_spec(f"run:{native_run(folder / 'runs' / 'tiny', {**NATIVE, **more})}"), settings(folder))


def batch_of(model, n=3):
    (batch,) = _causal.batches(model, pairs_for(model, n))
    return batch


def test_without_a_norm_the_edges_to_the_logits_are_exact_and_sum_to_all(tmp_path):
    model = native(tmp_path, normalization_type=None)
    subject = pairs_for(model, 4)
    table = ask(circuit_edges, model, subject, steps=1, exact_top=4096, exact_others=0, draws=100, held_out=0, random=1)
    last = table[table["reads"] == "logits"]
    clean, corrupted = _causal.both_sides(model, subject)
    assert last["score"].sum() == pytest.approx((clean - corrupted).mean(), abs=1e-8)
    np.testing.assert_allclose(last["score"], last["exact"], atol=1e-8)
    assert len(last) == 1 + 2 * 4 + 2 and (last["score"].abs() > 1e-6).sum() == 10  # embed: the same last token
    rest = table[table["reads"] != "logits"]
    assert len(rest) == 4 * 3 + 5 + (1 + 4 + 1) * 4 * 3 + (1 + 4 + 1 + 4)
    assert rest["checked"].eq("top").all() and table["rank_correlation"].notna().all()


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_the_gradient_at_an_input_is_the_slope_of_the_exact_effect(kind, tmp_path):
    """A change of 1e-5 in what one receiver alone reads moves logit_diff by 1e-5 times its gradient there."""
    model = opened(kind, tmp_path)
    batch, w_o = batch_of(model), _edges.output_weights(model)
    edges = [(Sender("head", 0, 1), Receiver("k", 1, 2)), (Sender("embed", -1), Receiver("v", 0, 3)),
             (Sender("head", 1, 0), Receiver("mlp", 1)), (Sender("mlp", 0), Receiver("q", 1, 1)),
             (Sender("mlp", 0), Receiver("logits", model.card.n_layers))]  # fmt: skip
    slopes, writes = {}, _edges.Writes(model, batch, w_o)
    clean_embed = model.capture(batch.clean, ["embed"])["embed", 0]
    _edges.input_gradients(model, batch, clean_embed, [r for _, r in edges], slopes.__setitem__)
    expected = np.stack([(writes.of(s) * slopes[r]).flatten(1).sum(1).numpy() for s, r in edges])
    small = 1e-5
    whole = _edges.Writes.of
    try:
        _edges.Writes.of = lambda self, sender: small * whole(self, sender)
        found = _edges.exact_effects(model, batch, edges, w_o) / small
    finally:
        _edges.Writes.of = whole
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-7)
    assert (np.abs(expected).max(1) > 4e-6).all()


def test_exact_edges_between_heads_are_path_patching(tmp_path):
    """Without MLPs in between, an edge into k of a head of the next layer is its path, noised."""
    model = native(tmp_path)
    subject = pairs_for(model, 3)
    (batch,) = _causal.batches(model, subject)
    pairs = [(s, r) for s in range(4) for r in range(4)]
    edges = [(Sender("head", 0, s), Receiver("k", 1, r)) for s, r in pairs]
    mine = _edges.exact_effects(model, batch, edges, _edges.output_weights(model)).mean(1)
    paths = ask(path_patching, model, subject, to="heads", input="k", direction="noising")
    np.testing.assert_allclose(mine, -paths["change"], atol=1e-9)


def test_an_edge_into_an_mlp_by_the_bare_module(tmp_path):
    """The MLP alone reads the stream without the write; attention of its own layer does not."""
    model = native(tmp_path)
    batch, block, sender = batch_of(model), model.bare.layers[1], Sender("head", 0, 1)
    write = _edges.Writes(model, batch, _edges.output_weights(model)).of(sender)
    stream = model.capture(batch.clean, ["resid_mid"])["resid_mid", 1]
    with torch.no_grad():
        heard = block.mlp(block.ln2(stream - write))
    patched = batch.logit_diff(model.run_with(batch.clean, {("mlp_out", 1): lambda t: heard}))
    expected = batch.logit_diff(model.run_with(batch.clean, {})) - patched
    edge = [(sender, Receiver("mlp", 1))]
    found = _edges.exact_effects(model, batch, edge, _edges.output_weights(model))[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(found).max() > 1e-4


def test_the_wired_path_stands_out_exactly(tmp_path):
    model = wired(tmp_path / "w")
    table = ask(circuit_edges, model, swapped_keys(3, n=8), exact_top=4096, draws=100, steps=1)
    strong = table[table["exact"].abs() > 1].set_index(AXES).index.tolist()
    assert ("head", 0, 0, "k", 1, 0) in strong and ("head", 1, 0, "logits", 2, -1) in strong
    heads = [e for e in strong if e[0] == "head"]
    assert len(heads) == 2  # no idle head sends anything, and nothing else hears these
    for figure in circuit_edges.figures.values():
        assert figure.build(table, View()).data


@pytest.mark.parametrize(("kind", "words"), [("neox", "not known by name"), ("llama", "share 2 keys")])
def test_what_cannot_be_told_apart_is_refused(kind, words, tmp_path):
    model = opened(kind, tmp_path)
    with pytest.raises(Unfit, match=words):
        ask(circuit_edges, model, pairs_for(model, 2))


# ---------------------------------------------------------------- circuits cut out of the edges


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_all_edges_are_the_clean_run_none_the_corrupted_and_one_cut_its_exact_effect(kind, tmp_path):
    model = opened(kind, tmp_path)
    batch, w_o, edges = batch_of(model, 2), _edges.output_weights(model), _edges.edges_of(model)
    some = np.random.default_rng(0).choice(len(edges), 24, replace=False)
    kept = np.concatenate([np.ones((1, len(edges)), bool), np.zeros((1, len(edges)), bool),
                           ~np.eye(len(edges), dtype=bool)[some]])  # fmt: skip
    found = run_edge_circuits(model, [batch], edges, w_o, kept)
    clean, corrupted = (batch.logit_diff(model.run_with(t, {})) for t in (batch.clean, batch.corrupted))
    np.testing.assert_allclose(found[0], clean, atol=1e-9)
    np.testing.assert_allclose(found[1], corrupted, atol=1e-9)
    exact = _edges.exact_effects(model, batch, [edges[i] for i in some], w_o)
    np.testing.assert_allclose(found[0] - found[2:], exact, atol=1e-9)
    assert np.abs(exact).max() > 1e-4


def test_cutting_all_that_some_nodes_send_is_ablating_them(tmp_path):
    """Random sets of nodes put at their corrupted values, by the analysis of nodes, which never cuts an edge."""
    model = native(tmp_path)
    batch, w_o, edges, nodes = batch_of(model), _edges.output_weights(model), _edges.edges_of(model), nodes_of(model)
    kept = np.random.default_rng(1).random((6, len(nodes))) < 0.5
    by_nodes = run_circuits(model, [batch], nodes, kept, outside_values(model, [batch], nodes, "corrupted"))
    at = {(p.layer, p.head): i for i, p in enumerate(nodes)}
    stays = [at[s.layer, s.head] if s.kind != "embed" else -1 for s, _ in edges]
    masks = np.concatenate([kept, np.ones((6, 1), bool)], 1)[:, stays]
    np.testing.assert_allclose(run_edge_circuits(model, [batch], edges, w_o, masks), by_nodes, atol=1e-9)


def test_edges_on_no_path_change_nothing(tmp_path):
    model = native(tmp_path)
    batch, w_o, edges = batch_of(model), _edges.output_weights(model), _edges.edges_of(model)
    names = [(f"{s.kind}{s.layer}{s.head}", "logits" if r.reads == "logits" else f"{'mlp' if r.head < 0 else 'head'}"
              f"{r.layer}{r.head}") for s, r in edges]  # fmt: skip
    kept = np.random.default_rng(2).random((8, len(edges))) < 0.08
    pruned = np.zeros_like(kept)
    for some, less in zip(kept, pruned, strict=True):
        less[some] = circuits.on_a_path([n for n, k in zip(names, some, strict=True) if k], "embed-1-1", "logits")
    assert 0 < pruned.sum() < kept.sum()
    runs = [run_edge_circuits(model, [batch], edges, w_o, m) for m in (kept, pruned)]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-12)


@pytest.mark.parametrize("search", ["by score", "greedy exact"])
def test_the_wired_circuit_is_a_few_edges_and_holds_on_fresh_pairs(search, tmp_path):
    """L0H0 -> k of L1H0 -> logits, fed by the embedding; the other heads are in no edge of the circuit."""
    model = wired(tmp_path / "w")
    table = ask(circuit_edges, model, swapped_keys(8, n=8), search=search, exact_top=0, exact_others=0, least=0.99,
                draws=100, random=1)  # fmt: skip
    exact = search == "greedy exact"
    assert table["loss"].notna().all() if exact else table["loss"].isna().all()
    if exact:
        small = 0.02 * (table["whole"] - table["nothing"]).abs()
        assert (table["loss"].abs().ge(small) == table["kept"]).all() and table["in_circuit"].sum() == 3
        assert table["loss_low"].le(table["loss"] + 1e-9).all() and table["loss_high"].ge(table["loss"] - 1e-9).all()
    inside = table[table["in_circuit"]].set_index(AXES).index.tolist()
    assert ("head", 0, 0, "k", 1, 0) in inside and ("head", 1, 0, "logits", 2, -1) in inside
    assert all(s[2] in (-1, 0) and s[5] in (-1, 0) for s in inside) and len(inside) <= 6
    at = table[table["faithfulness"].notna()].sort_values("order").set_index("order")
    size = int(table["kept"].sum())
    assert at.loc[size, "held_out_faithfulness"] >= 0.99 and at.loc[size, "held_out_completeness"] >= 0.99
    assert at["faithfulness"].iloc[0] < 0.5 and at.loc[size, "random_high"] < 0.5
    last = at.iloc[-1]
    assert last[["faithfulness", "held_out_faithfulness", "random_mean"]].to_numpy(float) == pytest.approx([1] * 3)
    assert table["n"].eq(4).all() and table["n_held_out"].eq(4).all()


def mirrored(pairs):
    """Each pair twice, and once with answer and distractor exchanged: effects and whole are a third in the mean."""
    back = [p.model_copy(update={"answer": p.distractor, "distractor": p.answer}) for p in pairs.pairs]
    return pairs.model_copy(update={"pairs": (*pairs.pairs, *pairs.pairs, *back)})


@pytest.mark.parametrize("threshold", [0.03, 0.1, 0.3])
def test_what_may_be_lost_is_a_share_of_the_mean_difference(threshold, tmp_path):
    """A mirror image takes as much from the whole as from every loss, so the search keeps the same edges."""
    model = native(tmp_path, n_heads=2)
    w_o, edges = _edges.output_weights(model), _edges.edges_of(model)
    subject = pairs_for(model, 3)
    once, thrice = (greedy(model, _causal.batches(model, s), edges, w_o, threshold, lambda f: None)[0]
                    for s in (subject, mirrored(subject)))  # fmt: skip
    assert (once == thrice).all() and 0 < once.sum() < len(edges)


@pytest.mark.parametrize("threshold", [0, 1e6])
def test_the_search_tries_edges_from_the_logits_back(threshold, tmp_path):
    """Nothing may be lost: every loss is the exact effect alone. Everything may: one cut after the other, by hand."""
    model = native(tmp_path, n_heads=2)
    batch, w_o, edges = batch_of(model, 2), _edges.output_weights(model), _edges.edges_of(model)
    kept, lost, gone = greedy(model, [batch], edges, w_o, threshold, lambda f: None)
    back = list(reversed(range(len(edges))))
    assert kept.all() == (threshold == 0) and gone == (back if threshold else [])
    assert edges[back[0]] == (Sender("mlp", 1), Receiver("logits", 2)) and edges[0][0] == Sender("embed", -1)
    if threshold:
        masks = np.array([[i < len(edges) - k for i in range(len(edges))] for k in range(len(edges) + 1)])
        runs = run_edge_circuits(model, [batch], edges, w_o, masks)
        np.testing.assert_allclose(lost[back], runs[:-1] - runs[1:], atol=1e-9)
    else:
        np.testing.assert_allclose(lost, _edges.exact_effects(model, batch, edges, w_o), atol=1e-9)


#: (edges that the weights join, of these those that a program uses to tell the pairs apart)
COMPILED = {"hist": (6, 4), "sort_unique": (10, 6), "reverse": (13, 2)}


@pytest.mark.parametrize("name", list(COMPILED))
def test_the_edges_of_a_compiled_program_are_found_exactly(name, tmp_path):
    """Precision 1; recall 1 of the edges that carry a difference between clean and corrupted prompts to the logits.

    What they carry is read off the weights and the writes; the others of the program carry the same on both: of
    reverse all that measures the length.
    """
    p = program(name, tmp_path / name)
    model, edges, w_o = p.model, _edges.edges_of(p.model), _edges.output_weights(p.model)
    long = [pair for pair in p.pairs(40).pairs if len(pair.clean) == 5][:6]
    groups, w = _causal.batches(model, Pairs(pairs=tuple(long))), model.weights()
    writes = [_edges.Writes(model, b, w_o) for b in groups]

    def reads(r):
        if r.reads in ("logits", "mlp"):
            return w["W_U"] if r.reads == "logits" else w["W_in"][r.layer]
        return w[f"W_{r.reads.upper()}"][r.layer][r.head]

    def rows(s):
        return {"embed": lambda: [w["W_E"], w["W_pos"]], "head": lambda: [w["W_O"][s.layer][s.head]],
                "mlp": lambda: [w["W_out"][s.layer], w["b_out"][s.layer][None]]}[s.kind]()  # fmt: skip

    wired = np.array([(torch.cat(rows(s)) @ reads(r)).abs().max() > 1e-6 for s, r in edges])
    moved = np.array([max((m.of(s) @ reads(r)).abs().max() for m in writes) > 1e-6 for s, r in edges])
    true = joined(edges, wired & moved)
    assert (wired.sum(), true.sum()) == COMPILED[name]
    kept, _, _ = greedy(model, groups, edges, w_o, 0.01, lambda f: None)
    found = joined(edges, kept)
    assert circuits.precision_recall({*np.flatnonzero(found)}, {*np.flatnonzero(true)}) == (1, 1)


def speaking_for_the_clean(model, subject):
    """Exchange answer and distractor where a random model has them the other way: there is something to explain."""
    clean, corrupted = _causal.both_sides(model, subject)
    turned = [p if more > 0 else p.model_copy(update={"answer": p.distractor, "distractor": p.answer})
              for p, more in zip(subject.pairs, clean - corrupted, strict=True)]  # fmt: skip
    return subject.model_copy(update={"pairs": tuple(turned)})


def test_pairs_held_out_are_those_that_chose_nothing(tmp_path):
    """Faithfulness on them by hand, and scores are those of the choosing half asked alone."""
    model = native(tmp_path)
    subject = speaking_for_the_clean(model, pairs_for(model, 7))
    asked = {"exact_top": 2, "exact_others": 0, "draws": 100, "random": 1}
    table = ask(circuit_edges, model, subject, **asked)
    chose, held = apart(subject, 0.5, 0)
    assert {*chose.pairs, *held.pairs} == {*subject.pairs} and (len(chose.pairs), len(held.pairs)) == (3, 4)
    alone = ask(circuit_edges, model, chose, **asked, held_out=0)
    same = ["score", "exact", "order", "in_circuit", "faithfulness", "whole"]
    np.testing.assert_allclose(table[same].astype(float), alone[same].astype(float), atol=1e-9)
    size = sorted(table.loc[table["faithfulness"].notna(), "order"])[-3]
    kept = np.stack([table["order"] > 0, table["order"] <= size, table["order"] < 0])
    groups, w_o = _causal.batches(model, held), _edges.output_weights(model)
    whole, circuit, nothing = run_edge_circuits(model, groups, _edges.edges_of(model), w_o, kept).mean(1)
    at = table.set_index("order").loc[size]
    assert at["held_out_faithfulness"] == pytest.approx((circuit - nothing) / (whole - nothing), abs=1e-9)
    assert abs(at["held_out_faithfulness"] - at["faithfulness"]) > 1e-4
