"""What the app's benchmark drives with: a page with clocks in it, a dashboard of its own, the bare library, a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests import browser

PAGES = {"Models": "Models", "Attention": "Attention", "Logit lens": "Logit lens", "Training": "Training",
         "Results": "Results", "Jobs": "Jobs", "Glossary": "Glossary", "Home": "Phasescope"}  # fmt: skip
SCRIPT = (Path(__file__).parent / "clicks.js").read_text(encoding="utf-8")


def verdict(found: float, limit: float) -> str:
    """Say whether a figure (s) keeps its promise."""
    return f"{'kept' if found <= limit else 'MISSED'}: {found * 1e3:.0f} of {limit * 1e3:.0f} ms"


def p95(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 95))


# ---------------------------------------------------------------- in the browser


class Visit:
    """One open page and the server's API beside it."""

    def __init__(self, page: Any, server: browser.Server, folder: Path):
        self.page, self.url, self.folder, self.process = page, server.url, folder, server.process
        token = json.loads((folder / "cache" / "api.json").read_text())["token"]
        self.api = httpx.Client(base_url=f"{server.url}/api/v1", headers={"Authorization": f"Bearer {token}"},
                                timeout=60, trust_env=False)  # fmt: skip

    def seconds(self, what: str, act: Callable[[], Any], wanted: Any = None, timeout: float = 60.0) -> float:
        """Return the seconds from the click of `act` until the state `what` has changed (or is `wanted`) on screen."""
        self.page.evaluate("([what, wanted]) => psWatch(what, wanted)", [what, wanted])
        act()
        self.page.set_default_timeout(timeout * 1000)
        return self.page.evaluate("() => psSeen")[0] / 1e3

    def idle(self, timeout: float = 180.0) -> None:
        """Wait until no job is under way and the page is at rest."""
        end = time.monotonic() + timeout
        while self.api.get("/health").json()["unfinished"] and time.monotonic() < end:
            time.sleep(0.1)
        browser.wait_ready(self.page, timeout)

    def ask(self, prompt: str) -> None:
        field = self.page.get_by_role("textbox", name="Prompt (token ids)")
        field.fill(prompt)
        field.press("Enter")

    def go(self, name: str) -> float:
        link = self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True)
        return self.seconds("page", link.click, PAGES[name])

    def click_head(self, layer: int, head: int, layers: int, heads: int) -> float:
        box = self.page.locator(".psc-cells").bounding_box()
        x, y = box["x"] + box["width"] * (head + 0.5) / heads, box["y"] + box["height"] * (layer + 0.5) / layers
        return self.seconds("head", lambda: self.page.mouse.click(x, y))


@contextmanager
def dashboard(folder: Path) -> Iterator[tuple[browser.Server, float]]:
    """`python -m app` with its own cache and runs; also the seconds from the process' start to health."""
    env = {f"PHASESCOPE_{n.upper()}": str(folder / n) for n in ("cache", "runs")} | {"PHASESCOPE_WORKERS": "2"}
    began = time.perf_counter()
    with browser.serve([sys.executable, "-m", "app"], folder / "log", env=env) as server:
        yield server, time.perf_counter() - began


class Bare:
    """The bare library on the same weights in a process of its own (bare.py); idle but for one answer at a time."""

    def __init__(self, folder: Path, length: int):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare", "serve", str(folder), str(length)], cwd=browser.ROOT, env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)  # fmt: skip
        for what in ("attention", "logit_lens") * 2:
            self.seconds(what)

    def seconds(self, what: str) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(what + "\n")
        return float(self.process.stdout.readline())


def build(folder: Path, shape: str) -> None:
    """Write the random model, in a process that then ends."""
    subprocess.run([sys.executable, "-m", "benchmarks.bare", "build", str(folder), shape], cwd=browser.ROOT, check=True,
                   stderr=subprocess.DEVNULL)  # fmt: skip
