"""The shared builders: labels that can be read, limits that are kept, clicks that find their cell."""

import numpy as np
import pytest

from backend import figures
from backend.figures import style


@pytest.mark.parametrize("count", [0, 1, 39, 40, 41, 128, 1024])
def test_no_more_ticks_than_can_be_read(count):
    ticks = style.tick_positions(count)
    assert len(ticks) <= style.MAX_TICKS and len(set(np.diff(ticks))) <= 1
    assert count == 0 or (ticks[0] == 0 and len(ticks) >= min(count, style.MAX_TICKS // 2))


def test_labels_show_white_space_and_hold_no_markup():
    shown = {" a": "·a", "\n": "⏎", "\t": "⇥", "": "∅", "<br>&": "&lt;br&gt;&amp;", "\x00": "�"}
    assert {token: style.label(token) for token in shown} == shown
    assert style.label("x" * 50) == "x" * (style.MAX_LABEL - 1) + "…"


def build(rows: int, columns: int, **more):
    z = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float16)
    return z, figures.pixels(z, x=["a"] * columns, y=["b"] * rows, x_title="key", y_title="query", value="v", **more)


def test_repeated_tokens_keep_their_own_column():
    _, figure = build(3, 5)
    assert len(set(figure.data[0].x)) == 5 and figure.layout.xaxis.ticktext == ("a",) * 5


def test_a_small_map_hears_clicks_and_a_large_one_is_spared():
    z, small = build(3, 5)
    targets = small.data[1]
    assert [tuple(c) for c in targets.customdata] == [(r, c) for r in range(3) for c in range(5)]
    assert all(f"v: {v:.3g}" in t for t, v in zip(targets.text, z.ravel(), strict=True))
    assert small.layout.hoverdistance == -1  # the nearest cell answers, wherever in it the pointer is
    _, large = build(128, 128)
    assert len(large.data) == 1 and len(large.to_json()) < 160_000  # 64 KiB of numbers and 32 of ranks, as bytes


def test_signed_maps_are_centred_on_zero_and_given_limits_are_kept():
    z, signed = build(4, 4, diverging=True)
    most = float(np.abs(z).max())
    assert (signed.data[0].zmin, signed.data[0].zmax) == (-most, most)
    assert signed.data[0].colorscale[2] == (0.5, "#f7f7f7")
    _, fixed = build(4, 4, limits=(0.0, 1.0))
    assert (fixed.data[0].zmin, fixed.data[0].zmax) == (0.0, 1.0)


def test_a_map_without_a_finite_number_is_drawn():
    figure = figures.pixels(np.full((2, 2), np.nan), x=["a", "b"], y=["a", "b"], x_title="x", y_title="y", value="v")
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0.0, 1.0)


def test_a_band_lies_behind_its_line():
    x = np.arange(3)
    figure = figures.lines([figures.Line("kl", x, x, x - 1, x + 1)], x_title="layer", y_title="KL (nats)")
    low, high, line = figure.data
    assert high.fill == "tonexty" and list(low.y) == [-1, 0, 1] and list(high.y) == [1, 2, 3] and line.name == "kl"


def test_streamlit_cannot_change_a_figure(monkeypatch):
    """Importing streamlit changes plotly's default template; ours is named in each figure."""
    import plotly.io

    before = build(2, 2)[1].to_json()
    monkeypatch.setattr(plotly.io.templates, "default", "ggplot2")
    assert build(2, 2)[1].to_json() == before


def test_every_point_lies_in_one_hexagon_that_is_near_it():
    dice = np.random.default_rng(0)
    x, y = dice.normal(size=(2, 500)) * [[3.0], [0.01]]
    drawn = figures.hexbin({"a": (x, y), "b": (x[:50], y[:50])}, x_title="x", y_title="y")
    words = [t for t in drawn.data if t.mode == "markers"]
    assert [int(t.customdata.sum()) for t in words] == [500, 50]
    scale = np.array([np.ptp(x), np.ptp(y)]) / 22
    centres = np.stack([words[0].x, words[0].y], 1) / scale
    away = np.abs(np.stack([x, y], 1)[:, None] / scale - centres).min(1)
    assert (away <= 0.5 + 1e-9).all(), "no further than half a width of the nearest"
    closed = np.stack([drawn.data[0].x, drawn.data[0].y], 1)[:7]
    np.testing.assert_allclose(closed[0], closed[6])


def test_a_density_is_that_of_its_values():
    grid, values = np.linspace(-6, 6, 400), np.random.default_rng(0).normal(size=20_000)
    found = figures.density(values, grid, 0.01)
    assert found.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found, np.exp(-(grid**2) / 2) / (2 * np.pi) ** 0.5, atol=0.02)
    spike = figures.density(np.full(50, 1.0), grid, 0.1)
    assert grid[spike.argmax()] == pytest.approx(1, abs=0.03)


def test_an_outline_runs_between_cells_inside_and_outside():
    from backend.figures.panels import borders

    assert borders(None) == [] and borders(np.zeros((2, 2), bool)) == []
    one = np.zeros((3, 4), bool)
    one[1, 2] = True
    assert set(borders(one)) == {((1.5, 1.5), (0.5, 1.5)), ((2.5, 2.5), (0.5, 1.5)),
                                 ((1.5, 2.5), (0.5, 0.5)), ((1.5, 2.5), (1.5, 1.5))}  # fmt: skip
    assert len(borders(np.ones((3, 4), bool))) == 14, "the frame"


def test_grey_lines_are_told_apart_and_the_chosen_part_is_marked():
    flat = [figures.Line(n, [0, 1], [i, i], colour=c) for i, (n, c) in enumerate(
        [("model", ""), ("a", style.NULL_GREY), ("b", style.NULL_GREY), ("c", style.NULL_GREY)])]  # fmt: skip
    drawn = figures.lines(flat, x_title="x", y_title="y")
    assert len({t.line.dash for t in drawn.data[1:]}) == 3 and drawn.data[0].line.dash is None
    assert figures.lines(flat[:2], x_title="x", y_title="y").data[1].line.dash is None, "one needs none"
    assert [s.x0 for s in figures.marked(drawn, {"level": 1}).layout.shapes] == [1]
    assert not figures.marked(figures.lines(flat, x_title="x", y_title="y"), {}).layout.shapes
