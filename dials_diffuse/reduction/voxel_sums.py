"""One streaming pass over the images: sums per voxel and pass through the Ewald sphere."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dials_diffuse.files.observations import OBSERVATION_DTYPE
from dials_diffuse.kernels import accumulate as kernel
from dials_diffuse.kernels.image import Pixels, Reading
from dials_diffuse.kernels.sampled import sampled_s as s_at_positions
from dials_diffuse.kernels.tiles import Tiles, add_tiles
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.parallel import SERIAL, Executor
from dials_diffuse.reduction.bragg_tails import TailSums, add_tails, tails_of
from dials_diffuse.reduction.brick_table import BrickTable
from dials_diffuse.reduction.frames import ShellProfile, empty_bragg, read_frame, shell_profile
from dials_diffuse.reduction.job import Job
from dials_diffuse.reduction.outliers import Frame
from dials_diffuse.reduction.stray_peaks import NONE, mask_stray

logger = logging.getLogger("dials.diffuse.reduction")

BLOCK_ANGLE = 10.0  # degrees of rotation that one worker reduces at a time
MAX_BLOCK_IMAGES = 100
SEAM_ANGLE = 5.0  # a voxel not seen for longer than this has left the Ewald sphere


@dataclass(frozen=True)
class BlockSums:
    """Voxel sums over a block of consecutive images.

    Attributes
    ----------
    keys : (n,) int64, sorted: voxel, panel and whether the voxel enters or leaves the Ewald sphere
    table : (n, N_COLUMNS) float64
    tally : (N_TALLY,) int64, pixels by fate
    flux : relative intensity of each image, by position
    unfit : why images were not used, by position
    fates : (N_TALLY,) int64 of each image, by position: its part of the tally
    stray : StrayPeaks of each image, by position
    last_image : 1-based position of the last image of the block
    """

    keys: np.ndarray
    table: np.ndarray
    tally: np.ndarray
    flux: dict
    unfit: dict
    fates: dict
    stray: dict
    last_image: int


class VoxelTable:
    """A growing hash table from voxel keys to rows of sums."""

    def __init__(self, extent, capacity: int = 1 << 18):
        self.n_rows = 0
        self.rows = _empty_rows(np.array(extent, dtype=np.int64), capacity)

    def grow(self) -> None:
        old, n = self.rows, self.n_rows
        self.rows = _empty_rows(old.extent, 2 * len(old.keys))
        kernel.rehash(self.rows.entries, old.entries)
        self.rows.keys[:n] = old.keys[:n]
        self.rows.sums[:n] = old.sums[:n]

    def sorted_rows(self) -> tuple:
        """(keys, sums) of all rows."""
        order = np.argsort(self.rows.keys[: self.n_rows])
        return self.rows.keys[order], self.rows.sums[order]


def _empty_rows(extent: np.ndarray, capacity: int) -> kernel.VoxelRows:
    return kernel.VoxelRows(
        extent,
        np.full((2 * capacity, 2), -1, dtype=np.int64),
        np.empty(capacity, dtype=np.int64),
        np.empty((capacity, kernel.N_COLUMNS)),
    )


class Tables:
    """The sums of a block of images: in bricks where panels go tile by tile, in a hash table where they go row by row.

    The hash table is made when it is needed.
    """

    def __init__(self, job: Job):
        self._extent = job.grid.extent
        self.bricks = BrickTable(job.grid, job.n_sub_steps)
        self.tails = TailSums()
        self._voxels: VoxelTable | None = None

    def voxels(self) -> VoxelTable:
        if self._voxels is None:
            self._voxels = VoxelTable(self._extent)
        return self._voxels

    def sorted_rows(self) -> tuple:
        """(keys, sums) of all rows, tails of Bragg spots among the background."""
        keys, sums = self._sorted()
        self.tails.subtract_from(keys, sums)
        return keys, sums

    def _sorted(self) -> tuple:
        if self._voxels is None:
            return self.bricks.sorted_rows()
        if self.bricks.n_bricks == 0:
            return self._voxels.sorted_rows()
        both = self.bricks.sorted_rows(), self._voxels.sorted_rows()
        return _joined(*(np.concatenate(column) for column in zip(*both)))


def _joined(keys: np.ndarray, table: np.ndarray) -> tuple:
    """Rows with every key once, sorted."""
    unique, row = np.unique(keys, return_inverse=True)
    sums = np.zeros((len(unique), kernel.N_COLUMNS))
    sums[:, kernel.FIRST_IMAGE], sums[:, kernel.LAST_IMAGE] = np.inf, -np.inf
    np.add.at(sums[:, : kernel.FIRST_IMAGE], row, table[:, : kernel.FIRST_IMAGE])
    np.minimum.at(sums[:, kernel.FIRST_IMAGE], row, table[:, kernel.FIRST_IMAGE])
    np.maximum.at(sums[:, kernel.LAST_IMAGE], row, table[:, kernel.LAST_IMAGE])
    return unique, sums


def reduce_block(job: Job, images) -> BlockSums:
    """Sums over some images of a job; ``images`` are positions counted from the start of the scan, in any order."""
    tables = Tables(job)
    bragg = empty_bragg(job)
    tally = np.zeros(kernel.N_TALLY, dtype=np.int64)
    profiles, fates, stray = {}, {}, {}
    for image in map(int, images):
        before = tally.copy()
        profiles[image], stray[image] = _add_image(job, image, tables, bragg, tally)
        fates[image] = tally - before
    flux = {image: profile.flux for image, profile in profiles.items()}
    unfit = {image: profile.unfit for image, profile in profiles.items() if profile.unfit}
    keys, table = tables.sorted_rows()
    return BlockSums(keys, table, tally, flux, unfit, fates, stray, max(flux) + 1)


@dataclass(frozen=True)
class _Panel:
    """What the kernels need of one panel of one image, a tuple of each kind, and which image and panel it is."""

    number: int
    image: int
    pixels: Pixels
    reading: Reading
    norm: kernel.Norm
    guard: kernel.Guard
    background: kernel.BackgroundBlocks
    view: kernel.View
    steps: kernel.Steps


def _add_image(job: Job, image: int, tables: Tables, bragg: list, tally: np.ndarray) -> tuple:
    """Add one image to the tables, unless it is unfit; returns its ShellProfile and StrayPeaks."""
    frame = read_frame(job, image, bragg)
    profile = shell_profile(job, frame)
    stray = NONE
    if not profile.unfit:
        if job.parameters.masking.unpredicted:
            stray = mask_stray(job, frame, profile)
        add_frame(job, frame, profile, tables, tally)
        tally[kernel.BRAGG] -= stray.pixels
        tally[kernel.UNPREDICTED] += stray.pixels
    return profile, stray


def add_frame(job: Job, frame: Frame, profile: ShellProfile, tables: Tables, tally: np.ndarray) -> None:
    """Add one image, of which the profile is known, to the tables.

    tally : (N_TALLY,) int64, pixels by fate, incremented
    """
    image = frame.number - 1
    corrections = job.corrections_at(image)
    tiles = job.tiles_at(image, corrections)
    exposure = job.exposure(image) * profile.flux
    expected = profile.expected / profile.flux
    background, background_sigma = job.background.at(job.scan.angle(image + 0.5), job.exposure(image))
    steps = _sub_steps(job, image)
    ignored = np.zeros_like(tally)
    tails = list(tails_of(job, image))
    for sub, (offset, directions) in enumerate(job.detector.sub_pixels):
        for p, geometry in enumerate(job.panels):
            panel = _Panel(
                p,
                image,
                frame.pixels(p, job.bad[p]),
                geometry.reading,
                kernel.Norm(corrections[p], exposure),
                kernel.Guard(job.shells[p], expected, profile.threshold),
                kernel.BackgroundBlocks(background[p], background_sigma[p], job.background.block),
                kernel.View(directions[p], np.array(offset), 1.0 / len(job.detector.sub_pixels)),
                steps,
            )
            fates = tally if sub == 0 else ignored
            if tiles[sub][p] is not None and panel.pixels.raw.dtype == np.int32:
                _add_tiles(panel, tiles[sub][p], tables.bricks, fates)
            else:
                _add_rows(panel, 2 * p * job.grid.n_voxels, tables.voxels(), fates)
            add_tails(job, image, tails, panel, tables.tails)


def _add_tiles(panel: _Panel, tiles: Tiles, bricks: BrickTable, tally: np.ndarray) -> None:
    """Add a panel tile by tile."""
    tile = 0
    while True:
        tile, bricks.n_bricks = add_tiles(
            panel.pixels,
            panel.reading,
            panel.norm,
            panel.guard,
            panel.view,
            panel.steps,
            tiles,
            bricks.panel(panel.number),
            bricks.n_bricks,
            bricks.first_place(panel.number),
            panel.image % 2 == 1,
            tile,
            tally,
        )
        if tile == tiles.exact.size:
            return
        bricks.grow()


def _add_rows(panel: _Panel, key_offset: int, voxels: VoxelTable, tally: np.ndarray) -> None:
    """Add a panel row by row, whatever it is like."""
    row = 0
    while True:
        row, voxels.n_rows = kernel.accumulate(
            panel.pixels,
            panel.reading,
            panel.norm,
            panel.guard,
            panel.background,
            panel.view,
            panel.steps,
            voxels.rows,
            voxels.n_rows,
            key_offset,
            panel.image % 2 == 1,
            row,
            tally,
        )
        if row == len(panel.pixels.raw):
            return
        voxels.grow()


def _sub_steps(job: Job, image: int) -> kernel.Steps:
    """The rotation sub-steps of an image."""
    positions = image + (np.arange(job.n_sub_steps) + 0.5) / job.n_sub_steps
    matrices, origins = zip(*(job.scan.to_lattice(t, job.grid.subdivide) for t in positions))
    axis_cross_s0 = np.cross(job.scan.axis_at(image + 0.5), job.scan.s0_at(image + 0.5))
    return kernel.Steps(np.array(matrices), np.array(origins), job.scan.angle(positions), axis_cross_s0)


class PassJoiner:
    """Joins the sums of consecutive blocks where a voxel's pass through the Ewald sphere crosses the seam."""

    def __init__(self, seam_images: int):
        self._seam = seam_images
        self._keys = np.empty(0, dtype=np.int64)
        self._table = np.empty((0, kernel.N_COLUMNS))

    def push(self, block: BlockSums) -> tuple[np.ndarray, np.ndarray]:
        """Take the next block; return (keys, table) of passes that are complete."""
        keys, table = block.keys, block.table
        _, old, new = np.intersect1d(self._keys, keys, assume_unique=True, return_indices=True)
        near = table[new, kernel.FIRST_IMAGE] - self._table[old, kernel.LAST_IMAGE] <= self._seam
        old, new = old[near], new[near]
        first = self._table[old, kernel.FIRST_IMAGE]
        last = table[new, kernel.LAST_IMAGE]
        table[new] += self._table[old]
        table[new, kernel.FIRST_IMAGE] = first
        table[new, kernel.LAST_IMAGE] = last
        joined = np.zeros(len(self._keys), dtype=bool)
        joined[old] = True
        keys = np.concatenate([self._keys[~joined], keys])
        table = np.concatenate([self._table[~joined], table])
        pending = table[:, kernel.LAST_IMAGE] > block.last_image - self._seam
        done = keys[~pending], table[~pending]
        self._keys, self._table = keys[pending], table[pending]
        return done

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys, table) of all passes still open."""
        done = self._keys, self._table
        self._keys, self._table = self._keys[:0], self._table[:0]
        return done


def to_observations(keys: np.ndarray, table: np.ndarray, job: Job) -> np.ndarray:
    """(m,) structured rows of OBSERVATION_DTYPE for finished passes whose voxel lies inside the resolution limits."""
    entering = keys % 2
    panel, voxel = np.divmod(keys // 2, job.grid.n_voxels)
    index = job.grid.index(voxel)
    keep = job.grid.inside(index) & (table[:, kernel.NORM] + table[:, kernel.ODD + kernel.NORM] > 0)
    rows = np.zeros(int(keep.sum()), dtype=OBSERVATION_DTYPE)
    table = table[keep]
    rows["index"] = index[keep]
    rows["experiment"] = job.number
    rows["panel"] = panel[keep]
    rows["entering"] = entering[keep]
    for name in ("pixels", "counts", "norm", "background", "rate"):
        column = getattr(kernel, name.upper())
        rows[f"{name}_odd"] = table[:, kernel.ODD + column]
        rows[name] = table[:, column] + table[:, kernel.ODD + column]
    rows["rate_variance"] = table[:, kernel.RATE_VARIANCE]
    # blocks of background are larger than voxels: within a row their errors are the same error
    rows["background_variance"] = table[:, kernel.BACKGROUND_SIGMA] ** 2
    sums = table[:, [kernel.SUM_X, kernel.SUM_Y, kernel.SUM_ANGLE]]
    xyz = sums / rows["pixels"][:, None]
    rows["xyz"] = xyz
    rows["s"] = sampled_s(job, rows["panel"], xyz)
    return rows


def sampled_s(job: Job, panel: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(n,) float64 |s| in 1/Å where positions on the detector see reciprocal space.

    The pixels that fell into a voxel seldom lie around its centre. Where the isotropic scattering is steep, the
    difference is larger than the signal.

    panel : (n,) int; xyz : (n, 3) mean position: px, px, rotation angle in degrees
    """
    start, width = job.scan.oscillation
    s0 = np.atleast_2d(job.scan.s0_at((xyz[:, 2] - start) / width))
    s = np.empty(len(xyz))
    for p in np.unique(panel):
        mine = panel == p
        beams = np.ascontiguousarray(s0 if len(s0) == 1 else s0[mine])
        s[mine] = s_at_positions(job.panels[p].directions, np.ascontiguousarray(xyz[mine, :2]), beams)
    return s


