"""Fits: are the errors honest, is there bias, and how long does a large map take?"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import Candidate, FitOptions, fit_models
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.nexus import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from dials_diffuse.models import LiquidLikeMotions, RigidBody
from dials_diffuse.models.prepared import prepare
from dials_diffuse.simulation.plan import example_path
from dials_diffuse.structure.atoms import load_structure, make_structure

TRIALS = 50
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
            (fit,) = fit_models(replace(data, intensity=noisy), [start], FitOptions(starts=1, profile=False))
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
    begin = time.perf_counter()
    prepared = prepare(model, structure, data.grid, data.index)
    ready = time.perf_counter()
    start = Candidate("llm", prepared, np.array([p.start for p in prepared.parameters]))
    (fit,) = fit_models(data, [start], FitOptions())
    end = time.perf_counter()
    text = ", ".join(f"{e.name} {e.value:.4f} ± {e.esd:.4f}" for e in fit.estimates)
    print(
        f"llm, {data.n} voxels to {size:.2f} Å: {ready - begin:.1f} s to prepare, {end - ready:.1f} s to fit ({text})"
    )


def main() -> None:
    recovery()
    speed()


if __name__ == "__main__":
    main()
