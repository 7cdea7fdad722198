"""Files that a fit leaves: map, pictures, covariances, report and record."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.formats import save_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, make_record, write_json
from dials_diffuse.fitting.pairs.fit_pairs import PairFit
from dials_diffuse.fitting.run import FitResult
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.models.covariance.motion import flattened
from dials_diffuse.report.fit import result_record
from dials_diffuse.report.fit_covariance import write_correlations_png
from dials_diffuse.report.fit_phonons import phonon_arrays
from dials_diffuse.report.pages import write_report
from dials_diffuse.report.planes import write_planes_png
from dials_diffuse.report.section import Material

logger = logging.getLogger("dials.diffuse.fit")


@dataclass(frozen=True)
class FitFiles:
    """Names of the files that a fit leaves; None for those that are not wanted.

    Attributes
    ----------
    map : the voxels of the fit with the data, and model, background and residual of the best model
    volume : also write the data as a full three-dimensional array into it; None: if it is not too large
    json, html, png : record for programs, report for people, pictures of planes
    phonons : arrays of models that have contacts with stiffnesses
    covariance, covariance_esd, covariance_png : of all pairs of groups, and their errors; where they were fitted
    """

    map: str = "diffuse_fit.nxs"
    volume: bool | None = None
    json: str | None = "diffuse_fit.json"
    html: str | None = "diffuse_fit.html"
    png: str | None = "diffuse_fit.png"
    phonons: str | None = "diffuse_fit_phonons.npz"
    covariance: str | None = "diffuse_fit_covariance.npy"
    covariance_esd: str | None = "diffuse_fit_covariance_esd.npy"
    covariance_png: str | None = "diffuse_fit_covariance.png"


def write_result(result: FitResult, files: FitFiles, provenance: Provenance, warnings=(), secondary=()) -> tuple:
    """Write all files; a tuple of Output.

    warnings : for the record
    secondary : helices and strands of the structure, see :func:`structure.secondary.secondary_structure`

    Raises
    ------
    DiffuseError
        If a file cannot be written.
    """
    measured, columns = _map_of(result)
    outputs = _write_map(result, measured, columns, files, provenance)
    outputs += _write_phonons(result, files)
    for fit in result.pairs:
        outputs += _write_covariance(fit, files)
    outputs += [Output(path, kind) for path, kind in ((files.html, "report"), (files.json, "statistics")) if path]
    content = {**result_record(result), "secondary_structure": [stretch.record() for stretch in secondary]}
    record = finite(make_record("dials.diffuse_fit/1", provenance, outputs, warnings, **content))
    if files.html:
        arrays = {"covariance": flattened(result.pairs[0].covariance)} if result.pairs else {}
        write_report(files.html, Material(record, measured, columns, arrays))
    if files.json:
        logger.info("Saving the summary to %s", files.json)
        write_json(files.json, record)
    return tuple(outputs)


def _map_of(result: FitResult) -> tuple:
    """The voxels of the fit as a DiffuseMap, and columns of the best model."""
    data, best = result.data, result.best
    measured = replace(
        result.map,
        grid=data.grid,
        index=result.map.index[data.row],
        intensity=data.intensity,
        sigma=result.map.sigma[data.row],
        multiplicity=result.map.multiplicity[data.row],
        half_a=data.half_a,
        half_b=data.half_b,
        sums={},
        statistics={},
        overall={},
    )
    columns = {
        "model": best.scale.value * best.intensity,
        "background": best.background,
        "residual": data.intensity - best.fitted,
        "sigma": data.sigma,
        "free": data.free.astype(np.uint8),
    }
    return measured, columns


def _write_map(result: FitResult, measured: DiffuseMap, columns: dict, files: FitFiles, provenance: Provenance) -> list:
    """Map and picture of the best model."""
    best = result.best
    logger.info("Saving the data and the model %s to %s", best.name, files.map)
    save_map(files.map, measured, provenance, files.volume, {"fit": columns})
    outputs = [Output(files.map, "map")]
    if files.png:
        logger.info("Saving pictures to %s", files.png)
        free = best.statistics["free"]["cc_anisotropic"]
        title = (
            f"Anisotropic diffuse scattering, {measured.grid.space_group_symbol}; left half of each plane: data, "
            f"right half: {best.name}, mirrored; correlation {best.statistics['cc_anisotropic']:.3f}"
            f"{f', free {free:.3f}' if math.isfinite(free) else ''}; grey: left out"
        )
        write_planes_png(files.png, measured, title, replace(measured, intensity=columns["model"]))
        outputs.append(Output(files.png, "picture", "aid"))
    return outputs


def _write_phonons(result: FitResult, files: FitFiles) -> list:
    """Stiffnesses, dispersion and displacements of models that have them."""
    arrays = phonon_arrays(result.models)
    if not arrays or not files.phonons:
        return []
    logger.info("Saving stiffnesses and phonons to %s", files.phonons)
    with atomic_path(files.phonons) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, **arrays)
    return [Output(files.phonons, "phonons", "aid")]


def _write_covariance(fit: PairFit, files: FitFiles) -> list:
    """Covariances of all pairs of groups as arrays and as a picture."""
    outputs = []
    arrays = [(files.covariance, "covariances", "covariance", flattened(fit.covariance))]
    if fit.freedom is not None:
        arrays.append((files.covariance_esd, "errors of the covariances", "esd", flattened(fit.freedom.esd)))
    for path, text, kind, array in arrays:
        if path:
            logger.info("Saving the %s of %s to %s", text, fit.name, path)
            with atomic_path(path) as temporary, open(temporary, "wb") as handle:
                np.save(handle, array, allow_pickle=False)
            outputs.append(Output(path, kind, "main" if kind == "covariance" else "aid"))
    if files.covariance_png:
        logger.info("Saving their picture to %s", files.covariance_png)
        share = None if fit.freedom is None else fit.freedom.share
        write_correlations_png(files.covariance_png, fit.covariance, fit.name, share)
        outputs.append(Output(files.covariance_png, "picture", "aid"))
    return outputs
