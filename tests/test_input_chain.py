"""From images to a map and to absolute intensities, where data sets, their order and their number change on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cctbx import crystal
from dials.array_family import flex
from dxtbx.model import Beam, Experiment, Goniometer, Scan
from dxtbx.model.experiment_list import ExperimentList
from helpers.datasets import write_experiments
from helpers.programs import dials
from helpers.structures import random_structure
from helpers.synthetic import make_detector, rotation

from dials_diffuse.cli import integrate, merge, scale, simulate
from dials_diffuse.experiment.build import build_crystal
from dials_diffuse.files.observations import ObservationFile

R_E = 2.8179403e-5  # Å, classical radius of the electron


def write_structure(path, group: str, cell: tuple, elements: str, u: tuple):
    structure = random_structure(group, cell, elements, u=u)
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=group)
    Path(path).write_text(structure.hierarchy.as_pdb_string(crystal_symmetry=symmetry))
    return structure


# narrow wedges of a small cell

GROUP, CELL = "P 21 21 21", (5.0, 8.0, 12.0, 90.0, 90.0, 90.0)
N_IMAGES, WIDTH = 15, 0.1


def write_geometry(path, structure) -> None:
    """Four sweeps of one crystal, two of them with its head tilted by 40 degrees."""
    detector = make_detector(size=(300, 300), distance=40.0, pixel=0.3, parallax=False)
    beam = Beam((0, 0, 1), 0.71)
    sample = build_crystal(structure.cell, structure.space_group, rotation(20, 35, 50))
    upright = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    experiments = []
    for number, (start, tilt) in enumerate(((0, 0), (60, 0), (0, 40), (90, 40))):
        goniometer = Goniometer((1, 0, 0), tuple(rotation(0, tilt, 0).ravel()), upright)
        scan = Scan((1, N_IMAGES), (float(start), WIDTH))
        scan.set_exposure_times(flex.double(N_IMAGES, 0.5))
        models = {"beam": beam, "detector": detector, "goniometer": goniometer, "scan": scan, "crystal": sample}
        experiments.append(Experiment(**models, identifier=f"true-{number}"))
    write_experiments(path, *experiments)


@pytest.fixture(scope="module")
def wedges(tmp_path_factory) -> Path:
    """Folder with the sweeps, processed by DIALS in the style of small-molecule work."""
    folder = tmp_path_factory.mktemp("wedges")
    previous = Path.cwd()
    os.chdir(folder)
    try:
        write_geometry("geometry.expt", write_structure("small.pdb", GROUP, CELL, "CNOC", u=(0.02, 0.05)))
        model = ["model=llm", "llm.sigma=0.15", "llm.gamma=4", "d_min=0.8", "grid.subdivide=2,2,2"]
        source = ["source.flux=5e10", "spots.mosaicity=0.2", "background.air=3", "seed=2"]
        quick = ["sampling.oscillation=1", "sampling.pixel=1", "nproc=1", "output.log=None"]
        simulate.run(["small.pdb", "geometry.expt", *model, *source, *quick])
    finally:
        os.chdir(previous)
    dials(folder, "import", *sorted(path.name for path in folder.glob("simulated_*.cbf")))
    dials(folder, "find_spots", "imported.expt", "nproc=1", "min_spot_size=5")
    known = ["space_group=P222", "unit_cell=" + ",".join(map(str, CELL)), "indexing.method=real_space_grid_search"]
    quick = ["max_refine=1", "refinement_protocol.n_macro_cycles=2"]
    dials(folder, "index", "imported.expt", "strong.refl", "joint_indexing=True", *known, *quick)
    few = ["min_spots.overall=10", "min_spots.per_degree=5"]
    dials(folder, "integrate", "indexed.expt", "indexed.refl", "nproc=1", "prediction.d_min=0.8", *few)
    few = ["error_model=None", "reflection_selection.method=use_all", "exclude_datasets=1"]
    dials(folder, "scale", "integrated.expt", "integrated.refl", "model=KB", *few)
    return folder


def test_dials_scale_dropped_a_sweep_and_most_centres_are_outside(wedges):
    """What makes such data hard to read is there, or the next test would show nothing."""
    experiments = ExperimentList.from_file(str(wedges / "scaled.expt"), check_format=False)
    table = flex.reflection_table.from_file(str(wedges / "scaled.refl"))
    names = dict(table.experiment_identifiers())
    assert len(experiments) == 3 and {names[i] for i in set(table["id"])} == set(experiments.identifiers())
    assert max(table["id"]) == 3  # of three experiments, counted from 0
    z = np.array(table["xyzcal.px"].parts()[2])
    assert np.count_nonzero((z < -5) | (z > N_IMAGES + 5)) > len(table) / 4


def test_narrow_wedges_all_the_way_to_a_map(wedges, monkeypatch):
    """Nearly as good as with the true models of all four sweeps; absolute but for what scaling so few data adds."""
    monkeypatch.chdir(wedges)
    agreement = {}
    for name in ("scaled", "simulated"):
        integrate.run(
            [
                f"{name}.expt",
                f"{name}.refl",
                "grid.subdivide=2,2,2",
                f"output.observations={name}.h5",
                "output.log=None",
            ]
        )
        summary = json.loads(Path("diffuse_integrated.json").read_text())
        assert all(not e["left_out"] for e in summary["experiments"])
        table = flex.reflection_table.from_file(f"{name}.refl")
        assert summary["reflections"] == {"used": len(table), "left_out": []}
        if name == "scaled":
            scale.run(["scaled.h5", "output.observations=scaled.h5.scaled", "output.png=None", "output.log=None"])
        source = f"{name}.h5.scaled" if name == "scaled" else f"{name}.h5"
        options = ["space_group=P212121", "reference=truth.nxs", "statistics.n_shells=3", "output.png=None"]
        merge.run([source, *options, f"output.map={name}.nxs", "output.log=None"])
        agreement[name] = json.loads(Path("diffuse_merged.json").read_text())["comparison"]["overall"]
    assert agreement["scaled"]["cc"] > 0.75
    assert agreement["scaled"]["cc"] > agreement["simulated"]["cc"] - 0.05
    assert agreement["scaled"]["slope"] == pytest.approx(agreement["simulated"]["slope"], rel=0.15)
    with ObservationFile("scaled.h5") as result:
        rows = result.read_bragg()
        assert len(result.experiments) == 3 and set(rows["experiment"]) == {0, 1, 2}


# absolute intensities


@pytest.fixture
def two_crystals(tmp_path, monkeypatch) -> float:
    """A thick and a thin crystal in simulated.expt and simulated.refl; returns the true scale of both together.

    electrons² per unit cell for a unit of the rate, for a crystal as thick as the geometric mean
    """
    monkeypatch.chdir(tmp_path)
    structure = write_structure("m.pdb", "P 1", (12, 13, 14, 80, 95, 107), "CNOOS", u=(0.15, 0.3))
    detector = ["detector.size=120,120", "detector.pixel_size=1.0", "detector.distance=60"]
    clean = ["detector.hot_pixels=0", "detector.dead_pixels=0", "beam_stop.arm=0", "beam_stop.radius=2"]
    empty = ["background.air=0", "background.liquid=0", "background.solvent=False", "crystal.k_sol=0"]
    spots = ["spots.mosaicity=0.05", "spots.spot_size=0.1", "scan.width=4", "scan.n_images=40"]
    crystals = ["crystal.number=2", "crystal.thickness=0.2,0.05", "source.flux=1e12"]
    steps = ["sampling.oscillation=4", "sampling.pixel=2", "d_min=1.6", "grid.subdivide=2,2,2", "seed=3", "nproc=1"]
    simulate.run(["m.pdb", "model=uncorrelated", *detector, *clean, *empty, *spots, *crystals, *steps])
    cells = 1e12 * np.sqrt(0.2 * 0.05) * 1e7 / structure.cell.volume()
    return 1 / (cells * R_E**2 * 1e-6)


def test_the_absolute_scale_is_that_of_the_right_crystals(two_crystals):
    """The ids of the .refl in another order: by position the scale would be wrong by a factor of 2.2."""
    table = flex.reflection_table.from_file("simulated.refl")
    names = dict(table.experiment_identifiers())
    for i in names:
        del table.experiment_identifiers()[i]
    table["id"] = flex.int(1 - np.array(table["id"]))
    for i, name in names.items():
        table.experiment_identifiers()[1 - i] = name
    table.as_file("permuted.refl")
    reduction = ["grid.subdivide=2,2,2", "d_min=1.6", "corrections.flux=False", "mask.bragg.n_sigma=4"]
    integrate.run(["simulated.expt", "permuted.refl", *reduction])
    scale.run(["diffuse_integrated.h5", "absolute_scale.model=m.pdb", "model=b", "output.png=None"])
    result = json.loads(Path("diffuse_scaled.json").read_text())["absolute_scale"]
    assert result["k"] == pytest.approx(two_crystals, rel=0.03)
