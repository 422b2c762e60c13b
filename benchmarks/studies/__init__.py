"""Experiments that were run once, for a decision or a table in the docs."""
