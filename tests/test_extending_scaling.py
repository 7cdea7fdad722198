"""A new term of the scale model is a file and a row: it is tried, fitted, recorded and drawn."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers.builders import true_intensity
from helpers.extending import Extended
from helpers.two_crystals import GRID, SIZE, anisotropic, make_rows, write

from dials_diffuse.merging.laue import MergeParameters, merge_observations

STRIPES = '''
"""Odd and even stripes of the detector are read by two amplifiers."""

import numpy as np

from dials_diffuse.scaling.layout import X
from dials_diffuse.scaling.terms.base import Curve
from dials_diffuse.scaling.terms.spline import Axis, Spline


class Stripes(Spline):
    name = key = "e"
    label = "amplifiers"
    words = "amplifiers of odd and even stripes"

    @classmethod
    def shape(cls, extent):
        return (Axis(0, 2),)

    def positions(self, coordinates):
        return np.floor(20 * coordinates[:, X])[:, None] % 2

    def curve(self, coefficients, layout, number):
        return Curve(np.arange(2), np.exp(coefficients[self.all]), "stripe", "factor", "o")
'''
ROW = '    "dials_diffuse.scaling.terms.stripes:Stripes",'
TABLE = "scaling/terms/table.py"

#: runs the program and tells what is in the picture
SCRIPT = """
import sys
from matplotlib.figure import Figure
from dials_diffuse.cli.scale import run

savefig = Figure.savefig

def telling(figure, *args, **kwargs):
    for axes in figure.axes:
        heights = [float(y) for line in axes.lines for y in line.get_ydata()]
        print("PANEL", axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *heights)
    savefig(figure, *args, **kwargs)

Figure.savefig = telling
run(sys.argv[1:])
"""

#: logarithm of the factors of both kinds of stripes
TRUE = np.array([0.05, -0.05])


def planted():
    """Observations of two crystals with drift and stripes."""
    rows = make_rows(np.random.default_rng(3), copies=1, a=False, c=False, d=False)
    stripe = np.floor(20 * rows["xyz"][:, 0] / SIZE[0]).astype(int) % 2
    for name in ("norm", "norm_odd"):
        rows[name] *= np.exp(-TRUE[stripe])
    return rows


def agreement(path) -> float:
    """Correlation of the anisotropic part of the merged map with the truth."""
    data = merge_observations([path], MergeParameters(n_shells=4)).map
    maps = data.intensity, true_intensity(GRID, data.index)
    return np.corrcoef(*(anisotropic(GRID, data.index, values) for values in maps))[0, 1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with the new term, and observations in its folder."""
    copy = Extended(tmp_path_factory.mktemp("extended"))
    copy.add_file("scaling/terms/stripes.py", STRIPES)
    copy.add_row(TABLE, "response:Response", ROW)
    write(copy.folder / "in.h5", planted())
    return copy


def test_a_term_of_another_file(copy):
    options = ["in.h5", "nproc=1", "refinement.max_observations=8000", "scale_model.b.angle=20"]
    told = copy.run("-c", SCRIPT, *options, "model=b,e").stdout
    others = ["output.observations=without.h5", "output.json=None", "output.png=None", "output.log=None"]
    copy.program("scale", *options, "model=b", *others)

    record = json.loads((copy.folder / "diffuse_scaled.json").read_text())
    assert record["terms"]["used"] == ["b", "e"]
    (test,) = (test for test in record["terms"]["tests"] if test["name"] == "e")
    assert test["label"] == "amplifiers" and test["kept"] and test["gain"] > 5 * test["esd"]
    for sweep in record["sweeps"]:
        np.testing.assert_allclose(sweep["e"]["coefficients"], TRUE, atol=0.002)
    assert "\namplifiers " in told  # the table of the log
    (panel,) = (line for line in told.splitlines() if line.startswith("PANEL amplifiers stripe factor "))
    np.testing.assert_allclose([float(word) for word in panel.split()[4:6]], np.exp(TRUE), atol=0.002)
    assert (copy.folder / "diffuse_scaled.png").read_bytes().startswith(b"\x89PNG")
    assert 1 - agreement(copy.folder / "diffuse_scaled.h5") < 0.5 * (1 - agreement(copy.folder / "without.h5"))


def test_the_names_of_new_terms_are_known(copy):
    """In the help, and in the message about names that are not."""
    help_text = re.sub(r'"\s+"', " ", copy.program("scale", "-c", "-a", "1").stdout)
    assert "e: amplifiers of odd and even stripes" in help_text
    assert "no term f; choose from a, b, c, d, e" in copy.program("scale", "in.h5", "model=f", ok=False).stderr
