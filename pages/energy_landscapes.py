"""Energy landscapes: what an energy model sees of a problem at every annealing level."""

from app.energy_view import page

from app import house

page(house.backend())
