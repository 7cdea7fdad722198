"""Scaling where mates tell little: what they do not tell stays where it was, and the error is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.few_mates import PROVENANCE, FewMates, agreement, simulate, true_map

from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.kernels.normal import quadratic_forms
from dials_diffuse.kernels.scaling import Design, Tensor
from dials_diffuse.maps.voxels import blocks_of_rows, blocks_of_voxels, find_voxels
from dials_diffuse.scaling.error_model import first_error_model, update_errors, weigh
from dials_diffuse.scaling.intensities import levels_of, most_probable, own_squares
from dials_diffuse.scaling.judging import Stretch, judge_terms
from dials_diffuse.scaling.layout import make_layout
from dials_diffuse.scaling.model import start_model
from dials_diffuse.scaling.normal import Normal, add
from dials_diffuse.scaling.sample import COLUMNS, sample_observations
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.solve import (
    Part,
    Space,
    Strength,
    System,
    determined,
    most_probable_strengths,
    posterior,
)
from dials_diffuse.scaling.terms.drift import Drift
from dials_diffuse.scaling.terms.modules import Modules

#: one sweep of a triclinic crystal: a voxel has one observation or two
CASE = FewMates("P 1", (27.3, 31.9, 34.3, 88.5, 108.6, 111.8), d_min=2.8, counts=1500.0)


@pytest.fixture(scope="module")
def one_sweep(tmp_path_factory):
    """(folder, true map, result of scaling)"""
    folder, truth = tmp_path_factory.mktemp("p1"), true_map(CASE)
    simulate(CASE, folder, truth)
    result = scale_observations([folder / "integrated.h5"], ScalingParameters(), folder / "scaled.h5", PROVENANCE, 2)
    return folder, truth, result


def test_the_map_is_better_than_unscaled_and_no_term_is_made_up(one_sweep):
    folder, truth, result = one_sweep
    before, after, best = (agreement(folder / f"{x}.h5", truth, 4) for x in ("integrated", "scaled", "true"))
    assert before.cc < best.cc - 0.1
    assert after.cc > best.cc - 0.02
    assert {"h"} <= set(result.refinement.model.terms) <= {"b", "h", "c"}


def test_the_error_of_the_scale_is_in_sigma(one_sweep):
    """Rows that were written have the relative variance of their cell more; the record says how large it is."""
    folder, _, result = one_sweep
    errors = result.refinement.scale_errors
    assert 5e-4 < errors.rms < 0.05
    with ObservationFile(folder / "scaled.h5") as file:
        rows = file.read("background_variance", "counts", "background")
    assert np.all(rows["background_variance"] > 0)
    relative = np.sqrt(rows["background_variance"].mean() / np.mean(rows["counts"].astype(float) ** 2))
    assert 0.3 * errors.rms < relative < 3 * errors.rms


def test_what_else_is_measured_is_of_the_same_experiment(one_sweep, tmp_path):
    """Images without crystal hold what does not scale, and integrated reflections the scale; the rows stay the same."""
    _, truth, _ = one_sweep
    simulate(replace(CASE, images=True, reflections=True), tmp_path, truth)
    with ObservationFile(tmp_path / "integrated.h5") as file, ObservationFile(tmp_path / "true.h5") as true:
        rows, right = (f.read("index", "xyz", "counts", "background", "norm") for f in (file, true))
        bragg = file.read_bragg()
    np.testing.assert_array_equal(rows["xyz"], right["xyz"])
    assert rows["background"].sum() == pytest.approx(right["background"].sum(), rel=0.01)
    assert (rows["counts"] - rows["background"]).sum() == pytest.approx(
        np.load(tmp_path / "isotropic.npy").sum(), rel=0.03
    )
    # factors are the transmission times b: norm of the true scales over that of the rows
    key = {
        (*i, round(float(z), 3)): r for i, z, r in zip(rows["index"], rows["xyz"][:, 2], right["norm"] / rows["norm"])
    }
    places = zip(bragg["hkl"] * truth.grid.subdivide, bragg["xyz"][:, 2])
    of_rows = np.array([key[(*i, round(float(z), 3))] for i, z in places])
    assert np.std(bragg["inverse_scale_factor"] / of_rows) == pytest.approx(0.005, rel=0.2)
    assert np.mean(bragg["intensity"] / of_rows) == pytest.approx(1, abs=0.1)


def read(folder):
    with ObservationFile(folder / "integrated.h5") as file:
        of_rows = np.empty(file.n_rows, np.int32)
        voxels, _ = find_voxels(blocks_of_rows([file], ("index", "norm"), 100_000), file.grid, True, of_rows)
        layout, grid = make_layout(file.experiments, file.grid), file.grid
        blocks = ((0, block) for block in blocks_of_rows([file], COLUMNS, 100_000))
        return (
            sample_observations(blocks, voxels, of_rows, layout, np.ones(len(voxels.index), bool), 4),
            layout,
            grid,
            voxels,
        )


def test_neighbourhoods_are_nested(one_sweep):
    """A larger one consists of whole smaller ones, and each level counts its parents from 0."""
    data, _, grid, voxels = read(one_sweep[0])
    np.testing.assert_array_equal(data.neighbourhood[:, 1], blocks_of_voxels(grid, voxels.index[data.unique], times=2))
    place = np.arange(len(data.unique))
    for k, parent in enumerate(data.parents):
        place = parent[place]
        pairs = {tuple(x) for x in np.stack([place, data.neighbourhood[:, k]], axis=1).tolist()}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == parent.max() + 1


def test_sizes_of_what_neighbours_share_against_the_dense_posterior(one_sweep):
    """Mean squares of own parts, and most probable values, by whole matrices of a few voxels."""
    data, layout, _, _ = read(one_sweep[0])
    data = data.orbits(np.arange(0, len(data.unique), 150))
    data = replace(data, neighbourhood=data.neighbourhood[:, 1:2] // np.array([2, 8, 64]))
    model = start_model(data, layout, ScalingParameters(terms=()))
    prediction = model.predict_observations(data)
    weights = weigh(prediction, data, first_error_model(data), np.zeros(data.n, dtype=bool))
    residual = data.net - prediction.expected
    levels = levels_of(prediction, data, weights, residual)
    size, place, columns, sizes = 1 / np.sqrt(weights.prior), np.arange(len(data.unique)), [], []
    for k, level in enumerate(levels):
        columns.append(np.zeros((data.n, len(level.net))))
        columns[-1][np.arange(data.n), place[data.orbit]] = prediction.unit * size[data.orbit]
        sizes.append(np.ones(len(level.net)) if k else 1 / np.sqrt(weights.prior))
        if k + 1 < len(levels):
            size, place = size * weights.common[k][place], level.parent[place]
    member = np.hstack(columns)  # unit normal own parts
    covariance = np.linalg.inv(member.T @ (weights.weight[:, None] * member) + np.eye(member.shape[1]))
    mean = covariance @ (member.T @ (weights.weight * residual))
    found = np.concatenate(own_squares(levels)) / np.concatenate(sizes) ** 2
    np.testing.assert_allclose(found, mean**2 + np.diag(covariance), rtol=1e-6)
    anisotropic = (member @ mean)[np.searchsorted(data.orbit, np.arange(len(data.unique)))]
    first = np.searchsorted(data.orbit, np.arange(len(data.unique)))
    np.testing.assert_allclose(most_probable(levels)[0][0], anisotropic / prediction.unit[first], rtol=1e-6)


def test_what_mates_share_is_taken_by_the_anisotropic_part(one_sweep):
    """A factor of all observations of a voxel changes nothing where sizes tell nothing; one of some of them does."""
    data, layout, _, _ = read(one_sweep[0])
    prediction = start_model(data, layout, ScalingParameters(terms=())).predict_observations(data)
    rng, residual = np.random.default_rng(4), data.net - prediction.expected
    shared, single = rng.uniform(0.8, 1.2, len(data.unique))[data.orbit], rng.uniform(0.8, 1.2, data.n)

    def nets(factor, tails):
        errors = first_error_model(data)
        errors = replace(errors, tails=np.full(len(errors.tails), tails))
        weights = weigh(prediction, data, errors, np.zeros(data.n, dtype=bool))
        return levels_of(replace(prediction, gain=prediction.gain * factor), data, weights, residual)[0].net

    np.testing.assert_allclose(nets(shared, 0.0), nets(1.0, 0.0), rtol=1e-9)
    np.testing.assert_allclose(nets(shared, 1.0), nets(1.0, 1.0) * shared[data.first], rtol=1e-9)
    two = np.bincount(data.orbit) == 2
    assert np.std((nets(single, 0.0) / nets(1.0, 0.0))[two]) > 0.01
    np.testing.assert_allclose(nets(single, 0.0)[~two], nets(1.0, 0.0)[~two], rtol=1e-9)


@pytest.mark.parametrize("large", [1.0, 3.0])
def test_how_much_the_size_of_the_anisotropic_part_tells(one_sweep, large):
    """Of the scale it tells less by 2 / (kurtosis - 1), which is 1 for a normal distribution."""
    data, layout, _, _ = read(one_sweep[0])
    rng, m = np.random.default_rng(1), len(data.unique)
    own = rng.normal(size=m) * np.where(rng.random(m) < 0.05, large, 0.7 if large > 1 else 1.0)
    model = start_model(data, layout, ScalingParameters(terms=()))
    expected = 1e4 * model.predict_observations(replace(data, norm=np.ones(data.n))).profile
    counts = rng.poisson(np.maximum(expected * (1 + 0.1 * own[data.orbit]), 0)).astype(float)
    data = replace(data, norm=np.full(data.n, 1e4), counts=counts, background=np.zeros(data.n))
    errors, prediction = first_error_model(data), model.predict_observations(data)
    for _ in range(30):
        errors = update_errors(prediction, data, errors, np.zeros(data.n, dtype=bool))
    kurtosis = np.mean(own**4) / np.mean(own**2) ** 2
    assert kurtosis == pytest.approx(3, rel=0.05) if large == 1 else kurtosis > 12
    assert np.median(errors.tails) == pytest.approx(2 / (kurtosis - 1), rel=0.2)


def system_of(position, origin, roughness, first):
    """One term, all directions of it."""
    n = len(position)
    parts = {"x": Part(slice(0, n), roughness)}
    return System(Space(np.eye(n), parts, slice(0, 0)), position, origin, {"x": first}, {"x": (True, True)})


def test_what_the_data_do_not_tell_stays_where_priors_pull_to():
    """Two of four directions are measured well, the others not at all."""
    matrix = np.diag([1e6, 1e6, 0.0, 0.0])
    position = np.array([0.3, 0.1, 0.5, -0.2])  # of the coefficients, less what is pulled to
    system = system_of(position, np.zeros(4), np.zeros(4), Strength(100.0, 1.0))
    normal = Normal(matrix, matrix @ np.array([0.01, -0.02, 0.0, 0.0]), 0.0, 100)
    found = posterior(normal, system, system.first)
    np.testing.assert_allclose(position + found.step, [0.31, 0.08, 0.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(np.diag(found.covariance)[2:], 0.01)
    assert determined(normal, system, system.first)["x"] == pytest.approx(2, abs=1e-3)


def test_covariances_and_quadratic_forms_against_dense_algebra():
    rng = np.random.default_rng(2)
    half = rng.normal(size=(6, 9))
    normal = Normal(half @ half.T, rng.normal(size=6), 0.0, 9)
    system = system_of(rng.normal(size=6), np.zeros(6), np.zeros(6), Strength(2.0, 1.0))
    found = posterior(normal, system, system.first)
    covariance = np.linalg.inv(normal.matrix + 2.0 * np.eye(6))
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-8)
    np.testing.assert_allclose(found.variance, np.diag(covariance), rtol=1e-8)
    np.testing.assert_allclose(found.step, covariance @ (normal.vector - 2.0 * system.position), rtol=1e-8)
    index = np.array([rng.choice(6, 3, replace=False) for _ in range(20)])
    value, forms = rng.normal(size=(20, 3)), np.empty(20)
    quadratic_forms(Design(index, value), covariance, forms)
    dense = np.zeros((20, 6))
    np.put_along_axis(dense, index, value, axis=1)
    np.testing.assert_allclose(forms, np.einsum("ni,ij,nj->n", dense, covariance, dense))


def test_strengths_are_those_of_the_truth():
    """Coefficients of known size and smoothness, measured with noise: both come back, for many coefficients."""
    rng, n, truth = np.random.default_rng(0), 400, Strength(400.0, 200.0)
    roughness = np.linspace(0, 4, n) ** 2
    coefficients = rng.normal(size=n) / np.sqrt(truth.size + truth.roughness * roughness)
    matrix = np.diag(np.full(n, 1e5))
    measured = coefficients + rng.normal(size=n) / np.sqrt(1e5)
    system = system_of(np.zeros(n), np.zeros(n), roughness, Strength(11.0, 1e3))
    found = most_probable_strengths(Normal(matrix, matrix @ measured, 0.0, n), system, system.first, rounds=200)["x"]
    assert found.size == pytest.approx(truth.size, rel=0.5)
    assert found.roughness == pytest.approx(truth.roughness, rel=0.3)


def turned(normal: Normal) -> Normal:
    """The last parameter, the crystal's, first."""
    order = np.roll(np.arange(len(normal.vector)), 1)
    return Normal(normal.matrix[np.ix_(order, order)], normal.vector[order], 0.0, normal.n)


