"""What the charts draw: which side of a band is the lower one, where the median runs, which way a difference points."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from app import charts, training_charts, views
from app.charts import Curve, Row


def line(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"step": np.arange(len(values)), "value": values})


def test_a_difference_points_from_the_first_table_to_the_second() -> None:
    """Adding the difference to what was gives what is; a gain is positive."""
    before = pd.DataFrame({"layer": [0, 1, 2], "score": [0.25, 0.5, 9.0]})
    after = pd.DataFrame({"layer": [1, 0], "score": [0.75, 0.125]})
    joined = views.joined_tables(before, after, ["layer"], ["score"]).set_index("layer")
    assert list(joined.index) == [0, 1]  # a row that one of them lacks has no difference
    assert (joined["score before"] + joined["score difference"]).tolist() == joined["score after"].tolist()
    assert joined.loc[1, "score difference"] == 0.25 and joined.loc[0, "score difference"] == -0.125


def test_a_band_is_filled_between_the_least_and_the_greatest_with_the_median_inside() -> None:
    seeds = {"a": line([1.0, 5.0, 2.0]), "b": line([3.0, 4.0, 9.0]), "c": line([2.0, 9.0, 7.0])}
    drawn = training_charts._group(list(seeds), seeds, dict.fromkeys(seeds, "#D55E00"), banded=True)
    assert len(drawn) == 4 and all(c.low is None for c in drawn[:3])  # a thin line a seed, then the band
    median = drawn[-1]
    assert np.asarray(median.y).tolist() == [2.0, 5.0, 7.0]
    figure = charts.linked([Row("loss", curves=drawn)])
    by_name = {t.name: t for t in figure.data}
    lower, upper = (by_name[f"{median.name} {side}"] for side in ("least", "greatest"))
    assert np.asarray(lower.y).tolist() == [1.0, 4.0, 2.0] and np.asarray(upper.y).tolist() == [3.0, 9.0, 9.0]
    assert (upper.fill, lower.fill) == ("tonexty", None)  # down to the trace before it, which is the lower one
    order = [t.name for t in figure.data]
    assert order.index(upper.name) == order.index(lower.name) + 1
    assert np.asarray(by_name[median.name].y).tolist() == [2.0, 5.0, 7.0]


def test_a_lone_seed_has_no_band() -> None:
    (only,) = training_charts._group(["a"], {"a": line([1.0, 2.0])}, {"a": "#D55E00"}, banded=True)
    assert only.low is None and charts._band(only, "y") == []
    assert len(charts.linked([Row("loss", curves=[Curve("a", "#D55E00", [0, 1], [1.0, 2.0], "a")])]).data) == 1


@pytest.mark.parametrize("values", [[0.5, 0.25], [-3.0, 4.0]])
def test_equal_tables_differ_by_nothing(values: list[float]) -> None:
    table = pd.DataFrame({"pos": [0, 1], "x": values})
    assert views.joined_tables(table, table, ["pos"], ["x"])["x difference"].tolist() == [0.0, 0.0]
