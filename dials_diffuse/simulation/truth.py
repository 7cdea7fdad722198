"""The answer: the noise-free map on the grid of the merged one, the scales, and the best map that the images allow."""

from __future__ import annotations

import numpy as np

from dials_diffuse.experiment.scan import sub_steps
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import possible_voxels, unique_voxels
from dials_diffuse.maps.units import ELECTRONS
from dials_diffuse.simulation.diffuse import DiffuseVolume
from dials_diffuse.simulation.sweep import Expected, Sweep

#: pixels with more Bragg scattering than this share of all else are left out of the ideal map
MAX_BRAGG = 0.1

#: pixels and degrees between the points at which the absorption is recorded
RECORD_PIXELS = 32
RECORD_ANGLE = 5.0

#: Gauss-Legendre points along each edge of a voxel: the mean is exact up to fifth order
_POINTS = 3


def true_map(volume: DiffuseVolume, grid: MapGrid, friedel: bool = True) -> DiffuseMap:
    """Noise-free diffuse intensity, averaged over each symmetry-unique voxel; electrons² per unit cell."""
    index = np.concatenate(list(possible_voxels(grid, friedel)))
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    intensity = np.zeros(len(index))
    for ijk in np.ndindex(_POINTS, _POINTS, _POINTS):
        share = weights[list(ijk)].prod() / 8
        intensity += share * volume((index + nodes[list(ijk)] / 2) / np.array(grid.subdivide))
    return DiffuseMap(
        grid=grid,
        friedel=friedel,
        index=index,
        intensity=intensity,
        sigma=np.zeros(len(index)),
        multiplicity=np.zeros(len(index), dtype=np.int32),
        units=ELECTRONS,
    )


def image_sums(grid: MapGrid, sweep: Sweep, image: int, raw: list, expected: list[Expected]) -> tuple:
    """Voxel sums of one image of a sweep with one crystal: true scales, background and orientation.

    A pixel goes to the voxel of its centre in each of the rotation sub-steps that dials.diffuse_integrate would take.

    Parameters
    ----------
    raw, expected : as from the sweep, one per panel

    Returns
    -------
    keys : (n,) int64, voxels of the grid
    sums : (3, n) float64: net counts, norm (counts per electron²) and counts
    """
    crystal = sweep.crystals[0]
    steps = sub_steps(grid, crystal.scan)
    subdivide, extent = np.array(grid.subdivide), np.array(grid.extent)
    keys, rows = [], []
    for p, (panel, values, e) in enumerate(zip(sweep.detector.panels, raw, expected)):
        use = panel.reading.trusted(values) & (e.norm > 0)
        use &= e.bragg <= MAX_BRAGG * (e.total - e.bragg)
        for wrong in (sweep.hot, sweep.dead):
            mine = wrong[wrong[:, 0] == p]
            use[mine[:, 1], mine[:, 2]] = False
        counts = panel.reading.counts(values[use])
        values = np.stack([counts - e.other[use] - e.bragg[use], e.norm[use], counts]) / steps
        for step in range(steps):
            position = image + (step + 0.5) / steps
            s0 = crystal.scan.s0_at(position)
            s = panel.directions[:, use].T * np.linalg.norm(s0) - s0
            index = np.rint(s @ np.linalg.inv(crystal.scan.matrix_at(position)).T * subdivide).astype(np.int64)
            fits = np.all(np.abs(index) <= extent, axis=1)
            keys.append(grid.key(index[fits]))
            rows.append(values[:, fits])
    found, place = np.unique(np.concatenate(keys), return_inverse=True)
    values = np.concatenate(rows, axis=1)
    return found, np.stack([np.bincount(place, column, minlength=len(found)) for column in values])


class IdealSums:
    """The best map that a set of images allows; nobody who has to find out scales and background can do better."""

    def __init__(self, grid: MapGrid):
        self.grid = grid
        self._sums = np.zeros((3, grid.n_voxels))

    def add(self, keys: np.ndarray, sums: np.ndarray) -> None:
        """Add what :func:`image_sums` returned."""
        self._sums[:, keys] += sums

    def merge(self, friedel: bool = True) -> DiffuseMap:
        """Average over the Laue group; electrons² per unit cell."""
        keys = np.flatnonzero(self._sums[1] > 0)
        index = self.grid.index(keys)
        keep = self.grid.inside(index)
        voxels = unique_voxels(index[keep], self.grid.space_group, friedel)
        net, norm, counts = (
            np.bincount(voxels.inverse, column, minlength=len(voxels.index)) for column in self._sums[:, keys[keep]]
        )
        return DiffuseMap(
            grid=self.grid,
            friedel=friedel,
            index=voxels.index,
            intensity=net / norm,
            sigma=np.sqrt(np.maximum(counts, 1.0)) / norm,
            multiplicity=np.bincount(voxels.inverse, minlength=len(voxels.index)).astype(np.int32),
            units=ELECTRONS,
        )


def record_of_scales(sweep: Sweep, first_image: int) -> dict:
    """Every scale that was applied to a sweep, as the truth file has it (docs/files.md says what is what)."""
    scan = sweep.scan
    images = np.arange(scan.n_images)
    step = max(1, round(RECORD_ANGLE / abs(scan.oscillation[1])))
    record: dict = {
        "image": images + first_image,
        "angle": np.array([scan.angle(i + 0.5) for i in images]),
        "b": sweep.scales.b((images + 0.5) / scan.n_images),
        "liquid": np.array([sweep.scales.liquid_factor(scan.angle(i + 0.5)) for i in images]),
        "counts_per_electron2_steradian": np.array(
            [[sweep.per_electron(i, crystal) for i in images] for crystal in sweep.crystals]
        ),
        "absorption_image": images[::step] + first_image,
    }
    for p, panel in enumerate(sweep.detector.panels):
        directions = panel.directions[:, RECORD_PIXELS // 2 :: RECORD_PIXELS, RECORD_PIXELS // 2 :: RECORD_PIXELS]
        record[f"panel_{p}"] = {
            "y": np.arange(panel.shape[0])[RECORD_PIXELS // 2 :: RECORD_PIXELS] + 0.5,
            "x": np.arange(panel.shape[1])[RECORD_PIXELS // 2 :: RECORD_PIXELS] + 0.5,
            "absorption": np.array(
                [sweep.scales.a(directions, scan.s0_at(i + 0.5), scan.rotation_at(i + 0.5).T) for i in images[::step]],
                dtype=np.float32,
            ),
            "response": sweep.response[p].astype(np.float32),
        }
    return record
