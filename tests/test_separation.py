"""Absolute scale without coordinates: the crystal is told from air and liquid by the shapes of their curves."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import small_grid
from helpers.checkout import ROOT
from scipy import stats

from dials_diffuse.errors import DiffuseError
from dials_diffuse.scaling import separation
from dials_diffuse.scaling.absolute import absolute_scale
from dials_diffuse.scaling.scatterers import APART
from dials_diffuse.scaling.separation import separate
from dials_diffuse.scaling.totals import Bragg, Shells, mean_intensities, merge_bragg
from dials_diffuse.scaling.wilson import fit_wilson, log_damping
from dials_diffuse.simulation.plan import example_path
from dials_diffuse.structure.atoms import load_structure, make_structure
from dials_diffuse.structure.composition import average_contents, contents_of_sequence
from dials_diffuse.structure.expectation import expectation_of, make_expectation
from dials_diffuse.structure.surroundings import AIR_DENSITY, WATER_DENSITY, air, water

LYSOZYME = (
    "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIVSDGNGMNAWVAWRNRCKG"
    "TDVQAWIRGCRL"
)
CELL, HALL = (78.5, 78.5, 37.8, 90.0, 90.0, 90.0), " P 4nw 2abw"
K, B = 42.0, 18.0


@pytest.fixture(scope="module")
def bench():
    """The benchmark, whose experiments these are."""
    spec = importlib.util.spec_from_file_location("bench_absolute", ROOT / "benchmarks" / "bench_absolute.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def known():
    """What lysozyme in its tetragonal cell scatters."""
    return expectation_of(contents_of_sequence(LYSOZYME, CELL, HALL, 1), 1.8)


def shells_of(expectation, liquid: float, length: float, spread=0.45, n=2000) -> Shells:
    """Shells that are exactly what the method takes them for, in units of K electrons²; with liquid and air."""
    edges = np.linspace(0, 1 / 1.8, 70)
    s = (edges[1:] + edges[:-1]) / 2
    squares, correlation = expectation.at("molecules", s), expectation.at("correlation", s)
    still = np.exp(log_damping(B, spread, s))
    bragg = squares * (1 + correlation) * still
    kept = np.maximum(np.exp(-APART * s**2 / 2), still)
    crystal = squares * (1 + correlation * kept) + expectation.at("molecules_compton", s)
    crystal += expectation.water_share * expectation.volume * WATER_DENSITY * water(s)
    around = liquid * expectation.volume * WATER_DENSITY * water(s) + length * expectation.volume * AIR_DENSITY * air(s)
    number = np.full(len(s), n)
    zero = np.zeros(len(s))
    return Shells(
        edges=edges,
        diffuse=(np.maximum(crystal - bragg, 0.02 * crystal) + around) / K,
        bragg=bragg / K,
        bragg_variance=(0.01 * bragg / K) ** 2,
        bragg_lost=zero,
        n_possible=number,
        n_measured=number,
        points=zero + 1,
    )


@pytest.mark.parametrize("liquid, length", [(0.0, 0.0), (0.3, 0.0), (0.0, 150.0), (0.5, 100.0)])
def test_amounts_that_are_known(liquid, length):
    """Of curves that are as the method thinks: scale, liquid and air, each within what is said of its error."""
    expectation = known()
    found = separate(shells_of(expectation, liquid, length), expectation, subtracted=False)
    assert found.k == pytest.approx(K, rel=0.08)
    assert abs(math.log(found.k / K)) < 1.5 * found.esd / found.k
    for name, truth in (("liquid", liquid), ("air", length)):
        value, esd = found.amounts[name]
        assert abs(value - truth) < 2 * esd
    assert found.wilson.b == pytest.approx(B, rel=0.05)
    assert math.exp(found.wilson.log_k) == pytest.approx(K, rel=0.02)
    assert not found.conflict
    # what was put in is found again as a whole
    whole = found.crystal + found.liquid + found.air
    shells = shells_of(expectation, liquid, length)
    np.testing.assert_allclose(whole / found.k, np.interp(found.s, shells.s, shells.total), rtol=0.06)


def test_air_that_was_subtracted_is_none():
    expectation = known()
    shells = shells_of(expectation, 0.2, 0.0)
    by = {subtracted: separate(shells, expectation, subtracted) for subtracted in (True, False)}
    assert by[True].amounts["air"][0] < 5 < by[False].amounts["air"][0]
    assert by[True].esd < by[False].esd


def test_there_is_no_more_air_than_is_measured_near_the_beam():
    expectation = known()
    shells = shells_of(expectation, 0.0, 100.0)
    dark = replace(shells, diffuse=np.where(shells.s < 0.16, 0.02 * shells.diffuse, shells.diffuse))
    assert (
        separate(dark, expectation, False).amounts["air"][0]
        < 0.2 * separate(shells, expectation, False).amounts["air"][0]
    )


def test_levels_are_least_squares():
    """Means of correlated numbers, their variance and χ², by the normal equations written out."""
    rng = np.random.default_rng(4)
    a = rng.normal(size=(7, 7))
    covariances = np.array([a @ a.T + (1 + i) * np.eye(7) for i in range(3)])
    logs = rng.normal(size=(3, 7))
    levels = separation._levels(logs, covariances)
    for row, covariance, mean, variance, x, log_chance in zip(logs, covariances, *levels):
        inverse = np.linalg.inv(covariance)
        assert variance == pytest.approx(1 / inverse.sum())
        assert mean == pytest.approx(np.sum(inverse @ row) / inverse.sum())
        assert x == pytest.approx((row - mean) @ inverse @ (row - mean))
        # a mean of which nothing is known has a variance that has no end: the same factor for all rows
        wide = stats.multivariate_normal(np.zeros(7), covariance + 1e8)
        assert log_chance == pytest.approx(wide.logpdf(row) + 3.5 * math.log(2 * math.pi) + math.log(1e4), abs=1e-4)


@pytest.mark.parametrize("spread", [0.1, 0.5, 0.9])
def test_damping_is_the_mean_over_b_factors(spread):
    """⟨exp(-B s²/2)⟩ of half the mean and a gamma distribution, by numerical integration; and its mean and width."""
    s = np.array([0.0, 0.2, 0.4, 0.6])
    rest = 0.5 * B
    shape = (rest / (spread * B)) ** 2
    distribution = stats.gamma(shape, scale=rest / shape)
    u = (np.arange(20000) + 0.5) / 20000
    b = 0.5 * B + distribution.ppf(u)
    assert (b.mean(), b.std()) == pytest.approx((B, spread * B), rel=0.01)
    expected = np.exp(-np.outer(s**2, b) / 2).mean(axis=1)
    np.testing.assert_allclose(np.exp(log_damping(B, spread, s)), expected, rtol=2e-3)


def test_contents_that_are_not_known_make_the_scale_less_certain():
    """The right number of copies is among those that may be, with its probability; the sum of all is 1."""
    shells = shells_of(known(), 0.1, 30.0)
    guess = expectation_of(average_contents(CELL, HALL), 1.8)
    assert sum(p for _, p in guess.alternatives) == pytest.approx(1)
    found = separate(shells, guess, False)
    assert found.esd > separate(shells, known(), False).esd
    assert abs(math.log(found.k / K)) < 2 * found.esd / found.k
    two = expectation_of(contents_of_sequence(LYSOZYME[:40], CELL, HALL), 1.8)
    assert len(two.alternatives) > 1 and sum(p for _, p in two.alternatives) == pytest.approx(1)


def test_experiments(bench):
    """Simulated ones with different air, liquid, thickness and resolution: what it says of its error is true."""
    structure = bench.with_hydrogens(load_structure(str(example_path("lysozyme"))))
    rows = []
    for seed in (2, 15, 17):
        e = bench.simulate_experiment(structure, seed)
        for number, expectation in enumerate(bench.expectations(e)):
            for case, profile in enumerate((e.empty, e.subtracted, e.plain)):
                kind = tuple(bench.BACKGROUNDS.values())[case]
                found = absolute_scale(e.grid, profile, (0.02, e.s_max), e.bragg, expectation, "auto", *kind)
                assert found.method == "separation"
                rows.append((number, case, math.log(found.k / e.k), found.esd / found.k))
        # the sum rule takes all for the crystal's
        assert next(x for x in found.estimates if x.method == "krogh_moe").k < 0.95 * found.k
    number, case, error, esd = np.array(rows).T
    assert np.all(np.abs(error) < 2 * esd)
    rms = [np.sqrt(np.mean(error[(number == 0) & (case == c)] ** 2)) for c in range(3)]
    assert rms[0] < 0.05 and max(rms) < 0.07
    mean = [esd[(number == 0) & (case == c)].mean() for c in range(3)]
    assert mean[0] < mean[1] < mean[2] < 0.1 and esd.max() < 0.2


def test_hydrogens_of_the_benchmark(bench):
    """As many as methane, water, an aromatic CH and an amide have, at right distances and not on each other."""
    cell, bond = (20.0, 20, 20, 90, 90, 90), 1.39
    ring = bond * np.array([(math.cos(t), math.sin(t), 0) for t in np.arange(6) * math.pi / 3])
    sites = np.concatenate([ring + 10, [(3, 3, 3)], [(3, 10, 3), (4.52, 10, 3)]])
    structure = make_structure(cell, "P 1", [*"CCCCCC", "O", "C", "C"], sites / 20)
    found = bench.with_hydrogens(structure)
    hydrogen = (found.site_frac @ found.orthogonalization.T)[found.element == "H"]
    assert len(hydrogen) == 6 + 2 + 6
    to_heavy = np.linalg.norm(hydrogen[:, None] - sites, axis=2)
    np.testing.assert_allclose(to_heavy.min(axis=1), [1.09] * 6 + [0.97] * 2 + [1.09] * 6, atol=0.005)
    apart = np.linalg.norm(hydrogen[:, None] - hydrogen, axis=2)[np.triu_indices(14, 1)]
    assert apart.min() > 1.5
    # in the plane of the ring
    np.testing.assert_allclose(hydrogen[:6, 2], 10, atol=1e-6)


def test_liquid_that_was_subtracted_is_none():
    """Said to be on the images without crystal: it may be a little less or more than nothing, and k is known better."""
    expectation = known()
    shells = shells_of(expectation, 0.0, 0.0)
    dry = separate(shells, expectation, True, True)
    value, esd = dry.amounts["liquid"]
    assert abs(value) < esd < 0.05 < separate(shells, expectation, True).amounts["liquid"][0] + esd
    assert dry.k == pytest.approx(K, rel=0.03) and dry.esd / dry.k < 0.05
    wet = separate(shells_of(expectation, 0.3, 0.0), expectation, True)
    assert dry.esd / dry.k < 0.8 * wet.esd / wet.k
    # nothing was subtracted: there are no such images
    without = separate(shells, expectation, False, True)
    assert without.k == separate(shells, expectation, False).k


def noise(seed=0):
    """Bragg reflections around zero, and the same diffuse intensity everywhere."""
    grid = small_grid("P 1", (30, 32, 34, 90, 90, 90), (1, 1, 1), d_min=2.0)
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*(np.arange(-15, 16),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    s = np.linalg.norm(index @ grid.reciprocal_matrix.T, axis=1)
    index = index[(s > 0.05) & (s < 0.5)]
    bragg = Bragg(index, rng.normal(size=len(index)), np.ones(len(index)))
    return grid, lambda x: np.full(np.shape(x), 3.0), (0.0, 0.5), bragg


def test_noise_has_no_scale():
    """Neither by the default, nor by a method that takes all for the crystal's without a huge uncertainty."""
    expectation = make_expectation(noise()[0])
    with pytest.raises(DiffuseError, match="the Bragg reflections are no more than noise"):
        absolute_scale(*noise(), expectation)
    found = absolute_scale(*noise(), expectation, "krogh_moe")
    assert found.esd > 0.45 * found.k and "hold no signal" in found.left_out["separation"]
    positive = replace(noise()[3], intensity=np.abs(noise()[3].intensity))
    with pytest.raises(DiffuseError, match=r"do not fall with .s.|has not the shape"):
        absolute_scale(*noise()[:3], positive, expectation)


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_bragg_intensities_that_do_not_fit_the_rest(factor):
    """Stills, say: the scale says so, or that it cannot be found; its error covers the difference."""
    expectation = known()
    shells = shells_of(expectation, 0.0, 0.0)
    wrong = replace(shells, bragg=factor * shells.bragg, bragg_variance=factor**2 * shells.bragg_variance)
    try:
        found = separate(wrong, expectation, True)
    except DiffuseError as error:
        assert "not the shape" in str(error)
    else:
        assert "do not agree" in found.conflict and found.esd > 0.3 * found.k
        assert abs(math.log(found.k / K)) < 3 * found.esd / found.k


