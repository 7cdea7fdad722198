"""Connected strong pixels of an image: where they are, what they count, and what is around them."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.image import median
from dials_diffuse.kernels.jit import njit


@njit
def measure_peaks(counts, empty, label, n, min_pixels, contrast, margin):
    """Centres and counts of peaks that stand out from what is around them.

    Parameters
    ----------
    counts : (ny, nx) float64
    empty : (ny, nx) bool, pixels of the background
    label : (ny, nx) int32, 1 to n in the peaks, 0 elsewhere
    min_pixels : int, of a peak, at least
    contrast : float, mean counts of a peak over the median of the background in its box, at least; a peak without
        background in its box stands out
    margin : int, pixels about a peak that belong to its box

    Returns
    -------
    centre : (m, 2) float64, x and y of the centres of mass, those of pixels at whole numbers; total : (m,) float64
    """
    ny, nx = counts.shape
    box = np.empty((n, 4), dtype=np.int64)  # first and last y and x
    sums, size = np.zeros((n, 3)), np.zeros(n, dtype=np.int64)
    for y in range(ny):
        for x in range(nx):
            i = label[y, x] - 1
            if i < 0:
                continue
            if size[i] == 0:
                box[i, 0], box[i, 1], box[i, 2], box[i, 3] = y, y, x, x
            box[i, 1] = y
            box[i, 2], box[i, 3] = min(box[i, 2], x), max(box[i, 3], x)
            size[i] += 1
            sums[i, 0] += counts[y, x]
            sums[i, 1] += counts[y, x] * x
            sums[i, 2] += counts[y, x] * y
    centre, total = np.empty((n, 2)), np.empty(n)
    around = np.empty(0)
    m = 0
    for i in range(n):
        if size[i] < min_pixels:
            continue
        y0, y1 = max(box[i, 0] - margin, 0), min(box[i, 1] + margin + 1, ny)
        x0, x1 = max(box[i, 2] - margin, 0), min(box[i, 3] + margin + 1, nx)
        if (y1 - y0) * (x1 - x0) > around.shape[0]:
            around = np.empty((y1 - y0) * (x1 - x0))
        k = np.int64(0)  # for a 0 in the source, median would be compiled a second time
        for y in range(y0, y1):
            for x in range(x0, x1):
                if empty[y, x]:
                    around[k] = counts[y, x]
                    k += 1
        if k > 0 and not sums[i, 0] / size[i] >= contrast * median(around, k):
            continue
        centre[m, 0], centre[m, 1] = sums[i, 1] / sums[i, 0], sums[i, 2] / sums[i, 0]
        total[m] = sums[i, 0]
        m += 1
    return centre[:m].copy(), total[:m].copy()
