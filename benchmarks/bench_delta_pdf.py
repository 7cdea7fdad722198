"""How well is a 3D-ΔPDF known from a map with holes, noise and Bragg positions?

Lysozyme (78.5 x 78.5 x 37.8 Å, P 43 21 2) with liquid-like motions at 2.5 Å, three voxels per reciprocal-lattice step.
Correlation with the ΔPDF of the whole map without noise, for vectors of 4 to 12 and of 12 to 30 Å; and the scatter of
the difference over the standard error, which is 1 where noise is all that is wrong. Noise is relative to the rms of the
anisotropic part. Bragg positions hold nothing, as in measured maps.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dials_diffuse.maps.columns import anisotropic
from dials_diffuse.maps.fourier import DeltaPdfParameters, delta_pdf
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.structure.atoms import load_structure

LYSOZYME = Path(__file__).parents[1] / "dials_diffuse" / "simulation" / "data" / "193l.pdb"
RANGES = ((4.0, 12.0), (12.0, 30.0))
CASES = (
    # share measured, noise, Bragg positions
    (1.0, 0.0, "none"),
    (1.0, 0.0, "neighbours"),
    (1.0, 0.0, "shell"),
    (0.9, 0.0, "neighbours"),
    (0.7, 0.0, "neighbours"),
    (0.5, 0.0, "neighbours"),
    (0.9, 0.5, "neighbours"),
    (0.9, 2.0, "neighbours"),
    (0.9, 5.0, "neighbours"),
)


def measured(truth, share: float, noise: float, bragg: bool, rng):
    """A map with half sets of which a share of the voxels, at random, was measured; without Bragg positions if so."""
    keep = rng.uniform(size=len(truth.index)) < share
    if bragg:
        keep &= ~np.all(truth.index % np.array(truth.grid.subdivide) == 0, axis=1)
    n, sigma = np.count_nonzero(keep), noise * anisotropic(truth).std()
    half_a, half_b = truth.intensity[keep] + 2**0.5 * sigma * rng.normal(size=(2, n))
    columns = {"sigma": np.full(n, sigma), "multiplicity": np.ones(n, np.int32), "half_a": half_a, "half_b": half_b}
    return replace(truth, index=truth.index[keep], intensity=(half_a + half_b) / 2, **columns)


def main() -> None:
    structure = load_structure(LYSOZYME)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 2.5)
    truth = compute_model(structure, grid, LiquidLikeMotions(sigma=0.3, gamma=10.0)).map
    expected = delta_pdf(truth, DeltaPdfParameters(bragg="none"))
    length, rng = expected.lengths(), np.random.default_rng(0)
    print(f"{len(truth.index)} unique voxels, {'x'.join(map(str, expected.values.shape))} points")
    print(
        f"{'measured':>9}{'noise':>7}  {'Bragg':<11}"
        + "".join(f"{a:>6g}-{b:g} Å{'':>8}" for a, b in RANGES)
        + "      s"
    )
    for share, noise, bragg in CASES:
        data = measured(truth, share, noise, bragg != "none", rng)
        start = time.perf_counter()
        found = delta_pdf(data, DeltaPdfParameters(bragg=bragg))
        seconds = time.perf_counter() - start
        cells = []
        for low, high in RANGES:
            use = (length > low) & (length < high)
            a, b = found.values[use].astype(float), expected.values[use].astype(float)
            sigma = found.noise[use].std() if noise else np.nan
            cells.append(f"{np.corrcoef(a, b)[0, 1]:>8.4f}{np.std(a - b) / sigma:>8.2f}")
        print(f"{share:>9g}{noise:>7g}  {bragg:<11}{''.join(cells)}{seconds:>9.1f}")


if __name__ == "__main__":
    main()
