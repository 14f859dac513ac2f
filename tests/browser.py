"""A real headless Chromium against a real server: what every browser test shares.

`chromium` (session) and `page` (a factory) are fixtures in conftest.py; the helpers here look at one page.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
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


@contextmanager
def slow_line(url: str, delay: float) -> Iterator[str]:
    """Pass every byte to and from the server at `url` on after `delay` seconds; give the address to open instead."""
    port, target, loop = free_port(), urlsplit(url), asyncio.new_event_loop()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_connection(target.hostname, target.port)
        with suppress(asyncio.CancelledError):  # the block has ended; to asyncio it would be an error to report
            await asyncio.gather(_later(reader, far[1], delay), _later(far[0], writer, delay), return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(asyncio.start_server(one, target.hostname, port), loop).result()
    try:
        yield f"http://{target.hostname}:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(_end_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass on what comes, in its order, each piece `delay` seconds after it came."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def send() -> None:
        while True:
            due, piece = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not piece:
                return writer.close()
            writer.write(piece)
            await writer.drain()

    sending, piece = asyncio.ensure_future(send()), b"-"
    while piece:
        piece = await reader.read(65536)
        queue.put_nowait((loop.time() + delay, piece))
    await sending


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
