"""Experiment queue: the ten experiments over energy models, how each stands, and what they say."""

from app import house
from app.queue_view import page

page(house.backend())
