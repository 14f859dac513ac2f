"""What a request will cost: what analyses declare is what is counted, the probe measures what is known, and what would
not fit is refused before it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from backend import Backend, costs
from backend.analyses import _asking, _causal, _curving, _units, registry
from backend.analyses._work import parts
from backend.contract import Corpus, EnergyWeights, Pairs, Problems, Prompt, Weights
from backend.costs import Calls, Work
from backend.errors import BadInput
from backend.models import shorter, trained
from backend.models.probe import counted_bytes, probe
from backend.runs import corpora, energy_tasks
from tests import tiny_models
from tests.causal_kit import ask, swapped_keys
from tests.energy_kit import tiny_energy
from tests.lens_kit import lens_run
from tests.sae_kit import sae_run

FEW = {"products": 10, "k": 1, "probes": 2, "steps": 5, "trace_probes": 3}  # products of a Hessian
ASKED: dict[str, list[dict[str, Any]]] = {
    "activation_patching": [{}, {"site": "resid_pre"}, {"site": "head_pos", "direction": "noising"}],
    "attribution_patching": [{}, {"method": "own path", "steps": 3}, {"method": "one step", "exact_top": 99},
                             {"exact_top": 0, "exact_others": 0}],
    "path_patching": [{}, {"to": "logits"}, {"to": "heads", "receiver_layer": 1}],
    "ablation": [{}, {"ablate": "zero"}, {"ablate": "resample", "resamples": 3}],
    "circuit_nodes": [{"random": 3}, {"search": "greedy exact", "random": 2, "exact_top": 0, "exact_others": 1},
                      {"ablate": "corrupted", "score": "integrated gradients", "random": 2}],
    "circuit_scrubbing": [{"samples": 2, "random": 1}, {"samples": 2, "random": 2, "hypothesis":
                          "L1H3 > logits: same answer; L0H3 > L1H3.k: same token at -1; L0 mlp > L1H3.v; "
                          "embed > L0 mlp; all > L1H3.q"}, {"samples": 1, "random": 1, "hypothesis":
                          "L1H0 > logits: any; L0 mlp > L1H0; embed > L0 mlp"}],
    "head_importance": [{}, {"mean_over": "all"}],
    "neurons": [{}, {"layer": 1}],
    "neuron_examples": [{}],
    "neuron_ablation": [{"draws": 3}, {"neuron": 5, "draws": 2}, {"top": 64}],
    "attention": [{}],
    "attention_max_flow": [{}, {"query": 9}],
    "pca_directions": [{}, {"point": "mlp_post", "layer": 1, "n": 3}],
    "hessian_spectrum": [FEW, {**FEW, "null": "none", "matrix": "gauss-newton", "block": "layer 1"}],
    "hessian_blocks": [{"probes": 2, "products": 5}, {"probes": 2, "products": 5, "by": "layer", "null": "none"}],
    "logit_lens": [{}],
    "jacobian_lens": [{}],
    "attention_flow": [{}],
    "attention_statistics": [{}],
    "value_weighted": [{}],
    "lens_convergence": [{}],
    "tuned_lens": [{"lens": "lens"}],
    "tuned_lens_quality": [{"lens": "lens"}],
    "direct_logit_attribution": [{}],
    "name_movers": [{}],
    "pair_answers": [{}],
    "intervene": [{"continue_by": 12}, {"edits": "zero L0H1; scale L1.mlp_out 0.5", "continue_by": 2},
                  {"edits": "resample L0H1; resample L1H0 seed 2; add L1.resid_pre 2 prompt 4,5,6 minus 4,7,6",
                   "continue_by": 3}],
    "intervention_effect": [{}, {"edits": "resample L0H1; add L0.mlp_out 1 neuron L0N2", "controls": 2},
                            {"edits": "add L1.resid_pre 2 prompt 4,5 minus 6,7; mean L0H1", "controls": 1},
                            {"edits": "patch L0H1; zero L1N3", "controls": 2}, {"edits": "patch L0.mlp_out"}],
    "head_scores": [{}, {"rows": 5, "block_length": 7}],
    "head_taxonomy": [{"rows": 6}],
    "monitors": [{"rows": 4}],
    "modular_progress": [{"p": 7}],
    "fourier_spectrum": [{"p": 7}],
    "weight_spectra": [{"draws": 5}],
    "activation_spectra": [{}],
    "mode_connectivity": [{"points": 3, "bend_steps": 2}],
    "ntk": [{"positions": 3}, {"first_step": -1, "rows_used": 4, "block": "attn"}],
    "learning_coefficient": [{"chains": 2, "draws": 10, "burn": 10}],
    "loss_slices": [{"directions": 2, "points": 5, "grid": 3}],
    "sae_features": [{"sae": "sae"}],
    "sae_agreement": [{"a": "sae", "b": "other"}],
    "feature_card": [{"sae": "sae"}],
    "feature_drift": [{"sae": "sae"}],
    "interchange": [{"epochs": 2, "draws": 1}, {"epochs": 1, "draws": 2, "layer": 1, "held_out": 0.9, "rank": 3}],
    "sparse_probing": [{"property": "seen before", "most": 2, "shuffles": 1, "draws": 1},
                       {"property": "seen before", "most": 1, "shuffles": 1, "draws": 1, "layer": 1, "point": "z"}],
    "feature_ablation": [{"sae": "sae", "draws": 2}, {"sae": "sae", "feature": 3, "draws": 1},
                         {"sae": "sae", "top": 48, "draws": 1}],
}  # fmt: skip
#: what is run depends on the numbers found: no less is declared than what is counted, and not far more
AT_MOST: dict[str, list[dict[str, Any]]] = {
    "attribution_patching": [{"exact_top": 2, "exact_others": 1}],
    "circuit_edges": [{"steps": 2, "exact_top": 12, "exact_others": 3}, {"steps": 1, "held_out": 0, "random": 2},
                      {"search": "greedy exact", "threshold": 0.001, "steps": 1, "exact_top": 1, "random": 1}],
}
#: the same of energy models, whose calls are gradients by y on rows, a problem at a level each
OF_ENERGIES: dict[str, list[dict[str, Any]]] = {
    "energy_hessian": [{**FEW, "by_module": "no"}, {**FEW, "level": 3, "null": "shuffled noise", "block": "fc4",
                       "problems_used": 4}, {**FEW, "null": "none", "matrix": "gauss-newton", "block": "fc4.bias"}],
    "energy_learning_coefficient": [{"chains": 2, "draws": 10, "burn": 10, "block": "fc4", "problems_used": 3},
                                    {"chains": 2, "draws": 10, "burn": 10, "level": 1, "block": "fc4"}],
    "energy_weights": [{"draws": 5}],
    "energy_connectivity": [{"points": 3, "bend_steps": 2}, {"points": 4, "bend_steps": 1, "problems_used": 5,
                            "level": 2}],
    "energy_slices": [{"directions": 2, "points": 5, "grid": 3}, {"directions": 2, "points": 5, "grid": 3, "level": 0}],
}  # fmt: skip
PROMPT = Prompt(tokens=tuple(range(1, 18)))
CORPUS = Corpus(source="random", rows=7, length=30)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = {kind: tiny_models.opened(kind, tmp_path_factory.mktemp(kind), "float32")
            for kind in ("native", "gpt2", "neox")}  # fmt: skip
    runs = made["native"].settings.runs
    lens_run(runs / "lens", made["native"])
    for seed, name in enumerate(("sae", "other")):
        sae_run(runs / name, made["native"], seed)
    assert all(m.sizes and shorter.form_of(m.view) for m in made.values())  # which cost a forward of their own
    return made


@pytest.fixture(scope="module")
def energy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_energy(tmp_path_factory.mktemp("energy"))


@pytest.fixture()
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little room that every analysis has to cut its work."""
    monkeypatch.setattr(_causal, "RUN_BYTES", 2**19)
    monkeypatch.setattr(_units, "BATCH_BYTES", 2**15)
    monkeypatch.setattr(_asking, "CAPTURE_BYTES", 2**13)
    monkeypatch.setattr(_curving, "CHUNK_BYTES", 2**20)
    monkeypatch.setattr("backend.analyses.jacobian_lens.GRAPH_BYTES", 2**19)


