"""The Training page: what it works out from plain records, and the page itself on runs written by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

from app import house, terms, theme, training_data
from app.charts import Curve, Mark, Row, linked, placed, spark_svg
from backend import Backend
from backend.contract import Weights
from backend.figures.circuit import Node, diagram
from backend.figures.compare import compared, differences, share_limits
from backend.runs.recorder import Recorder
from backend.settings import SHIPPED_RUNS
from tests import tiny_models

ROOT = Path(__file__).resolve().parent.parent


def line(steps: Any, values: Any) -> pd.DataFrame:
    return pd.DataFrame({"step": list(steps), "value": np.asarray(values, float)})


# ---------------------------------------------------------------- pure


@pytest.mark.parametrize(("low", "high", "expected"), [
    (198, 242, (180, 260)), (200, 240, (200, 240)), (200, 200, (180, 200)), (0, 50, (0, 100)),
])  # fmt: skip
def test_the_bracket_is_the_last_before_and_the_first_after(low: float, high: float, expected: Any) -> None:
    before, after, words = training_data.bracket([260, 0, 100, 180, 200, 240], low, high)  # type: ignore[misc]
    assert (before, after) == expected and words == ""


def test_a_bracket_without_a_side_takes_the_nearest_and_says_so() -> None:
    assert training_data.bracket([100, 200], 50, 150) == (
        100, 200, "no checkpoint lies before the interval; step 100 is the first")  # fmt: skip
    assert training_data.bracket([100, 200], 150, 900) == (100, 200, "none lies after it yet; step 200 is the last")
    before, after, words = training_data.bracket([100, 200], 300, 400)  # type: ignore[misc]
    assert (before, after) == (100, 200) and "step 200 is the last" in words
    assert training_data.bracket([7], 1, 2) is None and training_data.bracket([], 1, 2) is None


def test_seeds_of_one_configuration_stand_together_and_nothing_else_does() -> None:
    def run(name: str, recipe: str, **params: Any) -> dict[str, Any]:
        return {"name": name, "recipe": recipe, "params": params}

    runs = [run("a", "induction", seed=0, lr=1), run("b", "induction", seed=1, lr=1),
            run("c", "induction", seed=1, lr=2), run("d", "", seed=0), run("e", "", seed=0)]  # fmt: skip
    assert training_data.configurations(runs) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_the_band_is_median_least_and_greatest_where_seeds_have_values() -> None:
    found = training_data.band([line([0, 10], [0, 10]), line([0, 10], [2, 12]), line([0, 10, 20], [7, 11, np.nan])])
    assert found["step"].tolist() == [0, 10]
    assert found[["median", "low", "high"]].to_numpy().tolist() == [[2, 0, 7], [11, 10, 12]]
    between = training_data.band([line([0, 10], [0, 10]), line([0, 5, 10], [0, 9, 10])])
    assert between.loc[between["step"] == 5, ["low", "high"]].to_numpy().tolist() == [[5, 9]]
    assert len(training_data.band([line([], []), line([1], [np.nan])])) == 0


def test_past_the_end_of_the_shortest_seed_there_is_no_band() -> None:
    found = training_data.band([line([0, 10, 20], [0, 1, 2]), line([0, 10], [4, 5]), line([], [])])
    assert found["step"].tolist() == [0, 10] and found["median"].tolist() == [2, 3]


def test_every_run_is_in_some_chart_where_nothing_was_asked_for() -> None:
    usual = ["loss", "train_loss", "test_loss", "val_loss"]
    own = [[*usual], *([f"own{i}", f"z{i}"] for i in range(7))]
    charts = training_data.charts_of({c for cs in own for c in cs})
    drawn = training_data.chosen_charts(charts, [], [], own)
    assert len(drawn) == training_data.CHARTS and all(set(cs) & set(drawn) for cs in own)
    assert training_data.chosen_charts(charts, [], [], own[:2]) == ["loss", "train_loss", "test_loss", "val_loss",
                                                                    "own0"]
    assert training_data.chosen_charts(charts, [], ["own3"], own) == ["own3"], "what was asked for holds"


FOUND = {"run": "r", "step": 286.7, "low": 279.6, "high": 290.4, "width": 0.1, "alarm_step": 280, "verdict": "kink",
         "channels": ["induction_score/L1H2", "loss", "induction_score/L1H0"], "method": "glr"}  # fmt: skip


def test_marker_table_and_address_round_alike() -> None:
    from app.training_charts import mark_of
    from app.training_compare import row_of, side_words

    row, mark = row_of(FOUND, {}), mark_of(FOUND)
    assert row["step"] == mark.short == "287" and row["interval"] == "280 to 290" and "280 to 290" in mark.hover
    assert row["alarm"] == "280 (7 early)" and row_of({**FOUND, "alarm_step": 300}, {})["alarm"] == "300 (13 late)"
    assert row["carried by"] == "Induction score L1H2, L1H0; Loss" and row["doubts"] == ""
    assert "step 287, interval 280 to 290" in side_words(FOUND, 287)


def test_a_marker_keeps_its_transition_while_the_estimate_moves() -> None:
    moved = {**FOUND, "step": 284.2}
    assert training_data.at_marker([{**FOUND, "step": 900, "low": 880, "high": 910}, moved], 287) is moved
    assert training_data.at_marker([moved], 500) is None


def test_an_interval_much_wider_than_the_change_is_said() -> None:
    from app.training_charts import mark_of
    from app.training_compare import row_of

    wide = {**FOUND, "step": 700, "low": 417, "high": 1150, "width": 0.4}
    assert training_data.located(FOUND) and not training_data.located(wide)
    assert training_data.located({**wide, "width": 0.6})
    assert row_of(wide, {})["interval"] == "417 to 1150: not located well"
    assert mark_of(wide).vague and not mark_of(FOUND).vague


def test_labels_of_close_markers_are_short_and_stand_apart() -> None:
    def mark(step: float) -> Mark:
        return Mark("r", step, step, step, f"rapid crossover at {step}", "#000000", "", str(step))

    alone, near, close = placed([mark(100), mark(600), mark(640)], 1000, False)
    assert alone == ("rapid crossover at 100", 0.5)
    assert near[0] == "600" and abs(near[1] - close[1]) > 0.4


def test_a_run_that_begins_to_move_redraws_the_page_and_one_that_goes_on_does_not() -> None:
    from app.training_runs import stamp

    def run(state: str, step: int) -> dict[str, Any]:
        return {"a": {"state": state, "last_step": step}}

    assert stamp(run("running", 1), ["a"]) == stamp(run("running", 9), ["a"])
    assert len({str(stamp(r, ["a"])) for r in (run("running", 9), run("finished", 9), run("finished", 10), {})}) == 4


def test_the_seeds_of_a_preset_show_what_differs_and_how_long_they_take() -> None:
    from app.training_start import many_words, varied

    assert varied([{"d": 1, "lr": 2, "seed": 0}, {"d": 1, "lr": 3, "seed": 1}]) == [
        {"seed": 0, "lr": 2}, {"seed": 1, "lr": 3}]  # fmt: skip
    assert many_words(100, 5, 2) == "about 50 s with 2 at a time (2 min of one CPU core in all)"


def test_seeds_of_one_configuration_are_one_line() -> None:
    from app.training_rows import seed_words

    said = " ".join(seed_words(["a", "b", "<c>"], {"a": {"last_step": 5}, "b": {"last_step": 9}},
                               {"a": "running", "b": "finished", "<c>": "queued", "d": "running"}, "#000"))  # fmt: skip
    assert "3 seeds: a" in said and "1 running" in said and "step 5 to 9" in said and "<c>" not in said


def test_a_loss_is_called_a_loss() -> None:
    from app.views import gain_words

    assert "loses 0.5 nats" in gain_words([-0.25, -0.75]) and "gains 0.5 nats" in gain_words([0.5])


def test_the_ablation_is_said_with_its_numbers_and_its_arm_is_named() -> None:
    from app.training_sections import ablation_words

    def row(condition: str, acc: float, n: int, said: str, se: float = 0.01) -> dict[str, Any]:
        return {"condition": condition, "second_copy_accuracy": acc, "second_copy_accuracy_se": se, "drop": 1 - acc,
                "n_heads": n, "heads": said}

    rows = [row("intact", 1.0, 0, "L1H0 0.90, L1H1 0.80"), row("suspects", 0.1, 2, ""),
            row("random", 0.4, 2, "2 of the other 2", np.nan)]  # fmt: skip
    said = ablation_words(pd.DataFrame(rows), 2, 2)
    assert "1.00 intact; 0.10 without the 2 heads" in said and "0.40 without the 2 other heads, all of layer 0" in said
    assert "suspects carry more" in said
    assert "cannot be told apart" in ablation_words(pd.DataFrame([*rows[:2], row("random", 0.11, 2, "")]), 2, 2)
    assert "2 of the 6 other heads" in ablation_words(pd.DataFrame(rows), 2, 4)
    assert "Nothing to ablate: no head above 0.5" in ablation_words(
        pd.DataFrame([row("intact", 0.1, 0, "no head above 0.5")]), 1, 4)  # fmt: skip


def test_lines_have_no_pale_yellow_and_the_glossary_has_the_words_of_a_transition() -> None:
    assert "#F0E442" not in theme.LINES and len(set(theme.LINES)) == len(theme.CATEGORICAL)
    assert {"smooth", "kink", "rapid crossover", "size-sharpening crossover", "width", "interval", "delay", "alarm",
            "exogenous", "metric-induced"} <= set(terms.TRANSITIONS)  # fmt: skip
    assert list(terms.fitting("slope turns")) == ["kink"]


def test_the_strongest_head_is_the_largest_at_each_step() -> None:
    rows = pd.concat([line([0, 1], v).assign(layer=0, head=h) for h, v in enumerate([[0, 5], [3, 1], [np.nan, 2]])])
    assert training_data.strongest(rows)["value"].tolist() == [3, 5]


def test_a_family_is_one_chart_and_a_lone_name_is_none() -> None:
    names = ["fve_w14", "fve_w2", "loss", "odd_w1"]
    assert training_data.families(names) == {"fve": {2: "fve_w2", 14: "fve_w14"}}
    assert training_data.charts_of(names) == ["fve", "loss", "odd_w1"]


def test_two_thousand_metrics_draw_a_few_charts() -> None:
    charts = training_data.charts_of([f"m{i:04}" for i in range(2000)] + ["loss"])
    assert training_data.chosen_charts(charts, ["loss"], []) == ["loss"]
    assert len(training_data.chosen_charts(charts, [], charts)) == training_data.CHARTS
    assert training_data.chosen_charts(["b", "a"], [], ["gone"]) == ["b", "a"]


def test_a_filter_wants_every_word() -> None:
    run = {"name": "Alpha-1", "recipe": "induction", "state": "finished", "group": "sweep"}
    assert all(training_data.fits(run, words) for words in ("alpha FINISHED", "", "sweep", "induction"))
    assert not training_data.fits(run, "alpha failed")


def test_points_thinned_are_said() -> None:
    frame = line([1], [1])
    assert training_data.thinning([frame]) == ""
    frame.attrs["thinned"] = {"loss": (10, 1000)}
    assert training_data.thinning([frame, line([1], [1])]).startswith("10 of 1,000 points")


# ---------------------------------------------------------------- figures


def test_the_difference_is_after_minus_before_centred_on_zero_and_the_two_share_limits() -> None:
    figure = compared([[0, 1], [2, np.nan]], [[1, 1], [0, 5]], x="ab", y="cd", x_title="x", y_title="y", value="v")
    before, after, difference = figure.data
    assert difference.z.tolist()[0] == [1, 0] and difference.z[1][0] == -2 and np.isnan(difference.z[1][1])
    assert before.coloraxis == after.coloraxis == "coloraxis" and difference.coloraxis == "coloraxis2"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 5)
    assert figure.layout.coloraxis2.cmin == -figure.layout.coloraxis2.cmax == -2
    bars = differences(["a", "b"], [1, 2], [3, 1], x_title="", y_title="")
    assert bars.data[0].y.tolist() == [2, -1] and bars.layout.yaxis.range[0] == -bars.layout.yaxis.range[1]


def test_figures_side_by_side_get_one_range() -> None:
    import plotly.graph_objects as go

    pair = [go.Figure([go.Scatter(y=v)], {"coloraxis": {"cmin": v[0], "cmax": v[1]}}) for v in ([0, 1], [2, 9])]
    share_limits(pair)
    assert [f.layout.coloraxis.cmax for f in pair] == [9, 9] and [f.layout.coloraxis.cmin for f in pair] == [0, 0]
    assert pair[0].layout.yaxis.range == pair[1].layout.yaxis.range and pair[0].layout.yaxis.range[1] > 9
    assert pair[0].layout.xaxis.range == pair[1].layout.xaxis.range
    pair = [go.Figure([go.Bar(x=list(x), y=[1, 2])], {"xaxis": {"type": "category"}}) for x in ("ab", "ca")]
    share_limits(pair)
    assert {f.layout.xaxis.categoryarray for f in pair} == {("a", "b", "c")}


def test_two_circuits_stand_on_one_grid() -> None:
    """A head is at the same place on both sides, whatever else a side draws."""
    small = [Node("L0H0", 0, 0, 1.0, True, "")]
    pair = [diagram(nodes, value="v", told="") for nodes in (small, [*small, Node("L2H5", 2, 5, 1.0, True, "")])]
    share_limits(pair)
    one, two = ((f.layout.xaxis.range, f.layout.yaxis.range, f.layout.yaxis.ticktext) for f in pair)
    assert one == two and one[2] == ("0", "2") and one[0][1] > 5 and one[1][1] > 2


def test_the_stack_shares_one_step_axis_and_its_marks_can_be_told_from_curves() -> None:
    rows = [Row(f"m{i}", "", [Curve("a", "#0072b2", [0, 1, 2], [1, np.nan, i], "run")]) for i in range(3)]
    figure = linked(rows, "log", [Mark("run", 1, 0, 2, "kink", "#d55e00")], step=2)
    assert {t.xaxis or "x" for t in figure.data} == {"x"} and len({t.yaxis for t in figure.data}) == 4
    assert figure.layout.xaxis.type == "log"
    assert list(figure.data[-1].customdata[0]) == ["mark", "run", 1]
    assert all(list(c) == ["step", "run"] for c in figure.data[0].customdata)
    domains = sorted(tuple(figure.layout[a].domain) for a in ("yaxis", "yaxis2", "yaxis3", "yaxis4"))
    assert all(low[1] <= high[0] for low, high in zip(domains, domains[1:], strict=False)), domains
    assert all(s.x0 > 0 for s in figure.layout.shapes)
    assert spark_svg([0, 1], [np.nan, np.inf]) == "" and spark_svg([0, 1], [1, 2]).startswith("data:image/svg")


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A Backend of its own with runs that are hard to show beside the shipped ones."""
    place = tmp_path_factory.mktemp("training")
    one = Backend(tiny_models.settings(place, dtype="float32"), inline=True)
    house.settle(one)
    _odd_runs(place / "runs")
    one.follower.poll()
    yield one
    house.settle(None)
    one.close()


