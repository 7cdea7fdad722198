"""Scale factors into norm and background of every observation, file by file; outliers are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dials_diffuse.files.observations import OBSERVATION_DTYPE
from dials_diffuse.files.scratch import scratch_array
from dials_diffuse.kernels.scaling import Residuals, orbit_sums
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.voxels import Voxels, with_rows
from dials_diffuse.parallel import in_threads
from dials_diffuse.scaling.absolute import AbsoluteScale
from dials_diffuse.scaling.error_model import ErrorModel, reject
from dials_diffuse.scaling.layout import Layout, Rows, S, coordinates
from dials_diffuse.scaling.model import ScaleModel
from dials_diffuse.scaling.uncertainty import ScaleErrors

_ROWS = 1 << 20

#: observations from which on Predictions lie on disk: 30 bytes for each
IN_MEMORY = 50_000_000


@dataclass(frozen=True)
class Scaler:
    """Everything that is needed to predict the rows of a file.

    Attributes
    ----------
    grid, voxels : the common grid and its unique voxels
    layout, model, errors, scale_errors : of the refinement
    """

    grid: MapGrid
    voxels: Voxels
    layout: Layout
    model: ScaleModel
    errors: ErrorModel
    scale_errors: ScaleErrors

    def predict(self, block: dict, first: int) -> tuple:
        """Of a block of rows: Prediction, (n,) float64 |s| where the pixels were, and Predictions.scale_variance.

        first : experiment of its file
        """
        experiment = block["experiment"].astype(np.int64) + first
        x = coordinates(self.layout, experiment, block)
        s_voxel = self.grid.s_magnitude(block["index"])
        prediction = self.model.predict(Rows(x, experiment), block["norm"], s_voxel)
        return prediction, x[:, S], self.scale_errors.at(x, experiment) * prediction.isotropic**2


@dataclass(frozen=True)
class Predictions:
    """What the model says of every row of all files: 30 bytes per observation.

    Attributes
    ----------
    unique : (n,) int32; -1 where the row is outside the grid
    experiment : (n,) uint16
    unit : (n,) float32, counts per unit of intensity
    added : (n,) float32, expected counts that are background from now on: the offset c, and the difference between the
        isotropic profile where the pixels were and at the centre of the voxel
    weight : (n,) float32, 1 / variance of the counts
    residual : (n,) float32, counts less what is expected without anisotropic part
    counts : (n,) float32
    scale_variance : (n,) float32, variance of the expected counts that comes from the scale
    """

    unique: np.ndarray
    experiment: np.ndarray
    unit: np.ndarray
    added: np.ndarray
    weight: np.ndarray
    residual: np.ndarray
    counts: np.ndarray
    scale_variance: np.ndarray


def predict_all(scaler: Scaler, blocks, unique: np.ndarray, threads: int, folder: Path) -> Predictions:
    """Predictions of all rows, in memory or, where they are many, in files that have no name.

    Parameters
    ----------
    blocks : (first experiment, {column: array}) with ``sample.COLUMNS``
    unique : (n,) int32, see Predictions
    folder : for the files

    Raises
    ------
    DiffuseError
        If there is no room for them.
    """
    dtypes, n = (np.uint16, *6 * (np.float32,)), len(unique)
    on_disk = n > IN_MEMORY
    result = Predictions(unique, *(scratch_array(n, t, folder) if on_disk else np.empty(n, t) for t in dtypes))
    for rows, columns in in_threads(partial(_predict_block, scaler), with_rows(blocks), threads):
        for name, column in columns.items():
            getattr(result, name)[rows] = column
    return result


def _predict_block(scaler: Scaler, item: tuple) -> tuple:
    first, block, rows = item
    prediction, s, scale_variance = scaler.predict(block, first)
    unit, background = prediction.unit, block["background"]
    return rows, {
        "experiment": block["experiment"].astype(np.int64) + first,
        "unit": unit,
        "added": prediction.gain * prediction.offset + unit * (prediction.profile - prediction.profile_at_voxel),
        "weight": 1 / scaler.errors.variance(prediction, background, block["background_variance"], s),
        "residual": block["counts"] - background - prediction.isotropic,
        "counts": block["counts"],
        "scale_variance": scale_variance,
    }


def sums_by_sweep(predictions: Predictions, rejected: np.ndarray, voxel: np.ndarray, n_sweeps: int) -> np.ndarray:
    """(m, e, 2) float64, Σ w r u and Σ w u² of some unique voxels for each sweep; their ratio is the anisotropic part.

    voxel : (u,) int64, number of each unique voxel among the m, or -1
    """
    sums = np.zeros(((int(voxel.max(initial=-1)) + 1) * n_sweeps, 2))
    for start in range(0, len(predictions.unique), _ROWS):
        rows = slice(start, start + _ROWS)
        unique = predictions.unique[rows]
        row = np.where(unique >= 0, voxel[unique], -1)
        row = np.where(row >= 0, row * n_sweeps + predictions.experiment[rows], -1)
        p = predictions
        orbit_sums(Residuals(row, p.weight[rows], p.residual[rows], p.unit[rows]), rejected[rows], sums)
    return sums.reshape(-1, n_sweeps, 2)


def apply_levels(predictions: Predictions, factor: np.ndarray, profile: np.ndarray) -> None:
    """Multiply the scales of sweeps in place; the isotropic part of the counts stays, as offset.

    factor : (e,) float64; profile : (u,) float64, isotropic part at the unique voxels
    """
    for start in range(0, len(predictions.unique), _ROWS):
        rows = slice(start, start + _ROWS)
        unit, unique = predictions.unit[rows], predictions.unique[rows]
        factors = factor[predictions.experiment[rows]]
        predictions.added[rows] += np.where(unique >= 0, unit * (1 - factors) * profile[unique], 0.0)
        predictions.unit[rows] *= factors


def voxel_priors(scaler: Scaler) -> np.ndarray:
    """(u,) 1 / variance of the anisotropic part of every unique voxel that outliers are measured by."""
    s = scaler.grid.s_magnitude(scaler.voxels.index)
    return scaler.errors.outlier_prior(s, scaler.model.profile(s))


def find_all_outliers(predictions: Predictions, prior: np.ndarray, n_sigma: float) -> np.ndarray:
    """(n,) bool, see :func:`dials_diffuse.scaling.error_model.find_outliers`."""
    p = predictions
    if n_sigma == 0:
        return np.zeros(len(p.unique), dtype=bool)
    return reject(p.unique, p.weight, p.residual, p.unit, p.counts, prior, n_sigma)


def scaled_rows(block: dict, unit, added, first: int, factor: float, incoherent=0.0, scale_variance=0.0) -> dict:
    """Columns of OBSERVATION_DTYPE with the scale factors in norm and background.

    The norm takes gain and scale. The background takes what is ``added``, see Predictions: the merged intensity then
    belongs to the centre of the voxel.

    Parameters
    ----------
    block : name -> (n,) array, all columns
    unit, added : (n,) float, see Predictions
    first : experiment of the block's file among those of all files
    factor : intensities are multiplied by it
    incoherent : (n,) float64 or 0, intensity after that, of Compton scattering where the pixels were; goes to the
        background
    scale_variance : (n,) float64 or 0, see Predictions; goes to the variance of the background
    """
    columns, norm = dict(block), block["norm"]
    columns["experiment"] = block["experiment"] + OBSERVATION_DTYPE["experiment"].type(first)
    positive = norm > 0
    gain = np.divide(unit, norm * factor, out=np.ones(len(norm)), where=positive)
    # counts per unit of the old norm that belong to the background
    density = np.divide(added + unit * incoherent / factor, norm, out=np.zeros(len(norm)), where=positive)
    for half in ("", "_odd"):
        columns["norm" + half] = block["norm" + half] * gain
        columns["background" + half] = block["background" + half] + density * block["norm" + half]
        columns["rate" + half] = (block["rate" + half] - density * block["pixels" + half]) / gain
    columns["rate_variance"] = block["rate_variance"] / gain**2
    columns["background_variance"] = block["background_variance"] + scale_variance
    return columns


def write_scaled(
    predictions: Predictions, blocks, rejected: np.ndarray, scale: AbsoluteScale | None, writer, threads: int
) -> Iterator[int]:
    """Append the scaled rows of all blocks to a file; yields the number of rows read after each block.

    blocks : (first experiment, {column: array}) with all columns
    rejected : (n,) bool, rows of all files to leave out
    scale : intensities are multiplied by it, and Compton scattering is then taken off; None: they stay as they are
    """

    def predicted():
        for first, block, rows in with_rows(blocks):
            p = predictions
            found = (x[rows].astype(float) for x in (p.unit, p.added, p.scale_variance))
            yield first, block, *found, ~rejected[rows], rows.stop

    for columns, stop in in_threads(partial(_scaled_block, scale), predicted(), threads):
        writer.append(columns)
        yield stop


def _scaled_block(scale: AbsoluteScale | None, item: tuple) -> tuple:
    first, block, unit, added, scale_variance, kept, stop = item
    factor, compton = (scale.k, scale.compton(block["s"])) if scale else (1.0, 0.0)
    columns = scaled_rows(block, unit, added, first, factor, compton, scale_variance)
    kept = np.flatnonzero(kept)
    dtypes = {name: OBSERVATION_DTYPE[name].base for name in columns}
    return {name: column[kept].astype(dtypes[name], copy=False) for name, column in columns.items()}, stop
