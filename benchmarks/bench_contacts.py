"""Lattice dynamics with a stiffness for each contact: are stiffnesses, errors and shares right, and how fast is it?

    bench_contacts.py [recovery] [speed]     both by default; recovery FILE SEEDS VOXELS to change them
    bench_contacts.py whole VOXELS           a fit of eight bodies in the cell (193l) once whole

Needs the coordinates 6o2h.pdb and 193l.pdb: in $DIALS_DIFFUSE_DATA/pdb, or in ../shared/data/pdb beside the checkout.
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

#: of the logarithms of the true stiffnesses, and noise over the rms of the signal, for so many voxels: fewer have less
SPREAD, NOISE, VOXELS = 0.35, 1.0, 100_000
#: step of a true logarithm, for shares
STEP = 0.05


SELECTION = Selection()


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


def recovery(name: str = "6o2h.pdb", seeds: int = 20, number: int = 10_000) -> None:
    """Random stiffnesses about those of equal springs, noise, a fit from these; errors in units of e.s.d.s.

    number : of voxels, a random part of a map of VOXELS, with noise that is less as the root of both numbers' ratio:
        they tell as much as the whole map
    """
    structure = load_structure(coordinates(name), "not element H")
    model = LatticeDynamics(0.3, "contacts", stiffness="full")
    grid, index = voxels_of(structure, (2, 2, 2), 1.6, number)
    prepared = prepare(model, structure, grid, index, means=True)
    p, noise = len(prepared.parameters), NOISE * (number / VOXELS) ** 0.5
    print(
        f"{name}: {len(index)} voxels, {len(model.contacts(structure))} contacts, {p} parameters, noise {noise:.3g} rms"
    )
    print("seed strength n_eff  within 2 e.s.d.: TT    TR    RR   share TT   TR   RR   mean U found / true   s")
    every, ratios, means = {block: [] for block, *_ in BLOCKS}, [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        truth = SPREAD * rng.normal(size=p)
        unit = rng.normal(size=len(index))
        sigma = noise * np.full(len(index), np.std(prepared.intensity(truth)))

        def fit_to(true, strengths, start, unit=unit, sigma=sigma):
            """A fit to the intensity of some stiffnesses, always with the same noise."""
            four = np.full(len(index), 4)
            data = select(
                DiffuseMap(grid, True, index, prepared.intensity(true) + sigma * unit, sigma, four), SELECTION
            )
            ready = prepare(model, structure, grid, data.index, means=True)
            options = FitOptions(scale=1.0, starts=1, profile=False, strengths=strengths)
            return fit_models(data, [Candidate("contacts", ready, start)], options)[0]

        begin = time.process_time()
        fit = fit_to(truth, FitOptions().strengths, np.zeros(p))
        seconds = time.process_time() - begin
        known = Phonons(replace(model, log_stiffness=tuple(truth)), structure, np.zeros((p, p)))
        line = f"{seed:4d} {fit.prior.strength:8g} {fit.prior.n_effective:5.1f}                  "
        shares = {}
        for block, rows, columns in BLOCKS:
            off = []
            for found, true in zip(fit.details[0]["contacts"], known.contacts()):
                a, b, esd = (np.array(x)[rows, columns] for x in (found["stiffness"], true["stiffness"], found["esd"]))
                ratio = (a - b)[esd > 0] / esd[esd > 0]  # what an axis forbids has no error
                if block != "TR" and len(ratio) == 9:
                    ratio = ratio.reshape(3, 3)[np.triu_indices(3)]
                off += ratio.tolist()
            shares[block] = np.mean([c["share"][block] for c in fit.details[0]["contacts"] if block in c["share"]])
            every[block] += off
            line += f" {np.mean(np.abs(off) < 2):5.2f}"
        line += "      " + "".join(f"{share:5.2f}" for share in shares.values())
        found, true = fit.details[0]["displacements"], known.displacements()
        ratios.append(np.array(found["u"]) / np.array(true["u"]))
        means.append(found["mean"] / true["mean"])
        print(
            line + f"   {found['mean']:.4f} / {true['mean']:.4f}  {np.abs(ratios[-1] - 1).max():.3f}  {seconds:.0f}",
            flush=True,
        )
        if seed == 0:
            _moved(fit, truth, fit_to)
    print("all: " + ", ".join(f"{b} {np.mean(np.abs(x) < 2):.3f} (rms {np.std(x):.2f})" for b, x in every.items()))
    print(
        f"U, found over true: mean of all atoms at most {np.abs(np.array(means) - 1).max():.4f} off, of residues rms "
        f"{np.sqrt(np.mean((np.array(ratios) - 1) ** 2)):.4f}"
    )


def _moved(fit, truth: np.ndarray, fit_to) -> None:
    """Do fits follow the truth as far as shares say? The truth of single parameters moves, of high to low share."""
    values, order = np.array([e.value for e in fit.estimates]), np.argsort(fit.prior.share)[::-1]
    before = fit_to(truth, (fit.prior.strength,), values)
    for i in order[[0, len(order) // 8, len(order) // 3, len(order) // 2]]:
        after = fit_to(truth + STEP * np.eye(len(truth))[i], (fit.prior.strength,), values)
        moved = (after.estimates[i].value - before.estimates[i].value) / STEP
        print(f"     {fit.estimates[i].name:16} share {before.prior.share[i]:.3f}, moved by {moved:.3f}", flush=True)


def whole(number: int = 200_000) -> None:
    """Eight bodies in the cell, 102 parameters: seconds of CPU of a fit with all strengths."""
    structure = load_structure(coordinates("193l.pdb"), "not element H")
    model = LatticeDynamics(0.3, "contacts", stiffness="full")
    grid, index = voxels_of(structure, (3, 3, 3), 2.0, number)
    begin = time.process_time()
    ready = prepare(model, structure, grid, index, means=True)
    p = len(ready.parameters)
    truth = SPREAD * np.random.default_rng(0).normal(size=p)
    intensity = ready.intensity(truth)
    sigma = NOISE * np.full(len(index), np.std(intensity))
    values = intensity + sigma * np.random.default_rng(1).normal(size=len(index))
    data = select(DiffuseMap(grid, True, index, values, sigma, np.full(len(index), 4)), SELECTION)
    ready = prepare(model, structure, grid, data.index, means=True)
    print(f"{len(index)} voxels, {p} parameters: prepared in {(time.process_time() - begin) / 2:.0f} s", flush=True)
    begin = time.process_time()
    options = FitOptions(scale=1.0, starts=1, profile=False)
    (fit,) = fit_models(data, [Candidate("contacts", ready, np.zeros(p))], options)
    seconds, peak = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"fitted in {seconds:.0f} s, strength {fit.prior.strength:g}, converged: {fit.converged}; {peak:.1f} GB")


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
    if words and words[0] == "whole":
        whole(*map(int, words[1:]))
    if not words or words[0] == "recovery":
        recovery(*words[1:2], *map(int, words[2:]))
