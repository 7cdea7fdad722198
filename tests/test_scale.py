"""Scaling against slow oracles and planted truths."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from helpers.builders import PROVENANCE, all_voxels, observation_rows, small_grid, true_intensity
from helpers.programs import fails
from helpers.samples import read_sample
from helpers.synthetic import make_experiment
from helpers.two_crystals import EXPERIMENTS, GRID, MODULES, SMALL, TURNING, anisotropic, make_rows, true_b, write
from scipy.stats import multivariate_normal, poisson
from scitbx import matrix

from dials_diffuse.cli import scale as cli
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.scan import scan_geometry
from dials_diffuse.files.observations import OBSERVATION_DTYPE, ObservationFile
from dials_diffuse.files.record import write_json
from dials_diffuse.kernels.scaling import Design, deviance
from dials_diffuse.maps.settings import alternative_settings
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.maps.voxels import BLOCK, blocks_of_rows, find_voxels
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.report.scaling import scaling_text
from dials_diffuse.scaling import error_model
from dials_diffuse.scaling.apply import Predictions, Scaler, apply_levels, predict_all, scaled_rows
from dials_diffuse.scaling.error_model import first_error_model, reject, weigh
from dials_diffuse.scaling.layout import DIFFRACTED, Rows, S, T, coordinates, make_layout, places
from dials_diffuse.scaling.levels import find_levels, minus_log_likelihood, without_offsets
from dials_diffuse.scaling.model import start_model
from dials_diffuse.scaling.normal import Part, bases_of, chi2, normal_equations, with_slopes
from dials_diffuse.scaling.patterns import absorption, absorption_functions, harmonics, symmetric_patterns
from dials_diffuse.scaling.record import scaling_record
from dials_diffuse.scaling.refine import refine
from dials_diffuse.scaling.refiner import fold_of_blocks
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.solve import gauge
from dials_diffuse.scaling.terms import absorption_spline, drift, offset
from dials_diffuse.scaling.terms.absorption import AbsorptionOptions, overlaps
from dials_diffuse.scaling.terms.absorption_harmonics import combinations_of
from dials_diffuse.scaling.terms.drift import DriftOptions
from dials_diffuse.scaling.terms.table import CRYSTAL, NAMES, OPTIONS, TERMS, help_of_names
from dials_diffuse.scaling.uncertainty import no_scale_errors


def scale(tmp_path, rows, **options):
    path = write(tmp_path / "in.h5", rows)
    return scale_observations([path], ScalingParameters(**{**SMALL, **options}), tmp_path / "out.h5", PROVENANCE, 2)


def merge(path):
    return merge_observations([path], MergeParameters(n_shells=4)).map


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Scaled observations with all terms planted: (folder, result)."""
    folder = tmp_path_factory.mktemp("planted")
    return folder, scale(folder, make_rows(np.random.default_rng(1)), max_observations=25_000)


def test_normal_equations_equal_dense_algebra(tmp_path):
    """Derivatives by finite differences, intensities eliminated with whole matrices, the logarithm by differences."""
    rows = make_rows(np.random.default_rng(2), scale=50, copies=1)
    data, layout = read_sample(write(tmp_path / "a.h5", rows), share=0.03)
    data = replace(data, neighbourhood=data.neighbourhood[:, :1] // np.array([15, 30, 60]))
    rng = np.random.default_rng(3)
    model = start_model(data, layout, ScalingParameters(**SMALL))
    model = model.moved(0.03 * rng.normal(size=model.n_parameters) * np.maximum(model.coefficients, 1))
    prediction = model.predict_observations(data)
    errors = first_error_model(data)
    errors = replace(errors, tails=rng.random(len(errors.tails)))
    weights = weigh(prediction, data, errors, rng.random(data.n) < 0.1)
    w = weights.weight
    assert 0 < weights.held.min() < weights.held.max() < 1
    normal = normal_equations(model, [Part(prediction, data, weights, bases_of(model, data.rows))])

    q = model.smooth_anisotropic(data)
    u = prediction.unit
    residual = data.net - prediction.isotropic - u * prediction.profile * q
    columns, prior, size = [np.zeros((data.n, len(data.unique)))], [weights.prior], 1 / np.sqrt(weights.prior)
    columns[0][np.arange(data.n), data.orbit] = u
    place = np.arange(len(data.unique))  # own parts of voxels, and what neighbourhoods have in common
    for parent, common in zip(data.parents, weights.common):
        assert 2 < parent.max() + 1 < 0.7 * len(parent)
        size, place = size * common[place], parent[place]
        columns.append(np.zeros((data.n, parent.max() + 1)))
        columns[-1][np.arange(data.n), place[data.orbit]] = u * size[data.orbit]
        prior.append(np.ones(parent.max() + 1))
    member, prior = np.hstack(columns), np.concatenate(prior)
    total = member.T @ (w[:, None] * member) + np.diag(prior)
    intensity = member @ np.linalg.solve(total, member.T @ (w * residual)) / u

    def expected(m):
        p = m.predict_observations(data)
        return p.isotropic + p.unit * (p.profile * m.smooth_anisotropic(data) + intensity)

    def least_squares(m):
        return chi2(m.predict_observations(data), data, weights)

    columns, slopes = [], []
    for k in range(model.n_parameters):
        unit = np.zeros(model.n_parameters)
        unit[k] = 1e-5
        columns.append((expected(model.moved(unit)) - expected(model.moved(-unit))) / 2e-5)
        slopes.append((least_squares(model.moved(unit)) - least_squares(model.moved(-unit))) / 2e-5)
    jacobian = np.array(columns).T
    coupling = member.T @ (w[:, None] * jacobian)
    matrix = jacobian.T @ (w[:, None] * jacobian) - coupling.T @ np.linalg.solve(total, coupling)
    np.testing.assert_allclose(normal.matrix, matrix, atol=1e-6 * np.abs(matrix).max())
    np.testing.assert_allclose(normal.vector, -0.5 * np.array(slopes), atol=1e-5 * np.abs(slopes).max())
    assert normal.chi2 == pytest.approx(least_squares(model))
    other = replace(normal, vector=0 * normal.vector, chi2=0.0, n=0)
    again = with_slopes(model, other, [Part(prediction, data, weights, bases_of(model, data.rows))])
    for name in ("matrix", "vector", "chi2", "n"):
        np.testing.assert_array_equal(getattr(again, name), getattr(normal, name))
    whole = np.linalg.slogdet(total)[1] - np.log(prior).sum()
    least = np.sum(w * residual**2) - (member.T @ (w * residual)) @ np.linalg.solve(total, member.T @ (w * residual))
    assert normal.chi2 == pytest.approx(least + whole)


def test_relative_error_from_sampling_makes_the_median_that_of_chi2():
    rng = np.random.default_rng(0)
    poisson, signal = rng.uniform(1, 50, 1001), rng.uniform(1, 50, 1001) ** 2
    r2 = rng.normal(size=1001) ** 2 * (poisson + 0.15**2 * signal)
    found = error_model._excess(r2, poisson, signal)
    assert found == pytest.approx(0.15, rel=0.1)
    assert np.median(r2 / (poisson + found**2 * signal)) == pytest.approx(error_model._MEDIAN_CHI2, rel=1e-9)
    assert error_model._excess(0.9 * poisson * rng.normal(size=1001) ** 2, poisson, signal) == 0
    assert error_model._excess(4 * signal, poisson, signal) == 1


def test_the_model_is_the_same_for_any_number_of_threads(tmp_path, monkeypatch):
    """Bit for bit: how sums are cut depends on the data alone."""
    monkeypatch.setattr("dials_diffuse.scaling.refiner._FOR_A_THREAD", 2000)
    data, layout = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(2), copies=1)))
    parameters = ScalingParameters(**{**SMALL, "terms": ("b", "c"), "n_cycles": 2})
    one, three = (refine(data, layout, parameters, n).model.coefficients for n in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_a_matrix_that_serves_for_several_steps_leads_to_the_same_model(tmp_path, monkeypatch):
    """It is found less often, and b is the same within a tenth of what the data say of it."""
    data, layout = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(2), copies=1)))
    parameters = ScalingParameters(**{**SMALL, "terms": ("b", "c")})
    found: list = []

    def counted(model, parts):
        found.append(model.terms)
        return normal_equations(model, parts)

    monkeypatch.setattr("dials_diffuse.scaling.refiner.normal_equations", counted)
    serving = refine(data, layout, parameters)
    n_serving = len(found)
    monkeypatch.setattr("dials_diffuse.scaling.refiner._MATRIX_SERVES", -1.0)
    monkeypatch.setattr("dials_diffuse.scaling.refiner.Refiner.keep_matrix", lambda *arguments: None)
    always = refine(data, layout, parameters)
    assert n_serving < 0.9 * (len(found) - n_serving)
    assert serving.model.terms == always.model.terms == ("b", "c")
    place = places(1, {T: np.linspace(0, 1, 20), S: np.full(20, 0.2)})
    a, b = (r.model.value("b", place) for r in (serving, always))
    np.testing.assert_allclose(a, b, atol=1e-3)
    assert serving.scale_errors.rms == pytest.approx(always.scale_errors.rms, rel=0.05)


