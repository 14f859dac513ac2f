"""Fourier spectrum and progress of modular addition: planted models, the shipped run, and models of other tasks."""

import pytest
import torch
import torch.nn.functional as F

from backend import analyses
from backend.contract import View, Weights, parse_spec
from backend.errors import BadInput
from backend.maths import modular_addition as task
from backend.models.open import open_model
from backend.runs.folder import RunFolder
from backend.settings import SHIPPED_RUNS
from tests.tiny_models import native_run, opened, quiet, settings

P = 13
ONE_LAYER = {"n_layers": 1, "d_model": 16, "d_head": 4, "n_heads": 4, "n_ctx": 3, "d_vocab": P + 1, "d_mlp": 20,
             "act_fn": "relu", "normalization_type": None}


def ask(name, model, **params):
    analysis = analyses.registry()[name]
    return analysis.compute(model, Weights(), analysis.params(**params), quiet)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    native_run(folder / "runs" / "one", ONE_LAYER)
    return open_model(parse_spec("run:one"), settings(folder))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")

    def at(step):
        return open_model(parse_spec("run:grokking-demo", step), settings(folder, "float32"))

    return {step: at(step) for step in (0, 800)}


def measures(table):
    return table[table.frequency == 0].set_index("measure").value


def test_a_planted_embedding_stands_out_alone(random_model):
    angle = 2 * torch.pi * torch.arange(P, dtype=torch.float64) / P
    weights = random_model.bare.tok_embed.weight
    kept = weights.detach().clone()
    with torch.no_grad():
        weights[:P] = torch.outer((5 * angle).cos(), torch.randn(16, dtype=torch.float64))
    try:
        table = ask("fourier_spectrum", random_model)
    finally:
        weights.data.copy_(kept)
    mine = table[table.matrix == "W_E"].set_index("frequency")
    assert mine.share[5] == pytest.approx(1, abs=1e-12) and mine.index[mine.stands_out == 1].tolist() == [5]
    assert set(table.matrix) == {"W_E", "W_U", "W_L"}
    assert table.groupby("matrix").share.sum().tolist() == pytest.approx([1, 1, 1])


def test_the_null_is_that_of_random_matrices(random_model):
    """Mean 2 / p by symmetry; about one random matrix in twenty has a frequency above null_high."""
    null = ask("fourier_spectrum", random_model, n_null=1000).query("matrix == 'W_E' and frequency > 0")
    assert null.null.to_numpy() == pytest.approx(2 / P, rel=0.03)
    from backend.maths import fourier

    dice, draws = torch.Generator().manual_seed(1), 400
    above = [bool(fourier.power(torch.randn(P, 16, generator=dice, dtype=torch.float64))[1:].max()
                  > null.null_high.iloc[0]) for _ in range(draws)]
    assert 0.02 < sum(above) / draws < 0.09


def test_progress_on_random_weights_is_the_models_own_loss(random_model):
    table = ask("modular_progress", random_model, train_fraction=0.4, split_seed=2)
    found, x = measures(table), task.all_inputs(P)
    logits, right = random_model.logits(x)[:, -1], task.answers(x[:, :2], P)
    for name, rows in zip(("train_loss", "test_loss"), task.split(P, 0.4, 2), strict=True):
        assert found[name] == pytest.approx(F.cross_entropy(logits[rows], right[rows]).item(), rel=1e-10)
    whole = measures(ask("modular_progress", random_model))
    assert whole["train_loss"] == whole["test_loss"] == pytest.approx(F.cross_entropy(logits, right).item(), rel=1e-10)


def test_excluding_given_frequencies_one_at_a_time(random_model):
    table = ask("modular_progress", random_model, key="2,5")
    assert table[(table.measure == "key") & (table.value == 1)].frequency.tolist() == [2, 5]
    assert table[table.measure == "excluded_loss"].frequency.tolist() == [0, 2, 5]
    alone = ask("modular_progress", random_model, key="5")
    one = alone[alone.measure == "excluded_loss"].set_index("frequency").value
    assert one[0] == one[5] == table[table.measure == "excluded_loss"].set_index("frequency").value[5]
    with pytest.raises(BadInput, match="from 1 to 6"):
        ask("modular_progress", random_model, key="7")


def test_the_shipped_run_before_and_after(demo):
    """Offline, from the weights alone, the numbers that training logged."""
    logged = RunFolder(SHIPPED_RUNS / "grokking-demo").read().rows
    for step, model in demo.items():
        found = measures(ask("modular_progress", model, train_fraction=0.5, split_seed=0))
        kept = logged[logged.step == step].set_index("metric").value
        for name, online in (("train_loss", "train_loss"), ("test_loss", "full_test_loss"), ("gini_W_E", "gini_W_E"),
                             ("restricted_loss", "restricted_loss"), ("excluded_loss", "excluded_loss"),
                             ("explained_fraction", "explained_fraction"), ("gini_W_L", "gini_W_L")):
            assert found[name] == pytest.approx(kept[online], rel=2e-3, abs=2e-6), (step, name)
    before, after = (ask("fourier_spectrum", demo[step]).query("matrix == 'W_E'") for step in (0, 800))
    assert before.is_key.sum() == 0 and before.stands_out.sum() <= 1
    key = after[after.is_key == 1]
    assert 2 <= len(key) <= 8 and key.share.sum() > 0.4 and (key.nlargest(2, "fve").stands_out == 1).all()


def test_figures_mark_the_key_frequencies(demo):
    spectrum, table = analyses.registry()["fourier_spectrum"], ask("fourier_spectrum", demo[800])
    figure = spectrum.figures["embedding"].build(table, View())
    rows = table.query("matrix == 'W_E' and frequency > 0")
    assert list(figure.data[1].y) == rows.share.tolist() and list(figure.data[0].y) == rows.null.tolist()
    orange = [w for w, colour in zip(figure.data[1].x, figure.data[1].marker.color, strict=True) if colour == "#e69f00"]
    assert [int(w) for w in orange] == rows[rows.is_key == 1].frequency.tolist()


def test_models_of_other_tasks_are_told_why(tmp_path, random_model):
    gpt2 = opened("gpt2", tmp_path)  # 61 tokens: p = 60 is even
    with pytest.raises(BadInput, match="odd"):
        ask("modular_progress", gpt2)
    assert set(ask("fourier_spectrum", gpt2, p=59).matrix) == {"W_E", "W_U", "W_L"}
    with pytest.raises(BadInput, match="odd, from 3 to 13"):
        ask("fourier_spectrum", random_model, p=15)