def seam_images(job: Job) -> int:
    """Images after which a voxel that was not seen has left the Ewald sphere."""
    return max(1, math.ceil(SEAM_ANGLE / abs(job.scan.oscillation[1])))


def blocks_of_images(job: Job) -> list:
    """The images of a job in blocks of consecutive positions; independent of the number of workers."""
    width = abs(job.scan.oscillation[1])
    n = job.parameters.images_per_block or max(1, min(MAX_BLOCK_IMAGES, math.ceil(BLOCK_ANGLE / width)))
    # a block must not reach across a gap: what is seen before and after it are different passes
    runs = np.split(job.images, np.flatnonzero(np.diff(job.images) > seam_images(job)) + 1)
    return [run[i : i + n] for run in runs for i in range(0, len(run), n)]


def reduce_blocks(job: Job, executor: Executor = SERIAL) -> Iterator[BlockSums]:
    """Sums of all blocks in order."""
    job.prepare_tiles()  # once, before processes are forked
    return executor.map(reduce_block, job, blocks_of_images(job))


def observations(job: Job, blocks) -> Iterator[tuple]:
    """Turn block sums into finished rows: yields ``(rows, block)``, at the end with block None."""
    joiner = PassJoiner(seam_images(job))
    for block in blocks:
        yield to_observations(*joiner.push(block), job), block
    yield to_observations(*joiner.finish(), job), None


