"""All steps in one call: the library function behind ``dials.diffuse_process``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from dials_diffuse import __version__
from dials_diffuse.experiment.background_search import Series, open_series, series_beside
from dials_diffuse.experiment.common_grid import resolution_limit
from dials_diffuse.experiment.exclusion import images_to_use
from dials_diffuse.experiment.imagesets import image_paths
from dials_diffuse.experiment.load import InputData, load_experiments, load_input
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, read_json
from dials_diffuse.files.together import together
from dials_diffuse.files.unfinished import remove_leftovers
from dials_diffuse.fitting.run import fit_map
from dials_diffuse.merging.laue import merge_observations
from dials_diffuse.parallel import SERIAL, Executor, Progress, quiet
from dials_diffuse.pipeline.choices import Choice, choices_of_steps, choose_backgrounds, choose_subdivision
from dials_diffuse.pipeline.process_parameters import ProcessFiles, ProcessParameters
from dials_diffuse.pipeline.resources import measured
from dials_diffuse.pipeline.significance import Significance, signal_of
from dials_diffuse.pipeline.sources import Sources, other_symmetry
from dials_diffuse.pipeline.state import Done, Fingerprint, State, files_fingerprint, locked_state
from dials_diffuse.pipeline.verdict import Verdict, judge
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.report.fit import log_result
from dials_diffuse.report.fit_files import FitFiles, write_result
from dials_diffuse.report.integrate import write_integration
from dials_diffuse.report.merge_files import MergeFiles, Reference, write_merged
from dials_diffuse.report.scaling_files import ScalingFiles, write_scaling
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.secondary import secondary_structure

logger = logging.getLogger("dials.diffuse.process")


@dataclass(frozen=True)
class Step:
    """What is known of a step when it is done.

    name : of the step; repeated : was it done now, or taken from an earlier run?; why : the reason for that
    done : Done
    """

    name: str
    repeated: bool
    why: str
    done: Done


@dataclass(frozen=True)
class ProcessResult:
    """What the steps found; the files are complete.

    Attributes
    ----------
    verdict : Verdict
    signal : Significance of the map
    choices : tuple of Choice, what was decided from the data
    records : records of the steps by name, as their JSON files have them
    steps : tuple of Step
    sources : Sources
    outputs : tuple of Output, of all steps
    """

    verdict: Verdict
    signal: Significance
    choices: tuple
    records: dict
    steps: tuple
    sources: Sources
    outputs: tuple


def process(
    sources: Sources,
    parameters: ProcessParameters,
    files: ProcessFiles,
    provenance: Provenance,
    warnings: list,
    executor: Executor = SERIAL,
    threads: int = 1,
    progress: Progress = quiet,
) -> ProcessResult:
    """From experiments to a map and a verdict on it; what an earlier run finished in the same folder is not repeated.

    Parameters
    ----------
    warnings : sentences that were logged so far; it has to grow with what is logged, and gets those of steps that were
        done before
    executor, threads : for images and for models that take long, and for the rest

    Raises
    ------
    DiffuseError
        On input that a step cannot use; or if another run is at work in the folder.
    """
    with locked_state(files.folder, files.prefix) as state:
        remove_leftovers(files.folder)
        run = _Run(state, parameters, files, provenance, warnings, executor, threads, progress)
        data = load_input(sources.files, parameters.excluded, parameters.images_root)
        crystals = [experiment.crystal for experiment in data.experiments if experiment.crystal is not None]
        if crystals and (text := other_symmetry(sources, crystals[0].get_space_group())):
            logger.warning(text)
        steps = [run.choose(sources, data)]
        chosen = steps[0].done.result
        beside = tuple(Series(**item) for item in chosen["backgrounds"])
        steps += [run.integrate(sources, data, tuple(chosen["subdivide"]), beside), run.scale(), run.merge()]
        signal = signal_of(read_map(files.path("diffuse_merged.nxs")))
        records = {name: read_json(files.path(f"diffuse_{name}.json")) for name in ("integrated", "scaled", "merged")}
        verdict = judge(signal, *records.values())
        choices = [Choice(**item) for item in chosen["choices"]]
        choices += choices_of_steps(records["integrated"], records["scaled"])
        if parameters.coordinates:
            choices.append(_limit_of_fit(parameters, signal, records["merged"]["d_min"]))
            if signal.significant:
                steps.append(run.fit(float(choices[-1].value)))
                records["fit"] = read_json(files.path("diffuse_fit.json"))
            else:
                logger.info("\nNo models are fitted: %s", verdict.reasons[-1])
    outputs = tuple(Output(**item) for step in steps for item in step.done.listed)
    return ProcessResult(verdict, signal, tuple(choices), records, tuple(steps), sources, outputs)


def _limit_of_fit(parameters: ProcessParameters, signal: Significance, d_min: float) -> Choice:
    given = parameters.fitting.selection.d_min
    if given is not None:
        return Choice("fit.d_min", f"{given:g}", "given")
    if math.isfinite(signal.d_min):
        return Choice("fit.d_min", f"{signal.d_min:.4f}", "half sets agree to this resolution")
    return Choice("fit.d_min", f"{d_min:.4f}", "that of the map")


class _Run:
    """The steps of one call; each is done now, or was by an earlier run with the same inputs and parameters."""

    def __init__(
        self,
        state: State,
        parameters: ProcessParameters,
        files: ProcessFiles,
        provenance: Provenance,
        warnings: list,
        executor: Executor,
        threads: int,
        progress: Progress,
    ):
        self.state, self.parameters, self.files = state, parameters, files
        self.provenance, self.warnings = provenance, warnings
        self.executor, self.threads, self.progress = executor, threads, progress

    def step(self, name: str, parameters: dict, inputs, work: Callable) -> Step:
        """Do a step unless it is done.

        parameters : name -> anything whose ``repr`` tells what it is
        inputs : paths of the files that are read
        work : called without arguments, returns the outputs (tuple of Output) and a record for later steps
        """
        fingerprint = Fingerprint(
            f"dials_diffuse {__version__}, {self.provenance.dials_version}",
            {key: repr(value) for key, value in parameters.items()},
            files_fingerprint(inputs),
        )
        done, why = self.state.finished(name, fingerprint)
        if done is not None:
            logger.info("\n%s: done before, %s", name, ", ".join(item["path"] for item in done.listed) or "kept")
            self.warnings += [text for text in done.warnings if text not in self.warnings]
            return Step(name, False, "nothing changed", done)
        logger.info("\n%s (%s)", name, why)
        before = len(self.warnings)
        with measured() as resources, together():
            outputs, result = work()
        listed = [{**asdict(output), "path": str(output.path)} for output in outputs]
        done = Done(
            fingerprint,
            files_fingerprint(item["path"] for item in listed),
            self.warnings[before:],
            asdict(resources),
            finite(result),
            listed,
        )
        self.state.keep(name, done)
        return Step(name, True, why, done)

    def choose(self, sources: Sources, data: InputData) -> Step:
        """Decide what nobody has decided."""
        used = self._positions(data)
        numbers = [i for i, positions in enumerate(used) if len(positions)]
        tables = self._tables(data)

        def work():
            experiments = [data.experiments[i] for i in numbers]
            d_min = resolution_limit(experiments, self.parameters.reduction.d_min)
            if self.parameters.subdivide is None:
                subdivide, choice = choose_subdivision(experiments, [tables[i] for i in numbers], d_min)
            else:
                subdivide = self.parameters.subdivide
                choice = Choice("grid.subdivide", ",".join(map(str, subdivide)), "given")
            choices, backgrounds = [choice], ()
            if self.parameters.backgrounds is None:
                backgrounds, choice = choose_backgrounds(experiments, [used[i] for i in numbers])
                choices.append(choice)
            for choice in choices:
                logger.info("%s=%s: %s", choice.name, choice.value, choice.reason)
            return (), {
                "subdivide": subdivide,
                "backgrounds": [asdict(item) for item in backgrounds],
                "choices": [asdict(choice) for choice in choices],
            }

        told = {
            "grid.subdivide": self.parameters.subdivide,
            "d_min": self.parameters.reduction.d_min,
            "exclude_images": self.parameters.excluded,
        }
        inputs = list(sources.files)
        if self.parameters.backgrounds is None:  # then images are looked at, and what else there is
            told["images beside the data"] = series_beside([data.experiments[i] for i in numbers])
            inputs += self._images(data, used)
        return self.step("Choices", told, inputs, work)

    def integrate(self, sources: Sources, data: InputData, subdivide: tuple, beside: tuple) -> Step:
        """beside : Series of background images that were found"""
        p, path = self.parameters, self.files.path
        reduction = replace(p.reduction, subdivide=subdivide)
        backgrounds = [e for name in p.backgrounds or () for e in load_experiments(name, p.images_root)]
        backgrounds += [e for series in beside for e in open_series(series)]
        images = self._images(data, self._positions(data)) + [f for e in backgrounds for f in image_paths(e)]

        def work():
            provenance = replace(self.provenance, inputs=sources.files)
            result = integrate(
                data.experiments,
                reduction,
                path("diffuse_integrated.h5"),
                provenance,
                data.reflections,
                backgrounds,
                p.excluded,
                self.executor,
                self.progress,
            )
            observations, json, html = (path(f"diffuse_integrated.{suffix}") for suffix in ("h5", "json", "html"))
            return write_integration(result, observations, json, provenance, self.warnings, data.record(), html), {}

        told = {"integrate": reduction, "exclude_images": p.excluded}
        return self.step("Integration", told, [*sources.files, *(p.backgrounds or ()), *images], work)

    def scale(self) -> Step:
        p, path = self.parameters, self.files.path
        source = path("diffuse_integrated.h5")

        def work():
            provenance = replace(self.provenance, inputs=(source,))
            names = [f"diffuse_scaled{suffix}" for suffix in (".h5", ".json", ".png", "_crystals.png", ".html")]
            files = ScalingFiles(*map(path, names))
            result = scale_observations(
                [source],
                p.scaling,
                files.observations,
                provenance,
                self.threads,
                self.progress,
                p.absolute,
                p.bragg_scales,
            )
            return write_scaling(result, files, provenance, self.warnings), {}

        told = {"scale": p.scaling, "absolute_scale": p.absolute, "bragg_scales": p.bragg_scales}
        inputs = [source, *(f for f in (p.absolute.model, p.absolute.sequence) if f)]
        return self.step("Scaling", told, inputs, work)

    def merge(self) -> Step:
        path, parameters, name = self.files.path, self.parameters.merging, self.parameters.reference
        source = path("diffuse_scaled.h5")

        def work():
            provenance = replace(self.provenance, inputs=(source,))
            reference = None if name is None else Reference(read_map(name), name)
            result = merge_observations([source], parameters, self.progress)
            nexus, json, png, html = (path(f"diffuse_merged.{suffix}") for suffix in ("nxs", "json", "png", "html"))
            files = MergeFiles(nexus, json=json, png=png, html=html)
            return write_merged(result, parameters, files, provenance, self.warnings, reference), {}

        inputs = [source] if name is None else [source, name]
        return self.step("Merging", {"merge": parameters, "reference": name}, inputs, work)

    def fit(self, d_min: float) -> Step:
        p, path = self.parameters, self.files.path
        source = path("diffuse_merged.nxs")
        fitting = replace(p.fitting, selection=replace(p.fitting.selection, d_min=d_min))

        def work():
            provenance = replace(self.provenance, inputs=(p.coordinates, source))
            structure = load_structure(p.coordinates, p.selection)
            result = fit_map(read_map(source), structure, p.requests, fitting, self.progress, source, self.executor)
            log_result(result)
            names = FitFiles()
            files = replace(names, **{key: value and path(value) for key, value in asdict(names).items()})
            secondary = secondary_structure(p.coordinates)
            return write_result(result, files, provenance, self.warnings, secondary), {}

        told = {"fit": fitting, "models": p.told or p.requests, "selection": p.selection}
        return self.step("Fit", told, [source, p.coordinates], work)

    def _positions(self, data: InputData) -> list:
        return [images_to_use(e, i, self.parameters.excluded) for i, e in enumerate(data.experiments)]

    @staticmethod
    def _images(data: InputData, used: list) -> list:
        """Files of the images that are used, each once."""
        names = {}
        for experiment, positions in zip(data.experiments, used):
            paths = image_paths(experiment)
            names.update(dict.fromkeys(paths[i] for i in positions))
        return list(names)

    @staticmethod
    def _tables(data: InputData) -> list:
        """The reflections of each experiment."""
        if data.reflections is None:
            return [None] * len(data.experiments)
        table = data.reflections
        return [table.select(table["id"] == i) for i in range(len(data.experiments))]
