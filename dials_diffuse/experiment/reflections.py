"""Reflection files for spots of known position and intensity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dials.array_family import flex
from dxtbx import flumpy

from dials_diffuse.files.atomic import atomic_path

N_SIGMA_BOX = 3.0  # half width of bounding boxes


def write_reflections(path, experiments, spots: Sequence, photons: Sequence) -> None:
    """Write the spots of all experiments as DIALS would have indexed and summed them, but without error.

    Observed positions are the true centroids, intensities the expected photons. Only spots with their centre on the
    panel and within the scan are written.

    Parameters
    ----------
    path : the .refl file, written whole or not at all
    experiments : dxtbx experiments
    spots : for each experiment a ``simulation.spots.Spots``, or None
    photons : for each experiment the (n,) expected photons of its spots, or None

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    table = flex.reflection_table()
    for number, (experiment, mine, expected) in enumerate(zip(experiments, spots, photons)):
        if mine is not None:
            table.extend(_experiment_table(number, experiment, mine, np.asarray(expected, dtype=float)))
        table.experiment_identifiers()[number] = experiment.identifier
    with atomic_path(path) as temporary:
        table.as_msgpack_file(str(temporary))


def _experiment_table(number: int, experiment, spots, photons: np.ndarray) -> flex.reflection_table:
    scan, detector = experiment.scan, experiment.detector
    size = np.array([model.get_image_size() for model in detector])[spots.panel]
    limits = np.column_stack([size, np.full(len(size), scan.get_num_images())])
    written = np.all((spots.centre >= 0) & (spots.centre < limits), axis=1)
    panel, centre, limits, photons = spots.panel[written], spots.centre[written], limits[written], photons[written]
    spread = np.diagonal(spots.covariance[written], axis1=1, axis2=2)
    half = N_SIGMA_BOX * np.sqrt(spread)
    low = np.maximum(np.floor(centre - half), 0).astype(np.int32)
    high = np.minimum(np.ceil(centre + half), limits).astype(np.int32)

    first = scan.get_array_range()[0]
    start, width = np.radians(scan.get_oscillation())
    mm = np.empty_like(centre)
    for p in np.unique(panel):
        here = panel == p
        pixels = flumpy.vec_from_numpy(np.ascontiguousarray(centre[here, :2]))
        mm[here, :2] = flumpy.to_numpy(detector[int(p)].pixel_to_millimeter(pixels))
    mm[:, 2] = start + width * centre[:, 2]
    per_pixel = np.array([[*model.get_pixel_size(), width] for model in detector])[panel]
    variance = spread / np.maximum(photons, 1)[:, None]
    px = centre + [0, 0, first]
    boxes = np.column_stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1], low[:, 2] + first, high[:, 2] + first])

    table = flex.reflection_table()
    table["id"] = flex.int(len(panel), number)
    table["panel"] = flex.size_t(panel.tolist())
    table["miller_index"] = flex.miller_index(*_columns(spots.hkl[written]))
    table["d"] = experiment.crystal.get_unit_cell().d(table["miller_index"])
    table["s1"] = flumpy.vec_from_numpy(spots.s1[written])
    table["xyzcal.px"] = table["xyzobs.px.value"] = flumpy.vec_from_numpy(px)
    table["xyzcal.mm"] = table["xyzobs.mm.value"] = flumpy.vec_from_numpy(mm)
    table["xyzobs.px.variance"] = flumpy.vec_from_numpy(variance)
    table["xyzobs.mm.variance"] = flumpy.vec_from_numpy(variance * per_pixel**2)
    table["bbox"] = flex.int6(*_columns(boxes))
    table["intensity.sum.value"] = table["intensity.sum.variance"] = flumpy.from_numpy(photons)
    table["flags"] = flex.size_t(len(panel), 0)
    for flag in (table.flags.predicted, table.flags.indexed, table.flags.integrated_sum):
        table.set_flags(flex.bool(len(panel), True), flag)
    return table


def _columns(values: np.ndarray) -> list:
    return [flumpy.from_numpy(np.ascontiguousarray(column, dtype=np.int32)) for column in values.T]
