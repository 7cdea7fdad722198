"""Integrated Bragg reflections in the unit of the diffuse rate."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import map_coordinates

from dials_diffuse.experiment.bragg_photons import bragg_photons
from dials_diffuse.experiment.pixel_factors import solid_angle
from dials_diffuse.files.observations import BRAGG_DTYPE
from dials_diffuse.reduction.job import Job


def bragg_rows(job: Job, reflections, flux: dict) -> tuple | None:
    """Bragg reflections of an experiment as rows of the observation file.

    A spot counts ``∫ c R dΩ/ω dt`` photons, where R is the rate that a voxel would get (counts over norm), c the
    corrections of a pixel, ω its solid angle and t the exposure. The part of reciprocal space that a pixel sweeps is
    ``d³s = λ⁻² dΩ v dt``, with the speed v at which a reciprocal-lattice point crosses the Ewald sphere. So
    ``∫ R d³s = photons · (ω / c) · λ⁻² · v``, and the volume of the reciprocal cell makes it a rate. Corrections that
    are switched off for the diffuse rows are not applied here either.

    Parameters
    ----------
    job : after its images were reduced
    reflections : dials reflection table of all experiments
    flux : relative intensity of the images used, by position

    Returns
    -------
    rows : (n,) structured array of BRAGG_DTYPE, inside the resolution limits, on images and pixels that were used
    inverse_scale_factor : (n,) float64 of dials.scale, for these intensities, or None

    None where the table has no integrated intensities.
    """
    own = reflections.select(reflections["id"] == job.number)
    spots = bragg_photons(own, job.scan) if len(own) else None
    if spots is None or not len(spots):
        return None
    image = spots.centre[:, 2].astype(int)
    exposure = np.zeros(job.scan.n_images)
    for i, f in flux.items():
        exposure[i] = job.exposure(i) * f
    keep = (exposure[image] > 0) & (spots.s <= 1 / job.grid.d_min) & (spots.s >= 1 / job.grid.d_max)
    per_norm = np.full(len(spots), np.nan)  # steradian of a pixel over its corrections
    for p, panel in enumerate(job.panels):
        mine = np.flatnonzero(keep & (spots.panel == p))
        ny, nx = panel.shape
        x, y = spots.centre[mine, :2].astype(int).T
        keep[mine] = (job.bad[p][np.clip(y, 0, ny - 1), np.clip(x, 0, nx - 1)] == 0) & (x < nx) & (y < ny)
        at = spots.centre[mine, 1::-1].T - 0.5  # pixel centres are at i + 0.5
        ratio = solid_angle(panel) / np.where(job.corrections[p] > 0, job.corrections[p], np.nan)
        per_norm[mine] = map_coordinates(ratio, at, order=1, mode="nearest")
    keep = np.flatnonzero(keep & np.isfinite(per_norm))
    position = spots.centre[keep, 2]
    wavelength = 1 / np.array([np.linalg.norm(job.scan.s0_at(z)) for z in range(job.scan.n_images)])[image[keep]]
    radians = abs(math.radians(job.scan.oscillation[1]))
    time = exposure[image[keep]]
    cell_volume = 1 / abs(np.linalg.det(job.grid.reciprocal_matrix))
    factor = per_norm[keep] * spots.speed[keep] * radians / time / wavelength**2 * cell_volume
    rows = np.zeros(len(keep), BRAGG_DTYPE)
    rows["hkl"] = spots.hkl[keep]
    rows["experiment"] = job.number
    rows["panel"] = spots.panel[keep]
    rows["xyz"][:, :2] = spots.centre[keep, :2]
    rows["xyz"][:, 2] = job.scan.oscillation[0] + job.scan.oscillation[1] * position
    rows["s"] = spots.s[keep]
    rows["intensity"] = spots.photons[keep] * factor
    rows["variance"] = spots.variance[keep] * factor**2
    scaled = spots.inverse_scale_factor
    if scaled is None:
        return rows, None
    valid = scaled[keep] > 0  # reflections that dials.scale left alone have no scale factor
    return rows, np.where(valid, scaled[keep] / (time / time.mean()), np.nan)