def _odd_runs(place: Path) -> None:
    with Recorder(place / "numbers-only") as run:
        for step in range(30):
            run.log(step, loss=float("nan") if step % 3 else 4 - step / 10, spike=float("inf"))
    with Recorder(place / "many") as run:
        for step in range(3):
            run.log(step, **{f"metric_{i:04}": float(i) for i in range(2000)})
    Recorder(place / "empty").finish()
    Recorder(place / "failed-one").fail("the loss became NaN")
    shutil.copytree(SHIPPED_RUNS / "induction-demo", place / "demo-seed1")
    info = json.loads((place / "demo-seed1" / "run.json").read_text())
    info |= {"name": "demo-seed1", "params": {**info["params"], "seed": 1}, "shipped": False}
    (place / "demo-seed1" / "run.json").write_text(json.dumps(info))


def visit(**query: str) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    at.query_params.update(query)
    at.run()
    at.switch_page("../pages/training.py")
    at.query_params.update(query)
    return settle(at.run())


def settle(at: AppTest) -> AppTest:
    """Run until no panel waits for a job, and once more: what ended since the last run is seen by no other."""
    for _ in range(12):
        assert not at.exception, [e.value for e in at.exception]
        one = house.backend()
        waiting = one.jobs(states=["queued", "running"])
        if not waiting:
            return at.run()
        for job in waiting:
            one.wait(job["id"], 20)
        at.run()
    return at


