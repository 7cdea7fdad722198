"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Before numpy is loaded: threads of BLAS wait for each other in busy loops. Beside a second worker of pytest-xdist that
# made tests of the scaling three times as slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("helpers")

from helpers.checkout import ROOT  # noqa: E402

from dials_diffuse.compat import available_cores  # noqa: E402

os.environ.setdefault("MPLBACKEND", "Agg")
if not os.access(ROOT / "dials_diffuse", os.W_OK):  # numba caches beside the kernels, which may be read-only
    os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="dials_diffuse-numba-"))


#: test modules with fixtures that take minutes: a worker that began them last would keep the others waiting
LONG = ("test_snase.py", "test_simulate_dials.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """``-n auto``: a worker for each core that this process may use; none beside this process if there is only one."""
    cores = available_cores()
    return cores if cores > 1 else 0


@pytest.fixture(scope="session", autouse=True)
def no_litter():
    """Tests leave nothing in the checkout, but for what tools keep there."""
    before = set(os.listdir(ROOT))
    yield
    left = {name for name in set(os.listdir(ROOT)) - before if not name.startswith((".", "build"))}
    assert not {name for name in left if not name.endswith(".egg-info")}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data (snase/, pdb/): $DIALS_DIFFUSE_DATA, or ../shared/data beside the checkout."""
    path = Path(os.environ.get("DIALS_DIFFUSE_DATA") or ROOT.parent / "shared" / "data")
    if not (path / "snase").is_dir():
        pytest.skip(f"REAL DATA ABSENT: no {path}/snase (set DIALS_DIFFUSE_DATA to the folder that holds snase/)")
    return path


@pytest.fixture(scope="session")
def atoms():
    """Six atoms in P 41."""
    from helpers.structures import small_molecule

    return small_molecule()


@pytest.fixture
def pdb(atoms, tmp_path, monkeypatch):
    """A folder with a coordinate file, made the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    atoms.hierarchy.write_pdb_file("model.pdb", crystal_symmetry=atoms.crystal_symmetry)
    return "model.pdb"


@pytest.fixture
def write(tmp_path):
    """Function that writes a coordinate file, of text or bytes, and returns its path."""

    def write(content, name="model.pdb"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write
