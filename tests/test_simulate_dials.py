"""Simulated images through the real programs of DIALS, then through ours: what comes back is what went in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList
from helpers.builders import PROVENANCE
from helpers.programs import dials

from dials_diffuse.cli import integrate, merge, simulate
from dials_diffuse.files.nexus import read_map
from dials_diffuse.merging.compare import compare_maps
from dials_diffuse.scaling.absolute import AbsoluteParameters
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.simulation.plan import example_path

N_IMAGES = 40
FLUX = 1e12  # photons/s; more would make Bragg spots overflow, and what they lose spoil CC1/2
CELL = (78.54, 78.54, 37.77, 90.0, 90.0, 90.0)

#: bins with a hundred voxels each, wide enough for their mean not to follow the noise
N_BINS = 100


@pytest.fixture(scope="module")
def processed(tmp_path_factory) -> Path:
    """Folder of a lysozyme crystal, simulated and processed by DIALS."""
    folder = tmp_path_factory.mktemp("dials")
    previous = Path.cwd()
    os.chdir(folder)
    try:
        options = ["detector.size=300K", "detector.distance=130", f"scan.n_images={N_IMAGES}", f"source.flux={FLUX}"]
        outputs = ["grid.subdivide=2,2,2", "seed=1"]
        simulate.run(["structure=lysozyme", *options, *outputs])
    finally:
        os.chdir(previous)
    images = sorted(path.name for path in folder.glob("simulated_1_*.cbf"))
    dials(folder, "import", *images)
    dials(folder, "find_spots", "imported.expt", "nproc=2")
    known = ["space_group=P43212", "unit_cell=" + ",".join(map(str, CELL)), "basis_vector_combinations.max_refine=5"]
    dials(folder, "index", "imported.expt", "strong.refl", *known)
    dials(folder, "refine", "indexed.expt", "indexed.refl")
    dials(folder, "integrate", "refined.expt", "refined.refl", "nproc=2")
    dials(folder, "scale", "integrated.expt", "integrated.refl", "output.json=scale.json")
    return folder


def reflections(path) -> flex.reflection_table:
    return flex.reflection_table.from_file(str(path))


def crystal(path):
    return ExperimentList.from_file(str(path), check_format=False)[0].crystal


def test_dials_import_needs_no_help(processed):
    imported, true = (
        ExperimentList.from_file(str(processed / name), check_format=False)[0]
        for name in ("imported.expt", "simulated.expt")
    )
    assert imported.detector == true.detector and imported.beam == true.beam
    assert imported.goniometer == true.goniometer
    assert imported.scan.get_oscillation() == true.scan.get_oscillation()


def test_nearly_all_spots_are_indexed(processed):
    table = reflections(processed / "indexed.refl")
    assert len(table) > 3000
    assert table.get_flags(table.flags.indexed).count(True) > 0.95 * len(table)


def test_spots_are_where_they_are_predicted(processed):
    table = reflections(processed / "refined.refl")
    table = table.select(table.get_flags(table.flags.used_in_refinement))
    observed, predicted = (np.array(table[name]).reshape(-1, 3) for name in ("xyzobs.px.value", "xyzcal.px"))
    rmsd = np.sqrt(np.mean((observed - predicted) ** 2, axis=0))
    assert np.all(rmsd < 0.5)


def matched(folder: Path, found: flex.reflection_table) -> list:
    """Pairs of rows of reflections found and drawn, at most a pixel and an image apart, whose indices are equivalent.

    The same one of the operators that leave the lattice as it is must make all indices so.
    """
    drawn = reflections(folder / "simulated.refl")
    drawn_at = np.array(drawn["xyzcal.px"]).reshape(-1, 3)
    known: dict = {}
    for i, h in enumerate(drawn["miller_index"]):
        known.setdefault(tuple(h), []).append(i)
    best: list = []
    for operator in crystal(folder / "simulated.expt").get_space_group().build_derived_point_group():
        pairs = []
        for i, (h, xyz) in enumerate(zip(found["miller_index"], np.array(found["xyzcal.px"]).reshape(-1, 3))):
            mates = known.get(tuple(int(x) for x in operator.r() * h), ())
            pairs += [(i, j) for j in mates if np.all(np.abs(xyz - drawn_at[j]) < 1.0)]
        best = max(best, pairs, key=len)
    return best


def test_indices_are_those_that_were_drawn(processed):
    found = reflections(processed / "refined.refl")
    found = found.select(found.get_flags(found.flags.used_in_refinement))
    assert len(matched(processed, found)) > 0.99 * len(found)


def test_intensities_are_those_that_were_drawn(processed):
    """Summed counts of DIALS against the expected photons, of strong reflections that are complete."""
    found, drawn = reflections(processed / "integrated.refl"), reflections(processed / "simulated.refl")
    found = found.select(found.get_flags(found.flags.integrated_sum))
    pairs = np.array(matched(processed, found))
    counts = np.array(found["intensity.sum.value"])[pairs[:, 0]]
    photons = np.array(drawn["intensity.sum.value"])[pairs[:, 1]]
    use = (np.array(found["partiality"])[pairs[:, 0]] > 0.99) & (photons > 1e4)
    assert np.count_nonzero(use) > 1000
    assert np.median(counts[use] / photons[use]) == pytest.approx(1, abs=0.02)


def test_orientation_and_cell_are_recovered(processed):
    true, found = (crystal(processed / name) for name in ("simulated.expt", "integrated.expt"))
    assert found.get_unit_cell().parameters() == pytest.approx(true.get_unit_cell().parameters(), rel=1e-3)
    u, v, b = (np.array(m).reshape(3, 3) for m in (found.get_U(), true.get_U(), true.get_B()))
    angles = []
    for operator in true.get_space_group().build_derived_point_group():
        r = np.array(operator.r().as_double()).reshape(3, 3)
        turn = u.T @ v @ b @ r.T @ np.linalg.inv(b)
        angles.append(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    assert min(angles) < 0.05


def test_dials_scale_finds_consistent_intensities(processed):
    summary = json.loads((processed / "scale.json").read_text())["scaling_tables"]["overall_summary_data"]
    assert float(summary["CC-half"].split()[0]) > 0.99


def test_the_map_is_as_good_as_with_the_true_models(processed, monkeypatch):
    """Nearly: masks follow what is on the images, whatever width spots have to DIALS.

    The slopes are absolute: photons per microsteradian and second, per electron² in a unit cell.
    """
    monkeypatch.chdir(processed)
    truth = read_map("truth.nxs")
    for name in ("integrated", "simulated"):
        files = [f"{name}.expt", f"{name}.refl", "grid.subdivide=2,2,2", f"output.observations={name}.h5"]
        integrate.run([*files, "output.json=None"])
        merge.run(
            [f"{name}.h5", f"output.map={name}.nxs", "output.png=None", "output.json=None", "output.volume=False"]
        )
    found, best = read_map("integrated.nxs"), read_map("simulated.nxs")
    with_dials, with_truth = (compare_maps(data, truth, n_bins=N_BINS) for data in (found, best))
    expected = FLUX * 0.2e7 / np.prod(CELL[:3]) * 2.8179403e-5**2 * 1e-6
    assert with_dials.cc > with_truth.cc - 0.01
    assert compare_maps(found, best, n_bins=N_BINS).cc > 0.97
    assert with_dials.slope / expected == pytest.approx(1, abs=0.03)
    assert with_truth.slope / expected == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("known", ["model", "nothing"])
def test_the_scale_is_absolute_with_coordinates_and_without(processed, known):
    """Air and liquid are on the images, and none without crystal: still the scale is right within what it says."""
    integrated = processed / "absolute.h5"
    if not integrated.exists():
        names = [str(processed / f"integrated.{suffix}") for suffix in ("expt", "refl")]
        integrate.run(
            [
                *names,
                "grid.subdivide=2,2,2",
                f"output.observations={integrated}",
                "output.json=None",
                "output.log=None",
                "output.html=None",
            ]
        )
    contents = {"model": str(example_path("lysozyme"))} if known == "model" else {}
    parameters = ScalingParameters(terms=(), max_observations=20_000)
    found = scale_observations(
        [integrated], parameters, processed / f"{known}.h5", PROVENANCE, absolute=AbsoluteParameters(**contents)
    ).absolute
    truth = np.prod(CELL[:3]) / (FLUX * 0.2e7 * 2.8179403e-5**2 * 1e-6)
    assert abs(found.k - truth) < 2 * found.esd
    assert found.k == pytest.approx(truth, rel=0.03 if known == "model" else 0.25)
    assert found.method == ("model" if known == "model" else "separation")
    separated = next(e for e in found.estimates if e.method == "separation")
    assert abs(separated.k - truth) < 2 * separated.esd < 0.5 * truth
    sum_rule = next(e for e in found.estimates if e.method == "krogh_moe")
    assert sum_rule.k < separated.k < 1.2 * truth
