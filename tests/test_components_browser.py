"""The components in a real Chromium: what is drawn is what was given, a click comes back, nothing leaves the machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from app import static_files
from tests import browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gallery on a port of its own, with a static folder beside it as the app has one."""
    folder = tmp_path_factory.mktemp("gallery")
    shutil.copy(browser.ROOT / "tests" / "gallery_app.py", folder / "main.py")
    static_files.publish(folder / "static")
    with browser.serve(browser.streamlit(folder / "main.py"), folder / "log.txt") as server:
        yield server.url


def fine(page) -> None:
    browser.no_exception(page)
    browser.no_sideways_scroll(page)
    assert browser.foreign_requests(page) == []
    assert browser.errors(page) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800])
def test_gallery_fits(page, gallery, width, dark):
    view = page(gallery, width=width, dark=dark)
    view.wait_for_selector(".psc-map")
    view.wait_for_selector(".main-svg")
    browser.wait_ready(view)
    browser.screenshot(view, f"gallery_{width}_{'dark' if dark else 'light'}", full=True)
    fine(view)
