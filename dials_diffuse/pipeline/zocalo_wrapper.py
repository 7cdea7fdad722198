"""dials.diffuse_process as zocalo runs programs: a wrapper for the group of entry points ``zocalo.wrappers``.

``zocalo.wrap`` makes the wrapper, hands it a step of a recipe, and calls ``run``. What the step asks for stands in its
``job_parameters``, see docs/beamline.md. The program itself runs in a process of its own: the environment of zocalo
needs this package, but not DIALS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zocalo.wrapper import BaseWrapper

PROGRAM = "dials.diffuse_process"

#: kinds of outputs that ISPyB does not call a result
_FILE_TYPES = {"picture": "Graph", "log": "Log", "report": "Log"}


class JobError(ValueError):
    """The recipe's parameters cannot be used; the message says why."""


@dataclass(frozen=True)
class Job:
    """The ``job_parameters`` of a recipe's step.

    Attributes
    ----------
    inputs : files of experiments and reflections, or the folder of a run
    phil : parameters of the program, such as ``pdb=model.pdb``
    working_directory : where the program runs and writes
    results_directory : where its outputs are copied to; None: they stay where they are
    timeout : seconds after which the program is ended; None: never

    Raises
    ------
    JobError
        If a parameter is missing or not of its kind.
    """

    inputs: tuple
    phil: tuple = ()
    working_directory: Path = Path()
    results_directory: Path | None = None
    timeout: float | None = None

    @classmethod
    def from_parameters(cls, parameters: Mapping) -> Job:
        """Read a step's ``job_parameters``."""
        own = parameters.get("diffuse_process") or {}
        if not isinstance(own, Mapping):
            raise JobError(f"diffuse_process: {own!r} is no group of parameters; give input and phil")
        inputs, phil = own.get("input"), own.get("phil") or ()
        if isinstance(inputs, str):
            inputs = [inputs]
        if not inputs:
            raise JobError("diffuse_process.input: nothing is given; name .expt and .refl files, or a run's folder")
        if isinstance(phil, str):
            phil = [phil]
        elif isinstance(phil, Mapping):
            phil = [f"{name}={value}" for name, value in phil.items()]
        placed = [item for item in phil if str(item).startswith("output.")]
        if placed:
            raise JobError(f"{placed[0]}: outputs go to working_directory and results_directory; use these")
        try:
            timeout = None if parameters.get("timeout") is None else float(parameters["timeout"])
        except (TypeError, ValueError):
            raise JobError(f"timeout: {parameters['timeout']!r} is no number of seconds") from None
        results = parameters.get("results_directory")
        return cls(
            tuple(map(str, inputs)),
            tuple(map(str, phil)),
            Path(parameters.get("working_directory") or "."),
            Path(results) if results else None,
            timeout,
        )


def _run(command: list, folder: Path, timeout: float | None) -> tuple:
    """Exit code and stderr; a program that is not waited for any longer may still clean up."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.communicate(timeout=timeout)[1]
        except BaseException:
            process.terminate()
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return process.returncode, said


class DiffuseProcessWrapper(BaseWrapper):
    """Runs the program as a step of a recipe asks; ``zocalo.wrap --wrap dials.diffuse_process``.

    Channels beside those that zocalo itself uses: ``result-individual-file`` and ``result-all-files`` as other wrappers
    have them, and ``verdict``, the record of the program without its shells and parameters.
    """

    _logger_name = "zocalo.wrapper.diffuse_process"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._reason = ""

    def run(self) -> bool:
        """Run the program, copy its outputs, and tell what they are; False if it failed."""
        try:
            job = Job.from_parameters(self.recwrap.recipe_step.get("job_parameters") or {})
            folder = job.working_directory
            folder.mkdir(parents=True, exist_ok=True)
        except (JobError, OSError) as error:
            return self._failed(str(error))
        command = [PROGRAM, *job.inputs, *job.phil]
        self.log.info("Running %s in %s", " ".join(command), folder)
        try:
            code, said = _run(command, folder, job.timeout)
        except FileNotFoundError:
            return self._failed(f"{PROGRAM}: no such program; load DIALS in the environment of zocalo.wrap")
        except subprocess.TimeoutExpired:
            return self._failed(f"{PROGRAM}: not done after timeout={job.timeout:g} s; run the job again to go on")
        if code:
            return self._failed((said.strip().splitlines() or [f"{PROGRAM}: exit code {code}"])[-1])
        record = json.loads((folder / f"{PROGRAM}.json").read_text(encoding="utf-8"))
        try:
            self._hand_over(record, folder, job.results_directory)
        except OSError as error:
            return self._failed(str(error))
        self.log.info("Verdict: %s: %s", record["verdict"], " ".join(record["reasons"]))
        return True

    def failure(self, payload="") -> None:
        """As zocalo calls it; the channel gets the reason instead of only the fact."""
        super().failure(self._reason or payload)

    def _failed(self, reason: str) -> bool:
        self._reason = reason
        self.log.error(reason)
        return False

    def _hand_over(self, record: dict, folder: Path, results: Path | None) -> None:
        """Copy the outputs, and send what they are and the verdict."""
        outputs = [*record["outputs"], {"path": f"{PROGRAM}.log", "kind": "log", "importance": "aid"}]
        if results is not None:
            results.mkdir(parents=True, exist_ok=True)
        paths = []
        for output in outputs:
            path = folder.resolve() / output["path"]
            if not path.is_file():
                continue
            if results is not None:
                path = Path(shutil.copy2(path, results.resolve()))
            paths.append(os.fspath(path))
            self.record_result_individual_file(
                {
                    "file_path": os.fspath(path.parent),
                    "file_name": path.name,
                    "file_type": _FILE_TYPES.get(output["kind"], "Result"),
                    "importance_rank": 1 if output["importance"] == "main" else 2,
                }
            )
        self.record_result_all_files({"filelist": paths})
        verdict = {key: value for key, value in record.items() if key not in ("parameters", "statistics")}
        verdict["statistics"] = record["statistics"]["overall"]
        self.recwrap.send_to("verdict", verdict)
