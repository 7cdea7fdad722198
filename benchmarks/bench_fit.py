"""Fits: are the errors honest, is there bias, are all covariances of pairs found, and how long do large fits take?

    bench_fit.py [recovery] [speed] [pairs] [groups]     all of them by default

``pairs`` needs the coordinates 5zck.pdb: in $DIALS_DIFFUSE_DATA/pdb, or in ../shared/data/pdb beside the checkout.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import Candidate, fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.pairs.group_fit import fit_groups, sampled_rows
from dials_diffuse.fitting.pairs.pair_freedom import pair_freedom
from dials_diffuse.fitting.pairs.pair_minimisers import minimise_pairs
from dials_diffuse.fitting.pairs.pair_objective import PairObjective, Sample
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from dials_diffuse.models.covariance.group_factory import group_covariance
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.voxel_means import gauss_points
from dials_diffuse.simulation.plan import example_path
from dials_diffuse.structure.atoms import load_structure, make_structure
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.groups import group_centres, group_labels

TRIALS = 50
OPTIONS = FitOptions(background=10, starts=1, profile=False)
VOXELS = 500_000

#: name -> (model, noise relative to the rms of the anisotropic signal)
CASES = {
    "llm": (LiquidLikeMotions(sigma=0.3, gamma=6.0), 0.1),
    "llm, overall": (LiquidLikeMotions(sigma=0.35, gamma=5.0, adp="overall"), 0.3),
    "llm, overall, V and G": (
        LiquidLikeMotions(V=(0.1, 0.1, 0.14, 0, 0, 0), G=(5.0, 5.0, 7.0, 0, 0, 0), adp="overall"),
        0.3,
    ),
    "rigid body": (RigidBody(sigma=0.35), 0.3),
    "rigid body, V": (RigidBody(V=(0.1, 0.07, 0.12, 0.02, 0.0, -0.01)), 0.1),
}


def crystal(n_atoms: int = 12, seed: int = 0):
    """A molecule of a few atoms in P 41."""
    rng = np.random.default_rng(seed)
    sites = np.array([3.0, 2.5, 4.5]) + rng.uniform(-2.5, 2.5, (n_atoms, 3))
    cell = (16.0, 16.0, 18.0, 90.0, 90.0, 90.0)
    elements = ["CNOS"[i % 4] for i in range(n_atoms)]
    return make_structure(cell, "P 41", elements, sites / cell[:3], u=rng.uniform(0.15, 0.3, n_atoms))


def recovery(trials: int = TRIALS) -> None:
    """Truth by summation over all reflections, noise from as many seeds, background and scale unknown."""
    structure = crystal()
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 2.5)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[np.any(index != 0, axis=1)]
    s = (index / np.array(grid.subdivide)) @ grid.reciprocal_matrix.T
    b = grid.reciprocal_matrix
    turns = [np.linalg.inv(b).T @ r @ b.T for r in laue_operators(structure.space_group, friedel=False)]
    size = np.linalg.norm(s, axis=1)
    print(f"{trials} trials, {len(index)} voxels to {grid.d_min} Å")
    for name, (model, noise) in CASES.items():
        truth = np.mean([model.intensity_at(structure, s @ turn) for turn in turns], axis=0)
        clean = 0.02 * truth + 30 * np.exp(-3 * size)
        sigma = noise * 0.02 * truth.std()
        ones = np.ones(len(index))
        data = select(DiffuseMap(grid, True, index, clean, sigma * ones, ones.astype(int)), Selection())
        prepared = prepare(model, structure, data.grid, data.index)
        values = np.array([p.value for p in prepared.parameters])
        start = Candidate(name, prepared, 1.2 * values)
        scores, found = [], []
        for seed in range(trials):
            noisy = clean[data.row] + sigma * np.random.default_rng(seed).normal(size=data.n)
            (fit,) = fit_models(replace(data, intensity=noisy), [start], OPTIONS)
            found.append([e.value for e in fit.estimates])
            scores.append([(e.value - v) / e.esd for e, v in zip(fit.estimates, values)])
        scores, found = np.array(scores), np.array(found)
        print(f"{name}: within 2 e.s.d. {np.mean(np.abs(scores) < 2):.1%}, rms score {np.sqrt(np.mean(scores**2)):.2f}")
        for p, v, column, score in zip(prepared.parameters, values, found.T, scores.T):
            scatter = column.std(ddof=1)
            print(
                f"  {p.name:<6} truth {v:8.4f}  mean {column.mean():8.4f} ± {scatter / math.sqrt(trials):.4f}  "
                f"scatter {scatter:.4f}  rms score {np.sqrt(np.mean(score**2)):.2f}"
            )


def speed() -> None:
    """A liquid in a crystal of a protein, fitted to many voxels with noise."""
    structure = load_structure(example_path("lysozyme"))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 1.0)
    size = 3.0
    model = LiquidLikeMotions(sigma=0.35, gamma=8.0)
    while True:  # the resolution that holds so many voxels
        volume = 4 / 3 * math.pi / size**3 * abs(np.linalg.det(np.linalg.inv(grid.reciprocal_matrix))) * 27
        if volume / len(laue_operators(grid.space_group, friedel=True)) >= VOXELS:
            break
        size *= 0.98
    grid = replace(grid, d_min=size)
    index = np.concatenate(list(possible_voxels(grid)))
    ones = np.ones(len(index))
    truth = model.intensity(structure, grid).reshape(-1)[grid.key(index)]
    sigma = 0.3 * truth.std()
    values = truth + sigma * np.random.default_rng(0).normal(size=len(index))
    data = select(DiffuseMap(grid, True, index, values, sigma * ones, ones.astype(int)), Selection())
    for means in (True, False):
        begin = time.process_time()
        prepared = prepare(model, structure, data.grid, data.index, means=means)
        ready = time.process_time()
        start = Candidate("llm", prepared, np.array([p.start for p in prepared.parameters]))
        (fit,) = fit_models(data, [start], FitOptions(background=10))
        end = time.process_time()
        text = ", ".join(f"{e.name} {e.value:.4f} ± {e.esd:.4f}" for e in fit.estimates)
        print(
            f"llm, {data.n} voxels to {size:.2f} Å, {'means over voxels' if means else 'voxel centres'}: "
            f"{ready - begin:.1f} CPU s to prepare, {end - ready:.1f} to fit ({text})"
        )


def pairs_by_hand(structure, s: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The pair sum of the theory over the atoms of each symmetry copy, pair by pair."""
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index]
    total = np.zeros(len(s))
    x = (2 * math.pi) ** 2 * np.sum(s**2, axis=1)
    for turn in structure.rotations:
        phases = 2 * math.pi * (s @ turn) @ structure.site_cart.T
        for i in range(len(v)):
            for j in range(i + 1):
                term = f[i] * f[j] * np.cos(phases[:, i] - phases[:, j]) * np.exp(-0.5 * x * (v[i, i] + v[j, j]))
                total += (1 if i == j else 2) * term * np.expm1(x * v[i, j])
    return total


