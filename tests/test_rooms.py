"""The rooms of the package keep their order: the contracts in pyproject.toml hold, and would notice if they did not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from helpers.checkout import ROOT

pytest.importorskip("importlinter", reason="IMPORT DIRECTIONS NOT CHECKED: install import-linter (extra [test])")


def lint_imports(folder):
    """The import-linter run on the package in this folder."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """A copy of the package to plant violations in."""
    shutil.copytree(ROOT / "dials_diffuse", tmp_path / "dials_diffuse", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_rooms_import_only_from_rooms_further_down():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("maps", "import dials_diffuse.cli", "dials_diffuse.maps.planted -> dials_diffuse.cli"),
        ("maps", "def f():\n    import dials_diffuse.reduction", "dials_diffuse.maps is not allowed to import"),
        ("kernels", "from dials_diffuse.errors import DiffuseError", "dials_diffuse.kernels.planted -> dials_diffuse"),
        ("kernels", "from dials.array_family import flex", "dials_diffuse.kernels.planted -> dials"),
        ("compat", "from dials_diffuse import maps", "dials_diffuse.compat -> dials_diffuse.maps"),
        ("simulation", "import dials_diffuse.reduction", "dials_diffuse.simulation is not allowed to import"),
        ("attic", "", "dials_diffuse.attic"),  # a room that is not in the list
        ("models", "from libtbx.phil import parse", "dials_diffuse.models.planted -> libtbx"),
    ],
    ids=[
        "upwards",
        "upwards-late",
        "kernels-errors",
        "kernels-dials",
        "compat-room",
        "simulation-measures",
        "unknown-room",
        "phil",
    ],
)
def test_a_violation_is_noticed(copy, module, line, complaint):
    path = copy / "dials_diffuse" / f"{module}.py"
    if not path.is_file():
        path = path.with_suffix("") / "planted.py"
        path.parent.mkdir(exist_ok=True)
        path.with_name("__init__.py").touch()
    with path.open("a") as f:
        f.write(f"\n{line}\n")
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert complaint in result.stdout


def test_phil_is_imported_in_cli_only():
    """Under whatever name: the linter sees of other packages no more than the first part."""
    importing = re.compile(r"^\s*(from|import) .*\bphil\b", re.MULTILINE)
    modules = (p for p in (ROOT / "dials_diffuse").rglob("*.py") if importing.search(p.read_text(encoding="utf-8")))
    rooms = {path.relative_to(ROOT / "dials_diffuse").parts[0] for path in modules}
    assert rooms == {"cli"}
