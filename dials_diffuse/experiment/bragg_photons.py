"""Integrated Bragg reflections of DIALS as plain arrays: photons, and what turns them into intensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dials.array_family import flex

from dials_diffuse.experiment.scan import ScanGeometry

#: below this fraction of a reflection inside the scan, what is seen of it says little about the whole
MIN_PARTIALITY = 0.4

#: summed intensities above so many sigma are taken as they are; below, profile fitting is more precise
STRONG = 10.0

#: reflections with one of these flags are not used; not every version of DIALS knows all of them
_BAD_FLAGS = (
    "overloaded",
    "foreground_includes_bad_pixels",
    "overlapped_fg",
    "bad_shoebox",
    "bad_for_scaling",
    "excluded_for_scaling",
    "outlier_in_scaling",
    "user_excluded_in_scaling",
)


@dataclass(frozen=True)
class BraggPhotons:
    """n integrated reflections of one experiment.

    Attributes
    ----------
    hkl : (n, 3) int32
    panel : (n,) int32
    centre : (n, 3) float64; x, y in pixels (pixel centres at i + 0.5) and image position from the start of the scan
    direction : (n, 3) float64 unit vectors, laboratory frame
    s : (n,) float64, 1/Å
    photons, variance : (n,) float64, of the whole reflection, background subtracted, no correction applied
    speed : (n,) float64, 1/Å per radian of rotation: how fast the reciprocal-lattice point crosses the Ewald sphere,
        along its normal
    inverse_scale_factor : (n,) float64 of dials.scale, or None
    """

    hkl: np.ndarray
    panel: np.ndarray
    centre: np.ndarray
    direction: np.ndarray
    s: np.ndarray
    photons: np.ndarray
    variance: np.ndarray
    speed: np.ndarray
    inverse_scale_factor: np.ndarray | None

    def __len__(self) -> int:
        return len(self.panel)


def bragg_photons(reflections, scan: ScanGeometry, use_bad: bool = False) -> BraggPhotons | None:
    """The usable integrated reflections of one experiment; None where the table holds no integrated intensities.

    Summed intensities, or profile-fitted ones where the reflection is weaker than STRONG sigma. Overloaded, overlapped
    and otherwise bad reflections, and those of which less than MIN_PARTIALITY is inside the scan, are left out. A
    point h moves by ``m2 × s`` for each radian, and ``|s1·(m2 × s)| / |s1|`` of that is along the normal of the
    sphere: DIALS's Lorentz factor (``lp`` without polarization) times 1/λ.

    Parameters
    ----------
    reflections : dials reflection table of this experiment only
    scan : of the same experiment
    use_bad : take overloaded, overlapped and otherwise bad reflections, too
    """
    names = ("intensity.sum.value", "intensity.sum.variance", "s1", "xyzcal.px", "panel", "miller_index")
    if any(name not in reflections for name in names):
        return None
    photons, variance, good = _intensities(reflections, use_bad)
    centre = np.array(reflections["xyzcal.px"]).reshape(-1, 3)
    centre[:, 2] -= scan.first_index
    s1 = np.array(reflections["s1"]).reshape(-1, 3)
    image = np.clip(centre[:, 2].astype(int), 0, scan.n_images - 1)
    good &= (centre[:, 2] >= 0) & (centre[:, 2] < scan.n_images) & (np.linalg.norm(s1, axis=1) > 0)
    good = np.flatnonzero(good)
    s1, middle = s1[good], image[good] + 0.5
    direction = s1 / np.linalg.norm(s1, axis=1, keepdims=True)
    s = s1 - scan.s0_at(middle)
    scaled = None
    if "inverse_scale_factor" in reflections:
        scaled = np.array(reflections["inverse_scale_factor"], dtype=float)[good]
    hkl = np.array(reflections["miller_index"].as_vec3_double()).reshape(-1, 3)
    return BraggPhotons(
        hkl=np.rint(hkl[good]).astype(np.int32),
        panel=np.array(reflections["panel"])[good].astype(np.int32),
        centre=centre[good],
        direction=direction,
        s=np.linalg.norm(s, axis=1),
        photons=photons[good],
        variance=variance[good],
        speed=np.abs(np.einsum("ni,ni->n", direction, np.cross(scan.axis_at(middle), s))),
        inverse_scale_factor=scaled,
    )


def _intensities(table, use_bad: bool) -> tuple:
    """Photons of the whole reflection, their variance, and which of them are good; (n,) each."""
    value, variance = (np.array(table[f"intensity.sum.{name}"], dtype=float) for name in ("value", "variance"))
    flags = np.array(table["flags"]).astype(np.int64) if "flags" in table else None
    summed = _flagged(flags, "integrated_sum") if flags is not None else variance > 0
    part = np.array(table["partiality"], dtype=float) if "partiality" in table else np.ones(len(value))
    enough = part >= MIN_PARTIALITY
    part = np.where(enough, part, 1.0)
    value, variance = value / part, variance / part**2  # sums only: fitted profiles are those of whole reflections
    fitted = np.zeros(len(value), dtype=bool)
    if "intensity.prf.value" in table and flags is not None:
        prf, prf_variance = (np.array(table[f"intensity.prf.{name}"], dtype=float) for name in ("value", "variance"))
        fitted = _flagged(flags, "integrated_prf") & (prf_variance > 0)
        strong = summed & (value > STRONG * np.sqrt(np.maximum(variance, 0)))
        take = fitted & ~strong
        value, variance = np.where(take, prf, value), np.where(take, prf_variance, variance)
    good = (summed | fitted) & (variance > 0) & np.isfinite(value)
    for name in () if use_bad else _BAD_FLAGS:
        if flags is not None and hasattr(flex.reflection_table.flags, name):
            good &= ~_flagged(flags, name)
    if "miller_index" in table:
        good &= np.array(table["miller_index"] != (0, 0, 0), dtype=bool)
    return value, variance, good & enough


def _flagged(flags: np.ndarray, name: str) -> np.ndarray:
    """(n,) bool, reflections with all bits of a flag."""
    bits = int(getattr(flex.reflection_table.flags, name))
    return (flags & bits) == bits
