"""What does a program import before it has something to do? Counted in modules, not in seconds."""

from __future__ import annotations

import subprocess
import sys

from helpers.checkout import ROOT

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
print("PAGES", *(name for name in sys.modules if name.startswith("dials_diffuse.report.") and name.endswith("_page")))
print("NEW", *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_help_of_all_programs_imports_no_large_package():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout or "usage:" in done.stdout
    new = done.stdout.splitlines()[-1].split()[1:]
    assert "dials_diffuse" in new
    assert not set(LATE) & set(new)
    assert done.stdout.splitlines()[-2] == "PAGES"  # they come when one is written


KERNELS = """
import pickle
import numpy as np
from dials_diffuse.kernels import image, merging, spot_bins
from dials_diffuse.kernels.jit import Kernel, load_numba

kernel = merging.count_rows
assert isinstance(kernel, Kernel) and kernel.dispatcher is None
counts, again = np.zeros((2, 3), dtype=np.int32)
kernel(np.array([0, 2, -1, 2]), counts)
assert counts.tolist() == [1, 0, 2]
load_numba()  # again: nothing is left to do
assert kernel.dispatcher.signatures
pickle.loads(pickle.dumps(kernel))(np.array([0, 2, -1, 2]), again)
assert again.tolist() == [1, 0, 2]
# in the modules themselves they are numba's own from then on: compiled functions know no others
assert not isinstance(image.across, Kernel) and spot_bins.across is image.across
"""


def test_kernels_are_compiled_when_they_are_called():
    """In a process of its own: elsewhere they may have been called before."""
    subprocess.run([sys.executable, "-c", KERNELS], cwd=ROOT, check=True)
