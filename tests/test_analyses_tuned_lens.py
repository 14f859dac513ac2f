"""A tuned lens of zeros is the logit lens, the last layer is the model, and a lens of other weights is refused."""

import json

import numpy as np
import pytest
import torch

from backend.analyses import tuned_lens as room
from backend.analyses import tuned_lens_quality as quality_room
from backend.analyses._lenses import mean_and_se
from backend.analyses.logit_lens import logit_lens
from backend.analyses.tuned_lens import tuned_lens
from backend.analyses.tuned_lens_quality import tuned_lens_quality
from backend.contract import Corpus, Prompt, Rows, View
from backend.errors import BadInput, NotFound, Unfit
from backend.maths.divergence import kl
from backend.maths.lens import translate
from tests.lens_kit import lens_run
from tests.tiny_models import opened, quiet

TOKENS = (3, 9, 4, 9, 1, 3, 20, 17, 2)
KINDS = ["gpt2", "neox", "llama", "native"]


def ask(model, tokens=TOKENS, **params):
    return tuned_lens.compute(model, Prompt(tokens=tokens), tuned_lens.params(**params), quiet)


def quality(model, n=5, **params):
    rows = np.random.default_rng(0).integers(50, size=(n, 8))
    subject = Rows(tokens=rows, corpus=Corpus(source="random", rows=n, length=8))
    return rows, tuned_lens_quality.compute(model, subject, tuned_lens_quality.params(**params), quiet)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lens_of_zeros_is_the_logit_lens_and_the_last_layer_the_model(kind, tmp_path):
    model = opened(kind, tmp_path)
    name = lens_run(tmp_path / "runs" / "zero", model)
    table = ask(model, lens=name)
    plain = logit_lens.compute(model, Prompt(tokens=TOKENS), logit_lens.params(top_k=5), quiet)
    for mine, theirs in (("token_id",) * 2, ("log_prob",) * 2, ("kl_to_final",) * 2, ("entropy",) * 2,
                         ("logit_token_id", "token_id"), ("logit_log_prob", "log_prob")):  # fmt: skip
        np.testing.assert_allclose(table[mine], plain[theirs], atol=1e-12)
    last = table[table["layer"] == model.card.n_layers - 1]
    own = torch.log_softmax(model.logits([TOKENS])[0].double(), -1).topk(5)
    assert last["token_id"].tolist() == own.indices.flatten().tolist()
    np.testing.assert_allclose(last["log_prob"], own.values.flatten(), atol=1e-5 if kind != "gpt2" else 1e-10)
    assert (last["kl_to_final"] <= 1e-7).all() and (last[last["rank"] == 0]["final_rank"] == 0).all()
    _, table = quality(model, lens=name)
    assert (table["gain"].abs() < 1e-12).all() and (table["gain_se"] < 1e-12).all()
    assert table["tuned_kl"].iloc[-1] < 1e-7 and (table["tuned_kl"].iloc[:-1] > 0.01).all()


@pytest.mark.parametrize("kind", ["gpt2", "native"])
def test_each_layer_is_read_through_its_own_translator(kind, tmp_path):
    model = opened(kind, tmp_path)
    name = lens_run(tmp_path / "runs" / "some", model, scale=0.1)
    tensors = model.companion(name)[1]
    table = ask(model, lens=name)
    final = torch.log_softmax(model.logits([TOKENS])[0], -1)
    for layer in range(model.card.n_layers):
        stream = model.capture([TOKENS], ["resid_pre"])["resid_pre", layer][0]  # what enters it: after layer - 1
        read = translate(stream, tensors["A"][layer].double(), tensors["b"][layer].double())
        by_hand = torch.stack([h + tensors["A"][layer].double() @ h + tensors["b"][layer].double() for h in stream])
        torch.testing.assert_close(read, by_hand)
        log_p = torch.log_softmax(model.unembed(read), -1)
        rows = table[(table["layer"] == layer - 1) & (table["rank"] == 0)]
        assert rows["token_id"].tolist() == log_p.argmax(-1).tolist()
        np.testing.assert_allclose(rows["kl_to_final"], kl(final, log_p), atol=1e-9)
        assert (rows["kl_to_final"] - rows["logit_kl_to_final"]).abs().max() > 1e-3


