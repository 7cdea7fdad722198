"""Crystals of one call: which belong together, in which setting, and what is left out, against planted truths."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product as pairs_of

import numpy as np
import pytest
from cctbx import uctbx
from helpers.builders import PROVENANCE, small_grid
from helpers.crystals import GRID, SWAP, Made, choose, in_one_setting, intensity, make_rows, matrix_of, write_crystal
from helpers.programs import fails
from libtbx.phil import parse
from scipy.cluster.hierarchy import is_valid_linkage, leaves_list
from scipy.spatial.transform import Rotation

from dials_diffuse.cli import merge as merge_cli
from dials_diffuse.cli import scale as cli
from dials_diffuse.cli.program import keep_words
from dials_diffuse.crystals.cells import cell_clusters, cell_of, reindexed_cell
from dials_diffuse.crystals.choice import Crystal, CrystalChoice
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.crystals.pairs import Maps, Voxels
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.chosen import ChosenFile, Reindexing
from dials_diffuse.files.observations import (
    BRAGG_DTYPE,
    OBSERVATION_DTYPE,
    ExperimentSummary,
    ObservationFile,
    write_observations,
)
from dials_diffuse.maps.settings import products, settings_of_lattice
from dials_diffuse.maps.shells import anisotropic_correlation
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.report.crystals import crystals_figure, crystals_text, linkage_of_joins, save_crystals_png
from dials_diffuse.scaling.absolute import AbsoluteParameters
from dials_diffuse.scaling.layout import DIFFRACTED, coordinates, make_layout
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.terms.drift import DriftOptions

AS_THEY_ARE = CrystalParameters(reindex="none", keep="all")
SMALL = replace(GRID, d_min=3.2)
TETRAGONAL_P1 = small_grid("P 1", (20, 20, 24, 90, 90, 90), d_min=2.8)


def scale(paths, out, crystals, **options):
    parameters = ScalingParameters(
        terms=("b",), options=(DriftOptions(angle=20.0),), automatic=False, max_observations=5000, crystals=crystals
    )
    return scale_observations(paths, parameters, out, PROVENANCE, **options)


def merged(path):
    """Merged map of a file, and the correlation of its anisotropic part with the truth."""
    found = merge_observations([path], MergeParameters(n_shells=4)).map
    s = found.grid.s_magnitude(found.index)
    return found, anisotropic_correlation(found.intensity, intensity(found.grid, found.index, 1), s)


def twenty() -> list:
    """13 crystals in two settings, of three sizes, each with half of the directions; 4 of another cell; 3 bad ones."""
    rng = np.random.default_rng(0)
    crystals = []
    for k in range(13):
        a, c = (20.0, 24.0) * (1 + rng.normal(0, 0.003, 2))
        start = 0.1 * (k % 5)
        crystals.append(
            Made(
                matrix=SWAP if k % 2 and k < 12 else None,
                cell=(a, a, c, 90.0, 90.0, 90.0),
                photons=(300.0, 100.0, 30.0)[k % 3],
                directions=(start, start + 0.5),
            )
        )
    crystals += 4 * [Made(cell=(21.5, 21.5, 25.0, 90.0, 90.0, 90.0))]
    return [*crystals, Made(structure=None), Made(structure=2), Made(turn=25.0)]


def test_twenty_crystals(tmp_path, monkeypatch, capsys):
    """Two clusters of cells, two settings, noise, another structure, and one that lies otherwise than it says."""
    monkeypatch.chdir(tmp_path)
    crystals = twenty()
    paths = [str(write_crystal(tmp_path / f"{k}.h5", made, k, SMALL)) for k, made in enumerate(crystals)]
    options = ["model=b", "scale_model.b.angle=20", "automatic=False", "refinement.max_observations=5000", "nproc=1"]
    cli.run([*paths, *options])
    summary = json.loads((tmp_path / "diffuse_scaled.json").read_text())
    decided = summary["crystals"]["experiments"]

    assert [d["kept"] for d in decided] == 13 * [True] + 7 * [False]
    assert [d["verdict"] for d in decided] == 13 * ["agrees"] + 4 * ["unit cell"] + 3 * ["map"]
    assert [d["cell_cluster"] for d in decided] == 13 * [1] + 4 * [2] + 3 * [1]
    assert [d["cluster"] for d in decided[:13]] == 13 * [1] and len({d["cluster"] for d in decided[17:]} - {1}) == 3
    assert [d["sweep"] for d in decided] == [*range(13), *7 * [None]]
    given, other = summary["crystals"]["operators"]
    assert [d["operator"] for d in decided] == [other if made.matrix is not None else given for made in crystals]
    assert all(d["correlation"] > 0.9 and d["correlation_as_given"] < 0.5 for d in decided[1:12:2])
    assert all(bool(d["reason"]) != d["kept"] and d["n_common"] > 500 for d in decided if d["cell_cluster"] == 1)
    assert all("21.5" in d["reason"] for d in decided[13:17])
    assert all(abs(d["correlation"]) < 0.3 and d["esd"] < 0.15 for d in decided[17:])
    found = summary["crystals"]["pairs"]
    assert found["crystals"] == [*range(13), 17, 18, 19]
    between = np.array(found["correlation"])
    assert between[:13, :13].min() > 0.8 and np.abs(between[13:, :13]).max() < 0.3
    assert [x["crystal"] for x in summary["indexed_otherwise"]] == [1, 3, 5, 7, 9, 11]
    assert len([w for w in summary["warnings"] if "is left out" in w]) == 7
    assert any(output["path"] == "diffuse_scaled_crystals.png" for output in summary["outputs"])
    with ObservationFile("diffuse_scaled.h5") as file:
        assert [e.reindexed for e in file.experiments] == [
            None if made.matrix is None else other for made in crystals[:13]
        ]
        assert file.grid.unit_cell == pytest.approx(np.mean([made.cell for made in crystals[:13]], axis=0), rel=1e-9)

    scaled, cc = merged("diffuse_scaled.h5")
    by_hand = [
        write_crystal(tmp_path / f"hand_{k}.h5", replace(made, matrix=None), k, SMALL)
        for k, made in enumerate(crystals[:13])
    ]
    scale(by_hand, "hand.h5", AS_THEY_ARE)
    wanted, best = merged("hand.h5")
    np.testing.assert_array_equal(scaled.index, wanted.index)
    np.testing.assert_allclose(scaled.intensity, wanted.intensity, rtol=1e-9)
    assert cc == pytest.approx(best, rel=1e-9) and cc > 0.999
    scale(paths, "naive.h5", AS_THEY_ARE)
    assert merged("naive.h5")[1] < 0.97


def test_crystals_that_overlap_like_the_links_of_a_chain(tmp_path):
    """A and C have no voxel in common in the setting that is right, but in others; B tells how they fit together."""
    settings, _ = settings_of_lattice(TETRAGONAL_P1)
    assert len(settings) == 8
    crystals = [
        Made(directions=(0.0, 0.2)),
        Made(directions=(0.15, 0.35), matrix=settings[3].matrix),
        Made(directions=(0.3, 0.5)),
        Made(directions=(0.02, 0.18), structure=3),
    ]
    choice = choose(tmp_path, crystals, TETRAGONAL_P1)
    assert [c.kept for c in choice.crystals] == [True, True, True, False]
    assert choice.crystals[0].operator == choice.crystals[2].operator == "h,k,l" != choice.crystals[1].operator
    assert choice.common[0, 2] == 0 and math.isnan(choice.corrected[0, 2])
    assert in_one_setting(choice, crystals, TETRAGONAL_P1)


def test_weak_crystals_are_kept_and_bad_ones_are_not(tmp_path):
    """A crystal is left out for what its errors exclude, not for being noisy."""
    weak = [Made(photons=p, matrix=SWAP if p < 5 else None) for p in (10.0, 3.0, 1.0, 0.3)]
    bad = [Made(structure=s, photons=p) for s in (None, 5) for p in (100.0, 3.0)]
    crystals = [*4 * [Made(photons=100.0)], *weak, *bad]
    choice = choose(tmp_path, crystals)
    assert [c.kept for c in choice.crystals] == 8 * [True] + 4 * [False]
    assert in_one_setting(choice, crystals)
    assert choice.crystals[7].observed < 0.5 < 0.8 < choice.crystals[7].correlation


def test_a_crystal_too_weak_to_be_judged_is_kept_as_it_is(tmp_path):
    choice = choose(tmp_path, [Made(), Made(), Made(structure=None, photons=0.02)])
    last = choice.crystals[2]
    assert last.kept and last.verdict == "untested" and last.operator == "h,k,l" and "too weak" in last.reason
    assert choice.warnings == ()
    others = choose(tmp_path, [Made(), Made(matrix=SWAP), Made(structure=None, photons=0.02)])
    assert others.crystals[2].kept and others.crystals[2].operator == "h,k,l"
    (warning,) = others.warnings
    assert "no test of crystals 2" in warning and "others were reindexed" in warning


def test_crystals_without_common_voxels_are_kept(tmp_path):
    """Two wedges of a triclinic crystal: nothing to compare, nothing to warn of."""
    crystals = [Made(directions=(0.0, 0.2)), Made(directions=(0.25, 0.45))]
    choice = choose(tmp_path, crystals, small_grid("P 1", (19, 20, 24, 80, 95, 100), d_min=3.0))
    assert all(c.kept and c.verdict == "untested" and c.common == 0 for c in choice.crystals)
    assert choice.warnings == ()


def in_one_file(path, crystals) -> None:
    """Write the observations of several crystals to one file."""
    rows, experiments = [], []
    for k, made in enumerate(crystals):
        with ObservationFile(write_crystal(path.with_suffix(".part"), made, k, SMALL)) as file:
            rows.append(file.read(*OBSERVATION_DTYPE.names))
            experiments += file.experiments
        rows[-1]["experiment"] += k
    with write_observations(path, SMALL, experiments, PROVENANCE) as writer:
        for own in rows:
            writer.append(own)


def test_two_cells_in_one_file(tmp_path):
    """dials.diffuse_integrate brought them onto one grid, and no cell is the more usual: both are kept."""
    crystals = [Made(cell=(a, a, 24.0, 90.0, 90.0, 90.0)) for a in (20, 20.8)]
    in_one_file(tmp_path / "both.h5", crystals)
    result = scale([tmp_path / "both.h5"], tmp_path / "out.h5", CrystalParameters())
    assert [c.cell_cluster for c in result.crystals.crystals] == [1, 2]
    assert all(c.kept and c.verdict == "agrees" for c in result.crystals.crystals)


def test_a_polar_axis_up_and_down(tmp_path):
    """P31 on its lattice has four settings, and two of them turn the polar axis. The maps tell which is which."""
    grid = small_grid("P 31", (20, 20, 24, 90, 90, 120), d_min=3.0)
    settings, _ = settings_of_lattice(grid)
    assert len(settings) == 4 and sum(s.matrix[2, 2] < 0 for s in settings) == 2
    rng = np.random.default_rng(1)
    crystals = [
        Made(directions=(a, a + 0.15), matrix=settings[k].matrix, photons=p)
        for k, a, p in zip(rng.permutation(12) % 4, rng.uniform(0, 0.35, 12), rng.choice([300.0, 30.0, 3.0], 12))
    ]
    choice = choose(tmp_path, crystals, grid)
    assert all(c.kept and c.verdict == "agrees" for c in choice.crystals)
    assert in_one_setting(choice, crystals, grid)
    assert sum(c.operator == "h,k,l" for c in choice.crystals) == 3


def test_settings_that_are_alike_are_left_as_they_are(tmp_path):
    """A structure of higher symmetry than its space group says: both settings are right, and no crystal is touched."""
    crystals = [Made(symmetry="P 4 2 2", directions=(a, a + 0.3)) for a in (0.0, 0.2, 0.5, 0.6)]
    choice = choose(tmp_path, crystals)
    assert choice.quiet and len(choice.operators) == 2
    assert choice.warnings == ()


def test_without_majority_all_are_kept_and_the_user_is_told(tmp_path):
    choice = choose(tmp_path, [Made(), Made(structure=2)])
    assert all(c.kept for c in choice.crystals)
    assert any("no cluster of crystals is larger" in w and "crystals.cluster" in w for w in choice.warnings)
    chosen = choose(tmp_path, [Made(), Made(structure=2)], cluster=2)
    assert [c.kept for c in chosen.crystals] == [False, True]


def test_what_the_user_may_choose(tmp_path):
    other_cell = Made(cell=(21.5, 21.5, 25.0, 90.0, 90.0, 90.0))
    crystals = [Made(), Made(matrix=SWAP), Made(), Made(), *2 * [Made(structure=2)], other_cell]
    for options, wanted, turned in (
        ({}, [1, 1, 1, 1, 0, 0, 0], [1]),
        ({"keep": "all"}, [1, 1, 1, 1, 1, 1, 1], [1]),
        ({"reindex": "none"}, [1, 0, 1, 1, 0, 0, 0], []),
        ({"cluster": 2}, [0, 0, 0, 0, 1, 1, 0], []),
        ({"cell_cluster": 2}, [0, 0, 0, 0, 0, 0, 1], []),
    ):
        choice = choose(tmp_path, crystals, SMALL, **options)
        assert [int(c.kept) for c in choice.crystals] == wanted
        assert [k for k, c in enumerate(choice.crystals) if c.operator != "h,k,l"] == turned
        assert all(bool(c.reason) for c in choice.crystals if not c.kept)
        assert ("indexed otherwise" in choice.crystals[1].reason) == (options == {"reindex": "none"})
    for options, message in (({"cluster": 4}, "only 2 clusters"), ({"cell_cluster": 3}, "only 2 clusters")):
        with pytest.raises(DiffuseError, match=message):
            choose(tmp_path, crystals, SMALL, **options)


def test_two_cells_and_no_majority_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, cell in (("a.h5", None), ("b.h5", (21.0, 21.0, 24.0, 90.0, 90.0, 90.0))):
        write_crystal(name, Made(cell=cell), 0, SMALL)
    words = [
        "a.h5 and b.h5 cannot be merged",
        "(20, 20, 24, 90, 90, 90)",
        "(21, 21, 24",
        "crystals.cell_cluster=1 or 2",
    ]
    for program in (cli, merge_cli):
        fails(program.run, ["a.h5", "b.h5"], capsys, words=words)
    assert not (tmp_path / "diffuse_scaled.h5").exists()


def test_merging_chooses_as_scaling_does(tmp_path, monkeypatch):
    """Files that were not scaled: the same choice, and the map of crystals indexed by hand."""
    monkeypatch.chdir(tmp_path)
    crystals = [Made(), Made(matrix=SWAP), Made(), Made(structure=2)]
    paths = [write_crystal(f"{k}.h5", made, k, SMALL) for k, made in enumerate(crystals)]
    merge_cli.run([*paths, "output.map=auto.nxs"])
    summary = json.loads((tmp_path / "diffuse_merged.json").read_text())
    assert [d["kept"] for d in summary["crystals"]["experiments"]] == [True, True, True, False]
    assert (tmp_path / "diffuse_merged_crystals.png").stat().st_size > 10_000
    hand = [paths[0], write_crystal("hand.h5", Made(), 1, SMALL), paths[2]]
    found = merge_observations(paths, MergeParameters(n_shells=3))
    wanted = merge_observations(hand, MergeParameters(n_shells=3, crystals=AS_THEY_ARE))
    np.testing.assert_allclose(found.map.intensity, wanted.map.intensity, rtol=1e-12)
    assert found.identifiers == wanted.identifiers and len(found.identifiers) == 3


def bragg_rows(seed: int, matrix) -> np.ndarray:
    """Reflections with the symmetry of SMALL and some noise, indexed otherwise by the matrix."""
    hkl = np.array(list(pairs_of(range(-6, 7), repeat=3)))
    hkl = hkl[SMALL.inside(2 * hkl)]
    rng = np.random.default_rng(seed)
    asu, _ = map_to_asu(hkl, SMALL.space_group)
    rows = np.zeros(len(hkl), BRAGG_DTYPE)
    rows["hkl"], rows["s"] = hkl @ matrix, SMALL.s_magnitude(2 * hkl)
    size = 2000 * np.exp(-8 * rows["s"]) * (1 + np.sin(asu @ [1, 2, 3]))
    rows["intensity"] = size * rng.normal(1, 0.05, len(hkl))
    rows["variance"] = (0.05 * size + 1) ** 2
    rows["xyz"] = np.transpose(
        [rng.uniform(0, 487, len(hkl)), rng.uniform(0, 407, len(hkl)), rng.uniform(0, 40, len(hkl))]
    )
    return rows


def test_a_reindexed_crystal_is_on_the_same_absolute_scale(tmp_path):
    """Bragg reflections go with the setting: k and its error are those of crystals that are indexed alike."""
    results = []
    for name, matrix in (("alike", np.eye(3, dtype=int)), ("otherwise", SWAP)):
        paths = [
            write_crystal(tmp_path / f"{name}_{k}.h5", Made(matrix=m), k, SMALL, bragg_rows(k, m))
            for k, m in enumerate((np.eye(3, dtype=int), np.eye(3, dtype=int), matrix))
        ]
        absolute = AbsoluteParameters(method="krogh_moe", required=True)
        results.append(scale(paths, tmp_path / f"{name}.h5", CrystalParameters(), absolute=absolute))
    alike, otherwise = results
    assert alike.crystals.quiet and otherwise.crystals.crystals[2].operator != "h,k,l"
    assert otherwise.absolute.k == pytest.approx(alike.absolute.k, rel=1e-9)
    assert otherwise.absolute.esd == pytest.approx(alike.absolute.esd, rel=1e-9)
    coefficients = [result.refinement.model.coefficients for result in results]
    np.testing.assert_allclose(coefficients[1], coefficients[0], rtol=1e-6, atol=1e-9)
    maps = [merged(tmp_path / f"{name}.h5")[0] for name in ("alike", "otherwise")]
    np.testing.assert_allclose(maps[1].intensity, maps[0].intensity, rtol=1e-6)


def test_reading_only_some_experiments_in_other_settings(tmp_path):
    """Three crystals in a file, the second left out, the third reindexed: its rows point where they did."""
    rng = np.random.default_rng(4)
    names, rows, bragg, heads = ("a", "b", "c"), [], [], []
    for k in range(3):
        own = make_rows(Made(photons=5.0), rng, SMALL)[:2000]
        own["experiment"] = k
        reflections = bragg_rows(k, np.eye(3, dtype=int))
        reflections["experiment"] = k
        rows.append(own)
        bragg.append(reflections)
        orientation = Rotation.random(random_state=k).as_matrix() @ SMALL.reciprocal_matrix
        heads.append((tuple(orientation.ravel()), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)))
    experiments = [ExperimentSummary(n, (1, 40), (0.0, 1.0), 40, 1.0, 1, (487, 407), *h) for n, h in zip(names, heads)]
    order = rng.permutation(6000)
    with write_observations(tmp_path / "x.h5", SMALL, experiments, PROVENANCE) as writer:
        writer.append(np.concatenate(rows)[order])
        writer.append_bragg(np.concatenate(bragg), np.arange(3.0 * len(bragg[0])))
    matrix = matrix_of("h,h+k,l")  # its inverse is not its transpose
    change = Reindexing("h,h+k,l", matrix, matrix)
    with ObservationFile(tmp_path / "x.h5") as file:
        chosen = ChosenFile(file, {0: None, 2: change})
        assert chosen.numbers == (0, 2) and chosen.n_rows == 4000
        assert [e.identifier for e in chosen.experiments] == ["a", "c"]
        assert [e.reindexed for e in chosen.experiments] == [None, change.operator]
        blocks = [block for _, block in chosen.chunks(*OBSERVATION_DTYPE.names, size=700)]
        read = {name: np.concatenate([block[name] for block in blocks]) for name in OBSERVATION_DTYPE.names}
        everything = file.read(*OBSERVATION_DTYPE.names)
        assert set(next(iter(chosen.chunks("counts")))[1]) == {"counts"}
        reflections, all_reflections = chosen.read_bragg(), file.read_bragg()
    wanted = {name: column[everything["experiment"] != 1] for name, column in everything.items()}
    third = wanted["experiment"] == 2
    assert np.array_equal(read["experiment"], third.astype(int))
    np.testing.assert_array_equal(read["index"][third], wanted["index"][third] @ matrix)
    np.testing.assert_array_equal(read["index"][~third], wanted["index"][~third])
    for name in set(OBSERVATION_DTYPE.names) - {"experiment", "index"}:
        np.testing.assert_array_equal(read[name], wanted[name])
    x = [
        coordinates(make_layout(e, SMALL), block["experiment"].astype(int), block)
        for e, block in (
            (chosen.experiments, read),
            ([experiments[0], None, experiments[2]][::2], {**wanted, "experiment": read["experiment"]}),
        )
    ]
    np.testing.assert_allclose(x[0], x[1], atol=1e-12)
    assert np.ptp(x[0][:, DIFFRACTED:]) > 1
    kept = all_reflections["experiment"] != 1
    third = all_reflections["experiment"][kept] == 2
    np.testing.assert_array_equal(reflections["hkl"][third], all_reflections["hkl"][kept][third] @ matrix)
    for name in ("intensity", "inverse_scale_factor", "xyz"):
        np.testing.assert_array_equal(reflections[name], all_reflections[name][kept])


def test_crystals_of_one_file_are_chosen_one_by_one(tmp_path):
    """Their cells are those of their orientations: the grid of the file has the mean. Numbers are those of the file."""
    made = [Made(), Made(cell=(20.9, 20.9, 24.0, 90.0, 90.0, 90.0)), Made(structure=2), Made(matrix=SWAP)]
    in_one_file(tmp_path / "four.h5", made)
    paths = [tmp_path / "four.h5", write_crystal(tmp_path / "more.h5", Made(), 7, SMALL)]
    result = scale(paths, tmp_path / "out.h5", CrystalParameters())
    assert [c.kept for c in result.crystals.crystals] == [True, False, False, True, True]
    assert [c.verdict for c in result.crystals.crystals][1:3] == ["unit cell", "map"]
    assert result.crystals.crystals[1].unit_cell == pytest.approx(made[1].cell)
    assert result.origins == ((paths[0], 0), (paths[0], 3), (paths[1], 0))
    assert result.grid.unit_cell == pytest.approx(SMALL.unit_cell)
    with ObservationFile(tmp_path / "out.h5") as file:
        assert [e.identifier for e in file.experiments] == ["crystal-0", "crystal-3", "crystal-7"]
        assert set(file.read("experiment")["experiment"]) == {0, 1, 2}


@pytest.mark.parametrize("symbol, cell", [("P 31", (20, 20, 24, 90, 90, 120)), ("P 1", (20, 20, 20, 90, 90, 90))])
def test_one_setting_after_another(symbol, cell):
    grid = small_grid(symbol, cell)
    settings, _ = settings_of_lattice(grid)
    table = products(settings, grid.space_group)
    n = len(settings)
    assert n == {"P 31": 4, "P 1": 24}[symbol]
    assert np.array_equal(table[0], np.arange(n)) and np.array_equal(table[:, 0], np.arange(n))
    index = np.random.default_rng(0).integers(-9, 10, (40, 3))
    for a, b in pairs_of(range(n), repeat=2):
        twice, once = (
            map_to_asu(index @ m, grid.space_group)[0]
            for m in (settings[a].matrix @ settings[b].matrix, settings[table[a, b]].matrix)
        )
        np.testing.assert_array_equal(twice, once)


def test_correlations_against_a_slow_sum():
    """ρ of maps in all settings, from a sum over voxels one by one; and its scatter between parts."""
    rng = np.random.default_rng(2)
    n = 600
    source = np.array([np.arange(n), rng.permutation(n)])
    source[1, :20] = -1
    value, variance = rng.normal(size=(n, 3)), rng.uniform(0.1, 3, (n, 3))
    missing = rng.random((n, 3)) < 0.3
    value[missing], variance[missing] = 0.0, np.inf
    first = np.arange(0, n, 30)
    found = Voxels(first, source, 1.5).compare(Maps(value, variance), Maps(value, variance))
    for k, i, j in pairs_of(range(2), range(3), range(3)):
        top, bottom, common = np.zeros(20), np.zeros(20), 0
        for v in range(n):
            u = source[k, v]
            if u < 0 or missing[u, i] or missing[v, j]:
                continue
            weight = 1 / (variance[u, i] + 1) / (variance[v, j] + 1)
            top[v // 30] += weight * value[u, i] * value[v, j]
            bottom[v // 30] += weight
            common += 1
        rho = top.sum() / bottom.sum()
        spread = np.sum((top - rho * bottom) ** 2) / bottom.sum() ** 2 * 20 / 19
        error = max(spread, 1.5 / bottom.sum())
        excess = max(abs(rho), 1)
        assert found.common[k, i, j] == common
        assert found.rho[k, i, j] == pytest.approx(rho / excess)
        assert found.variance[k, i, j] == pytest.approx(error / excess**2)


def test_errors_tell_how_far_correlations_are_off(tmp_path):
    """Twelve structures that have nothing to do with each other, strong and weak: ρ is 0 within its errors."""
    choice = choose(tmp_path, [Made(structure=k, photons=(100.0, 2.0, 0.5)[k % 3]) for k in range(12)])
    rows, columns = np.tril_indices(12, -1)
    rho, esd = choice.corrected[rows, columns], choice.esd[rows, columns]
    assert 0.6 < np.sqrt(np.mean((rho / esd) ** 2)) < 1.4
    assert np.abs(rho / esd).max() < 4
    assert esd.min() < 0.07 < 0.11 < esd.max()


def test_cells_after_a_change_of_the_setting():
    """A reflection keeps its d-spacing; and a matrix A has the cell that it was made of."""
    cell = (20.0, 20.3, 24.0, 88.0, 91.0, 104.0)
    for operator in ("k,h,-l", "l,h,k", "h,h+k,l"):
        matrix = matrix_of(operator)
        old, new = uctbx.unit_cell(cell), uctbx.unit_cell(reindexed_cell(cell, matrix))
        for hkl in ((1, 0, 0), (0, 2, 1), (3, -1, 2)):
            assert new.d(tuple((np.array(hkl) @ matrix).tolist())) == pytest.approx(old.d(hkl))
    b = np.array(uctbx.unit_cell(cell).fractionalization_matrix()).reshape(3, 3).T
    assert cell_of((Rotation.random(random_state=1).as_matrix() @ b).ravel()) == pytest.approx(cell)


def test_clusters_of_cells():
    """The largest is 0; a drift of cells is one cluster as long as it holds together."""
    base = np.array([20.0, 20.0, 24.0, 90.0, 90.0, 90.0])
    near = [base * (1 + x) for x in (0.0, 0.004, -0.004, 0.006)]
    far = [base * (1, 1, 1.05, 1, 1, 1), base + (0, 0, 0, 3, 0, 0)]
    assert cell_clusters([far[0], *near, far[1]], 0.02).tolist() == [1, 0, 0, 0, 0, 2]
    assert cell_clusters([base], 0.02).tolist() == [0]
    assert cell_clusters([*near, *far], 0.2).tolist() == 6 * [0]


def test_joins_are_a_tree_as_scipy_has_it():
    tree = linkage_of_joins(((0, 2, 0.9), (3, 1, 0.95), (1, 2, 0.4), (4, 0, -0.2)), 5)
    assert is_valid_linkage(tree)
    assert tree[:, 2].tolist() == pytest.approx([0.1, 0.1 - 0.05, 0.6, 1.2])
    assert tree[:, 3].tolist() == [2, 2, 4, 5] and sorted(leaves_list(tree)) == list(range(5))


def test_the_picture_of_many_crystals(tmp_path):
    """Seventy, one of another cell: the whole matrix, in the order of the tree, without numbers that nobody reads."""
    n = 69
    crystals = [Crystal(f"{k}.h5", 0, str(k), (20.0,) * 6, 1, "h,k,l", k > 4, "agrees", "") for k in range(n)]
    crystals.append(Crystal("x.h5", 0, "x", (30.0,) * 6, 2, "h,k,l", False, "unit cell", "too large"))
    rho = np.where(np.add.outer(np.arange(n) < 5, np.arange(n) < 5), 0.0, 0.9)
    rho[7, 8] = rho[8, 7] = np.nan
    joins = tuple((k - 1, k, 0.9) for k in range(6, n)) + tuple((k, 5, 0.1 * k) for k in range(4, -1, -1))
    choice = CrystalChoice(
        tuple(crystals), ("h,k,l",), np.arange(n), rho, rho, np.full((n, n), 0.1), np.full((n, n), 99), joins, 0.9, ()
    )
    figure = crystals_figure(choice)
    matrix = figure.axes[1].images[0].get_array()
    assert matrix.shape == (n, n) and np.count_nonzero(matrix.mask) == n + 2
    assert len(figure.axes[1].get_xticks()) == 0 and not figure.axes[1].texts
    strong = np.count_nonzero(matrix.filled(0) > 0.5, axis=0) > 0  # the five that are left out are at one end
    assert np.count_nonzero(np.diff(strong)) == 1 and np.count_nonzero(~strong) == 5
    assert "64 of 70 crystals are kept; 1 of other unit cells" in figure.texts[0].get_text()
    (output,) = save_crystals_png(tmp_path / "c.png", choice)
    assert (tmp_path / "c.png").stat().st_size > 10_000 and output.kind == "picture"
    assert save_crystals_png(None, choice) == []
    assert len(crystals_text(choice).splitlines()) == 70 + 6


def test_two_crystals_that_agree_are_told_of_in_a_line(tmp_path):
    choice = choose(tmp_path, [Made(), Made()], SMALL)
    assert choice.quiet and choice.warnings == ()
    text = crystals_text(choice)
    assert "\n" not in text and "agree" in text
    three = crystals_text(choose(tmp_path, [Made(), Made(matrix=SWAP), Made(structure=None)], SMALL))
    assert len(three.splitlines()) > 5 and "no majority" not in three


@pytest.mark.parametrize(
    "options, words",
    [
        ({"reindex": "maybe"}, "reindex=maybe"),
        ({"keep": "some"}, "crystals.keep=some"),
        ({"cluster": 0}, "crystals.cluster=0"),
        ({"cell_cluster": 2, "keep": "all"}, "exclude each other"),
        ({"cell_tolerance": 0.0}, "crystals.cell_tolerance=0"),
        ({"min_correlation": 1.0}, "crystals.min_correlation=1"),
    ],
)
def test_parameters_are_checked(options, words):
    with pytest.raises(DiffuseError, match=words):
        CrystalParameters(**options)


def test_parameters_of_the_programs_are_those_of_the_library():
    given = parse("reindex=none\ncrystals.keep=auto\ncrystals.cluster=3\ncrystals.cell_tolerance=0.01")
    for program in (cli, merge_cli):
        assert CrystalParameters.from_phil(program.phil_scope.extract()) == CrystalParameters()
        params = program.phil_scope.fetch(given).extract()
        keep_words(program.phil_scope, params)
        wanted = CrystalParameters(reindex="none", cluster=3, cell_tolerance=0.01)
        assert program.parameters_from_phil(params).crystals == wanted
