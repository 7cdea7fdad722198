"""Detectors that are arrays of equal modules with gaps between them, known by their size in pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ModuleArray:
    """Modules of one kind of detector.

    Attributes
    ----------
    module, gap : pixels along fast and slow, of a module and between two of them
    """

    module: tuple
    gap: tuple

    def fits(self, size) -> bool:
        """Is a panel of this size, pixels along fast and slow, a whole number of modules with the gaps between them?"""
        return all((n + gap) % (module + gap) == 0 for n, module, gap in zip(size, self.module, self.gap))

    def mask(self, size) -> np.ndarray:
        """(ny, nx) bool, False in the gaps of a panel of this size."""
        fast, slow = (np.arange(n) % (m + gap) < m for n, m, gap in zip(size, self.module, self.gap))
        return slow[:, None] & fast


PILATUS = ModuleArray((487, 195), (7, 17))
EIGER = ModuleArray((1030, 514), (10, 37))
EIGER_2 = ModuleArray((1028, 512), (12, 38))

#: pixels along fast and slow of Pilatus detectors
PILATUS_SIZES = {
    "100K": (487, 195),
    "300K": (487, 619),
    "1M": (981, 1043),
    "2M": (1475, 1679),
    "6M": (2463, 2527),
}


def module_array(size) -> ModuleArray | None:
    """The modules that a panel of this size, pixels along fast and slow, is made of; None if none fit."""
    return next((array for array in (PILATUS, EIGER, EIGER_2) if array.fits(size)), None)


def module_mask(detector) -> list:
    """(ny, nx) bool per panel, False where no sensor is: between the modules of a Pilatus, and wherever the model of
    the panel says so."""
    masks = []
    for panel in detector:
        mask = panel.get_untrusted_rectangle_mask().as_numpy_array()
        size = panel.get_image_size()
        masks.append(mask & PILATUS.mask(size) if PILATUS.fits(size) else mask)
    return masks
