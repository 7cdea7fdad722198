"""The 3D-ΔPDF against sums over pairs of atoms, and what is known of motions that were put in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import all_voxels, small_grid
from helpers.delta_pdf import AXIS, moving, pair_delta_pdf, two_domains, without_isotropic
from helpers.exports import CRYSTALS, measured_map
from helpers.structures import GROUP_NAMES, GROUPS, random_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.fourier import BRAGG, DeltaPdfParameters, delta_pdf
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.peaks import PeakParameters, find_peaks
from dials_diffuse.maps.shells import BIN_WIDTH, equal_count_residual, less_group_means
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels, unique_voxels
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.vectors import match_vectors

D_MIN, WEIGHT = 1.8, 0.02


def domains_pdf(apart: bool):
    """The ΔPDF of two domains, with the structure, the vector between them, and the truth at Cartesian vectors."""
    structure, between = two_domains()
    shared = moving(structure, 0.4, apart)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), D_MIN)
    data = compute_model(structure, grid, Covariance(kernel="free", matrix=shared)).map
    own = shared.copy()
    own[np.arange(structure.n_atoms), np.arange(structure.n_atoms)] = structure.u_cart
    apodisation = -math.log(WEIGHT) * D_MIN**2
    found = delta_pdf(data, DeltaPdfParameters(weight_at_d_min=WEIGHT))
    return found, structure, between, lambda r: pair_delta_pdf(structure, own, r, apodisation)


def at(found, vectors):
    """Values at the points next to Cartesian vectors."""
    fractional = np.atleast_2d(vectors) @ found.grid.reciprocal_matrix
    index = np.rint(fractional / np.array(found.grid.subdivide) * found.values.shape).astype(int) + found.origin
    return found.values[tuple((index % found.values.shape).T)]


@pytest.fixture(scope="module")
def apart():
    return domains_pdf(True)


def test_it_is_the_sum_over_pairs_of_a_covariance_model(apart):
    """Absolutely: the slope is 1. Monoclinic, so that axes that are not at right angles matter."""
    found, _, _, truth = apart
    rng = np.random.default_rng(0)
    index = rng.integers(0, found.values.shape, (6000, 3))
    r = found.vectors(index)
    near = np.linalg.norm(r, axis=1) < 13
    index, r = index[near], r[near]
    expected = without_isotropic(truth, r, 14.0)
    values = found.values[tuple(index.T)]
    assert len(r) > 500
    assert np.corrcoef(values, expected)[0, 1] > 0.98
    assert values @ expected / (expected @ expected) == pytest.approx(1, abs=0.02)
    assert found.filled.measured == pytest.approx(1) and found.filled.bragg == 0
    assert found.units == "electron^2 per unit cell / A^3"


def test_domains_that_move_apart_have_a_negative_and_a_positive_pair(apart):
    found, structure, between, _ = apart
    along = between + np.array([-2.0, 0.0, 2.0])[:, None] * AXIS
    before, middle, after = at(found, along)
    assert middle < 0 < min(before, after)
    # the largest peak away from the origin is at this vector, and the atoms that it names are in different domains
    peaks = find_peaks(found, PeakParameters(n=3, r_min=4.0))
    assert peaks[0].height < 0 and peaks[0].length == pytest.approx(8.0, abs=0.7)
    mates = np.array([turn @ peaks[0].vector for turn in structure.rotations])
    assert min(np.linalg.norm(np.concatenate([mates, -mates]) - between, axis=1)) < 0.5
    (match,) = match_vectors(structure, np.array([peaks[0].vector]), radius=1.5, n_nearest=6)
    domains = [{pair.first.split("/")[1], pair.second.split("/")[1]} for pair in match.nearest]
    assert {"UNK 1", "UNK 2"} in domains
    # what they have as a pair they have not when they move to the same side
    together = domains_pdf(False)[0]
    before, middle, after = at(together, along)
    assert middle > 0 > max(before, after)


def test_that_of_liquid_like_motions_decays_with_gamma():
    """P(r) = c(|r|) f(r), with f the same for all gamma: two differ by the ratio of their kernels.

    As long as few orders matter; and not exactly, as a peak is not narrow compared with gamma.
    """
    structure, _ = two_domains()
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 2.0)
    gammas = (4.0, 8.0)
    model = LiquidLikeMotions(sigma=0.15, gamma=1.0, orders=1)
    first, second = (delta_pdf(compute_model(structure, grid, replace(model, gamma=g)).map) for g in gammas)
    length = first.lengths()
    for r in (4.0, 6.0, 8.0, 10.0, 12.0, 14.0):  # the kernels' ratio goes from 0.61 to 0.17
        shell = np.abs(length - r) < 0.5
        # what the isotropic part lacks, because a shell has few voxels, is isotropic here, too
        thin = (length[shell] * 4).astype(int) - int(4 * r - 3)
        a, b = (less_group_means(x.values[shell].astype(float), thin) for x in (first, second))
        distance = length[shell].astype(float)
        expected = np.exp(-distance * (1 / gammas[0] - 1 / gammas[1])) @ b**2 / (b @ b)
        assert (a @ b) / (b @ b) == pytest.approx(expected, rel=0.12), r


# ---- the transform itself


@pytest.mark.parametrize("crystal", CRYSTALS)
def test_it_is_the_sum_over_voxels(crystal):
    """Without anything removed but the isotropic part, voxel by voxel; at points that the transform has by chance."""
    data = replace(measured_map(crystal, share=1.0), at_centres=True)
    found = delta_pdf(data, DeltaPdfParameters(bragg="none", weight_at_d_min=0.3))
    grid = found.grid
    index = all_voxels(grid)
    back = delta_pdf(data, DeltaPdfParameters(bragg="none", weight_at_d_min=0.3, spacing=0.4))
    weights = 0.3 ** (grid.s_magnitude(index) * grid.d_min) ** 2
    residual = data.volume(residual_of(data), dtype=float)[tuple((index + grid.extent).T)]
    for result in (found, back):
        points = np.random.default_rng(1).integers(0, result.values.shape, (20, 3))
        phase = 2 * np.pi * (index / grid.subdivide) @ result.fractional(points).T
        volume = abs(np.linalg.det(grid.reciprocal_matrix)) / np.prod(grid.subdivide)
        expected = volume * (residual * weights) @ np.cos(phase)
        np.testing.assert_allclose(result.values[tuple(points.T)], expected, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_allclose(
            np.linalg.norm(result.vectors(points), axis=1), result.lengths()[tuple(points.T)], 1e-5
        )
    for operator in laue_operators(grid.space_group, True):
        # P(R r) = P(r): in the file as well
        shape = np.array(found.values.shape)
        mates = np.rint((points - found.origin) / shape * grid.subdivide @ operator.T / grid.subdivide * shape)
        if np.allclose(mates, (points - found.origin) / shape * grid.subdivide @ operator.T / grid.subdivide * shape):
            mates = (mates.astype(int) + found.origin) % shape
            ours = (points % shape).astype(int)
            np.testing.assert_allclose(found.values[tuple(mates.T)], found.values[tuple(ours.T)], atol=1e-5)


def residual_of(data):
    """What :func:`delta_pdf` transforms of a map without holes: lines through shells of 400 voxels taken off."""
    s = data.grid.s_magnitude(data.index)
    n = max(min(round(np.ptp(s) / BIN_WIDTH), len(s) // 400), 1)
    return equal_count_residual(data.intensity, s, n)


# ---- Bragg positions and holes


def halo_map(share=1.0, seed=0, **options):
    """A map that is smooth, but for what lies at lattice points; of some voxels nothing is known."""
    grid = small_grid("P 41", (12.0, 12.0, 18.0, 90.0, 90.0, 90.0), (3, 3, 3), 2.5)
    rng = np.random.default_rng(seed)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[rng.uniform(size=len(index)) < share]
    smooth = 5 + np.cos(2 * np.pi * grid.s(index)[:, 2] * 2) + np.cos(2 * np.pi * grid.s(index)[:, :2] * 2).sum(axis=1)
    bragg = np.all(index % 3 == 0, axis=1)
    ones = np.ones(len(index))
    values = {"multiplicity": ones.astype(np.int32), "sigma": 0.1 * ones, "friedel": True} | options
    return DiffuseMap(grid, index=index, intensity=smooth + 100 * bragg, **values), smooth


def test_bragg_positions_are_punched_and_filled():
    data, smooth = halo_map()
    clean = replace(data, intensity=smooth)
    options = {"undo_voxels": False, "weight_at_d_min": 0.3}
    truth = delta_pdf(clean, DeltaPdfParameters(bragg="none", **options))
    scale = truth.values.std()
    differences = {
        bragg: (delta_pdf(data, DeltaPdfParameters(bragg=bragg, **options)).values - truth.values).std() / scale
        for bragg in BRAGG
    }
    assert differences["none"] > 1  # peaks at all lattice vectors
    assert differences["auto"] == differences["neighbours"] < 0.4 * differences["shell"] < 0.1
    found = delta_pdf(data, DeltaPdfParameters(**options))
    assert found.parameters.bragg == "neighbours"
    assert found.filled.bragg == found.filled.neighbours == pytest.approx(1 / 27, abs=0.01)
    missing = ~np.all(data.index % 3 == 0, axis=1)
    lacking = replace(data, **{n: getattr(data, n)[missing] for n in ("index", "intensity", "sigma", "multiplicity")})
    np.testing.assert_allclose(delta_pdf(lacking, DeltaPdfParameters(**options)).values, found.values, atol=1e-6)
    assert delta_pdf(lacking, DeltaPdfParameters(**options)).filled == found.filled
    assert found.filled.measured + found.filled.neighbours + found.filled.shell == pytest.approx(1)
    model = delta_pdf(replace(data, multiplicity=0 * data.multiplicity), DeltaPdfParameters(**options))
    assert model.parameters.bragg == "none"


def test_what_a_centring_leaves_empty_is_no_bragg_position():
    data = measured_map("monoclinic", share=1.0)
    found = delta_pdf(data)
    index = all_voxels(data.grid) // 1
    whole = np.all(index % data.grid.subdivide == 0, axis=1)
    h, k, _ = (index // data.grid.subdivide).T
    assert found.filled.bragg == pytest.approx(np.mean(whole & ((h + k) % 2 == 0)), rel=1e-6)


def test_shares_count_mates_and_holes_are_the_isotropic_mean():
    data, _ = halo_map(share=0.7)
    found = delta_pdf(data, DeltaPdfParameters(bragg="none", undo_voxels=False))
    volume = data.volume()
    inside = all_voxels(data.grid)
    assert found.filled.measured == pytest.approx(np.isfinite(volume).sum() / len(inside), rel=1e-9)
    assert found.filled.shell == pytest.approx(1 - found.filled.measured)
    # the value at 0 is the sum over voxels: holes add nothing to what the others have
    weights = 0.05 ** (data.grid.s_magnitude(data.index) * data.grid.d_min) ** 2
    mates = [len({tuple(h @ r) for r in laue_operators(data.grid.space_group, True)}) for h in data.index]
    total = (residual_of(data) * weights * mates).sum() * abs(np.linalg.det(data.grid.reciprocal_matrix)) / 27
    assert found.values[found.origin] == pytest.approx(total, rel=1e-4)


def test_only_lattice_points_are_refused():
    grid = small_grid("P 41", subdivide=(1, 1, 1))
    index = np.concatenate(list(possible_voxels(grid)))
    data = DiffuseMap(grid, True, index, *np.ones((2, len(index))), np.ones(len(index), np.int32))
    with pytest.raises(DiffuseError, match=r"delta_pdf.bragg=none"):
        delta_pdf(data)
    assert delta_pdf(data, DeltaPdfParameters(bragg="none")).filled.measured == pytest.approx(1)


def test_friedel_mates_are_averaged():
    data = measured_map("trigonal", friedel=False, share=1.0)
    orbits = unique_voxels(data.index, data.grid.space_group, True)
    count = np.bincount(orbits.inverse)
    columns = {n: np.bincount(orbits.inverse, getattr(data, n)) / count for n in ("intensity", "half_a")}
    columns["half_b"] = np.full(len(count), np.nan)
    merged = replace(data, friedel=True, index=orbits.index, sigma=count * 1.0, multiplicity=count, **columns)
    np.testing.assert_allclose(delta_pdf(data).values, delta_pdf(merged).values, atol=1e-6)


# ---- voxels and noise


def test_means_over_voxels_are_undone():
    """One pair of atoms at rest in a crystal that varies from cell to cell: cos(2π s·r), over voxels and at centres."""
    grid = small_grid("P 1", (10.0, 11.0, 12.0, 80.0, 95.0, 107.0), (3, 2, 4), 2.0)
    index = np.concatenate(list(possible_voxels(grid)))
    r = np.array([0.9, -0.4, 1.3])  # fractions of the cell
    phase = 2 * np.pi * (index / grid.subdivide) @ r
    mean = np.prod(np.sinc(r / grid.subdivide))
    columns = {"sigma": np.zeros(len(index)), "multiplicity": np.zeros(len(index), np.int32)}
    centre = DiffuseMap(grid, True, index, np.cos(phase), at_centres=True, **columns)
    voxels = DiffuseMap(grid, True, index, np.cos(phase) * mean, **columns)
    heights = {}
    for name, data, undo in (("centre", centre, None), ("undone", voxels, None), ("mean", voxels, False)):
        found = delta_pdf(data, DeltaPdfParameters(undo_voxels=undo, spacing=0.3))
        (peak,) = find_peaks(found, PeakParameters(n=1, min_sigma=0))
        assert peak.mates == 2 and math.isnan(peak.sigma)
        np.testing.assert_allclose(np.abs(peak.fractional), np.abs(r), atol=0.01)
        heights[name] = peak.height
    assert heights["undone"] == pytest.approx(heights["centre"], rel=0.02)
    assert heights["mean"] == pytest.approx(mean * heights["centre"], rel=0.02)


@pytest.mark.parametrize("crystal", ["monoclinic", "trigonal"])
def test_sigma_is_the_scatter_of_repeated_measurements(crystal):
    maps = [measured_map(crystal, seed=seed, share=1.0) for seed in range(8)]
    found = [delta_pdf(data, DeltaPdfParameters(undo_voxels=False, spacing=1.5)) for data in maps]
    scatter = np.std([x.values for x in found], axis=0, ddof=1)
    limits, _ = found[0].sigma_of_length()
    shell = np.searchsorted(limits, found[0].lengths(), side="right")
    rms = np.sqrt(np.bincount(shell.ravel(), scatter.ravel() ** 2) / np.bincount(shell.ravel()))
    use = (np.bincount(shell.ravel()) > 100) & (np.arange(len(rms)) > 1)
    assert np.count_nonzero(use) >= 3
    mean = np.mean([x.sigma_of_length()[1] for x in found], axis=0)
    np.testing.assert_allclose(mean[use], rms[use], rtol=0.15)
    # on symmetry elements it is as much larger as peaks take it to be
    peaks = [p for x in found for p in find_peaks(x, PeakParameters(n=200, r_min=0, min_sigma=0))]
    assert {p.mates for p in peaks} >= {2, len(laue_operators(found[0].grid.space_group, True))}


@pytest.mark.parametrize("undo", [True, False])
def test_noise_has_the_peaks_of_noise(undo):
    """Also on symmetry elements, and where voxels that are undone make it larger."""
    grid = small_grid("P 31 2 1", (20.0, 20.0, 24.0, 90.0, 90.0, 120.0), (2, 2, 2), 2.0)
    index = np.concatenate(list(possible_voxels(grid)))
    n, rng = len(index), np.random.default_rng(0)
    a, b = 5 + 2**0.5 * rng.normal(size=(2, n))
    data = DiffuseMap(grid, True, index, (a + b) / 2, np.ones(n), np.ones(n, np.int32), half_a=a, half_b=b)
    found = delta_pdf(data, DeltaPdfParameters(bragg="none", undo_voxels=undo))
    peaks = find_peaks(found, PeakParameters(n=1000, min_sigma=0, r_min=2))
    height = np.abs([peak.height / peak.sigma for peak in peaks])
    special = np.array([peak.mates < 12 for peak in peaks])
    for some in (special, ~special):
        assert np.count_nonzero(some) > 100 and 3 < height[some].max() < 5
        assert 1 < np.median(height[some]) < 2.5
    assert height[0] == height.max() and len(find_peaks(found, PeakParameters(min_sigma=5))) == 0


def test_without_half_sets_there_is_no_sigma():
    found = delta_pdf(replace(measured_map("trigonal"), half_a=None, half_b=None))
    assert found.noise is None and len(found.sigma_of_length()[0]) == 0
    assert all(math.isnan(peak.sigma) for peak in find_peaks(found))


# ---- vectors between atoms


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_pairs_are_those_of_all_atoms_of_the_crystal(symbol, cell):
    structure = random_structure(symbol, cell, seed=2)
    content, rng = structure.expand(), np.random.default_rng(3)
    cells = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = (
        content.site_frac[None, :, None] + cells - content.site_frac[:, None, None]
    ) @ structure.orthogonalization.T
    for _ in range(2):
        near = vectors[np.linalg.norm(vectors, axis=-1) < 6]
        asked = near[rng.integers(len(near))] + 0.1 * rng.normal(size=3)
        distance = np.linalg.norm(vectors - asked, axis=-1)
        (match,) = match_vectors(structure, np.array([asked]), 0.5, 1)
        assert match.nearest[0].distance == pytest.approx(distance.min(), abs=1e-9)
        assert match.n_pairs == np.count_nonzero(distance < 0.5) > 0
        i, j, _ = np.argwhere(distance < distance.min() + 1e-6).T
        names = {(f"A/UNK 1/{content.name[a]}", f"A/UNK 1/{content.name[b]}") for a, b in zip(i, j)}
        assert (match.nearest[0].first, match.nearest[0].second) in names


def test_no_pair_is_near_to_a_vector_that_no_pair_has():
    structure = make_structure((20, 20, 20, 90, 90, 90), "P 1", ["C", "O"], [(0.1, 0.1, 0.1), (0.2, 0.1, 0.1)])
    (match,) = match_vectors(structure, np.array([(5.0, 5.0, 5.0)]), 1.0)
    assert match.n_pairs == 0 and match.nearest[0].distance > 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bragg": "punch"}, "delta_pdf.bragg=punch"),
        ({"weight_at_d_min": 0}, "weight_at_d_min=0"),
        ({"spacing": -1}, "delta_pdf.spacing=-1"),
        ({"d_max": 0}, "delta_pdf.d_max=0"),
    ],
)
def test_bad_values_are_refused(options, words):
    with pytest.raises(DiffuseError, match=words):
        DeltaPdfParameters(**options)
