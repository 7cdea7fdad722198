"""What a map lacks before it is transformed: mates that were kept apart, Bragg positions, and their neighbours."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import map_to_asu, possible_voxels, unique_voxels
from dials_diffuse.maps.voxels import rows_of


def friedel_merged(data: DiffuseMap) -> DiffuseMap:
    """The map within the limits of its grid, with means of Friedel mates where it has them apart."""
    inside = data.grid.inside(data.index)
    names = [name for name in ("intensity", "sigma", "half_a", "half_b") if getattr(data, name) is not None]
    if data.friedel:
        chosen = {name: getattr(data, name)[inside] for name in names}
        return replace(data, index=data.index[inside], multiplicity=data.multiplicity[inside], **chosen)
    orbits = unique_voxels(data.index[inside], data.grid.space_group, True)
    n = len(orbits.index)
    merged = {}
    for name in names:
        values = getattr(data, name)[inside]
        finite = np.isfinite(values)
        count = np.bincount(orbits.inverse[finite], minlength=n)
        power = 2 if name == "sigma" else 1  # errors of a mean
        total = np.bincount(orbits.inverse[finite], values[finite] ** power, minlength=n) ** (1 / power)
        merged[name] = np.divide(total, count, out=np.full(n, np.nan), where=count > 0)
    multiplicity = np.bincount(orbits.inverse, data.multiplicity[inside], minlength=n).astype(np.int32)
    return replace(data, friedel=True, index=orbits.index, multiplicity=multiplicity, **merged)


def at_lattice_points(data: DiffuseMap) -> np.ndarray:
    """(n,) bool, voxels in which Bragg reflections lie; a centring leaves some whole indices without."""
    subdivide = np.array(data.grid.subdivide)
    whole = np.all(data.index % subdivide == 0, axis=1)
    hkl = data.index // subdivide
    for operator in data.grid.space_group:
        if not operator.r().is_unit_mx():
            continue
        phase = hkl @ np.array(operator.t().as_double())
        whole &= np.abs(phase - np.rint(phase)) < 1e-6
    return whole


def with_lattice_points(data: DiffuseMap) -> DiffuseMap:
    """The map with those voxels at lattice points that it lacks, without values."""
    whole = replace(data.grid, subdivide=(1, 1, 1))
    index = np.concatenate(list(possible_voxels(whole))) * np.array(data.grid.subdivide)
    index = map_to_asu(index, data.grid.space_group, True)[0]
    index = index[rows_of(index, data.index) < 0]
    unknown, none = np.full(len(index), np.nan), np.zeros(len(index), dtype=np.int32)

    def longer(values, more):
        return None if values is None else np.concatenate([values, more])

    columns = {name: longer(getattr(data, name), unknown) for name in ("intensity", "sigma", "half_a", "half_b")}
    multiplicity = longer(data.multiplicity, none)
    return replace(data, index=np.concatenate([data.index, index]), multiplicity=multiplicity, **columns)


def fill_from_neighbours(data: DiffuseMap, values: np.ndarray, punched: np.ndarray) -> np.ndarray:
    """Fill punched voxels of ``values`` in place; (n,) bool, those that had a neighbour that was measured."""
    grid = data.grid
    known = np.isfinite(data.intensity) & ~punched
    offsets = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)])
    distance = grid.s_magnitude(offsets)
    total, norm = np.zeros((2, np.count_nonzero(punched)))
    for offset, weight in zip(offsets, np.exp(-0.5 * (distance / distance.min()) ** 2)):
        rows = rows_of(map_to_asu(data.index[punched] + offset, grid.space_group, True)[0], data.index)
        weights = weight * ((rows >= 0) & known[rows])
        norm += weights
        total += weights * values[rows]
    filled = np.zeros(len(punched), dtype=bool)
    filled[punched] = norm > 0
    values[punched] = np.divide(total, norm, out=np.zeros(len(norm)), where=norm > 0)
    return filled
