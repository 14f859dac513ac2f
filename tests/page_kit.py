"""What tests of pages by AppTest share: a house for the app, visiting, waiting until nothing runs, what is said."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from streamlit.testing.v1 import AppTest

from app import house
from backend import Backend
from backend.settings import ROOT
from tests import tiny_models


@contextmanager
def settled_house(folder: Path) -> Iterator[Backend]:
    """A backend that computes in this process, which the app finds as its own."""
    one = Backend(tiny_models.settings(folder, dtype="float32"), inline=True)
    house.settle(one)
    one.follower.poll()
    try:
        yield one
    finally:
        house.settle(None)
        one.close()


def visit(page: str, **query: str) -> AppTest:
    """Open a page's file, or the page that an analysis gets for nothing, and wait until it is whole."""
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=90)
    at.run()
    at.switch_page(f"../pages/{page}.py")
    at.query_params.update(query)
    return settle(at.run())


def settle(at: AppTest) -> AppTest:
    """Wait until no job is left and the page has seen it."""
    for _ in range(8):
        assert not at.exception, [e.value for e in at.exception]
        waiting = house.backend().jobs(states=["queued", "running"])
        if not waiting:
            return at.run()
        for job in waiting:
            house.backend().wait(job["id"], 120)
        at.run()
    raise AssertionError("jobs go on")


def said(at: AppTest) -> str:
    """Return the page's HTML and captions, joined."""
    return " ".join([h.proto.body for h in at.get("html")] + [c.value for c in at.caption])


def numbers(drawn: dict[str, str]) -> list[float]:
    """Read an array as plotly's JSON has it."""
    return np.frombuffer(base64.b64decode(drawn["bdata"]), drawn["dtype"]).tolist()
