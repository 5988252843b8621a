"""Directions of editing gradients, and figures made from rows of results."""
