"""Models with f', f'': the intensity of the real parts of the form factors plus that of the imaginary parts."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.prepared import Prepared, prepare
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import Dispersive, dispersion


def dispersive_parts(model, structure: Structure, wavelength: float | None) -> list:
    """Models whose intensities add up to that of a model at a wavelength, see :class:`structure.factors.Dispersive`.

    wavelength : Å; None: without f', f'', the model itself
    """
    if wavelength is None:
        return [model]
    parts = [replace(model, table=Dispersive(model.table, wavelength))]
    if any(dispersion(label, wavelength).imag for label in structure.types):
        parts.append(model.imaginary_part(Dispersive(model.table, wavelength, imaginary=True)))
    return parts


def prepare_dispersive(
    model, structure: Structure, grid: MapGrid, index, means: bool = False, wavelength: float | None = None
) -> Prepared:
    """A model at voxels of a map, as :func:`prepared.prepare`, with f', f'' at a wavelength (Å; None: without)."""
    if wavelength is None:
        return prepare(model, structure, grid, index, means)
    parts = dispersive_parts(model, structure, wavelength)
    return PreparedDispersive(model, [prepare(part, structure, grid, index, means) for part in parts])


class PreparedDispersive(Prepared):
    """I = sum of the intensities of parts with the same parameters.

    Parameters
    ----------
    model : without f', f''
    parts : Prepared models, those of :func:`dispersive_parts`
    """

    def __init__(self, model, parts):
        self.origin, self.structure, self.parameters = model, parts[0].structure, parts[0].parameters
        self._parts, self.means, self.prior = parts, parts[0].means, parts[0].prior

    @cached_property
    def tensors(self) -> list:
        return self._parts[0].tensors

    def intensity(self, values) -> np.ndarray:
        return sum(part.intensity(values) for part in self._parts)

    def jacobian(self, values) -> tuple:
        intensities, jacobians = zip(*(part.jacobian(values) for part in self._parts))
        return sum(intensities), sum(jacobians)

    def second(self, values, weights) -> np.ndarray:
        return sum(part.second(values, weights) for part in self._parts)
