"""What every recipe's docstring says of its optimiser, its held-out rows and its readings, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.errors import Unsupported
from backend.runs import corpus, recipes
from backend.runs.folder import RunFolder
from backend.runs.loop import Training
from backend.runs.recipes import char_lm, induction, linear_control, markov_icl, modular_addition, synthetic_ioi
from backend.runs.recorder import Recorder
from backend.runs.train import train
from tests.recipe_kit import go_on

ATTENTION = {"d_model": 16, "n_heads": 2, "n_ctx": 16, "batch_size": 4}
#: recipe: its module, small params, (beta_1, beta_2) and weight decay of its docstring and sources
SAID: dict[str, tuple[Any, dict[str, Any], tuple[float, float], float]] = {
    "char_lm": (char_lm, {**ATTENTION, "n_layers": 1, "max_characters": 4000, "warm_up": 0}, (0.9, 0.99), 0.1),
    "induction": (induction, ATTENTION, (0.9, 0.98), 0.01),
    "linear_control": (linear_control, {"d_in": 6, "d_out": 2, "n_rows": 30, "batch_size": 4, "optimizer": "adamw"},
                       (0.9, 0.999), 0.0),
    "markov_icl": (markov_icl, ATTENTION, (0.9, 0.98), 0.01),
    "modular_addition": (modular_addition, {"p": 7, "d_model": 16, "n_heads": 2, "d_mlp": 12}, (0.9, 0.98), 1.0),
    "synthetic_ioi": (synthetic_ioi, {"d_model": 16, "n_heads": 2, "n_layers": 2, "batch_size": 4}, (0.9, 0.98), 0.01),
}  # fmt: skip


def made(name: str, **more: Any) -> tuple[Any, Training]:
    module, small, _, _ = SAID[name]
    params = recipes.get(name).params(**{**small, "device": "cpu", "dtype": "float64", **more})
    if name != "char_lm":
        return params, module.make_training(params)
    return params, module.make_training(params, corpus.load(params.text, params.max_characters))


def decays(name: str, weights: torch.Tensor) -> bool:
    """Say whether a weight decays: all do, of char_lm the matrices alone."""
    return name != "char_lm" or weights.dim() >= 2


@pytest.mark.parametrize("decay", [None, 0.5, 0.0])
@pytest.mark.parametrize("name", SAID)
def test_three_updates_are_adamw_by_hand(name, decay):
    """Loshchilov and Hutter (2019), algorithm 2, on the gradients of each update: m, v and the decay written out."""
    _, _, (b1, b2), said = SAID[name]
    _, training = made(name, **({} if decay is None else {"weight_decay": decay}))
    decay = said if decay is None else decay
    trained = [w for w in training.model.parameters() if w.requires_grad]
    m, v = ([torch.zeros_like(w) for w in trained] for _ in range(2))
    for t in (1, 2, 3, 4):
        before = [w.detach().clone() for w in trained]
        training.step(t)
        lr = training.optimizer.param_groups[0]["lr"]
        for i, w in enumerate(trained):
            assert w.grad is not None and w.dtype == torch.float64
            m[i] = b1 * m[i] + (1 - b1) * w.grad
            v[i] = b2 * v[i] + (1 - b2) * w.grad**2
            kept = before[i] * (1 - lr * decay * decays(name, w))
            want = kept - lr * m[i] / (1 - b1**t) / ((v[i] / (1 - b2**t)).sqrt() + 1e-8)
            torch.testing.assert_close(w.detach(), want, rtol=1e-9, atol=1e-13)
    assert lr > 0 and any(g.abs().max() > 0 for g in m)


def test_every_recipe_is_asked():
    by_itself = {"sae", "tuned_lens", "energy"}  # Adam, in tests of their own
    assert set(SAID) | by_itself == set(recipes.registry())


def test_long_gradients_of_char_lm_are_cut_to_length_one_and_short_ones_kept():
    for scale, cut in ((30.0, True), (1e-3, False)):
        params, training = made("char_lm")
        with torch.no_grad():
            training.model.transformer.wte.weight.mul_(scale)
        twin = char_lm.build(params, training.model.config.vocab_size).double()
        twin.load_state_dict(training.model.state_dict())
        state = training.generator.get_state()
        training.step(1)
        text = torch.from_numpy(corpus.load(params.text, params.max_characters).parts[0])
        rows = char_lm.windows(text, params.n_ctx, params.batch_size, _at(state))
        logits = twin(rows[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        whole = torch.cat([w.grad.flatten() for w in twin.parameters()])
        ours = torch.cat([w.grad.flatten() for w in training.model.parameters()])
        assert (float(whole.norm()) > 1) == cut
        torch.testing.assert_close(ours, whole / max(float(whole.norm()), 1.0), rtol=1e-5, atol=1e-9)


def test_char_lm_has_the_exact_gelu():
    """x Phi(x) with the error function; the tanh formula is off by up to 5e-4."""
    _, training = made("char_lm")
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    exact = x * (1 + torch.erf(x / 2**0.5)) / 2
    assert (training.model.transformer.h[0].mlp.act(x) - exact).abs().max() < 1e-12


# ---------------------------------------------------------------- data


def _at(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def test_held_out_chains_are_none_of_those_trained_on():
    params, training = made("markov_icl", batch_size=markov_icl.EVAL_ROWS)
    assert training.observe is not None
    held_out = {tuple(row) for row in training.observe().tokens.tolist()}
    trained = markov_icl.draw(params, 4 * markov_icl.EVAL_ROWS, _at(training.generator.get_state())).tolist()
    first = markov_icl.draw(params, markov_icl.EVAL_ROWS, _at(training.generator.get_state())).tolist()
    assert len(held_out) == markov_icl.SEEN_ROWS and not held_out & {tuple(row) for row in (*trained, *first)}


def test_held_out_blocks_are_none_of_those_trained_on():
    params, training = made("induction", batch_size=induction.TILED_ROWS)
    first = induction.tiled_rows(params, induction.TILED_ROWS, _at(training.generator.get_state()))
    held_out = {tuple(row) for row in induction.held_out_rows(params)[0].tolist()}
    assert not held_out & {tuple(row) for row in first.tolist()}


@pytest.mark.parametrize("spectrum", [0.0, 1.0, 2.0])
def test_input_i_of_the_linear_control_has_variance_i_to_the_minus_spectrum(spectrum):
    """A variance of n normal numbers has a standard error of sqrt(2/n)."""
    rows = linear_control.problem(linear_control.LinearParams(d_in=6, d_out=1, n_rows=20_000, spectrum=spectrum))
    wanted = torch.arange(1, 7, dtype=torch.float64) ** -spectrum
    assert (rows.x.var(0) / wanted - 1).abs().max() < 5 * (2 / 20_000) ** 0.5


# ---------------------------------------------------------------- the loop


def test_a_step_at_which_only_the_monitors_are_due_is_logged(tmp_path):
    train("markov_icl", {**ATTENTION, "steps": 7, "log_every": 4, "monitor_every": 3, "n_checkpoints": 2,
                         "device": "cpu"}, tmp_path / "r", False, go_on)  # fmt: skip
    rows = RunFolder(tmp_path / "r").read().rows
    assert set(rows[rows.metric == "attention_entropy"].step) == {0, 3, 6}
    assert set(rows[rows.metric == "update_norm"].step) == {3, 4, 6}
    assert set(rows[rows.metric == "loss"].step) == {0, 3, 4, 6, 7}


def test_the_pace_is_updates_over_seconds_since_the_last_line(tmp_path, monkeypatch):
    """A clock that stands at 103 s; the last line was at step 4 and 100 s, so nine updates took three seconds."""
    from types import SimpleNamespace

    from backend.runs import loop

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 103.0))
    model = torch.nn.Linear(1, 1)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator(), lambda: None,
                        dict, lambda step: True, {0}, clock=(4, 100.0))  # fmt: skip
    with Recorder(tmp_path / "r") as run:
        assert training.log(run, 13)["steps_per_second"] == pytest.approx(3.0)
        assert "steps_per_second" not in training.log(run, 13)


@pytest.mark.parametrize("start", [None, 1000])
def test_the_pace_leaves_out_what_measuring_takes_and_what_was_done_before_a_resume(tmp_path, monkeypatch, start):
    """An update takes 2 s and a reading 100 s, by a clock that only they move: half a step per second throughout."""
    from types import SimpleNamespace

    from backend.runs import loop

    clock = SimpleNamespace(now=50.0)

    def takes(seconds: float) -> dict[str, float]:
        clock.now += seconds
        return {"loss": 1.0}

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    model = torch.nn.Linear(1, 1)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator(), lambda: takes(2),
                        lambda: takes(100), lambda step: step % 2 == 0, {1000})  # fmt: skip
    first, last = start or 0, (start or 0) + 6
    with Recorder(tmp_path / "r") as run:
        training.keep(run, first)
    with Recorder(tmp_path / "r", resume=True, resume_from=first) as run:
        loop.run_loop(training, run, last, start, go_on)
    rows = RunFolder(tmp_path / "r").read().rows
    pace = rows[rows.metric == "steps_per_second"].set_index("step").value
    assert pace.to_dict() == {first + 2: 0.5, first + 4: 0.5, last: 0.5}


# ---------------------------------------------------------------- where it computes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", SAID)
def test_cuda_without_a_gpu_is_refused_with_advice(tmp_path, name):
    with pytest.raises(Unsupported, match="no CUDA device here. Set device to auto or cpu"):
        train(name, {**SAID[name][1], "device": "cuda"}, tmp_path / "r", False, go_on)