def test_data_that_end_too_early():
    expectation = known()
    shells = shells_of(expectation, 0.0, 0.0)
    n = np.searchsorted(shells.edges, 0.24)
    parts = {name: value[:n] for name, value in vars(shells).items()}
    with pytest.raises(DiffuseError, match=r"the data end at 4\.\d\d Å, too early"):
        separate(Shells(**{**parts, "edges": shells.edges[: n + 1]}), expectation, True)


def test_few_lattice_points_are_no_noise_of_the_mean():
    """In a small cell shells hold more or fewer points by chance; the mean over them has nothing of it."""
    grid = small_grid("P 1", (30, 32, 34, 90, 90, 90), (1, 1, 1), d_min=2.0)
    bragg = noise()[3]
    s = np.linalg.norm(bragg.hkl @ grid.reciprocal_matrix.T, axis=1)
    even = replace(bragg, intensity=np.exp(-8 * s**2), variance=1e-12 * np.ones(len(s)))
    shells = mean_intensities(grid, merge_bragg(grid, even), lambda x: 0 * x, (0.0, 0.5))
    use = shells.n_measured > 20
    mean = shells.mean(lambda x: np.exp(-8 * x**2))
    assert np.abs(shells.bragg / mean - 1)[use].max() > 0.1
    np.testing.assert_allclose(shells.bragg[use] / shells.points[use] / mean[use], 1, atol=0.03)


def test_wilson_needs_shells():
    expectation = known()
    shells = shells_of(expectation, 0.0, 0.0)
    with pytest.raises(DiffuseError, match="hold no signal"):
        fit_wilson(replace(shells, bragg_variance=shells.bragg**2), expectation)
