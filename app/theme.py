"""How Phasescope looks: colours, the one style sheet, and how numbers are written.

The colours of widgets and charts live in `.streamlit/config.toml`; the ones here are for what we draw ourselves.
"""

from __future__ import annotations

import html
import math
from datetime import UTC, datetime
from typing import Any

import streamlit as st

ACCENT = {"light": "#0F6E84", "dark": "#4FB3C9"}
TEXT = {"light": "#1B2429", "dark": "#E2E9EC"}
MUTED = {"light": "#5B6B74", "dark": "#93A3AC"}
LINE = {"light": "#D9E1E5", "dark": "#2E3A42"}
#: Okabe and Ito (2008), colour-blind safe; black left out because it would vanish on a dark page
CATEGORICAL = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
#: the same for lines on a light page, where that yellow cannot be seen
LINES = tuple("#A39A00" if c == "#F0E442" else c for c in CATEGORICAL)
SEQUENTIAL = (
    "#440154", "#482878", "#3E4989", "#31688E", "#26828E", "#1F9E89", "#35B779", "#6ECE58", "#B5DE2B", "#FDE725",
)
DIVERGING = (
    "#053061", "#2166AC", "#4393C3", "#92C5DE", "#E3EEF4", "#FAE9DF", "#F4A582", "#D6604D", "#B2182B", "#67001F",
)
#: a null or control behind a measured value
NULL = "#8C8C8C"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', Arial, sans-serif"
THIN = "\u2009"
KINDS = ("neutral", "accent", "good", "warn", "bad")


def dark() -> bool:
    """Say whether the visitor's page is dark now (False outside a browser)."""
    return getattr(st.context.theme, "type", None) == "dark"


def style() -> None:
    """Inject the style sheet; call once per page, before anything else."""
    chosen = getattr(st.context.theme, "type", None)
    # the visitor's choice in the menu wins over the system's; before it is known the system's holds
    known = f":root {{ {_VARIABLES[chosen]} }}" if chosen in _VARIABLES else ""
    st.html(f"<style>:root {{ {_VARIABLES['light']} }} "
            f"@media (prefers-color-scheme: dark) {{ :root {{ {_VARIABLES['dark']} }} }} {known}{CSS}</style>")


