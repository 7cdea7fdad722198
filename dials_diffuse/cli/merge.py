"""dials.diffuse_merge: symmetry-averaged map from observations."""

from __future__ import annotations

from libtbx.phil import parse

from dials_diffuse.cli.program import flag, run_program, track
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.files.formats import formats_in_words
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.laue_check import PHIL as SYMMETRY
from dials_diffuse.maps.laue_check import check_of_phil
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.report.merge_files import MergeFiles, Reference, write_merged

HELP = """
Average diffuse observations over the Laue group of the crystal and write a three-dimensional map with its statistics.

Examples:

  dials.diffuse_merge diffuse_integrated.h5

  dials.diffuse_merge crystal_1.h5 crystal_2.h5 half_sets=frame output.map=both.nxs

  dials.diffuse_merge diffuse_integrated.h5 reference=truth.nxs
"""

phil_scope = parse(
    CrystalParameters.phil
    + """
space_group = None
  .type = str
  .help = "Average over the point group of this space group, given in the setting of the data."
          "By default the space group of the observation files."
"""
    + SYMMETRY
    + """friedel = True
  .type = bool
  .help = "Average (h,k,l) with (-h,-k,-l)."
half_sets = *random frame friedel
  .type = choice
  .help = "How to divide the data into two halves, for CC1/2: each observation at random, every second image"
          "against the others, or Friedel mates against each other."
seed = 0
  .type = int(value_min=0)
  .help = "Seed of random half sets."
estimator = *ratio mean
  .type = choice
  .help = "ratio: sum of counts over sum of corrections, the best for weak data. mean: mean of corrected pixels."
fill_bragg_holes = True
  .type = bool
  .help = "Bragg masks leave the rims of voxels at lattice points, where diffuse halos are weaker than in their middle."
          "Add the difference, from the curvature of the map. False: the rims as they are."
reference = None
  .type = path
  .help = "A map to compare with, on the same lattice: truth.nxs of dials.diffuse_simulate, or that of a model. Adds"
          "correlation and slope in resolution shells to log and output.json, and its planes to the pictures."
statistics {
  n_shells = 20
    .type = int(value_min=1, value_max=10000)
    .help = "Number of resolution shells of equal volume."
  d_max = None
    .type = float(value_min=0)
    .help = "Low-resolution limit of the statistics in Angstrom, by default that of the map."
  d_min = None
    .type = float(value_min=0)
    .help = "High-resolution limit of the statistics in Angstrom, by default that of the map."
}
output {
  map = diffuse_merged.nxs
    .type = path
    .help = "The map. The suffix of the name chooses the format. """
    + formats_in_words()
    + """"
  volume = Auto
    .type = bool
    .help = "Also write the map as a full three-dimensional array, for viewers. Auto: if it is not too large for this"
            "computer."
  json = diffuse_merged.json
    .type = path
    .help = "Statistics for programs; None for no such file."
  html = diffuse_merged.html
    .type = path
    .help = "A page with plots and a browser of planes, which any browser opens without a network;"
            "None for no such file."
  png = diffuse_merged.png
    .type = path
    .help = "Pictures of planes through the map; None for no such file."
  crystals_png = diffuse_merged_crystals.png
    .type = path
    .help = "Picture of the correlations between crystals, where there are more than two; None for no such file."
  log = dials.diffuse_merge.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def parameters_from_phil(params) -> MergeParameters:
    """Turn the extracted phil scope into checked parameters.

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """
    return MergeParameters(
        space_group=params.space_group,
        symmetry_check=check_of_phil(params.symmetry.check),
        friedel=params.friedel,
        half_sets=params.half_sets,
        seed=params.seed,
        estimator=params.estimator,
        fill_bragg_holes=flag(params.fill_bragg_holes),
        n_shells=params.statistics.n_shells,
        d_max=params.statistics.d_max,
        d_min=params.statistics.d_min,
        crystals=CrystalParameters.from_phil(params),
    )


def main(params, files, provenance, warnings) -> None:
    """Merge ``files`` and write what ``params.output`` asks for."""
    parameters = parameters_from_phil(params)
    reference = None if params.reference is None else Reference(read_map(params.reference), params.reference)
    result = merge_observations(files, parameters, track)
    output = params.output
    merged = MergeFiles(output.map, flag(output.volume), output.json, output.png, output.crystals_png, output.html)
    write_merged(result, parameters, merged, provenance, warnings, reference)


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_merge; ``args`` default to the command line."""
    run_program("dials.diffuse_merge", HELP, phil, main, args, required=("map",))


if __name__ == "__main__":
    run()