def pages_html(at: AppTest) -> str:
    return " ".join(h.proto.body for h in at.get("html") if not h.proto.body.startswith("<style"))


def charts(at: AppTest) -> list[dict[str, Any]]:
    return [json.loads(c.proto.spec) for c in at.get("plotly_chart")]


def names(at: AppTest) -> set[str]:
    return {t.get("name", "") for t in charts(at)[0]["data"]}


@pytest.mark.parametrize(("run", "words"), [
    ("numbers-only", "Not possible for this run"), ("empty", "Nothing was logged"),
    ("failed-one", "Nothing was logged"),
])  # fmt: skip
def test_every_state_says_what_to_do(backend: Backend, run: str, words: str) -> None:
    assert words in pages_html(visit(runs=run))


def test_a_run_of_two_thousand_metrics_draws_four_and_offers_the_rest(backend: Backend) -> None:
    at = visit(runs="many")
    picker = next(m for m in at.multiselect if m.label.startswith("Charts"))
    assert picker.label == "Charts (4 of 2000)" and len(picker.options) == 2000
    assert len([t for t in charts(at)[0]["data"] if t["type"] == "scatter"]) == 4


def test_seeds_are_a_band_or_lines(backend: Backend) -> None:
    both = "induction-demo,demo-seed1"
    assert any(n.startswith("median of 2 seeds") for n in names(visit(runs=both, views="-")))
    assert not any(n.startswith("median") for n in names(visit(runs=both, seeds="lines", views="-")))