def test_few_observations_to_begin_with_lead_to_the_same_model(tmp_path, monkeypatch):
    """And so does the end of another refinement: within a tenth of what the data say of b."""
    data, layout = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(2), copies=1)))
    parameters = ScalingParameters(**{**SMALL, "terms": ("b", "c")})
    whole = refine(data, layout, parameters)
    monkeypatch.setattr("dials_diffuse.scaling.refine._FIRST_OBSERVATIONS", data.n // 4)
    few = refine(data, layout, parameters)
    again = refine(data, layout, parameters, before=few.trial)
    sizes = [{h["terms"].count("c") for h in r.history} for r in (whole, few)]
    assert sizes[0] == sizes[1] == {0, 1}
    assert len(again.history) - len(few.trial.history) < len(few.history)
    for other in (few, again):
        assert other.model.terms == whole.model.terms == ("b", "c")
        for e in range(2):
            place = places(e, {T: np.linspace(0, 1, 20), S: np.full(20, 0.2)})
            a, b = (r.model.value("b", place) for r in (whole, other))
            np.testing.assert_allclose(a, b, atol=1e-3)  # steps end when no parameter moves by its error, some 0.01
        assert other.scale_errors.rms == pytest.approx(whole.scale_errors.rms, rel=0.05)


def test_functions_that_others_can_make_by_least_squares():
    """The share of each combination that is in the others is that of a projection made without any factorisation."""
    rng = np.random.default_rng(0)
    others = rng.normal(size=(400, 6))
    others[:, 5] = others[:, 0]  # of rank 5
    basis = np.hstack([others[:, :2] @ rng.normal(size=(2, 2)), rng.normal(size=(400, 3))])
    found = combinations_of(basis, others)
    made = others @ np.linalg.lstsq(others, basis, rcond=1e-6)[0]
    expected = overlaps(basis.T @ basis / 400, made.T @ made / 400, 0.998)
    assert found.shape == expected.shape == (2, 5)
    project = [x.T @ np.linalg.solve(x @ x.T, x) for x in (found, expected)]
    np.testing.assert_allclose(*project, atol=1e-9)


def test_many_sweeps_have_fewer_nodes_each(tmp_path):
    data, _ = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(2), copies=1)))
    layout = make_layout(60 * [replace(EXPERIMENTS[0], image_range=(1, 360))], GRID)
    sizes = {}
    for form in ("spline", "harmonics"):
        model = start_model(data, layout, ScalingParameters(options=(AbsorptionOptions(form=form),)))
        sizes |= {b.key: b.size * b.n_sets for b in model.blocks}
    assert sizes["b"] <= drift.MAX_PARAMETERS and sizes["c"] <= offset.MAX_PARAMETERS + 60 * 3 * 6
    assert sizes["a"] <= max(absorption_spline.MAX_PARAMETERS, 60 * 3**3)


