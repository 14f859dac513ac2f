"""Truth of attention flow: rows sum to 1, identity and uniform attention have closed forms, layers come in order."""

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.contract import Prompt, View
from backend.maths.attending import uniform_rows
from tests.test_analyses_attention import Planted
from tests.test_analyses_head_scores import offset
from tests.tiny_models import opened, quiet

TOKENS = (3, 9, 4, 9, 1, 3, 9, 9)
T = len(TOKENS)


def ask(model, tokens=TOKENS):
    one = registry()["attention_flow"]
    return one.compute(model, Prompt(tokens=tokens), one.params(), quiet)


def blocks(frame):
    return np.stack(list(frame["rollout"])).astype(float).reshape(-1, T, T)


@pytest.mark.parametrize("kind", ["native", "gpt2", "neox", "llama"])
def test_rows_sum_to_one_and_the_product_is_that_of_the_patterns(kind, tmp_path):
    model = opened(kind, tmp_path)
    frame, flow = ask(model), np.eye(T)
    np.testing.assert_allclose(blocks(frame).sum(-1), 1, atol=4e-3)  # eight float16 roundings
    for layer in range(model.card.n_layers):
        pattern = model.capture(torch.tensor([TOKENS]), ["pattern"])["pattern", layer][0].double().numpy()
        flow = (pattern.mean(0) / 2 + np.eye(T) / 2) @ flow
        np.testing.assert_allclose(blocks(frame)[layer], flow, atol=5e-4)
        mine = frame[frame["layer"] == layer]
        np.testing.assert_allclose(mine["self"], np.diag(flow), atol=1e-6)
        np.testing.assert_allclose(mine["first_token"], flow[:, 0], atol=1e-6)


def test_identity_attention_flows_nowhere():
    frame = ask(Planted(torch.eye(T, dtype=torch.float64).expand(3, 2, T, T)))
    assert (blocks(frame) == np.eye(T)).all()
    assert (frame["self"] == 1).all() and (frame["distance"] == 0).all() and (frame["effective_keys"] == 1).all()


def test_uniform_attention_is_its_own_yardstick():
    frame = ask(Planted(uniform_rows(T, True).expand(3, 2, T, T)))
    for name in ("self", "first_token", "distance", "effective_keys"):
        np.testing.assert_allclose(frame[name], frame[f"{name}_uniform"], atol=1e-12)
    last = frame[(frame["layer"] == 0) & (frame["query_pos"] == T - 1)].iloc[0]
    assert last["self"] == pytest.approx(0.5 + 0.5 / T) and last["first_token"] == pytest.approx(0.5 / T)


def test_layers_come_in_order():
    heads = torch.stack([offset(1, T), offset(T, T)])[:, None]
    last = ask(Planted(heads)).iloc[-1]
    np.testing.assert_allclose(last["rollout"].astype(float), [0.5, 0, 0, 0, 0, 0, 0.25, 0.25])


def test_figures_say_what_is_ignored(tmp_path):
    frame, one = ask(opened("native", tmp_path)), registry()["attention_flow"]
    figure = one.figures["tokens"].build(frame, View(chosen={"layer": 1}))
    shown = blocks(frame)[1].astype(np.float16)
    seen = np.where(np.tril(np.ones(shown.shape, bool)), shown, np.float16("nan"))  # a later token is not seen
    np.testing.assert_array_equal(np.asarray(figure.data[0].z, np.float16), seen)
    assert "ignores OV and MLPs" in one.figures["tokens"].title and "attention only" in str(figure.data[0].colorbar)
    greys = [t for t in one.figures["spread"].build(frame, View()).data if "uniform" in t.name]
    assert len(greys) == 2
