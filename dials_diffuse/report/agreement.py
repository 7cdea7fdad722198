"""Agreement of a map with a reference, the truth of a simulation or a model: table, record and picture."""

from __future__ import annotations

import math

from cctbx import uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import N_BINS
from dials_diffuse.maps.voxels import CELL_TOLERANCE
from dials_diffuse.merging.compare import Comparison, compare_maps
from dials_diffuse.report.planes import write_planes_png

#: columns of the table in logs: name, width, format
_LAYOUT = (("d_max", 8, ".2f"), ("d_min", 8, ".2f"), ("n", 9, "d"), ("cc", 8, ".3f"), ("slope", 11, ".4g"))


def compare_with_reference(
    data: DiffuseMap, reference: DiffuseMap, path, n_shells: int, d_max: float | None = None, d_min: float | None = None
) -> Comparison:
    """Compare a map with one that a user named.

    Parameters
    ----------
    path : file of the reference, for messages
    n_shells, d_max, d_min : as for :func:`compare_maps`; None = no limit

    Raises
    ------
    DiffuseError
        If the two are not of the same crystal form and lattice, or share too few voxels; the message names the file.
    """
    cells = [uctbx.unit_cell(m.grid.unit_cell) for m in (data, reference)]
    if not cells[0].is_similar_to(cells[1], CELL_TOLERANCE, 100 * CELL_TOLERANCE):
        raise DiffuseError(
            f"reference={path}: its unit cell {cells[1]!s} is not that of the data, {cells[0]!s}; "
            "give a map of this crystal form"
        )
    try:
        return compare_maps(data, reference, d_max or math.inf, d_min or 0.0, n_shells)
    except DiffuseError as error:
        raise DiffuseError(f"reference={path}: {error}") from None


def comparison_record(comparison: Comparison) -> dict:
    """What ``output.json`` says about a comparison: n_bins, and the columns of the table overall and in shells."""
    shells = [{name: row[name] for name, *_ in _LAYOUT} for row in comparison.shells]
    return {"n_bins": N_BINS, "overall": _overall(comparison), "shells": shells}


def format_comparison(comparison: Comparison) -> str:
    """The table as text for logs, one line a shell and one for all."""
    head = "".join(f"{name:>{width}}" for name, width, _ in _LAYOUT)
    lines = [
        "".join(f"{row[name]:{width}{how}}" for name, width, how in _LAYOUT).replace("nan", "  -")
        for row in (*comparison.shells, _overall(comparison))
    ]
    rule = "-" * len(head)
    note = f"cc and slope (map against reference) after subtracting the isotropic part, in {N_BINS} bins of |s|"
    return "\n".join([head, rule, *lines[:-1], rule, lines[-1], note])


def write_comparison_png(path, data: DiffuseMap, reference: DiffuseMap, comparison: Comparison) -> None:
    """Draw a map and what it is compared with, multiplied by the slope, into a PNG file.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    # a reference that the map contradicts keeps its sign, one that is flat its scale
    scale = abs(comparison.slope) if math.isfinite(comparison.slope) else 1.0
    title = (
        f"Anisotropic diffuse scattering, {data.grid.space_group_symbol}; left half of each plane: map, right half: "
        f"reference × {scale:.3g}, mirrored; correlation {comparison.cc:.3f}; grey: not measured"
    )
    write_planes_png(path, data, title, reference, scale)


def _overall(comparison: Comparison) -> dict:
    first, last = comparison.shells[0], comparison.shells[-1]
    return {
        "d_max": first["d_max"],
        "d_min": last["d_min"],
        "n": comparison.n,
        "cc": comparison.cc,
        "slope": comparison.slope,
    }
