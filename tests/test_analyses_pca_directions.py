"""Directions by PCA: variances sum to the total, a planted direction is found, chance is the null; steering."""

from contextlib import closing

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

from app import house as app_house
from backend import Backend, analyses
from backend.analyses import pca_directions as room
from backend.contract import Corpus, Prompt, View
from backend.errors import BadInput, Unfit
from backend.runs import corpora
from backend.settings import ROOT
from tests.models_support import run_folder
from tests.test_facade import card_of, computed
from tests.test_intervene_page import said, settle
from tests.tiny_models import opened, quiet, settings

CORPUS = Corpus(source="random", rows=24, length=12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("pca")
    return {kind: opened(kind, root / kind) for kind in ("native", "llama", "gpt2")}


def ask(model, **params):
    analysis = analyses.registry()["pca_directions"]
    return analysis.compute(model, corpora.rows_of(model.card, CORPUS), analysis.params(**params), quiet)


def stream(model, point="resid_post", layer=0):
    tokens = torch.from_numpy(corpora.rows_of(model.card, CORPUS).tokens)
    return model.capture(tokens, [point], [layer])[point, layer].flatten(2).flatten(0, 1)


@pytest.mark.parametrize("kind", ["native", "llama", "gpt2"])
@pytest.mark.parametrize("point", ["resid_post", "z", "mlp_post"])
def test_all_variances_sum_to_the_total_and_are_those_along_the_vectors(kind, point, tiny, monkeypatch):
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 12 * 96 * 5)
    table, x = ask(tiny[kind], point=point, n=256, draws=1), stream(tiny[kind], point)
    assert len(table) == x.shape[1]
    assert table["variance"].sum() == pytest.approx(float(x.var(0).sum()), rel=1e-9)
    assert table["share"].sum() == pytest.approx(1) and table["null"].sum() == pytest.approx(1)
    assert table["variance"].is_monotonic_decreasing
    vectors = np.stack(list(table["vector"])).astype(float)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-5)
    along = (x - x.mean(0)).numpy() @ vectors.T
    np.testing.assert_allclose(along.var(0, ddof=1)[:5], table["variance"][:5], rtol=1e-5)


def test_both_ends_are_a_full_sort(tiny):
    table, x = ask(tiny["native"], n=4), stream(tiny["native"])
    tokens = corpora.rows_of(tiny["native"].card, CORPUS).tokens
    along = (x - x.mean(0)).numpy() @ np.stack(list(table["vector"])).astype(float).T
    for j, row in enumerate(table.to_dict("records")):
        for end, order in (("high", np.argsort(-along[:, j])), ("low", np.argsort(along[:, j]))):
            windows = row[end].split()
            assert [int(w.split(",")[-1]) for w in windows] == tokens.ravel()[order[:5]].tolist()
            np.testing.assert_allclose([float(v) for v in row[f"{end}_values"].split()], along[order[:5], j], rtol=1e-3)
            at, pos = divmod(int(order[0]), 12)
            assert windows[0] == ",".join(map(str, tokens[at, max(0, pos - 6) : pos + 1]))


def test_a_planted_direction_is_found_and_is_beyond_chance():
    dice = torch.Generator().manual_seed(0)
    planted = torch.randn(20, generator=dice, dtype=torch.float64)
    planted = planted / planted.norm()
    x = torch.randn(3000, 20, generator=dice, dtype=torch.float64)
    x = x + 3 * torch.randn(3000, 1, generator=dice, dtype=torch.float64) * planted
    values, vectors = room.eigen(torch.cov(x.T))
    assert abs(float(vectors[0] @ planted)) > 0.99 and float(values[0]) == pytest.approx(10, rel=0.1)
    null = room.eigen(room._shuffled(x, 0, 0))[0]
    assert float(null[0]) == pytest.approx(1 + 9 * float(planted.square().max()), rel=0.1), "its coordinates' variance"
    assert float(values[0]) > 2 * float(null[0]) and float(null.sum()) == pytest.approx(float(values.sum()), rel=1e-9)
    assert float(vectors[0].abs().max()) == float(vectors[0].max()), "the largest entry is positive"


