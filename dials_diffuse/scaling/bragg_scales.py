"""Bragg reflections beside the diffuse rows: on the scale of the scale model, and dials.scale's view of the sweeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.files.observations import BRAGG_DTYPE
from dials_diffuse.scaling.layout import Layout, Rows, T, coordinates, places
from dials_diffuse.scaling.model import ScaleModel
from dials_diffuse.scaling.terms.drift import Drift
from dials_diffuse.scaling.totals import Bragg

#: degrees of rotation over which dials.scale's factors of single reflections are averaged, and reflections needed
_ANGLE, _LEAST = 2.0, 10


@dataclass(frozen=True)
class BraggColumns:
    """Bragg reflections of all files; experiments are counted through all of them.

    columns : {column of BRAGG_DTYPE: array}
    inverse_scale_factor : (n,) float64 of dials.scale, NaN where it was not run
    """

    columns: dict
    inverse_scale_factor: np.ndarray

    def __len__(self) -> int:
        return len(self.inverse_scale_factor)


def read_bragg(files, first) -> BraggColumns:
    """Bragg reflections of observation files; first : number of the first experiment of each."""
    parts, factors = [], []
    for file, number in zip(files, first):
        part = file.read_bragg()
        part["experiment"] = part["experiment"] + number
        factors.append(part.pop("inverse_scale_factor", np.full(len(part["intensity"]), np.nan)))
        parts.append(part)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in BRAGG_DTYPE.names}
    return BraggColumns(columns, np.concatenate(factors))


def scaled_bragg(bragg: BraggColumns, layout: Layout, model: ScaleModel) -> Bragg:
    """Intensities without what the experiment did to them: divided by gain and scale where each reflection was."""
    columns = bragg.columns
    experiment = columns["experiment"].astype(np.int64)
    block = {"index": columns["hkl"] * layout.lattice, **{name: columns[name] for name in ("panel", "xyz", "s")}}
    x = coordinates(layout, experiment, block)
    unit = model.predict(Rows(x, experiment), np.ones(len(experiment)), columns["s"].astype(float)).unit
    return Bragg(columns["hkl"], columns["intensity"] / unit, columns["variance"] / unit**2)


def bragg_scale_curve(bragg: BraggColumns, layout: Layout, number: int, angles: np.ndarray) -> np.ndarray | None:
    """(n,) dials.scale's factors along the rotation of an experiment; None where it was not run.

    A factor g divides: I / g is on the common scale, so g goes with b. What g says of single reflections, absorption
    and decay, is averaged over those that cross the sphere at the same angle.

    angles : (n,) degrees
    """
    good = (bragg.columns["experiment"] == number) & (bragg.inverse_scale_factor > 0)
    if np.count_nonzero(good) < _LEAST:
        return None
    start, width = layout.start[number], layout.width[number]
    n = max(1, round(abs(width) / _ANGLE))
    bin_of = np.clip(((bragg.columns["xyz"][good, 2] - start) / width * n).astype(int), 0, n - 1)
    count = np.bincount(bin_of, minlength=n)
    log_g = np.bincount(bin_of, np.log(bragg.inverse_scale_factor[good]), n) / np.maximum(count, 1)
    used = np.flatnonzero(count >= min(_LEAST, count.max()))
    centre = (used + 0.5) / n
    return np.exp(np.interp((np.asarray(angles) - start) / width, centre, log_g[used]))


def start_from_bragg(model: ScaleModel, layout: Layout, bragg: BraggColumns) -> ScaleModel:
    """A scale model whose b starts from dials.scale's factors, where all sweeps have them and the model has a b.

    The overall scale is left out, by the convention of the refinement: the mean of log b is 0.
    """
    block = model.block(Drift.key)
    if block is None:
        return model
    n = 4 * block.size
    t = (np.arange(n) + 0.5) / n
    basis = block.basis(places(0, {T: t})).toarray()[:, : block.size]
    logs = []
    for number in range(len(layout.start)):
        curve = bragg_scale_curve(bragg, layout, number, layout.start[number] + t * layout.width[number])
        if curve is None:
            return model
        logs.append(np.log(curve))
    logs = np.array(logs) - np.mean(logs)
    coefficients = model.coefficients.copy()
    coefficients[block.all] = np.linalg.lstsq(basis, logs.T, rcond=None)[0].T.ravel()
    return replace(model, coefficients=coefficients)
