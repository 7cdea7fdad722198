"""Where others start dials.diffuse_process: a wrapper for xia2, and a script for beamlines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.checkout import ROOT
from helpers.processing import OPTIONS, on_path, small_run

from dials_diffuse.pipeline.verdict import WORDS
from dials_diffuse.pipeline.xia2_wrapper import DiffuseProcess


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def programs(tmp_path, monkeypatch) -> None:
    """The program is on the path."""
    on_path(tmp_path / "programs", "-m dials_diffuse.cli.process", monkeypatch)


class Driver:
    """As much of xia2's driver as wrappers use."""

    def __init__(self):
        self._working_directory, self._executable = os.getcwd(), None
        self.reset()

    def reset(self):
        self._command_line, self._output, self._code = [], [], None

    def set_executable(self, name):
        self._executable = name

    def set_working_directory(self, folder):
        self._working_directory = folder

    def get_working_directory(self):
        return self._working_directory

    def clear_command_line(self):
        self._command_line = []

    def add_command_line(self, token):
        assert isinstance(token, str)
        self._command_line.append(token)

    def start(self):
        self._process = subprocess.Popen(
            [self._executable, *self._command_line],
            cwd=self._working_directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close_wait(self):
        self._output = self._process.communicate()[0].splitlines(keepends=True)
        self._code = self._process.returncode

    def check_for_errors(self):
        if self._code:
            raise RuntimeError(f"subprocess failed with exitcode {self._code}")

    def get_all_output(self):
        return self._output


def test_xia2_runs_the_program_and_reads_its_verdict(run_folder, programs, tmp_path):
    process = DiffuseProcess(Driver)
    assert isinstance(process, Driver)
    process.set_working_directory(str(tmp_path))
    process.set_input(run_folder / "integrated.expt", run_folder / "integrated.refl")
    process.set_phil(*OPTIONS)
    process.run()
    assert process.get_verdict() in WORDS and process.get_record()["n_images_used"] == 10
    assert Path(process.get_map()) == tmp_path / "diffuse_merged.nxs" and Path(process.get_map()).is_file()
    process.set_input(run_folder / "absent.expt")
    with pytest.raises(RuntimeError, match=r"dials\.diffuse_process: .*absent\.expt: no such file"):
        process.run()


def test_without_xia2_a_driver_is_needed():
    with pytest.raises(ImportError):
        DiffuseProcess()


def test_script_for_beamlines(run_folder, programs, tmp_path):
    def hook(**variables):
        return subprocess.run(
            [ROOT / "docs" / "diffuse_hook.sh"], env={**os.environ, **variables}, capture_output=True, text=True
        )

    output = tmp_path / "a folder" / "diffuse"
    told = {"DIALS_DIFFUSE_RUN": str(run_folder), "DIALS_DIFFUSE_OUTPUT": str(output)}
    done = hook(**told, DIALS_DIFFUSE_OPTIONS=" ".join(OPTIONS))
    assert done.returncode == 0, done.stderr
    record = json.loads((output / "dials.diffuse_process.json").read_text())
    (line,) = done.stdout.splitlines()
    assert line == f"{record['verdict']}: {record['reasons'][0]}"
    done = hook(DIALS_DIFFUSE_RUN=str(tmp_path / "absent"), DIALS_DIFFUSE_OUTPUT=str(output))
    assert done.returncode == 1 and "no such file" in done.stderr and len(done.stderr.splitlines()) == 1
    done = hook()
    assert done.returncode == 1 and "DIALS_DIFFUSE_RUN" in done.stderr
