"""Sweeps of crystals with few or many symmetry mates, as observations in the geometry of a rotation, and the truth.

A row counts ``norm · a · (b · I(voxel) + c(|s|))`` photons: a is the transmission of an ellipsoid of which the beam
meets another place than the middle, b falls along the sweep with a wave on it, c is scattered isotropically by what is
not the crystal. I is that of a molecule that moves like a liquid. Where there are images without crystal, of twenty
times the exposure, c is scattered by air, which the crystal does not absorb. Integrated reflections come with the a and
b that dials.scale finds, within 0.5 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

import dials_diffuse.simulation
from dials_diffuse.files.observations import BRAGG_DTYPE, OBSERVATION_DTYPE, ExperimentSummary, write_observations
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.maps.voxels import rows_of
from dials_diffuse.merging.compare import Comparison, compare_maps
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.structure.atoms import load_structure, make_structure

PROVENANCE = Provenance("simulated", "", "")
SIZE, PIXEL = (1475, 1679), 0.172  # pixels, mm
WAVELENGTH, WIDTH = 0.98, 0.5  # Å, degrees

#: of a row's |s|, in edges of a voxel, and of its intensity, relative: pixels see different parts of a voxel
_S_SPREAD, _SAMPLING = 0.15, 0.01

#: of images without crystal, relative; and relative error of dials.scale's factors
_EXPOSURES, _FACTOR_ERROR = 20, 0.005

#: least distance from the rotation axis, 1/Å: nearer to it voxels stay on the sphere
_LEAST_RADIUS = 0.03


@dataclass(frozen=True)
class FewMates:
    """What to simulate.

    group, cell, subdivide, d_min : of the map
    n_sweeps : of ``turn`` degrees, of crystals with other thickness, orientation and absorption
    absorption : rms of ln a; drift : fall of b along a sweep
    counts : mean of a row; background : c over the crystal's mean scattering
    images : of it without crystal are subtracted; reflections : integrated ones are in the file
    """

    group: str
    cell: tuple
    subdivide: tuple = (2, 2, 2)
    d_min: float = 2.0
    n_sweeps: int = 1
    turn: float = 90.0
    absorption: float = 0.06
    drift: float = 0.25
    counts: float = 1200.0
    background: float = 0.4
    seed: int = 1
    images: bool = False
    reflections: bool = False


def lysozyme(group: str, cell: tuple):
    """The molecule of the simulations in another crystal, whatever it meets there."""
    molecule = load_structure(Path(dials_diffuse.simulation.__file__).parent / "data" / "193l.pdb", "protein")
    site = molecule.site_cart - molecule.site_cart.mean(axis=0)
    names, u = molecule.element, molecule.u_iso + 0.06
    inverse = np.linalg.inv(make_structure(cell, group, names, site, u=u).orthogonalization)
    return make_structure(cell, group, names, site @ inverse.T + [0.23, 0.19, 0.27], u=u)


def true_map(case: FewMates, structure=None, sigma: float = 0.4, gamma: float = 10.0) -> DiffuseMap:
    """Intensity of the unique voxels of a structure (None: lysozyme) with liquid-like motions."""
    structure = lysozyme(case.group, case.cell) if structure is None else structure
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, case.subdivide, case.d_min)
    return compute_model(structure, grid, LiquidLikeMotions(sigma=sigma, gamma=gamma), choose_orders=True).map


def crossings(grid: MapGrid, index: np.ndarray, orientation: np.ndarray, turn: float) -> tuple:
    """Where voxels pass through the Ewald sphere; the rotation axis is x, the beam runs along -z.

    Returns
    -------
    (n,) rows of ``index``; (n,) angle in degrees; (n, 3) unit vectors of the diffracted beam; (n,) Lorentz factor
    """
    k = 1 / WAVELENGTH
    s = (index / np.array(grid.subdivide)) @ orientation.T
    radius, start = np.hypot(s[:, 1], s[:, 2]), np.arctan2(s[:, 2], s[:, 1])
    height = np.sum(s**2, axis=1) / (2 * k * np.maximum(radius, 1e-9))
    row = np.flatnonzero(height < 0.98)
    up = np.arcsin(height[row])
    parts = []
    for way in (up, math.pi - up):
        angle = np.rad2deg(way - start[row]) % 360
        mine, angle = row[angle < turn], angle[angle < turn]
        phi = np.deg2rad(angle) + start[mine]
        y, z = radius[mine] * np.cos(phi), radius[mine] * np.sin(phi)
        parts.append((mine, angle, np.stack([s[mine, 0], y, z - k], axis=1) / k, 1 / np.maximum(abs(y), _LEAST_RADIUS)))
    return tuple(np.concatenate(x) for x in zip(*parts))


def path_in_ellipsoid(axes: np.ndarray, place: np.ndarray, u: np.ndarray) -> np.ndarray:
    """(n,) distance from a place (3,) to the surface of an ellipsoid with axes (3,), along unit vectors u (n, 3)."""
    v, p = u / axes, place / axes
    a, b, c = np.sum(v**2, axis=1), v @ p, p @ p - 1
    return (-b + np.sqrt(b**2 - a * c)) / a


@dataclass(frozen=True)
class _Sweep:
    """Rows of a sweep: index (n, 3), xyz (n, 3), and (n,) each of norm, s, a, b, c; orientation (3, 3)."""

    row: np.ndarray
    xyz: np.ndarray
    path: np.ndarray
    a: np.ndarray
    b: np.ndarray
    orientation: np.ndarray


def _sweep(case: FewMates, grid: MapGrid, index: np.ndarray, rng) -> _Sweep:
    turn, shape = Rotation.random(2, random_state=rng).as_matrix()
    orientation = turn @ grid.reciprocal_matrix
    row, angle, direction, path = crossings(grid, index, orientation, case.turn)
    distance = 0.47 * min(SIZE) / math.tan(2 * math.asin(WAVELENGTH / (2 * case.d_min)))  # pixels
    x, y = (0.5 * SIZE[i] + distance * direction[:, i] / -direction[:, 2] for i in (0, 1))
    on = (direction[:, 2] < -0.05) & (x > 0) & (x < SIZE[0]) & (y > 0) & (y < SIZE[1])
    row, angle, direction, path, x, y = (v[on] for v in (row, angle, direction, path, x, y))
    back = Rotation.from_euler("x", -angle[:, None], degrees=True)
    axes, place = 1 + 0.5 * rng.random(3), rng.normal(0, 0.25, 3)
    log_a = np.zeros(len(row))
    for u in (direction, np.tile([0.0, 0.0, 1.0], (len(row), 1))):
        log_a -= path_in_ellipsoid(axes, place, back.apply(u) @ shape)
    log_a -= log_a.mean()
    t = angle / case.turn
    b = np.exp(rng.normal(0, 0.3)) * (1 - case.drift * (t - 0.5 - 0.15 * np.sin(3 * math.pi * t)))
    a = np.exp(log_a * (case.absorption / log_a.std()))
    return _Sweep(row, np.stack([x, y, angle], axis=1), path, a, b, orientation)


def _reflections(sweep: _Sweep, grid: MapGrid, index: np.ndarray, number: int, s: np.ndarray, rng) -> tuple:
    """Rows of BRAGG_DTYPE, random structure factors in what the experiment makes of them, and dials.scale's factors."""
    at = np.flatnonzero(np.all(index % np.array(grid.subdivide) == 0, axis=1))
    factor = sweep.a[at] * sweep.b[at]
    table = np.zeros(len(at), BRAGG_DTYPE)
    table["hkl"], table["experiment"] = index[at] // np.array(grid.subdivide), number
    table["xyz"], table["s"] = sweep.xyz[at], s[at]
    table["intensity"] = factor * rng.exponential(size=len(at))
    table["variance"] = (0.05 * table["intensity"] + 0.02) ** 2
    return table, factor * (1 + _FACTOR_ERROR * rng.normal(size=len(at)))