def system_of_term(kind, n: int) -> tuple:
    """(System, strengths) of a term of n coefficients of 2 %, after a parameter of the crystal."""
    parts = {"p": Part(slice(0, 1), np.zeros(1)), kind.key: Part(slice(1, n + 1), np.zeros(n))}
    strengths = {"p": Strength(0.0, 0.0), kind.key: Strength(1 / 0.02**2, 0.0)}
    space, zero = Space(np.eye(n + 1), parts, slice(0, 1)), np.zeros(n + 1)
    return System(space, zero, zero, strengths, {"p": (False, False), kind.key: (True, False)}), strengths


@pytest.mark.parametrize("size", [0.0, 0.02])
def test_terms_are_judged_by_evidence_and_by_what_is_kept_out(size):
    """Coefficients of a size, measured in six folds with an error of 0.3 %; none is made up, what is there is kept."""
    rng, n = np.random.default_rng(1), 20
    tensor = Tensor(np.array([[0, n]]), np.zeros((1, 2)))
    truth = np.append(size * rng.normal(size=n), 0.0)  # and a parameter of the crystal
    folds = []
    for _ in range(6):
        matrix = np.diag(np.full(n + 1, 1 / 0.003**2 / 6))
        measured = truth + 0.003 * np.sqrt(6) * rng.normal(size=n + 1)
        folds.append(Normal(matrix, matrix @ measured, 0.0, 2000))
    for kind in (Drift, Modules):
        system, strengths = system_of_term(kind, n)
        judgement = judge_terms([turned(f) for f in folds], [], system, strengths, [kind(1, 1, tensor)])
        (test,) = judgement.tests
        assert test.kept == (size > 0)
        assert judgement.together.mean == (test.gain if test.kept else 0.0)
        # the density of the data with and without coefficients, by the covariance of their mean
        mean = (sum(f.vector for f in folds) / sum(np.diag(f.matrix) for f in folds))[:n]
        variances = 0.003**2 + 0.02**2, 0.003**2
        logs = [-0.5 * np.sum(mean**2 / v + np.log(v)) for v in variances]
        assert test.evidence == pytest.approx(logs[0] - logs[1], rel=1e-6)


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_pattern_that_other_images_contradict_is_none_of_the_detector(everywhere):
    """On the average of all images it is the same; it is on all of them, or on a quarter. Drift is each image's own."""
    rng, n, error = np.random.default_rng(3), 20, 0.003
    truth = np.append(0.02 * rng.normal(size=n), 0.0)

    def measured(number, times):
        matrix = np.diag(np.full(n + 1, 1 / error**2 / number))
        return Normal(matrix, matrix @ (times * truth + error * np.sqrt(number) * rng.normal(size=n + 1)), 0.0, 2000)

    folds = [turned(measured(6, 1)) for _ in range(6)]
    images = [turned(measured(4, 1 if everywhere else 4 * (k == 2))) for k in range(4)]
    stretches = [Stretch(images[k], add(images[:k] + images[k + 1 :])) for k in range(4)]
    for kind in (Drift, Modules):
        terms = [kind(1, 1, Tensor(np.array([[0, n]]), np.zeros((1, 2))))]
        (test,) = judge_terms(folds, stretches, *system_of_term(kind, n), terms).tests
        assert test.gain > 3 * test.esd
        assert (test.images is None) == (kind is Drift)
        assert test.kept == (everywhere or kind is Drift)


def test_no_term_is_kept_where_no_scaling_predicts_better():
    """One block of voxels asks for a drift that the others hardly have: it is worse by less than its own scatter."""
    n, error, pattern = 20, 0.003, np.append(0.02 * np.random.default_rng(3).normal(size=20), 0.0)
    matrix = np.diag(np.full(n + 1, 1 / error**2 / 6))
    for least, kept in ((0.3, False), (0.6, True)):
        folds = [turned(Normal(matrix, matrix @ (x * pattern), 0.0, 2000)) for x in (5.0, *5 * (least,))]
        terms = [Drift(1, 1, Tensor(np.array([[0, n]]), np.zeros((1, 2))))]
        judgement = judge_terms(folds, [], *system_of_term(Drift, n), terms)
        (test,) = judgement.tests
        assert test.gain > -test.esd and test.evidence > 100
        assert judgement.together.mean == pytest.approx(test.gain)
        assert test.kept == (test.gain > 0) == kept
