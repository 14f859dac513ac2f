"""The app as a user meets it, in a real headless Chromium: `python -m benchmarks.app [--model gpt2-shape] [--n 30]`.

Starts `python -m app` with a cache and runs of its own and prints one markdown table. A click is timed inside the
page: from the browser's own time stamp of the event to the first frame after the pixels of the new figure were drawn.
Prompts are LENGTH random token ids. Before each uncached click the bare library (bare.py) does its part on the same
weights while the app idles, so that a load from elsewhere slows both; `load` is the machine's in the last minute.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bare
from benchmarks.table import Table
from benchmarks.visit import PAGES, SCRIPT, Bare, Visit, build, dashboard, p95, verdict
from tests import browser

LENGTH = 128
TARGET_CACHED, TARGET_OVER = 0.300, (1.5, 0.300)  # s; uncached at most 1.5 x bare + 0.3 s


def prompts(n: int, d_vocab: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(str(draw.randrange(d_vocab)) for _ in range(LENGTH)) for _ in range(n)]


# ---------------------------------------------------------------- what is measured


def starts(chromium: Any, table: Table, n: int) -> None:
    """Start the server n times, each with a fresh cache: to health, and to the first page drawn."""
    health, first = [], []
    for _ in range(n):
        with tempfile.TemporaryDirectory() as place, dashboard(Path(place)) as (server, seconds):
            page = chromium.new_context(viewport={"width": 1440, "height": 900}).new_page()
            began = time.perf_counter()
            page.goto(server.url)
            page.locator('[data-testid="stMainBlockContainer"] h3').first.wait_for(timeout=60_000)
            health.append(seconds)
            first.append(seconds + time.perf_counter() - began)
            page.context.close()
    table.times("server start to health", health)
    table.times("server start to the first page drawn", first, verdict(p95(first), 5.0))


def switches(visit: Visit, table: Table, n: int, when: str = "") -> None:
    names = [name for name in PAGES if name not in ("Attention", "Logit lens")] * n
    spent = [visit.go(name) for name in names[:n]]
    table.times(f"page switch, click to heading{when}", spent, verdict(p95(spent), TARGET_CACHED))


def figures(visit: Visit, table: Table, library: Bare, page: str, what: str, sizes: dict[str, int], n: int) -> None:
    """Click to figure on one page: new prompts, then prompts that were asked before."""
    asked = prompts(n + 2, sizes["d_vocab"], seed=len(page))
    open_at(visit, page, asked[0])
    visit.seconds(what, lambda: visit.ask(asked[1]))
    alone, spent = [], []
    for prompt in asked[2:]:
        visit.idle()
        alone.append(library.seconds(page.lower().replace(" ", "_")))
        spent.append(visit.seconds(what, lambda p=prompt: visit.ask(p)))
    bare_p50, p50 = float(np.median(alone)), float(np.median(spent))
    table.times(f"{page}: bare run_with_cache", alone, "same weights, one thread, the app idle")
    table.times(f"{page}: click to figure, uncached", spent,
                f"{p50 / bare_p50:.2f} x bare; {verdict(p50, TARGET_OVER[0] * bare_p50 + TARGET_OVER[1])}")
    again = []
    for i in range(n):
        visit.idle()
        again.append(visit.seconds(what, lambda p=asked[i % (n + 1)]: visit.ask(p)))
    table.times(f"{page}: click to figure, cached prompt", again, verdict(p95(again), TARGET_CACHED))


def first_opening(visit: Visit, table: Table, n: int) -> dict[str, int]:
    """Open a model that nobody opened before; clicks meanwhile must not wait for its head scores. Returns its sizes."""
    began = time.perf_counter()
    open_at(visit, "Attention", prompts(1, 400, 99)[0], rest=False)
    table.one("Attention: a model never opened, to the figure", f"{time.perf_counter() - began:.1f} s",
              "loading, fidelity, forward")
    sizes = visit.api.get("/models").json()[0]
    if visit.api.get("/health").json()["unfinished"]:
        heads(visit, table, sizes, min(n, 6), ", its head scores being computed")
    visit.idle()
    table.one("Attention: a model never opened, to all at rest", f"{time.perf_counter() - began:.1f} s",
              "head scores too")
    return sizes


def open_at(visit: Visit, page: str, prompt: str, rest: bool = True) -> None:
    name = page.lower().replace(" ", "_")
    visit.page.goto(f"{visit.url}/{name}?model=dir:{visit.folder / 'model'}&tokens={prompt.replace(' ', '+')}")
    visit.page.locator(".psc-cells" if name == "attention" else ".heatmaplayer image").first.wait_for(timeout=180_000)
    if rest:
        visit.idle()


def heads(visit: Visit, table: Table, sizes: dict[str, int], n: int, when: str = "") -> None:
    visit.page.mouse.wheel(0, -10_000)
    spent = []
    layers, heads_ = sizes["n_layers"], sizes["n_heads"]
    for i in range(1, n + 1):
        spent.append(visit.click_head(i * 5 % layers, i % heads_, layers, heads_))
        browser.wait_ready(visit.page)
    table.times(f"Attention: click on a head, cached{when}", spent, verdict(p95(spent), TARGET_CACHED))


def live(visit: Visit, table: Table, n: int) -> None:
    """From the call of log() in another process to the point on the chart."""
    from backend.runs.recorder import Recorder

    run = Recorder(visit.folder / "runs" / "live")
    run.log(0, loss=4.0)
    while not visit.api.get("/runs/live").is_success:
        time.sleep(0.05)
    visit.page.goto(f"{visit.url}/training?runs=live")
    visit.page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=30_000)
    spent = []
    for step in range(1, n + 1):
        time.sleep(random.uniform(0.2, 1.2))  # not in step with the page's own pace
        visit.page.evaluate("(k) => { window.psT0 = 0; psWatch('points', k); }", step + 1)
        began = time.time()
        run.log(step, loss=4.0 - step / 100)
        spent.append(visit.page.evaluate("() => psSeen")[1] / 1e3 - began)
    run.finish()
    table.times("Recorder.log to point on screen", spent, verdict(p95(spent), 2.0))


@contextmanager
def saturated(visit: Visit) -> Iterator[None]:
    """Keep both workers busy with training."""
    jobs = [visit.api.post("/runs", json={"recipe": "induction", "params": {"steps": 20_000, "seed": s}}).json()["job"]
            for s in (7, 8)]  # fmt: skip
    while sum(j["state"] == "running" for j in visit.api.get("/jobs").json()) < 2:
        time.sleep(0.1)
    yield
    for job in jobs:
        visit.api.post(f"/jobs/{job['id']}/cancel", json={"force": True})


def memory(visit: Visit, table: Table, when: str) -> None:
    """Resident memory of the app and of each worker."""
    torch = "torch" if "libtorch" in Path(f"/proc/{visit.process.pid}/maps").read_text() else "no torch"
    table.one(f"resident memory of the app, {when}", resident(visit.process.pid), torch)
    for worker in visit.api.get("/doctor").json()["workers"]:
        holds = "holds the model" if worker["models"] else "holds no model"
        table.one(f"resident memory of a worker, {when}", resident(worker["pid"]), holds)


def resident(pid: int) -> str:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return f"{int(line.split()[1]) / 1024:.0f} MiB"


# ---------------------------------------------------------------- main


def session(visit: Visit, table: Table, n: int) -> None:
    """Everything that needs one running server."""
    memory(visit, table, "idle")
    visit.page.goto(visit.url)
    browser.wait_ready(visit.page)
    switches(visit, table, n)
    sizes = first_opening(visit, table, n)
    library = Bare(visit.folder / "model", LENGTH)
    figures(visit, table, library, "Attention", "figure", sizes, n)
    heads(visit, table, sizes, n)
    figures(visit, table, library, "Logit lens", "lens", sizes, n)
    browser.end(library.process)
    memory(visit, table, "model loaded")
    live(visit, table, n)
    open_at(visit, "Attention", prompts(1, 400, 99)[0])
    with saturated(visit):
        heads(visit, table, sizes, n, ", workers saturated")
        switches(visit, table, n, ", workers saturated")


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", choices=list(bare.SHAPES), default="gpt2-shape")
    asked.add_argument("--n", type=int, default=30, help="repetitions of each measurement")
    chosen = asked.parse_args()
    from playwright.sync_api import sync_playwright

    print(f"\n{chosen.model}, {LENGTH} tokens, {os.cpu_count()} cores\n")  # noqa: T201
    table = Table()
    with sync_playwright() as play, tempfile.TemporaryDirectory() as place:
        chromium = play.chromium.launch(executable_path=browser.executable(), args=browser.FLAGS)
        starts(chromium, table, min(chosen.n, 5))
        build(Path(place) / "model", chosen.model)
        with dashboard(Path(place)) as (server, _):
            page = chromium.new_context(viewport={"width": 1440, "height": 900}).new_page()
            page.add_init_script(SCRIPT)
            session(Visit(page, server, Path(place)), table, chosen.n)
        chromium.close()


if __name__ == "__main__":
    main()
