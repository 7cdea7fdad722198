"""The notebook of docs/api.md runs, on images that are simulated, and finds what was put in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cctbx import crystal
from helpers.checkout import ROOT
from helpers.simulations import CELL, GROUP
from helpers.structures import random_structure

from dials_diffuse.cli.simulate import run as simulate
from dials_diffuse.files.nexus import read_map

SIMULATION = ["model=rigid_body", "rigid_body.sigma=0.3", "d_min=2", "source.flux=3e10", "detector.size=160,150"]
SIMULATION += ["detector.pixel_size=0.5", "detector.distance=40", "scan.width=1", "scan.n_images=60"]
SIMULATION += ["background.air=0", "background.liquid=0", "sampling.oscillation=1", "sampling.pixel=1", "nproc=2"]
SIMULATION += [
    "seed=3",
    "output.truth=None",
    "output.experiments=integrated.expt",
    "output.reflections=integrated.refl",
]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    structure = random_structure(GROUP, CELL, "CNOCS" * 20)
    symmetry = crystal.symmetry(unit_cell=CELL, space_group_symbol=GROUP)
    Path("model.pdb").write_text(structure.hierarchy.as_pdb_string(crystal_symmetry=symmetry))
    simulate(["model.pdb", *SIMULATION])
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    (notebook,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in notebook.splitlines() if line.strip()]) <= 30
    capsys.readouterr()
    exec(compile(notebook, "docs/api.md", "exec"), {})
    rigid, liquid = capsys.readouterr().out.strip().splitlines()
    sigma, cc = re.match(r"rigid_body: sigma = (\S+) ± \S+ Å, free correlation (\S+)$", rigid).groups()
    assert float(sigma) == pytest.approx(0.3, abs=0.05) and float(cc) > 0.8
    assert re.match(r"llm: sigma = \S+ ± \S+ Å, gamma = \S+ ± \S+ Å, free correlation \S+$", liquid)
    assert read_map("map.nxs").grid.subdivide == (2, 2, 2)
