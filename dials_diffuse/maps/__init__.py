"""Grids, symmetry and file formats of reciprocal-space maps."""
