"""Models that were asked for, prepared at the voxels of the data, with the values that their fits start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.fit import Candidate
from dials_diffuse.fitting.request import FitRequest
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.models.blocks import prepare_in_blocks
from dials_diffuse.models.dispersive import prepare_dispersive
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.parallel import SERIAL, Executor
from dials_diffuse.structure.crystal import Structure


@dataclass(frozen=True, eq=False)
class Preparation:
    """What all models are prepared with.

    Attributes
    ----------
    data : FitData
    structure : asymmetric unit
    means : average over voxels what can be averaged
    wavelength : Å, for f', f''; None: without
    executor : evaluates models that take long, in blocks of voxels
    """

    data: FitData
    structure: Structure
    means: bool
    wavelength: float | None = None
    executor: Executor = SERIAL

    def candidate(self, request: FitRequest, whole: bool = False) -> Candidate:
        """The request's model, or the sum of its models, with the orders that the start needs.

        whole : not in blocks: their GroupCovariance is wanted
        """
        models: list = []
        starts: list = []
        for part in request.parts:
            model = part.model.for_each_body(self.structure) if part.each else part.model
            start = {p.name: part.start(p) for p in model.parameters(self.structure)}
            if part.choose_orders:
                model = model.with_orders_for(self.structure, start, 1 / float(self.data.s.max()))
            models.append(model)
            starts += start.values()
        choose_orders = tuple(part.choose_orders for part in request.parts)
        return Candidate(request.name, self.prepare(models, whole), np.array(starts), choose_orders)

    def prepare(self, models, whole: bool = False) -> Prepared:
        """A model, or the sum of several, at the voxels of the data."""
        data = self.data
        voxels = self.structure, data.grid, data.index, self.means, self.wavelength
        if whole:
            prepared = [prepare_dispersive(model, *voxels) for model in models]
        else:
            prepared = [prepare_in_blocks(model, *voxels, self.executor) for model in models]
        if len(prepared) == 1:
            return prepared[0]
        return PreparedSum(prepared, [model.name for model in models], self.structure)
