"""A phase diagram in a real Chromium: start it, see cells fill in, cancel, continue, click a cell for its curves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import browser
from tests.test_facade_diagrams import planted
from tests.test_journeys import address, clean, rest, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Server]:
    folder = tmp_path_factory.mktemp("phases")
    planted(folder / "runs")
    env = {"PHASESCOPE_CACHE": str(folder / "cache"), "PHASESCOPE_RUNS": str(folder / "runs"),
           "PHASESCOPE_WORKERS": "1"}  # fmt: skip
    with browser.serve([sys.executable, "-m", "app"], folder / "log", env=env) as server:
        server.runs = folder / "runs"  # type: ignore[attr-defined]
        yield server


def plot(page: Any) -> Any:
    """The diagram, drawn."""
    found = page.locator(".js-plotly-plot").first
    found.locator(".barlayer .point").first.wait_for(timeout=40_000)
    browser.wait_ready(page, 60)
    return found


@pytest.mark.parametrize("width", [1440, 800])
def test_a_click_on_a_cell_shows_its_runs(house: Any, page: Any, width: int) -> None:
    opened = rest(page, f"{house.url}/phase_diagram?diagram=planted&late=500", width=width)
    box = plot(opened).locator(".barlayer .point path").nth(2).bounding_box()  # cell x1y0, whose seeds disagree
    opened.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    until(lambda: "cell=x1y0" in address(opened), "the cell in the address")
    opened.get_by_text("lr = 0.2, weight_decay = 0").first.wait_for(timeout=20_000)
    opened.get_by_text("seed 1, test accuracy").first.wait_for(timeout=20_000)
    opened.get_by_role("link", name="Open these runs in Training").wait_for()
    browser.wait_ready(opened, 60)
    browser.screenshot(opened, f"phase-diagram-cell-{width}", full=True)
    clean(opened)


def test_start_cancel_and_continue(house: Any, page: Any) -> None:
    opened = rest(page, f"{house.url}/phase_diagram?tab=new&recipe=linear_control")
    opened.get_by_label("Name", exact=True).fill("small")
    opened.get_by_label("Name", exact=True).press("Enter")
    browser.wait_ready(opened, 60)
    opened.get_by_role("button", name="Start 18 runs").click()
    opened.get_by_role("button", name="Cancel").wait_for(timeout=40_000)
    finished(opened, house.runs)
    browser.screenshot(opened, "phase-diagram-running", full=True)
    opened.get_by_role("button", name="Cancel").click()
    more = opened.get_by_role("button", name="that are missing")
    more.wait_for(timeout=60_000)
    kept = {f.parent.name for f in Path(house.runs).glob("small.*/run.json")}
    assert kept, "what was done is gone"
    more.click()
    opened.get_by_role("button", name="Cancel").wait_for(timeout=40_000)
    opened.get_by_role("button", name="Cancel").click()
    clean(opened)


def finished(opened: Any, runs: Path) -> None:
    """Wait until one run of the diagram has ended and its cell is drawn."""
    ends = lambda: [f for f in runs.glob("small.*/metrics.jsonl") if b'"finished"' in f.read_bytes()]  # noqa: E731
    until(ends, "a finished run", 90)
    opened.get_by_text("of 18 runs").first.wait_for()
    plot(opened)
