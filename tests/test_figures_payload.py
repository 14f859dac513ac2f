"""What a page sends for a prompt of 1,024 tokens on a model of GPT-2's shape: at most 2 MB per figure, nothing lost."""

import numpy as np
import pandas as pd
import pytest

from app import asking
from backend.analyses import registry
from backend.contract import View
from backend.figures import maps, pixels

N, V, LIMIT = 1024, 50257, 2_000_000
DICE = np.random.default_rng(0)
VIEW = View(tokens=[str(i) for i in DICE.integers(V, size=N)], vocab=str, card={"d_vocab_out": V}, chosen={"pos": 5})


def lens_table():
    layer, pos = np.repeat(np.arange(-1, 12), N), np.tile(np.arange(N), 13)
    words = {c: DICE.integers(V, size=layer.size) for c in ("token_id", "target_id", "target_rank")}
    nats = {c: -DICE.random(layer.size) for c in ("log_prob", "entropy", "kl_to_final", "target_log_prob")}
    none = dict.fromkeys(("distractor_id", "distractor_log_prob", "distractor_rank"), np.nan)
    return pd.DataFrame({"layer": layer, "pos": pos, "rank": 0, **words, **nats, **none})


def rows(column):
    pattern = np.tril(DICE.random((N, N))).astype(np.float16)
    return pd.DataFrame({"layer": 0, "head": 0, "query_pos": np.arange(N), column: list(pattern)})


@pytest.mark.parametrize(("analysis", "figure", "make"), [
    ("logit_lens", "grid", lens_table), ("logit_lens", "target_rank", lens_table), ("logit_lens", "curves", lens_table),
    ("attention", "head", lambda: rows("pattern")), ("attention_flow", "tokens", lambda: rows("rollout")),
])  # fmt: skip
def test_a_figure_of_a_long_prompt_stays_within_the_limit(analysis, figure, make):
    built = registry()[analysis].figures[figure].build(make(), VIEW)
    assert len(built.to_json()) < LIMIT


def drawn(z, **more):
    n, m = z.shape
    return pixels(z, x=[f"x{i}" for i in range(m)], y=[f"y{i}" for i in range(n)], x_title="key (token)",
                  y_title="query (token)", value="v", **more)


@pytest.mark.parametrize("shape", [(1024, 1024), (13, 40_000), (2000, 3), (1, 200_000)])
def test_a_thin_stripe_and_its_place_survive(shape):
    z = DICE.random(shape) - 0.5
    where = (shape[0] // 2, shape[1] - 1)
    z[where] = -9.0
    heat = drawn(z, limits=(-9, 9)).data[0]
    got = np.asarray(heat.z)
    assert got.size <= maps.MOST_CELLS and got.min() == -9.0
    row, column = np.argwhere(got == -9.0)[0]
    first = [int(names[i].split()[0]) for names, i in ((heat.y, row), (heat.x, column))]
    steps = [-(-n // m) for n, m in zip(shape, got.shape, strict=True)]
    assert all(f <= w < f + s for f, w, s in zip(first, where, steps, strict=True))


def test_a_hover_stays_with_its_value_and_the_axis_says_how_many():
    z = DICE.random((13, 4000))
    heat = drawn(z, hover=[[f"{v:.9f}" for v in row] for row in z])
    words, values = np.asarray(heat.data[0].customdata), np.asarray(heat.data[0].z)
    assert words.shape == values.shape and words.size <= maps.MOST_WORDED
    np.testing.assert_allclose(words.astype(float), values, atol=1e-6)
    assert f"{values.shape[1]} of 4000" in heat.layout.xaxis.title.text and " of " not in heat.layout.yaxis.title.text


def test_a_map_that_fits_is_sent_whole():
    z = DICE.random((300, 300))
    np.testing.assert_array_equal(drawn(z).data[0].z, z)
    assert drawn(z).layout.xaxis.title.text == "key (token)"


def test_unknown_cells_yield_to_known_ones():
    z = np.full((2, 100_000), np.nan)
    z[1, 7] = 0.0
    assert np.nanmax(np.asarray(drawn(z, limits=(0, 1)).data[0].z)) == 0.0


def test_looking_at_a_job_sends_no_more_the_longer_it_takes():
    looks = [seconds / asking.pace(seconds) for seconds in (1.0, 24.0, 60.0, 300.0)]
    assert max(looks) <= asking.LOOKS + 1e-9 and asking.pace(0.0) == 0.4 and asking.pace(1e5) == 5.0
    assert asking.pace(None) == asking.pace(asking.UNKNOWN)