def rows_estimate(grid: MapGrid, experiment, width: float) -> float:
    """Rough number of rows of a rotation by so many degrees, of up to half a turn or so."""
    s_max = min(1 / grid.d_min, 2 / experiment.beam.get_wavelength())
    density = math.prod(grid.subdivide) / abs(np.linalg.det(grid.reciprocal_matrix))
    edge = density ** (-1 / 3)
    sphere = math.pi * s_max**2  # area of the Ewald sphere inside the resolution limit
    return min(sphere * (math.radians(width) * s_max / 2 + 2 * edge) * density, 2 * grid.n_voxels)


def memory_estimate(grid: MapGrid, experiment, sub_pixel: int, workers: int) -> float:
    """Rough peak memory in bytes: pixel arrays are shared by the workers, voxel tables and images are per worker.

    experiment : dxtbx Experiment; sub_pixel : sub-pixels along the edge of a pixel
    """
    pixels = sum(math.prod(panel.get_image_size()) for panel in experiment.detector)
    shared = pixels * (24 * (1 + (sub_pixel**2 if sub_pixel > 1 else 0)) + 40)
    rows = rows_estimate(
        grid, experiment, min(BLOCK_ANGLE, MAX_BLOCK_IMAGES * abs(experiment.scan.get_oscillation()[1]))
    )
    row_bytes = 8 * kernel.N_COLUMNS
    per_worker = pixels * 24 + 3 * rows * (row_bytes + 24)
    waiting = (2 * workers if workers > 1 else 1) + 2  # finished blocks, and what the joiner holds
    return shared + workers * per_worker + waiting * rows * row_bytes
