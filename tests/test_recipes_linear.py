"""linear_control: gradient descent with all rows is its closed form; no model, no transition, an exact resume."""

import pytest
import torch

from backend.errors import Unsupported
from backend.runs import recipes, schedule
from backend.runs.folder import RunFolder
from backend.runs.recipes import linear_control
from backend.runs.train import train
from tests.recipe_kit import assert_resumes_alike, assert_stops_within_one_step, assert_words_for_all, go_on

SMALL = {"steps": 24, "d_in": 8, "d_out": 3, "n_rows": 40, "batch_size": 5, "log_every": 5, "n_checkpoints": 4}
EXACT = {**SMALL, "batch_size": 0, "dtype": "float64", "steps": 120, "lr": 0.3}


def logged(folder, metric):
    rows = RunFolder(folder).read().rows
    return rows[rows.metric == metric].set_index("step").value.astype(float)


def params(**more):
    return linear_control.LinearParams(**{**SMALL, **more})


# ---------------------------------------------------------------- the closed form


@pytest.mark.parametrize("more", [{}, {"spectrum": 0.0}, {"n_rows": 5}, {"lr_drop_at": 50, "lr_drop_factor": 0.2}])
def test_the_loss_is_the_closed_form(tmp_path, more):
    train("linear_control", {**EXACT, **more}, tmp_path / "r", False, go_on)
    loss, predicted = logged(tmp_path / "r", "loss"), logged(tmp_path / "r", "predicted_loss")
    assert len(loss) == 25 and loss[120] < 0.8 * loss[0]
    assert (loss - predicted).abs().max() < 1e-9 * loss[0]


def test_one_eigenvalue_by_hand():
    """d_in = 1: loss(t) - floor = lambda/2 |c|^2 (1 - lr lambda)^(2t), without any linear algebra."""
    p = params(d_in=1, d_out=1, n_rows=30)
    rows = linear_control.problem(p)
    x, y = rows.x[:, 0].tolist(), rows.y[:, 0].tolist()
    square = sum(a * a for a in x) / 30
    best = sum(a * b for a, b in zip(x, y, strict=True)) / 30 / square
    floor = sum((b - best * a) ** 2 for a, b in zip(x, y, strict=True)) / 60
    curve = linear_control.Curve(p, rows)
    for step in (0, 1, 7):
        assert curve.loss(step) == pytest.approx(floor + square / 2 * best**2 * (1 - p.lr * square) ** (2 * step))
    assert curve.loss(0) == pytest.approx(sum(b * b for b in y) / 60, rel=1e-12)
    assert float(curve.answer) == pytest.approx(best, rel=1e-12)


def test_the_answer_is_the_least_squares_one():
    rows = linear_control.problem(params())
    curve = linear_control.Curve(params(), rows)
    assert torch.allclose(curve.answer, torch.linalg.lstsq(rows.x, rows.y).solution, atol=1e-10)
    assert float(curve.floor) <= float(linear_control.error(rows.x @ (curve.answer + 1e-3), rows.y))


def test_minibatches_are_noisy_around_the_closed_form(tmp_path):
    train("linear_control", {**SMALL, "steps": 400, "n_rows": 200}, tmp_path / "r", False, go_on)
    loss, predicted = logged(tmp_path / "r", "loss"), logged(tmp_path / "r", "predicted_loss")
    apart = (loss / predicted - 1).abs()
    assert 1e-6 < apart.max() < 0.25 and loss[400] < 0.5 * loss[0]


@pytest.mark.parametrize("more", [{"optimizer": "adamw"}, {"weight_decay": 0.1}])
def test_no_prediction_is_given_where_there_is_none(tmp_path, more):
    train("linear_control", {**SMALL, **more}, tmp_path / "r", False, go_on)
    assert logged(tmp_path / "r", "predicted_loss").empty and len(logged(tmp_path / "r", "loss")) == 6


# ---------------------------------------------------------------- the schedule


def test_the_rate_drops_after_the_named_step():
    rates = [schedule.dropped(step, 3, 0.1) for step in range(1, 7)]
    assert rates == [1, 1, 1, 0.1, 0.1, 0.1] and schedule.dropped(10**6, 0, 0.1) == 1


def test_the_drop_is_kept_in_the_params_and_bends_the_curve(tmp_path):
    for name, more in (("plain", {}), ("drop", {"lr_drop_at": 60, "lr_drop_factor": 0.01})):
        train("linear_control", {**EXACT, **more}, tmp_path / name, False, go_on)
    plain, drop = (logged(tmp_path / name, "loss") for name in ("plain", "drop"))
    assert (plain.loc[:60] == drop.loc[:60]).all() and (drop.loc[65:] > plain.loc[65:]).all()
    kept = RunFolder(tmp_path / "drop").info()["params"]
    assert (kept["lr_drop_at"], kept["lr_drop_factor"]) == (60, 0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(Unsupported, match="no CUDA device here. Set device to auto or cpu"):
        train("linear_control", {**SMALL, "device": "cuda"}, tmp_path / "r", False, go_on)


# ---------------------------------------------------------------- the run


@pytest.fixture(scope="module", params=[{}, {"optimizer": "adamw", "lr_drop_at": 11}], ids=["sgd", "adamw"])
def straight(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear") / "straight"
    train("linear_control", {**SMALL, **request.param}, folder, False, go_on)
    return folder, {**SMALL, **request.param}


def test_resumes_to_the_same_bits_from_between_two_checkpoints(tmp_path, straight):
    assert_resumes_alike("linear_control", straight[1], straight[0], tmp_path / "parted", at=13)


def test_stops_within_one_step(tmp_path):
    assert_stops_within_one_step("linear_control", SMALL, tmp_path / "stopped")


def test_says_what_it_logs_and_names_no_model(tmp_path):
    train("linear_control", SMALL, tmp_path / "r", False, go_on)
    assert_words_for_all("linear_control", tmp_path / "r")
    assert "model" not in RunFolder(tmp_path / "r").info()


def test_presets_and_estimate():
    declared = recipes.get("linear_control")
    for preset in declared.presets:
        assert all(0 < declared.seconds(declared.params(**given)) < 20 for given in preset.runs)
    assert {"lr_drop_at", "lr_drop_factor"} <= declared.params.model_fields.keys()
