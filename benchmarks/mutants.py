"""Would the tests notice? Changes the code at random places and runs the few test modules that look there.

    python benchmarks/mutants.py [--number 60] [--skip 0] [--seed 0] [--only kernels]

One change at a time, in a copy of the checkout: another operator, a number that is a tenth or one larger, a condition
the other way round. A change that no test notices is a survivor; docs/trust.md argues about each. Prints a line for
each change and a table at the end. The modules of TESTS must pass as they are.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import os
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dials_diffuse"
CPU_SECONDS = 240  # of a process

ROOMS = ("kernels/", "merging/", "scaling/terms/", "models/")

#: where changes are made, by the begin of the path, and the test modules that should notice; the first that fits counts
TESTS = {
    "kernels/accumulate": "voxel_sums golden",
    "kernels/bricks": "tile_cells tiles",
    "kernels/coordinates": "scale",
    "kernels/discs": "tile_cells masks tiles",
    "kernels/even_table": "even_table",
    "kernels/group_pairs": "model_covariance",
    "kernels/image": "tile_cells masks bragg_masks bad_images",
    "kernels/lookup": "golden tiles",
    "kernels/merging": "laue merge",
    "kernels/normal": "scale",
    "kernels/pair_sum": "models model_form_factors",
    "kernels/peaks": "model_covariance",
    "kernels/sampled": "tile_cells voxel_sums",
    "kernels/scaling": "scale",
    "kernels/spline": "simulation_parts",
    "kernels/spot_bins": "bragg_masks",
    "kernels/spot_tails": "bragg_masks bragg_holes",
    "kernels/spots": "spots",
    "kernels/strong_peaks": "tile_cells peak_check",
    "kernels/symmetry": "symmetry laue",
    "kernels/tile_cells": "tile_cells tiles",
    "kernels/tiles": "tiles golden voxel_sums",
    "kernels/vectors": "tile_cells",
    "merging/bragg_holes": "bragg_holes",
    "merging/brightness": "brightness",
    "merging/compare": "compare",
    "merging/laue": "golden laue merge",
    "merging/": "statistics merge cli_merge",
    "scaling/terms/": "scale extending_scaling few_mates",
    "models/covariance/": "model_covariance fit_groups derivatives",
    "models/ensemble/": "model_ensemble model_trajectory model_form_factors",
    "models/lattice_dynamics/": "model_lattice_dynamics model_contacts model_blocks derivatives",
    "models/llm/": "models orders model_form_factors derivatives",
    "models/rigid_body/": "model_bodies model_special models derivatives",
    "models/": "model_base models model_inputs derivatives model_program",
}

_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
_NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "sin": "cos", "cos": "sin"}


def changed(node: ast.AST) -> ast.AST | None:
    """Another node in place of this one; None where there is nothing to change."""
    other = copy.deepcopy(node)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        other.op = _BINARY[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        other.ops[0] = _COMPARED[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        other = copy.deepcopy(node.operand)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        other.value = node.value + 1 if isinstance(node.value, int) else 1.1 * node.value or 0.1
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        other.attr = _NAMES[node.attr]
    elif isinstance(node, ast.Name) and node.id in _NAMES and isinstance(node.ctx, ast.Load):
        other.id = _NAMES[node.id]
    else:
        return None
    return other


def places(tree: ast.AST) -> list:
    """(parent, field, position in a list or None, node, changed node); texts, types and errors are left alone."""
    found: list = []

    def walk(node) -> None:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "keywords") and not isinstance(node, ast.Call):
                continue
            for position, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if not isinstance(child, ast.AST) or isinstance(child, (ast.JoinedStr, ast.Raise, ast.Import)):
                    continue
                other = changed(child)
                if other is not None:
                    found.append((node, field, position, child, other))
                walk(child)

    walk(tree)
    return found


def tests_of(path: str) -> list:
    """Test modules for a path in the package."""
    names = next(names for begin, names in TESTS.items() if path.startswith(begin))
    return [f"tests/test_{name}.py" for name in names.split()]


def draw(number: int, seed: int, only: str) -> list:
    """(path in the package, number of the place) of changes, the same for the same seed."""
    rooms: dict = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        room = next(
            (room for room in ("kernels/", "merging/", "scaling/terms/", "models/") if name.startswith(room)), ""
        )
        if room and only in name and not name.endswith(("_phil.py", "__init__.py", "/jit.py")):
            n = len(places(ast.parse(path.read_text(encoding="utf-8"))))
            rooms.setdefault(room, []).extend((name, i) for i in range(n))
    rng = random.Random(seed)
    chosen = [rng.sample(items, min(-(-number // len(rooms)), len(items))) for items in rooms.values()]
    return [item for group in zip(*chosen) for item in group][:number]


def mutate(source: str, number: int) -> tuple:
    """The source with one change, and what it is."""
    tree = ast.parse(source)
    parent, field, position, node, other = places(tree)[number]
    before = source.splitlines()[node.lineno - 1].strip()
    words = f"{ast.unparse(node)} -> {ast.unparse(other)}"
    if position is None:
        setattr(parent, field, other)
    else:
        getattr(parent, field)[position] = other
    return ast.unparse(ast.fix_missing_locations(tree)), node.lineno, f"`{words}` in `{before}`"


def forget_compiled(folder: Path, path: str) -> None:
    """Remove the compiled kernels of a module and of those that call it, directly or not."""
    kernels = folder / PACKAGE / "kernels"
    stale, more = {Path(path).stem}, True
    while more:
        users = {f.stem for f in kernels.glob("*.py") if any(f"kernels.{name} " in f.read_text() for name in stale)}
        more, stale = not users <= stale, stale | users
    for file in (kernels / "__pycache__").glob("*.nb?"):
        if file.name.split(".")[0] in stale:
            file.unlink()


def noticed(folder: Path, tests: list) -> bool | None:
    """Does any test fail in a checkout? None if they cannot end. In a child, which has the libraries already."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            sys.path[:0] = [str(folder), str(folder / "tests")]
            os.environ["PYTHONPATH"] = str(folder)
            import pytest

            code = int(pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, 9)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1, 2) and code >= 0:  # 1: a test failed, 2: a module could not be imported
        raise RuntimeError(f"pytest did not run {' '.join(tests)}: exit code {code}")
    return None if code < 0 else code != 0


def processor_seconds() -> float:
    """Of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="changes of an earlier run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="paths that have this")
    options = parser.parse_args()
    import h5py  # noqa: F401
    import numba  # noqa: F401
    import scipy.optimize  # noqa: F401
    from dials.array_family import flex  # noqa: F401

    tally: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkout"
        for path, number in draw(options.number, options.seed, options.only)[options.skip :]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "build", "demo-output", ".venv"))
            file = folder / PACKAGE / path
            source, line, words = mutate(file.read_text(encoding="utf-8"), number)
            file.write_text(source, encoding="utf-8")
            if path.startswith("kernels/"):
                forget_compiled(folder, path)
            begun = processor_seconds()
            found = noticed(folder, tests_of(path))
            verdict = {True: "noticed", False: "SURVIVED", None: "never ended"}[found]
            print(f"{verdict:12s} {path}:{line} {words} ({processor_seconds() - begun:.0f} s)", flush=True)
            room = path.rsplit("/", 1)[0].split("/")[0]
            tally.setdefault(room, {}).setdefault(verdict, []).append(path)
    print("\n| changes in | number | noticed | never ended | survived |\n|---|---|---|---|---|")
    for room, found in tally.items():
        counts = [len(found.get(verdict, ())) for verdict in ("noticed", "never ended", "SURVIVED")]
        print(f"| {room}/ | {sum(counts)} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
