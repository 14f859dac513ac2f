"""Loss slices, paths between models, kernels, learning coefficients: what second differences, permutations and linear
models force."""

import numpy as np
import pytest
import torch

from backend import analyses
from backend.analyses import _at_weights
from backend.analyses import loss_slices as slices_room
from backend.analyses._units import log_probs, row_losses
from backend.contract import Corpus
from backend.runs import corpora
from tests.tiny_models import opened, quiet

CORPUS = Corpus(source="random", rows=6, length=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("landscapes")
    return {kind: opened(kind, root / kind) for kind in ("native", "gpt2")}


def rows(model, corpus=CORPUS):
    return corpora.rows_of(model.card, corpus)


def ask(name, model, corpus=CORPUS, **params):
    analysis = analyses.registry()[name]
    return analysis.compute(model, rows(model, corpus), analysis.params(**params), quiet)


def own_loss(model):
    tokens = torch.as_tensor(rows(model).tokens)
    return row_losses(model, tokens, log_probs(model.logits(tokens))).numpy()


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_a_slices_middle_is_the_model_and_its_second_difference_the_hessian(kind, tiny, monkeypatch):
    model = tiny[kind]
    before = {name: t.detach().clone() for name, t in model.parameters().items()}
    monkeypatch.setattr("backend.analyses._units.BATCH_BYTES", 2**14)  # several batches, several graphs
    table = ask("loss_slices", model, directions=2, points=5, grid=3, step=1e-3, reach=0.5)
    middle = table[(table["a"] == 0) & (table["b"] == 0)]
    np.testing.assert_allclose(middle["loss"], own_loss(model).mean(), rtol=1e-12)
    assert (middle["rise_se"] == 0).all() and len(table) == 2 * 5 + 9
    each = table[table["direction"] >= 0].groupby("direction").first()
    np.testing.assert_allclose(each["second_difference"], each["curvature"], rtol=2e-3)
    ends = table[(table["direction"] == 0) & (table["a"] == 0.5)].iloc[0]
    plane = table[(table["direction"] == -1) & (table["a"] == 0.5) & (table["b"] == 0)].iloc[0]
    assert ends["loss"] == pytest.approx(plane["loss"]) and ends["loss"] != pytest.approx(ends["null"])
    assert all(torch.equal(t, before[name]) for name, t in model.parameters().items()), "the model is left as it was"


def test_near_the_middle_the_plane_is_the_hessians_ellipse(tiny):
    """L = c + g.x + x'Qx / 2 with Q from exact products, the mixed term by d_0 + d_1."""
    model = tiny["native"]
    params = slices_room.LossSlicesParams(directions=2, grid=5, points=5, reach=0.001, step=0.002)
    table = ask("loss_slices", model, **params.model_dump())
    plane = table[table["direction"] == -1]
    a, b = plane["a"].to_numpy(), plane["b"].to_numpy()
    columns = np.stack([np.ones_like(a), a, b, a**2 / 2, a * b, b**2 / 2], 1)
    fitted = np.linalg.lstsq(columns, plane["loss"].to_numpy(), rcond=None)[0][3:]
    losses = _at_weights.Losses(model, rows(model).tokens)
    one, two = slices_room.drawn_directions(losses.own, params)
    first, second, both = losses.curvatures([one, two, {name: one[name] + two[name] for name in one}])
    exact = np.array([first, (both - first - second) / 2, second])
    np.testing.assert_allclose(fitted, exact, atol=2e-3 * np.abs(exact).max())


def test_one_row_has_no_error_and_half_precision_is_refused(tiny):
    model = tiny["native"]
    table = ask("loss_slices", model, Corpus(source="random", rows=1, length=8), directions=2, points=5, grid=3)
    assert table["rise_se"].isna().all()
    kept = {name: t.data for name, t in model.parameters().items()}
    for t in model.parameters().values():
        t.data = t.data.bfloat16()
    try:
        with pytest.raises(Exception, match="weights are bfloat16.*PHASESCOPE_DTYPE"):
            _at_weights.Losses(model, rows(model).tokens)
    finally:
        for name, t in model.parameters().items():
            t.data = kept[name]
