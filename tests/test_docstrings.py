"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest

import pytest

from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.compute import compute_model
from dials_diffuse.simulation.simulate import simulate

#: what a script meets first
EXAMPLES = [DiffuseModel, choose_grid, compute_model, simulate]


@pytest.mark.parametrize("thing", EXAMPLES, ids=lambda thing: thing.__name__)
def test_example(thing):
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, thing.__name__)
    assert test.examples, f"{thing.__name__} has no example"
    said = []
    failures, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert failures == 0, "".join(said)
