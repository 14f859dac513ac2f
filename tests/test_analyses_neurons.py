"""Neurons: wired ones do what they were wired for, dead ones nothing; batches give the whole corpus' numbers."""

import numpy as np
import pandas as pd
import pytest
import torch

from backend import analyses
from backend.analyses import _contexts
from backend.analyses import neuron_ablation as ablation
from backend.analyses import neuron_examples as examples
from backend.analyses import neurons as room
from backend.analyses._output import mlp_map
from backend.analyses._units import bootstrap
from backend.contract import Corpus, Rows, View, parse_spec
from backend.errors import BadInput
from backend.models.open import open_model
from backend.runs import corpora
from backend.settings import Settings
from tests.tiny_models import opened, quiet
from tests.wired import wired_run

#: neuron i of the wired model is 1 on token i and else 0; it raises token i + 10 by 5. Neurons 4 and 5 are twins of 3
#: and of nothing: 4 copies 3, 5 is dead.
WIRED = {"n_layers": 1, "d_model": 40, "d_head": 40, "n_heads": 1, "d_vocab": 20, "n_ctx": 16, "d_mlp": 6,
         "act_fn": "relu", "normalization_type": None, "positional_embedding_type": "standard"}
KINDS = ["gpt2", "neox", "llama", "native"]


def rows(model, n=12, length=16, seed=0, source="random"):
    return corpora.rows_of(model.card, Corpus(source=source, rows=n, length=length, seed=seed))


