"""The absolute scale without coordinates in 40 simulated experiments: how far it is off, and what it says of itself.

A molecule in P 1 cells of different size, with different displacements, thickness of crystal, liquid and air, and data
to different resolution: Bragg intensities of its atoms in flat bulk solvent, and the isotropic part of what is between
them. The ring of the simulated water is not quite where the program takes it to be. Six ways for each: with the
sequence or knowing nothing; with images of air and liquid, of air alone, or without.
``bench_absolute.py [MODEL.pdb ...] [FIRST]`` takes other molecules in turn, and experiments from another number on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.scaling.absolute import absolute_scale
from dials_diffuse.scaling.totals import Bragg
from dials_diffuse.simulation.plan import example_path
from dials_diffuse.structure.atoms import load_structure, make_structure
from dials_diffuse.structure.composition import average_contents, neighbours
from dials_diffuse.structure.contents import PROTEIN_VOLUME, CellContents, add_water, contents_of_structure, mass_of
from dials_diffuse.structure.expectation import expectation_of
from dials_diffuse.structure.factors import sum_of_squares
from dials_diffuse.structure.solvent import bulk_solvent_structure_factors
from dials_diffuse.structure.surroundings import AIR_DENSITY, WATER_DENSITY, air, water

N = 40

#: Å, length of the bond to hydrogen
_TO_HYDROGEN = {"C": 1.09, "N": 1.01, "O": 0.97, "S": 1.33}

#: relative displacements of neighbours, Å²: interference of what moves together
_TOGETHER = 0.04


@dataclass(frozen=True)
class Experiment:
    """What :func:`absolute_scale` wants, and the answer.

    empty : diffuse intensity less air and liquid, the latter within 10 %; subtracted : less air alone; plain : as it is
        on the images
    """

    grid: MapGrid
    bragg: Bragg
    empty: object
    subtracted: object
    plain: object
    s_max: float
    k: float
    description: str
    molecule: object


def with_hydrogens(structure):
    """The atoms with the hydrogens that they bind, at right distances and angles; those that can turn are anywhere.

    Heavy atoms nearer than 1.95 Å are bonded. Of 960 hydrogens of triclinic lysozyme (6O2H) it places 960.
    """
    heavy = structure.element != "H"
    site = structure.site_frac[heavy] @ structure.orthogonalization.T
    element = structure.element[heavy]
    rng = np.random.default_rng(0)
    sites, parents = [], []
    for i, near in enumerate(cKDTree(site).query_ball_point(site, 1.95)):
        bonds = np.array([site[j] - site[i] for j in near if j != i]).reshape(-1, 3)
        for direction in _bonds_to_hydrogen(element[i], bonds, rng):
            sites.append(site[i] + _TO_HYDROGEN[element[i]] * direction / np.linalg.norm(direction))
            parents.append(i)
    of = np.append(np.flatnonzero(heavy), np.flatnonzero(heavy)[parents])
    sites = np.concatenate([site, sites]) @ np.linalg.inv(structure.orthogonalization).T
    elements = [*element.tolist(), *["H"] * len(parents)]
    place = {"occupancy": structure.occupancy[of], "altloc": structure.altloc[of], "u": structure.u_iso[of]}
    return make_structure(structure.unit_cell, f"Hall: {structure.hall_symbol}", elements, sites, **place)


def _bonds_to_hydrogen(element: str, bonds: np.ndarray, rng) -> list:
    """Directions of the hydrogens of an atom of an element from its bonds to heavy atoms."""
    if element not in _TO_HYDROGEN:
        return []
    length = np.linalg.norm(bonds, axis=1)
    units = bonds / length[:, None]
    out = -units.sum(axis=0)
    across = np.cross(units[0] if len(units) else rng.normal(size=3), rng.normal(size=3))
    across /= np.linalg.norm(across)
    if element == "C" and len(units) == 3:
        return [out] if np.linalg.norm(out) > 0.35 else []
    if element == "C" and len(units) == 2:
        cosine = units[0] @ units[1]
        if (cosine < -0.4 and length.mean() < 1.45) or (cosine < -0.25 and length.min() < 1.42):
            return [out]  # flat: aromatic
        up = np.cross(*units)
        up /= np.linalg.norm(up)
        return [0.58 * out / np.linalg.norm(out) + sign * 0.815 * up for sign in (1, -1)]
    if element == "N" and len(units) == 2:
        return [out]
    if element == "O" and not len(units):  # water
        other = np.cross(across, rng.normal(size=3))
        return [0.61 * across + sign * 0.79 * other / np.linalg.norm(other) for sign in (1, -1)]
    if len(units) != 1 or (element == "O" and length[0] < 1.32):
        return []
    number = 3 if element == "C" or (element == "N" and length[0] > 1.41) else 2 if element == "N" else 1
    back, side = (0.5, 0.866) if number == 2 else (0.334, 0.943)
    other = np.cross(units[0], across)
    turns = 2 * np.pi * np.arange(number) / number
    return [side * (np.cos(t) * across + np.sin(t) * other) - back * units[0] for t in turns]


def molecule_in_cell(structure, share: float, b_factor: float, rng):
    """The atoms in a P 1 cell of which they take a share, turned at random, their displacements times a factor."""
    sites = structure.site_frac @ structure.orthogonalization.T
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    sites = (sites - sites.mean(axis=0)) @ turn.T
    size = np.ptp(sites, axis=0) + 2.0
    elements = structure.element.tolist()
    atoms = {e: float(structure.occupancy[structure.element == e].sum()) for e in set(elements)}
    volume = PROTEIN_VOLUME * mass_of(atoms) / share
    size *= (volume / size.prod()) ** (1 / 3)
    place = {"occupancy": structure.occupancy, "altloc": structure.altloc}
    return make_structure((*size, 90, 90, 90), "P 1", elements, sites / size, u=structure.u_iso * b_factor, **place)


def shells_of(s, values, weight, edges):
    shell = np.digitize(s, edges) - 1
    return np.bincount(shell, values, len(edges))[: len(edges) - 1] / weight


def simulate_experiment(structure, seed: int) -> Experiment:
    """One experiment with everything drawn at random."""
    rng = np.random.default_rng(seed)
    share, b_factor = rng.uniform(0.4, 0.68), rng.uniform(0.6, 1.8)
    thickness, liquid, length = rng.uniform(0.08, 0.4), rng.uniform(0, 0.1), rng.uniform(2, 30)
    d_min = rng.uniform(1.6, 2.5)
    crystal = molecule_in_cell(structure, share, b_factor, rng)
    volume = crystal.cell.volume()
    grid = MapGrid(crystal.unit_cell, " P 1", (1, 1, 1), d_min)
    hkl, with_solvent = bulk_solvent_structure_factors(crystal, d_min, rng.uniform(0.3, 0.4), rng.uniform(30, 80))
    _, alone = bulk_solvent_structure_factors(crystal, d_min, 0.0)
    together = replace(crystal, u_cart=np.tile(_TOGETHER * np.eye(3), (len(crystal.element), 1, 1)))
    _, still = bulk_solvent_structure_factors(together, d_min, 0.0)
    s = np.linalg.norm(hkl @ grid.reciprocal_matrix.T, axis=1)
    edges = np.arange(0, 1 / d_min + 0.01, 0.01)
    middle = (edges[1:] + edges[:-1]) / 2
    n = np.maximum(shells_of(s, np.ones(len(s)), 1, edges), 1)
    moving = shells_of(s, np.abs(still) ** 2 - np.abs(alone) ** 2, n, edges)
    moving += sum_of_squares(together, middle) - sum_of_squares(together, middle, displaced=True)
    contents = contents_of_structure(crystal)
    rest = replace(contents, atoms=contents.molecules, pairs=()).compton(middle)
    ring, height = rng.normal(1, 0.02), rng.normal(1, 0.05)
    liquid_curve = lambda x: height * water(np.asarray(x) * ring)  # noqa: E731
    own = moving + rest + contents.water * liquid_curve(middle)
    around = liquid / thickness * volume * WATER_DENSITY * liquid_curve(middle)
    gas = length / thickness * volume * AIR_DENSITY * air(middle)
    k = float(rng.uniform(1, 100))
    wave = 1 + 0.01 * np.sin(2 * np.pi * (middle * rng.uniform(3, 10) + rng.uniform()))
    curves = [(own + around + extra) * wave / k for extra in (rng.normal(0, 0.01) * gas, gas)]
    kept = rng.random(len(s)) < 0.95
    index = np.concatenate([hkl[kept], -hkl[kept]])
    intensity = np.abs(with_solvent[kept]) ** 2 / k
    intensity = np.tile(intensity * (1 + 0.04 * rng.normal(size=len(intensity))), 2)
    bragg = Bragg(index, intensity, (0.04 * intensity + 0.02 * intensity.mean()) ** 2)
    curves.insert(0, curves[0] - (1 + rng.normal(0, 0.1)) * around * wave / k)
    profiles = (lambda x, c=c: np.interp(x, middle, c) for c in curves)
    text = f"{share:5.2f} {b_factor:5.2f} {thickness:6.2f} {liquid:7.3f} {length:6.1f} {d_min:6.2f}"
    return Experiment(grid, bragg, *profiles, 1 / d_min, k, text, contents)


#: what the images without crystal show that were subtracted; was anything, and was it all around the crystal?
BACKGROUNDS = {"air and liquid": (True, True), "air": (True, False), "none": (False, False)}


def main(models=(), first: int = 0) -> None:
    """Print a line for each experiment, and how often the truth is within one and two e.s.d.s."""
    paths = models or [str(example_path("lysozyme"))]
    structures = [with_hydrogens(load_structure(path)) for path in paths]
    print(__doc__)
    print(
        "share B     crystal liquid    air  d_min   k/true and e.s.d.: background air and liquid, air, none | nothing"
    )
    table = []
    for number in range(first, first + N):
        e = simulate_experiment(structures[number % len(structures)], number)
        row = []
        for expectation in expectations(e):
            for profile, background in zip((e.empty, e.subtracted, e.plain), BACKGROUNDS.values()):
                row.append(_found(e, profile, expectation, background))
        table.append(row)
        print(e.description, "  ", "  ".join(f"{a:.3f} ± {b:.3f}" for a, b in row), flush=True)
    print("\n" + " " * 44 + "rms error  median  largest  mean e.s.d.  within 1, 2 e.s.d.")
    names = [f"{known}, background: {b}" for known in ("sequence", "nothing known") for b in BACKGROUNDS]
    for name, (ratio, esd) in zip(names, np.array(table).transpose(1, 2, 0)):
        good = np.isfinite(ratio)
        error, esd = np.abs(np.log(ratio[good])), esd[good]
        within = [f"{100 * np.mean(error < n * esd):.0f} %" for n in (1, 2)]
        print(
            f"{name:42} {100 * np.sqrt(np.mean(error**2)):8.1f} % {100 * np.median(error):6.1f} % "
            f"{100 * error.max():6.1f} % {100 * esd.mean():8.1f} %   {within[0]:>6} {within[1]:>6}   of {len(error)}"
        )


def _found(e: Experiment, profile, expectation, background: tuple) -> tuple:
    """k relative to the true one, and its relative e.s.d."""
    try:
        found = absolute_scale(e.grid, profile, (0.02, e.s_max), e.bragg, expectation, "separation", *background)
    except DiffuseError as error:
        print(error)
        return np.nan, np.nan
    return found.k / e.k, found.esd / found.k


def expectations(e: Experiment):
    """Of the right atoms without coordinates, and of an average protein."""
    atoms = e.molecule.molecules
    known = add_water(CellContents("atoms", e.molecule.volume, atoms, neighbours(atoms), 0.02), "atoms")
    for contents in (known, average_contents(e.grid.unit_cell, e.grid.hall_symbol)):
        yield expectation_of(contents, e.grid.d_min)


if __name__ == "__main__":
    seeds = [int(a) for a in sys.argv[1:] if a.isdigit()]
    main([a for a in sys.argv[1:] if not a.isdigit()], *seeds[:1])
