"""Diffuse scattering for DIALS: from images to reciprocal-space maps and models of correlated motion."""

__version__ = "0.1.0"