def test_a_marker_opens_both_sides_with_their_difference(backend: Backend) -> None:
    found = backend.transitions("induction-demo")
    assert found, "the shipped run has a transition"
    one, steps = found[0], backend.run("induction-demo")["checkpoints"]
    at = visit(runs="induction-demo", marker=str(training_data.whole(one["step"])), views="attention",
               compare="attention,logit_lens", layer="1", head="1")  # fmt: skip
    before, after = max(s for s in steps if s <= one["low"]), min(s for s in steps if s >= one["high"])
    assert any(f"step {before} | step {after}" in m.value for m in at.markdown)
    titles = [[a["text"] for a in c["layout"].get("annotations", [])] for c in charts(at)]
    assert titles.count([f"step {before}", f"step {after}", "difference"]) == 2, titles
    card = backend.card("run:induction-demo", before)
    assert card is not None
    ids = next(t for t in at.text_input if t.label.startswith("Prompt")).value
    key = backend.kept("attention", card, backend.prompt(card.model_dump(), ids=ids))
    drawn = next(c for c in charts(at) if c["layout"].get("annotations", [{}])[-1].get("text") == "difference")
    block = backend.array(key or "", "pattern", {"layer": 1, "head": 1})
    shown = numbers(drawn["data"][0]["z"])  # a later token is not seen: no number, where the block has 0
    assert np.isnan(shown).any() and np.allclose(np.nan_to_num(shown), np.asarray(block, float).ravel(), atol=1e-6)