def test_overall_scale_is_fixed_and_changes_nothing(tmp_path):
    """b of all sweeps up by a constant, intensities and offsets accordingly: the same expected counts."""
    data, layout = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(2), copies=1)))
    model = start_model(data, layout, ScalingParameters(**SMALL))
    step = np.zeros(model.n_parameters)
    step[model.block("b").all] = 0.3
    step[model.block("p").all] = model.coefficients[model.block("p").all] * (math.exp(-0.3) - 1)
    np.testing.assert_allclose(
        model.moved(step).predict_observations(data).isotropic, model.predict_observations(data).isotropic
    )
    assert np.abs(gauge(model, data) @ step).max() > 0.1


@pytest.mark.parametrize(
    "symbol, cell, n",
    [
        ("P 1", (9, 10, 11, 80, 95, 105), 44),
        ("P 43 21 2", (9, 9, 14, 90, 90, 90), 8),
        ("P 31 2 1", (9, 9, 14, 90, 90, 120), 9),
        ("P 2 3", (9, 9, 9, 90, 90, 90), 4),
    ],
)
def test_patterns_have_the_symmetry_of_the_crystal(symbol, cell, n):
    """Numbers of invariants of even degree 2 to 8 of the Laue class, by character theory; the last is m-3."""
    grid = small_grid(symbol, cell, (2, 2, 2))
    index = np.random.default_rng(0).integers(-6, 7, (50, 3))
    patterns = symmetric_patterns(grid, index)
    assert patterns.shape == (50, n)
    for operator in laue_operators(grid.space_group, True)[::6]:
        np.testing.assert_allclose(symmetric_patterns(grid, index @ operator), patterns, atol=1e-9)


def test_deviance_is_that_of_poisson():
    for counts, expected in ((0, 3.0), (1, 3.0), (7, 3.0), (100, 81.0)):
        ratio = poisson.logpmf(counts, max(counts, 1e-300)) - poisson.logpmf(counts, expected)
        assert deviance(float(counts), expected) == pytest.approx(math.sqrt(2 * ratio))


def test_outliers_of_both_signs_go_and_nothing_else():
    rng = np.random.default_rng(4)
    orbit = np.repeat(np.arange(500), 6)
    n = len(orbit)
    expected = rng.uniform(5, 200, n)
    shift = rng.normal(0, 0.1, 500)[orbit]
    counts = rng.poisson(expected * (1 + shift)).astype(float)
    wrong = np.arange(n) % 60 == 0
    counts[wrong] = np.where(np.arange(n)[wrong] % 120 == 0, 3 * expected[wrong] + 60, 0.0)
    visible = wrong & ((counts > 0) | (expected > 60))
    rejected = reject(orbit, 1 / expected, counts - expected, expected, counts, np.full(500, 100.0), 6.0)
    assert np.all(rejected[visible])
    assert not np.any(rejected[~wrong])


def test_without_scale_factors_rows_stay_as_they_are(tmp_path):
    rows = make_rows(np.random.default_rng(5), copies=1)
    data, layout = read_sample(write(tmp_path / "a.h5", rows))
    model = start_model(data, layout, ScalingParameters(**SMALL))
    x = coordinates(layout, rows["experiment"].astype(int), rows)
    prediction = model.predict(Rows(x, rows["experiment"].astype(int)), rows["norm"], rows["s"].astype(float))
    block = {name: rows[name] for name in OBSERVATION_DTYPE.names}
    unit, added = prediction.unit, np.zeros(len(rows))
    same = scaled_rows(block, unit, added, 0, 1.0)
    for name in OBSERVATION_DTYPE.names:
        np.testing.assert_allclose(same[name], rows[name], rtol=1e-9)
    doubled = scaled_rows(block, unit, added, 3, 2.0)
    net = rows["counts"] - rows["background"]
    np.testing.assert_allclose((doubled["counts"] - doubled["background"]) / doubled["norm"], 2 * net / rows["norm"])
    np.testing.assert_allclose(doubled["rate_variance"], 4 * rows["rate_variance"])
    np.testing.assert_array_equal(doubled["experiment"], rows["experiment"] + 3)


def test_intensities_belong_to_the_centres_of_voxels(tmp_path):
    """Pixels at another |s| than the centre: counts of the isotropic profile there become its value at the centre."""
    rows = make_rows(np.random.default_rng(5), copies=1)
    path = write(tmp_path / "a.h5", rows)
    data, layout = read_sample(path)
    model = start_model(data, layout, ScalingParameters(**SMALL))
    centre = GRID.s_magnitude(rows["index"])
    rows["s"] = np.clip(centre + 0.01, centre.min(), centre.max())
    level = [model.profile(s) for s in (rows["s"], centre)]
    rows["counts"] = level[0] * rows["norm"]
    rows["background"] = 0.0
    block = {name: rows[name] for name in OBSERVATION_DTYPE.names}
    of_rows = np.empty(len(rows), np.int32)
    voxels, _ = find_voxels([block], GRID, True, of_rows)
    scaler = Scaler(GRID, voxels, layout, model, first_error_model(data), no_scale_errors(2))
    predictions = predict_all(scaler, [(0, block)], of_rows, 1, tmp_path)
    scaled = scaled_rows(block, predictions.unit.astype(float), predictions.added.astype(float), 0, 1.0)
    intensity = (scaled["counts"] - scaled["background"]) / scaled["norm"]
    assert np.abs(level[0] / level[1] - 1).max() > 0.02
    np.testing.assert_allclose(intensity, level[1], rtol=1e-4)


def test_closed_loop_curves(planted):
    """Everything planted comes back: b of both crystals within 1 %, modules within 0.3 %, the offset's variation."""
    _, result = planted
    model = result.refinement.model
    assert set(model.terms) == {"a", "b", "c", "m"}
    t = (np.arange(40) + 0.5) / 40
    ratios = []
    for e in range(2):
        fitted = np.exp(model.value("b", places(e, {T: t, S: 0.2})))
        ratios.append(fitted / true_b(e, t))
    ratios = np.concatenate(ratios)
    assert np.std(ratios / ratios.mean()) < 0.01
    modules = np.exp(model.coefficients[model.block("m").all])
    assert modules[0] / modules[1] == pytest.approx(MODULES[0] / MODULES[1], rel=0.003)


