"""Both ways to register the programs with DIALS work, and both have the names that the shims in command_line/ give."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.checkout import ROOT

SHIMS = sorted((ROOT / "command_line").glob("diffuse_*.py"))
NAMES = [f"dials.{shim.stem}" for shim in SHIMS]
PRINT_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
ASK_DXTBX = "from dxtbx.format.Registry import get_format_class_index as i; print('FormatCBFMiniDiffuse' in i())"
IN_VENV = sys.prefix != sys.base_prefix


def run(command, cwd, **environment):
    """Run a command without what this process's own environment may add to Python's path; fail with its output."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LIBTBX_BUILD")}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**env, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command} gave {result.returncode}:\n{result.stdout}"
    return result.stdout


def assert_gives_help(program, cwd):
    assert re.search("usage", run([program, "-h"], cwd), re.IGNORECASE)


def test_shims_are_five_lines_that_name_the_program_and_its_module():
    assert SHIMS
    for shim in SHIMS:
        module = shim.stem[len("diffuse_") :]
        assert shim.read_text().splitlines() == [
            f"# LIBTBX_SET_DISPATCHER_NAME dials.{shim.stem}",
            f"from dials_diffuse.cli.{module} import run",
            "",
            'if __name__ == "__main__":',
            "    raise SystemExit(run())",
        ]


def test_console_scripts_are_the_shims():
    scripts = runpy.run_path(str(ROOT / "setup.py"))["console_scripts"]()
    assert scripts == [f"{name} = dials_diffuse.cli.{name[len('dials.diffuse_') :]}:run" for name in NAMES]


def test_libtbx_sees_the_shims():
    """libtbx's own scan of the folder, with an environment that only notes the dispatchers it is asked to write."""
    from libtbx import env_config
    from libtbx.path import absolute_path

    class Environment:
        found = ()

        def as_relocatable_path(self, path):
            return path

        def _write_dispatcher_in_bin(self, source_file, target_file):
            self.found += (target_file,)

    environment = Environment()
    module = env_config.module(environment, "dials_diffuse", dist_path=absolute_path(str(ROOT)))
    module.process_command_line_directories()
    assert sorted(environment.found) == NAMES


def test_pip_install(tmp_path):
    """`pip install .` into a new virtual environment gives programs that run from there."""
    left_behind = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo-output", "docs", "tests")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=left_behind)
    prefix = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", prefix], tmp_path)
    cctbx = Path(sys.base_prefix, "lib", "cctbx")
    if cctbx.is_dir():
        (prefix / "lib" / "cctbx").symlink_to(cctbx)
    if IN_VENV:  # a virtual environment does not see another one: numba and the like are in ours
        packages = run([prefix / "bin" / "python", "-c", PRINT_PACKAGES], tmp_path).strip()
        Path(packages, "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", prefix / "bin" / "python", "--disable-pip-version-check"]
    run([*pip, "install", "--no-deps", "--no-build-isolation", "--no-index", source], tmp_path)

    where = run([prefix / "bin" / "python", "-c", "import dials_diffuse; print(dials_diffuse.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(prefix)
    assert sorted(p.name for p in (prefix / "bin").glob("dials.*")) == NAMES
    for name in NAMES:
        assert_gives_help(prefix / "bin" / name, tmp_path)

    package = Path(where.strip()).parent
    assert (package / "simulation" / "data" / "193l.pdb").is_file()
    (entry_points,) = package.parent.glob("dials_diffuse-*.dist-info/entry_points.txt")
    assert "FormatCBFMiniDiffuse:FormatCBFMini = dials_diffuse.experiment.format_cbf" in entry_points.read_text()
    assert run([prefix / "bin" / "python", "-c", ASK_DXTBX], tmp_path).strip() == "True"


def test_libtbx_configure(tmp_path):
    """`libtbx.configure dials_diffuse` in an empty folder beside modules/dials_diffuse gives programs that run."""
    configure = shutil.which("libtbx.configure", path=f"{sys.base_prefix}/bin:{os.environ['PATH']}")
    if configure is None:
        pytest.skip("LIBTBX REGISTRATION NOT TESTED: this DIALS has no libtbx.configure")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "dials_diffuse").symlink_to(ROOT)
    build = tmp_path / "build"
    build.mkdir()
    environment = {"VIRTUAL_ENV": sys.prefix} if IN_VENV else {}  # where numba is, unless it is in .venv
    said = run([configure, "dials_diffuse"], build, **environment)

    assert sorted(p.name for p in (build / "bin").glob("dials.*")) == NAMES
    for name in NAMES:
        assert_gives_help(build / "bin" / name, tmp_path)
    if "pip or setuptools is missing" in said:  # newer libtbx cannot write entry points without
        base = Path(sys.base_prefix, "bin", Path(sys.executable).resolve().name)
        assert subprocess.run([base, "-c", "import pip, setuptools"], capture_output=True, check=False).returncode
        return
    written = [path.read_text() for path in build.rglob("entry_points.txt")]
    assert any("FormatCBFMiniDiffuse:FormatCBFMini" in text for text in written)
    assert run([build / "bin" / "libtbx.python", "-c", ASK_DXTBX], tmp_path).strip() == "True"