def test_independent_coordinates_are_their_own_null():
    x = torch.randn(3000, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, null = (room.eigen(c)[0] for c in (torch.cov(x.T), room._shuffled(x, 0, 0)))
    torch.testing.assert_close(found, null, rtol=0.05, atol=0)


def test_a_strong_direction_is_stable(tiny):
    table = ask(tiny["gpt2"], n=3)
    assert table["stability"].between(0, 1).all() and table["stability"][0] > 0.9
    assert (table["share_se"] > 0).all() and (table["null_high"] >= table["null"] - 1e-12).all()


def test_stability_is_of_two_halves_without_a_row_in_common(tiny):
    model = tiny["native"]
    rows = corpora.rows_of(model.card, CORPUS)
    whole, (even, odd), _ = room._covariances(model, rows, {"point": "resid_post", "layer": 0}, 0, quiet)
    assert (even.n, odd.n) == (whole.n / 2, whole.n / 2)
    x = stream(model).double().reshape(24, 12, -1)
    torch.testing.assert_close(even.covariance(), torch.cov(x[::2].flatten(0, 1).T), rtol=0, atol=1e-9)


def test_what_it_writes_is_read_through_w_u(tiny):
    model = tiny["native"]
    table = ask(model, n=2, point="mlp_post")
    weights = model.weights()
    effect = torch.tensor(table["vector"][1]).double() @ weights["W_out"][0] @ weights["W_U"]
    assert table["raises"][1].split()[0] == str(int((effect - effect.mean()).argmax()))
    plain = tiny["llama"]  # its weights have no names; the stream is read by the module's own head
    table = ask(plain, n=2)
    effect = torch.tensor(table["vector"][1]).double() @ plain.bare.lm_head.weight.T.double()
    assert table["raises"][1].split()[0] == str(int((effect - effect.mean()).argmax()))


def test_batches_of_rows_change_no_number(tiny, monkeypatch):
    whole = ask(tiny["native"]).drop(columns=["vector"])
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 4 * 12 * 96 * 5)
    pd.testing.assert_frame_equal(whole, ask(tiny["native"]).drop(columns=["vector"]), rtol=1e-6)


def test_what_is_not_there_or_too_wide_is_refused(tiny, monkeypatch):
    with pytest.raises(BadInput, match="layers 0 to 1"):
        ask(tiny["native"], layer=9)
    monkeypatch.setattr(room, "MOST", 16)
    with pytest.raises(Unfit, match="PCA of 32 coordinates"):
        ask(tiny["native"])


def test_its_figures_are_drawn(tiny):
    table = ask(tiny["native"])
    for figure in analyses.registry()["pca_directions"].figures.values():
        assert figure.build(table.drop(columns=["vector"]), View(vocab=lambda i: f"w{i}")).data


# ---------------------------------------------------------------- steering


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    given = settings(tmp_path_factory.mktemp("pca-house"), "float32")
    run_folder(given.runs / "toy", steps=(0,))
    with closing(Backend(given, inline=True)) as made:
        app_house.settle(made)
        yield made
        app_house.settle(None)


def test_a_kept_direction_is_added_as_a_vector(house):
    card, subject = card_of(house, "run:toy"), Corpus(source="random", rows=6, length=8)
    key = computed(house, "pca_directions", card, subject, params={"n": 3})
    assert house.keep_directions(key, "mine") == {"name": "mine", "point": "resid_post", "layer": 0, "n": 3}
    prompt, edits = Prompt(tokens=(1, 2, 3)), "add L0.resid_post 5 feature mine 2"
    moved = house.table(computed(house, "intervene", card, prompt, params={"edits": edits}))
    from backend.contract import parse_spec
    from backend.models.open import open_model

    model, vector = open_model(parse_spec("run:toy"), house.settings), torch.tensor(house.table(key)["vector"][2])
    told = model.run_with([[1, 2, 3]], {("resid_post", 0): lambda x: x + 5 * vector / vector.norm()})[0, -1]
    probs = told.double().softmax(-1)
    rows = moved[moved["what"] == "next"]
    np.testing.assert_allclose(rows["prob_after"], probs[rows["token_after"].tolist()], atol=1e-6)
    with pytest.raises(BadInput, match="a run of that name exists"):
        house.keep_directions(key, "mine")
    with pytest.raises(BadInput, match="not a plain folder name"):
        house.keep_directions(key, "../x")
    other = computed(house, "logit_lens", card, prompt)
    with pytest.raises(BadInput, match="the result is of logit_lens"):
        house.keep_directions(other, "theirs")


def test_the_page_keeps_them_and_says_the_line(house):
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=90)
    at.run()
    at.switch_page("../pages/pca_directions.py")
    at.query_params.update({"model": "run:toy", "n_rows": "6", "row_length": "8", "source": "random"})
    at = settle(at.run())
    assert len(at.get("plotly_chart")) == 2
    next(t for t in at.text_input if t.label == "Keep these directions as").set_value("from-page").run()
    next(b for b in at.button if b.label == "Keep").click()
    at = settle(at.run())
    assert "Kept as `from-page`" in said(at) and "feature from-page 0" in said(at)
    assert (house.settings.runs / "from-page" / "run.json").is_file()
