"""Several motions at once: the sum of the intensities of models, prepared for refinement."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.prior import joined
from dials_diffuse.structure.crystal import Structure


class PreparedSum(Prepared):
    """I = sum of the intensities of parts, which move independently and are weak: no term is shared between them.

    Parameters
    ----------
    parts : Prepared models at the same voxels
    names : (as many) text before the names of their parameters; parts of the same name are numbered from 1
    """

    def __init__(self, parts, names, structure: Structure):
        self._parts, self.structure = tuple(parts), structure
        self.means = all(part.means for part in parts)
        self.prior = joined([part.prior for part in parts], [len(part.parameters) for part in parts])
        names = [
            f"{name}_{list(names[:i]).count(name) + 1}" if list(names).count(name) > 1 else name
            for i, name in enumerate(names)
        ]
        self._ends = np.cumsum([0, *(len(part.parameters) for part in parts)])
        self.parameters = tuple(
            replace(p, name=f"{name}.{p.name}") for part, name in zip(self._parts, names) for p in part.parameters
        )

    def split(self, values) -> list:
        values = self._checked(values)
        return [(part, values[a:b]) for part, a, b in zip(self._parts, self._ends, self._ends[1:])]

    def intensity(self, values) -> np.ndarray:
        return sum(part.intensity(own) for part, own in self.split(values))

    def jacobian(self, values) -> tuple:
        results = [part.jacobian(own) for part, own in self.split(values)]
        return sum(r[0] for r in results), np.concatenate([r[1] for r in results], axis=1)

    def second(self, values, weights) -> np.ndarray:
        result = np.zeros((len(self.parameters),) * 2)
        for (part, own), a, b in zip(self.split(values), self._ends, self._ends[1:]):
            result[a:b, a:b] = part.second(own, weights)
        return result

    @cached_property
    def tensors(self) -> list:
        numbers = np.arange(len(self.parameters))
        return [
            (numbers[a:b][own], components)
            for part, a, b in zip(self._parts, self._ends, self._ends[1:])
            for own, components in part.tensors
        ]
