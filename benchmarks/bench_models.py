"""Diffuse models: engines of the general covariance, liquid-like motions, structure factors off the lattice.

CPU seconds, of all threads.
"""

from __future__ import annotations

import multiprocessing
import resource
import time

import numpy as np
from timing import alternate

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.motion import JointMotion
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.simulation.plan import example_path
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.transform import direct_transform, lattice_transform, off_lattice_transform

N_ATOMS = 1000
D_MIN = 1.5
#: points on which the slow references are timed; their time grows with the number of points
SAMPLE = 400


def points(n: int, seed: int = 0) -> np.ndarray:
    """(n, 3) random vectors, uniform in a sphere of 1/D_MIN, in 1/Å."""
    rng = np.random.default_rng(seed)
    s = rng.normal(size=(n, 3))
    return s * (rng.uniform(size=n) ** (1 / 3) / D_MIN / np.linalg.norm(s, axis=1))[:, None]


def covariance(structure, n_points: int, repeats: int) -> None:
    distance = np.linalg.norm(structure.site_cart[:, None] - structure.site_cart, axis=-1)
    motion = JointMotion(structure.molecule(), np.arange(N_ATOMS), 0.16 * np.exp(-distance / 10.0))
    s = points(n_points)
    exact = motion.coherent(s[:SAMPLE], "wk1995", "pair_sum", 0.0)
    fast = motion.coherent(s[:SAMPLE], "wk1995", "chebyshev", 1e-6)
    error = np.abs(fast - exact).max() / np.sqrt(np.mean(exact**2))
    seconds = alternate(
        {
            "pair sum": lambda: motion.coherent(s[:SAMPLE], "wk1995", "pair_sum", 0.0),
            "matrix products": lambda: motion.coherent(s, "wk1995", "chebyshev", 1e-6),
        },
        repeats,
        warm=False,
    )
    seconds["pair sum"] *= n_points / SAMPLE
    report(f"covariance of {N_ATOMS} atoms, {n_points} points", seconds, "pair sum")
    print(f"  largest relative error of the matrix products {error:.1e}")


def patterson(structure, d_min: float, repeats: int) -> None:
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), d_min)
    model = Covariance(sigma=0.3, gamma=10.0, engine="fft")
    voxels = grid.n_voxels * np.pi / 12  # half a sphere
    motion = model.motion(structure)
    s = points(SAMPLE)
    seconds = alternate(
        {
            "pair sum": lambda: motion.coherent(s, "wk1995", "pair_sum", 0.0),
            "Patterson function": lambda: model.intensity(structure, grid),
        },
        repeats,
        warm=False,
    )
    seconds["pair sum"] *= voxels / SAMPLE
    report(f"covariance of {N_ATOMS} atoms on {'x'.join(map(str, grid.shape))} voxels", seconds, "pair sum")


def off_lattice(structure, n_points: int, repeats: int) -> None:
    for n in (n_points, 10 * n_points):
        s = points(n)
        hkl = s[: 10 * SAMPLE] @ structure.orthogonalization
        seconds = alternate(
            {
                "direct sum": lambda hkl=hkl: direct_transform(structure, hkl),
                "non-uniform FFT": lambda s=s: off_lattice_transform(structure, s),
            },
            repeats,
            warm=False,
        )
        seconds["direct sum"] *= n / (10 * SAMPLE)
        report(f"structure factors of {N_ATOMS} atoms at {n} points", seconds, "direct sum")


def liquid_like_motions() -> None:
    """In a process of its own, whose largest memory is known."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, alone, memory = pool.apply(_liquid_like_motions)
    shape = "3x3x3 grid of lysozyme to 1.5 Å, three orders"
    report(shape, {"one structure-factor FFT": alone, "liquid-like motions": seconds}, "one structure-factor FFT")
    print(f"  largest memory {memory:.1f} GB")


def _liquid_like_motions() -> tuple:
    structure = load_structure(example_path("lysozyme"))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), D_MIN)
    start = time.process_time()
    LiquidLikeMotions(sigma=0.3, gamma=10.0, orders=3).intensity(structure, grid)
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    start = time.process_time()
    lattice_transform(structure.expand(), grid)
    return seconds, time.process_time() - start, memory


def report(title: str, seconds: dict, reference: str) -> None:
    print(title)
    for name, value in seconds.items():
        print(f"  {name:26s} {value:9.2f} s   {seconds[reference] / value:7.1f} x as fast as the {reference}")


def main(n_points: int = 100_000, d_min: float = 2.5, repeats: int = 1) -> None:
    """n_points : of the covariance, ten times as many of structure factors; d_min : Å, of the Patterson function"""
    structure = load_structure(example_path("lysozyme"))
    structure = structure.take(np.arange(N_ATOMS))
    off_lattice_transform(structure, points(10))  # compile, and warm the caches
    direct_transform(structure, np.zeros((1, 3)))
    covariance(structure, n_points, repeats)
    off_lattice(structure, n_points, repeats)
    patterson(structure, d_min, repeats)
    liquid_like_motions()
