"""dials.diffuse_model: the diffuse scattering of a model of a crystal's motions, on the grid of a map."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from libtbx.phil import parse

from dials_diffuse.cli.executor import DASK_PHIL, executor_from_phil
from dials_diffuse.cli.model_scope import FORM_FACTOR_PHIL, MODEL_PHIL, automatic_orders, model_from_phil
from dials_diffuse.cli.program import flag, run_program
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.formats import formats_in_words, save_map
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.record import Output
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.compute import compute_model
from dials_diffuse.report.agreement import format_comparison, write_comparison_png
from dials_diffuse.report.model import write_summary
from dials_diffuse.report.planes import write_planes_png

logger = logging.getLogger("dials.diffuse.model")

HELP = """
Compute the diffuse scattering of a model of the motions in a crystal, in electrons² per unit cell: on the grid of a
map, and compare the two, or on a grid of your own.

Examples:

  dials.diffuse_model model.pdb map=diffuse_merged.nxs model=llm llm.sigma=0.4 llm.gamma=10

  dials.diffuse_model model.pdb diffuse_merged.nxs model=rigid_body rigid_body.sigma=0.3

  dials.diffuse_model model.pdb grid.subdivide=2,2,2 d_min=1.8 model=covariance covariance.groups=residue
"""

phil_scope = parse(
    f"""
map = None
  .type = path
  .help = "A merged map: the model is computed on its grid and compared with it."
grid.subdivide = None
  .type = ints(size=3, value_min=1)
  .help = "Voxels per reciprocal-lattice step. Default: 3,3,3. Not with a map, which has a grid."
d_min = None
  .type = float(value_min=0.1)
  .help = "High resolution limit in Angstrom. Default: that of the map, else 2."
selection = None
  .type = str
  .help = "Atoms to use, in the syntax of cctbx, e.g. 'not element H'. Default: all."
{MODEL_PHIL}
{FORM_FACTOR_PHIL}
{DASK_PHIL}
"""
    + """
voxels = *auto mean centre
  .type = choice
  .help = "What is computed of each voxel: the mean over it, which measured maps hold, or the intensity at its centre."
          "Means take longer (llm in a crystal: 2 to 3 times, other models: 8 times) and more memory. auto: what the"
          "map holds; the centre if there is none."
statistics.n_shells = 10
  .type = int(value_min=1, value_max=10000)
  .help = "Resolution shells of the comparison with the map."
output {
  map = diffuse_model.nxs
    .type = path
    .help = "The model's map. The suffix of the name chooses the format. """
    + formats_in_words()
    + """"
  volume = Auto
    .type = bool
    .help = "Also write the map as a full three-dimensional array, for viewers. Auto: if it is not too large for this"
            "computer."
  json = diffuse_model.json
    .type = path
    .help = "Summary for programs, with the comparison; None for no such file."
  html = diffuse_model.html
    .type = path
    .help = "A page with plots and a browser of planes, which any browser opens without a network;"
            "None for no such file."
  png = diffuse_model.png
    .type = path
    .help = "Pictures of planes, one half of each data and the other model if there is a map; None for no such file."
  log = dials.diffuse_model.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def main(params, files, provenance, warnings) -> None:
    """Compute the model of ``params`` for the structure in ``files`` and write what ``params.output`` asks for."""
    coordinates, map_path = sort_files(files, params.map)
    model = replace(model_from_phil(params, coordinates, params.selection), table=params.scattering_table)
    data = None if map_path is None else read_map(map_path)
    structure = model.structure(coordinates, params.selection)
    model = model.select(params.selection)
    logger.info(
        "Structure: %s, %d atoms, %s", coordinates, structure.n_atoms, structure.crystal_symmetry.space_group_info()
    )
    grid = grid_from_phil(params, data, structure)
    with executor_from_phil(params) as executor:
        found = compute_model(
            structure,
            grid,
            model,
            data,
            params.voxels,
            params.wavelength,
            automatic_orders(params, model.name),
            params.statistics.n_shells,
            executor,
        )
    result, comparison = found.map, found.comparison
    if comparison is not None:
        logger.info("Agreement of %s with the model:\n\n%s\n", map_path, format_comparison(comparison))

    outputs = [Output(params.output.map, "map")]
    logger.info("Saving the map to %s", params.output.map)
    provenance = replace(provenance, inputs=tuple(str(p) for p in (coordinates, map_path) if p is not None))
    save_map(params.output.map, result, provenance, flag(params.output.volume))
    if params.output.png:
        logger.info("Saving pictures to %s", params.output.png)
        if comparison is None:
            title = f"Anisotropic diffuse scattering of the model {params.model}, {grid.space_group_symbol}"
            write_planes_png(params.output.png, result, title)
        else:
            write_comparison_png(params.output.png, data, result, comparison)
        outputs.append(Output(params.output.png, "picture", "aid"))
    write_summary(found, map_path, params.output.html, params.output.json, provenance, outputs, warnings)


def sort_files(files, map_path) -> tuple:
    """Paths of the coordinates and of the map; the latter may be None.

    Raises
    ------
    CommandLineError
        Unless there is one structure, and at most one map.
    """
    maps = [f for f in files if Path(f).suffix in (".nxs", ".h5")]
    coordinates = [f for f in files if f not in maps]
    if map_path is not None:
        maps.append(map_path)
    if len(coordinates) != 1 or len(maps) > 1:
        raise CommandLineError(
            f"{len(coordinates)} coordinate files and {len(maps)} maps given; give one file of coordinates (PDB or "
            "mmCIF) and at most one map (.nxs)"
        )
    return coordinates[0], maps[0] if maps else None


def grid_from_phil(params, data, structure) -> MapGrid:
    """The grid of the map (None if there is none), or the one described.

    Raises
    ------
    CommandLineError
        If a subdivision is given that is not that of the map.
    DiffuseError
        If d_min is beyond that of the map, or the grid does not fit the structure's symmetry.
    """
    subdivide = None if params.grid.subdivide is None else tuple(params.grid.subdivide)
    if data is None:
        return MapGrid(structure.unit_cell, structure.hall_symbol, subdivide or (3, 3, 3), params.d_min or 2.0)
    if subdivide not in (None, data.grid.subdivide):
        raise CommandLineError(
            f"grid.subdivide={','.join(map(str, subdivide))}: the map has {','.join(map(str, data.grid.subdivide))}; "
            "leave it out"
        )
    if params.d_min is None:
        return data.grid
    if params.d_min < data.grid.d_min * (1 - 1e-9):
        raise DiffuseError(
            f"d_min={params.d_min:g}: the map ends at {data.grid.d_min:g}; leave d_min out, or set it higher"
        )
    return replace(data.grid, d_min=params.d_min)


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_model; ``args`` default to the command line."""
    run_program("dials.diffuse_model", HELP, phil, main, args, required=("map",))


if __name__ == "__main__":
    run()