@contextmanager
def counted(model: Any) -> Iterator[Counter[Calls]]:
    """Count the forwards of a model by hooks on its modules: those with a graph, those that begin late and those whose
    logits are the last position's alone apart."""
    found: Counter[Calls] = Counter()
    heard: list[list[Any]] = []  # [tokens' shape, with a graph, attention layers computed, positions of the logits]

    def began(module: Any, args: tuple, kwargs: dict) -> None:
        tokens = next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        heard.append([tokens.shape, torch.is_grad_enabled(), 0, None])

    def attended(module: Any, args: tuple, kwargs: dict) -> None:
        heard[-1][2] += 1

    def unembedded(module: Any, args: tuple, out: Any) -> None:
        heard[-1][3] = heard[-1][3] or out.shape[1]  # afterwards analyses may unembed on their own

    masters = {id(m): m for m in (model.bare, model.view.original_model)}.values()
    layers = [block.attn for block in model.view.blocks]
    hooks = [m.register_forward_pre_hook(hear, with_kwargs=True)
             for hear, modules in ((began, masters), (attended, layers)) for m in modules]  # fmt: skip
    hooks.append(model.view.unembed.register_forward_hook(unembedded))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for shape, graph, ran, seen in heard:
            share = (ran or len(layers)) / len(layers)  # the bare module's own attention is not hooked: it runs whole
            found[Calls(*shape, gradients=graph, share=share, last=seen == 1 < shape[1])] += 1


