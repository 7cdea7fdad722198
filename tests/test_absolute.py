"""Absolute scale: Bragg intensities against voxels, contents of cells, and scales that are known beforehand."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from dials.array_family import flex
from helpers.builders import PROVENANCE, edited, small_grid
from helpers.loops import FLUX, R_E, THICKNESS, simulated
from helpers.programs import fails
from helpers.structures import random_structure
from helpers.synthetic import make_experiment
from scipy.spatial.distance import cdist

from dials_diffuse.cli import scale as cli
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.bragg_photons import bragg_photons
from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.detector import detector_setup
from dials_diffuse.experiment.scan import scan_geometry
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.observations import (
    BRAGG_DTYPE,
    OBSERVATION_DTYPE,
    ExperimentSummary,
    ObservationFile,
    write_observations,
)
from dials_diffuse.merging.compare import common_voxels
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.reduction.bragg_rows import bragg_rows
from dials_diffuse.reduction.corrections import Corrections
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.prepare import prepare_job
from dials_diffuse.reduction.reduction_parameters import Masking, ReductionParameters, Sampling
from dials_diffuse.scaling.absolute import AbsoluteParameters, absolute_scale
from dials_diffuse.scaling.bragg_scales import bragg_scale_curve, start_from_bragg
from dials_diffuse.scaling.record import curve_of_b, dials_scale_curve
from dials_diffuse.scaling.refine import refine
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.totals import Bragg, UniqueBragg, only_noise
from dials_diffuse.simulation.simulation_parameters import Background, Scales, Source
from dials_diffuse.simulation.spots import SpotShape
from dials_diffuse.structure import contents as cell_contents
from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.composition import average_contents, contents_of_sequence
from dials_diffuse.structure.contents import contents_of_structure
from dials_diffuse.structure.expectation import expectation_of, make_expectation

CELL = (12.0, 13.0, 14.0, 80.0, 95.0, 107.0)

LYSOZYME = (
    "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIVSDGNGMNAWVAWRNRCKG"
    "TDVQAWIRGCRL"
)
LYSOZYME_CELL = (79.1, 79.1, 37.9, 90.0, 90.0, 90.0)


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A crystal of atoms that do not touch, integrated; folder, structure, electrons² for each unit of the rate."""
    folder = tmp_path_factory.mktemp("closed")
    structure = make_structure(
        (12, 13, 14, 80, 95, 107), "P 1", "CNOOS", SITES, u=np.array([0.15, 0.25, 0.2, 0.3, 0.2])
    )
    data = simulated(folder, structure, Uncorrelated(), 1.5, detector=(150, 150, 0.8), scales=Scales(drift=DRIFT))
    image = np.array(data.reflections["xyzcal.px"].parts()[2])
    g = 3.0 * true_b(folder, image / 60) * np.random.default_rng(0).uniform(0.95, 1.05, len(image))
    data.reflections["inverse_scale_factor"] = flex.double(g)
    reduction = ReductionParameters(
        d_min=1.5, subdivide=(2, 2, 2), corrections=Corrections(flux=False), masking=Masking(n_sigma=4.0)
    )
    integrate(data.experiments, reduction, folder / "n.h5", PROVENANCE, data.reflections)
    cells = FLUX * THICKNESS * 1e7 / structure.cell.volume()
    return folder, structure, 1 / (cells * R_E**2 * 1e-6)


DRIFT = 0.15


def true_b(folder, t):
    """Scale of the sweep at a fraction t of it."""
    with h5py.File(folder / "truth.nxs") as handle:
        found = []
        handle.visititems(lambda name, item: found.append(item[()]) if name.endswith("sweep_1/b") else None)
    return np.interp(t, (np.arange(60) + 0.5) / 60, found[0])


SITES = [(0.1, 0.1, 0.1), (0.4, 0.3, 0.2), (0.8, 0.4, 0.5), (0.2, 0.7, 0.6), (0.6, 0.8, 0.85)]


@pytest.fixture(scope="module")
def scaled(closed):
    folder, structure, _ = closed
    parameters = ScalingParameters(terms=("b",), max_observations=12_000)
    absolute = AbsoluteParameters(**model_file(folder, structure), method="krogh_moe", required=True)
    return scale_observations([folder / "n.h5"], parameters, folder / "s.h5", PROVENANCE, 1, absolute=absolute)


def model_file(folder, structure):
    """What AbsoluteParameters need to know that the cell holds this and nothing else."""
    path = folder / "model.pdb"
    path.write_text(structure.xray_structure.as_pdb_file())
    return {"model": str(path), "bulk_solvent": False, "hydrogens": False}


def test_closed_loop(closed, scaled):
    """Scale and map are absolute within 1 % where the cell holds what is told; five atoms with wide gaps."""
    folder, _, k = closed
    result = scaled
    found = {e.method: e for e in result.absolute.estimates}
    assert result.absolute.k == found["krogh_moe"].k == pytest.approx(k, rel=0.01)
    assert found["envelope"].k == pytest.approx(k, rel=0.03)
    assert abs(result.absolute.k - k) < 3 * result.absolute.esd
    assert any("no background images" in w for w in result.warnings)  # there was none to subtract
    data, truth = merge_observations([folder / "s.h5"], MergeParameters(n_shells=4)).map, read_map(folder / "truth.nxs")
    assert data.units == truth.units == "electron^2 per unit cell"
    rows = common_voxels(data, truth)
    ratio = data.intensity[rows[0]] / truth.intensity[rows[1]]
    assert np.median(ratio) == pytest.approx(1, abs=0.01)  # with Compton scattering it would be 1.2
    assert np.percentile(ratio, [10, 90]) == pytest.approx(1, abs=0.03)


