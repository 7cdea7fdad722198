"""dials.diffuse_fit: models of the motions in a crystal, fitted to a map of its diffuse scattering."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial

import numpy as np
from libtbx.phil import parse

from dials_diffuse.cli.fit_models import candidate, model_from_text, prepare_parts
from dials_diffuse.cli.model import sort_files
from dials_diffuse.cli.model_scope import FORM_FACTOR_PHIL, SCOPES_PHIL, automatic_orders
from dials_diffuse.cli.program import run_program, track
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.record import Output, make_record, write_json
from dials_diffuse.fitting.choice import choose
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.displacements import compare_displacements
from dials_diffuse.fitting.fit import FitOptions, fit_models
from dials_diffuse.fitting.linear import AUTO_TERMS, background_terms
from dials_diffuse.fitting.orders import fit_with_enough_orders, orders_of, with_orders_at
from dials_diffuse.fitting.pairs.fit_pairs import fit_all_pairs
from dials_diffuse.fitting.setting_search import UNDECIDED, compare_settings, untested_settings
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.units import ELECTRON_DIFFRACTION, ELECTRONS
from dials_diffuse.models.checks import lacking_symmetry
from dials_diffuse.models.table import all_models
from dials_diffuse.report.fit import (
    fit_record,
    format_choice,
    format_estimate,
    format_models,
    format_pairs,
    format_shells,
)
from dials_diffuse.report.fit_files import write_covariance, write_fit
from dials_diffuse.report.fit_page import write_fit_page
from dials_diffuse.structure.atoms import load_structure

logger = logging.getLogger("dials.diffuse.fit")

HELP = """
Fit models of the motions in a crystal to a merged map of its diffuse scattering: parameters with errors, agreement on
voxels that were set aside, and a comparison of the models. The scale and a smooth isotropic background are fitted, too.

Examples:

  dials.diffuse_fit diffuse_merged.nxs model.pdb

  dials.diffuse_fit diffuse_merged.nxs model.pdb model=llm,llm/overall,rigid_body d_max=10 d_min=2

  dials.diffuse_fit diffuse_merged.nxs model.pdb model=rigid_body/V,rigid_body+llm
"""

phil_scope = parse(
    """
model = llm
  .type = strings
  .help = "Models to fit and compare, with commas between them: rigid_body, llm, covariance, ensemble, uncorrelated."
          "Choices of a model may follow its name: llm/overall, llm/gaussian, rigid_body/cell, and /V or /G for tensors"
          "in place of sigma and gamma, e.g. llm/overall/V. A sum of models: rigid_body+llm. Bodies with a motion each:"
          "rigid_body/chain/each. The covariance of every pair of groups: covariance/residue/pairs, with tensors"
          "covariance/residue/pairs/V."
          "What the models' own parameters give is where the fit starts."
map = None
  .type = path
  .help = "The merged map, may also be given without map=."
selection = None
  .type = str
  .help = "Atoms to use, in the syntax of cctbx, e.g. 'not element H'. Default: all."
d_max = None
  .type = float(value_min=0.1)
  .help = "Low resolution limit in Angstrom. Default: all of the map."
d_min = None
  .type = float(value_min=0.1)
  .help = "High resolution limit in Angstrom. Default: that of the map."
free_fraction = 0.05
  .type = float(value_min=0, value_max=0.5)
  .help = "Fraction of the voxels that is not fitted but tests the fit: blocks of neighbours, with all symmetry mates."
seed = 0
  .type = int(value_min=0)
  .help = "Of the choice of these blocks, and of the starting points."
min_multiplicity = 1
  .type = int(value_min=0)
  .help = "Leave out voxels with fewer observations."
bragg = False
  .type = bool
  .help = "Also use the voxels on the lattice points, where Bragg peaks are."
bragg_distance = 0
  .type = float(value_min=0)
  .help = "Leave out voxels whose centres are within this distance of a lattice point, in 1/Angstrom: for maps with"
          "remains of strong Bragg peaks beside their masks."
indexing = *auto given
  .type = choice
  .help = "Where the lattice has more symmetry than the crystal: find the setting in which the first model fits the"
          "map, or take the one of the map."