def subject_for(model: Any, name: str) -> Any:
    """A small subject; pairs of two lengths where the analysis takes them."""
    kind = registry()[name].subject
    return {Prompt: PROMPT, Corpus: CORPUS, Weights: Weights()}.get(kind) or swapped_keys(5)


def work_of(model: Any, name: str, subject: Any, params: Any) -> Work:
    """What an analysis declares, told what was trained for the model as the facade tells it."""
    made = [trained.locate(*one, model.settings).record["companion"] for one in params.companions()]
    return registry()[name].work(model.card, subject, params, *made)


def declared(work: Work) -> Counter[Calls]:
    found: Counter[Calls] = Counter()
    for call in work.calls:
        found[replace(call, n=1)] += call.n
    return found


@pytest.mark.parametrize("name", ASKED)
def test_what_is_declared_is_what_is_counted(models, narrow, name):
    """Forwards with their rows, tokens and graphs, exactly."""
    model, analysis = models["native"], registry()[name]
    subject = subject_for(model, name)
    for given in ASKED[name]:
        params = analysis.params(**given)
        told = declared(work_of(model, name, subject, params))
        rows = corpora.rows_of(model.card, subject) if isinstance(subject, Corpus) else subject
        with counted(model) as found:
            ask(analysis, model, rows, **given)
        assert told == found, given


@pytest.mark.parametrize("name", OF_ENERGIES)
def test_what_is_declared_of_an_energy_model_is_what_is_counted(energy, narrow, name):
    analysis = registry()[name]
    subject = Problems(n=20) if analysis.subject is Problems else EnergyWeights()
    asked = energy_tasks.matrices(energy.card, subject) if isinstance(subject, Problems) else subject
    for given in OF_ENERGIES[name]:
        found: Counter[Calls] = Counter()
        hook = energy.net.register_forward_pre_hook(lambda _, args, found=found: found.update([_row_call(args)]))
        try:
            ask(analysis, energy, asked, **given)
        finally:
            hook.remove()
        assert declared(analysis.work(energy.card, subject, analysis.params(**given))) == found, given


def _row_call(args: tuple) -> Calls:
    return Calls(len(args[1]), 1, gradients=True)


