"""The scripts in docs/ without the programs that take minutes: what they call, in which order, and what they repeat."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.checkout import ROOT

from dials_diffuse.cli import integrate, merge, process, scale, simulate
from dials_diffuse.cli.model_scope import model_from_phil
from dials_diffuse.merging.compare import Comparison
from dials_diffuse.report.agreement import format_comparison

SCRIPTS = sorted((ROOT / "docs").glob("*.sh"))
DEMO, SNASE = ROOT / "docs" / "demo.sh", ROOT / "docs" / "snase.sh"
OURS = {
    "dials.diffuse_simulate": simulate,
    "dials.diffuse_integrate": integrate,
    "dials.diffuse_scale": scale,
    "dials.diffuse_merge": merge,
    "dials.diffuse_process": process,
}
#: after DIALS, in each script; these are always repeated
AFTER = {"demo.sh": ["dials.diffuse_process"], "snase.sh": list(OURS)[1:-1]}
THEIRS = {
    "dials.import": "dials_import",
    "dials.find_spots": "find_spots",
    "dials.index": "index",
    "dials.refine": "refine",
    "dials.integrate": "integrate",
    "dials.scale": "scale",
}
TABLE = format_comparison(
    Comparison(n=7, cc=0.87654, slope=2.0, shells=[{"d_max": 9.0, "d_min": 3.0, "n": 7, "cc": 0.87654, "slope": 2.0}])
)

#: stands for every program: notes how it was called, says something, and fails when it is told to
STUB = """#!/bin/sh
name=$(basename "$0")
{ printf '%s' "$name"; printf '\\t%s' "$@"; echo; } >>"$CALLS"
echo "this is $name"
if [ "$name" = dials.diffuse_process ]; then cat "$TABLE"; fi
[ "$name" != "$BROKEN" ]
"""


class Stage:
    """A folder in which a script runs, with stubs for all programs of DIALS."""

    def __init__(self, folder: Path):
        self.calls, self.output, self.programs = folder / "calls", folder / "output", folder / "bin"
        self.programs.mkdir()
        for name in (*OURS, *THEIRS):
            (self.programs / name).write_text(STUB)
            (self.programs / name).chmod(0o755)
        self.table = folder / "table"
        self.table.write_text(f"unwanted\n\nAgreement with truth.nxs:\n\n{TABLE}\n\nunwanted\n")

    def run(self, script: Path, *arguments, broken: str = ""):
        """Run; returns what was called, as lists of words, and the finished process."""
        self.calls.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "TABLE": str(self.table),
            "BROKEN": broken,
        }
        done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)
        return [line.split("\t") for line in self.calls.read_text().splitlines()], done


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder that looks like that of the nuclease data."""
    (tmp_path / "data" / "snase" / "images").mkdir(parents=True)
    return tmp_path / "data"


def parameters(scope, words):
    """What a phil scope makes of the words with ``=`` of a command line; raises on words that it does not know."""
    interpreter = scope.command_line_argument_interpreter()
    return scope.fetch(sources=[interpreter.process(arg=word) for word in words if "=" in word]).extract()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "-P", script.parent, script], check=True)
    assert os.access(script, os.X_OK) == script.read_text().startswith("#!")