def ask(name, model, subject=None, **params):
    analysis = analyses.registry()[name]
    return analysis.compute(model, subject or rows(model), analysis.params(**params), quiet)


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    from backend.models.bridge import build_native

    bare = build_native(WIRED)
    with torch.no_grad():
        for weights in bare.parameters():
            weights.zero_()
        token = torch.arange(20)
        bare.tok_embed.weight[token, token] = 1  # the first twenty coordinates say the token
        bare.head.weight[token, 20 + token] = 1  # the others are what is said of it
        mlp = bare.layers[0].mlp
        for neuron, reads in enumerate([0, 1, 2, 3, 3]):
            mlp.fc_in.weight[neuron, reads] = 1
            mlp.fc_out.weight[20 + 10 + reads, neuron] = 5
    return wired_run(tmp_path_factory.mktemp("wired") / "w", bare, WIRED)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return {kind: opened(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


# ---------------------------------------------------------------- statistics


def test_wired_neurons_are_read_as_wired(wired):
    subject = rows(wired)
    table = ask("neurons", wired, subject).set_index("neuron")
    for neuron in range(5):
        reads = min(neuron, 3)
        share = (subject.tokens == reads).mean()
        one = table.loc[neuron]
        assert one["density"] == pytest.approx(share) and one["mean"] == pytest.approx(share)
        assert one["max"] == 1 and one["max_token"] == reads
        assert subject.tokens[int(one["max_row"]), int(one["max_pos"])] == reads
        assert one["raises"].split()[0] == str(10 + reads) and one["effect"] == pytest.approx(5 - 5 / 20)
    assert table.loc[5, ["density", "max", "effect", "max_corr"]].tolist() == [0, 0, 0, 0]
    assert pd.isna(table.loc[5, "kurtosis"])


@pytest.mark.parametrize("kind", ["neox", "llama"])
def test_what_a_neuron_writes_is_known_without_names(kind, tiny):
    """W_out read off is the module's own; its tokens are those of the neuron's row of W_out W_U."""
    model = tiny[kind]
    layer = model.bare.gpt_neox.layers[1].mlp if kind == "neox" else model.bare.model.layers[1].mlp
    W_out = (layer.dense_4h_to_h if kind == "neox" else layer.down_proj).weight.detach().T
    torch.testing.assert_close(mlp_map(model, 1), W_out, rtol=0, atol=1e-9)
    effect = W_out @ model.bare.get_output_embeddings().weight.detach().T
    effect = effect - effect.mean(1, keepdim=True)
    table = ask("neurons", model, layer=1).set_index("neuron")
    np.testing.assert_allclose(table["effect"], effect.max(1).values[table.index.tolist()], rtol=1e-5)
    assert [int(t.split()[0]) for t in table["raises"]] == effect.argmax(1)[table.index.tolist()].tolist()


def test_twins_find_each_other_above_the_shuffled_null(wired):
    table = ask("neurons", wired, rows(wired, 64)).set_index("neuron")
    assert table["partner"][[3, 4]].tolist() == [4, 3]
    assert table["max_corr"][[3, 4]].tolist() == pytest.approx([1, 1], abs=1e-9)
    assert table["max_corr_null"].max() < 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_what_the_whole_corpus_gives(kind, tiny, monkeypatch):
    model, subject = tiny[kind], rows(tiny[kind])
    acts = model.capture(torch.as_tensor(subject.tokens), ["mlp_post"], [1])["mlp_post", 1]
    flat = acts.flatten(0, 1)
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 16 * 4 * model.card.d_mlp * 5)  # 5 rows at once
    table = ask("neurons", model, subject, layer=1)
    np.testing.assert_allclose(table["mean"], flat.mean(0), atol=1e-12)
    np.testing.assert_allclose(table["max"], flat.max(0).values, atol=1e-12)
    np.testing.assert_allclose(table["q99"], np.quantile(flat.numpy(), 0.99, axis=0), atol=1e-12)
    share = (acts > 0).double().mean(1)
    np.testing.assert_allclose(table["density_se"], share.std(0) / len(share) ** 0.5, atol=1e-12)
    r = np.abs(np.corrcoef(flat.T.numpy()))
    np.fill_diagonal(r, 0)
    np.testing.assert_allclose(table["max_corr"], r.max(1), atol=1e-9)
    if kind in ("gpt2", "native"):  # weights by name; the others': test_what_a_neuron_writes_is_known_without_names
        weights = model.weights()
        written = weights["W_out"][1] @ weights["W_U"]
        assert [t.split()[0] for t in table["lowers"]] == [str(t) for t in written.argmin(1).tolist()]
    assert (table["raises"] != "").all() and table["effect"].notna().all()


def test_the_most_active_are_kept_and_counted(tiny):
    every, few = ask("neurons", tiny["native"], layer=0), ask("neurons", tiny["native"], layer=0, most=5)
    assert set(few["neuron"]) == set(every.nlargest(5, "max")["neuron"]) and set(few["of"]) == {64}
    assert "5 of 64" in room.density_and_max(few, View()).layout.xaxis.title.text
    assert set(ask("neurons", tiny["native"])["layer"]) == {0, 1}


# ---------------------------------------------------------------- examples


def test_the_top_examples_are_a_full_sort_without_overlap(tiny):
    model, subject = tiny["gpt2"], rows(tiny["gpt2"], 8)
    acts = model.capture(torch.as_tensor(subject.tokens), ["mlp_post"], [2])["mlp_post", 2][..., 7].numpy()
    table = ask("neuron_examples", model, subject, layer=2, neuron=7, n=5, context=2)
    here = table[(table["offset"] == 0) & (table["kind"] == "top")]
    left, wanted = acts.copy(), []
    while len(wanted) < 5:  # take the largest, strike out its neighbourhood
        row, pos = np.unravel_index(left.argmax(), left.shape)
        wanted.append((row, pos))
        left[row, max(0, pos - 4) : pos + 5] = -np.inf
    assert list(zip(here["row"], here["pos"], strict=True)) == wanted
    assert (table["activation"] == acts[table["row"], table["pos"]]).all()
    assert (table["token"] == subject.tokens[table["row"], table["pos"]]).all()
    assert here["rank"].tolist() == [int((acts > acts[w]).sum()) for w in wanted]


def test_no_two_windows_of_a_kind_overlap_and_quantiles_are_close(tiny):
    table = ask("neuron_examples", tiny["native"], rows(tiny["native"], 30), n=6, context=3, layer=1, neuron=3)
    assert not table.duplicated(["kind", "row", "pos"]).any()
    here = table[table["offset"] == 0].groupby("kind")["rank"].mean() / (30 * 16)
    assert abs(here["q50"] - 0.5) < 0.1 and abs(here["q90"] - 0.1) < 0.05 and here["top"] < 0.05
    assert table["offset"].abs().max() == 3 and set(table["kind"]) == set(_contexts.KINDS)


def test_a_wired_neuron_shows_its_token_on_top(wired):
    table = ask("neuron_examples", wired, neuron=2, n=4, context=1)
    here = table[(table["offset"] == 0) & (table["kind"] == "top")]
    assert set(here["token"]) == {2} and set(here["activation"]) == {1.0}
    figure = examples.strips(table, View(vocab=lambda i: f"w{i}"))
    assert "w2" in np.asarray(figure.data[0].text)[0]


# ---------------------------------------------------------------- ablation


def test_ablating_a_dead_neuron_changes_nothing(wired):
    for kind in ("mean", "zero"):
        table = ask("neuron_ablation", wired, neuron=5, kind=kind).set_index("condition")
        chosen = table.loc["chosen", ["loss_change", "loss_change_low", "loss_change_high", "kl"]]
        assert chosen.tolist() == [0, 0, 0, 0]
        assert table.loc["random", "kl"] > 0 and table.loc["chosen", "neurons"] == "L0N5"


def test_zero_ablation_of_a_wired_neuron_is_known_in_closed_form(wired):
    """On token 0 the logits are 5 at token 10, else 0: KL to the uniform prediction that is left, on 0's positions."""
    subject = rows(wired)
    z = np.exp(5) + 19
    kl = np.exp(5) / z * 5 - np.log(z / 20)
    table = ask("neuron_ablation", wired, subject, neuron=0, kind="zero").set_index("condition")
    share = (subject.tokens == 0).mean()
    assert table.loc["chosen", "kl"] == pytest.approx(kl * share, rel=1e-9)
    now, then = subject.tokens[:, :-1] == 0, subject.tokens[:, 1:]
    change = np.where(now, np.where(then == 10, 5, 0) - np.log(z / 20), 0).mean()
    assert table.loc["chosen", "loss_change"] == pytest.approx(change, rel=1e-9)


def test_rows_that_are_all_alike_are_their_own_mean(tiny):
    subject = rows(tiny["native"])
    same = Rows(np.repeat(subject.tokens[:1], 6, 0), subject.corpus)
    table = ask("neuron_ablation", tiny["native"], same, top=64)
    assert table["kl"].max() < 1e-12 and table["loss_change"].abs().max() < 1e-9
    assert ask("neuron_ablation", tiny["native"], subject, top=64).set_index("condition").loc["chosen", "kl"] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_rows_change_no_number(kind, tiny, monkeypatch):
    whole = ask("neuron_ablation", tiny[kind], layer=1, top=3, draws=2)
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 16 * 400 * 3)
    parts = ask("neuron_ablation", tiny[kind], layer=1, top=3, draws=2)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-8)
    assert whole["condition"].tolist()[:3] == ["intact", "chosen", "random"] and len(whole) == 6
    chosen = whole.set_index("condition").loc["chosen"]
    assert chosen["kl_low"] <= chosen["kl"] <= chosen["kl_high"] and chosen["n_neurons"] == 3