def test_closed_loop_map(planted):
    """The anisotropic part has the true size within 1 % in every shell, and is as good as counting allows."""
    folder, _ = planted
    data = merge(folder / "out.h5")
    truth = true_intensity(GRID, data.index)
    x, y = anisotropic(GRID, data.index, data.intensity), anisotropic(GRID, data.index, truth)
    assert np.corrcoef(x, y)[0, 1] > 0.999
    s = GRID.s_magnitude(data.index)
    slope = x @ y / (y @ y)
    for low, high in ((0.0, 0.2), (0.2, 0.27), (0.27, 0.34)):
        shell = (s >= low) & (s < high)
        assert x[shell] @ y[shell] / (y[shell] @ y[shell]) == pytest.approx(slope, rel=0.01)
    before = merge(folder / "in.h5")
    unscaled = anisotropic(GRID, before.index, before.intensity)
    assert np.corrcoef(unscaled, y)[0, 1] < np.corrcoef(x, y)[0, 1] - 0.001


def test_weak_data_are_not_biased(tmp_path):
    """About three counts in an observation: merged over true is the same for strong and weak voxels, within 1 %."""
    rows = make_rows(np.random.default_rng(6), scale=3 / 8 / 2, copies=16, a=False, c=False, d=False)
    assert 1 < np.mean(rows["counts"]) < 5
    scale(tmp_path, rows, terms=("b",), max_observations=30_000)
    data = merge(tmp_path / "out.h5")
    truth = true_intensity(GRID, data.index)
    overall = data.intensity.mean() / truth.mean()
    for strong in (truth > np.median(truth), truth <= np.median(truth)):
        assert data.intensity[strong].mean() / truth[strong].mean() == pytest.approx(overall, rel=0.01)


def test_terms_that_do_nothing_are_left_out(tmp_path):
    rows = make_rows(np.random.default_rng(7), a=False, c=False, d=False)
    result = scale(tmp_path, rows, max_observations=20_000)
    kept = {t.name: t.kept for t in result.refinement.judgement.tests}
    assert kept["b"]
    assert not kept["a"] and not kept["c"]


def test_harmonics_that_do_nothing_are_left_out(tmp_path):
    """Nothing planted: no term may earn its place by what smoothing does to the others."""
    rows = make_rows(np.random.default_rng(13), scale=100, copies=1, a=False, b=False, c=False, d=False)
    path = write(tmp_path / "in.h5", rows, TURNING)
    result = scale_observations([path], ScalingParameters(**SMALL), tmp_path / "out.h5", PROVENANCE, 2)
    assert result.refinement.model.terms == ()


def test_the_unit_of_the_norm_does_not_matter(tmp_path):
    """Exposures of 10 ms instead of 1 s: the same b, the same terms."""
    rows = make_rows(np.random.default_rng(14), a=False, d=False)
    results = []
    for factor in (1.0, 0.01):
        changed = rows.copy()
        for half in ("", "_odd"):
            changed["norm" + half] *= factor
            changed["rate" + half] /= factor
        changed["rate_variance"] /= factor**2
        path = write(tmp_path / f"{factor}.h5", changed, TURNING)
        parameters = ScalingParameters(**{**SMALL, "terms": ("b", "c"), "max_observations": 12_000})
        results.append(scale_observations([path], parameters, tmp_path / f"{factor}.out.h5", PROVENANCE, 2).refinement)
    assert results[0].model.terms == results[1].model.terms == ("b", "c")
    for name in "bc":
        a, b = (r.model.coefficients[r.model.block(name).all] for r in results)
        np.testing.assert_allclose(a, b, atol=1e-3)  # steps end when no parameter moves by its error, some 0.005


def test_more_background_than_signal_is_an_error(tmp_path):
    rows = make_rows(np.random.default_rng(15), copies=1)
    rows["background"] = 2 * rows["counts"] + 1
    with pytest.raises(DiffuseError, match="background is larger"):
        scale(tmp_path, rows)


def test_what_is_kept_of_all_observations_can_lie_on_disk(tmp_path, monkeypatch):
    """With the same results, and no file left; a disk that is full is said to be so, and no output is there."""
    rows, columns = make_rows(np.random.default_rng(1), copies=1), []
    for name, limit in (("memory", len(rows)), ("disk", 100)):
        monkeypatch.setattr("dials_diffuse.scaling.apply.IN_MEMORY", limit)
        (tmp_path / name).mkdir()
        scale(tmp_path / name, rows, terms=("b",))
        with ObservationFile(tmp_path / name / "out.h5") as file:
            columns.append(file.read(*OBSERVATION_DTYPE.names))
        assert len(list((tmp_path / name).iterdir())) == 2
    for name in OBSERVATION_DTYPE.names:
        np.testing.assert_array_equal(columns[0][name], columns[1][name])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    (tmp_path / "full").mkdir()
    with pytest.raises(DiffuseError, match=r"no room for 0\.0 GB"):
        scale(tmp_path / "full", rows, terms=("b",))
    assert not (tmp_path / "full" / "out.h5").exists()