def pairs(d_min: float = 0.98) -> None:
    """Every covariance of two of the 28 atoms of a peptide from exact data, scale and background unknown."""
    folder = Path(os.environ.get("DIALS_DIFFUSE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = folder / "pdb" / "5zck.pdb"
    if not path.exists():
        print(f"SKIPPED: all pairs of 5zck, {path} is not there")
        return
    structure = load_structure(path)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (6, 6, 6), d_min)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[np.any(index != 0, axis=1)]
    s = (index / 6) @ grid.reciprocal_matrix.T
    g, u, rng = structure.n_atoms, structure.u_iso, np.random.default_rng(0)
    distance = cdist(structure.site_cart, structure.site_cart)
    modes = rng.normal(size=(3, g))
    random = modes.T @ modes
    random /= np.sqrt(np.outer(np.diag(random), np.diag(random)))
    size = np.sqrt(np.outer(u, u))
    truth = size * (0.5 * np.exp(-distance / 5) + 0.3 * random + 0.2 * np.eye(g))
    begin = time.perf_counter()
    clean = 0.02 * pairs_by_hand(structure, s, truth)
    print(f"5zck: {g} atoms, {len(s)} points, {time.perf_counter() - begin:.0f} s for exact data")
    length = np.linalg.norm(s, axis=1)
    values = clean + 30 - 40 * length + 20 * length**2
    weights, work = np.full(len(s), (0.01 * clean.std()) ** -2.0), np.ones(len(s), dtype=bool)
    background = Background(length, 10)
    begin = time.perf_counter()
    groups = group_covariance(structure.without_displacements(), np.arange(g), s, adp="free", tolerance=1e-8)
    prior = np.median(u) * np.exp(-distance / 4)
    objective = PairObjective(
        groups, Projection(values, weights, background), weights, work, prior, background=background
    )
    found = minimise_pairs(objective, prior, 0.0, "newton", 100)
    end = time.perf_counter()
    freedom = pair_freedom(objective, found.covariance, 0.0, 0.0, factor=1.0)
    lower = np.tril_indices(g)
    deviation, error = (np.abs(x / size)[lower] for x in (found.covariance - truth, freedom.esd))
    determined = error < 0.01
    print(
        f"{len(error)} covariances, {found.iterations} steps, {end - begin:.0f} s; errors of 1 % would leave "
        f"{determined.sum()} with less than 1 %, largest deviation of these {deviation[determined].max():.2g}, of the "
        f"others {deviation[~determined].max():.2g}, of the start {np.abs((prior - truth) / size).max():.2g}"
    )


def groups(n_groups: int = 100, d_min: float = 2.0) -> None:
    """The covariance of many groups of a protein, averaged over voxels, with four strengths of the prior."""
    structure = load_structure(example_path("lysozyme"))
    labels = group_labels(structure, "residue")
    labels = labels * n_groups // (labels.max() + 1)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), d_min)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[grid.s_magnitude(index) > 0.1]
    s = (index / 2) @ grid.reciprocal_matrix.T
    rng = np.random.default_rng(0)
    centres = group_centres(structure, labels)
    distance = cdist(centres, centres)
    modes = 0.1 * rng.normal(size=(6, n_groups))
    modes = np.array([np.convolve(mode, np.ones(8) / 8**0.5, "same") for mode in modes])
    truth, prior = 0.06 * np.exp(-distance / 10) + modes.T @ modes, 0.08 * np.exp(-distance / 8)
    means = {"points": gauss_points(grid), "u": float(np.mean(structure.u_iso))}
    begin, cpu = time.perf_counter(), time.process_time()
    model = group_covariance(structure, labels, s, **means)
    clean = model.intensity(truth)
    sigma, ones = 0.02 * clean.std(), np.ones(len(s))
    noisy = clean + sigma * rng.normal(size=len(s))
    data = select(DiffuseMap(grid, True, index, noisy, sigma * ones, ones.astype(int)), Selection(bragg=True))
    rows = sampled_rows(data.free, n_groups)
    sample = None if rows is None else Sample(rows, group_covariance(structure, labels, s[data.row[rows]], **means))
    ready = time.perf_counter()
    found = fit_groups(data, model, prior, (1.0, 0.1, 0.01, 0.001), n_background=10, sample=sample)
    lower = np.tril_indices(n_groups)
    before, after = (np.corrcoef(v[lower], truth[lower])[0, 1] for v in (prior, found.covariance))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{n_groups} groups, {structure.n_atoms} atoms, {data.n} voxels: {ready - begin:.0f} s to prepare, "
        f"{time.perf_counter() - ready:.0f} s to fit "
        f"({time.process_time() - cpu:.0f} s of all cores), {peak:.1f} GB; correlation with the true covariances "
        f"{after:.3f} (prior {before:.3f}), {found.freedom.n_effective:.0f} of {len(lower[0])} from the data"
    )


def main(*names: str) -> None:
    parts = {"recovery": recovery, "speed": speed, "pairs": pairs, "groups": groups}
    for name in names or parts:
        parts[name]()


if __name__ == "__main__":
    main(*sys.argv[1:])
