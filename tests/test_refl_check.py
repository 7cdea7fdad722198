"""A .refl of other models than those of the .expt is noticed: indices and predicted positions are compared."""

from __future__ import annotations

import json

import pytest
from cctbx import sgtbx
from dxtbx.model import Experiment
from helpers.datasets import import_images, noise, reflections_of, write_experiments, write_images, write_table
from helpers.synthetic import make_crystal

from dials_diffuse.cli import integrate
from dials_diffuse.experiment.spot_prediction import predict_spots, spot_size
from dials_diffuse.reduction.refl_check import check_reflections

D_MIN = 3.0


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return import_images(write_images(tmp_path_factory.mktemp("images"), "one_", noise(0, 8)), "one")


def checked(now, then):
    """Models as they are now, against the reflections that others predicted."""
    spots = predict_spots(now, spot_size(now), D_MIN)
    return check_reflections(spots, reflections_of(then), now, D_MIN)


def with_crystal(sweep, crystal):
    parts = ("beam", "detector", "goniometer", "scan", "profile", "imageset", "identifier")
    return Experiment(crystal=crystal, **{name: getattr(sweep, name) for name in parts})


def test_the_same_models(sweep):
    check = checked(sweep, sweep)
    assert check.same > 0.99 and check.distance < 1e-6 and check.images < 1e-6 and check.words == ""


def test_refined_a_little_since(sweep):
    check = checked(with_crystal(sweep, make_crystal(angles=(10, 20, 30.2))), sweep)
    assert check.words == "" and 0.02 < check.distance < 1


def test_changed_since(sweep):
    check = checked(with_crystal(sweep, make_crystal(angles=(10, 20, 33))), sweep)
    assert check.same < 0.5 and "refined or changed since" in check.words and check.distance > 1


def test_reindexed_since(sweep):
    """The same lattice, whose axes have other names."""
    reindexed = sweep.crystal.change_basis(sgtbx.change_of_basis_op("c,a,b"))
    check = checked(with_crystal(sweep, reindexed), sweep)
    assert check.anywhere > 0.95 and check.same < 0.2 and "reindexed" in check.words


def test_nothing_to_compare(sweep):
    spots, table = predict_spots(sweep, spot_size(sweep), D_MIN), reflections_of(sweep)
    assert check_reflections(spots, None, sweep, D_MIN) is None
    assert check_reflections(spots, table[:10], sweep, D_MIN) is None
    del table["xyzcal.px"]
    assert check_reflections(spots, table, sweep, D_MIN) is None


def test_the_program_warns(sweep, tmp_path, monkeypatch):
    """In the log and in the record; where nobody asks, nothing is compared."""
    monkeypatch.chdir(tmp_path)
    write_experiments("now.expt", with_crystal(sweep, make_crystal(angles=(10, 20, 33))))
    write_table("then.refl", [reflections_of(sweep)], {0: "one"})
    for check, known in (("warn", True), ("none", False)):
        integrate.run(["now.expt", "then.refl", f"d_min={D_MIN}", f"geometry.check={check}", "output.html=None"])
        record = json.loads((tmp_path / "diffuse_integrated.json").read_text())
        found = record["experiments"][0]["predictions"]
        assert (found is not None) == known == any("changed since" in w for w in record["warnings"])
