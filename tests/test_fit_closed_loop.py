"""From images to the motion that was put into them: integrated, scaled, merged and fitted by the programs."""

from __future__ import annotations

import json

import pytest
from helpers.loops import FLUX, R_E, THICKNESS, simulated
from helpers.structures import random_structure

from dials_diffuse.cli import fit, integrate, merge, scale
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.simulation.simulation_parameters import Background, Scales

D_MAX, D_MIN = 8.0, 2.2
#: halos of 1/gamma = 0.33 1/Å in q, in voxels of 0.2 1/Å: the cell is small
MOTION = LiquidLikeMotions(sigma=0.4, gamma=3.0, orders=5)
CELL = (16.0, 16.0, 14.0, 90.0, 90.0, 90.0)


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """Folder with images of a crystal that decays by 15 % and absorbs by some 5 %, behind air and water, and a map.

    The flux is constant: images of so small a cell differ with the few maxima that they meet.
    """
    folder = tmp_path_factory.mktemp("motion")
    structure = random_structure("P 41", CELL, "CNOCS" * 2, u=(0.3, 0.45))
    background = Background(air=1.0, liquid=0.01, solvent=False)
    scales = Scales(drift=0.15, absorption=0.05)
    simulated(folder, structure, MOTION, D_MIN, (140, 120, 0.8), background=background, scales=scales)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        structure.hierarchy.write_pdb_file("model.pdb", crystal_symmetry=structure.crystal_symmetry)
        reduction = ["grid.subdivide=2,2,2", f"d_min={D_MIN}", "corrections.flux=False", "mask.bragg.n_sigma=4"]
        integrate.run(["simulated.expt", "simulated.refl", "nproc=1", *reduction])
        contents = ["absolute_scale.model=model.pdb", "absolute_scale.bulk_solvent=False"]
        scale.run(["diffuse_integrated.h5", "nproc=1", *contents, "absolute_scale.hydrogens=False"])
        merge.run(["diffuse_scaled.h5", "output.png=None", "statistics.n_shells=4"])
    return folder, structure


def fitted(loop, monkeypatch, *options) -> dict:
    """The record of ``model=llm`` fitted to the map on the absolute scale."""
    monkeypatch.chdir(loop[0])
    outputs = ["output.png=None", "output.volume=False", "starts=1", "statistics.n_shells=4"]
    fit.run(["diffuse_merged.nxs", "model.pdb", "scale=absolute", f"d_max={D_MAX}", *outputs, *options])
    (record,) = json.loads((loop[0] / "diffuse_fit.json").read_text())["models"]
    return record


def test_the_motion_comes_back(loop, monkeypatch):
    """Displacement and correlation length within 3 %, on the scale that the Bragg reflections give."""
    folder, structure = loop
    record = json.loads((folder / "diffuse_scaled.json").read_text())
    assert record["absolute_scale"]["method"] == "model"
    cells = FLUX * THICKNESS * 1e7 / structure.cell.volume()
    assert record["absolute_scale"]["k"] == pytest.approx(1 / (cells * R_E**2 * 1e-6), rel=0.02)
    result = fitted(loop, monkeypatch)
    found = {name: estimate["value"] for name, estimate in result["parameters"].items()}
    assert found == pytest.approx({"sigma": MOTION.sigma, "gamma": MOTION.gamma}, rel=0.03)
    assert result["statistics"]["free"]["cc_anisotropic"] > 0.99


def test_a_voxel_is_not_its_centre(loop, monkeypatch):
    """Where voxels are as wide as halos, the value at the centre is no model of their mean: gamma comes out short."""
    result = fitted(loop, monkeypatch, "voxels=centre")
    assert result["parameters"]["gamma"]["value"] < 0.95 * MOTION.gamma
    assert result["parameters"]["sigma"]["value"] > 1.02 * MOTION.sigma
