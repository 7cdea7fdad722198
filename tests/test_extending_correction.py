"""A new correction is one file and one row of the table: its switch, its factor and its record follow."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.checkout import ROOT
from helpers.extending import Extended
from helpers.simulations import QUICK, SMALL, write_structure

from dials_diffuse.cli.simulate import run as simulate
from dials_diffuse.experiment.detector import panel_geometry
from dials_diffuse.experiment.load import load_experiments
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.reduction.corrections import CORRECTIONS

FILTER = '''
"""A filter before the detector, parallel to it: oblique rays have a longer way through it."""

import numpy as np


def filter_transmission(panel, scan, position):
    return np.exp(-0.7 / panel.cos_incidence.astype(float))
'''

PLACE = "dials_diffuse.reduction.filter_transmission:filter_transmission"
ROW = f'    Correction("filter", "Transmission of the filter.", default=False, of_pixels="{PLACE}"),'
TABLE = "reduction/corrections.py"


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    copy = Extended(tmp_path_factory.mktemp("extended"))
    copy.add_file("reduction/filter_transmission.py", FILTER)
    copy.add_row(TABLE, "CORRECTIONS = (", ROW)
    return copy


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with images; the direct beam meets the panel far from its middle."""
    monkeypatch.chdir(tmp_path)
    write_structure("tiny.pdb")
    simulate(["tiny.pdb", *SMALL, *QUICK, "diffuse=False", "detector.beam_centre=5,10", "output.truth=None"])
    return tmp_path


def test_a_correction_of_another_file(extended, work):
    help_text = extended.program("integrate", "-c", "-a", "1").stdout
    assert "filter = False" in help_text and "Transmission of the filter." in help_text

    common = ["simulated.expt", "simulated.refl", "nproc=1", "mask.bragg.enable=False", "mask.outlier.n_sigma=0"]
    common += ["mask.persistent=False", "sampling.oscillation=1", "corrections.flux=False"]
    rows = {}
    for switch in (False, True):
        outputs = [f"output.{kind}={switch}.{kind}" for kind in ("json", "log")]
        path = f"{switch}.h5"
        options = [f"corrections.filter={switch}", f"output.observations={path}", *outputs]
        extended.program("integrate", *common, *options, cwd=work)
        with ObservationFile(path) as file:
            rows[switch] = file.read("index", "counts", "norm", "pixels", "xyz")
            assert f"filter = {switch}" in file.provenance.phil
        assert f"filter = {switch}" in json.loads((work / f"{switch}.json").read_text())["parameters"]

    without, with_filter = rows[False], rows[True]
    for name in ("index", "counts", "pixels"):
        np.testing.assert_array_equal(with_filter[name], without[name])
    single = without["pixels"] == 1  # rows of one pixel: its factor alone
    assert single.sum() > 100
    x, y = (without["xyz"][single, i].astype(int) for i in (0, 1))
    panel = panel_geometry(load_experiments("simulated.expt")[0].detector[0])
    expected = np.exp(-0.7 / panel.cos_incidence[y, x])
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(with_filter["norm"][single] / without["norm"][single], expected, rtol=1e-5)


def test_every_correction_is_explained():
    """docs/theory.md has a row for each."""
    theory = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    table = theory[theory.index("## Corrections") : theory.index("## What is left out")]
    for row in CORRECTIONS:
        assert f"| `{row.name}` |" in table
