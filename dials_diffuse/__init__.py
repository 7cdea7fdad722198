"""Diffuse scattering for DIALS: from images to reciprocal-space maps and models of correlated motion."""

# Before anything of cctbx: where a numpy wheel is loaded after scitbx's linear algebra, singular values of the scipy of
# Debian 12 end in "Too large work array" or a crash.
import numpy  # noqa: F401

__version__ = "0.1.0"