def test_scales_of_dials_are_compared(closed, scaled):
    """Factors planted in the .refl follow the true b, so do those refined here; a start from them is what they are."""
    folder, _, _ = closed
    curve = dials_scale_curve(scaled, 0)
    assert curve["correlation"] > 0.99
    angles = curve_of_b(scaled, 0)[0]
    truth = true_b(folder, (angles - scaled.layout.start[0]) / scaled.layout.width[0])
    for name in ("b", "inverse_scale_factor"):
        assert curve[name].mean() == pytest.approx(1)
        np.testing.assert_allclose(curve[name], truth / truth.mean(), atol=0.02)
    started = start_from_bragg(scaled.refinement.model, scaled.layout, scaled.bragg)
    again = curve_of_b(replace(scaled, refinement=replace(scaled.refinement, model=started)), 0)[1]
    np.testing.assert_allclose(again / again.mean(), truth / truth.mean(), atol=0.02)
    assert np.log(again).mean() == pytest.approx(0, abs=0.01)
    without = replace(scaled.bragg, inverse_scale_factor=np.full(len(scaled.bragg), np.nan))
    assert bragg_scale_curve(without, scaled.layout, 0, angles) is None
    assert start_from_bragg(scaled.refinement.model, scaled.layout, without) is scaled.refinement.model
    assert dials_scale_curve(replace(scaled, bragg=None), 0) is None


def test_b_starts_from_the_scales_of_dials(closed, tmp_path, monkeypatch):
    """Only when that is wanted; where it starts makes no difference in the end."""
    folder, _, _ = closed
    starts = []

    def spy(data, layout, parameters, threads, progress, start, *more):
        starts.append(start)
        return refine(data, layout, parameters, threads, progress, start, *more)

    monkeypatch.setattr("dials_diffuse.scaling.scale.refine", spy)
    parameters = ScalingParameters(terms=("b",), max_observations=4000)
    curves = []
    for wanted in (True, False):
        result = scale_observations(
            [folder / "n.h5"], parameters, tmp_path / f"{wanted}.h5", PROVENANCE, 1, bragg_scales=wanted
        )
        assert (result.bragg is None) == (not wanted)
        curves.append(curve_of_b(result, 0)[1])
    np.testing.assert_allclose(*curves, rtol=2e-3)
    assert starts[0].coefficients[starts[0].block("b").all].std() > 0.02
    assert starts[1] is None


def test_program(closed, tmp_path, monkeypatch, capsys):
    folder, structure, k = closed
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pdb").write_text(structure.xray_structure.as_pdb_file())
    arguments = [str(folder / "n.h5"), "model=b", "nproc=1", "absolute_scale.bulk_solvent=False"]
    arguments += ["absolute_scale.model=model.pdb", "absolute_scale.hydrogens=False"]
    cli.run([*arguments, "refinement.max_observations=12000"])
    record = json.loads((tmp_path / "diffuse_scaled.json").read_text())
    assert record["absolute_scale"]["method"] == "model"  # the Bragg intensities were made from it
    assert record["absolute_scale"]["k"] == pytest.approx(k, rel=0.01)
    shells = record["absolute_scale"]["shells"]
    np.testing.assert_allclose(shells["total"][-8:], np.add(shells["sum_of_squares"], shells["compton"])[-8:], rtol=0.1)
    assert record["sweeps"][0]["dials_scale"]["correlation"] > 0.99
    assert (tmp_path / "diffuse_scaled.png").read_bytes().startswith(b"\x89PNG")
    with ObservationFile(tmp_path / "diffuse_scaled.h5") as file:
        assert file.units == "electron^2 per unit cell"
    with h5py.File(folder / "n.h5") as source, h5py.File("old.h5", "w") as target:
        for name in source:
            if name != "bragg":
                source.copy(name, target)
        target.attrs.update(source.attrs)
        del target.attrs["checksum"]
    other = make_structure((20, 20, 20, 90, 90, 90), "P 1", "CN", SITES[:2])
    (tmp_path / "other.pdb").write_text(other.xray_structure.as_pdb_file())
    for changes, text in (
        (["old.h5", "absolute_scale.model=model.pdb"], "old.h5: holds no Bragg reflections"),
        (["old.h5", "absolute_scale.method=envelope"], "old.h5: holds no Bragg reflections"),
        ([arguments[0], "absolute_scale.model=other.pdb"], "other.pdb: unit cells of the model"),
        ([arguments[0], "absolute_scale.model=gone.pdb"], "gone.pdb: no such file"),
        ([arguments[0], "absolute_scale.sequence=MKB"], "B: no amino acid"),
        ([arguments[0], "absolute_scale.sequence=MK", "absolute_scale.model=model.pdb"], "give one of them"),
        ([arguments[0], "absolute_scale.copies=2"], "of what?"),
        ([arguments[0], "absolute_scale.selection=chain A"], "selection=chain A: of what?"),
        ([arguments[0], "absolute_scale.model=model.pdb", "absolute_scale.selection=chain Q"], "chain Q"),
    ):
        fails(cli.run, [*changes, "model=b", "nproc=1"], capsys, words=[text])