def simulate(case: FewMates, folder, truth: DiffuseMap) -> None:
    """Write ``integrated.h5``, and ``true.h5`` with the true scales, into a folder; truth : see :func:`true_map`.

    ``isotropic.npy`` has what was expected of each row, less images without crystal, without its anisotropic part.
    """
    rng, grid, folder = np.random.default_rng(case.seed), truth.grid, Path(folder)
    more = np.random.default_rng((case.seed, 1))  # the same experiment, whatever else is measured
    every = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in grid.extent), indexing="ij"), axis=-1).reshape(-1, 3)
    every = every[grid.inside(every) & np.any(every != 0, axis=1)]
    unique, _ = map_to_asu(every, grid.space_group, True)
    intensity = truth.intensity[rows_of(unique, truth.index)]
    centre = grid.s_magnitude(every)
    profile = np.polynomial.Polynomial.fit(centre, intensity, 12)
    tables, true_tables, summaries, isotropic, bragg = [], [], [], [], []
    for number in range(case.n_sweeps):
        sweep = _sweep(case, grid, every, rng)
        n, row = len(sweep.row), sweep.row
        s = centre[row] + _S_SPREAD * grid.edges.mean() * rng.normal(size=n)
        c = np.exp(-6 * (s - centre.mean())) * (1 + 0.8 * np.exp(-(((s - 0.31) / 0.05) ** 2)))
        c *= case.background * intensity.mean()
        moved = np.maximum(profile(s) / profile(centre[row]), 0.1)  # the isotropic part is where the pixels are
        here = intensity[row] * moved
        norm = sweep.path * rng.uniform(0.7, 1.3, n)
        norm *= case.counts / np.mean(norm * (here + c))
        gain = norm * sweep.a
        around = (norm if case.images else gain) * c
        table = np.zeros(n, OBSERVATION_DTYPE)
        table["index"], table["experiment"], table["s"], table["xyz"] = every[row], number, s, sweep.xyz
        table["pixels"], table["pixels_odd"], table["norm"], table["norm_odd"] = 20, 10, norm, norm / 2
        table["counts"] = rng.poisson(gain * sweep.b * here * (1 + _SAMPLING * rng.normal(size=n)) + around)
        table["counts_odd"] = rng.binomial(table["counts"].astype(int), 0.5)
        true = table.copy()
        if case.images:
            table["background"] = more.poisson(_EXPOSURES * norm * c) / _EXPOSURES
            table["background_odd"] = table["background"] / 2
        if case.reflections:
            bragg.append(_reflections(sweep, grid, every[row], number, s, more))
        true["norm"], true["norm_odd"] = gain * sweep.b, gain * sweep.b / 2
        true["background"] = around + gain * sweep.b * (moved - 1) * profile(centre[row])
        true["background_odd"] = true["background"] / 2
        isotropic.append(gain * sweep.b * profile(s) + (0.0 if case.images else around))
        for t in (table, true):
            t["rate"] = (t["counts"] - t["background"]) / t["norm"] * t["pixels"]
            t["rate_variance"] = t["counts"] / t["norm"] ** 2 * t["pixels"]
        if case.images:
            table["rate_variance"] += table["background"] / _EXPOSURES / table["norm"] ** 2 * table["pixels"]
        tables.append(table)
        true_tables.append(true)
        frame = {"orientation": tuple(sweep.orientation.ravel()), "axis": (1, 0, 0), "beam": (0, 0, -1 / WAVELENGTH)}
        n_images = round(case.turn / WIDTH)
        summaries.append(
            ExperimentSummary(f"s{number}", (1, n_images), (0.0, WIDTH), n_images, WAVELENGTH, 1, SIZE, **frame)
        )
    for name, parts in (("integrated", tables), ("true", true_tables)):
        with write_observations(folder / f"{name}.h5", grid, summaries, PROVENANCE) as writer:
            writer.append(np.concatenate(parts))
            if bragg and name == "integrated":
                writer.append_bragg(*(np.concatenate(x) for x in zip(*bragg)))
    np.save(folder / "isotropic.npy", np.concatenate(isotropic))


def agreement(path, truth: DiffuseMap, n_shells: int = 6) -> Comparison:
    """The merged map of a file against the truth, beyond 10 Å."""
    merged = merge_observations([path], MergeParameters(n_shells=4)).map
    return compare_maps(merged, truth, 10.0, 0.0, n_shells)
