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
