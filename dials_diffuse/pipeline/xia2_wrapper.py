"""dials.diffuse_process as xia2 runs programs: a class with setters, ``run`` and getters, made by a factory.

xia2's wrappers derive from the class that its ``DriverFactory`` returns: an object with ``set_executable``,
``set_working_directory``, ``reset``, ``clear_command_line``, ``add_command_line``, ``start``, ``close_wait``,
``check_for_errors``, which raises RuntimeError where the exit code is not 0, and ``get_all_output``, lines of stdout
and stderr. This one keeps to that contract and needs nothing else of xia2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def DiffuseProcess(driver_factory: Callable | None = None):
    """A wrapper of ``dials.diffuse_process``.

    Parameters
    ----------
    driver_factory : called without arguments, makes a driver; None: that of xia2

    Raises
    ------
    ImportError
        If there is neither a factory nor xia2.

    Examples
    --------
    In a xia2 that has a working directory and scaled data::

        process = DiffuseProcess()
        process.set_working_directory(working_directory)
        process.set_input(scaled_expt, scaled_refl)
        process.set_phil("pdb=model.pdb")
        process.run()
        print(process.get_verdict())
    """
    if driver_factory is None:
        from xia2.Driver.DriverFactory import DriverFactory

        driver_factory = DriverFactory.Driver
    base = type(driver_factory())

    class DiffuseProcessWrapper(base):
        """Runs the program in the driver's working directory."""

        def __init__(self):
            super().__init__()
            self.set_executable("dials.diffuse_process")
            self.reset()
            self._inputs: list = []
            self._phil: list = []
            self._record: dict = {}

        def set_input(self, *paths) -> None:
            """Files of experiments and reflections, or the folder of a run."""
            self._inputs = [str(path) for path in paths]

        def set_phil(self, *parameters) -> None:
            """Parameters such as ``pdb=model.pdb``."""
            self._phil = list(parameters)

        def run(self) -> None:
            """Run the program and read its record.

            Raises
            ------
            RuntimeError
                If the program fails; the message is its own where it has one.
            """
            self.clear_command_line()
            for argument in (*self._inputs, *self._phil):
                self.add_command_line(argument)
            self.start()
            self.close_wait()
            try:
                self.check_for_errors()
            except RuntimeError:
                said = [line.strip() for line in self.get_all_output() if line.startswith("dials.diffuse_process: ")]
                if said:
                    raise RuntimeError(said[-1]) from None
                raise
            text = (Path(self.get_working_directory()) / "dials.diffuse_process.json").read_text(encoding="utf-8")
            self._record = json.loads(text)

        def get_verdict(self) -> str:
            """``good``, ``weak``, ``none`` or ``doubtful``."""
            return self._record["verdict"]

        def get_record(self) -> dict:
            """Everything that the program tells, see docs/files.md."""
            return self._record

        def get_map(self) -> str:
            """Path of the merged map."""
            path = next(item["path"] for item in self._record["outputs"] if item["kind"] == "map")
            return str(Path(self.get_working_directory()) / path)

    return DiffuseProcessWrapper()
