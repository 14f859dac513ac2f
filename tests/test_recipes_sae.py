"""The recipe sae: resumes to the same bits, belongs to its model, is read by SAELens' names; splicing is exact."""

import json

import pytest
import torch
from safetensors.torch import load_file

from backend import analyses
from backend.contract import Corpus, View, Weights, parse_spec
from backend.errors import BadInput, Cancelled, NotFound, Unfit
from backend.maths.sae import Sae, from_tensors
from backend.models.open import open_model
from backend.runs import corpora, recipes, sae_data
from backend.runs.folder import RunFolder
from backend.runs.recipes import sae as recipe
from backend.runs.train import read_params, train
from backend.settings import Settings
from tests.recipe_kit import assert_resumes_alike, assert_words_for_all, go_on, stop_at
from tests.sae_kit import sae_run
from tests.tiny_models import opened, quiet

SMALL = {"steps": 24, "rows": 40, "length": 32, "d_sae": 48, "k": 4, "batch_size": 64, "log_every": 5,
         "n_checkpoints": 4, "layer": 1, "dead_after": 3}


def params(**more):
    return read_params(recipes.get("sae"), SMALL | more)


def last(folder):
    rows = RunFolder(folder).read().rows
    return rows[rows.step == rows.step.max()].set_index("metric")["value"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("saes")


@pytest.fixture(scope="module")
def straight(runs):
    train("sae", SMALL | {"kind": "batch_topk"}, runs / "straight", False, go_on)
    return runs / "straight"


@pytest.fixture(scope="module")
def demo(runs):
    return open_model(parse_spec("run:induction-demo"), Settings(device="cpu", runs=runs))


# ---------------------------------------------------------------- the run


def test_it_resumes_to_the_same_bits(straight, runs):
    assert_resumes_alike("sae", SMALL | {"kind": "batch_topk"}, straight, runs / "again", 13)


def test_it_stops_within_one_step(runs):
    """A stop is heard at the step where it is asked for, and while the model is read."""
    with pytest.raises(Cancelled):
        train("sae", SMALL, runs / "cancelled", False, stop_at(3, SMALL["steps"]))
    assert max(RunFolder(runs / "cancelled").checkpoints()) == 3
    heard = []

    def at_once(fraction, words):
        heard.append(words)
        if words.startswith("reading resid_post of layer 1"):
            raise Cancelled("Job", "stopped", "Resume it")

    with pytest.raises(Cancelled):
        train("sae", SMALL, runs / "at-once", False, at_once)
    assert "row 0 of 36" in heard[-1] and RunFolder(runs / "at-once").checkpoints() == []


def test_all_it_logs_has_words(straight):
    assert_words_for_all("sae", straight)


def test_it_learns_and_the_null_explains_less(runs):
    more = {"steps": 200, "rows": 200, "length": 64, "lr": 1e-2}
    train("sae", SMALL | more, runs / "real", False, go_on)
    train("sae", SMALL | more | {"surrogate": True}, runs / "null", False, go_on)
    real, null = last(runs / "real"), last(runs / "null")
    assert real["fvu"] < 0.75 * null["fvu"] and real["loss_recovered"] > 0.8 and "loss_recovered" not in null
    assert real["l0"] == pytest.approx(4, abs=0.2) and 0 <= real["dead_share"] <= 1


def test_what_is_put_at_resid_mid_is_what_the_mlp_reads_and_stays_in_the_stream(tmp_path):
    """Against a run with the whole stream of another prompt there; the library's own hook would not do it."""
    model = opened("llama", tmp_path)
    a, b = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])[:, None]
    other = model.capture(b, ["resid_mid"], [1])["resid_mid", 1]
    swapped = model.run_with(a, sae_data.placed(model.card, "resid_mid", 1, lambda x: other))
    after = model.capture(b, ["resid_post"], [1])["resid_post", 1]  # what follows from resid_mid position by position
    expected = model.run_with(a, {("resid_post", 1): lambda x: after})
    torch.testing.assert_close(swapped, expected, rtol=0, atol=1e-6)
    assert (swapped - model.logits(a)).abs().max() > 1e-2