def test_an_old_file_is_scaled_all_the_same(closed, tmp_path):
    """Without Bragg reflections, and when nothing is asked for, intensities stay arbitrary."""
    folder, structure, _ = closed
    with h5py.File(folder / "n.h5") as source, h5py.File(tmp_path / "old.h5", "w") as target:
        for name in source:
            if name != "bragg":
                source.copy(name, target)
        target.attrs.update(source.attrs)
        del target.attrs["checksum"]
    parameters = ScalingParameters(terms=(), max_observations=5000)
    absolute = AbsoluteParameters(**model_file(tmp_path, structure))
    result = scale_observations([tmp_path / "old.h5"], parameters, tmp_path / "s.h5", PROVENANCE, 1, absolute=absolute)
    assert result.absolute is None and len(result.bragg) == 0
    with ObservationFile(tmp_path / "s.h5") as file:
        assert file.units == "a.u."


def test_too_few_reflections_are_no_error_unless_a_scale_was_asked_for(closed, tmp_path):
    folder, structure, _ = closed
    shutil.copy(folder / "n.h5", tmp_path / "few.h5")
    with edited(tmp_path / "few.h5") as handle:
        for column in handle["bragg"].values():
            column.resize(50, axis=0)
    parameters = ScalingParameters(terms=(), max_observations=5000)
    for required in (False, True):
        absolute = AbsoluteParameters(**model_file(tmp_path, structure), required=required)
        arguments = ([tmp_path / "few.h5"], parameters, tmp_path / "s.h5", PROVENANCE, 1)
        if required:
            with pytest.raises(DiffuseError, match="50 Bragg reflections are too few"):
                scale_observations(*arguments, absolute=absolute)
        else:
            result = scale_observations(*arguments, absolute=absolute)
            assert result.absolute is None
            assert any("arbitrary scale: 50 Bragg reflections" in w for w in result.warnings)


def test_contents_that_do_not_fit_are_no_error_unless_a_scale_was_asked_for(closed, tmp_path):
    folder = closed[0]
    contents = {"sequence": "MKV", "copies": 400}
    parameters = ScalingParameters(terms=(), max_observations=5000)
    arguments = ([folder / "n.h5"], parameters, tmp_path / "s.h5", PROVENANCE, 1)
    assert scale_observations(*arguments, absolute=AbsoluteParameters(**contents)).absolute is None
    with pytest.raises(DiffuseError, match="need more room than the unit cell has"):
        scale_observations(*arguments, absolute=AbsoluteParameters(**contents, required=True))


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """Bragg spots and nothing else, on a sensor so thin that there is no parallax, which solid angles leave out."""
    folder = tmp_path_factory.mktemp("spots")
    structure = random_structure("P 1", (12, 13, 14, 80, 95, 107), "CNOCS", u=(0.3, 0.45))
    return simulated(
        folder,
        structure,
        None,
        2.5,
        (240, 200, 0.4),
        thickness=0.01,
        background=Background(air=0.0, liquid=0.0, solvent=False, compton=False),
        spots=SpotShape(mosaicity=0.3, divergence=0.3, spot_size=0.25),
        source=Source(2e12),
        diffuse=False,
        noise=False,
    )


@pytest.mark.parametrize("on", [True, False])
def test_bragg_intensities_are_those_of_their_voxels(spots, tmp_path, on):
    """Summed over the voxels around it, a Bragg peak on the images is what the table says, corrected or not.

    27 voxels share a reciprocal cell; pixels, a quarter of a voxel, are divided further.
    """
    names = ("solid_angle", "polarization", "efficiency", "air", "exposure")
    reduction = ReductionParameters(
        d_min=2.6,
        subdivide=(3, 3, 3),
        corrections=Corrections(flux=False, **dict.fromkeys(names, on)),
        sampling=Sampling(oscillation=12, pixel=3),
        masking=Masking(bragg=False, persistent=False, outlier_n_sigma=0),
    )
    integrate(spots.experiments, reduction, tmp_path / "n.h5", PROVENANCE, spots.reflections)
    with ObservationFile(tmp_path / "n.h5") as file:
        bragg = file.read_bragg()
        rows = file.read("index", "counts", "norm")
    hkl = np.rint(rows["index"] / 3).astype(int)
    found = []
    for h in np.unique(bragg["hkl"], axis=0):
        mine, listed = np.all(hkl == h, axis=1), np.all(bragg["hkl"] == h, axis=1)
        if np.count_nonzero(mine) != 27 * np.count_nonzero(listed):  # partly off the detector or outside the scan
            continue
        voxel = np.ravel_multi_index((rows["index"][mine] - 3 * h + 1).T, (3, 3, 3))
        counts, norm = (np.bincount(voxel, rows[name][mine], 27) for name in ("counts", "norm"))
        found.append((np.mean(counts / norm), bragg["intensity"][listed].mean()))
    voxels, table = np.array(found).T
    assert len(found) > 200
    assert np.median(voxels / table) == pytest.approx(1, abs=0.003)
    np.testing.assert_allclose(np.percentile(voxels / table, [5, 95]), 1, atol=0.01)