def numbers(data: Any) -> np.ndarray:
    import base64

    if isinstance(data, dict):
        return np.frombuffer(base64.b64decode(data["bdata"]), dtype=data["dtype"]).astype(float)
    return np.asarray(data, float).ravel()


def test_the_scrubber_moves_the_views_and_the_line(backend: Backend) -> None:
    at = visit(runs="induction-demo", at="300", views="attention")
    assert at.select_slider[0].value == 300 and any("step 300" in m.value for m in at.markdown)
    assert any(s.get("x0") == 300 for s in charts(at)[0]["layout"]["shapes"])
    next(b for b in at.button if b.key == "at-on").click()
    at = settle(at.run())
    assert at.select_slider[0].value == 320 and any("step 320" in m.value for m in at.markdown)


def test_all_missing_steps_are_computed_as_a_sweep(backend: Backend) -> None:
    at = visit(runs="induction-demo", views="head_scores")
    button = next(b for b in at.button if b.label.startswith("Compute all"))
    steps = backend.run("induction-demo")["checkpoints"]
    assert button.label == f"Compute all {len(steps) - 1} missing"
    button.click()
    at = settle(at.run())
    cards = {s: backend.card("run:induction-demo", s) for s in steps}
    kept = [s for s, card in cards.items() if card and backend.kept("head_scores", card, Weights())]
    assert kept == steps and f"{len(steps)} of {len(steps)} steps ready" in pages_html(at)


