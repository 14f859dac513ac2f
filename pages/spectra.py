"""Spectra: the curvature of the loss around a model's weights, by block and along training."""

from app import house
from app.spectra_view import show

show(house.backend())
