"""Files that a fit leaves: map, pictures, covariances."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np

from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.formats import save_map
from dials_diffuse.files.record import Output
from dials_diffuse.fitting.data import FitData
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.models.covariance.motion import flattened
from dials_diffuse.report.fit_covariance import write_correlations_png
from dials_diffuse.report.planes import write_planes_png

logger = logging.getLogger("dials.diffuse.fit")


def write_fit(output, provenance, data_map: DiffuseMap, data: FitData, best) -> list:
    """Map and picture of the best model; returns the outputs for the record.

    Parameters
    ----------
    output : paths, the scope of the program's parameters; None for files that are not wanted
    data_map : of which the voxels of ``data`` are rows
    best : Fit
    """

    def part(intensity, **changes):
        columns = {name: None for name in ("half_a", "half_b")}
        return replace(
            data_map,
            grid=data.grid,
            index=data_map.index[data.row],
            intensity=intensity,
            sigma=data_map.sigma[data.row],
            multiplicity=data_map.multiplicity[data.row],
            sums={},
            statistics={},
            overall={},
            **{**columns, **changes},
        )

    halves = {name: getattr(data, name) for name in ("half_a", "half_b")}
    logger.info("Saving the data and the model %s to %s", best.name, output.map)
    columns = {
        "model": best.scale.value * best.intensity,
        "background": best.background,
        "residual": data.intensity - best.fitted,
        "sigma": data.sigma,
        "free": data.free.astype(np.uint8),
    }
    measured = part(data.intensity, **halves)
    save_map(output.map, measured, provenance, output.volume, {"fit": columns})
    outputs = [Output(output.map, "map")]
    if output.png:
        logger.info("Saving pictures to %s", output.png)
        free = best.statistics["free"]["cc_anisotropic"]
        title = (
            f"Anisotropic diffuse scattering, {data.grid.space_group_symbol}; left half of each plane: data, "
            f"right half: {best.name}, mirrored; correlation {best.statistics['cc_anisotropic']:.3f}"
            f"{f', free {free:.3f}' if math.isfinite(free) else ''}; grey: left out"
        )
        write_planes_png(output.png, part(data.intensity), title, part(columns["model"]))
        outputs.append(Output(output.png, "picture", "aid"))
    return outputs


def write_covariance(output, fit) -> list:
    """Covariances of all pairs of groups as arrays and as a picture; returns the outputs for the record."""
    outputs = []
    arrays = [(output.covariance, "covariances", "covariance", flattened(fit.pairs.covariance))]
    if fit.pairs.freedom is not None:
        arrays.append((output.covariance_esd, "errors of the covariances", "esd", flattened(fit.pairs.freedom.esd)))
    for path, text, kind, array in arrays:
        if path:
            logger.info("Saving the %s of %s to %s", text, fit.name, path)
            with atomic_path(path) as temporary, open(temporary, "wb") as handle:
                np.save(handle, array, allow_pickle=False)
            outputs.append(Output(path, kind, "main" if kind == "covariance" else "aid"))
    if output.covariance_png:
        logger.info("Saving their picture to %s", output.covariance_png)
        share = None if fit.pairs.freedom is None else fit.pairs.freedom.share
        write_correlations_png(output.covariance_png, fit.pairs.covariance, fit.name, share)
        outputs.append(Output(output.covariance_png, "picture", "aid"))
    return outputs
