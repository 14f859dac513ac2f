"""Fixtures of all tests. Browser tests skip, saying why, where there is no Chromium; .ci/run then fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium for the whole session."""
    where = browser.executable()
    if where is None:
        if os.environ.get("PHASESCOPE_REQUIRE_BROWSER"):
            pytest.fail("no Chromium, and PHASESCOPE_REQUIRE_BROWSER is set: install the package chromium")
        pytest.skip("no Chromium: install the package chromium or set PHASESCOPE_CHROMIUM")
    try:
        from playwright import sync_api as playwright
    except ImportError:
        if os.environ.get("PHASESCOPE_REQUIRE_BROWSER"):
            pytest.fail("playwright is not installed, and PHASESCOPE_REQUIRE_BROWSER is set")
        pytest.skip("playwright is not installed")
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=where, args=browser.FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def window(chromium: Any) -> Iterator[Any]:
    """One browser profile for all pages, so that Streamlit's own megabytes are read once and not for every page."""
    context = chromium.new_context()
    context.set_default_timeout(120_000)  # a ceiling, for a machine that reads everything for the first time
    yield context
    context.close()


@pytest.fixture
def page(window: Any) -> Iterator[Callable[..., Any]]:
    """A factory: `page(url, width=1440, height=900, dark=False)` opens a watched page and waits until it is ready."""
    pages: list[Any] = []

    def open_page(url: str, width: int = 1440, height: int = 900, dark: bool = False, wait: bool = True) -> Any:
        new = browser.watch(window.new_page())
        pages.append(new)
        new.set_viewport_size({"width": width, "height": height})
        new.emulate_media(color_scheme="dark" if dark else "light")
        new.goto(url)
        if wait:
            browser.wait_ready(new)
        return new

    yield open_page
    for one in pages:
        one.close()
    window.clear_cookies()
