"""Directions by PCA: the spectrum beside its null, the tokens at both ends, the directions kept by name."""

from app import house
from app.pca_view import show

show(house.backend())