def badge(text: str, kind: str = "neutral", title: str = "") -> str:
    """Return a small label as HTML for `st.html` or `unsafe_allow_html`; kind is one of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"badge kind {kind!r}, not one of {KINDS}")
    hint = f' title="{html.escape(title)}"' if title else ""
    return f'<span class="ps-badge ps-{kind}"{hint}>{html.escape(text)}</span>'


def anchor(address: str, inside: str) -> str:
    """Return a link to an address of this app around HTML, for where no widget can stand: in the cell of a table."""
    return f'<a class="ps-link" href="{html.escape(address)}">{inside}</a>'


def badges(items: list[tuple[str, str]]) -> None:
    """Show a row of (text, kind) badges."""
    st.html('<div class="ps-row">' + "".join(badge(text, kind) for text, kind in items) + "</div>")


# ---------------------------------------------------------------- numbers and times


def number(x: Any) -> str:
    """Write x with 3 significant digits: 0.0312, 12.3, 4 560, 1.2e-7; a dash where there is none."""
    if x is None or (isinstance(x, float) and math.isnan(x)):
        return "–"
    x = float(x)
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if x == 0:
        return "0"
    if not 1e-4 <= abs(x) < 1e7:
        mantissa, exponent = f"{x:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    rounded = float(f"{x:.3g}")
    if abs(rounded) >= 100:
        return count(int(rounded))
    text = f"{rounded:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def count(n: int | None) -> str:
    """Write a whole number in full, thousands apart by a thin space from five digits on."""
    if n is None:
        return "–"
    text = f"{abs(n):,}".replace(",", THIN) if abs(n) >= 10_000 else str(abs(n))
    return f"−{text}" if n < 0 else text


def seconds(s: float | None) -> str:
    """Write a duration: 12 ms, 1.3 s, 48 s, 4 min, 2 h 5 min, 3 d."""
    if s is None or math.isnan(s):
        return "–"
    if s < 0.9995:
        return f"{s * 1000:.0f} ms"
    if s < 59.5:
        return f"{s:.1f} s" if s < 9.95 else f"{s:.0f} s"
    minutes = round(s / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{round(s / 86400)} d"


def bytes(n: float | None) -> str:  # noqa: A001 the glossary's word; used as theme.bytes
    """Write a size: 812 B, 4.01 MB, 1.2 GB (powers of ten)."""
    if n is None:
        return "–"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(n) >= size * 0.9995:
            return f"{number(n / size)} {unit}"
    return f"{int(n)} B"


def ago(t: datetime | float | str | None, now: datetime | None = None) -> str:
    """Write how long ago: just now, 40 s ago, 4 min ago; t is a datetime, seconds since 1970 or ISO text (UTC)."""
    if t is None:
        return "–"
    if isinstance(t, str):
        t = datetime.fromisoformat(t)
    if isinstance(t, int | float):
        t = datetime.fromtimestamp(t, UTC)
    if t.tzinfo is None:
        t = t.replace(tzinfo=UTC)
    passed = ((now or datetime.now(UTC)) - t).total_seconds()
    return "just now" if passed < 5 else f"{seconds(passed)} ago"


# ---------------------------------------------------------------- plotly


def template(is_dark: bool | None = None) -> Any:
    """Return our plotly template: transparent, system font, hair-line grid, colour-blind-safe scales."""
    import plotly.graph_objects as go

    mode = "dark" if (dark() if is_dark is None else is_dark) else "light"
    axis = {"gridcolor": LINE[mode], "linecolor": LINE[mode], "zerolinecolor": LINE[mode], "ticks": "outside",
            "tickcolor": LINE[mode], "automargin": True, "title": {"standoff": 8, "font": {"size": 12}}}
    return go.layout.Template(layout={
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "colorway": list(CATEGORICAL),
        "font": {"family": FONT, "size": 13, "color": TEXT[mode]}, "xaxis": axis, "yaxis": axis,
        "colorscale": {"sequential": _scale(SEQUENTIAL), "sequentialminus": _scale(SEQUENTIAL[::-1]),
                       "diverging": _scale(DIVERGING)},
        "margin": {"l": 56, "r": 16, "t": 36, "b": 44}, "hoverlabel": {"font": {"family": FONT, "size": 12}},
        "legend": {"bgcolor": "rgba(0,0,0,0)"}, "uirevision": "keep",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED[mode], "activecolor": ACCENT[mode]},
    })


def _scale(colours: tuple[str, ...]) -> list[list]:
    return [[i / (len(colours) - 1), c] for i, c in enumerate(colours)]


_VARIABLES = {
    "light": f"--ps-accent: {ACCENT['light']}; --ps-good: #0B7A55; --ps-warn: #955C00; --ps-bad: #BE3F0A;",
    "dark": f"--ps-accent: {ACCENT['dark']}; --ps-good: #4CC79B; --ps-warn: #E6B450; --ps-bad: #F2906B;",
}

CSS = """
[data-testid="stMainBlockContainer"] { max-width: 2400px; padding-left: 2rem; padding-right: 2rem; }
[data-testid="stVerticalBlock"] { gap: 0.7rem; }
/* labels wrap, they are never cut off */
[data-testid="stWidgetLabel"] p, [data-testid="stWidgetLabel"] div, [data-testid="stMetricLabel"] *,
[data-testid="stMetricValue"], [data-testid="stMetricValue"] * { white-space: normal; overflow: visible;
  text-overflow: clip; overflow-wrap: break-word; }
