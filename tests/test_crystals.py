"""Crystals of one call: which belong together, in which setting, and what is left out."""