def test_bragg_intensities_are_per_second_and_flux(spots):
    """Images of twice the flux give half the intensity; what is on images that were not used is left out."""
    reduction = ReductionParameters(d_min=2.6, masking=Masking(bragg=False, persistent=False))
    experiments = spots.experiments
    grid = choose_grid(experiments, reduction.d_min, reduction.d_max, reduction.subdivide)
    setup = detector_setup(experiments[0].detector)
    reduction = replace(reduction, corrections=Corrections(flux=False))
    job = prepare_job(0, experiments, np.arange(60), grid, reduction, setup, spots.reflections)
    plain, factors = bragg_rows(job, spots.reflections, dict.fromkeys(range(60), 1.0))
    assert factors is None
    image = np.floor((plain["xyz"][:, 2] - job.scan.oscillation[0]) / 3.0).astype(int)
    flux = {i: 2.0 if i < 30 else 1.0 for i in range(50)}
    rows, _ = bragg_rows(job, spots.reflections, flux)
    used = image < 50
    np.testing.assert_array_equal(rows["hkl"], plain["hkl"][used])
    ratio = np.where(image[used] < 30, 0.5, 1.0)
    np.testing.assert_allclose(rows["intensity"], plain["intensity"][used] * ratio)
    np.testing.assert_allclose(rows["variance"], plain["variance"][used] * ratio**2)


def some_reflections(n=20):
    table = flex.reflection_table()
    rng = np.random.default_rng(0)
    experiment = make_experiment(n_images=10)
    angle = rng.uniform(0.1, 0.5, n)
    s1 = np.stack([np.sin(angle), 0 * angle, np.cos(angle)], axis=1)
    table["s1"] = flex.vec3_double([tuple(x) for x in s1])
    table["xyzcal.px"] = flex.vec3_double([(10.0, 10.0, 4.5)] * n)
    table["panel"] = flex.size_t(n, 0)
    table["miller_index"] = flex.miller_index([(1, 2, 3)] * n)
    table["intensity.sum.value"] = flex.double(n, 100.0)
    table["intensity.sum.variance"] = flex.double(n, 100.0)
    table["flags"] = flex.size_t(n, 0)
    table.set_flags(flex.bool(n, True), table.flags.integrated_sum)
    return table, scan_geometry(experiment)


def test_reflections_that_are_used():
    table, scan = some_reflections()
    n = len(table)

    def only(k):
        return flex.bool([i == k for i in range(n)])

    table.set_flags(only(0), table.flags.overloaded)
    table.unset_flags(only(1), table.flags.integrated_sum)
    positions = table["xyzcal.px"]
    positions[2] = (10.0, 10.0, 11.0)  # after the last image
    table["xyzcal.px"] = positions
    table["partiality"] = flex.double([0.1 if i == 3 else 0.5 if i == 4 else 1.0 for i in range(n)])
    found = bragg_photons(table, scan)
    assert len(found) == n - 4
    np.testing.assert_allclose(found.photons, [200.0] + (n - 5) * [100.0])
    np.testing.assert_allclose(found.variance, [400.0] + (n - 5) * [100.0])
    del table["intensity.sum.value"]
    assert bragg_photons(table, scan) is None


def test_profile_fitting_is_for_weak_reflections():
    table, scan = some_reflections(3)
    table["intensity.sum.value"] = flex.double([50.0, 5000.0, 50.0])
    table["intensity.sum.variance"] = flex.double(3, 100.0)
    table["intensity.prf.value"] = flex.double(3, 40.0)
    table["intensity.prf.variance"] = flex.double(3, 25.0)
    table.set_flags(flex.bool([True, True, False]), table.flags.integrated_prf)
    found = bragg_photons(table, scan)
    np.testing.assert_allclose(found.photons, [40, 5000, 50])
    np.testing.assert_allclose(found.variance, [25, 100, 100])
    # a fitted profile is that of the whole reflection, a sum is what was seen of it
    table["partiality"] = flex.double([0.5, 1.0, 0.5])
    found = bragg_photons(table, scan)
    np.testing.assert_allclose(found.photons, [40, 5000, 100])
    np.testing.assert_allclose(found.variance, [25, 100, 400])