@pytest.mark.parametrize("point", ["resid_pre", "resid_mid", "attn_out", "mlp_out", "mlp_pre", "mlp_post", "z"])
def test_every_point_can_be_read_and_changed(point, runs):
    more = {"spec": "run:grokking-demo", "point": point, "layer": 0, "length": 3, "rows": 60, "steps": 3}
    train("sae", SMALL | more, runs / f"at-{point}", False, go_on)
    assert "loss_recovered" in last(runs / f"at-{point}")


# ---------------------------------------------------------------- what it belongs to


def test_run_json_says_for_which_model_and_the_model_reads_it(straight, demo):
    record, tensors = demo.companion("straight")
    made = record["companion"]
    assert (made["kind"], made["point"], made["layer"], made["step"]) == ("sae", "resid_post", 1, 1200)
    net = from_tensors(tensors, made["activation"], made["k"])
    rows = torch.from_numpy(corpora.rows_of(demo.card, Corpus(rows=40, length=32)).tokens)
    point = demo.capture(rows[:4], ["resid_post"], [1])["resid_post", 1].flatten(0, 1)  # the held-out rows
    left = (point - net(point).detach()).square().sum() / (point - point.mean(0)).square().sum()
    assert float(left) == pytest.approx(last(straight)["fvu"], rel=1e-4)


def test_it_is_no_model_and_says_whose_it_is(straight, runs):
    with pytest.raises(BadInput, match="it holds a sae for run:induction-demo, no model of its own"):
        open_model(parse_spec("run:straight"), Settings(device="cpu", runs=runs))


def test_saelens_finds_its_names_and_shapes(straight):
    config = json.loads((straight / "saelens" / "cfg.json").read_text())
    tensors = load_file(straight / "saelens" / "sae_weights.safetensors")
    assert {n: list(t.shape) for n, t in tensors.items()} == {
        "W_enc": [64, 48], "b_enc": [48], "W_dec": [48, 64], "b_dec": [64], "threshold": [48]}
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("jumprelu", 64, 48)
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post" and config["apply_b_dec_to_input"]
    # its encoder, written out: relu((x - b_dec) W_enc + b_enc) where above the threshold
    x, net = torch.randn(9, 64), from_tensors(tensors, "batch_topk", 4)
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    told = (pre.relu() * (pre > tensors["threshold"])) @ tensors["W_dec"] + tensors["b_dec"]
    torch.testing.assert_close(net(x), told)


