"""dials.diffuse_fit: models of the motions in a crystal, fitted to a map of its diffuse scattering."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace

import numpy as np
from libtbx.phil import parse

from dials_diffuse import __version__
from dials_diffuse.cli.model import sort_files
from dials_diffuse.cli.model_scope import MODEL_PHIL, model_from_phil
from dials_diffuse.cli.program import run_program, track
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.fitting.data import FitData, Selection, select
from dials_diffuse.fitting.displacements import compare_displacements
from dials_diffuse.fitting.fit import Candidate, FitOptions, best_fit, fit_models
from dials_diffuse.fitting.indexing import compare_settings
from dials_diffuse.fitting.pairs import fit_all_pairs
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.maps.files import atomic_path, write_json
from dials_diffuse.maps.nexus import DiffuseMap, read_map, write_map
from dials_diffuse.models import MODELS, Ensemble
from dials_diffuse.models.compute import UNITS
from dials_diffuse.models.prepared import prepare
from dials_diffuse.report.fit import fit_record, format_estimate, format_models, format_shells
from dials_diffuse.report.fit_covariance import write_correlations_png
from dials_diffuse.report.planes import write_planes_png
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

_model_scopes = parse(MODEL_PHIL)

phil_scope = parse(
    """
model = llm
  .type = strings
  .help = "Models to fit and compare, with commas between them: rigid_body, llm, covariance, ensemble, uncorrelated."
          "Choices of a model may follow its name: llm/overall, llm/gaussian, rigid_body/cell, and /V or /G for tensors"
          "in place of sigma and gamma, e.g. llm/overall/V. A sum of models: rigid_body+llm. Bodies with a motion each:"
          "rigid_body/chain/each. The covariance of every pair of groups: covariance/residue/pairs."
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
indexing = *auto given
  .type = choice
  .help = "Where the lattice has more symmetry than the crystal: find the setting in which the first model fits the"
          "map, or take the one of the map."
scale = *refine absolute
  .type = choice
  .help = "Refine the scale of the model against the map, or hold it at 1: for maps in electrons squared per unit cell."
background.n_terms = 10
  .type = int(value_min=0)
  .help = "Cubic splines of the isotropic background; 0 for none."
weights = *sigma shell
  .type = choice
  .help = "1/sigma², or this divided by the reduced chi² that the best model reaches in a shell of resolution, so that"
          "shells in which no model fits do not rule the others."
starts = 2
  .type = int(value_min=1)
  .help = "Starting points of each model; all but the first are random."
pairs.strength = 1,0.1,0.01,0.001
  .type = floats(value_min=0)
  .help = "Of covariance/.../pairs: how firmly the covariances are held near those of the fitted kernel. Of several the"
          "one is taken that agrees best with the free voxels."
profile = True
  .type = bool
  .help = "Compute the profile likelihood of sigma and gamma."
