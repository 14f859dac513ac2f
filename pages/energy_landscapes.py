"""Energy landscapes: the experiments on one energy model, with one level slider."""

from app import house
from app.energy_view import page

page(house.backend())
