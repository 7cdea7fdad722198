"""dials.diffuse_export: a map in the formats of other programs, and its Fourier transform, the 3D-ΔPDF."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from libtbx.phil import parse

from dials_diffuse.cli.program import flag, run_program
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.atomic import check_writable
from dials_diffuse.files.export.delta_pdf import write_delta_pdf
from dials_diffuse.files.export.vtk import right_angled
from dials_diffuse.files.formats import FORMATS
from dials_diffuse.files.hdf5 import is_hdf5
from dials_diffuse.files.nexus import read_column, read_map, read_provenance
from dials_diffuse.files.record import Output, grid_record, write_record
from dials_diffuse.maps.columns import COLUMNS, cropped, with_column
from dials_diffuse.maps.fourier import DeltaPdfParameters, delta_pdf
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.peaks import PeakParameters, find_peaks
from dials_diffuse.report.delta_pdf import delta_pdf_record, format_delta_pdf, format_peaks, peak_rows
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.transform import check_cells
from dials_diffuse.structure.vectors import match_vectors

logger = logging.getLogger("dials.diffuse.export")

#: besides the rows of FORMATS: what is not a map as it is
_VTK, _DELTA_PDF = "vtk", "delta_pdf"

HELP = """
Write a map in the formats of other programs, and its Fourier transform, the three-dimensional difference pair
distribution function (3D-ΔPDF), with a list of its peaks.

Examples:

  dials.diffuse_export diffuse_merged.nxs

  dials.diffuse_export diffuse_merged.nxs format=ccp4,vtk column=anisotropic d_max=20

  dials.diffuse_export diffuse_merged.nxs model.pdb format=delta_pdf

  dials.diffuse_export diffuse_fit.nxs format=ccp4 column=fit/model
"""


def _formats_in_words() -> str:
    rows = [f"{row.name}: {row.about}" for row in FORMATS]
    rows.insert(6, f"{_VTK}: .vti for right-angled cells, else .vts.")
    return " ".join([*rows, f"{_DELTA_PDF}: the 3D-ΔPDF, a CCP4 map in Å."])


phil_scope = parse(
    f"""
format = mtz,ccp4
  .type = str
  .help = "What to write, one or several with commas. {_formats_in_words()}"
column = intensity
  .type = str
  .help = "What is written as the intensity. {"; ".join(f"{row.name}: {row.about}" for row in COLUMNS)}. In the file"
          "of a fit also fit/model, fit/residual and others."
"""
    + """
d_max = None
  .type = float(value_min=0)
  .help = "Low-resolution limit in Angstrom, by default that of the map."
d_min = None
  .type = float(value_min=0)
  .help = "High-resolution limit in Angstrom, by default that of the map."
