"""Intervene: build a list of interventions, see what the model says with and without them."""

from app import house
from app.intervene_view import show

show(house.backend())
