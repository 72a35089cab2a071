"""Metrics of a run: their names, their files and their display."""
