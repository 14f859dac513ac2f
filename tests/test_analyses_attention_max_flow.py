"""Truth of maximum flow: a hand case, one layer, linear programming, rollout below and cuts above."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from backend.analyses import registry
from backend.contract import Prompt, View
from backend.errors import BadInput
from backend.maths.max_flow import cut_bound, max_flow
from tests.test_analyses_attention import Planted
from tests.tiny_models import opened, quiet

TOKENS = (3, 9, 4, 9, 1, 3, 9, 9)
ROUNDED = 1e-5


def mixing(n_layers, n, seed=0, causal=True):
    dice = np.random.default_rng(seed)
    rows = dice.dirichlet(np.full(n, 0.3), size=(n_layers, n))
    rows = np.tril(rows) + 1e-9 * np.eye(n) if causal else rows
    return [(r / r.sum(-1, keepdims=True) + np.eye(n)) / 2 for r in rows]


def test_a_case_by_hand():
    """Half of position 1 comes from 0 in either layer: both routes to 0 carry a half, one route to 1 carries a half."""
    layer = np.array([[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(max_flow([layer, layer], 1), [1, 0.5], atol=ROUNDED)
    np.testing.assert_allclose((layer @ layer)[1], [0.75, 0.25])  # rollout is less
    np.testing.assert_allclose(max_flow([layer, layer], 0), [1, 0], atol=ROUNDED)


def test_an_early_edge_is_the_bottleneck():
    """All of 2 comes from 1, of which only a tenth comes from 0; 2 cannot get more from 0 by any way."""
    first = np.array([[1, 0, 0], [0.1, 0.9, 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    np.testing.assert_allclose(max_flow([first, second], 2), [0.1, 0.9, 0], atol=ROUNDED)


def test_of_one_layer_it_is_the_mixing_itself():
    (only,) = mixing(1, 7)
    for query in range(7):
        np.testing.assert_allclose(max_flow([only], query), only[query], atol=ROUNDED)


def by_linear_programming(layers, query, key):
    """Maximise what leaves the query, with conservation at every node between and capacities on every edge."""
    n, edges = len(layers[0]), [(a, b, c) for a in range(len(layers)) for b, c in np.ndindex(layers[0].shape)]
    kept, gain = [], np.zeros(len(edges))
    for i, (layer, above, below) in enumerate(edges):
        gain[i] = -1.0 if layer == len(layers) - 1 and above == query else 0.0
        wrong_start = layer == len(layers) - 1 and above != query
        kept.append((0, 0.0 if wrong_start or (layer == 0 and below != key) else layers[layer][above, below]))
    balance = np.zeros(((len(layers) - 1) * n, len(edges)))
    for i, (layer, above, below) in enumerate(edges):
        if layer < len(layers) - 1:
            balance[layer * n + above, i] -= 1  # leaves the node above this layer
        if layer > 0:
            balance[(layer - 1) * n + below, i] += 1
    return -linprog(gain, A_eq=balance, b_eq=np.zeros(len(balance)), bounds=kept).fun


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_the_solution_of_the_linear_program(causal):
    layers = mixing(3, 5, seed=2, causal=causal)
    expected = [by_linear_programming(layers, 4, key) for key in range(5)]
    np.testing.assert_allclose(max_flow(layers, 4), expected, atol=ROUNDED)


@pytest.mark.parametrize("seed", range(4))
def test_it_lies_between_rollout_and_the_cuts(seed):
    layers = mixing(4, 9, seed)
    flow, rollout = max_flow(layers, 8), np.linalg.multi_dot(layers[::-1])[8]
    bound = cut_bound(layers, 8)
    assert (flow >= rollout - ROUNDED).all() and (flow <= bound + ROUNDED).all()
    assert (flow > rollout + 1e-3).any() and (flow < bound - 1e-3).any(), "equal throughout would prove nothing"


def ask(model, tokens=TOKENS, **params):
    one = registry()["attention_max_flow"]
    return one.compute(model, Prompt(tokens=tokens), one.params(**params), quiet)


def test_identity_attention_flows_nowhere():
    eye = torch.eye(8, dtype=torch.float64).expand(3, 2, 8, 8)
    np.testing.assert_array_equal(ask(Planted(eye))["flow"], np.eye(8)[7])


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_rollout_is_that_of_attention_flow_and_later_tokens_do_not_matter(kind, tmp_path):
    model = opened(kind, tmp_path)
    frame, other = ask(model), registry()["attention_flow"]
    rollout = other.compute(model, Prompt(tokens=TOKENS), other.params(), quiet).iloc[-1]["rollout"]
    np.testing.assert_allclose(frame["rollout"], rollout.astype(float), atol=1e-3)
    assert (frame["flow"] >= frame["rollout"] - ROUNDED).all() and (frame["flow"] <= frame["bound"] + ROUNDED).all()
    early = ask(model, query=4)
    assert len(early) == 5 and (early["query_pos"] == 4).all()
    np.testing.assert_allclose(early["flow"], ask(model, TOKENS[:5])["flow"], atol=ROUNDED)


def test_what_would_take_too_long_or_is_not_there_is_refused(tmp_path):
    model = opened("native", tmp_path)
    with pytest.raises(BadInput, match="shorten the text"):
        ask(model, most=7)
    with pytest.raises(BadInput, match="Give 0 to 7"):
        ask(model, query=8)
    assert len(ask(model, most=7, query=6)) == 7


def test_figures_show_flow_over_its_null(tmp_path):
    frame, one = ask(opened("native", tmp_path)), registry()["attention_max_flow"]
    drawn = one.figures["tokens_flow"].build(frame, View(tokens=[f"t{i}" for i in range(8)]))
    np.testing.assert_allclose(drawn.data[1].y, frame["flow"])
    assert drawn.data[0].name == "uniform attention" and drawn.data[1].x[0] == "0 t0"
    assert [t.name for t in one.figures["compared"].build(frame, View()).data] == ["bound", "flow", "rollout"]
