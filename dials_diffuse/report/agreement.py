"""Agreement of a map with another, the truth of a simulation or a model: table, record and picture."""

from __future__ import annotations

import math
from operator import itemgetter

from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import N_BINS
from dials_diffuse.merging.compare import Comparison
from dials_diffuse.report.planes import write_planes_png
from dials_diffuse.report.tables import Column, text_table

_COLUMNS = tuple(
    Column(name, width, how, itemgetter(name))
    for name, width, how in (
        ("d_max", 8, ".2f"),
        ("d_min", 8, ".2f"),
        ("n", 9, "d"),
        ("cc", 8, ".3f"),
        ("slope", 11, ".4g"),
    )
)


def comparison_record(comparison: Comparison) -> dict:
    """What ``output.json`` says about a comparison: n_bins, and the columns of the table overall and in shells."""
    return {"n_bins": N_BINS, "overall": comparison.overall, "shells": comparison.shells}


def format_comparison(comparison: Comparison) -> str:
    """The table as text for logs, one line a shell and one for all."""
    table = text_table(_COLUMNS, comparison.shells, [comparison.overall])
    note = f"cc and slope (map against reference) after subtracting the isotropic part, in {N_BINS} bins of |s|"
    return f"{table}\n{note}"


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