[data-testid="stWidgetLabel"] p { font-size: 0.85rem; }
[data-testid="stForm"] [data-testid="stWidgetLabel"] p { font-size: 0.76rem; letter-spacing: -0.01em; }
[data-testid="stTable"] td, [data-testid="stMetricValue"], .ps-num { font-variant-numeric: tabular-nums; }
[data-testid="stTable"] td { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 0.82rem; }
[data-testid="stMetric"] { padding: 0; }
[data-testid="stCaptionContainer"] p { line-height: 1.4; }
@media (max-width: 1000px) {
  [data-testid="stMainBlockContainer"] { padding-left: 1rem; padding-right: 1rem; }
  [data-testid="stSidebar"][data-collapsed="false"] { width: 240px !important; min-width: 240px !important; }
  [data-testid="stMetricValue"] { font-size: 1.05rem; }
  .st-key-at-row [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
  .st-key-at-row [data-testid="stColumn"]:last-child { min-width: 100%; }
  /* maps need the width: their columns stand below each other */
  [data-testid="stHorizontalBlock"]:has(.psc-map, .psc-box, .js-plotly-plot, .st-key-wide, [data-testid="stForm"],
    [data-testid="stDataFrame"]) { flex-wrap: wrap; }
  [data-testid="stHorizontalBlock"]:has(.psc-map, .psc-box, .js-plotly-plot, .st-key-wide, [data-testid="stForm"],
    [data-testid="stDataFrame"]) > [data-testid="stColumn"] { min-width: 100%; }
}
@media (max-width: 1000px) {  /* settings stand above the figures, three in a row, not below them */
  .st-key-beside > * > [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
  .st-key-beside > * > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"] { min-width: 100%; }
  .st-key-beside > * > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"]:last-child { order: -1; }
  .st-key-beside > * > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"]:last-child
    > [data-testid="stVerticalBlock"] { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr));
    align-items: end; }
  .st-key-beside [data-testid="stVerticalBlock"] > :has(> [data-testid="stExpander"],
    > [data-testid="stPageLink"], [data-testid="stCaptionContainer"]) { grid-column: 1 / -1; }
}
/* the toolbar of a chart stands beside its heading, not on its legend */
.stPlotlyChart .modebar-container { top: -20px !important; }
.js-plotly-plot, [data-testid="stElementContainer"]:has(.js-plotly-plot) {
  overflow-x: clip !important; overflow-y: visible !important; }
