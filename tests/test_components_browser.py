"""The components in a real Chromium: what is drawn is what was given, a click comes back, nothing goes out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from app import static_files
from tests import browser

pytestmark = pytest.mark.browser

#: the colour at CSS px (x, y) of a canvas
PIXEL = """(canvas, [x, y]) => { const r = canvas.width / canvas.clientWidth;
  return [...canvas.getContext('2d').getImageData(Math.floor(x * r), Math.floor(y * r), 1, 1).data].slice(0, 3); }"""
#: ms from the start of our own code (or of CircuitsVis.render) until the picture stands and two frames have passed
PAINT = """async ([name, selector, n]) => {
  const frame = () => new Promise(requestAnimationFrame);
  const inked = (c) => c.width > 0 && c.height > 0 &&
    new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer).some((w) => w);
  for (;;) {
    const done = performance.getEntriesByName(name), seen = [...document.querySelectorAll(selector)];
    if (done.length && seen.length >= n && seen.every(inked)) {
      await frame(); await frame();
      return performance.now() - done[0].startTime;
    }
    await frame();
  }
}"""
#: words that do not fit their place
CUT = """() => ['stWidgetLabel', 'stMetricLabel', 'stMetricValue'].flatMap((id) =>
    [...document.querySelectorAll(`[data-testid="${id}"], [data-testid="${id}"] *`)])
  .concat([...document.querySelectorAll('.psc-chip, .ps-badge')])
  .filter((e) => getComputedStyle(e).overflow !== 'visible' && e.scrollWidth > e.clientWidth + 1)
  .map((e) => e.textContent)"""
DARKEST, BRIGHTEST = [68, 1, 84], [253, 231, 37]  # the ends of viridis


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gallery on a port of its own, with a static folder beside it as the app has one."""
    folder = tmp_path_factory.mktemp("gallery")
    shutil.copy(browser.ROOT / "tests" / "gallery_app.py", folder / "main.py")
    static_files.publish(folder / "static")
    with browser.serve(browser.streamlit(folder / "main.py"), folder / "log.txt") as server:
        yield server.url


def fine(view) -> None:
    """Assert what holds for every page."""
    browser.no_exception(view)
    browser.no_sideways_scroll(view)
    assert browser.foreign_requests(view) == []
    assert browser.errors(view) == []


def cell(view, layer: int, head: int, n_heads: int) -> dict[str, float]:
    """Return the middle of a head's thumbnail inside the canvas."""
    side = view.locator(".psc-cells").bounding_box()["width"] / n_heads
    return {"x": (head + 0.5) * side, "y": (layer + 0.5) * side}


def says(view, text: str) -> None:
    view.get_by_text(text, exact=True).wait_for(timeout=120_000)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_fits_in_both_themes(page, gallery, dark):
    view = page(gallery, dark=dark)
    for part in (".psc-cells", ".psc-map", ".psc-chip", ".main-svg"):
        view.wait_for_selector(part)
    for width in (1440, 800):
        browser.widen(view, width)
        browser.screenshot(view, f"gallery_{width}_{'dark' if dark else 'light'}", full=True)
        fine(view)
        assert view.evaluate(CUT) == []
    page_colour, caption = view.evaluate("""() => [getComputedStyle(document.querySelector('[data-testid="stApp"]')),
        getComputedStyle(document.querySelector('.psc-cols'))].map((s, i) => i ? s.color : s.backgroundColor)""")
    assert (page_colour, caption) == (("rgb(17, 23, 27)", "rgb(226, 233, 236)") if dark else
                                      ("rgb(255, 255, 255)", "rgb(27, 36, 41)"))


def test_a_click_on_the_grid_is_that_head_and_stays(page, gallery):
    view = page(gallery + "?show=grid")
    view.wait_for_selector(".psc-cells")
    browser.wait_ready(view)  # the canvas takes its final size one frame after it is there
    view.locator(".psc-cells").click(position=cell(view, 7, 4, 12))
    says(view, "chosen head L7H4")
    browser.wait_ready(view)
    assert view.locator(".psc[data-selected='7,4']").count() == 1
    view.locator(".psc-cells").click(position=cell(view, 0, 11, 12))
    says(view, "chosen head L0H11")


def test_arrow_keys_move_the_head_and_stop_at_the_edge(page, gallery):
    view = page(gallery + "?show=grid")
    view.locator(".psc-box").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp"):
        view.keyboard.press(key)
    says(view, "chosen head L0H4")


def test_hover_names_the_head_and_its_label(page, gallery):
    view = page(gallery + "?show=grid")
    for (layer, head), words in {(5, 1): ["L5H1", "induction 0.94"], (0, 0): ["L0H0", "entropy 2.3 nats"]}.items():
        view.locator(".psc-cells").hover(position=cell(view, layer, head, 12))
        assert view.locator(".psc-tip").inner_text().split("\n") == words


