"""Bytes that a page sends to the browser per interaction, for a long prompt on a model of GPT-2's shape.

`python -m benchmarks.payload FOLDER [TOKENS]`: FOLDER holds a model (`python -m benchmarks.bare build FOLDER
gpt2-shape`). Headless Chromium counts by the DevTools protocol: bodies as they came over the wire, and the payload of
WebSocket frames. The app's own code (scripts, styles, fonts) is cached by the browser after the first page and is told
apart. The promise: at most 2 MB of data per interaction.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.visit import Visit, dashboard
from tests import browser

PROMISE = 2e6  # bytes
LARGE = 50_000  # bytes; messages of more are told one by one
GRID, PLOT = ".psc-cells", ".js-plotly-plot"
CODE = ("/static/", "/_stcore/health", ".js", ".css", ".woff2", ".svg")


class Wire:
    """Counts what arrives at a page since the last `reset`: `data` and `code` in bytes, `frames` bytes by message."""

    def __init__(self, page: Any):
        self.session, self.url = page.context.new_cdp_session(page), {}
        self.reset()
        self.session.send("Network.enable")
        self.session.on("Network.requestWillBeSent", lambda e: self.url.update({e["requestId"]: e["request"]["url"]}))
        self.session.on("Network.loadingFinished", self._finished)
        self.session.on("Network.webSocketFrameReceived", self._frame)

    def reset(self) -> None:
        self.data = self.code = 0
        self.frames: list[int] = []

    def _finished(self, event: dict[str, Any]) -> None:
        size, path = int(event["encodedDataLength"]), self.url.get(event["requestId"], "").split("?")[0]
        if any(c in path for c in CODE):
            self.code += size
        else:
            self.data += size

    def _frame(self, event: dict[str, Any]) -> None:
        response = event["response"]
        size = len(response["payloadData"]) * (3 / 4 if response["opcode"] == 2 else 1)  # binary comes as base64
        self.data += int(size)
        self.frames.append(int(size))


def settle(visit: Visit, shown: str) -> None:
    """Wait until the element `shown` is there, no job is under way, and a while more; a price is agreed to."""
    button = visit.page.get_by_role("button", name="Compute (about")
    visit.page.locator(shown).first.or_(button.first).first.wait_for(timeout=600_000)
    if button.count():
        button.first.click()
    visit.page.wait_for_selector(shown, timeout=600_000)
    visit.idle(600)
    visit.page.wait_for_timeout(3000)
    visit.idle(600)


def measured(visit: Visit, wire: Wire, words: str, act: Callable[[], Any], shown: str) -> None:
    """Print the bytes of one interaction."""
    wire.reset()
    began = time.monotonic()
    act()
    settle(visit, shown)
    kept = "kept" if wire.data <= PROMISE else "MISSED"
    large = [f"{n / 1e6:.3f}" for n in sorted(wire.frames, reverse=True) if n >= LARGE]
    small = sum(n for n in wire.frames if n < LARGE) / 1e6
    found = f"{wire.data / 1e6:7.3f} MB  ({' '.join(large)}; {len(wire.frames) - len(large)} messages of {small:.3f}; "
    found += f"code {wire.code / 1e6:.2f})"
    print(f"{words:34s} {found}  {kept}  {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201


def main(folder: str, length: int = 1024) -> None:
    """Open the pages one after the other, then click."""
    from playwright.sync_api import sync_playwright

    dice = random.Random(0)
    prompt = {
        "model": f"dir:{Path(folder).resolve()}",
        "tokens": " ".join(str(dice.randrange(50257)) for _ in range(length)),
    }
    with tempfile.TemporaryDirectory() as place, dashboard(Path(place)) as (server, _), sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser.executable(), args=browser.FLAGS)
        page = browser.watch(chromium.new_page(viewport={"width": 1440, "height": 900}))
        visit, wire = Visit(page, server, Path(place)), Wire(page)

        def goto(path: str, **more: str) -> Callable[[], Any]:
            return lambda: page.goto(f"{server.url}/{path}?{urlencode(prompt | more)}")

        for words, path, shown in (("Attention", "attention", GRID), ("Logit lens", "logit_lens", PLOT)):
            for how in ("computing", "kept"):
                measured(visit, wire, f"opening {words}, {how}", goto(path), shown)
                browser.screenshot(page, f"payload-{path}-{how}")
        measured(visit, wire, "opening Attention flow", goto("attention_flow"), PLOT)
        measured(visit, wire, "another layer of Attention flow", goto("attention_flow", layer="5"), PLOT)
        page.goto(f"{server.url}/attention?{urlencode(prompt)}")
        settle(visit, GRID)
        box = page.locator(GRID).bounding_box()
        click = lambda: page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 5)  # noqa: E731
        measured(visit, wire, "another head", click, GRID)
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) for a in sys.argv[2:3]))
