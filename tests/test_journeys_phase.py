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
    found.locator(".barlayer .point").first.wait_for(timeout=120_000)
    browser.wait_ready(page, 60)
    return found


def test_a_click_on_a_cell_shows_its_runs(house: Any, page: Any) -> None:
    """Clicked on a narrow page, looked at there and on a wide one."""
    opened = rest(page, f"{house.url}/phase_diagram?diagram=planted&late=500", width=800)
    cell = plot(opened).locator(".barlayer .point path").nth(2)  # cell x1y0, whose seeds disagree
    cell.scroll_into_view_if_needed()  # on a narrow page the diagram stands below its controls
    box = cell.bounding_box()
    opened.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    until(lambda: "cell=x1y0" in address(opened), "the cell in the address")
    opened.get_by_text("lr = 0.2, weight_decay = 0").first.wait_for(timeout=120_000)
    opened.get_by_text("seed 1, test accuracy").first.wait_for(timeout=120_000)
    opened.locator(".js-plotly-plot").first.locator(".shapelayer path").first.wait_for(timeout=120_000)  # its outline
    faded = opened.locator(".js-plotly-plot").first.locator(".scatterlayer text").evaluate_all(
        "texts => texts.filter(t => getComputedStyle(t).fillOpacity < 1 || getComputedStyle(t).opacity < 1).length")
    assert faded == 0, "labels fade when a cell is chosen"
    opened.get_by_role("link", name="Open these runs in Training").wait_for()
    browser.wait_ready(opened, 60)
    for width in (800, 1440):
        browser.widen(opened, width)
        browser.screenshot(opened, f"phase-diagram-cell-{width}", full=True)
        clean(opened)


SMALL = {"lr": "0.001, 0.01", "weight_decay": "0, 0.1", "steps": "4000", "d_in": "8", "d_out": "2", "n_rows": "64"}


def test_start_cancel_and_continue(house: Any, page: Any) -> None:
    opened = rest(page, f"{house.url}/phase_diagram?tab=new&recipe=linear_control")
    fill(opened, "Values of lr", SMALL["lr"])
    fill(opened, "Values of weight_decay", SMALL["weight_decay"])
    fill(opened, "Name", "small")
    opened.get_by_text("Params shared by all runs").click()
    for param in ("steps", "d_in", "d_out", "n_rows"):
        fill(opened, param, SMALL[param])
    opened.get_by_role("button", name="Start 8 runs").click()
    opened.get_by_role("button", name="Cancel").wait_for(timeout=120_000)
    until(lambda: len(ended(house.runs)) >= 2, "two finished runs", 90)
    plot(opened)
    browser.screenshot(opened, "phase-diagram-running", full=True)
    opened.get_by_role("button", name="Cancel").click()
    more = opened.get_by_role("button", name="that are missing")
    more.wait_for(timeout=120_000)
    kept = ended(house.runs)
    assert 2 <= len(kept) < 8, "nothing was left to cancel"
    browser.screenshot(opened, "phase-diagram-cancelled", full=True)
    more.click()
    opened.get_by_text("8 of 8 runs").first.wait_for(timeout=120_000)
    assert ended(house.runs).items() >= kept.items(), "what was done was trained again"
    plot(opened)
    browser.screenshot(opened, "phase-diagram-done", full=True)
    clean(opened)


def fill(opened: Any, label: str, text: str) -> None:
    """Write into a field and leave it."""
    field = opened.get_by_label(label, exact=True)
    field.fill(text)
    field.press("Enter")
    browser.wait_ready(opened, 60)


def ended(runs: Path) -> dict[str, float]:
    """The finished runs of the diagram and when they were last written."""
    files = runs.glob("small.*/metrics.jsonl")
    return {f.parent.name: f.stat().st_mtime for f in files if b'"finished"' in f.read_bytes()}
