"""Longer experiments whose results are committed as small tables: `make experiments-transitions`."""