def test_nine_runs_are_eight(backend: Backend) -> None:
    at = visit(runs=",".join(r["name"] for r in backend.runs()), views="-")
    assert not at.exception and len(names(at)) > 1


def test_a_value_that_does_not_fit_is_said_at_the_button(backend: Backend) -> None:
    at = visit(recipe="induction", runs="empty")
    next(n for n in at.number_input if n.label == "lr").set_value(-1.0)
    next(b for b in at.button if b.label == "Start training").click()
    at.run()
    assert "lr: Input should be greater than 0" in pages_html(at) and "Not started" in pages_html(at)
    assert not backend.jobs(states=["queued", "running"])


def test_a_preset_fills_the_form(backend: Backend) -> None:
    recipe = next(r for r in backend.recipes().values() if any(len(p.runs) == 1 and p.runs[0] for p in r.presets))
    preset = next(p for p in recipe.presets if len(p.runs) == 1 and p.runs[0])
    at = visit(recipe=recipe.name, preset=preset.name, runs="empty")
    shown = {w.label: w.value for w in (*at.number_input, *at.selectbox, *at.slider)}
    for name, value in preset.runs[0].items():
        assert shown[name] == value


def test_a_run_in_none_of_the_charts_is_named(backend: Backend) -> None:
    at = visit(runs="induction-demo,numbers-only", charts="spike", views="-")
    assert any("in none of these charts: induction-demo" in c.value for c in at.caption)
    at = visit(runs="induction-demo,many", views="-")
    assert not any("in none of these charts" in c.value for c in at.caption), "by itself every run is shown"


def test_ten_charts_in_the_address_are_eight(backend: Backend) -> None:
    run = next(r["name"] for r in backend.runs() if len(backend.metric_names(r["name"])) > 20)
    at = visit(runs=run, charts=",".join(backend.metric_names(run)[:10]))
    assert not [h for h in at.get("html") if 'class="ps-problem"' in h.proto.body]


