"""Who imports what from where: names from the module that defines them, test modules nothing from each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers.checkout import ROOT

#: names that other versions of DIALS have elsewhere: to hand them on is what it is for
HANDS_ON = "dials_diffuse.compat"


def imports(text: str) -> list:
    """(module, name) of all that a module imports, wherever in it; the name is None of ``import module``."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return found


@cache
def defined(path: Path) -> set:
    """Names that a module binds by definition or assignment outside of its functions and classes."""
    names, left = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while left:
        node = left.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            left += ast.iter_child_nodes(node)
    return names


def misplaced(text: str, root: Path) -> list:
    """``module.name`` of imports from modules of dials_diffuse that do not define the name."""
    wrong = []
    for module, name in imports(text):
        if name is None or module.split(".")[0] != "dials_diffuse" or module == HANDS_ON:
            continue
        place = root.joinpath(*module.split("."))
        if (place / name).is_dir() or (place / f"{name}.py").is_file():
            continue
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if not source.is_file() or name not in defined(source):
            wrong.append(f"{module}.{name}")
    return wrong


def sources(*folders: str) -> dict:
    """{path relative to the checkout: text} of all Python files in folders of it."""
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def test_names_are_imported_from_where_they_are_defined():
    wrong = {path: misplaced(text, ROOT) for path, text in sources("dials_diffuse", "tests", "benchmarks").items()}
    assert not {path: names for path, names in wrong.items() if names}


def test_test_modules_import_nothing_from_each_other():
    """What several of them need is in tests/helpers."""
    for path, text in sources("tests").items():
        modules = [module.split(".")[0] for module, _ in imports(text) if module]
        assert not [m for m in modules if m == "conftest" or m.startswith("test_")], path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from dials_diffuse.maps.grid import MapGrid", []),
        ("from dials_diffuse.maps import grid", []),
        ("from dials_diffuse import maps", []),
        ("import dials_diffuse", []),
        ("from dials_diffuse.merging.laue import MapGrid", ["dials_diffuse.merging.laue.MapGrid"]),
        ("def f():\n    from dials_diffuse.maps.grid import np", ["dials_diffuse.maps.grid.np"]),
        ("from dials_diffuse.nowhere import MapGrid", ["dials_diffuse.nowhere.MapGrid"]),
    ],
    ids=["name", "module", "room", "package", "elsewhere", "foreign", "no module"],
)
def test_a_misplaced_import_is_noticed(line, expected):
    assert misplaced(line, ROOT) == expected


@pytest.mark.parametrize("module", ["cli.simulate", "experiment.load"])
def test_numpy_comes_before_cctbx(module):
    """The other order breaks the singular values of Debian's scipy beside a numpy wheel."""
    script = f"import sys, dials_diffuse.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert names.index("numpy") < min(names.index(name) for name in ("scitbx", "cctbx"))
