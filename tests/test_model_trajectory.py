"""Ensembles from trajectories: a reader that is optional."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers.programs import model_of

from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.trajectory import load_trajectory


def test_missing_package_is_said(pdb, monkeypatch):
    monkeypatch.setitem(sys.modules, "mdtraj", None)
    with pytest.raises(DiffuseError, match=r"frames.dcd: mdtraj is not installed; pip install mdtraj"):
        load_trajectory("frames.dcd", pdb)


def frames_around(pdb, n=5):
    structure = load_structure(pdb)
    rng = np.random.default_rng(0)
    return structure, structure.site_cart + 0.3 * rng.normal(size=(n, structure.n_atoms, 3))


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "trr"])
def test_frames_are_members(pdb, suffix):
    """Also those of which atoms were moved by lattice translations."""
    mdtraj = pytest.importorskip("mdtraj", reason="TRAJECTORIES NOT CHECKED: install mdtraj")
    structure, frames = frames_around(pdb)
    wrapped = frames + np.array([0.0, 14.0, -17.0]) * (np.arange(6) % 2)[:, None]
    scale = 1.0 if suffix == "dcd" else 0.1
    with mdtraj.open(f"frames.{suffix}", "w") as handle:
        handle.write((scale * wrapped).astype(np.float32))
    members = load_trajectory(f"frames.{suffix}", pdb)
    error = 0.006 if suffix == "xtc" else 1e-5  # its coordinates have a precision of 0.01 Å
    np.testing.assert_allclose([m.site_cart for m in members], frames, atol=error)
    assert len(load_trajectory(f"frames.{suffix}", pdb, stride=2)) == 3
    arguments = ["model=ensemble", f"ensemble.trajectory=frames.{suffix}", "ensemble.stride=2"]
    model = model_of(*arguments, coordinates=pdb)
    s = np.random.default_rng(1).uniform(-0.2, 0.2, (10, 3))
    expected = Ensemble(members[::2]).intensity_at(structure, s)
    np.testing.assert_allclose(model.intensity_at(structure, s), expected)


def test_bad_trajectories_are_refused(pdb):
    mdtraj = pytest.importorskip("mdtraj", reason="TRAJECTORIES NOT CHECKED: install mdtraj")
    _, frames = frames_around(pdb)
    for name, content in (("other.dcd", frames[:, :4]), ("single.dcd", frames[:1])):
        with mdtraj.open(name, "w") as handle:
            handle.write(content.astype(np.float32))
    with open("broken.dcd", "w") as handle:
        handle.write("nonsense")
    with pytest.raises(DiffuseError, match=r"frames of shape \(4, 3\), but model.pdb has 6 atoms"):
        load_trajectory("other.dcd", pdb)
    with pytest.raises(DiffuseError, match=r"1 frames with a stride of 1; at least two"):
        load_trajectory("single.dcd", pdb)
    for name in ("broken.dcd", "broken.strange"):
        with open(name, "w") as handle:
            handle.write("nonsense")
        with pytest.raises(DiffuseError, match=f"{name}: cannot be read as a trajectory"):
            load_trajectory(name, pdb)
    with pytest.raises(DiffuseError, match=r"missing.dcd: no such file"):
        load_trajectory("missing.dcd", pdb)


def test_trajectory_belongs_to_the_ensemble(pdb):
    arguments = ["model=llm", "ensemble.trajectory=frames.dcd"]
    with pytest.raises(CommandLineError, match=r"ensemble.trajectory is given, but model=llm"):
        model_of(*arguments, coordinates=pdb)