def test_quality_is_the_mean_over_rows_with_its_error_and_the_best_constant_answer(tmp_path):
    model = opened("native", tmp_path)
    rows, table = quality(model, lens=lens_run(tmp_path / "runs" / "some", model, scale=0.1))
    final = torch.log_softmax(model.logits(torch.tensor(rows)), -1)
    by_row = []
    for row in rows:
        one = ask(model, tuple(row.tolist()), lens="some", top_k=1).groupby("layer")
        by_row.append(one[["logit_kl_to_final", "kl_to_final"]].mean().to_numpy())
    mean, se = mean_and_se(by_row)
    np.testing.assert_allclose(table[["logit_kl", "tuned_kl"]], mean, atol=1e-9)
    np.testing.assert_allclose(table[["logit_kl_se", "tuned_kl_se"]], se, atol=1e-9)
    best = final.exp().mean((0, 1))
    assert kl(final, best.log().expand_as(final)).mean() == pytest.approx(table["constant_kl"].iloc[0], abs=1e-9)
    for other in (best + 0.01, best**1.1):  # another single answer is worse
        worse = kl(final, (other / other.sum()).log().expand_as(final)).mean()
        assert worse > table["constant_kl"].iloc[0] + 1e-5


def test_batches_of_rows_change_nothing_and_one_row_has_no_error(tmp_path, monkeypatch):
    model = opened("native", tmp_path)
    name = lens_run(tmp_path / "runs" / "some", model, scale=0.1)
    _, whole = quality(model, lens=name)
    monkeypatch.setattr(quality_room, "LOGIT_BYTES", 1)
    _, split = quality(model, lens=name)
    np.testing.assert_allclose(whole, split, atol=1e-10)
    assert quality(model, 1, lens=name)[1]["gain_se"].isna().all()


def test_what_is_no_lens_for_this_model_is_refused(tmp_path):
    model, runs = opened("native", tmp_path), tmp_path / "runs"
    with pytest.raises(BadInput, match="no run is named. Train one"):
        ask(model)
    with pytest.raises(NotFound):
        ask(model, lens="absent")
    with pytest.raises(Unfit, match="not trained for a model"):
        ask(model, lens="tiny")
    with pytest.raises(Unfit, match="it is a sae"):
        ask(model, lens=lens_run(runs / "sae", model, kind="sae"))
    lens_run(runs / "other", model)
    record = json.loads((runs / "other" / "run.json").read_text())
    record["companion"]["fingerprint"] = "0" * 32
    (runs / "other" / "run.json").write_text(json.dumps(record))
    with pytest.raises(Unfit, match="it was trained for run:"):
        ask(model, lens="other")


def test_rows_that_the_lens_learnt_from_do_not_measure_it(tmp_path):
    """Of a text it is what it holds that counts, wherever it lies; a path beside another source says nothing."""
    model = opened("native", tmp_path)
    name = lens_run(tmp_path / "runs" / "learnt", model)
    told = tmp_path / "runs" / name / "run.json"
    record = json.loads(told.read_text())

    def asked(learnt, held="", **corpus):
        told.write_text(json.dumps({"companion": record["companion"] | ({"digest": held} if held else {}),
                                    "params": record["params"] | learnt}))  # fmt: skip
        rows = Rows(np.random.default_rng(0).integers(50, size=(2, 8)), Corpus(rows=2, length=8, **corpus))
        return tuned_lens_quality.compute(model, rows, tuned_lens_quality.params(lens=name), quiet)

    file, random = {"source": "file", "seed": 1, "path": "a.txt"}, {"source": "random", "seed": 1, "path": ""}
    for learnt, digest, corpus in ((random, "", {"source": "random", "seed": 1, "path": "/etc/hostname"}),
                                   (file, "abc", {"source": "file", "seed": 1, "path": "/b.txt", "digest": "abc"}),
                                   (file, "", {"source": "file", "seed": 1, "path": "/b.txt", "digest": "abc"})):
        with pytest.raises(BadInput, match="learnt from the .* rows of seed 1"):
            asked(learnt, digest, **corpus)
    assert len(asked(file, "abc", source="file", seed=1, path="a.txt", digest="other"))
    assert len(asked(random, source="random", seed=2)) and len(asked(random, source="training", seed=1))


def test_an_unfinished_lens_is_read_at_a_named_step_only(tmp_path):
    model, runs = opened("native", tmp_path), tmp_path / "runs"
    lens_run(runs / "half", model)
    record = json.loads((runs / "half" / "run.json").read_text())
    (runs / "half" / "run.json").write_text(json.dumps(record | {"params": {"steps": 9}}))
    with pytest.raises(NotFound, match="no checkpoint at step 9"):
        ask(model, lens="half")
    assert len(ask(model, lens="half", lens_step=3))


def test_both_grids_share_their_colours(tmp_path):
    model = opened("native", tmp_path)
    table = ask(model, lens=lens_run(tmp_path / "runs" / "some", model, scale=0.1))
    ours, theirs = (build(table, View(vocab=lambda i: f"w{i}")).data[0] for build in (room.grid, room.logit_grid))
    assert (ours.zmin, ours.zmax) == (theirs.zmin, theirs.zmax) and not np.array_equal(ours.z, theirs.z)
    assert np.array(ours.text).ravel().tolist() == [f"w{i}" for i in table[table["rank"] == 0]["token_id"]]