def test_bragg_columns_in_files(tmp_path):
    """Experiment by experiment, factors of dials.scale only for those that have them; old files have none of it."""
    grid = small_grid()
    experiments = [ExperimentSummary(f"id-{i}", (1, 10), (0.0, 0.1), 10, 1.0, 1, (100, 100)) for i in range(2)]
    rows = np.zeros(5, BRAGG_DTYPE)
    rows["intensity"] = np.arange(5)
    rows["hkl"] = np.arange(15).reshape(5, 3)
    with write_observations(tmp_path / "a.h5", grid, experiments, PROVENANCE) as writer:
        writer.append_bragg(rows)
        rows["experiment"] = 1
        writer.append_bragg(rows, np.full(5, 1.5))
    with ObservationFile(tmp_path / "a.h5") as file:
        assert file.has_bragg
        columns = file.read_bragg()
    for name in ("hkl", "intensity"):
        np.testing.assert_array_equal(columns[name], np.concatenate([rows[name]] * 2))
    np.testing.assert_array_equal(columns["experiment"], 5 * [0] + 5 * [1])
    np.testing.assert_array_equal(columns["inverse_scale_factor"], 5 * [np.nan] + 5 * [1.5])
    with edited(tmp_path / "a.h5") as handle:
        del handle["bragg/inverse_scale_factor"]
    with ObservationFile(tmp_path / "a.h5") as file:
        assert "inverse_scale_factor" not in file.read_bragg()
    with edited(tmp_path / "a.h5") as handle:
        del handle["bragg/variance"]
    with ObservationFile(tmp_path / "a.h5") as file, pytest.raises(DiffuseError, match="incomplete, bragg/variance"):
        file.read_bragg()
    with edited(tmp_path / "a.h5") as handle:
        del handle["bragg"]
    with ObservationFile(tmp_path / "a.h5") as file:
        assert not file.has_bragg
        assert {len(column) for column in file.read_bragg().values()} == {0}


def test_interference_is_the_pair_sum():
    """Neighbours of a structure against all pairs of atoms of a block of cells, and the integral of the hole."""
    structure = random_structure("P 21 21 21", (9.0, 10.5, 12.0, 90, 90, 90), "CNOS")
    contents = contents_of_structure(structure, bulk_solvent=False, hydrogens=False)
    atoms = structure.expand()
    shifts = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    around = (atoms.site_frac + shifts[:, None]).reshape(-1, 3) @ structure.orthogonalization.T
    distance = cdist(atoms.site_cart, around)
    t = np.clip((distance - 2.8) / 1.0, 0, 1)
    window = np.where(distance > 0.7, 0.5 * (1 + np.cos(math.pi * t)), 0.0)
    s = np.array([0.0, 0.2, 0.5, 0.8])
    f = {e: cell_contents.atom_form_factor(e, s) for e in "CNOS"}
    left, right = (np.array([f[e] for e in x]) for x in (atoms.element, np.tile(atoms.element, len(shifts))))
    pairs = [np.sum(left[:, k, None] * right[None, :, k] * window * np.sinc(2 * distance * x)) for k, x in enumerate(s)]
    hole = replace(contents, pairs=()).interference(s)
    np.testing.assert_allclose(contents.interference(s) - hole, pairs, rtol=2e-3)
    np.testing.assert_allclose(contents.sum_of_squares(s), np.sum(left**2, axis=0), rtol=1e-12)
    q = np.linspace(0, 40, 4000)
    # form factors make it a little less than that of points
    whole = np.sum(q**2 * replace(contents, pairs=()).interference(q / (2 * math.pi))) * q[1]
    assert whole == pytest.approx(-2 * math.pi**2 * contents.electrons**2 / contents.volume, rel=0.02)


def test_contents_of_lysozyme():
    """Coordinates, sequence, and nothing but the cell: the same scattering within a few per cent."""
    from dials_diffuse.maps.grid import MapGrid
    from dials_diffuse.simulation.plan import example_path

    path = str(example_path("lysozyme"))
    grid = MapGrid((78.54, 78.54, 37.77, 90, 90, 90), " P 4nw 2abw", (1, 1, 1), 1.8)
    model = make_expectation(grid, model=path)
    assert model.f_squared is not None and len(model.hkl) == len(model.f_squared)
    s = model.s[model.s < 1 / 1.8]

    def share(other):
        """Integrals of the sum rule, relative."""
        total = [sum(np.interp(s, e.s, getattr(e, n)) for n in ("elastic", "compton", "interference")) for e in other]
        return np.sum(s**2 * total[0]) / np.sum(s**2 * total[1])

    assert share((make_expectation(grid, sequence=LYSOZYME, copies=1), model)) == pytest.approx(1, abs=0.02)
    assert share((make_expectation(grid, sequence=LYSOZYME), model)) == pytest.approx(1, abs=0.02)  # Matthews
    assert share((make_expectation(grid), model)) == pytest.approx(1, abs=0.04)
    contents = contents_of_sequence(LYSOZYME, grid.unit_cell, grid.hall_symbol, 1)
    per_molecule = {e: n / 8 for e, n in contents.atoms.items()}
    assert per_molecule["C"] == 613 and per_molecule["N"] == 193 and per_molecule["S"] == 10  # C613 H959 N193 O185 S10
    assert contents.electrons / contents.volume == pytest.approx(0.39, abs=0.02)
    assert average_contents(grid.unit_cell, grid.hall_symbol).electrons == pytest.approx(contents.electrons, rel=0.04)


