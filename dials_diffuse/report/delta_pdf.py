"""A ΔPDF: the table of its peaks, and the record for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dials_diffuse.maps.fourier import DeltaPdf
from dials_diffuse.maps.peaks import Peak
from dials_diffuse.report.tables import Column, text_table
from dials_diffuse.structure.vectors import VectorMatch


@dataclass(frozen=True)
class PeakRow:
    """A peak, and the vectors between atoms that are near to it; None without coordinates."""

    number: int
    peak: Peak
    match: VectorMatch | None


def peak_rows(peaks: Sequence[Peak], matches: Sequence[VectorMatch] | None = None) -> list:
    """Peaks with their numbers from 1; matches : one for each peak, or None."""
    return [PeakRow(i + 1, peak, None if matches is None else matches[i]) for i, peak in enumerate(peaks)]


def _vector(axis: int) -> Column:
    return Column("xyz"[axis], 8, ".2f", lambda row: row.peak.vector[axis])


_PEAKS = (
    Column("#", 4, "d", lambda row: row.number),
    Column("height", 11, ".4g", lambda row: row.peak.height),
    Column("/sigma", 8, ".1f", lambda row: row.peak.height / row.peak.sigma if row.peak.sigma > 0 else None),
    Column("|r|", 8, ".2f", lambda row: row.peak.length),
    *map(_vector, range(3)),
    *(
        Column(name, 8, ".3f", lambda row, axis=axis: row.peak.fractional[axis])
        for axis, name in enumerate(("r/a", "r/b", "r/c"))
    ),
    Column("mates", 7, "d", lambda row: row.peak.mates),
)
_PAIRS = (
    Column("pairs", 8, "d", lambda row: row.match.n_pairs),
    Column("off", 7, ".2f", lambda row: row.match.nearest[0].distance),
    Column("  nearest pair of atoms", -60, "", lambda row: _words(row.match.nearest[0])),
)


def _words(pair) -> str:
    return f"  {pair.first} to {pair.second} ({pair.operator})"


_BRAGG = {
    "none": "as they are",
    "neighbours": "filled with the mean of their neighbours",
    "shell": "filled with the isotropic mean",
}


def format_peaks(rows: Sequence[PeakRow]) -> str:
    """Table of peaks for logs: heights in the unit of the map, vectors in Å and as fractions of the cell's axes."""
    with_atoms = any(row.match is not None for row in rows)
    return text_table(_PEAKS + _PAIRS if with_atoms else _PEAKS, rows)


def format_delta_pdf(found: DeltaPdf) -> str:
    """A few lines on what was transformed, for logs."""
    filled, parameters = found.filled, found.parameters
    a, b, c = found.cell[:3]
    points = "x".join(map(str, found.values.shape))
    low, high = f"{found.grid.d_max:g}", f"{found.grid.d_min:.2f}"
    lines = [
        f"3D-ΔPDF of {low} to {high} Å: {points} points, period {a:.1f}, {b:.1f}, {c:.1f} Å",
        f"Voxels: {filled.measured:.1%} measured (with mates), {filled.neighbours:.1%} from neighbours, "
        f"{filled.shell:.1%} have the isotropic mean",
        f"Bragg positions, {filled.bragg:.1%} of them: {_BRAGG[parameters.bragg]}",
        f"Apodisation: weight {parameters.weight_at_d_min:g} at {high} Å; a point is {found.width:.2f} Å wide",
        "Means over voxels are undone" if parameters.undo_voxels else "Voxels are taken as points",
    ]
    return "\n".join(lines)


def delta_pdf_record(found: DeltaPdf, rows: Sequence[PeakRow]) -> dict:
    """Part of ``output.json``, schema ``dials.diffuse_export/1``."""
    limits, sigma = found.sigma_of_length()
    return {
        "parameters": asdict(found.parameters),
        "filled": asdict(found.filled),
        "width": found.width,
        "units": found.units,
        "shape": found.values.shape,
        "cell": found.cell,
        "sigma": {"r_max": limits, "sigma": sigma},
        "peaks": [_record(row) for row in rows],
    }


def _record(row: PeakRow) -> dict:
    record = {"number": row.number, **asdict(row.peak), "length": row.peak.length}
    return record if row.match is None else {**record, **asdict(row.match)}