scale = *refine absolute
  .type = choice
  .help = "Refine the scale of the model against the map, or hold it at 1: for maps in electrons squared per unit cell."
background.n_terms = Auto
  .type = int(value_min=0)
  .help = "Cubic splines of the isotropic background; 0 for none. Auto: one for each 0.02 1/Angstrom."
voxels = *auto mean centre
  .type = choice
  .help = "Compare the data with the mean over a voxel (models that cannot be averaged: centre, as the log says) or"
          "with the value at the centre. auto: what the map holds, means if it was measured."
weights = *sigma shell
  .type = choice
  .help = "1/sigma², or this divided by the reduced chi² that the best model reaches in a shell of resolution, so that"
          "shells in which no model fits do not rule the others."
loss = *squares huber soft_l1 cauchy
  .type = choice
  .help = "What is summed over the voxels: squares of residuals, or a function of which outliers get less, as in"
          "scipy.optimize.least_squares. An outlier is far from the model whose loss is lowest."
starts = 2
  .type = int(value_min=1)
  .help = "Starting points of each model; all but the first are random."
pairs.strength = 1,0.1,0.01,0.001
  .type = floats(value_min=0)
  .help = "Of covariance/.../pairs: how firmly the covariances are held near those of the fitted kernel. Of several the"
          "one is taken that agrees best with the free voxels."
pairs.minimiser = *auto newton lbfgs descent
  .type = choice
  .help = "Of covariance/.../pairs: Levenberg-Marquardt steps in the cone of positive semidefinite V, L-BFGS by the"
          "root of V, plain descent along the gradient, which is slow; auto takes the first for up to 30 groups with"
          "isotropic displacements, else the second."
pairs.starts = Auto
  .type = int(value_min=1)
  .help = "Starting points with the strength that is taken, all but the first random. Auto: starts= for up to 1000"
          "covariances, else one."
pairs.max_iterations = 200
  .type = int(value_min=1)
  .help = "Steps of a minimisation with one strength."
profile = True
  .type = bool
  .help = "Compute the profile likelihood of sigma and gamma."
"""
    + SCOPES_PHIL
    + FORM_FACTOR_PHIL
    + """
statistics.n_shells = 10
  .type = int(value_min=1)
  .help = "Resolution shells, of equal volume."
