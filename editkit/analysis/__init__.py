"""Figures and measurements made from logged runs."""
