"""What a page sends for a prompt of 1,024 tokens on a model of GPT-2's shape: at most 2 MB per figure, nothing lost."""

import numpy as np
import pandas as pd
import pytest

from app import asking
from backend import figures
from backend.analyses import registry
from backend.contract import View
from backend.figures import beside, cells, pixels
from backend.figures.compare import compared

N, V, LIMIT = 1024, 50257, 2_000_000
DICE = np.random.default_rng(0)
VIEW = View(tokens=[str(i) for i in DICE.integers(V, size=N)], vocab=str, card={"d_vocab_out": V}, chosen={"pos": 5})


def lens_table():
    layer, pos = np.repeat(np.arange(-1, 12), N), np.tile(np.arange(N), 13)
    words = {c: DICE.integers(V, size=layer.size) for c in ("token_id", "target_id", "target_rank")}
    nats = {c: -DICE.random(layer.size) for c in ("log_prob", "entropy", "kl_to_final", "target_log_prob")}
    none = dict.fromkeys(("distractor_id", "distractor_log_prob", "distractor_rank"), np.nan)
    return pd.DataFrame({"layer": layer, "pos": pos, "rank": 0, **words, **nats, **none})


def rows(*columns):
    pattern = {c: list(np.tril(DICE.random((N, N))).astype(np.float16)) for c in columns}
    return pd.DataFrame({"layer": 0, "head": 0, "query_pos": np.arange(N), "layer_largest": 1.0, **pattern})


def settling():
    points, pos = np.repeat(["resid_mid", "resid_post"], 12 * N), np.tile(np.arange(N), 24)
    ids = {c: DICE.integers(V, size=pos.size) for c in ("top_id", "final_rank", "settle_layer")}
    layer = np.tile(np.repeat(np.arange(12), N), 2)
    return pd.DataFrame({"point": points, "layer": layer, "pos": pos, "kl_to_final": DICE.random(pos.size),
                         "entropy": DICE.random(pos.size), "settled": DICE.random(pos.size) < 0.5, **ids})


@pytest.mark.parametrize(("analysis", "figure", "make"), [
    ("logit_lens", "grid", lens_table), ("logit_lens", "target_rank", lens_table), ("logit_lens", "curves", lens_table),
    ("attention", "head", lambda: rows("pattern")), ("attention_flow", "tokens", lambda: rows("rollout")),
    ("value_weighted", "head", lambda: rows("pattern", "contribution")), ("lens_convergence", "kl_map", settling),
])  # fmt: skip
def test_a_figure_of_a_long_prompt_stays_within_the_limit(analysis, figure, make):
    built = registry()[analysis].figures[figure].build(make(), VIEW)
    assert len(built.to_json()) < LIMIT


def test_two_maps_compared_and_their_difference_stay_within_the_limit():
    one, two = (np.tril(DICE.random((N, N))) for _ in range(2))
    words = [f"{i} token" for i in range(N)]
    figure = compared(cells.seen(one), cells.seen(two), x=words, y=words, x_title="key", y_title="query", value="v",
                      rank="row")  # fmt: skip
    assert len(figure.to_json()) < LIMIT and "171 of 1024" in figure.layout.xaxis.title.text


def by_counting(z, among, signed=False):
    """How many cells are larger, one cell at a time; -1 for none."""
    size = np.abs(z) if signed else z
    return [[-1 if v != v else int((size[i] > v).sum() if among == "row" else (size > v).sum())
             for v in size[i]] for i in range(len(z))]  # fmt: skip


@pytest.mark.parametrize(("among", "signed"), [("map", False), ("map", True), ("row", False), ("row", True)])
def test_a_rank_counts_the_larger_cells_and_a_cell_without_a_value_has_none(among, signed):
    z = np.round(DICE.normal(size=(9, 11)), 1)
    z[2, 3], z[4] = np.nan, np.nan
    assert cells.ranks(z, among, signed).tolist() == by_counting(z, among, signed)


@pytest.mark.parametrize("n", [40, 120, 400])
def test_every_size_of_a_map_tells_the_rank_among_the_keys_of_the_query_and_none_to_a_key_it_does_not_see(n):
    """40: squares that hear clicks; 120: all cells; 400: blocks, ranked before they are thinned."""
    z = cells.seen(np.tril(DICE.permutation(n * n).reshape(n, n) + 1))  # no two alike
    figure = drawn(z, rank="row", blank="not seen")
    heat, true = figure.data[0], cells.ranks(z, "row")
    if n == 40:
        assert heat.hoverinfo == "skip"
        said = np.array(figure.data[1].text, object).reshape(n, n)
        assert all(f"rank {r} of" in w if r >= 0 else w.endswith("not seen")
                   for w, r in zip(said.flat, true.flat, strict=True))
        return
    assert heat.hoverongaps is False and "%{z" in heat.hovertemplate and "rank %{customdata} of" in heat.hovertemplate
    value = {float(z[i, j]): true[i, j] for i, j in np.ndindex(n, n) if true[i, j] >= 0}
    got = np.asarray(heat.z)
    assert got.shape == ((n, n) if n == 120 else (200, 200))
    told = [(float(v), r) for v, r in zip(got.flat, np.asarray(heat.customdata).flat, strict=True) if v == v]
    assert len(told) > n and all(value[v] == r for v, r in told)


def test_maps_side_by_side_tell_rank_and_second_number():
    z, norm = np.tril(DICE.random((60, 60))), DICE.random((60, 60))
    words = [str(i) for i in range(60)]
    figure = beside({"a": (z, "v"), "b": (z, "w")}, more={"b": (norm, "norm")}, limits=(0.0, 1.0), x=words, y=words,
                    x_title="key", y_title="query")  # fmt: skip
    one, two = figure.data
    np.testing.assert_array_equal(one.customdata, cells.ranks(z, "row"))
    np.testing.assert_allclose(np.asarray(two.customdata)[..., 1], norm, rtol=1e-6)
    assert "customdata[0]" in two.hovertemplate and "norm: %{customdata[1]" in two.hovertemplate


@pytest.mark.parametrize("build", ["grid", "panels"])
def test_maps_of_heads_tell_a_rank(build):
    z = DICE.random((3, 4))
    make = {"grid": lambda: figures.grid({"a": z}, x_title="head", y_title="layer", value="v", limits=(0.0, 1.0)),
            "panels": lambda: figures.panels({"a": figures.Panel(z)}, x_title="head", y_title="layer")}
    said = make[build]().to_json()
    assert "(0: the largest)" in said and "of 12 cells" in said


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
    assert got.size <= cells.MOST_BYTES // cells.NUMBERED and got.min() == -9.0
    row, column = np.argwhere(got == -9.0)[0]
    first = [int(names[i].split()[0]) for names, i in ((heat.y, row), (heat.x, column))]
    steps = [-(-n // m) for n, m in zip(shape, got.shape, strict=True)]
    assert all(f <= w < f + s for f, w, s in zip(first, where, steps, strict=True))


def test_a_hover_stays_with_its_value_and_the_axis_says_how_many():
    z = DICE.random((13, 4000))
    heat = drawn(z, hover=[[f"{v:.9f}" for v in row] for row in z])
    words, values = np.asarray(heat.data[0].customdata), np.asarray(heat.data[0].z)
    assert words.shape == values.shape and words.size <= cells.MOST_WORDED
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