@media (max-width: 1150px) {
  .st-key-subject-bar > * > [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
  .st-key-subject-bar > * > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"] { min-width: 46%; }
}
.ps-row { display: flex; flex-wrap: wrap; gap: 0.35rem; align-items: center; }
.ps-badge { display: inline-block; padding: 0.05rem 0.5rem; border-radius: 0.6rem; font-size: 0.78rem; line-height: 1.5;
  border: 1px solid color-mix(in srgb, currentColor 30%, transparent); font-variant-numeric: tabular-nums;
  background: color-mix(in srgb, currentColor 8%, transparent); }
.ps-run { display: flex; gap: 0.4rem; align-items: center; white-space: nowrap; }
[class*="st-key-row-"] { flex-wrap: nowrap !important; }
[class*="st-key-row-"] .ps-spark { width: 44px; }
[class*="st-key-row-"] [data-testid="stCheckbox"] p { overflow-wrap: anywhere; }
.st-key-around { scroll-margin-top: 1rem; }
[data-testid="stSidebarNavLink"] { height: auto; }
[data-testid="stSidebarNavLink"] p { white-space: normal !important; }
.ps-pulse { display: inline-block; width: 0.55rem; height: 0.55rem; border-radius: 50%; margin-right: 0.2rem;
  background: var(--ps-accent); animation: ps-pulse 1.6s ease-in-out infinite; }
@keyframes ps-pulse { 50% { opacity: 0.25; transform: scale(0.75); } }
@media (prefers-reduced-motion: reduce) { .ps-pulse { animation: none; } }
.ps-grid { overflow-x: auto; } .ps-grid table { border-collapse: collapse; font-size: 0.85rem; width: 100%; }
.ps-grid th { text-align: left; white-space: nowrap; font-weight: 600; opacity: 0.75; }
.ps-grid th, .ps-grid td { padding: 0.25rem 0.5rem;
  border-bottom: 1px solid rgba(128, 128, 128, 0.2); vertical-align: top; }
.ps-claims .ps-verdict, .ps-claims .ps-short, .ps-grid .ps-badge { white-space: nowrap; }
.ps-link, .ps-link .ps-badge { text-decoration: none; } a.ps-link { color: var(--ps-accent); }
.ps-link:hover, .ps-link:hover .ps-badge { text-decoration: underline; }
@media (max-width: 900px) {  /* a line each would be wider than the window: a block each, every cell with its name */
  .ps-claims tr, .ps-claims td { display: block; } .ps-claims tr:first-child { display: none; }
  .ps-claims tr { border-bottom: 1px solid rgba(128, 128, 128, 0.4); padding: 0.4rem 0; }
  .ps-claims td { border-bottom: none; padding: 0.1rem 0.5rem; }
  .ps-claims td.ps-short, .ps-claims td.ps-verdict { display: inline-block; font-weight: 600; }
  .ps-claims td[data-label]::before { content: attr(data-label) ": "; opacity: 0.65; }
}
.ps-ticks { display: flex; flex-wrap: wrap; gap: 3px; align-items: center; font-size: 0.8rem; }
.ps-ticks .ps-num { margin-left: 0.5rem; opacity: 0.8; }
.ps-tick { width: 9px; height: 9px; border-radius: 50%; box-sizing: border-box;
  border: 1px solid color-mix(in srgb, currentColor 45%, transparent); }
.ps-tick.ps-ready { background: var(--ps-good); border-color: var(--ps-good); }
.ps-tick.ps-now { outline: 2px solid var(--ps-accent); outline-offset: 1px; }
.ps-accent { color: var(--ps-accent); } .ps-good { color: var(--ps-good); }
.ps-warn { color: var(--ps-warn); } .ps-bad { color: var(--ps-bad); }
.ps-problem { border-left: 3px solid var(--ps-bad); padding: 0.15rem 0 0.15rem 0.8rem; line-height: 1.5; }
.ps-chips { display: flex; flex-wrap: wrap; gap: 1px; } .ps-gap { opacity: 0.6; padding: 0 0.3rem; }
.ps-pair { display: flex; gap: 1px; font-size: 0.8rem; line-height: 1.5; align-items: baseline; }
.ps-pair .ps-what { width: 5.2rem; opacity: 0.7; flex: none; }
.ps-chip { padding: 0 3px; border-radius: 3px; background: rgba(128,128,128,0.12); white-space: pre; }
.ps-chip.ps-differs { background: rgba(230,159,0,0.35); font-weight: 600; }
.ps-note { font-size: 0.8rem; opacity: 0.75; margin: 0 0 0.4rem; line-height: 1.4; }
.ps-scroll { overflow-x: auto; }
.ps-pairs { width: 100%; border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
.ps-pairs th { text-align: left; font-weight: 500; opacity: 0.75; padding: 0 0.5rem 0.2rem 0; vertical-align: bottom; }
.ps-pairs td { padding: 0.3rem 0.5rem 0.3rem 0; vertical-align: top; white-space: nowrap;
  border-top: 1px solid color-mix(in srgb, currentColor 12%, transparent); }
.ps-pairs td:has(> .ps-chips) { width: 70%; } .ps-pairs td:first-child { line-height: 1.6; }
.ps-pairs tr:not(:has([rowspan])) td { border-top: none; padding-top: 0; }
.ps-problem .ps-what { opacity: 0.8; font-size: 0.85rem; overflow-wrap: anywhere; }
.ps-problem .ps-found { font-weight: 600; overflow-wrap: anywhere; }
.ps-empty { border: 1px dashed color-mix(in srgb, currentColor 28%, transparent); border-radius: 0.5rem;
  padding: 1.4rem 1.6rem; line-height: 1.5; }
.ps-empty .ps-title { font-weight: 600; margin-bottom: 0.2rem; }
.ps-empty .ps-text { opacity: 0.8; max-width: 60ch; }
.ps-error { color: var(--ps-bad); font-size: 0.85rem; line-height: 1.4; }
"""