def test_selection_of_the_models_atoms(tmp_path):
    """What is expected is that of a file with nothing else."""
    structure = random_structure("P 21 21 21", (19.0, 20.5, 22.0, 90, 90, 90), "CNOSCC")
    grid = small_grid("P 21 21 21", structure.unit_cell, (1, 1, 1), d_min=2.0)
    text = structure.xray_structure.as_pdb_file().splitlines(keepends=True)
    (tmp_path / "all.pdb").write_text("".join(text))
    (tmp_path / "some.pdb").write_text("".join(line for line in text if line[76:78].strip() != "S"))
    chosen = make_expectation(grid, str(tmp_path / "all.pdb"), selection="not element S")
    some, everything = (make_expectation(grid, str(tmp_path / f"{name}.pdb")) for name in ("some", "all"))
    for name in ("elastic", "compton", "interference", "f_squared"):
        np.testing.assert_allclose(getattr(chosen, name), getattr(some, name), rtol=1e-6, atol=1e-6)
    assert np.abs(everything.f_squared - some.f_squared).max() > 10
    parameters = AbsoluteParameters(model=str(tmp_path / "all.pdb"), selection="not element S")
    np.testing.assert_array_equal(parameters.expectation_for(grid, 1000, ["a.h5"]).f_squared, chosen.f_squared)


@pytest.mark.parametrize("cell, n", [((8, 8, 8.6, 90, 90, 90), 31), ((12, 13, 14, 80, 95, 107), 114)])
def test_small_cells_hold_no_protein(cell, n):
    """A cell of 550 Å³ has room for 31 atoms of an organic molecule, as the source says; a sequence overrides it."""
    contents = average_contents(cell, " P 1")
    heavy = {e: x for e, x in contents.atoms.items() if e != "H"}
    assert sum(heavy.values()) == pytest.approx(n, abs=1) and contents.water == 0
    assert max(heavy, key=heavy.get) == "C" and contents.electrons / contents.volume == pytest.approx(0.43, abs=0.03)
    for words in ("small cell", f"{n} atoms", "18 Å³", "absolute_scale.model=", "absolute_scale.sequence="):
        assert words in contents.source
    peptide = contents_of_sequence("GAV", (8, 8, 8.6, 90, 90, 90), " P 1", 1)
    assert "3 residues" in peptide.source and peptide.atoms["N"] == 3
    expectation = make_expectation(small_grid("P 1", cell, (1, 1, 1), d_min=0.9))
    assert expectation.source == contents.source and expectation.water_share == 0


def test_a_large_cell_holds_a_protein():
    contents = average_contents((40, 45, 50, 90, 90, 90), " P 2ac 2ab")
    assert "protein" in contents.source and 0.3 < contents.water / 0.03343 / contents.volume < 0.7


@pytest.mark.parametrize(
    "sequence, copies, words",
    [
        ("MKVB", None, "B: no amino acid"),
        ("MK1V", None, "1: no amino acid"),
        ("", None, "no letters"),
        ("gone.fasta", None, "no such file"),
        ("ACGTACGTACGTACGT", None, "nucleic acid"),
        (LYSOZYME, 0, "copies=0"),
        (LYSOZYME, 5, "more room than the unit cell has"),
    ],
)
def test_sequences_that_make_no_contents(sequence, copies, words):
    with pytest.raises(DiffuseError, match=words):
        contents_of_sequence(sequence, LYSOZYME_CELL, " P 4nw 2abw", copies)


def test_sequence_files(tmp_path):
    (tmp_path / "a.fasta").write_text(f">one\n{LYSOZYME[:60]}\n>two\n{LYSOZYME[60:]}\n")
    from_file, from_letters = (
        contents_of_sequence(x, LYSOZYME_CELL, " P 4nw 2abw", 1) for x in (str(tmp_path / "a.fasta"), LYSOZYME)
    )
    assert from_file.atoms == from_letters.atoms


K = 42.0


def lattice_of_atoms(missing=0.0, noise=0.0, background=0.0, cell=(6.0, 6.5, 7.0, 90, 90, 90), u=0.3):
    """One oxygen in each cell, displaced independently: total f² everywhere but at the origin, all known by formula.

    Returns what :func:`absolute_scale` wants, in units that are K electrons²; ``background`` is added to the diffuse
    intensity, electrons².
    """
    structure = make_structure(cell, "P 1", "O", [(0, 0, 0)], u=u)
    grid = small_grid("P 1", structure.unit_cell, (1, 1, 1), d_min=0.7)
    contents = contents_of_structure(structure, bulk_solvent=False, hydrogens=False)
    spans = [np.arange(-round(2 * a), round(2 * a) + 1) for a in cell[:3]]
    index = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
    s = np.linalg.norm(index @ grid.reciprocal_matrix.T, axis=1)
    keep = (s > 0) & (s < 1 / 0.7)
    rng = np.random.default_rng(1)
    keep[keep] = rng.random(keep.sum()) >= missing
    index, s = index[keep], s[keep]
    squares = contents.sum_of_squares(s) * np.exp(-((2 * math.pi * s) ** 2) * 0.3)
    intensity = squares / K * (1 + noise * rng.normal(size=len(s)))

    def profile(s):
        still = np.exp(-((2 * math.pi * s) ** 2) * 0.3)
        return (contents.sum_of_squares(s) * (1 - still) + contents.compton(s) + background) / K

    return grid, profile, (0.0, 1 / 0.7), Bragg(index, intensity, np.full(len(s), 1e-4) ** 2), contents