"""
    + MODEL_PHIL[MODEL_PHIL.index("rigid_body {") :]
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
  png = diffuse_fit.png
    .type = path
    .help = "Pictures of planes, data on the left and the best model on the right; None for no such file."
  covariance = diffuse_fit_covariance.npy
    .type = path
    .help = "The covariances of model=covariance/.../pairs in square Angstrom, one row for each group; None for none."
  covariance_png = diffuse_fit_covariance.png
    .type = path
    .help = "Their correlations as a picture; None for no such file."
  log = dials.diffuse_fit.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)

#: tensors that a model can have in place of a number, and what they start from if nothing is given
_TENSORS = {"V": ("sigma", 0.3, 2), "G": ("gamma", 10.0, 1)}


#: words that are no choices of a model's scope: a motion for each body, the covariance of each pair of groups
_WORDS = (("rigid_body", "each"), ("covariance", "pairs"))


def main(params, files, provenance) -> None:
    """Fit the models of ``params`` to the map and the structure in ``files``, and write ``params.output``."""
    coordinates, map_path = sort_files(files, params.map)
    if map_path is None:
        raise CommandLineError("no map given; give one (.nxs) as dials.diffuse_merge writes it")
    if not params.model:
        raise CommandLineError(f"model=None: choose from {', '.join(MODELS)}")
    names = [name for word in params.model for name in word.split(",") if name]
    parts = {name: [_model(part, params, coordinates) for part in name.split("+")] for name in names}
    if len(parts) < len(names):
        raise CommandLineError(f"model={','.join(names)}: a model is given twice; leave one out")
    pairs = [name for name in names if "pairs" in name.split("/")]
    if pairs and params.covariance.supercell is not None:
        raise CommandLineError("covariance.supercell: pairs are fitted within one molecule; leave it out with /pairs")
    if len(pairs) > 1 or any("+" in name for name in pairs):
        raise CommandLineError(f"model={','.join(names)}: one model of all pairs can be fitted, and not in a sum")
    selection = Selection(
        params.d_max, params.d_min, params.free_fraction, params.seed, params.min_multiplicity, params.bragg
    )
    options = FitOptions(
        scale=1.0 if params.scale == "absolute" else None,
        background=params.background.n_terms,
        weights=params.weights,
        n_shells=params.statistics.n_shells,
        starts=params.starts,
        seed=params.seed,
        profile=params.profile,
    )
    given = read_map(map_path)
    if options.scale and given.units != UNITS:
        raise DiffuseError(
            f"scale=absolute: the intensities of {map_path} are in {given.units}, not in {UNITS}; use scale=refine, or "
            "scale the data with dials.diffuse_scale absolute_scale.model="
        )
    structure = load_structure(coordinates)
    structure = structure if params.selection is None else structure.take(structure.select(params.selection))
    logger.info(
        "Structure: %s, %d atoms, %s", coordinates, structure.n_atoms, structure.crystal_symmetry.space_group_info()
    )
    select(given, selection)  # complain of the range before anything takes long
    data_map, settings = _indexed(given, parts[names[0]][0][0], structure, params)
    data = select(data_map, selection)
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
    candidates = []
    # all pairs start from a kernel, which is a model of its own in the table
    parts = {name.replace("/pairs", ""): models for name, models in parts.items()}
    for name, models in track(parts.items(), len(parts), "preparing"):
        candidates.append(_candidate(name, models, structure, data))
    fits = fit_models(data, candidates, options, track)
    for name in pairs:
        (kernel,) = (fit for fit in fits if fit.name == name.replace("/pairs", ""))
        fits.append(fit_all_pairs(data, kernel, structure, options, params.pairs.strength))
    displacements = {fit.name: compare_displacements(fit.model, structure) for fit in fits}
    for fit in fits:
        for comparison in displacements[fit.name]:
            if comparison.warning:
                fit.warnings.append(f"{fit.name}: {comparison.warning}")
        _log(fit)
    best = best_fit(fits)
    logger.info("All models:\n\n%s\n", format_models(fits))
    logger.info(
        "Errors are those of the least-squares fit times the root of the reduced chi², as if the data's errors were "
        "all too small by one factor"
    )
    logger.info("The best model by %s: %s", "free voxels" if data.free.any() else "BIC", best.name)
    inputs = (str(coordinates), str(map_path))
    outputs = _write(params, replace(provenance, inputs=inputs), data_map, data, best)
    outputs += [output for fit in fits if fit.covariance is not None for output in _write_covariance(params, fit)]
    if params.output.json:
        logger.info("Saving the summary to %s", params.output.json)
        outputs.append({"path": params.output.json, "kind": "statistics", "importance": "main"})
        content = {
            "schema": "dials.diffuse_fit/1",
            "version": __version__,
            "dials_version": provenance.dials_version,
            "inputs": inputs,
            "parameters": provenance.phil,
            "space_group": data.grid.space_group_symbol,
            "unit_cell": data.grid.unit_cell,
            "subdivide": data.grid.subdivide,
            "d_max": 1 / data.s.min(),
            "d_min": 1 / data.s.max(),
            "units": data_map.units,
            "indexing": settings,
            "models": [
                {**fit_record(fit), "displacements": [c.record() for c in displacements[fit.name]]} for fit in fits
            ],
            "best": best.name,
            "outputs": outputs,
        }
        write_json(params.output.json, content)


def _model(text: str, params, coordinates) -> tuple:
    """A model, the names of the parameters that were given for it, and whether each body shall have its own motion.

    text : ``name`` or ``name/choice/...``
    """
    name, *words = text.split("/")
    if name not in MODELS:
        raise CommandLineError(f"model={text}: no model {name!r}; choose from {', '.join(MODELS)}")
    own = _model_scopes.extract()  # with the scopes of the other models as they are by default
    own.model = name
    scope = copy.deepcopy(getattr(params, name, None))
    given = {key for key in ("sigma", "V", "gamma", "G") if getattr(scope, key, None) is not None}
    each = "each" in words and name == "rigid_body"
    words = [word for word in words if (name, word) not in _WORDS]
    for word in words:
        if word in _TENSORS and hasattr(scope, word):
            given |= _make_tensor(scope, word)
        else:
            _choose(scope, text, name, word)
    if scope is not None:
        setattr(own, name, scope)
    model = model_from_phil(own, coordinates)
    if isinstance(model, Ensemble) and params.selection is not None:
        model = model.select(params.selection)
    return model, given, each


def _make_tensor(scope, name: str) -> set:
    """Put a tensor in place of the number; names that count as given: that of the tensor if the number was."""
    if getattr(scope, name) is not None:
        return set()
    number, default, power = _TENSORS[name]
    given = getattr(scope, number)
    value = np.mean(default if given is None else given) ** power
    setattr(scope, name, [value, value, value, 0.0, 0.0, 0.0])
    setattr(scope, number, None)
    return set() if given is None else {name}


def _choose(scope, text: str, name: str, word: str) -> None:
    """Set what a word after the name of a model stands for."""
    known = [word for word in _TENSORS if hasattr(scope, word)]
    for definition in _model_scopes.all_definitions():
        parent, _, key = definition.path.rpartition(".")
        if parent == name and definition.object.type.phil_type == "choice":
            choices = [w.value.lstrip("*") for w in definition.object.words]
            known += choices
            if word in choices:
                setattr(scope, key, word)
                return
    known += [other for model, other in _WORDS if model == name]
    raise CommandLineError(f"model={text}: {word!r} is no choice of {name}; there is {', '.join(known) or 'none'}")


def _indexed(data: DiffuseMap, model, structure, params) -> tuple:
    """The map in the setting in which the model fits it, and a record of all settings."""
    if params.indexing == "given":
        return data, []
    d_min = max(params.d_min or data.grid.d_min, data.grid.d_min)
    found = compare_settings(data, model, structure, params.d_max or math.inf, d_min)
    record = [{"operator": setting.operator, "cc_anisotropic": cc} for setting, _, cc in found]
    if len(found) > 1:
        lines = [f"  {setting.operator:<14}{cc:8.3f}" for setting, _, cc in found]
        logger.info("Settings of the map, and correlation with the first model:\n%s", "\n".join(lines))
        if found[0][0].operator != "h,k,l":
            logger.warning(
                "The map is indexed otherwise than the structure: it is reindexed by %s (indexing=given does not)",
                found[0][0].operator,
            )
    return found[0][1], record


def _candidate(name: str, models, structure, data: FitData) -> Candidate:
    """A model, or the sum of several, at the voxels of the data."""
    prepared, starts = [], []
    for model, given, each in models:
        model = model.for_each_body(structure) if each else model
        prepared.append(prepare(model, structure, data.grid, data.index))
        starts += [p.value if _root(p.name) in given else p.start for p in prepared[-1].parameters]
    if len(prepared) > 1:
        labels = [text.split("/")[0] for text in name.split("+")]
        return Candidate(name, PreparedSum(prepared, labels, structure), np.array(starts))
    return Candidate(name, prepared[0], np.array(starts))


def _root(name: str) -> str:
    """sigma of sigma_1, V of V11"""
    return name.split("_")[0].rstrip("0123456789")


def _log(fit) -> None:
    lines = [format_estimate(e) for e in (*fit.estimates, fit.scale)]
    logger.info("%s:\n  %s\n\n%s\n", fit.name, "\n  ".join(lines), format_shells(fit))
    for warning in fit.warnings:
        logger.warning("Warning: %s", warning)


def _write(params, provenance, data_map: DiffuseMap, data: FitData, best) -> list:
    """Map and picture of the best model; a list of outputs for the summary."""

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
    logger.info("Saving the data and the model %s to %s", best.name, params.output.map)
    columns = {
        "model": best.scale.value * best.intensity,
        "background": best.background,
        "residual": data.intensity - best.fitted,
        "sigma": data.sigma,
        "free": data.free.astype(np.uint8),
    }
    measured = part(data.intensity, **halves)
    write_map(params.output.map, measured, provenance, params.output.volume, {"fit": columns})
    outputs = [{"path": params.output.map, "kind": "map", "importance": "main"}]
    if params.output.png:
        logger.info("Saving pictures to %s", params.output.png)
        free = best.statistics["free"]["cc_anisotropic"]
        title = (
            f"Anisotropic diffuse scattering, {data.grid.space_group_symbol}; left half of each plane: data, "
            f"right half: {best.name}, mirrored; correlation {best.statistics['cc_anisotropic']:.3f}, free {free:.3f}; "
            "grey: left out"
        )
        write_planes_png(params.output.png, part(data.intensity), title, part(columns["model"]))
        outputs.append({"path": params.output.png, "kind": "picture", "importance": "aid"})
    return outputs


def _write_covariance(params, fit) -> list:
    outputs = []
    if params.output.covariance:
        logger.info("Saving the covariances of %s to %s", fit.name, params.output.covariance)
        with atomic_path(params.output.covariance) as temporary, open(temporary, "wb") as handle:
            np.save(handle, fit.covariance, allow_pickle=False)
        outputs.append({"path": params.output.covariance, "kind": "covariance", "importance": "main"})
    if params.output.covariance_png:
        logger.info("Saving their picture to %s", params.output.covariance_png)
        write_correlations_png(params.output.covariance_png, fit.covariance, fit.name)
        outputs.append({"path": params.output.covariance_png, "kind": "picture", "importance": "aid"})
    return outputs


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_fit; ``args`` default to the command line."""
    run_program("dials.diffuse_fit", HELP, phil, main, args, required=("map",))


if __name__ == "__main__":
    run()
