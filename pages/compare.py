"""Compare: any analysis on two models or checkpoints, side by side with the difference."""

from app import house
from app.compare_view import show

show(house.backend())
