"""Files and terminals as they are met: HDF5 that others have open, links, terminals without Unicode."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.checkout import environment
from helpers.datasets import SIZE, import_images, make_sweep, noise, scan_dict, write_experiments, write_nexus
from helpers.programs import fails

from dials_diffuse.cli import integrate as program
from dials_diffuse.cli import merge
from dials_diffuse.cli.terminal import spell
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.atomic import Staging, atomic_path
from dials_diffuse.files.hdf5 import open_schema, why_not_opened
from dials_diffuse.files.observations import ObservationFile

QUIET = ["corrections.flux=False", "output.log=None", "output.html=None"]

#: of pint and of h5py, with which dxtbx reads NeXus
pytestmark = [
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`product` is deprecated:DeprecationWarning"),
]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def observed(work):
    """An observation file."""
    write_experiments("data.expt", make_sweep(".", "data", 0))
    program.run(["data.expt", *QUIET, "output.json=None"])
    return work / "diffuse_integrated.h5"


@contextlib.contextmanager
def locked(path):
    """Another program has the file open for writing. Readers of this process may be cached: they have another copy."""
    shutil.copy(path, f"{path}.copy")
    os.replace(f"{path}.copy", path)
    with open(path, "rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


# HDF5


def test_a_locked_file(observed, capsys):
    with locked(observed):
        words = ["diffuse_integrated.h5: cannot be locked", "another program", "HDF5_USE_FILE_LOCKING=FALSE"]
        fails(merge.run, [observed], capsys, words=words)
    merge.run([str(observed), "statistics.n_shells=3"])


def test_what_is_said_to_do_about_a_locked_file_helps(observed):
    code = "import sys; from dials_diffuse.cli.merge import run; run(sys.argv[1:])"
    arguments = [sys.executable, "-c", code, str(observed), "statistics.n_shells=3"]
    with locked(observed):
        for variable, rc in (("TRUE", 1), ("FALSE", 0)):
            env = {**environment(), "HDF5_USE_FILE_LOCKING": variable}
            assert subprocess.run(arguments, env=env, capture_output=True).returncode == rc


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("text " * 100)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def being_written(path: Path) -> None:
    """A copy of a file that is being written."""
    path.unlink()
    with h5py.File(path.with_suffix(".writer"), "w", libver="latest") as handle:
        handle.create_dataset("x", (1,), "f4", maxshape=(None,), chunks=True)
        handle.swmr_mode = True
        path.write_bytes(path.with_suffix(".writer").read_bytes())


def garbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:3000] = b"\x5a" * 2900
    path.write_bytes(content)


HARMS = {
    cut: "cut off",
    empty: "the file is empty",
    text: "not a readable HDF5 file",
    folder: "this is a folder",
    being_written: "is being written",
    garbled: "damaged",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_why_a_file_cannot_be_read(observed, harm):
    harm(observed)
    with pytest.raises(DiffuseError, match=f"diffuse_integrated.h5: .*{HARMS[harm]}"):
        ObservationFile(observed)


def test_a_file_that_may_not_be_read(observed, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Unable to open file (unable to open file: errno = 13)")

    monkeypatch.setattr("dials_diffuse.files.hdf5.h5py.File", refuse)
    with pytest.raises(DiffuseError, match="reading is not permitted"):
        open_schema(observed, "any")


# images in HDF5


def levels(first: int, last: int) -> list:
    """Images of which each pixel counts 100 times the number of the image."""
    return [np.full(SIZE[::-1], 100 * number, dtype=np.int32) for number in range(first, last + 1)]


def images_of_all_rows(path="diffuse_integrated.h5") -> set:
    """Positions in the sweep that rows were seen at. Their counts must be those of levels()."""
    with ObservationFile(path) as result:
        rows = result.read("xyz", "counts", "pixels")
    angle = rows["xyz"][:, 2]
    np.testing.assert_allclose(rows["counts"] / rows["pixels"], 100 * (angle + 0.5), rtol=1e-5)
    return set(np.floor(angle).astype(int).tolist())


PLAIN = [*QUIET, "mask.bragg.enable=False", "mask.persistent=False", "mask.outlier.n_sigma=0", "sampling.oscillation=1"]


def test_images_in_one_file(work):
    write_experiments("all.expt", import_images([write_nexus("all.nxs", levels(1, 8))], "all"))
    program.run(["all.expt", *PLAIN, "exclude_images=3:3"])
    assert {0, 7} <= images_of_all_rows() <= set(range(8))


def test_a_part_of_the_images_in_one_file(work):
    """Images 4 to 7 of eight, as dials.slice_sequence leaves them, on the pixels of these images."""
    write_experiments("part.expt", import_images([write_nexus("all.nxs", levels(1, 8))], "all"))
    content = json.loads(Path("part.expt").read_text())
    content["scan"] = [scan_dict(4, 7)]
    if "properties" in content["scan"][0]:  # as newer DIALS writes scans
        content["scan"][0]["properties"] = {
            "oscillation": [3.0, 4.0, 5.0, 6.0],
            "exposure_time": [0.1] * 4,
            "epochs": [0.0] * 4,
        }
    content["imageset"][0]["single_file_indices"] = [3, 4, 5, 6]
    Path("part.expt").write_text(json.dumps(content))
    program.run(["part.expt", *PLAIN])
    assert {3, 6} <= images_of_all_rows() <= {3, 4, 5, 6}


def test_a_locked_file_of_images(work):
    """Each time in a process of its own: dxtbx keeps files open."""
    write_experiments("all.expt", import_images([write_nexus("all.nxs", noise(0))], "all"))

    def message() -> str:
        code = "import sys; from dials_diffuse.cli.integrate import run; run(sys.argv[1:])"
        arguments = [sys.executable, "-c", code, "all.expt", "output.log=None"]
        done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr

    with locked("all.nxs"):
        found = message()
    assert all(word in found for word in ("all.nxs", "cannot be locked", "HDF5_USE_FILE_LOCKING=FALSE"))
    cut(Path("all.nxs"))
    found = message()
    assert "all.nxs" in found and "cut off" in found
    Path("all.nxs").unlink()
    found = message()
    assert "all.nxs: image not found" in found and "exclude_images" not in found


def test_an_excluded_file_of_images_is_not_opened(work):
    kept = make_sweep(".", "kept", 0)
    write_experiments("both.expt", kept, import_images([write_nexus("all.nxs", noise(0))], "all", angles=(35, 20, 30)))
    with locked("all.nxs"):
        program.run(["both.expt", *QUIET, "exclude_images=1:1:8"])
    with ObservationFile("diffuse_integrated.h5") as result:
        assert [e.n_images_used for e in result.experiments] == [8, 0]


def test_why_not_opened_says_nothing_of_a_good_file(observed):
    assert why_not_opened(observed) == ""


# links


def test_outputs_are_written_through_links(observed):
    """The link stays, what it leads to is replaced; also where that does not exist yet."""
    Path("store").mkdir()
    Path("store/old").write_text("old")
    Path("map.nxs").symlink_to("store/old")
    Path("map.json").symlink_to(Path("store/new").absolute())
    merge.run([str(observed), "output.map=map.nxs", "output.json=map.json", "statistics.n_shells=3"])
    assert Path("map.nxs").is_symlink() and Path("map.json").is_symlink()
    assert h5py.is_hdf5("store/old") and json.loads(Path("store/new").read_text())["schema"]
    assert sorted(os.listdir("store")) == ["new", "old"]


def test_links_that_lead_nowhere(observed, capsys):
    Path("loop.nxs").symlink_to("loop.nxs")
    fails(merge.run, [observed, "output.map=loop.nxs"], capsys, words=["loop.nxs", "leads nowhere", "remove it"])
    Path("lost.nxs").symlink_to("absent/map.nxs")
    fails(merge.run, [observed, "output.map=lost.nxs"], capsys, words=["lost.nxs", "absent", "does not exist"])
    Path("place").mkdir()
    Path("place.nxs").symlink_to("place")
    fails(merge.run, [observed, "output.map=place.nxs"], capsys, words=["place.nxs", "folder"])


def test_the_input_under_another_name_is_not_written_over(observed, capsys):
    Path("other.h5").symlink_to(observed)
    fails(merge.run, [observed, "output.map=other.h5"], capsys, words=["other.h5", "same file as the input"])


def test_staged_outputs_and_failures_leave_links(work):
    Path("store").mkdir()
    Path("store/a.txt").write_text("old")
    Path("a.txt").symlink_to("store/a.txt")
    with pytest.raises(DiffuseError, match="not written"), atomic_path("a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert Path("a.txt").is_symlink() and Path("store/a.txt").read_text() == "old"
    with Staging() as staging:
        staging.path("a.txt").write_text("new")
        staging.publish()
        staging.keep()
    assert Path("a.txt").is_symlink() and Path("store/a.txt").read_text() == "new"
    assert os.listdir("store") == ["a.txt"]


# terminals


ASCII = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"},
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("name", ASCII)
def test_terminals_without_unicode(observed, name):
    """Nothing is lost, nothing ends: A for Å; files are UTF-8 all the same."""
    env = {**environment(), **ASCII[name]}
    code = "import sys; from dials_diffuse.cli.{} import run; run(sys.argv[1:])"
    again = ["data.expt", "output.observations=again.h5"]
    for module, arguments in (("integrate", again), ("scale", ["-c"]), ("model", ["-h"])):
        done = subprocess.run([sys.executable, "-c", code.format(module), *arguments], env=env, capture_output=True)
        assert done.returncode == 0, done.stderr
        output = (done.stdout + done.stderr).decode("ascii")
        assert "Error" not in output and "Traceback" not in output
        if module == "integrate":
            assert "P 2 2 2, d_min 3.432 A\n" in output
    assert "d_min 3.432 Å\n" in Path("dials.diffuse_integrate.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ASCII)
def test_errors_on_terminals_without_unicode(observed, name):
    env = {**environment(), **ASCII[name]}
    code = "import sys; from dials_diffuse.cli.merge import run; run(sys.argv[1:])"
    arguments = [sys.executable, "-c", code, str(observed), "statistics.d_min=30", "statistics.d_max=20"]
    done = subprocess.run(arguments, env=env, capture_output=True)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert len(done.stderr.decode("ascii").strip().splitlines()) == 1


def test_spelling():
    assert spell("σ = 0.3 Å², Δφ ≈ 5°, 10⁻³ ± χ") == "sigma = 0.3 A^2, Deltaphi ~ 5 deg, 10^-^3 +- chi"
    assert spell("plain") == "plain" and spell("雪\udc80") == "??"
