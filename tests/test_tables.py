"""Text tables, to the letter."""

from __future__ import annotations

import math
from operator import itemgetter

import numpy as np
import pytest

from dials_diffuse.maps.shells import N_BINS
from dials_diffuse.merging.compare import Comparison
from dials_diffuse.merging.statistics import COLUMNS, ShellTable
from dials_diffuse.report.agreement import comparison_record, format_comparison
from dials_diffuse.report.merge import format_statistics
from dials_diffuse.report.tables import Column, cells, heads, text_table

NAN = math.nan

STATISTICS = """\
   d_max   d_min        n  compl.   mult.        <I>   <sigma> rms(aniso)  CC1/2  CC(F+-)   Rsym     chi2
---------------------------------------------------------------------------------------------------------
    9.00    4.00     1234   0.949     3.1  3.865e+05       449       5190  0.966        -  0.002   0.9731
    4.00    3.00        7   0.070     1.0          -         -          -      -        -      -        -
---------------------------------------------------------------------------------------------------------
     inf    3.00     1241   0.886     3.1      -12.5  1.06e+03      1e-05 -0.500        -      -     10.5"""

COMPARISON = """\
   d_max   d_min        n      cc      slope
--------------------------------------------
    9.00    4.00        2       -          -
    4.00    3.00       15   0.877       1235
--------------------------------------------
    9.00    3.00       17   0.877         -2
cc and slope (map against reference) after subtracting the isotropic part, in 400 bins of |s|"""


def test_statistics():
    rows = [
        (9.0, 4.0, 1234, 1300, 0.949, 3.14159, 3.865e5, 449.4, 5190.2, 0.9656, NAN, 0.0021, 0.97312),
        (4.0, 3.0, 7, 100, 0.07, 1, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    ]
    overall = (math.inf, 3.0, 1241, 1400, 0.886, 3.1, -12.5, 1060.0, 1e-5, -0.5, NAN, NAN, 10.5)
    table = ShellTable(dict(zip(COLUMNS, np.transpose(rows))), dict(zip(COLUMNS, overall)))
    assert format_statistics(table) == STATISTICS


def test_comparison():
    shells = [
        {"d_max": 9.0, "d_min": 4.0, "n": 2, "cc": NAN, "slope": NAN},
        {"d_max": 4.0, "d_min": 3.0, "n": 15, "cc": 0.87654, "slope": 1234.56},
    ]
    comparison = Comparison(n=17, cc=0.87654, slope=-2.0, shells=shells)
    assert format_comparison(comparison) == COMPARISON
    overall = {"d_max": 9.0, "d_min": 3.0, "n": 17, "cc": 0.87654, "slope": -2.0}
    assert comparison_record(comparison) == {"n_bins": N_BINS, "overall": overall, "shells": shells}


@pytest.mark.parametrize("value", [None, NAN, np.float64(NAN), np.float32(NAN)])
def test_what_is_not_known(value):
    assert Column("x", 8, ".3f", itemgetter("x")).cell({"x": value}) == "-"


def test_text_stands_at_the_left_and_numbers_at_the_right():
    columns = (
        Column("model", -7, "", itemgetter(0)),
        Column("n", 4, "d", itemgetter(1)),
        Column("R", 7, ".2f", itemgetter(2)),
    )
    rows = [("llm", 12, 0.5), ("nan", np.int64(3), None)]
    assert heads(columns) == ["model", "n", "R"]
    assert cells(columns, rows) == [["llm", "12", "0.50"], ["nan", "3", "-"]]
    assert text_table(columns, rows).splitlines() == [
        "model     n      R",
        "------------------",
        "llm      12   0.50",
        "nan       3      -",
    ]
    assert text_table(columns, [], rows[:1]).splitlines()[1:] == ["-" * 18, "-" * 18, "llm      12   0.50"]