#: what reads off maps whose weights have no names
READ_OFF: dict[str, dict[str, Any]] = {
    "value_weighted": {}, "direct_logit_attribution": {"heads": "yes"}, "neurons": {"layer": 1}, "name_movers": {},
    "pca_directions": {"point": "mlp_post", "n": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", READ_OFF)
def test_maps_that_are_read_off_are_declared_too(models, name):
    model, analysis = models["neox"], registry()[name]
    subject = subject_for(model, name)
    told = declared(work_of(model, name, subject, analysis.params(**READ_OFF[name])))
    with counted(model) as found:
        ask(analysis, model, corpora.rows_of(model.card, subject) if isinstance(subject, Corpus) else subject,
            **READ_OFF[name])  # fmt: skip
    assert told == found


@pytest.mark.parametrize("name", AT_MOST)
def test_what_is_declared_is_no_less_than_what_is_counted(models, narrow, name):
    """Calls, and tokens times the share of layers that they pass."""
    model, analysis, subject = models["native"], registry()[name], subject_for(models["native"], name)
    for given in AT_MOST[name]:
        told = declared(work_of(model, name, subject, analysis.params(**given)))
        with counted(model) as found:
            ask(analysis, model, subject, **given)
        for least, most in ((found.total(), told.total()), (passed(found), passed(told))):
            assert least <= most < 3 * least, given


def passed(calls: Counter[Calls]) -> float:
    return sum(n * c.rows * c.length * c.share for c, n in calls.items())


def test_pairs_of_several_lengths_are_batches_of_one(models, narrow):
    model = models["native"]
    pairs = swapped_keys(4).pairs
    shorter = tuple(p.model_copy(update={"clean": p.clean[2:], "corrupted": p.corrupted[2:]}) for p in pairs[:2])
    subject, analysis = Pairs(pairs=(*pairs, *shorter)), registry()["ablation"]
    with counted(model) as found:
        ask(analysis, model, subject)
    assert declared(analysis.work(model.card, subject, analysis.params())) == found
    assert {c.length for c in found} == {len(pairs[0].clean), len(pairs[0].clean) - 2}


def test_parts_are_runs():
    assert parts(7, 3) == [3, 3, 1] and parts(0, 3) == [] and parts(3, 9) == [3]


@pytest.mark.parametrize("name", sorted({*ASKED, *AT_MOST}))
def test_declared_memory_is_near_what_is_counted(models, name):
    """Tensors alone are counted, so what an analysis holds in numpy may exceed them; floors: 1 MB."""
    model, analysis = models["native"], registry()[name]
    subject, params = subject_for(model, name), analysis.params(**(ASKED.get(name) or AT_MOST[name])[0])
    told = costs.memory(work_of(model, name, subject, params), probe(model))
    with counted_bytes() as counter:
        rows = corpora.rows_of(model.card, subject) if isinstance(subject, Corpus) else subject
        analysis.compute(model, rows, params, tiny_models.quiet)
    assert counter.peak / 3 < told < 3 * max(counter.peak, 1e6)


# ---------------------------------------------------------------- the price


def test_a_fit_goes_through_what_was_measured():
    def cost(rows, length):
        return 5.0 + rows * (0.5 * length + 0.25 * length**2)

    shapes = [(1, 8), (8, 8), (1, 64)]
    assert costs.fit([(*s, cost(*s)) for s in shapes]) == pytest.approx((5.0, 0.5, 0.25))
    assert costs.fit([(1, 3, 7.0), (8, 3, 28.0), (1, 3, 7.0)]) == pytest.approx((4.0, 1.0, 0.0))
    assert min(costs.fit([(1, 8, 3.0), (8, 8, 2.0), (1, 64, 1.0)])) >= 0, "noise gives no negative price"


def test_the_price_is_work_times_probe():
    probe_ = {f"{kind}_{unit}_{part}": value for unit in ("seconds", "bytes") for kind, parts_ in (
        ("forward", (1.0, 0.1, 0.0)), ("gradients", (2.0, 0.3, 0.01))) for part, value in
        zip(("call", "token", "square"), parts_, strict=True)} | {"operations_per_second": 100.0}  # fmt: skip
    work = Work((Calls(3, 10, n=4), Calls(2, 10, gradients=True)), held_bytes=50.0, operations=200.0)
    assert costs.seconds(work, probe_) == pytest.approx(4 * (1 + 3 * 1.0) + 2 + 2 * (3 + 1) + 2)
    short = probe_ | {f"forward_last_seconds_{part}": 0.5 for part in ("call", "token", "square")}
    last = Work((Calls(3, 10, last=True),))
    assert costs.seconds(last, short) == pytest.approx(0.5 + 3 * (5 + 50))
    assert costs.seconds(last, probe_) == 1 + 3 * 1.0, "an older probe did not measure it"
    back = probe_ | {f"gradients_last_seconds_{part}": 0.25 for part in ("call", "token", "square")}
    assert costs.seconds(Work((Calls(3, 10, gradients=True, last=True),)), back) == pytest.approx(
        0.25 + 3 * (2.5 + 25))  # fmt: skip
    late = Work((Calls(3, 10, n=4, share=0.25),))
    assert costs.seconds(late, probe_) == pytest.approx(1 + 3 * 1.0) and costs.memory(late, probe_) == 1 + 3 * 1.0
    assert costs.memory(work, probe_) == pytest.approx(2 + 2 * (3 + 1) + 50)
    assert (work.n_calls, work.tokens) == (5, 140)


def test_bytes_are_counted_as_long_as_they_live():
    weights = torch.ones(1000, requires_grad=True)
    with counted_bytes() as chain, torch.no_grad():
        x = weights
        for _ in range(10):
            x = x + 1
    with counted_bytes() as graph:
        y = weights
        for _ in range(10):
            y = torch.sin(y)
    with counted_bytes() as views:
        weights.detach().view(10, 100).T.reshape(-1)[:10]
    assert (chain.peak, graph.peak, views.peak) == (8000, 40_000, 4000)


def test_a_probe_prices_a_call_nobody_measured(models):
    """Bytes are deterministic: between the probe's shapes and beyond them, the price is near what is counted."""
    model = models["gpt2"]
    found = probe(model)
    assert found["probe_seconds"] < 3 and found["operations_per_second"] > 0
    for rows, length, gradients, last in product((4, 16), (20, 40), (False, True), (False, True)):
        tokens = torch.zeros(rows, length, dtype=torch.long)
        with counted_bytes() as counter:
            if gradients:
                model.gradients(tokens, lambda logits: logits[:, -1, 0], [("embed", 0)], last=last)
            else:
                model.run_with(tokens, {}, last=last)
        told = costs.price(found, Calls(rows, length, gradients, last=last), "bytes")
        assert told == pytest.approx(counter.peak, rel=0.25)


# ---------------------------------------------------------------- the house tells it, and refuses


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("costs")
    tiny_models.native_run(folder / "runs" / "tiny")
    made = Backend(tiny_models.settings(folder, "float32"), inline=True)
    made.wait(made.open("run:tiny")["job"]["id"], 60)
    yield made
    made.close()


def test_opening_measures_and_the_card_keeps_it(house):
    card = house.open("run:tiny")["card"]
    assert card["probe"]["forward_bytes_token"] > 0 and card["probe"]["probe_seconds"] > 0
    assert house.card("run:tiny").probe == card["probe"]


def test_an_estimate_is_the_declared_work_times_the_probe(house):
    card, subject = house.card("run:tiny"), swapped_keys(4)
    told = house.estimate("ablation", card, subject, {})
    asked = house.analysis("ablation")
    work = asked.work(card, subject, asked.params())
    assert told["basis"] == "probe" and told["refused"] is None and told["room_bytes"] > 1e6
    assert told["seconds"] == pytest.approx(costs.seconds(work, card.probe))
    assert told["memory_bytes"] == pytest.approx(costs.memory(work, card.probe), abs=1)
    assert (told["calls"], told["tokens"]) == (work.n_calls, work.tokens)
    more = house.estimate("ablation", card, swapped_keys(64), {})
    assert more["tokens"] == 16 * told["tokens"]  # more seconds, too, but a busy machine measures noise


def test_history_corrects_the_probe_and_stands_in_for_what_is_not_declared(house, monkeypatch):
    monkeypatch.setattr(house.analysis("pair_answers"), "work", None)  # as in a file of a user's own
    card, subject = house.card("run:tiny"), swapped_keys(4)
    assert house.estimate("pair_answers", card, subject, {})["basis"] == "unknown"
    before = house.estimate("ablation", card, subject, {})["seconds"]
    for name in ("ablation", "pair_answers"):
        job = house.ask(name, card, subject, {})["job"]
        assert house.wait(job["id"], 60)["state"] == "done"
    told = house.estimate("pair_answers", card, subject, {})
    assert told["basis"] == "history" and told["memory_bytes"] is None
    took = house.results("pair_answers")["seconds"][0]
    assert told["seconds"] == pytest.approx(took)
    took = house.results("ablation")["seconds"][0]
    assert house.estimate("ablation", card, subject, {})["seconds"] == pytest.approx(max(took, before))


def test_what_would_not_fit_is_refused_before_it_runs(house, monkeypatch):
    card, subject, jobs = house.card("run:tiny"), swapped_keys(6), len(house.jobs())
    monkeypatch.setattr(house.engine, "room", lambda: 1000)
    told = house.estimate("circuit_nodes", card, subject, {})["refused"]
    assert told["todo"] == "Use fewer pairs or shorter prompts" and "are free" in told["found"]
    with pytest.raises(BadInput, match="Circuit of heads and MLPs of run:tiny: it needs about .*B of memory beside"):
        house.ask("circuit_nodes", card, subject, {})
    assert len(house.jobs()) == jobs
    planned = house.submit("circuit_nodes", "run:tiny", about={"pairs": []}, plan=True)
    assert planned["state"] == "planned" and planned["job"] is None and planned["estimate"]["refused"]


def test_a_wrong_request_has_no_price(house):
    for name, params, words in (("path_patching", {"receiver_head": 9}, "receiver_head 9"),
                                ("circuit_scrubbing", {"hypothesis": "L9H0 > logits"}, "no L9H0")):  # fmt: skip
        with pytest.raises(BadInput, match=words):
            house.estimate(name, house.card("run:tiny"), swapped_keys(2), params)
