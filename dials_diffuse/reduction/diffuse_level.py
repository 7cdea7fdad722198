"""How much the diffuse intensity varies within a resolution shell, from the images themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import uniform_filter1d

from dials_diffuse.experiment.detector import s_magnitude
from dials_diffuse.reduction.outliers import N_SHELLS, ShellSample

NEAR, FAR = 3, 60  # pixels between partners
SMOOTHED = 25  # shells
CLIP = 4.0  # deviations beyond so many sigma are not diffuse
LARGEST = 0.1  # relative variation of the diffuse intensity that the clip leaves alone


class DiffuseLevel:
    """Collects, image by image, the variance of C/c in each resolution shell that is not counting noise.

    Counts of two pixels near each other have independent noise, but the same diffuse intensity: the mean product of
    their deviations from the isotropic part is its variance. The same of pixels further apart than features are wide is
    what varies slowly, as absorption does, and is taken off.
    """

    def __init__(self, sample: ShellSample, panels, s0, s_max: float):
        self.sample, self.panels = sample, panels
        self.centres = (np.arange(N_SHELLS) + 0.5) * s_max / N_SHELLS
        self.groups = [self._partner(sample, d) for d in (0, NEAR, FAR)]
        self.s = [self._s(g, s0) for g in self.groups]
        self.sums = np.zeros((4, N_SHELLS))  # number, product with the near, with the far, (difference)²

    def _partner(self, sample: ShellSample, distance: int) -> ShellSample:
        width = np.array([p.shape[1] for p in self.panels])[sample.panel]
        x = np.where(sample.x + distance < width, sample.x + distance, sample.x - distance)
        return replace(sample, x=np.clip(x, 0, width - 1))

    def _s(self, group: ShellSample, s0) -> np.ndarray:
        s = np.empty(len(group.x))
        for p, panel in enumerate(self.panels):
            mine = group.panel == p
            s[mine] = s_magnitude(panel.directions[:, group.y[mine], group.x[mine]], s0)
        return s

    def add(self, frame, bad, corrections, exposure: float, centre: np.ndarray) -> None:
        """Take one image into account.

        frame : Frame; bad, corrections : (ny, nx) of each panel; centre : (N_SHELLS,) C/c without outliers
        """
        known = np.isfinite(centre)
        if np.count_nonzero(known) < 2:
            return
        residuals = []
        for group, s in zip(self.groups, self.s):
            usual = np.interp(s, self.centres[known], centre[known])
            residual = np.full(len(s), np.nan)
            for p, panel in enumerate(self.panels):
                mine = group.panel == p
                y, x = group.y[mine], group.x[mine]
                value = frame.raw[p][y, x]
                good = (bad[p][y, x] == 0) & panel.reading.trusted(value) & (frame.bragg[p][y, x] != frame.number)
                if frame.usable is not None:
                    good &= frame.usable[p][y, x]
                expected = usual[mine] * corrections[p][y, x] * exposure
                deviation = panel.reading.counts(value) - expected
                good &= (expected > 0) & (
                    np.abs(deviation) < CLIP * np.hypot(np.sqrt(expected + 1), LARGEST * expected)
                )
                residual[mine] = np.where(good, deviation / np.where(expected > 0, expected, 1), np.nan)
            residuals.append(residual)
        near, far = residuals[0] * residuals[1], residuals[0] * residuals[2]
        good = np.isfinite(near) & np.isfinite(far)
        shell = np.repeat(np.arange(N_SHELLS), np.diff(self.sample.starts))[good]
        for row, values in zip(self.sums, (np.ones(good.sum()), near[good], far[good], (near - far)[good] ** 2)):
            row += np.bincount(shell, values, N_SHELLS)

    def rms(self) -> np.ndarray:
        """(N_SHELLS,) root mean square of what varies, relative to the whole rate. Where nothing is seen, the largest
        that could have been missed; NaN where no pixel was compared."""
        number, near, far, square = (uniform_filter1d(row, SMOOTHED, mode="nearest") for row in self.sums)
        some = number > 0
        count = np.where(some, number, 1)
        variance = (near - far) / count
        missed = 2 * np.sqrt(square / count / (SMOOTHED * count))
        result = np.where(some, np.sqrt(np.maximum(variance, missed)), np.nan)
        known = np.flatnonzero(some)
        return np.interp(np.arange(N_SHELLS), known, result[known]) if len(known) else result
