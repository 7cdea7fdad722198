"""What does a program import before it has something to do? Counted in modules, not in seconds."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
from helpers.checkout import ROOT

from dials_diffuse.kernels.image import across
from dials_diffuse.kernels.jit import Kernel, load_numba
from dials_diffuse.kernels.merging import count_rows

#: large packages that only some of the work needs
LATE = ("dask", "distributed", "finufft", "matplotlib", "numba", "plotly")

SCRIPT = """
import importlib, sys
from pathlib import Path
import dials.util.options  # what every program of DIALS imports
before = set(sys.modules)
import dials_diffuse.cli
for path in Path(dials_diffuse.cli.__file__).parent.glob("*.py"):
    importlib.import_module(f"dials_diffuse.cli.{path.stem}")
from dials_diffuse.cli.scale import run
try:
    run(["-h"])
except SystemExit:
    pass
print("NEW", *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_help_of_all_programs_imports_no_large_package():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout or "usage:" in done.stdout
    new = done.stdout.splitlines()[-1].split()[1:]
    assert "dials_diffuse" in new
    assert not set(LATE) & set(new)


def test_kernels_are_compiled_when_they_are_called():
    counts = np.zeros(3, dtype=np.int32)
    count_rows(np.array([0, 2, -1, 2]), counts)
    np.testing.assert_array_equal(counts, [1, 0, 2])
    load_numba()  # again: nothing is left to do
    assert count_rows.dispatcher.signatures
    again = np.zeros(3, dtype=np.int32)
    pickle.loads(pickle.dumps(count_rows))(np.array([0, 2, -1, 2]), again)
    np.testing.assert_array_equal(again, counts)


def test_kernels_of_one_module_call_those_of_another():
    """In the modules themselves they are numba's own from then on: compiled functions know no others."""
    load_numba()
    from dials_diffuse.kernels import image, spot_bins

    assert not isinstance(image.across, Kernel) and spot_bins.across is image.across is across.dispatcher