def test_detaching_what_is_gone_is_said(backend: Backend, tmp_path: Path) -> None:
    """Another tab was quicker: a sentence at the top of the page, no exception."""
    from backend.runs.recorder import Recorder

    with Recorder(tmp_path / "far" / "away") as run:
        run.log(1, loss=1.0)
    name = backend.attach(str(tmp_path / "far"))["name"]
    at = visit()
    button = next(b for b in at.button if b.key == f"detach:{name}")
    backend.detach(name)
    button.click().run()
    assert not at.exception and "ps-problem" in pages_html(at)


def test_a_marker_that_moved_since_it_was_drawn_opens_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    from app import training_charts

    chosen: list[float] = []
    monkeypatch.setattr(training_charts, "choose", lambda found: chosen.append(found["step"]))
    found = {"r": [{"step": 100.0}, {"step": 201.3}]}
    training_charts._pick(["mark", "r", 200.1], 200.1, found, {})
    training_charts._pick(["mark", "r", 200.1], 200.1, {"r": []}, {})
    assert chosen == [201.3]


def test_a_run_that_names_no_model_says_so_without_a_red_word(backend: Backend) -> None:
    """Checkpoints of a linear model: curves and weights, nothing that could be opened."""
    from backend.runs.train import train

    small = {"steps": 4, "d_in": 4, "d_out": 2, "n_rows": 20, "batch_size": 4, "log_every": 2}
    train("linear_control", small, backend.settings.runs / "line", False, lambda fraction, words: None)
    backend.follower.poll()
    at = visit(runs="line")
    said = pages_html(at)
    assert "no transformer" in said and "ps-problem" not in said and "Attention at step" not in said


def test_the_same_start_twice_is_one_run(backend: Backend) -> None:
    at = visit(recipe="linear_control")
    before = len(backend.jobs(limit=1000))
    for _ in range(2):
        next(b for b in at.button if b.label == "Start training").click()
        at.run()
        at.query_params["recipe"] = "linear_control"
    assert not at.exception
    assert len([j for j in backend.jobs(limit=1000) if j["kind"] == "train"]) - before <= 1
    for job in backend.jobs(states=["queued", "running"]):
        backend.cancel(job["id"], force=True)


def test_settings_that_a_preset_does_not_vary_are_shared_by_its_runs() -> None:
    source = """
import streamlit as st
from app import training_start
from backend.runs import recipes
recipe = recipes.get("induction")
five = next(p for p in recipe.presets if len(p.runs) > 1)
st.session_state["told"] = training_start._shared(recipe, five)
"""
    at = AppTest.from_string(source, default_timeout=60).run()
    assert at.session_state["told"] == {}
    labels = [n.label for n in at.number_input]
    assert "steps" in labels and "seed" not in labels, "what the runs vary is not offered"
    next(n for n in at.number_input if n.label == "steps").set_value(77).run()
    assert at.session_state["told"] == {"steps": 77}


def test_what_a_run_writes_meanwhile_is_offered(backend: Backend) -> None:
    def page() -> None:
        from app import house
        from app.training_scrub import newer

        newer(house.backend(), "writes-on", 1)

    with Recorder(backend.settings.runs / "writes-on") as run:
        for step, offered in ((0, []), (5, ["Show 1 newer checkpoint"]), (9, ["Show 2 newer checkpoints"])):
            run.log(step, loss=1.0)
            run.checkpoint(step, torch.nn.Linear(2, 2))
            backend.follower.poll()
            at = AppTest.from_function(page).run()
            assert [b.label for b in at.button] == offered
    assert not at.button[0].click().run().exception


def test_the_page_follows_the_first_point_and_the_first_checkpoint() -> None:
    from app.training_runs import stamp

    def run(**more: Any) -> dict[str, Any]:
        return {"a": {"state": "running", "last_step": None, "checkpoints": [], **more}}

    told = [stamp(r, ["a"]) for r in (run(), run(last_step=0), run(last_step=0, checkpoints=[0]))]
    assert told[0] != told[1] != told[2] != told[0]
    assert stamp(run(last_step=3, checkpoints=[0]), ["a"]) == stamp(run(last_step=9, checkpoints=[0, 4]), ["a"])
