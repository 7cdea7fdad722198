"""Lattice dynamics with a stiffness for each contact: are stiffnesses, errors and shares right, and how fast is it?

    bench_contacts.py [recovery] [speed]     both by default; recovery FILE SEEDS VOXELS to change them

Needs the coordinates 6o2h.pdb: in $DIALS_DIFFUSE_DATA/pdb, or in ../shared/data/pdb beside the checkout.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import Candidate, fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.lattice_dynamics.phonons import BLOCKS, Phonons
from dials_diffuse.models.prepared import prepare
from dials_diffuse.structure.atoms import load_structure

#: of the logarithms of the true stiffnesses, and noise over the rms of what is anisotropic
SPREAD, NOISE = 0.35, 1.0


def coordinates(name: str) -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("DIALS_DIFFUSE_DATA", beside)) / "pdb" / name


def voxels_of(structure, subdivide, d_min: float, number: int) -> tuple:
    """A grid, and so many of its voxels at random, none on a lattice point."""
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, subdivide, d_min)
    index = np.concatenate(list(possible_voxels(grid, friedel=True)))
    index = index[np.any(index % np.array(subdivide), axis=1)]
    chosen = np.random.default_rng(0).permutation(len(index))[:number]
    return grid, index[np.sort(chosen)]


def recovery(name: str = "6o2h.pdb", seeds: int = 20, number: int = 100_000) -> None:
    """Random stiffnesses about those of equal springs, noise, a fit from these; errors in units of e.s.d.s."""
    structure = load_structure(coordinates(name), "not element H")
    model = LatticeDynamics(0.3, "contacts", stiffness="full")
    grid, index = voxels_of(structure, (2, 2, 2), 1.6 if number > 20_000 else 2.5, number)
    prepared = prepare(model, structure, grid, index, means=True)
    p = len(prepared.parameters)
    print(
        f"{name}: {len(index)} voxels, {len(model.contacts(structure))} contacts, {p} parameters, noise {NOISE:g} rms"
    )
    print("seed strength n_eff  within 2 e.s.d.: TT    TR    RR   share TT   TR   RR   mean U found / true   s")
    every, ratios = {block: [] for block, *_ in BLOCKS}, []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        truth = SPREAD * rng.normal(size=p)
        intensity = prepared.intensity(truth)
        sigma = NOISE * np.full(len(index), np.std(intensity))
        ones = np.ones(len(index), dtype=int)
        data = DiffuseMap(grid, True, index, intensity + sigma * rng.normal(size=len(index)), sigma, 4 * ones)
        chosen = select(data, Selection())
        ready = prepare(model, structure, grid, chosen.index, means=True)
        begin = time.process_time()
        options = FitOptions(scale=1.0, starts=1, profile=False)
        (fit,) = fit_models(chosen, [Candidate("contacts", ready, np.zeros(p))], options)
        seconds = time.process_time() - begin
        known = Phonons(replace(model, log_stiffness=tuple(truth)), structure, np.zeros((p, p)))
        line = f"{seed:4d} {fit.prior.strength:8g} {fit.prior.n_effective:5.1f}                  "
        shares = {}
        for block, rows, columns in BLOCKS:
            off = []
            for found, true in zip(fit.details[0]["contacts"], known.contacts()):
                a, b, esd = (np.array(x)[rows, columns] for x in (found["stiffness"], true["stiffness"], found["esd"]))
                part = ((a - b) / esd)[np.triu_indices(3)] if block != "TR" else ((a - b) / esd).reshape(-1)
                off += part.tolist()
            shares[block] = np.mean([c["share"][block] for c in fit.details[0]["contacts"]])
            every[block] += off
            line += f" {np.mean(np.abs(off) < 2):5.2f}"
        line += "      " + "".join(f"{share:5.2f}" for share in shares.values())
        found, true = fit.details[0]["displacements"], known.displacements()
        ratios.append(np.array(found["u"]) / np.array(true["u"]))
        print(
            line + f"   {found['mean']:.4f} / {true['mean']:.4f}  {np.abs(ratios[-1] - 1).max():.3f}  {seconds:.0f}",
            flush=True,
        )
    print("all: " + ", ".join(f"{b} {np.mean(np.abs(x) < 2):.3f} (rms {np.std(x):.2f})" for b, x in every.items()))
    print(f"U of residues, found over true: rms deviation {np.sqrt(np.mean((np.array(ratios) - 1) ** 2)):.4f}")


def speed() -> None:
    """126 parameters, 100 000 voxels: seconds of CPU for each product."""
    structure = load_structure(coordinates("6o2h.pdb"), "not element H")
    model = LatticeDynamics(0.3, "contacts", stiffness="full")
    grid, index = voxels_of(structure, (2, 2, 2), 1.6, 100_000)
    for means in (False, True):
        begin = time.process_time()
        ready = prepare(model, structure, grid, index, means)
        print(f"{'means' if means else 'centres'}: prepared {time.process_time() - begin:.1f} s", end="")
        values, weights = np.zeros(len(ready.parameters)), np.ones(len(index))
        for name, work in (
            ("intensity", lambda ready=ready, values=values: ready.intensity(values)),
            ("gradient", lambda ready=ready, values=values, weights=weights: ready.gradient(values, weights)),
            ("all derivatives", lambda ready=ready, values=values: ready.jacobian(values)),
            ("Hessian", lambda ready=ready, values=values, weights=weights: ready.second(values, weights)),
        ):
            begin = time.process_time()
            work()
            print(f", {name} {time.process_time() - begin:.2f} s", end="")
        print(f"; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or words[0] == "speed":
        speed()
    if not words or words[0] == "recovery":
        recovery(*words[1:2], *map(int, words[2:]))