def test_blocks_of_neighbouring_voxels_stay_together(tmp_path):
    """A fold holds whole neighbourhoods: neighbours share a block unless it ends between them."""
    data, _ = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(0), copies=1)))
    edge = [max(1, round(BLOCK / (np.linalg.norm(GRID.reciprocal_matrix[:, k]) / GRID.subdivide[k]))) for k in range(3)]
    assert min(edge) >= 2
    with ObservationFile(tmp_path / "a.h5") as file:
        voxels, _ = find_voxels(blocks_of_rows([file], ("index", "norm"), 1000), file.grid, True)
    index = voxels.index[data.unique]
    expected = [tuple(i // e for i, e in zip(row, edge)) for row in index.tolist()]
    by_block: dict = {}
    for number, name in zip(data.neighbourhood[:, 0].tolist(), expected):
        by_block.setdefault(number, set()).add(name)
    assert all(len(names) == 1 for names in by_block.values())
    assert len(by_block) == len(set(expected)) > 6
    fold = fold_of_blocks(data.neighbourhood[:, 0], 3, seed=0)
    for number in by_block:
        assert len(set(fold[data.neighbourhood[:, 0] == number])) == 1
    assert set(fold) == {0, 1, 2}


def test_harmonics_are_orthonormal_and_fast_ones_equal_them():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(400, 2, 3))
    u /= np.linalg.norm(u, axis=2, keepdims=True)
    slow = (harmonics(u[:, 0], range(1, 5)) + harmonics(u[:, 1], range(1, 5))) / 2
    np.testing.assert_allclose(absorption_functions(u.reshape(-1, 6), 4), slow, atol=1e-10)
    coefficients, row = rng.normal(size=(3, 24)), rng.integers(0, 3, 400)
    sums = absorption(u.reshape(-1, 6), coefficients, row, 4)
    np.testing.assert_allclose(sums, np.sum(slow * coefficients[row], axis=1), atol=1e-9)
    # an exact rule on the sphere: Gauss-Legendre nodes along z, even steps around it
    z, weight = np.polynomial.legendre.leggauss(12)
    phi = np.arange(24) * math.pi / 12
    zz, pp = (a.ravel() for a in np.meshgrid(z, phi, indexing="ij"))
    r = np.sqrt(1 - zz**2)
    values = harmonics(np.stack([r * np.cos(pp), r * np.sin(pp), zz], axis=1), range(5))
    gram = values.T @ (np.repeat(weight, 24)[:, None] * values) / 48
    np.testing.assert_allclose(gram, np.eye(25), atol=1e-12)


def test_directions_in_the_head_against_dxtbx():
    """Goniometer with setting and fixed rotations: both beams, turned back by hand into the crystal's frame."""
    experiment = make_experiment(kappa=True)
    scan = scan_geometry(experiment)
    summary = replace(EXPERIMENTS[0], **scan.in_head_frame())
    layout = make_layout([summary], replace(GRID, subdivide=(1000, 1000, 1000)))
    rng = np.random.default_rng(0)
    hkl, angle = rng.uniform(-5, 5, (30, 3)), rng.uniform(-40, 80, 30)
    index = np.rint(hkl * 1000).astype(int)
    xyz = np.stack([np.zeros(30), np.zeros(30), angle], axis=1)
    block = {"panel": np.zeros(30, dtype=int), "xyz": xyz, "s": np.zeros(30), "index": index}
    found = coordinates(layout, np.zeros(30, dtype=int), block)[:, DIFFRACTED:]
    goniometer = experiment.goniometer
    s0, a = matrix.col(experiment.beam.get_s0()), matrix.sqr(experiment.crystal.get_A())
    setting, fixed = (matrix.sqr(m) for m in (goniometer.get_setting_rotation(), goniometer.get_fixed_rotation()))
    axis = matrix.col(goniometer.get_rotation_axis_datum())
    for h, phi, row in zip(index / 1000, angle, found):
        to_laboratory = setting * axis.axis_and_angle_as_r3_rotation_matrix(phi, deg=True) * fixed
        s1 = s0 + to_laboratory * a * matrix.col(h.tolist())
        expected = [*(to_laboratory.inverse() * s1).normalize(), *(to_laboratory.inverse() * -s0).normalize()]
        np.testing.assert_allclose(row, expected, atol=1e-9)


def true_harmonics(layout, rows):
    """ln of an absorption of each sweep: a dipole and a quadrupole along odd directions, 5 % rms together."""
    u = coordinates(layout, rows["experiment"].astype(int), rows)[:, DIFFRACTED:]
    result = np.zeros(len(rows))
    for half in (u[:, :3], u[:, 3:]):
        first = np.where(rows["experiment"] == 0, half @ [0.6, 0.48, 0.64], half @ [-0.48, 0.8, 0.36])
        second = np.where(rows["experiment"] == 0, half @ [0.8, -0.6, 0.0], half @ [0.0, 0.6, 0.8])
        result += 0.05 * first + 0.05 * second**2
    return result


@pytest.fixture(scope="module")
def absorbed(tmp_path_factory):
    """Scaled observations of two crystals with b, modules, and absorption as harmonics: (folder, result, rows)."""
    folder = tmp_path_factory.mktemp("absorbed")
    rows = make_rows(np.random.default_rng(11), a=False, c=False)
    rows["norm"] *= np.exp(-true_harmonics(make_layout(TURNING, GRID), rows))
    path = write(folder / "in.h5", rows, TURNING)
    parameters = ScalingParameters(**{**SMALL, "max_observations": 25_000})
    return folder, scale_observations([path], parameters, folder / "out.h5", PROVENANCE, 2), rows


def test_closed_loop_of_harmonics(absorbed):
    """a times b comes back within 1 % rms for every observation, and the map as good as counting allows."""
    folder, result, rows = absorbed
    model = result.refinement.model
    assert {"b", "h", "m"} <= set(model.terms)
    layout = make_layout(TURNING, GRID)
    e = rows["experiment"].astype(int)
    x = coordinates(layout, e, rows)
    fitted = model.value("b", Rows(x, e)) + model.value("h", Rows(x, e))
    truth = np.log(true_b(e, x[:, 0])) + true_harmonics(layout, rows)
    difference = fitted - truth
    assert np.std(truth) > 0.3
    assert np.std(difference) < 0.01
    data = merge(folder / "out.h5")
    true = true_intensity(GRID, data.index)
    flat, expected = anisotropic(GRID, data.index, data.intensity), anisotropic(GRID, data.index, true)
    assert np.corrcoef(flat, expected)[0, 1] > 0.999


def test_true_halos_are_not_taken_for_absorption(tmp_path):
    """Clouds as large as a block, and nothing to scale: the map is left as it is, in every shell."""
    rng = np.random.default_rng(12)
    grid = small_grid("P 41", (20, 20, 24, 90, 90, 90), d_min=3.0)
    index = np.tile(all_voxels(grid), (4, 1))
    plain = true_intensity(grid, index // 2)  # neighbouring voxels are alike
    rows = make_rows(rng, copies=2, a=False, b=False, c=False, d=False)
    assert np.array_equal(rows["index"], index)
    fresh = observation_rows(grid, index, plain, rng, scale=3000.0)
    for name in ("counts", "norm", "background", "background_variance", "rate", "rate_variance", "pixels"):
        rows[name] = fresh[name]
    for name in ("counts", "norm", "background", "rate", "pixels"):
        rows[name + "_odd"] = fresh[name + "_odd"]
    path = write(tmp_path / "in.h5", rows, TURNING)
    scale_observations([path], ScalingParameters(**SMALL), tmp_path / "out.h5", PROVENANCE, 2)
    before, after = merge(path), merge(tmp_path / "out.h5")
    assert np.array_equal(before.index, after.index)
    x, y = (anisotropic(grid, m.index, m.intensity) for m in (after, before))
    s = grid.s_magnitude(after.index)
    for low, high in ((0.0, 0.2), (0.2, 0.27), (0.27, 0.34)):
        shell = (s >= low) & (s < high)
        assert x[shell] @ y[shell] / (y[shell] @ y[shell]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("share", [0.8, 0.1])
def test_ratio_of_sweeps_by_the_anisotropic_part(share):
    """Sweeps that measure the same voxels with different factors and noise: within the errors, which are honest.

    share : of the voxels, that the last sweep measures: some five in a block, of which an offset takes a fifth
    """
    rng = np.random.default_rng(0)
    index = np.array(all_voxels(GRID))
    grid, n_sweeps, profile = GRID, 3, rng.uniform(1, 2, len(index))
    truth, deviations = np.array([1.3, 0.9, 1 / 1.17]), []
    smooth = 0.5 * np.sin(3 * GRID.s_magnitude(index))  # errors of each sweep's isotropic part are larger than noise
    for _ in range(20):
        anisotropic = 0.05 * rng.normal(size=len(index)) * profile
        unique = np.repeat(np.arange(len(index)), n_sweeps).astype(np.int32)
        experiment = np.tile(np.arange(n_sweeps), len(index)).astype(np.uint16)
        unit = rng.uniform(100, 300, len(unique)).astype(np.float32)
        sigma = 0.05 * unit
        residual = unit * truth[experiment] * anisotropic[unique] + sigma * rng.normal(size=len(unique))
        residual += unit * 0.02 * (experiment - 1.0) * smooth[unique] * profile[unique]
        kept = rng.random(len(unique)) < np.where(experiment == 2, share, 0.8)
        unique[rng.random(len(unique)) < 0.05] = -1
        predictions = Predictions(
            unique, experiment, unit, np.zeros_like(unit), (sigma**-2.0).astype(np.float32),
            residual.astype(np.float32), np.ones_like(unit), np.zeros_like(unit),
        )  # fmt: skip
        levels = find_levels(predictions, ~kept, profile, grid, index, n_sweeps, 0)
        deviations.append((np.log(levels.factor) - np.log(truth / np.prod(truth) ** (1 / 3))) / levels.esd)
    assert np.all(levels.esd < 0.03)
    assert 0.7 < np.std(deviations) < 1.4
    assert np.abs(np.mean(deviations, axis=0)).max() < 0.8  # of 20 trials: ± 0.22


def test_likelihood_without_offsets_by_differences_and_by_the_dense_form():
    """Of flat offsets integrated out: a wide normal prior in their place gives the same, but for a constant."""
    rng = np.random.default_rng(1)
    value, weight, shell = rng.normal(size=(30, 3)), rng.uniform(0.5, 2, (30, 3)), rng.integers(0, 2, 30)
    weight[rng.random((30, 3)) < 0.2] = 0
    weight[20:, 1] = 0
    first, x = np.array([0, 7, 20]), rng.normal(0, 0.3, 5)
    slope = without_offsets(x, value, weight, shell, first)[1]
    for k, step in enumerate(1e-6 * np.eye(5)):
        ends = [without_offsets(x + sign * step, value, weight, shell, first)[0] for sign in (1, -1)]
        assert slope[k] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-5)

    def dense(x):
        result, width = 0.5 * np.sum((x[:3] / 0.1) ** 2), 1e3
        for rows in np.split(np.arange(30), first[1:]):
            v, e = np.nonzero(weight[rows] > 0)
            g, t = np.exp(x[:3]), np.exp(x[3:])[shell[rows]]
            covariance = np.outer(g[e], g[e]) * (v[:, None] == v) * t[v] + width**2 * (e[:, None] == e)
            covariance += np.diag(1 / weight[rows[v], e])
            result -= multivariate_normal.logpdf(value[rows[v], e], np.zeros(len(v)), covariance)
        return result

    other = x + rng.normal(0, 0.3, 5)
    difference = [without_offsets(y, value, weight, shell, first)[0] for y in (x, other)]
    assert difference[0] - difference[1] == pytest.approx(dense(x) - dense(other), abs=1e-3)
    assert without_offsets(x, value, weight, shell, first)[2][2, 1] == 0


def test_likelihood_of_the_ratio_by_differences_and_by_the_dense_form():
    rng = np.random.default_rng(1)
    value, weight, shell = rng.normal(size=(30, 3)), rng.uniform(0.5, 2, (30, 3)), rng.integers(0, 2, 30)
    weight[rng.random((30, 3)) < 0.2] = 0
    x = rng.normal(0, 0.3, 5)
    result, slope = minus_log_likelihood(x, value, weight, shell)
    for k, step in enumerate(1e-6 * np.eye(5)):
        ends = [minus_log_likelihood(x + sign * step, value, weight, shell)[0] for sign in (1, -1)]
        assert slope[k] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-5)
    dense = 0.5 * np.sum((x[:3] / 0.1) ** 2)
    for v, w, t in zip(value, weight, np.exp(x[3:])[shell]):
        seen = w > 0
        covariance = t * np.outer(np.exp(x[:3]), np.exp(x[:3]))[np.ix_(seen, seen)] + np.diag(1 / w[seen])
        dense -= multivariate_normal.logpdf(v[seen], np.zeros(seen.sum()), covariance)
        dense -= 0.5 * np.sum(np.log(2 * np.pi / w[seen]))
    assert result == pytest.approx(dense)


def test_levels_leave_the_isotropic_part_alone(tmp_path):
    """A model with levels: other scales of the sweeps, the same isotropic counts, also in the rows that are written."""
    rows = make_rows(np.random.default_rng(5), copies=1)
    data, layout = read_sample(write(tmp_path / "a.h5", rows))
    model = start_model(data, layout, ScalingParameters(**SMALL))
    model = model.moved(np.where(np.arange(model.n_parameters) >= model.block("b").start, 0.1, 0.0))
    changed = replace(model, levels=np.array([1.1, 1 / 1.1]))
    old, new = (m.predict_observations(data) for m in (model, changed))
    np.testing.assert_allclose(new.isotropic, old.isotropic)
    np.testing.assert_allclose(new.unit, old.unit * changed.levels[data.experiment])
    block, of_rows = {name: rows[name] for name in OBSERVATION_DTYPE.names}, np.empty(len(rows), np.int32)
    voxels, _ = find_voxels([block], GRID, True, of_rows)
    errors = first_error_model(data)
    whole, direct = (
        predict_all(Scaler(GRID, voxels, layout, m, errors, no_scale_errors(2)), [(0, block)], of_rows, 1, tmp_path)
        for m in (model, changed)
    )
    apply_levels(whole, changed.levels, model.profile(GRID.s_magnitude(voxels.index)))
    np.testing.assert_allclose(whole.unit, direct.unit, rtol=1e-5)
    np.testing.assert_allclose(whole.added, direct.added, atol=1e-5 * np.abs(direct.added).max())


def test_sweeps_that_are_indexed_otherwise_are_found(tmp_path, planted):
    """P41 on a tetragonal lattice: k,h,-l is another crystal, and so is the merged map of both as they are."""
    assert planted[1].crystals.quiet
    rows = make_rows(np.random.default_rng(1))
    second = rows["experiment"] == 1
    h, k, l = rows["index"][second].T
    rows["index"][second] = np.transpose([k, h, -l])
    kept = CrystalParameters(reindex="none")
    result = scale(tmp_path, rows, max_observations=25_000, terms=("b", "c"), crystals=kept)
    first, found = result.crystals.crystals
    assert first.kept and found.kept and first.operator == found.operator == "h,k,l"  # one against one: no majority
    assert found.verdict == "map" and found.correlation > 0.9 and found.correlation_as_given < 0.3
    assert any("is indexed otherwise" in warning and found.suggested in warning for warning in result.warnings)
    other = next(s for s in alternative_settings(GRID)[1:] if s.operator == found.suggested)
    laue = {r.tobytes() for r in laue_operators(GRID.space_group, True)}
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
    assert np.rint(swap @ np.linalg.inv(other.matrix)).astype(np.int64).tobytes() in laue


@pytest.mark.parametrize("subdivide", [(2, 3, 2), (2, 2, 2)])
def test_settings_that_the_subdivision_forbids_are_told(tmp_path, subdivide):
    """a is nearly b: not tested where a* and b* are subdivided otherwise; the sweeps are scaled all the same."""
    grid = small_grid("P 21 21 21", (16, 16.02, 22, 90, 90, 90), subdivide, d_min=3.0)
    path = write(tmp_path / "in.h5", make_rows(np.random.default_rng(1), copies=1, grid=grid), grid=grid)
    parameters = ScalingParameters(**{**SMALL, "terms": ("b",)})
    result = scale_observations([path], parameters, tmp_path / "out.h5", PROVENANCE, 2)
    (other,) = alternative_settings(grid)[1:]
    told = [w for w in result.warnings if f"no test whether the setting is {other.operator}" in w]
    assert len(told) == (subdivide == (2, 3, 2)) and all("grid.subdivide=2,3,2" in w for w in told)
    assert result.crystals.quiet and len(result.crystals.operators) == 2 - len(told)


def test_crystals_are_correlated(planted):
    _, result = planted
    assert result.correlations[0, 1] > 0.9
    assert result.correlations[0, 0] == 1


def test_the_variance_of_the_background_counts(tmp_path):
    data, layout = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(16), copies=1)))
    model, kept = start_model(data, layout, ScalingParameters(**SMALL)), np.zeros(data.n, dtype=bool)
    errors = first_error_model(data)
    noisy = replace(data, background_variance=data.background_variance + 1000.0)
    prediction = model.predict_observations(data)
    before, after = (1 / weigh(prediction, d, errors, kept).weight for d in (data, noisy))
    np.testing.assert_allclose(after - before, 1000.0, rtol=1e-6)