def test_sum_rule_is_exact_for_a_lattice_of_atoms():
    """To 0.2 %: what is left is the hole around an atom, cut off at q_max, and shells of finite width."""
    *data, contents = lattice_of_atoms()
    result = absolute_scale(*data, expectation_of(contents, 0.7), "krogh_moe")
    assert result.k == pytest.approx(K, rel=0.002)
    assert next(e for e in result.estimates if e.method == "envelope").k == pytest.approx(K, rel=0.01)
    assert result.esd < 0.02 * K
    # without the Bragg peaks, or the hole, it would be wrong by much
    nothing = replace(data[3], intensity=data[3].intensity * 1e-6)
    assert absolute_scale(*data[:3], nothing, expectation_of(contents, 0.7), "krogh_moe").k > 1.02 * K


def test_missing_reflections_are_filled():
    *data, contents = lattice_of_atoms(missing=0.8, noise=0.1, cell=(12.0, 13.0, 14.0, 90, 90, 90))
    result = absolute_scale(*data, expectation_of(contents, 0.7), "krogh_moe")
    assert result.k == pytest.approx(K, rel=0.01)
    shells = result.shells
    assert 0.3 < shells.n_measured.sum() / shells.n_possible.sum() < 0.42  # of Friedel pairs
    assert any("unique Bragg reflections were measured" in w for w in result.warnings)


