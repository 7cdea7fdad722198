"""Programs that are run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from libtbx.phil import parse

from dials_diffuse.cli.model import phil_scope
from dials_diffuse.cli.model_scope import model_from_phil


def model_of(*words, coordinates=None, selection=None):
    """The model that these words of a command line ask for."""
    params = phil_scope.fetch(sources=[parse(word) for word in words]).extract()
    return model_from_phil(params, coordinates, selection)


def dials(folder: Path, program: str, *args: str) -> None:
    """Run a program of DIALS in a folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [f"dials.{program}", *args], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"dials.{program}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def fails(run, args, capsys, code=1, words=()) -> str:
    """Run a program that is expected to stop, and return what it printed on stderr.

    The exit code is right, an error of the user is one line with all ``words`` in it, none is a traceback, and no file
    of the current folder but logs was written or changed.
    """
    before = _contents()
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in args])
    assert stopped.value.code == code
    stderr = capsys.readouterr().err.strip()
    assert "Traceback" not in stderr
    if code == 1:
        assert len(stderr.splitlines()) == 1, stderr
    for word in words:
        assert word in stderr
    assert _contents() == before, "something was written or changed"
    return stderr


def _contents() -> dict:
    """Bytes of each file, None of each folder."""
    return {p: p.read_bytes() if p.is_file() else None for p in Path().iterdir() if p.suffix != ".log"}
