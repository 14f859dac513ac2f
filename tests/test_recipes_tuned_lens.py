"""The recipe of tuned lenses: zeros at the start, better at every layer on held-out rows, an exact resume."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend.contract import parse_spec
from backend.errors import BadInput, Unfit
from backend.models.open import open_model
from backend.runs import layout, recipes
from backend.runs.folder import RunFolder
from backend.runs.recipes import tuned_lens
from backend.runs.train import train
from tests.recipe_kit import assert_resumes_alike, assert_stops_within_one_step, assert_words_for_all, go_on
from tests.tiny_models import NATIVE, hugging_face, native_run, settings

SMALL = {"steps": 60, "source": "random", "rows": 400, "length": 12, "batch_size": 16, "log_every": 20,
         "n_checkpoints": 3, "lr": 1e-2, "dtype": "float64", "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small random model whose layers do something, and settings that find runs there."""
    root = tmp_path_factory.mktemp("lens")
    native_run(root / "runs" / "tiny", NATIVE | {"attn_only": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHASESCOPE_RUNS", str(root / "runs"))
        yield root


@pytest.fixture(scope="module")
def straight(place):
    train("tuned_lens", {**SMALL, "model": "run:tiny"}, place / "runs" / "lens", False, go_on)
    return place / "runs" / "lens"


def logged(folder):
    rows = RunFolder(folder).read().rows
    return rows[rows["metric"].isin(["kl", "logit_lens_kl"])].pivot_table(
        index="step", columns=["metric", "layer"], values="value", aggfunc="first").astype(float)


def test_it_starts_as_the_logit_lens_and_ends_below_it_at_every_layer(straight):
    values = logged(straight)
    first, last = values.iloc[0], values.iloc[-1]
    assert list(values.index) == [0, 20, 40, 60]
    assert first["kl"].tolist() == first["logit_lens_kl"].tolist() == last["logit_lens_kl"].tolist()
    assert (last["kl"] < 0.9 * last["logit_lens_kl"]).all() and len(last["kl"]) == 2
    start, end = (load_file(layout.file_of(straight, layout.CHECKPOINTS, s)) for s in (0, 60))
    assert start["A"].shape == (2, 32, 32) and start["b"].shape == (2, 32) and not any(t.any() for t in start.values())
    assert all(t.any() for t in end.values())


def test_the_model_reads_it_as_its_companion_and_the_analysis_agrees_with_the_curve(place, straight):
    from backend.analyses.tuned_lens_quality import tuned_lens_quality
    from backend.contract import Corpus, Rows

    model = open_model(parse_spec("run:tiny"), settings(place))
    record, tensors = model.companion("lens")
    assert record["companion"] == {"kind": "tuned_lens", "spec": "run:tiny", "step": 0,
                                   "fingerprint": model.card.fingerprint} and set(tensors) == {"A", "b"}  # fmt: skip
    params = recipes.get("tuned_lens").params(**record["params"])
    _, held_out = tuned_lens.split_rows(params, model.card)
    seen = Corpus(source=params.source, seed=params.seed)
    with pytest.raises(BadInput, match="learnt from the random rows of seed"):
        rows = Rows(tokens=held_out, corpus=seen)
        tuned_lens_quality.compute(model, rows, tuned_lens_quality.params(lens="lens"), go_on)
    assert recipes.get("tuned_lens").params().seed != Corpus().seed, "what is asked by default is not what it learnt"
    subject = Rows(tokens=held_out, corpus=Corpus(source="random", seed=params.seed + 1))
    table = tuned_lens_quality.compute(model, subject, tuned_lens_quality.params(lens="lens"), go_on)
    last = logged(straight).iloc[-1]
    np.testing.assert_allclose(table["tuned_kl"].iloc[:-1], last["kl"], rtol=1e-9)
    np.testing.assert_allclose(table["logit_kl"].iloc[:-1], last["logit_lens_kl"], rtol=1e-9)
    assert (table["gain"].iloc[:-1] > 3 * table["gain_se"].iloc[:-1]).all()


def test_the_run_is_no_model_and_says_whose_lens_it_is(place, straight):
    with pytest.raises(BadInput, match="holds a tuned lens for run:tiny, no model of its own"):
        open_model(parse_spec("run:lens"), settings(place))


def test_resumes_to_the_same_bits_and_stops_within_one_step(place, straight):
    params = {**SMALL, "model": "run:tiny"}
    assert_resumes_alike("tuned_lens", params, straight, place / "runs" / "parted", at=33)
    assert_stops_within_one_step("tuned_lens", params, place / "runs" / "stopped")
    assert_words_for_all("tuned_lens", straight)


def test_the_gradient_is_that_of_each_layers_kl_and_the_model_stays_as_it_is(place):
    params = recipes.get("tuned_lens").params(**SMALL, model="run:tiny")
    model = tuned_lens.opened(params)
    before = {k: v.clone() for k, v in model.bare.state_dict().items()}
    lens, tokens = tuned_lens.translators(model), torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        lens.A.add_(0.1 * torch.randn(lens.A.shape, generator=torch.Generator().manual_seed(0), dtype=lens.A.dtype))
    tuned_lens.kl_by_layer(model, lens, tokens, learn=True)
    for part, at in ((lens.A, (1, 2, 3)), (lens.b, (0, 5))):
        slope, kls = part.grad[at], []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                part[at] += step
            kls.append(sum(tuned_lens.kl_by_layer(model, lens, tokens)))
        with torch.no_grad():
            part[at] += 1e-5
        assert float(slope) == pytest.approx((kls[0] - kls[1]) / 2e-5, rel=1e-5) and abs(float(slope)) > 1e-6
    assert all(torch.equal(v, before[k]) for k, v in model.bare.state_dict().items())
    assert all(p.grad is None for p in model.bare.parameters())


def test_held_out_rows_are_drawn_apart(place):
    params = recipes.get("tuned_lens").params(**SMALL, model="run:tiny")
    train_rows, held_out = tuned_lens.split_rows(params, tuned_lens.opened(params).card)
    assert {row.tobytes() for row in train_rows}.isdisjoint(row.tobytes() for row in held_out)
    assert len(train_rows) == 400 and len(held_out) == 32


def test_the_rate_falls_linearly_to_nothing(place):
    params = recipes.get("tuned_lens").params(**{**SMALL, "steps": 4}, model="run:tiny")
    made = tuned_lens.make_training(params, tuned_lens.opened(params))
    assert [made.rate(n) for n in (1, 2, 3, 4)] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_other_architectures_learn_too(kind, place):
    hugging_face(kind).save_pretrained(place / kind)
    few = {**SMALL, "steps": 20, "rows": 60, "dtype": "float32", "model": f"dir:{place / kind}"}
    train("tuned_lens", few, place / "runs" / kind, False, go_on)
    last = logged(place / "runs" / kind).iloc[-1]
    assert (last["kl"] < last["logit_lens_kl"]).all() and len(last["kl"]) == 3


def test_training_rows_share_no_text_with_held_out_ones():
    """A text of which a part is held out; a short one is refused."""
    from types import SimpleNamespace

    card = SimpleNamespace(n_ctx=64, d_vocab=256, spec="x", training={},
                           tokenizer={"kind": "chars", "symbols": [chr(i) for i in range(32, 127)] + ["\n"]})

    def rows(**more):
        return tuned_lens.split_rows(tuned_lens.TunedLensParams(source="python", length=40, **more), card)

    train_rows, held_out = rows(rows=3000, held_out_rows=200)
    assert 1500 < len(train_rows) < 3000 and len(held_out) == 200
    held = {row[i : i + 16].tobytes() for row in held_out for i in range(25)}
    assert not any(row[i : i + 16].tobytes() in held for row in train_rows for i in range(25))


def test_a_short_text_and_changed_weights_are_refused(place, straight, tmp_path):
    from types import SimpleNamespace

    text = tmp_path / "short.txt"
    text.write_text("the cat sat on the mat and looked at the sea; " * 3)
    card = SimpleNamespace(n_ctx=64, d_vocab=128, spec="x", training={},
                           tokenizer={"kind": "chars", "symbols": [chr(i) for i in range(32, 127)]})
    with pytest.raises(BadInput, match="share text with the held-out ones. Give a longer text"):
        tuned_lens.split_rows(tuned_lens.TunedLensParams(source="file", path=str(text), length=40), card)
    record = json.loads((straight / "run.json").read_text())
    other = native_run(tmp_path / "other", NATIVE)
    folder = tmp_path / "lens"
    train("tuned_lens", {**SMALL, "steps": 2, "model": f"run:{other}"}, folder, False, go_on)
    record = json.loads((folder / "run.json").read_text())
    record["companion"]["fingerprint"] = "0" * 32
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(Unfit, match="holds other weights"):
        train("tuned_lens", {}, folder, True, go_on)


def test_the_command_line_takes_the_model_by_its_name():
    from backend.__main__ import parser

    given = parser().parse_args(["train", "tuned_lens", "--model", "run:tiny", "--step", "3", "--steps", "9"])
    assert vars(given)["param:model"] == "run:tiny" and vars(given)["param:step"] == "3"
    assert vars(parser().parse_args(["train", "char_lm", "--param-text", "a.txt"]))["param:text"] == "a.txt"
