"""Scale factors into norm and background of every observation, file by file; outliers are left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.observations import OBSERVATION_DTYPE
from dials_diffuse.maps.voxels import Voxels
from dials_diffuse.scaling.data import N_COORDINATES, Layout, S, coordinates, unique_of
from dials_diffuse.scaling.errors import ErrorModel, reject
from dials_diffuse.scaling.model import Prediction, ScaleModel


@dataclass(frozen=True)
class Scaler:
    """Everything that is needed to predict the rows of a file.

    Attributes
    ----------
    grid, voxels : the common grid and its unique voxels
    layout, model, errors : of the refinement
    """

    grid: MapGrid
    voxels: Voxels
    layout: Layout
    model: ScaleModel
    errors: ErrorModel

    def predict(self, block: dict, first: int) -> tuple:
        """(Prediction, (n,) float64 |s| where the pixels were) of a block of rows; first : experiment of its file."""
        experiment = block["experiment"].astype(np.int64) + first
        x = coordinates(self.layout, experiment, block)
        prediction = self.model.predict(x, experiment, block["norm"], self.grid.s_magnitude(block["index"]))
        return prediction, x[:, S]


@dataclass(frozen=True)
class Residuals:
    """What outlier rejection needs of every row of all files: 24 bytes per observation.

    Attributes
    ----------
    unique : (n,) int32; -1 where the row is outside the grid
    weight, residual, unit, counts, expected : (n,) float32
    """

    unique: np.ndarray
    weight: np.ndarray
    residual: np.ndarray
    unit: np.ndarray
    counts: np.ndarray
    expected: np.ndarray


def in_order(function, items, threads: int) -> Iterator:
    """``function(item)`` for each item, in order, computed by threads while the next items are read."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def all_residuals(scaler: Scaler, blocks, n_rows: int, threads: int) -> Residuals:
    """Residuals of all rows; blocks : (first experiment, {column: array}) with ``data.COLUMNS``."""
    result = Residuals(np.empty(n_rows, np.int32), *(np.empty(n_rows, np.float32) for _ in range(5)))

    def work(item):
        first, block = item
        prediction, s = scaler.predict(block, first)
        net = block["counts"] - block["background"]
        variance = scaler.errors.variance(prediction, block["background"], block["background_variance"], s)
        return (
            unique_of(block, scaler.grid, scaler.voxels),
            1 / variance,
            net - prediction.isotropic,
            prediction.unit,
            block["counts"],
            scaler.errors.expected(prediction, block["background"]),
        )

    start = 0
    names = ("unique", "weight", "residual", "unit", "counts", "expected")
    for columns in in_order(work, blocks, threads):
        stop = start + len(columns[0])
        for name, column in zip(names, columns):
            getattr(result, name)[start:stop] = column
        start = stop
    return result


def voxel_priors(scaler: Scaler) -> np.ndarray:
    """(u,) 1 / variance of the anisotropic part of every unique voxel."""
    s = scaler.grid.s_magnitude(scaler.voxels.index)
    x = np.zeros((len(s), N_COORDINATES))
    x[:, S] = s
    return scaler.errors.prior(s, scaler.model.value("p", x, np.zeros(len(s), dtype=np.int64)))


def find_all_outliers(residuals: Residuals, prior: np.ndarray, n_sigma: float) -> np.ndarray:
    """(n,) bool, see :func:`dials_diffuse.scaling.errors.find_outliers`."""
    if n_sigma == 0:
        return np.zeros(len(residuals.unique), dtype=bool)
    r = residuals
    return reject(r.unique, r.weight, r.residual, r.unit, r.counts, r.expected, prior, n_sigma)


def scaled_rows(block: dict, prediction: Prediction, first: int, factor: float, incoherent=0.0) -> np.ndarray:
    """(n,) rows of OBSERVATION_DTYPE with the scale factors in norm and background.

    The norm takes gain and scale. The background takes the offset c, and the difference between the isotropic profile
    where the pixels were and at the centre of the voxel: the merged intensity then belongs to the centre.

    Parameters
    ----------
    block : name -> (n,) array, all columns
    first : experiment of the block's file among those of all files
    factor : intensities are multiplied by it
    incoherent : (n,) float64 or 0, intensity after that, of Compton scattering where the pixels were; goes to the
        background
    """
    rows = np.empty(len(block["norm"]), dtype=OBSERVATION_DTYPE)
    for name in OBSERVATION_DTYPE.names:
        rows[name] = block[name]
    rows["experiment"] += first
    norm = block["norm"]
    positive = norm > 0
    gain = np.divide(prediction.unit, norm * factor, out=np.ones(len(norm)), where=positive)
    # counts per unit of the old norm that belong to the background
    added = np.divide(
        prediction.gain * prediction.offset
        + prediction.unit * (prediction.profile - prediction.profile_at_voxel + incoherent / factor),
        norm,
        out=np.zeros(len(norm)),
        where=positive,
    )
    for half in ("", "_odd"):
        rows["norm" + half] *= gain
        rows["background" + half] += added * block["norm" + half]
        rows["rate" + half] = (rows["rate" + half] - added * block["pixels" + half]) / gain
    rows["rate_variance"] /= gain**2
    return rows


def write_scaled(
    scaler: Scaler, blocks, rejected: np.ndarray, factor: float, writer, threads: int, compton=lambda s: 0.0
) -> Iterator[int]:
    """Append the scaled rows of all blocks to a file; yields the number of rows read after each block.

    blocks : (first experiment, {column: array}) with all columns
    rejected : (n,) bool, rows of all files to leave out
    factor : intensities are multiplied by it; compton : function of (n,) |s|, what is then taken off
    """

    def work(item):
        first, block = item
        prediction, s = scaler.predict(block, first)
        return scaled_rows(block, prediction, first, factor, compton(s))

    start = 0
    for rows in in_order(work, blocks, threads):
        stop = start + len(rows)
        writer.append(rows[~rejected[start:stop]])
        start = stop
        yield start
