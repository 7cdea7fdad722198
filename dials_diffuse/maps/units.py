"""Units of diffuse intensities."""

from __future__ import annotations

#: of maps of X-rays on an absolute scale: models, simulations, and what dials.diffuse_scale makes
ELECTRONS = "electron^2 per unit cell"

#: of maps with the form factors of electrons
ELECTRON_DIFFRACTION = "angstrom^2 per unit cell"

#: of intensities that are not on an absolute scale
ARBITRARY = "a.u."
