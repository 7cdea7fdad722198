"""How finely rotation and pixels must be sampled: until the error is lost in the Poisson noise."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.detector import pixel_directions
from dials_diffuse.simulation.sweep import Sweep

logger = logging.getLogger("dials.diffuse.simulation")

SUB_STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
SUB_PIXELS = (1, 2, 3)
REFERENCE = (32, 5)
SAMPLE_PIXELS = 2000
SAMPLE_IMAGES = 3


@dataclass(frozen=True)
class SamplingChoice:
    """sub_steps : of an image; sub_pixels : along the edge of a pixel; error : rms, in units of the Poisson noise."""

    sub_steps: int
    sub_pixels: int
    error: float


class _Probe:
    """A random sample of pixels of a few images whose diffuse intensity is averaged more or less finely."""

    def __init__(self, sweep: Sweep, detector, rng: np.random.Generator):
        self._sweep = sweep
        usable = sweep.usable
        ends = np.cumsum([mask.sum() for mask in usable])
        if ends[-1] == 0:
            raise DiffuseError(
                f"no pixel sees diffuse scattering: beam_stop.radius={sweep.parameters.defects.beam_stop:g} mm, "
                f"d_min={sweep.parameters.d_min}; make the beam stop smaller, or check geometry and d_min"
            )
        chosen = rng.choice(ends[-1], min(SAMPLE_PIXELS, ends[-1]), replace=False)
        self._panels = []
        picked = [np.zeros(mask.shape, dtype=bool) for mask in usable]
        for p, mask in enumerate(usable):
            first = ends[p - 1] if p else 0
            flat = np.sort(np.flatnonzero(mask)[chosen[(chosen >= first) & (chosen < ends[p])] - first])
            y, x = np.unravel_index(flat, mask.shape)
            picked[p][y, x] = True
            if len(flat):
                self._panels.append((detector[p], np.stack([x, y], axis=1)))
        n = sweep.scan.n_images
        self._images = np.unique(np.linspace(0, n - 1, SAMPLE_IMAGES).astype(int))
        norms, noise = [], []
        for image in self._images:
            expected = sweep.expected(image, picked)
            norms.append(np.concatenate([e.norm[m] for e, m in zip(expected, picked)]))
            noise.append(np.sqrt(np.concatenate([e.total[m] for e, m in zip(expected, picked)])))
        self._norms, self._noise = np.array(norms), np.array(noise)

    def counts(self, sub_steps: int, sub_pixels: int) -> np.ndarray:
        """(images, pixels) diffuse counts over their Poisson noise."""
        sweep, steps = self._sweep, (np.arange(sub_pixels) + 0.5) / sub_pixels
        directions = [
            [pixel_directions(panel, pixels + [dx, dy]) for panel, pixels in self._panels]
            for dy in steps
            for dx in steps
        ]
        directions = [np.concatenate(d) for d in directions]
        result = np.zeros(self._norms.shape)
        total = sum(c.thickness for c in sweep.crystals)
        for row, image in enumerate(self._images):
            for crystal in sweep.crystals:
                for step in range(sub_steps):
                    position = image + (step + 0.5) / sub_steps
                    s0 = crystal.scan.s0_at(position)
                    to_hkl = np.linalg.inv(crystal.scan.matrix_at(position)).T
                    for u in directions:
                        hkl = (u * np.linalg.norm(s0) - s0) @ to_hkl
                        result[row] += sweep.sample.volume(hkl) * crystal.thickness / total
        return result / (sub_steps * len(directions)) * self._norms / np.maximum(self._noise, 1e-12)


def choose_sampling(sweep: Sweep, detector, tolerance: float, rng: np.random.Generator) -> SamplingChoice:
    """The coarsest sampling whose rms error in a pixel's counts is below ``tolerance`` times its Poisson noise.

    The error is measured against a much finer sampling on random pixels of a few images.

    Parameters
    ----------
    sweep : with crystals and a diffuse volume
    detector : its dxtbx detector
    """
    probe = _Probe(sweep, detector, rng)
    reference = probe.counts(*REFERENCE)

    def error(*sampling):
        return float(np.sqrt(np.mean((probe.counts(*sampling) - reference) ** 2)))

    share = tolerance / np.sqrt(2)
    sub_steps = next((n for n in SUB_STEPS if error(n, REFERENCE[1]) < share), SUB_STEPS[-1])
    sub_pixels = next((n for n in SUB_PIXELS if error(REFERENCE[0], n) < share), SUB_PIXELS[-1])
    choice = SamplingChoice(sub_steps, sub_pixels, error(sub_steps, sub_pixels))
    if choice.error > tolerance:
        logger.warning(
            "Sampling error %.3f of the Poisson noise, above sampling.tolerance=%g: the diffuse intensity varies "
            "within a pixel or a rotation step",
            choice.error,
            tolerance,
        )
    return choice