def test_two_files_are_as_one(tmp_path):
    rows = make_rows(np.random.default_rng(9), copies=1)
    both = write(tmp_path / "both.h5", rows)
    parts = []
    for e in range(2):
        mine = rows[rows["experiment"] == e].copy()
        mine["experiment"] = 0
        parts.append(write(tmp_path / f"{e}.h5", mine, EXPERIMENTS[e : e + 1]))
    parameters = ScalingParameters(terms=("b",), max_observations=10_000)
    a = scale_observations([both], parameters, tmp_path / "a.h5", PROVENANCE)
    b = scale_observations(parts, parameters, tmp_path / "b.h5", PROVENANCE)
    np.testing.assert_allclose(a.refinement.model.coefficients, b.refinement.model.coefficients, rtol=1e-6, atol=1e-9)
    with ObservationFile(tmp_path / "b.h5") as file:
        assert [e.identifier for e in file.experiments] == ["id-0", "id-1"]
        assert set(file.read("experiment")["experiment"]) == {0, 1}


def test_scaling_twice_is_refused(planted, tmp_path):
    folder, _ = planted
    with pytest.raises(DiffuseError, match="scaled already"):
        scale_observations([folder / "out.h5"], ScalingParameters(), tmp_path / "b.h5", PROVENANCE)
    assert not (tmp_path / "b.h5").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (partial(ScalingParameters, terms=("b", "x")), "no term x"),
        (partial(ScalingParameters, outlier_n_sigma=-1.0), "outlier.n_sigma"),
        (partial(DriftOptions, angle=0.0), "scale_model.b.angle"),
        (partial(AbsorptionOptions, nodes=2), "scale_model.a.nodes"),
    ],
)
def test_bad_parameters(change, message):
    with pytest.raises(DiffuseError, match=message):
        change()