def test_one_head_and_3072_heads(page, gallery):
    view = page(gallery + "?show=grid&layers=1&heads=1")
    view.locator(".psc-cells").click(position=cell(view, 0, 0, 1))
    fine(view)
    view = page(gallery + "?show=grid&layers=48&heads=64", width=800)
    view.wait_for_selector(".psc-cells")
    fine(view)
    wide, room = view.locator(".psc-box").evaluate("b => [b.scrollWidth, b.clientWidth]")
    assert wide > room, "64 heads scroll inside their own box"
    view.evaluate("() => document.querySelector('.psc-box').scrollTo(1e5, 1e5)")
    browser.screenshot(view, "grid_48x64_scrolled")
    x, y = view.evaluate("""() => { const b = document.querySelector('.psc-box').getBoundingClientRect();
        return [b.right - 12, b.bottom - 12]; }""")
    view.mouse.click(x, y)
    says(view, "chosen head L47H63")


def test_the_large_map_is_viridis_of_the_values(page, gallery):
    view = page(gallery + "?show=pattern&n=24")
    view.wait_for_selector(".psc-map")
    canvas = view.locator(".psc-map")
    box = view.evaluate("""() => { const m = document.querySelector('.psc').ps; return m.box(); }""")
    at = lambda i, j: [box["x"] + (j + 0.5) * box["cell"], box["y"] + (i + 0.5) * box["cell"]]  # noqa: E731
    assert canvas.evaluate(PIXEL, at(0, 0)) == BRIGHTEST, "the first token can only look at itself"
    assert canvas.evaluate(PIXEL, at(3, 20)) == DARKEST, "nothing looks ahead"
    view.locator(".psc-over").hover(position=dict(zip("xy", at(2, 1), strict=True)))
    told = ["0.123 attention weight", "query 2 ·to", "key 1 ·keys",
            "rank 2 of this query's keys (0: the largest)"]  # 0.216, 0.66 above
    assert view.locator(".psc-tip").inner_text().split("\n") == told
    browser.screenshot(view, "pattern_hover")
    view.locator(".psc-over").click(position=dict(zip("xy", at(9, 4), strict=True)))
    says(view, "chosen cell {'query': 9, 'key': 4}")
    fine(view)


def test_1024_tokens_are_pooled_and_said(page, gallery):
    view = page(gallery + "?show=pattern&n=1024", width=500)
    says(view, "512 of 1024 queries, 512 of 1024 keys: each cell is the largest of several")
    canvas, box = view.locator(".psc-map"), view.evaluate("() => document.querySelector('.psc').ps.box()")
    assert box["cell"] < 1.1, "about one screen pixel per cell"
    assert canvas.evaluate(PIXEL, [box["x"] + 0.5, box["y"] + 0.5]) == BRIGHTEST, "the first cell is not lost"
    assert canvas.evaluate(PIXEL, [box["x"] + 0.9 * box["w"], box["y"] + 0.1 * box["h"]]) == DARKEST
    browser.screenshot(view, "pattern_1024")
    fine(view)


def test_a_click_on_a_chip_is_that_token_and_white_space_is_seen(page, gallery):
    view = page(gallery + "?show=tokens&n=1024")
    chips = view.locator(".psc-chip")
    chips.nth(1023).wait_for()
    assert chips.count() == 1024
    assert chips.nth(1).inner_text() == "·keys"
    assert "⏎" in chips.all_inner_texts()
    chips.nth(5).hover()
    assert view.locator(".psc-tip").inner_text().split("\n") == ["5 ·cabinet", "entropy 0.920 nats"]
    chips.nth(700).click()
    says(view, "chosen token 700")
    assert view.locator(".psc-chip.psc-on").count() == 1
    fine(view)


def test_circuitsvis_draws_16_tokens_from_our_own_server(page, gallery):
    view = page(gallery + "?show=circuitsvis&n=16")
    assert view.evaluate(PAINT, ["phasescope:circuitsvis", ".psc-circuitsvis canvas", 4]) > 0
    browser.screenshot(view, "circuitsvis_16")
    assert any("/app/static/circuitsvis.iife.js" in u for u in view.ps_requests)
    fine(view)


def test_the_canvas_paints_128_tokens_sooner_than_circuitsvis_48(page, gallery):
    """Seven times the cells; the same clock in the same browser."""
    peer = page(gallery + "?show=peer&n=48").evaluate(PAINT, ["phasescope:circuitsvis", ".psc-circuitsvis canvas", 12])
    view = page(gallery + "?show=twelve&n=128")
    ours = view.evaluate(PAINT, ["phasescope:heads", ".psc-cells, .psc-map", 2])
    print(f"paint: canvas 12 x 128 {ours:.0f} ms, CircuitsVis 12 x 48 {peer:.0f} ms")
    whole = view.evaluate("() => performance.now()")
    print(f"from the first byte of the page to now: {whole:.0f} ms")
    browser.screenshot(view, "twelve_128")
    assert 3 * ours < peer