output {
  map = diffuse_fit.nxs
    .type = path
    .help = "The voxels of the fit with the data, and model, background and residual of the best model."
  volume = True
    .type = bool
    .help = "Also write the data as a full three-dimensional array, for viewers."
  json = diffuse_fit.json
    .type = path
    .help = "Parameters, errors and statistics of all models; None for no such file."
  html = diffuse_fit.html
    .type = path
    .help = "A report with tables and pictures that needs no other file; None for no such file."
  png = diffuse_fit.png
    .type = path
    .help = "Pictures of planes, data on the left and the best model on the right; None for no such file."
  covariance = diffuse_fit_covariance.npy
    .type = path
    .help = "The covariances of model=covariance/.../pairs in square Angstrom, one row for each group, or three with"
            "tensors; None for no such file."
  covariance_esd = diffuse_fit_covariance_esd.npy
    .type = path
    .help = "Their errors, where they are known: from the noise of the data, not from the prior; None for none."
  covariance_png = diffuse_fit_covariance.png
    .type = path
    .help = "The correlations as a picture; None for no such file."
  log = dials.diffuse_fit.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def main(params, files, provenance, warnings) -> None:
    """Fit the models of ``params`` to the map and the structure in ``files``, and write ``params.output``."""
    coordinates, map_path = sort_files(files, params.map)
    if map_path is None:
        raise CommandLineError("no map given; give one (.nxs) as dials.diffuse_merge writes it")
    if not params.model:
        raise CommandLineError(f"model=None: choose from {', '.join(all_models())}")
    names = [name for word in params.model for name in word.split(",") if name]
    parts = {name: [model_from_text(part, params, coordinates) for part in name.split("+")] for name in names}
    if len(parts) < len(names):
        raise CommandLineError(f"model={','.join(names)}: a model is given twice; leave one out")
    pairs = [name for name in names if "pairs" in name.split("/")]
    if pairs and params.covariance.supercell is not None:
        raise CommandLineError("covariance.supercell: pairs are fitted within one molecule; leave it out with /pairs")
    if len(pairs) > 1 or any("+" in name for name in pairs):
        raise CommandLineError(f"model={','.join(names)}: one model of all pairs can be fitted, and not in a sum")
    if pairs and not params.pairs.strength:
        raise CommandLineError("pairs.strength=None: at least one number is needed, 0 for no prior")
    if pairs and params.wavelength is not None:
        raise CommandLineError(f"wavelength={params.wavelength:g}: pairs are fitted without f', f''; leave it out")
    if pairs and len(params.pairs.strength) > 1 and params.free_fraction == 0:
        raise CommandLineError("pairs.strength: free voxels choose one of several; give one, or raise free_fraction")
    selection = Selection(
        d_max=params.d_max,
        d_min=params.d_min,
        free_fraction=params.free_fraction,
        seed=params.seed,
        min_multiplicity=params.min_multiplicity,
        bragg=params.bragg,
        bragg_distance=params.bragg_distance,
    )
    options = FitOptions(
        scale=1.0 if params.scale == "absolute" else None,
        background=n_terms if isinstance(n_terms := params.background.n_terms, int) else AUTO_TERMS,
        weights=params.weights,
        loss=params.loss,
        n_shells=params.statistics.n_shells,
        starts=params.starts,
        seed=params.seed,
        profile=params.profile,
    )
    given = read_map(map_path)
    if params.voxels == "auto":
        params.voxels = "centre" if given.at_centres else "mean"
    units = ELECTRON_DIFFRACTION if params.scattering_table == "electron" else ELECTRONS
    if options.scale and given.units != units:
        raise DiffuseError(
            f"scale=absolute: the intensities of {map_path} are in {given.units}, not in {units}, as those of models "
            f"with scattering_table={params.scattering_table} are; use scale=refine, or scale the data with "
            "dials.diffuse_scale absolute_scale.model="
        )
    structure = load_structure(coordinates)
    structure = structure if params.selection is None else structure.take(structure.select(params.selection))
    logger.info(
        "Structure: %s, %d atoms, %s", coordinates, structure.n_atoms, structure.crystal_symmetry.space_group_info()
    )
    if lacking := lacking_symmetry(structure, given.grid):
        logger.warning("Warning: %s", lacking)
    select(given, selection)  # complain of the range before anything takes long
    data_map, settings = _indexed(given, parts[names[0]][0][0], structure, params)
    data = select(data_map, selection, structure.space_group)
    logger.info(
        "%d voxels from %.2f to %.2f Å, %d of them set aside (%.1f %%); the errors of %d voxels were raised to half "
        "the median at their resolution",
        data.n,
        1 / data.s.min(),
        1 / data.s.max(),
        np.count_nonzero(data.free),
        100 * np.mean(data.free),
        data.n_floored,
    )
    if options.background == AUTO_TERMS:
        options = replace(options, background=background_terms(data.s))
        logger.info("background.n_terms=%d", options.background)
    candidates = []
    # all pairs start from a kernel, which is a model of its own in the table
    parts = {name.replace("/pairs", ""): models for name, models in parts.items()}
    for name, models in track(parts.items(), len(parts), "preparing"):
        candidates.append(candidate(name, models, params, structure, data))
    if automatic_orders(params, "llm"):
        prepare = partial(prepare_parts, params=params, structure=structure, data=data)
        fits = fit_with_enough_orders(data, candidates, options, prepare, track)
    else:
        fits = fit_models(data, candidates, options, track)
    prepared = {c.name: c.prepared for c in candidates}
    for name in pairs:
        (kernel,) = (fit for fit in fits if fit.name == name.replace("/pairs", ""))
        how = params.pairs
        fits.append(
            fit_all_pairs(
                data,
                kernel,
                structure,
                options,
                how.strength,
                how.minimiser,
                how.max_iterations,
                name,
                starts=how.starts if isinstance(how.starts, int) else None,
                groups=getattr(prepared[kernel.name], "groups", None),
            )
        )
    displacements = {fit.name: compare_displacements(fit.model, structure) for fit in fits}
    for fit in fits:
        for comparison in displacements[fit.name]:
            if comparison.warning:
                fit.warnings.append(f"{fit.name}: {comparison.warning}")
        _log(fit)
    choice = choose(fits, data)
    best = choice.best
    logger.info("All models:\n\n%s\n", format_models(fits))
    logger.info(
        "Errors are those of the least-squares fit times the root of the reduced chi², as if the data's errors were "
        "all too small by one factor%s",
        "" if options.loss == "squares" else f"; those of the loss {options.loss} from the spread of its residuals",
    )
    logger.info("The best model by %s: %s", "free voxels" if choice.criterion == "free" else "BIC", best.name)
    if len(fits) > 1 and choice.criterion == "free":
        logger.info("Free CC(aniso) below the highest:\n%s", format_choice(fits, choice))
    provenance = replace(provenance, inputs=(str(coordinates), str(map_path)))
    outputs = write_fit(params.output, provenance, data_map, data, best)
    outputs += [output for fit in fits if fit.pairs is not None for output in write_covariance(params.output, fit)]
    if params.output.html:
        outputs.append(Output(params.output.html, "report"))
    if params.output.json:
        outputs.append(Output(params.output.json, "statistics"))
    record = make_record(
        "dials.diffuse_fit/1",
        provenance,
        outputs,
        warnings,
        space_group=data.grid.space_group_symbol,
        unit_cell=data.grid.unit_cell,
        subdivide=data.grid.subdivide,
        d_max=1 / data.s.min(),
        d_min=1 / data.s.max(),
        units=data_map.units,
        indexing=settings,
        models=[{**fit_record(fit), "displacements": [c.record() for c in displacements[fit.name]]} for fit in fits],
        best=best.name,
        choice=choice.record(fits),
    )
    if params.output.html:
        logger.info("Saving the report to %s", params.output.html)
        pictures = params.output.png, params.output.covariance_png if pairs else None
        write_fit_page(params.output.html, record, fits, choice, pictures)
    if params.output.json:
        logger.info("Saving the summary to %s", params.output.json)
        write_json(params.output.json, record)


def _indexed(data: DiffuseMap, model, structure, params) -> tuple:
    """The map in the setting in which the model fits it, and a record of all settings."""
    if params.indexing == "given":
        return data, []
    d_min = max(params.d_min or data.grid.d_min, data.grid.d_min)
    if automatic_orders(params, "llm"):
        model = with_orders_at(model, structure, {}, d_min)
    found = compare_settings(data, model, structure, params.d_max or math.inf, d_min)
    record = [{"operator": setting.operator, "cc_anisotropic": cc} for setting, _, cc in found]
    record += [{"operator": s.operator, "cc_anisotropic": math.nan} for s in untested_settings(data.grid, structure)]
    if len(found) > 1:
        lines = [f"  {setting.operator:<14}{cc:8.3f}" for setting, _, cc in found]
        logger.info("Settings of the map, and correlation with the first model:\n%s", "\n".join(lines))
    if found[0][0].operator != "h,k,l":
        logger.warning(
            "The map is indexed otherwise than the structure: it is reindexed by %s (indexing=given does not)",
            found[0][0].operator,
        )
    elif len(found) > 1 and not found[0][2] - found[1][2] >= UNDECIDED:
        logger.warning(
            "Warning: the first model fits the map as well in another setting; the map is taken as it is indexed. "
            "Name a model first that can tell the settings apart, such as llm"
        )
    return found[0][1], record


def _log(fit) -> None:
    lines = [format_estimate(e) for e in (*fit.estimates, fit.scale)]
    lines += [f"llm.orders = {number}" for number in orders_of(fit.model)]
    if fit.pairs is not None:
        lines += format_pairs(fit.pairs)
    logger.info("%s:\n  %s\n\n%s\n", fit.name, "\n  ".join(lines), format_shells(fit))
    for warning in fit.warnings:
        logger.warning("Warning: %s", warning)


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_fit; ``args`` default to the command line."""
    run_program("dials.diffuse_fit", HELP, phil, main, args, required=("map",))


if __name__ == "__main__":
    run()
