"""The phases of grokking by rule."""

from __future__ import annotations

import pandas as pd
import pytest

from app import training_phases
from app.charts import Row, linked

CURVES = {
    "train_loss": {0: 4.7, 10: 0.009, 20: 0.001, 30: 0.001, 40: 0.001},
    "restricted_loss": {0: 4.6, 10: 3.0, 20: 2.0, 30: 0.5, 40: 0.1},
    "excluded_loss": {0: 4.7, 10: 0.1, 20: 1.0, 30: 2.0, 40: 4.0},
    "test_loss": {0: 4.7, 10: 9.0, 20: 7.0, 30: 2.0, 40: 0.09},
}


def frame(curves: dict[str, dict[int, float]]) -> pd.DataFrame:
    rows = [(s, m, v) for m, c in curves.items() for s, v in c.items()]
    return pd.DataFrame(rows, columns=["step", "metric", "value"])


def test_each_phase_ends_where_its_rule_says() -> None:
    """At step 0 the restricted loss is below the excluded one by chance: it counts from the end of memorisation on."""
    found = training_phases.phases(frame(CURVES))
    assert found == [("memorisation", 0, 10), ("circuit formation", 10, 30), ("clean-up", 30, 40)]


@pytest.mark.parametrize(("missing", "left"), [("train_loss", 0), ("excluded_loss", 1), ("test_loss", 2)])
def test_what_has_not_ended_is_not_drawn(missing: str, left: int) -> None:
    found = training_phases.phases(frame({m: c for m, c in CURVES.items() if m != missing}))
    assert len(found) == left
    figure = training_phases.shade(linked([Row("Loss")]), found)
    assert [a.text for a in figure.layout.annotations if "ends" in a.text] == [f"{n} ends" for n, _, _ in found]


def test_on_a_log_axis_the_words_stand_at_the_line() -> None:
    figure = training_phases.shade(linked([Row("Loss")], "log"), [("memorisation", 0, 100)])
    (note,) = [a for a in figure.layout.annotations if "ends" in a.text]
    assert note.x == pytest.approx(2.0) and figure.layout.shapes[-1].x0 == 100


def test_a_phase_that_ends_at_step_0_has_no_line_on_a_log_axis() -> None:
    found = [("memorisation", 0, 0), ("circuit formation", 0, 100)]
    for axis, left in (("log", 1), ("linear", 2)):
        figure = training_phases.shade(linked([Row("Loss")], axis), found)
        assert len([a for a in figure.layout.annotations if "ends" in a.text]) == left, axis