def test_strong_reflections_that_are_missing_are_guessed():
    """Overloads: the strongest third of intensities with Wilson's distribution, inside 3 Å, mates together."""
    *data, contents = lattice_of_atoms(cell=(12.0, 13.0, 14.0, 90, 90, 90), u=0.05)
    bragg = data[3]
    first = np.array([max(tuple(h), tuple(-h)) for h in bragg.hkl])
    _, pair = np.unique(first, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    factor = np.random.default_rng(3).exponential(size=pair.max() + 1)[pair]
    s = np.linalg.norm(bragg.hkl @ data[0].reciprocal_matrix.T, axis=1)
    kept = (s > 1 / 3) | (factor < math.log(3))
    all_of_them = replace(bragg, intensity=bragg.intensity * factor)
    rest = Bragg(bragg.hkl[kept], all_of_them.intensity[kept], bragg.variance[kept])
    whole, guessed = (
        absolute_scale(*data[:3], b, expectation_of(contents, 0.7), "krogh_moe") for b in (all_of_them, rest)
    )
    assert whole.estimates[0].details["esd_lost"] == 0
    # half of what was added: without it k would be 1.4 % too large
    assert guessed.estimates[0].details["esd_lost"] > 0.006 * K
    assert guessed.k == pytest.approx(whole.k, rel=0.005)
    assert any("overloads" in w for w in guessed.warnings) and not any("overloads" in w for w in whole.warnings)


def test_wild_reflections_are_left_out():
    *data, contents = lattice_of_atoms()
    intensity = data[3].intensity.copy()
    s = np.linalg.norm(data[3].hkl @ data[0].reciprocal_matrix.T, axis=1)
    wild = np.flatnonzero(s > 1)[::50]
    intensity[wild] = np.where(wild % 2 == 0, 10.0, -10.0)
    bragg = replace(data[3], intensity=intensity)
    result = absolute_scale(*data[:3], bragg, expectation_of(contents, 0.7), "krogh_moe")
    assert result.k == pytest.approx(K, rel=0.01)


@pytest.mark.parametrize("offset", [0.0, 0.02])
def test_noise_has_no_scale(offset):
    """Intensities that scatter about 0, or are all a little too high because the background was badly known."""
    *data, contents = lattice_of_atoms(cell=(12.0, 13.0, 14.0, 90, 90, 90))
    bragg, rng = data[3], np.random.default_rng(4)
    sigma = np.full(len(bragg.intensity), 0.3)
    noise = Bragg(bragg.hkl, offset * sigma + sigma * rng.normal(size=len(sigma)), sigma**2)
    with pytest.raises(DiffuseError, match="Bragg reflections are no more than noise"):
        absolute_scale(*data[:3], noise, expectation_of(contents, 0.7))
    asked_for = absolute_scale(*data[:3], noise, expectation_of(contents, 0.7), "krogh_moe")
    assert any("no more than noise" in text for text in asked_for.warnings)


@pytest.mark.parametrize("strength", [0.3, 3.0, 100.0])
def test_weak_reflections_are_no_noise(strength):
    """Wilson's distribution, its mean so many errors."""
    rng = np.random.default_rng(5)
    n = 3000
    wilson = strength * rng.exponential(size=n) + rng.normal(size=n)
    index = np.arange(n)
    known = np.ones(n, dtype=bool)
    assert not only_noise(UniqueBragg(np.zeros((n, 3), int), 0.1 + 1e-4 * index, np.ones(n), known, wilson, np.ones(n)))


def test_a_background_that_was_not_subtracted_is_said_and_covered_by_the_uncertainty():
    *data, contents = lattice_of_atoms(background=8.0)
    result = absolute_scale(*data, expectation_of(contents, 0.7), "krogh_moe", subtracted=False)
    assert result.k < 0.9 * K
    assert abs(result.k - K) < 2 * result.esd
    assert any("no background images" in w for w in result.warnings)


def model_of(contents, data, b=0.0, rng=None):
    """Expectation with squared structure factors that are those of the data, more blurred by B = b."""
    bragg = data[3]
    s = np.linalg.norm(bragg.hkl @ data[0].reciprocal_matrix.T, axis=1)
    f_squared = bragg.intensity * K * np.exp(-b * s**2 / 2)
    if rng is not None:
        f_squared = rng.permutation(f_squared)
    half = [tuple(h) > (0, 0, 0) for h in bragg.hkl.tolist()]
    hkl = bragg.hkl[half]
    from cctbx import crystal, miller
    from cctbx.array_family import flex as cctbx_flex

    symmetry = crystal.symmetry(data[0].unit_cell, "P 1")
    asu = miller.set(symmetry, cctbx_flex.miller_index([tuple(h) for h in hkl.tolist()]), False).map_to_asu()
    hkl = np.array(asu.indices().as_vec3_double()).astype(int)
    return replace(expectation_of(contents, 0.7), hkl=hkl, f_squared=f_squared[half])


def test_scale_from_a_model():
    """Another overall B factor does not matter, nor does a background; the B factor comes out as well."""
    *data, contents = lattice_of_atoms(background=8.0)
    result = absolute_scale(*data, model_of(contents, data, b=4.0), "auto", subtracted=False)
    assert result.method == "model"
    assert result.k == pytest.approx(K, rel=0.01)
    assert result.estimates[-1].details["delta_b"] == pytest.approx(-4.0, abs=0.05)


def check_without_model(result):
    """The scale is that of the separation; the sum rule is better here, where there is nothing but the crystal."""
    assert result.method == "separation" and abs(result.k - K) < 2 * result.esd < 0.25 * K
    assert next(e for e in result.estimates if e.method == "krogh_moe").k == pytest.approx(K, rel=0.002)


def test_a_model_in_another_laue_group(tmp_path):
    """Its atoms count, its structure factors do not; both groups are named, and what to do."""
    *data, _ = lattice_of_atoms()
    other = make_structure(data[0].unit_cell, "P 2 2 2", "O", [(0, 0, 0)], u=0.3)
    (tmp_path / "other.pdb").write_text(other.xray_structure.as_pdb_file())
    expectation = make_expectation(data[0], str(tmp_path / "other.pdb"), bulk_solvent=False, hydrogens=False)
    result = absolute_scale(*data, expectation)
    check_without_model(result)
    words = r"absolute_scale\.model=.*other\.pdb is P 2 2 2, that of the data P 1, .* Give space_group=P222 "
    assert [w for w in result.warnings if re.search(words, w)]
    with pytest.raises(DiffuseError, match="absolute_scale.method=model: .*" + words):
        absolute_scale(*data, expectation, "model")
    with pytest.raises(DiffuseError, match="needs coordinates"):
        absolute_scale(*data, make_expectation(data[0]), "model")


def test_a_model_that_does_not_fit_is_not_trusted():
    *data, contents = lattice_of_atoms()
    result = absolute_scale(*data, model_of(contents, data, rng=np.random.default_rng(0)), "auto")
    check_without_model(result)
    assert any("correlate" in w for w in result.warnings) and "correlate" in result.left_out["model"]


def test_what_threads_are_sent_and_give_back_can_be_pickled(closed, scaled, tmp_path, monkeypatch):
    """Everything is pickled on its way, and the numbers are the same bit for bit; so is the result."""
    sent = []

    def through_pickle(function, items, threads):
        for item in items:
            work, argument = pickle.loads(pickle.dumps((function, item)))
            sent.append(function)
            yield pickle.loads(pickle.dumps(work(argument)))

    for name in ("sample", "refiner", "apply"):
        monkeypatch.setattr(f"dials_diffuse.scaling.{name}.in_threads", through_pickle)
    folder, structure, _ = closed
    parameters = ScalingParameters(terms=("b",), max_observations=12_000)
    absolute = AbsoluteParameters(**model_file(tmp_path, structure), method="krogh_moe", required=True)
    assert pickle.loads(pickle.dumps((parameters, absolute))) == (parameters, absolute)
    arguments = parameters, tmp_path / "s.h5", PROVENANCE, 1
    result = scale_observations([folder / "n.h5"], *arguments, absolute=absolute)
    assert len(sent) > 20
    with ObservationFile(tmp_path / "s.h5") as file, ObservationFile(folder / "s.h5") as other:
        rows, expected = (f.read(*OBSERVATION_DTYPE.names) for f in (file, other))
    for name, column in expected.items():
        np.testing.assert_array_equal(rows[name], column)
    again = pickle.loads(pickle.dumps(result))
    assert again.absolute.k == scaled.absolute.k
    np.testing.assert_array_equal(again.refinement.model.coefficients, scaled.refinement.model.coefficients)
    np.testing.assert_array_equal(again.bragg.columns["intensity"], scaled.bragg.columns["intensity"])