delta_pdf {
  pdb = None
    .type = path
    .help = "Coordinates, if they are not among the files: the vectors between atoms that are nearest to each peak are"
            "named."
  selection = None
    .type = str
    .help = "Atoms to use of them, in the syntax of cctbx, e.g. 'name CA'. Default: all but hydrogen."
  bragg = *auto neighbours shell none
    .type = choice
    .help = "Voxels at lattice points. neighbours: replaced by the weighted mean of their 26 neighbours; shell: by the"
            "isotropic mean; none: used as they are; auto: neighbours for measured maps, none for those of models."
  weight_at_d_min = 0.05
    .type = float(value_min=0, value_max=1)
    .help = "Apodisation: a Gaussian in |s| that is 1 at the origin and this at d_min; 1 for none."
  spacing = None
    .type = float(value_min=0)
    .help = "Distance of points in Angstrom; by default a third of d_min."
  undo_voxels = Auto
    .type = bool
    .help = "Divide by the transform of a voxel. Auto: where the map holds means over voxels."
  peaks {
    n = 50
      .type = int(value_min=0)
      .help = "Peaks in the list, at most."
    r_min = None
      .type = float(value_min=0)
      .help = "Their distance from the origin in Angstrom, at least; by default three times the width of a point."
    r_max = None
      .type = float(value_min=0)
      .help = "Their distance from the origin, at most."
    min_sigma = 4
      .type = float(value_min=0)
      .help = "Their height over its standard error, at least."
  }
}
output {
  prefix = None
    .type = str
    .help = "Names of the files without the suffixes of their formats; by default that of the map."
  json = diffuse_export.json
    .type = path
    .help = "What was written, with the peaks; None for no such file."
  log = dials.diffuse_export.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def main(params, files, provenance, warnings) -> None:
    """Write the map in ``files`` as ``params.format`` asks for."""
    path, coordinates = sort_files(files, params.delta_pdf.pdb)
    names = names_of(params.format)
    if coordinates is not None and _DELTA_PDF not in names:
        raise CommandLineError(f"{coordinates}: coordinates are for format={_DELTA_PDF}; leave them out")
    data = column_of(path, params.column)
    data = cropped(data, params.d_max, params.d_min)
    rows = [row for name in names for row in FORMATS if row.name == _choose(name, data)]
    targets = {row: f"{_stem(path, params)}{row.suffix}" for row in rows}
    pdf_targets = [f"{_stem(path, params)}_delta_pdf{end}.ccp4" for end in ("", "_noise")]
    check_targets([*targets.values(), *(pdf_targets if _DELTA_PDF in names else [])], params, [path, coordinates])
    made = read_provenance(path)
    inputs = tuple(str(name) for name in (path, coordinates) if name is not None)
    provenance = replace(provenance, identifiers=made.identifiers, inputs=inputs)
    outputs, content = [], {"column": params.column, **grid_record(data.grid), "units": data.units}
    for row, target in targets.items():
        logger.info("Saving %s to %s", params.column, target)
        row.write(target, data, provenance, True, None)
        outputs.append(Output(target, row.name))
    if _DELTA_PDF in names:
        found, record = export_delta_pdf(data, params, coordinates)
        for target, noise in zip(pdf_targets, (False, True)):
            if noise and found.noise is None:
                continue
            logger.info("Saving %s to %s", "its noise" if noise else "the 3D-ΔPDF", target)
            write_delta_pdf(target, found, noise)
            outputs.append(Output(target, "delta_pdf noise" if noise else _DELTA_PDF, "aid" if noise else "main"))
        content[_DELTA_PDF] = record
    if params.output.json:
        logger.info("Saving the summary to %s", params.output.json)
        outputs.append(Output(params.output.json, "statistics", "aid"))
        write_record(params.output.json, "dials.diffuse_export/1", provenance, outputs, warnings, **content)


def sort_files(files, coordinates) -> tuple:
    """Paths of the map and of the coordinates; the latter may be None. coordinates : given by name, or None

    Raises
    ------
    CommandLineError
        Unless there is one map, and at most one structure.
    """
    maps = [f for f in files if is_hdf5(f) or Path(f).suffix == ".nxs"]
    structures = [f for f in files if f not in maps] + ([] if coordinates is None else [coordinates])
    if len(maps) != 1 or len(structures) > 1:
        raise CommandLineError(
            f"{len(maps)} maps and {len(structures)} coordinate files given; give one map (.nxs) and at most one "
            "file of coordinates (PDB or mmCIF)"
        )
    return maps[0], structures[0] if structures else None


def names_of(text) -> list:
    """Formats by their names.

    Raises
    ------
    CommandLineError
        If there is none, or one is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    known = [*(row.name for row in FORMATS), _VTK, _DELTA_PDF]
    for name in names or [text]:
        if name not in known:
            raise CommandLineError(f"format={name}: choose from {', '.join(known)}")
    return names


def column_of(path, column: str) -> DiffuseMap:
    """The map of a file with a column in the place of the intensity.

    Raises
    ------
    DiffuseError
        If there is no such column.
    """
    data = read_map(path)
    if column and "/" in column:
        values = read_column(path, column)
        return replace(data, intensity=values, sigma=np.zeros(len(values)), half_a=None, half_b=None)
    return with_column(data, column)


def export_delta_pdf(data: DiffuseMap, params, coordinates) -> tuple:
    """The ΔPDF of a map as the parameters of the program ask for, and its record; logs what is in it.

    coordinates : path, or None
    """
    scope = params.delta_pdf
    peaks = PeakParameters(scope.peaks.n, scope.peaks.r_min, scope.peaks.r_max, scope.peaks.min_sigma)
    structure = None if coordinates is None else load_structure(coordinates, scope.selection)
    if structure is not None:
        check_cells(structure, data.grid)
        structure = structure.in_cell(data.grid.unit_cell)
    parameters = DeltaPdfParameters(
        bragg=scope.bragg,
        weight_at_d_min=scope.weight_at_d_min,
        spacing=scope.spacing,
        undo_voxels=flag(scope.undo_voxels),
    )
    found = delta_pdf(data, parameters)
    logger.info("\n%s\n", format_delta_pdf(found))
    if found.noise is None:
        logger.info("No half sets: heights have no standard errors")
    peaks = find_peaks(found, peaks)
    matches = None
    if structure is not None:
        matches = match_vectors(structure, [peak.vector for peak in peaks], found.width / 2)
    rows = peak_rows(peaks, matches)
    logger.info("%d peaks\n\n%s\n", len(rows), format_peaks(rows))
    return found, delta_pdf_record(found, rows)


def check_targets(targets, params, inputs) -> None:
    """Can all files be written, and is none an input or another output?

    Raises
    ------
    DiffuseError
        If not.
    """
    taken = {Path(path).resolve(): f"the input {path}" for path in inputs if path is not None}
    for name in ("json", "log"):
        if getattr(params.output, name):
            taken.setdefault(Path(getattr(params.output, name)).resolve(), f"output.{name}")
    for target in targets:
        check_writable(target, "output.prefix")
        other = taken.setdefault(Path(target).resolve(), target)
        if other != target:
            raise DiffuseError(f"{target}: the same file as {other}; choose another output.prefix")


def _stem(path, params) -> str:
    """Names of the files without suffixes; a column other than the intensity is part of them."""
    stem = params.output.prefix or Path(path).stem
    return stem if params.column == COLUMNS[0].name else f"{stem}_{params.column.replace('/', '_')}"


def _choose(name: str, data: DiffuseMap) -> str:
    if name != _VTK:
        return name
    return "vti" if right_angled(data.grid) else "vts"


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_export; ``args`` default to the command line."""
    run_program("dials.diffuse_export", HELP, phil, main, args)


if __name__ == "__main__":
    run()
