"""Figures as image files, made by a headless Chromium of this machine; nothing is asked of another host."""

from __future__ import annotations

import os
import shutil
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZE = {"width": 1100, "height": 650}


def browser() -> str | None:
    """Return the Chromium or Chrome that draws pictures, or None."""
    named = os.environ.get("BROWSER_PATH") or os.environ.get("PHASESCOPE_CHROMIUM")
    return named or next((found for name in BROWSERS if (found := shutil.which(name))), None)


def image(figure: Any, form: str) -> bytes:
    """Return a figure as PNG (twice the pixels) or SVG, on white with dark text."""
    import kaleido

    fixed = figure.to_plotly_json()
    fixed["layout"] = {**fixed["layout"], "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff"}
    opts = {**SIZE, "format": form, "scale": 2 if form == "png" else 1}
    # plotly's own to_image cannot turn off MathJax, which kaleido loads from a CDN
    return kaleido.calc_fig_sync(fixed, opts=opts, kopts={"mathjax": False})
