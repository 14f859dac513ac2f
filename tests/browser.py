"""A real headless Chromium against a real server: what every browser test shares.

`chromium` (session) and `page` (a factory) are fixtures in conftest.py; the helpers here look at one page.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
ARTEFACTS = ROOT / "artefacts"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]
READY = '[data-testid="stApp"][data-test-script-state="notRunning"][data-test-connection-state="CONNECTED"]'
OURS = ("127.0.0.1", "localhost", "")


def executable() -> str | None:
    """Return the Chromium of PHASESCOPE_CHROMIUM or of the system, or None."""
    named = os.environ.get("PHASESCOPE_CHROMIUM", "")
    places = [named] if named else ["/usr/bin/chromium", "/usr/bin/chromium-browser", shutil.which("chromium") or ""]
    return next((p for p in places if p and Path(p).is_file()), None)


# ---------------------------------------------------------------- servers


@dataclass
class Server:
    """A server under test: its address, its process and where it writes."""

    url: str
    process: subprocess.Popen
    log: Path


def free_port() -> int:
    """Return a port that nobody holds now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(
    command: Sequence[str], log: Path, health: str = "/_stcore/health", env: dict[str, str] | None = None,
    timeout: float = 180.0, port: int | None = None,
) -> Iterator[Server]:
    """Run `command` (each `{port}` filled in) from the repository root until the block ends.

    Raises RuntimeError with the end of the log where it ends early or is not healthy in time.
    """
    port = port or free_port()
    full = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PHASESCOPE_PORT": str(port), **(env or {})}
    with log.open("wb") as out:
        process = subprocess.Popen([c.replace("{port}", str(port)) for c in command], cwd=ROOT, env=full, stdout=out,
                                   stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_healthy(server, health, timeout)
        yield server
    finally:
        end(process)


def streamlit(script: Path) -> list[str]:
    """Return the command that runs one Streamlit script with our own configuration."""
    return [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", "{port}"]


def asgi(app: str) -> list[str]:
    """Return the command that runs an ASGI app such as `app.server:app`."""
    return [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]


def wait_healthy(server: Server, path: str, timeout: float) -> None:
    """Wait until `path` answers 200."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(server.url + path, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{server.url}{path} is not healthy:\n{server.log.read_text(errors='replace')[-3000:]}")


def end(process: subprocess.Popen, grace: float = 15.0) -> None:
    """Ask the process to end, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---------------------------------------------------------------- one page


def watch(page: Any) -> Any:
    """Collect console errors, uncaught errors and every request of `page` (in page.ps_errors, page.ps_requests)."""
    page.ps_errors, page.ps_requests = [], []
    page.on("console", lambda m: page.ps_errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.ps_errors.append(str(e)))
    page.on("request", lambda r: page.ps_requests.append(r.url))
    page.on("websocket", lambda w: page.ps_requests.append(w.url))
    return page


def wait_ready(page: Any, timeout: float = 120.0) -> None:
    """Wait until the script has run and the browser has drawn twice since.

    A component loads its code after that: wait for the element you look at too.
    """
    page.wait_for_selector(READY, timeout=timeout * 1000, state="attached")
    page.evaluate("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")


def widen(page: Any, width: int) -> None:
    """Give the window another width and wait until what it shows has followed: the same as opening it so."""
    page.set_viewport_size({"width": width, "height": 900})
    wait_ready(page)
    page.wait_for_function("""() => { const m = document.querySelector('[data-testid="stMain"]') || document.body;
        return m.scrollWidth <= m.clientWidth + 1; }""", timeout=10_000)


def foreign_requests(page: Any) -> list[str]:
    """Return the addresses asked for on other hosts than this machine."""
    schemes = ("http", "https", "ws", "wss")
    return [u for u in page.ps_requests if urlsplit(u).scheme in schemes and urlsplit(u).hostname not in OURS]


def errors(page: Any) -> list[str]:
    """Return console errors, less the two harmless 404s that Streamlit asks for on a sub-page."""
    return [e for e in page.ps_errors if "404" not in e]


def no_exception(page: Any) -> None:
    """Assert that no exception box and no broken component is on the page."""
    boxes = page.locator('[data-testid="stException"], [data-testid="stBidiComponentError"]')
    assert boxes.count() == 0, boxes.first.inner_text()


def no_sideways_scroll(page: Any) -> None:
    """Assert that the page as a whole fits its width."""
    wide, room = page.evaluate("""() => { const m = document.querySelector('[data-testid="stMain"]') || document.body;
        return [m.scrollWidth, m.clientWidth]; }""")
    assert wide <= room + 1, f"the page is {wide} px wide in a window of {room} px"


def screenshot(page: Any, name: str, full: bool = False) -> Path:
    """Keep a picture as artefacts/<name>.png and return its path."""
    ARTEFACTS.mkdir(exist_ok=True)
    path = ARTEFACTS / f"{name}.png"
    if full:  # Streamlit scrolls inside itself, so the window grows to the content
        tall = page.evaluate("""() =>
            (document.querySelector('[data-testid="stMain"]') || document.body).scrollHeight""")
        before = page.viewport_size
        page.set_viewport_size({"width": before["width"], "height": max(before["height"], min(int(tall) + 80, 6000))})
        wait_ready(page)
    page.screenshot(path=str(path))
    if full:
        page.set_viewport_size(before)
    return path