def test_program(planted, tmp_path, monkeypatch, capsys):
    folder, _ = planted
    monkeypatch.chdir(tmp_path)
    cli.run([str(folder / "in.h5"), "model=b", "scale_model.b.angle=10", "nproc=1", "absolute_scale.method=none"])
    summary = json.loads((tmp_path / "diffuse_scaled.json").read_text())
    assert summary["schema"] == "dials.diffuse_scale/1"
    assert summary["terms"]["used"] == ["b"]
    assert len(summary["sweeps"]) == 2 and len(summary["sweeps"][0]["b"]) == 40
    with ObservationFile(tmp_path / "diffuse_scaled.h5") as file:
        assert file.scaled and file.n_rows == summary["n_observations"] - summary["n_outliers"]
    for arguments, text in (
        ([str(folder / "in.h5"), "model=b,z"], "no term z"),
        ([str(folder / "in.h5"), "absolute_scale.method=none", "absolute_scale.sequence=A"], "leave out"),
        (["diffuse_scaled.h5", "output.observations=again.h5"], "scaled already"),
        (["nothing.h5"], "no such file"),
    ):
        fails(cli.run, arguments, capsys, words=[text])


def test_without_orientation_a_is_a_spline_and_the_user_is_told(planted):
    _, result = planted
    assert result.refinement.model.block("a") and not result.refinement.model.block("h")
    assert any("orientation" in w for w in result.warnings)