def test_the_random_control_draws_others(wired):
    draws = ablation._draws(10, np.array([1, 2, 3]), 50, 0)
    assert len(draws) == 50 and all(len(set(d)) == 3 and not set(d) & {1, 2, 3} for d in draws)
    assert ablation._draws(3, np.arange(3), 5, 0) == [] and len(ablation._draws(4, np.arange(3), 5, 0)[0]) == 1
    table = ask("neuron_ablation", wired, top=4)
    assert "fewer than the 4 chosen" in table.set_index("condition").loc["random", "neurons"]


def test_the_bootstrap_interval_covers_the_mean_of_a_gaussian():
    """95 % intervals over 60 samples hold the truth in 94 % of 400 repetitions (the percentile bootstrap is narrow)."""
    dice = np.random.default_rng(0)
    held = [low <= 0 <= high for low, high in
            (bootstrap(dice.standard_normal(60), i) for i in range(400))]
    assert 0.90 < np.mean(held) < 0.98


def test_grokking_is_asked_for_its_sum(tmp_path):
    model = open_model(parse_spec("run:grokking-demo"), Settings(device="cpu", cache=tmp_path))
    subject = rows(model, 128, 3, source="training")
    table = ask("neuron_ablation", model, subject, top=512).set_index("condition")
    assert table.loc["intact", "loss"] < 0.05 and table.loc["chosen", "loss_change"] > 2


# ---------------------------------------------------------------- refusals


def test_a_model_without_an_mlp_is_told_why():
    model = open_model(parse_spec("run:induction-demo"), Settings(device="cpu"))
    for name in ("neurons", "neuron_examples", "neuron_ablation"):
        assert "needs MLP layers" in analyses.registry()[name].unfit(model.card.capabilities)


def test_layers_and_neurons_that_are_not_there_are_refused(wired):
    with pytest.raises(BadInput, match="layers 0 to 0"):
        ask("neurons", wired, layer=1)
    for name in ("neuron_examples", "neuron_ablation"):
        with pytest.raises(BadInput, match="neurons 0 to 5"):
            ask(name, wired, neuron=6)
        with pytest.raises(BadInput, match="layers 0 to 0"):
            ask(name, wired, layer=3)
