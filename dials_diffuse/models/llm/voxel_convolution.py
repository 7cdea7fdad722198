"""Convolution of intensities on a reciprocal lattice with many kernels, at chosen voxels of a finer lattice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import scipy.fft

from dials_diffuse.compat import available_cores
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.llm.convolution import box_size, distinct_shifts, steps_between


class VoxelConvolution:
    """Sums (1/V) sum over h of strength(h) kernel(q - q_h) at fixed voxels, as in :func:`convolution.convolutions`.

    The transform of the strength is made once; of each kernel only what reaches the voxels is transformed back.

    Parameters
    ----------
    strength : float64 of ``source.shape``, finite
    source : reciprocal lattice, subdivide 1, 1, 1; V is the volume of its cell
    grid : its subdivided lattice contains the source lattice
    index : (n, 3) int64, the voxels, inside the grid's box
    operators : (m, 3, 3) int64, leave strength and kernels alone (index @ R)
    dtype : of the transforms. With float32 the error is below 1e-6 of the rms sum.
    width : (3,) float64, steps of the source lattice: replace each kernel by its mean over a box with these edges, by
        Gauss's rule with two points along each, and over the shapes that the operators make of it; None: do not
    """

    def __init__(
        self,
        strength: np.ndarray,
        source: MapGrid,
        grid: MapGrid,
        index: np.ndarray,
        operators,
        dtype=np.float32,
        width: np.ndarray | None = None,
    ):
        self._ratio = np.array(steps_between(source, grid))
        self._offsets = np.zeros((1, 3))
        if width is not None:
            box = np.array(list(itertools.product((-1, 1), repeat=3))) * width / (2 * np.sqrt(3))
            # operators turn voxels on hexagonal axes into others of another shape
            shapes = {tuple(sorted(map(tuple, np.rint(1e6 * box @ r).tolist()))): box @ r for r in operators}
            self._offsets = np.concatenate(list(shapes.values()))
        self._size = box_size(source, grid)
        self._dtype = dtype
        self._n = len(index)
        padded = np.zeros(self._size, dtype=dtype)
        padded[tuple(slice(n) for n in strength.shape)] = strength * abs(np.linalg.det(source.reciprocal_matrix))
        padded = np.roll(padded, [-m for m in source.extent], axis=(0, 1, 2))
        self._transform = scipy.fft.rfftn(padded, workers=available_cores())
        self._shifts = list(self._sorted_by_shift(index, operators))
        self._pruned = [_compact(position) for _, _, position in self._shifts]

    def _sorted_by_shift(self, index, operators) -> Iterator[tuple]:
        """For each shift that is computed: it, the rows of its voxels, and their positions in the box."""
        shifts = np.array(distinct_shifts(self._ratio, operators))
        weights = np.array([self._ratio[1] * self._ratio[2], self._ratio[2], 1])
        keys = shifts @ weights
        mates = index.copy()
        number = np.full(self._n, -1)
        for r in operators:
            open_rows = np.flatnonzero(number < 0)
            if len(open_rows) == 0:
                break
            turned = index[open_rows] @ r
            found = np.searchsorted(keys, np.mod(turned, self._ratio) @ weights)
            found[found == len(keys)] = 0
            fits = keys[found] == np.mod(turned, self._ratio) @ weights
            number[open_rows[fits]] = found[fits]
            mates[open_rows[fits]] = turned[fits]
        for k, shift in enumerate(shifts):
            rows = np.flatnonzero(number == k)
            if len(rows):
                yield shift / self._ratio, rows, np.mod((mates[rows] - shift) // self._ratio, self._size)

    def axes(self, shift) -> list:
        """Differences q - q_h along the axes of the box, in steps of the source lattice."""
        return [(scipy.fft.fftfreq(length, 1 / length) + o).astype(self._dtype) for length, o in zip(self._size, shift)]

    def mean(self, kernel: Callable, axes) -> np.ndarray:
        """A kernel on the box, or its mean over the voxels there; kernel and axes: see :meth:`__call__`."""
        offsets = self._offsets.astype(self._dtype)
        return sum(kernel([a + o for a, o in zip(axes, offset)]) for offset in offsets) / len(offsets)

    def __call__(self, kernel: Callable) -> np.ndarray:
        """(n,) float64, the sums for one kernel.

        kernel : function of three axes (see :meth:`axes`) that gives its values on the box
        """
        workers = available_cores()
        result = np.empty(self._n)
        for (shift, rows, _), (wanted, compact) in zip(self._shifts, self._pruned):
            half = scipy.fft.rfftn(np.asarray(self.mean(kernel, self.axes(shift)), dtype=self._dtype), workers=workers)
            half *= self._transform
            for axis in (0, 1):  # only what is wanted goes on to the next axis
                half = scipy.fft.ifft(half, axis=axis, workers=workers, overwrite_x=True).take(wanted[axis], axis=axis)
            values = scipy.fft.irfft(half, n=self._size[2], axis=2, workers=workers, overwrite_x=True)
            result[rows] = values[compact]
        return result

    def lags(self, weights: np.ndarray) -> Iterator[tuple]:
        """The adjoint: sum over voxels of weights times the sum for a kernel is the sum of lags times the kernel.

        Yields
        ------
        axes : as for kernels
        lags : float array on the box
        """
        workers = available_cores()
        for shift, rows, position in self._shifts:
            flat = np.ravel_multi_index(tuple(position.T), self._size)
            box = np.bincount(flat, weights[rows], int(np.prod(self._size))).reshape(self._size)
            half = scipy.fft.rfftn(box.astype(self._dtype), workers=workers)
            half *= self._transform.conj()
            yield self.axes(shift), scipy.fft.irfftn(half, s=self._size, workers=workers, overwrite_x=True)


def _compact(position: np.ndarray) -> tuple:
    """Rows of the first two axes in which there are positions, and the positions when only those are left."""
    first, i = np.unique(position[:, 0], return_inverse=True)
    second, j = np.unique(position[:, 1], return_inverse=True)
    return (first, second), (i.reshape(-1), j.reshape(-1), position[:, 2])
