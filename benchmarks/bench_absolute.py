"""The absolute scale without coordinates in 40 simulated experiments: how far it is off, and what it says of itself.

A molecule in P 1 cells of different size, with different displacements, thickness of crystal, liquid and air, and data
to different resolution: Bragg intensities of its atoms in flat bulk solvent, and the isotropic part of what is between
them. The ring of the simulated water is not quite where the program takes it to be. Four ways for each: with the
sequence or knowing nothing, with images of air or without. ``bench_absolute.py [MODEL.pdb ...]`` takes other molecules.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np

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

#: relative displacements of neighbours, Å²: interference of what moves together
_TOGETHER = 0.04


@dataclass(frozen=True)
class Experiment:
    """What :func:`absolute_scale` wants, and the answer.

    subtracted : diffuse intensity with the air subtracted; plain : as it is on the images
    """

    grid: MapGrid
    bragg: Bragg
    subtracted: object
    plain: object
    s_max: float
    k: float
    description: str
    molecule: object


def molecule_in_cell(structure, share: float, b_factor: float, rng):
    """The atoms in a P 1 cell of which they take a share, turned at random, their displacements times a factor."""
    sites = structure.site_frac @ structure.orthogonalization.T
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    sites = (sites - sites.mean(axis=0)) @ turn.T
    size = np.ptp(sites, axis=0) + 2.0
    elements = structure.element.tolist()
    atoms = {e: float(structure.occupancy[structure.element == e].sum()) for e in set(elements)}
    atoms["H"] = atoms.get("H", 0.0) or 1.57 * atoms["C"]
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
    contents = contents_of_structure(crystal)  # with the hydrogens that the coordinates lack
    bare = contents_of_structure(crystal, bulk_solvent=False, hydrogens=False)
    lacking = replace(contents, atoms=contents.molecules, pairs=())
    rest = lacking.sum_of_squares(middle) - bare.sum_of_squares(middle) + lacking.compton(middle)
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
    subtracted, plain = (lambda x, c=c: np.interp(x, middle, c) for c in curves)
    text = f"{share:5.2f} {b_factor:5.2f} {thickness:6.2f} {liquid:7.3f} {length:6.1f} {d_min:6.2f}"
    return Experiment(grid, bragg, subtracted, plain, 1 / d_min, k, text, contents)


def main(models=()) -> None:
    """Print a line for each experiment, and how often the truth is within one and two e.s.d.s."""
    structures = [load_structure(path) for path in models or [str(example_path("lysozyme"))]]
    print(__doc__)
    print(
        "share B     crystal liquid    air  d_min   k/true and e.s.d.: with background images, without | nothing known"
    )
    errors = []
    for number in range(N):
        e = simulate_experiment(structures[number % len(structures)], number)
        row = []
        for expectation in expectations(e):
            for profile, subtracted in ((e.subtracted, True), (e.plain, False)):
                try:
                    found = absolute_scale(
                        e.grid, profile, (0.02, e.s_max), e.bragg, expectation, "separation", subtracted
                    )
                    row += [found.k / e.k, found.esd / found.k]
                except DiffuseError as error:
                    print(error)
                    row += [np.nan, np.nan]
        errors.append(row)
        print(e.description, "  ", "  ".join(f"{a:.3f} ± {b:.3f}" for a, b in zip(row[::2], row[1::2])))
    table = np.array(errors)
    print("\n" + " " * 52 + "rms error  largest  mean e.s.d.  within 1, 2 e.s.d.")
    names = [f"{c}, {b}" for c in ("sequence", "nothing known") for b in ("background images", "none")]
    for i, name in enumerate(names):
        error, esd = np.log(table[:, 2 * i]), table[:, 2 * i + 1]
        good = np.isfinite(error)
        error, esd = error[good], esd[good]
        within = [f"{100 * np.mean(np.abs(error) < n * esd):.0f} %" for n in (1, 2)]
        print(
            f"{name:50} {100 * np.sqrt(np.mean(error**2)):8.1f} % {100 * np.abs(error).max():8.1f} % "
            f"{100 * esd.mean():8.1f} %   {within[0]:>6} {within[1]:>6}   of {len(error)}"
        )


def expectations(e: Experiment):
    """Of the right atoms without coordinates, and of an average protein."""
    atoms = e.molecule.molecules
    known = add_water(CellContents("atoms", e.molecule.volume, atoms, neighbours(atoms), 0.02), "atoms")
    for contents in (known, average_contents(e.grid.unit_cell, e.grid.hall_symbol)):
        yield expectation_of(contents, e.grid.d_min)


if __name__ == "__main__":
    main(sys.argv[1:])