def test_demo_goes_from_a_structure_to_a_comparison(stage):
    calls, done = stage.run(DEMO, stage.output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [call[0] for call in calls] == ["dials.diffuse_simulate", *THEIRS, *AFTER["demo.sh"]]
    for line in TABLE.splitlines():
        assert line in done.stdout
    assert "unwanted" not in done.stdout
    words = {call[0]: call[1:] for call in calls}
    assert "reference=truth.nxs" in words["dials.diffuse_process"]
    assert words["dials.diffuse_process"][:2] == ["scaled.expt", "scaled.refl"]


@pytest.mark.parametrize("script", [DEMO, SNASE], ids=lambda path: path.name)
def test_programs_understand_what_they_are_told(stage, images, script):
    calls, _ = stage.run(script, *([images] if script == SNASE else []), stage.output)
    assert len(calls) > 6
    for name, *words in calls:
        if name in THEIRS:
            scope = importlib.import_module(f"dials.command_line.{THEIRS[name]}").phil_scope
        else:
            scope = OURS[name].phil_scope
        params = parameters(scope, words)
        if hasattr(OURS.get(name), "parameters_from_phil"):
            OURS[name].parameters_from_phil(params)
        if name == "dials.diffuse_simulate":
            model_from_phil(params)
            coordinates, geometry = simulate.sort_files([w for w in words if "=" not in w], params.structure)
            assert Path(coordinates).is_file() and geometry is None
            simulate.geometry_from_phil(params)
    with pytest.raises(Exception, match="no_such"):
        parameters(OURS["dials.diffuse_merge"].phil_scope, ["no_such=1"])
    with pytest.raises(Exception, match="no_such"):
        parameters(OURS["dials.diffuse_process"].phil_scope, ["fit.no_such=1"])


def test_files_have_the_names_that_the_next_program_and_the_readme_use(stage):
    """The script leaves names to the programs, whose defaults are these."""
    simulated, integrated, scaled, merged, processed = (OURS[name].phil_scope.extract().output for name in OURS)
    text = DEMO.read_text()
    for name in (simulated.truth, merged.map, merged.png, processed.html):
        assert name in text
    assert integrated.observations in SNASE.read_text() and scaled.observations in SNASE.read_text()
    assert f"{simulated.prefix}_1_" in text
    assert not re.search(r"\boutput\.", text)
    readme = (ROOT / "README.md").read_text()
    for name in (simulated.truth, merged.map, merged.png):
        assert name in readme


def test_targets_that_the_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *SCRIPTS):
        for target in re.findall(r"(?:`|^ {4})make ([a-z]+)", path.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"


@pytest.mark.parametrize("script", [DEMO, SNASE], ids=lambda path: path.name)
def test_what_is_done_is_not_repeated(stage, images, script):
    arguments = [*([images] if script == SNASE else []), stage.output]
    first, _ = stage.run(script, *arguments)
    again, done = stage.run(script, *arguments)
    assert len(first) > len(again) and [call[0] for call in again] == AFTER[script.name]
    steps = re.findall(r"^step (\w+)", script.read_text(), re.MULTILINE)  # some are the script's own, not programs
    assert re.findall(r"^(\w+): done before$", done.stdout, re.MULTILINE) == steps[: -len(AFTER[script.name])]


def test_a_step_that_fails_is_told_and_taken_up_again(stage):
    calls, done = stage.run(DEMO, stage.output, broken="dials.refine")
    assert done.returncode == 1 and calls[-1][0] == "dials.refine"
    assert "this is dials.refine" in done.stdout and str(stage.output / "refine.out") in done.stdout
    calls, done = stage.run(DEMO, stage.output)
    assert done.returncode == 0
    assert [call[0] for call in calls] == ["dials.refine", "dials.integrate", "dials.scale", *AFTER["demo.sh"]]


def test_another_command_is_another_step_and_all_that_follow_are_repeated(stage):
    stage.run(DEMO, stage.output)
    (stage.output / "simulated_1_00001.cbf").touch()
    stamp = stage.output / ".simulate.done"
    stamp.write_text(stamp.read_text().replace("seed=4", "seed=1"))
    calls, _ = stage.run(DEMO, stage.output)
    assert len(calls) == 2 + len(THEIRS)
    assert not (stage.output / "simulated_1_00001.cbf").exists()  # in the way of the new ones


def test_images_stay_when_they_are_not_made_anew(stage):
    stage.run(DEMO, stage.output)
    image = stage.output / "simulated_1_00001.cbf"
    image.touch()
    stage.run(DEMO, stage.output)
    assert image.exists()


def test_without_data_the_script_says_where_to_get_them(stage, tmp_path):
    calls, done = stage.run(SNASE, tmp_path / "nothing", stage.output)
    assert done.returncode == 0 and not calls
    assert "make snase DIALS_DIFFUSE_DATA=" in done.stdout and not stage.output.exists()
