"""Features of an SAE: all of them in a table, one of them as a card."""

from app import house
from app.features_view import show

show(house.backend())