def test_panels_get_factors_of_their_own(tmp_path):
    """Positions on different panels are not one plane: a spline is left out, and the user is told."""
    rows = make_rows(np.random.default_rng(10), copies=1, scale=500, a=False, c=False, d=False)
    rows["panel"] = np.arange(len(rows)) % 2
    rows["norm"][rows["panel"] == 1] /= 1.05
    path = write(tmp_path / "in.h5", rows, [replace(e, n_panels=2, image_size=(487, 195)) for e in EXPERIMENTS])
    parameters = ScalingParameters(**SMALL, max_observations=10_000)
    result = scale_observations([path], parameters, tmp_path / "out.h5", PROVENANCE)
    model = result.refinement.model
    assert "a" not in model.terms and "m" in model.terms
    factors = model.coefficients[model.block("m").all]
    assert factors[1] - factors[0] == pytest.approx(math.log(1.05), abs=0.002)
    assert any("several panels" in w for w in result.warnings)


def test_terms_tell_what_the_tables_of_the_program_say():
    """Keys are unique, names, labels and words are there, and the phil defaults are those of the options."""
    terms = (*CRYSTAL, *TERMS)
    assert len({term.key for term in terms}) == len({term.label for term in terms}) == len(terms)
    assert ScalingParameters().terms == NAMES == tuple(cli.phil_scope.extract().model.split(","))
    assert all(f"{name}: " in help_of_names() for name in NAMES)
    defaults = cli.parameters_from_phil(cli.phil_scope.extract())
    assert defaults.options == tuple(kind() for kind in OPTIONS)
    assert replace(defaults, options=()) == ScalingParameters()


@pytest.mark.parametrize("experiments", [EXPERIMENTS, TURNING])
def test_every_term_is_linear_in_its_coefficients(tmp_path, experiments):
    """Its columns of the design matrix times the coefficients are its value; penalty and gauge have their shapes."""
    rows = make_rows(np.random.default_rng(2), copies=1)
    data, layout = read_sample(write(tmp_path / "a.h5", rows, experiments), share=0.2)
    model = start_model(data, layout, ScalingParameters(**SMALL))
    assert len(model.of_experiment) == (4 if experiments is EXPERIMENTS else 5)
    coefficients = np.random.default_rng(0).normal(size=model.n_parameters)
    terms = {term.key: term for term in model.blocks}
    some = data.rows.at(np.arange(0, data.n, 7))
    for term in model.blocks:
        value = term.value(coefficients, some)
        np.testing.assert_allclose(term.basis(some) @ coefficients[term.all], value, atol=1e-9)
        index, design = np.empty((len(value), term.width), dtype=np.int64), np.empty((len(value), term.width))
        factor = np.random.default_rng(1).normal(size=len(value))
        term.fill(some, factor, Design(index, design), 0)
        np.testing.assert_allclose(np.sum(design * coefficients[index], axis=1), factor * value, atol=1e-9)
        assert index.min() >= term.all.start and index.max() < term.all.stop
        penalty = term.penalty()
        assert penalty.shape == (term.size, term.size) and np.linalg.eigvalsh(penalty).min() > -1e-9 * penalty.max()
        assert term.gauge(some, terms).shape[1] == term.all.stop - term.all.start
    assert terms["q"].smoothing == 0  # its coefficients are held by their usual size alone
    slope, smooth = np.random.default_rng(3).normal(size=len(value)), terms["q"]
    np.testing.assert_allclose(smooth.gradient(some, slope), smooth.basis(some).T @ slope, atol=1e-9)


def test_the_profile_begins_as_the_mean_rate_around_each_node(tmp_path):
    """Of counts that rise in a straight line, and with a gap that is bridged."""
    data, layout = read_sample(write(tmp_path / "a.h5", make_rows(np.random.default_rng(2), copies=1)))
    profile = start_model(data, layout, ScalingParameters(**SMALL)).block("p")
    low, step = profile.tensor.limits[0]
    node = low + (np.arange(profile.size) - 0.5) * step
    s = np.random.default_rng(0).uniform(low, node[-1], 20_000)
    s = s[(s < (node[3] + node[4]) / 2) | (s > (node[6] + node[7]) / 2)]
    norm = np.random.default_rng(1).uniform(1, 3, len(s))
    found = profile.first(s, norm * (2 + 30 * s), norm)
    np.testing.assert_allclose(found[1:-1], 2 + 30 * node[1:-1], atol=30 * step / 4)


@pytest.mark.parametrize("kept", ["planted", "absorbed"])
def test_what_scaling_found_can_be_pickled(kept, request, tmp_path):
    result = request.getfixturevalue(kept)[1]
    again = pickle.loads(pickle.dumps(result))
    for name, found in (("first", result), ("again", again)):
        write_json(tmp_path / name, scaling_record(found))
    assert (tmp_path / "again").read_text() == (tmp_path / "first").read_text()
    assert scaling_text(again) == scaling_text(result)
