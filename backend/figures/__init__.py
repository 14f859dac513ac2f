"""Shared plotly builders: numbers in, figure out. Deterministic; transparent; fonts come from the page."""

from backend.figures.hexbin import hexbin
from backend.figures.histograms import Spectrum, spectra
from backend.figures.lines import Line, bars, level, lines, logarithmic, marked, scatter, stacked_lines
from backend.figures.maps import grid, pixels
from backend.figures.panels import Panel, beside, panels
from backend.figures.points import paired
from backend.figures.ridges import Ridge, density, ridges
from backend.figures.slices import Slice, slices
from backend.figures.style import BAND, CATEGORIES, DIVERGING, NULL_GREY, SEQUENTIAL, label, rgba, tick_positions
from backend.figures.surface import surface

__all__ = ["BAND", "CATEGORIES", "DIVERGING", "NULL_GREY", "SEQUENTIAL", "Line", "Panel", "Ridge", "Slice", "Spectrum",
           "bars", "beside", "density", "grid", "hexbin", "label", "level", "lines", "logarithmic", "marked",
           "paired", "panels", "pixels", "rgba", "ridges", "scatter", "slices", "spectra", "stacked_lines", "surface",
           "tick_positions"]