def test_a_topk_file_holds_the_four_tensors_and_k(runs):
    train("sae", SMALL | {"point": "z", "steps": 2}, runs / "z", False, go_on)
    config = json.loads((runs / "z" / "saelens" / "cfg.json").read_text())
    assert config["architecture"] == "topk" and config["k"] == 4 and config["reshape_activations"] == "hook_z"
    assert set(load_file(runs / "z" / "saelens" / "sae_weights.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}


def test_it_refuses_to_go_on_for_other_weights(runs, straight):
    folder = runs / "moved"
    train("sae", SMALL | {"steps": 2}, folder, False, go_on)
    record = json.loads((folder / "run.json").read_text())
    record["companion"]["fingerprint"] = "0" * 32
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="other weights than when it began"):
        train("sae", {}, folder, True, go_on)


def test_what_cannot_be_is_refused(runs):
    with pytest.raises(BadInput, match="k = 4 is more than d_sae = 2"):
        params(d_sae=2)
    with pytest.raises(Unfit):
        train("sae", SMALL | {"point": "mlp_post"}, runs / "no-mlp", False, go_on)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("spec", ["run:induction-demo", "run:grokking-demo"])
def test_splicing_the_identity_recovers_everything_and_zeros_nothing(spec, runs):
    given = params(spec=spec, layer=0, length=3 if "grok" in spec else 32, dtype="float64")
    data = sae_data.read(given, runs, quiet)
    assert sae_data.recovered(data, given, lambda x: x)["loss_recovered"] == pytest.approx(1, abs=1e-12)
    assert sae_data.recovered(data, given, torch.zeros_like)["loss_recovered"] == pytest.approx(0, abs=1e-12)
    assert data.losses is not None and data.losses[1] > data.losses[0] + 0.5
    plain = sae_data.answers_loss(data.model.card, data.rows, data.model.logits(data.rows))
    assert data.losses[0] == pytest.approx(float(plain), abs=1e-4)
    assert len(data.train) == 36 * data.rows.shape[1] and len(data.rows) == 4


def test_the_rate_falls_to_nearly_nothing():
    given = params(steps=100)
    assert [recipe.rate(given, s) for s in (1, 80, 81, 91, 100)] == pytest.approx(
        [given.lr, given.lr, given.lr, given.lr / 2, given.lr / 20])


# ---------------------------------------------------------------- agreement and features


def ask(name, model, subject, **given):
    analysis = analyses.registry()[name]
    return analysis.compute(model, subject, analysis.params(**given), quiet)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    made = {kind: opened(kind, root / kind) for kind in ("gpt2", "neox", "llama", "native")}
    for kind, model in made.items():
        for name, seed, more in (("a", 0, {}), ("b", 1, {}), ("z", 0, {"point": "z"}), ("m", 0, {"point": "mlp_post"})):
            sae_run(root / kind / "runs" / name, model, seed, **more)
    return made


def test_an_autoencoder_agrees_with_itself_and_two_random_ones_are_the_null(tiny):
    model = tiny["native"]
    same, other = (ask("sae_agreement", model, Weights(), a="a", b=b) for b in "ab")
    assert same["mcc"][0] == pytest.approx(1) and (same["partner"] == same["feature"]).all()
    assert other["mcc"][0] == pytest.approx(other["mcc_null"][0], abs=0.05) and other["mcc"][0] < 0.6
    assert other["mcc_low"][0] < other["mcc"][0] < other["mcc_high"][0]
    assert other["cosine"].is_monotonic_decreasing and other["null"].is_monotonic_decreasing
    assert analyses.registry()["sae_agreement"].figures["cosines"].build(other, View()).data


def test_a_larger_dictionary_leaves_features_without_a_partner():
    from backend.analyses.sae_agreement import agreement

    table = agreement(torch.eye(6), torch.eye(6)[:4], 1, 0, quiet)
    assert table["cosine"].notna().sum() == 4 and table["mcc"][0] == pytest.approx(1)
    assert table["partner"].isna().tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama", "native"])
def test_feature_cards_are_those_of_the_whole_corpus(kind, tiny, monkeypatch):
    model = tiny[kind]
    subject = corpora.rows_of(model.card, Corpus(source="random", rows=10, length=16))
    point = model.capture(torch.from_numpy(subject.tokens), ["resid_post"], [0])["resid_post", 0]
    tensors = Sae(model.card.d_model, 48, 4, seed=0).double()
    with torch.no_grad():
        features = tensors.encode(point).flatten(0, 1)
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 16 * 144 * 3)
    table = ask("sae_features", model, subject, sae="a")
    torch.testing.assert_close(torch.tensor(table["density"]), (features > 0).double().mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.tensor(table["max"]), features.max(0).values, atol=1e-12, rtol=0)
    flat, best = subject.tokens.ravel(), features.argmax(0)
    assert all(not t or t.split()[0] == str(flat[b]) for t, b in zip(table["tops"], best.tolist(), strict=True))
    alive = table["density"] > 0
    assert ((table["tops"] != "") == alive).all() and (table["mean_active"].notna() == alive).all()
    assert (table["raises"] != "").all()
    for name in ("z", "m"):
        assert (ask("sae_features", model, subject, sae=name)["raises"] != "").all()


def test_directions_are_read_through_the_weights_that_follow_them(tiny):
    model = tiny["native"]
    subject = corpora.rows_of(model.card, Corpus(source="random", rows=2, length=8))
    table, weights = ask("sae_features", model, subject, sae="m"), model.weights()
    direction = Sae(64, 48, 4, seed=0).W_dec.detach().double()[5] @ weights["W_out"][0] @ weights["W_U"]
    assert table["raises"][5].split()[0] == str(int(direction.argmax()))
    assert table["lowers"][5].split()[0] == str(int(direction.argmin()))


def test_what_belongs_to_another_model_or_point_is_refused(tiny, demo):
    native = tiny["native"]
    with pytest.raises(BadInput, match="no run is named"):
        ask("sae_agreement", native, Weights())
    with pytest.raises(NotFound):
        ask("sae_agreement", native, Weights(), a="nobody", b="a")
    with pytest.raises(Unfit, match="z of layer 0"):
        ask("sae_agreement", native, Weights(), a="a", b="z")
    folder = demo.settings.runs / "foreign"
    sae_run(folder, native)
    with pytest.raises(Unfit, match=r"it was trained for run:.*tiny"):
        ask("sae_agreement", demo, Weights(), a="foreign", b="foreign")
