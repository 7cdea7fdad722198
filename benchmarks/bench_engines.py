"""Diffuse models against the library calls that do their work: dgemm, FFT and finufft.

CPU seconds with one thread, all in the same run. The time within the library is measured while the model is computed:
what is above it is our own.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import scipy.fft
from bench_models import D_MIN, points
from threadpoolctl import threadpool_limits

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.covariance.motion import JointMotion, chebyshev_form, shells
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.simulation.plan import example_path
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.transform import off_lattice_transform

N_ATOMS, N_POINTS = 1000, 20_000
TOLERANCE = 1e-6
#: points of the non-uniform FFT; the atoms are sampled once, however many there are
MANY = (300_000, 1_000_000)


@contextmanager
def timed(module, names):
    """Count CPU seconds within functions of a module; yields the list whose sum they are."""
    spent: list = []
    depth = [0]
    originals = {name: getattr(module, name) for name in names}

    def wrapped(function: Callable) -> Callable:
        def call(*args, **options):
            depth[0] += 1
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    spent.append(time.process_time() - start)

        return call

    for name, function in originals.items():
        setattr(module, name, wrapped(function))
    try:
        yield spent
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


def own_share(label: str, function: Callable, module, names, repeats: int) -> dict:
    """Ratio of the whole to what is within the library, median of repeats."""
    function()  # compile, and warm the caches
    wholes, ratios = [], []
    for _ in range(repeats):
        start = time.process_time()
        with timed(module, names) as spent:
            function()
        wholes.append(time.process_time() - start)
        ratios.append(wholes[-1] / sum(spent))
    whole, ratio = statistics.median(wholes), statistics.median(ratios)
    print(f"{label:56s} {whole:7.2f} s   {ratio:5.2f} x the library's", flush=True)
    return {"label": label, "seconds": whole, "ratio": ratio}


def covariance(repeats: int) -> dict:
    """Rate of the exact isotropic covariance, counting the products that its triangle needs."""
    structure = load_structure(example_path("lysozyme")).take(np.arange(N_ATOMS))
    distance = np.linalg.norm(structure.site_cart[:, None] - structure.site_cart, axis=-1)
    v = 0.16 * np.exp(-distance / 10.0)
    s = points(N_POINTS)
    a = JointMotion(structure, np.arange(N_ATOMS), v).amplitudes(s, "wk1995")
    square = (2 * math.pi) ** 2 * np.sum(s**2, axis=1)
    nodes = shells(N_POINTS, N_ATOMS, float(np.ptp(square)), float(v.max()), TOLERANCE)[0]
    products = nodes * 2 * N_POINTS * N_ATOMS * (N_ATOMS + 1.0)
    left, right = np.random.default_rng(0).random((2, 2000, 2000))
    rates: dict = {"dgemm": [], "covariance": []}
    for _ in range(repeats + 1):
        start = time.process_time()
        left @ right
        rates["dgemm"].append(2 * len(left) ** 3 / (time.process_time() - start) / 1e9)
        start = time.process_time()
        chebyshev_form(square, a, v, TOLERANCE)
        rates["covariance"].append(products / (time.process_time() - start) / 1e9)
    dgemm, ours = (statistics.median(values[1:]) for values in rates.values())
    print(
        f"covariance of {N_ATOMS} atoms, {N_POINTS} points, {nodes} nodes: {ours:.1f} of {dgemm:.1f} GFLOP/s of dgemm, "
        f"{100 * ours / dgemm:.0f} %",
        flush=True,
    )
    return {"label": "covariance", "gflops": ours, "dgemm": dgemm, "ratio": ours / dgemm}


def main(repeats: int = 3) -> None:
    import finufft

    structure = load_structure(example_path("lysozyme"))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), D_MIN)
    ffts = [name for name in scipy.fft.__all__ if name.endswith(("fft", "fftn", "fft2"))]
    with threadpool_limits(limits=1):
        results = [covariance(repeats)]
        for orders in (1, 3):
            model = LiquidLikeMotions(sigma=0.3, gamma=10.0, orders=orders)
            label = f"liquid-like motions, 3x3x3 to {D_MIN} Å, orders={orders}, of FFTs"
            results.append(own_share(label, lambda m=model: m.intensity(structure, grid), scipy.fft, ffts, 1))
        few = structure.take(np.arange(N_ATOMS))
        for number in MANY:
            s = points(number)
            label = f"{N_ATOMS} atoms at {number} points, of finufft"
            results.append(own_share(label, lambda s=s: off_lattice_transform(few, s), finufft, ["nufft3d2"], repeats))
    print("RESULT " + json.dumps(results))
