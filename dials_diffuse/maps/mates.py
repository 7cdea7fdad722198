"""How alike are voxels and their images under each rotation of the lattice, when only Friedel mates are averaged?

What is compared varies from voxel to voxel. What varies slowly is not the crystal's alone (absorption, drift,
background, the isotropic part): in each passage through the Ewald sphere a straight line through the neighbouring
voxels is taken off. Neighbourhoods have the symmetry of the lattice, so that a voxel and its images lose the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dials_diffuse.kernels.symmetry import best_mates
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.lattice import LatticeGroup
from dials_diffuse.maps.voxels import blocks_of_voxels

#: of the observations that are compared, those of lowest |s|; and what a block of them tells of each
MOST_ROWS = 250_000
SAMPLE_COLUMNS = ("index", "experiment", "entering", "counts", "norm", "background", "background_variance", "s")

#: a neighbourhood is at least so many voxels wide
_BLOCK_WIDTH = 4

#: fewer neighbourhoods do not tell how much sums over them vary: halves of them then do
_FEW_BLOCKS = 24

#: fewer observations in a neighbourhood do not give a line
_FEWEST = 12

#: deviations are cut off here, in standard deviations: a Bragg peak that nothing masked is not all there is
_CUT = 5.0

_N_SHELLS = 100
_SIGNAL_SHELLS = 16
_LEAST_SIGNAL = 0.02
_CLASS_SHELLS = 6
_LEAST_COUNTS = 0.05


@dataclass
class LowAngles:
    """Collects the observations of lowest |s| from blocks that pass by on their way to another use.

    Attributes
    ----------
    grid : MapGrid
    n_rows : of all files together
    at_centres : do intensities belong to the centres of voxels, as scaled ones do, not to where their pixels were?
    """

    grid: MapGrid
    n_rows: int
    at_centres: bool = False
    parts: list = field(default_factory=list)

    @property
    def s_max(self) -> float:
        """1/Å; rows are spread about evenly over the sphere."""
        return min(1.0, MOST_ROWS / max(self.n_rows, 1)) ** (1 / 3) / self.grid.d_min

    def watch(self, blocks: Iterable) -> Iterator:
        """Pass (first experiment of the file, {column: array}) through; columns : at least SAMPLE_COLUMNS."""
        for first, block in blocks:
            use = np.flatnonzero((block["s"] <= self.s_max) & (block["norm"] > 0))
            part = {name: block[name][use] for name in SAMPLE_COLUMNS}
            part["experiment"] = part["experiment"] + first
            if self.at_centres:
                part["s"] = self.grid.s_magnitude(part["index"])
            self.parts.append(part)
            yield first, block

    def rows(self) -> dict:
        """{column: array} of what was collected."""
        return {name: np.concatenate([part[name] for part in self.parts]) for name in SAMPLE_COLUMNS}


@dataclass(frozen=True)
class MateSums:
    """Products of the deviations of voxels, summed in b blocks of reciprocal space.

    Attributes
    ----------
    same : (b, 2) float64, Σ w w' y y' and Σ w w' over pairs of passages of the same voxel or its Friedel mate
    mates : (b, m, 2) float64, the same over pairs of a voxel and its image under each of m rotations
    size : (b, m) float64, Σ w w' (y² + y'²) / 2 over the pairs of ``mates``: makes a correlation of the first sum
    n_pairs : (m,) int64
    within : do the pairs come from one sweep each?
    """

    same: np.ndarray
    mates: np.ndarray
    size: np.ndarray
    n_pairs: np.ndarray
    within: bool


def mate_sums(rows: dict, lattice: LatticeGroup, within: bool) -> MateSums | None:
    """Compare observations; None where there are none to compare.

    Parameters
    ----------
    rows : {name of SAMPLE_COLUMNS: (n, ...) array}, all with positive norm
    within : compare what was measured in the same sweep only: others may be indexed otherwise
    """
    grid = lattice.grid
    operator, inverted, unique = _representatives(rows["index"], lattice)
    # whole orbits: the corners of the sphere that rounding would cut differently are few
    use = (operator >= 0) & (grid.s_magnitude(unique) > 0)
    rows, operator, inverted, unique = ({k: v[use] for k, v in rows.items()}, operator[use], inverted[use], unique[use])
    if len(operator) < _FEWEST:
        return None
    deviation, noise, spread = _deviations(rows, grid)
    block = _number(blocks_of_voxels(grid, unique, _BLOCK_WIDTH))
    side = _number(operator, inverted, rows["experiment"], rows["entering"])
    deviation, kept = _less_lines(deviation, noise + spread, grid.s(unique), _number(block, side))
    if np.count_nonzero(kept) < _FEWEST:
        return None
    weight = np.where(kept, 1 / (noise + spread), 0.0)
    deviation = _less_class_means(deviation, weight, unique, lattice)
    sweep = rows["experiment"] if within else np.zeros_like(rows["experiment"])
    voxel = _number(*unique.T, sweep)
    if int(block.max()) < _FEW_BLOCKS:
        block = _number(blocks_of_voxels(grid, unique, _BLOCK_WIDTH // 2))
    table = _Table(lattice, voxel, operator, _number(voxel, side), block)
    signal = table.signal(deviation, weight, grid.s_magnitude(unique), spread)
    weight = np.where(kept, 1 / (noise / signal + 1), 0.0)
    return table.sums(deviation / np.sqrt(signal), weight, within)


def _number(*columns) -> np.ndarray:
    """(n,) int64, the same number for rows that are the same in all columns."""
    columns = [column.astype(np.int64) - int(column.min(initial=0)) for column in columns]
    key, size = columns[0], int(columns[0].max(initial=0)) + 1
    for column in columns[1:]:
        width = int(column.max(initial=0)) + 1
        if size * width >= 2**62:
            key = np.unique(key, return_inverse=True)[1].reshape(-1)
            size = int(key.max(initial=0)) + 1
        key, size = key * width + column, size * width
    return np.unique(key, return_inverse=True)[1].reshape(-1)


def _representatives(index: np.ndarray, lattice: LatticeGroup) -> tuple:
    """Rotation and inversion that take each voxel to the one that stands for all its images, and that one."""
    base = 2 * int(np.abs(index).max(initial=1)) * int(np.abs(lattice.on_voxels).sum(axis=1).max()) + 1
    weights = lattice.on_voxels @ np.array([base * base, base, 1], dtype=np.int64)
    operator = np.empty(len(index), dtype=np.int64)
    inverted = np.empty(len(index), dtype=bool)
    best_mates(np.ascontiguousarray(index), weights, operator, inverted)
    unique = np.einsum("ni,nij->nj", index.astype(np.int64), lattice.on_voxels[operator])
    return operator, inverted, np.where(inverted[:, None], -unique, unique)


def _deviations(rows: dict, grid: MapGrid) -> tuple:
    """Relative deviation of each rate from that of its sweep at its |s|, its variance, and how much is no noise."""
    net = rows["counts"] - rows["background"]
    s, sweep = rows["s"].astype(float), rows["experiment"]
    edges = np.linspace(s.min(), s.max() * (1 + 1e-9), _N_SHELLS + 1)
    least = 1e-6 * float(rows["counts"].sum() / rows["norm"].sum()) + 1e-12
    shell = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, _N_SHELLS - 1)
    level = np.empty(len(s))
    for e in np.unique(sweep):
        mine = sweep == e
        sums = [np.bincount(shell[mine], x[mine], _N_SHELLS) for x in (net, rows["norm"], rows["counts"], s)]
        n = np.bincount(shell[mine], minlength=_N_SHELLS)
        seen = n > 0
        net_rate, gross = sums[0][seen] / sums[1][seen], sums[2][seen] / sums[1][seen]
        rate = np.maximum(net_rate, 0.02 * gross + least)  # where the background is all there is
        level[mine] = np.interp(s[mine], sums[3][seen] / n[seen], rate)
    scale = rows["norm"] * level
    deviation = net / scale - 1
    expected = np.maximum(scale + np.maximum(rows["background"], 0), _LEAST_COUNTS)
    noise = (expected + rows["background_variance"]) / scale**2
    total = (1.4826 * np.median(np.abs(deviation - np.median(deviation)))) ** 2
    spread = max(total - float(np.median(noise)), 1e-4 * total, 1e-12)
    limit = _CUT * np.sqrt(noise + spread)
    return np.clip(deviation, -limit, limit), noise, spread


def _less_lines(y, variance, s, group) -> tuple:
    """Deviations less a linear function of s (n, 3) in each group; and which groups are large enough, (n,) bool."""
    n = int(group.max()) + 1
    w = 1 / variance
    total = np.bincount(group, w, n)

    def centred(x):
        return x - (np.bincount(group, w * x, n) / total)[group]

    x, y = np.stack([centred(column) for column in s.T]), centred(y)
    x /= max(float(np.abs(x).max()), 1e-300)
    matrix = np.empty((n, 3, 3))
    for i in range(3):
        for j in range(i, 3):
            matrix[:, i, j] = matrix[:, j, i] = np.bincount(group, w * x[i] * x[j], n)
    right = np.stack([np.bincount(group, w * x[i] * y, n) for i in range(3)], axis=1)
    matrix += (1e-3 * np.trace(matrix, axis1=1, axis2=2) / 3 + 1e-300)[:, None, None] * np.eye(3)
    slope = np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    kept = (np.bincount(group, minlength=n) >= _FEWEST)[group]
    y = y - np.einsum("ni,in->n", slope[group], x)
    limit = _CUT * np.sqrt(variance)
    return np.clip(y, -limit, limit), kept


def _less_class_means(y, weight, unique, lattice: LatticeGroup) -> np.ndarray:
    """Less the mean of voxels that lie alike between Bragg peaks: halos of all peaks are alike, with any symmetry."""
    subdivide = np.array(lattice.grid.subdivide)
    kinds = np.stack(np.meshgrid(*map(np.arange, subdivide), indexing="ij"), axis=-1).reshape(-1, 3)
    images = np.concatenate([kinds @ r for r in lattice.on_voxels])
    images = np.concatenate([images, -images]) % subdivide
    kind = np.ravel_multi_index(images.T, subdivide).reshape(-1, len(kinds)).min(axis=0)
    mine = kind[np.ravel_multi_index((unique % subdivide).T, subdivide)]
    s = lattice.grid.s_magnitude(unique)
    shell = np.searchsorted(np.quantile(s, np.linspace(0, 1, _CLASS_SHELLS + 1)[1:-1]), s)
    group = _number(mine, shell)
    total = np.bincount(group, weight)
    return y - np.divide(np.bincount(group, weight * y), total, out=np.zeros(len(total)), where=total > 0)[group]


class _Table:
    """Voxels by the one that stands for all images (rows) and the rotation that leads there (columns)."""

    def __init__(self, lattice: LatticeGroup, voxel, operator, passage, block):
        self.lattice, self.passage = lattice, passage
        m, n = len(lattice.rotations), int(voxel.max()) + 1
        self.shape = n, m
        first = np.unique(passage, return_index=True)[1]
        self.voxel = voxel
        self.cell = (voxel * m + operator)[first]
        self.block = np.empty(n, dtype=np.int64)
        self.block[voxel] = block

    def _passages(self, y, weight) -> tuple:
        """Σ w y, Σ w of each cell, and the same of squares over passages: what these share is wrong with all of it."""
        wy, w = (np.bincount(self.passage, x) for x in (weight * y, weight))
        n = self.shape[0] * self.shape[1]
        return tuple(np.bincount(self.cell, x, n).reshape(self.shape) for x in (wy, w, wy**2, w**2))

    def signal(self, y, weight, s, spread: float) -> np.ndarray:
        """(n,) variance of what passages of a voxel share, in shells of |s|, never much smaller than in the others."""
        a, total, aa, ww = self._passages(y, weight)
        s_voxel = np.zeros(self.shape[0])
        s_voxel[self.voxel] = s
        edges = np.quantile(s_voxel, np.linspace(0, 1, _SIGNAL_SHELLS + 1)[1:-1])
        shell = np.searchsorted(edges, s_voxel)
        products, weights = (np.bincount(shell, x.sum(axis=1), _SIGNAL_SHELLS) for x in (a**2 - aa, total**2 - ww))
        found = np.divide(products, weights, out=np.zeros(_SIGNAL_SHELLS), where=weights > 0)
        least = max(_LEAST_SIGNAL * float(found.max()), 1e-6 * spread)
        return np.maximum(found, least)[shell][self.voxel]

    def sums(self, y, weight, within: bool) -> MateSums:
        a, total, aa, ww = self._passages(y, weight)
        n_blocks, m = int(self.block.max()) + 1, self.shape[1]

        def by_block(x):
            return np.bincount(self.block, x.sum(axis=1), n_blocks)

        same = np.stack([by_block(a**2 - aa), by_block(total**2 - ww)], axis=1)
        square = np.divide(a**2, total, out=np.zeros_like(a), where=total > 0)
        mates, size, n_pairs = np.zeros((n_blocks, m, 2)), np.zeros((n_blocks, m)), np.zeros(m, dtype=np.int64)
        for r, inverse in enumerate(self.lattice.inverse):
            # v @ R is taken to the representative by R⁻¹ G, where G takes v there
            other = self.lattice.product[inverse]
            b, weight_b = a[:, other], total[:, other]
            mates[:, r] = np.stack([by_block(a * b), by_block(total * weight_b)], axis=1)
            size[:, r] = by_block(square * weight_b + square[:, other] * total) / 2
            n_pairs[r] = np.count_nonzero((total > 0) & (weight_b > 0))
        return MateSums(same, mates, size, n_pairs, within)
