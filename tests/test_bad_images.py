"""Images that do not belong are found by what the scale model leaves of them, and left out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from helpers.builders import PROVENANCE, small_grid
from helpers.loops import LLM, REDUCTION, compare_with_truth, simulated
from helpers.samples import read_sample
from helpers.structures import random_structure
from helpers.sweeps import SIZE, image_of, random_intensity, summary, sweep_rows, write_sweeps
from helpers.two_crystals import SMALL, make_rows, write

from dials_diffuse.cli import scale as cli
from dials_diffuse.experiment.cbf import write_cbf
from dials_diffuse.experiment.images import read_image
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.maps.shells import anisotropic_correlation
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.report.scaling import scaling_text
from dials_diffuse.scaling.error_model import first_error_model, weigh, whole_prior
from dials_diffuse.scaling.images import BLANK, DISAGREEMENT, REGION, RING, SCALE, _Sweep, deviations
from dials_diffuse.scaling.layout import MODULE, N_COORDINATES, S, T, X, Y, make_layout
from dials_diffuse.scaling.model import start_model
from dials_diffuse.scaling.record import scaling_record, suggested_cuts
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.terms.drift import DriftOptions
from dials_diffuse.simulation.simulation_parameters import Background

N = 90
GRID = small_grid("P 4 2 2", (20, 20, 26, 90, 90, 90), d_min=2.6)
PARAMETERS = ScalingParameters(terms=("b",), options=SMALL["options"], max_observations=60_000, n_folds=3, n_cycles=4)

BLANKS, ICE, DROP = {10, 11, 40, 60, 61}, {20, 71}, {75}
FOURTH = set(range(4, N + 1, 4))
SHADOW = set(range(31, 51))


def number(t):
    return np.clip((t * N).astype(int), 0, N - 1) + 1


def hit(t, images):
    return np.isin(number(t), list(images))


def drift(x, y, t, s):
    return 1 - 0.2 * t


def blanks_and_a_drop(x, y, t, s):
    return drift(x, y, t, s) * np.where(hit(t, BLANKS), 0.01, 1) * np.where(hit(t, DROP), 0.3, 1)


def ice_rings(x, y, t, s):
    return np.where(hit(t, ICE), 4 * np.exp(-(((s - 1 / 3.67) / 0.006) ** 2)), 0)


def every_fourth_defocused(x, y, t, s):
    """What is measured has little to do with the voxel."""
    return drift(x, y, t, s) * np.where(hit(t, FOURTH), np.exp(np.random.default_rng(7).normal(0, 0.4, len(x))), 1)


def shadow(x, y, t, s):
    return drift(x, y, t, s) * np.where(hit(t, SHADOW) & (x > 0.6) & (y > 0.5), 0.05, 1)


def sweep(seed, factor=drift, added=None, scale=100.0, spread=0.3):
    """One sweep of the same crystal in an orientation of its own."""
    rng = np.random.default_rng(seed)
    intensity = partial(random_intensity, spread=spread)
    return sweep_rows(GRID, intensity, rng, scale=scale, factor=factor, added=added, seed=seed)


def write_all(path, *sweeps):
    experiments = [summary(f"id-{i}", n_images=N) for i in range(len(sweeps))]
    return write_sweeps(path, GRID, *sweeps, experiments=experiments)


def scaled(folder, *sweeps, **options):
    path = write_all(folder / "in.h5", *sweeps)
    return scale_observations([path], replace(PARAMETERS, **options), folder / "scaled.h5", PROVENANCE)


def agreement(path):
    """Correlation of the merged map's anisotropic part with the truth."""
    merged = merge_observations([path], MergeParameters(n_shells=4)).map
    truth = random_intensity(GRID, merged.index)
    return anisotropic_correlation(merged.intensity, truth, GRID.s_magnitude(merged.index))


def found(result, experiment):
    """{image: reason} of the images of a sweep that are bad."""
    mine = [b for b in result.images.bad if b.experiment == experiment]
    return {image: b.reason for b in mine for image in range(b.first, b.last + 1)}


SWEEPS = (
    partial(sweep, 0, blanks_and_a_drop, ice_rings),
    partial(sweep, 1, every_fourth_defocused, scale=300.0),
    partial(sweep, 2, shadow),
)
BAD = (BLANKS | ICE | DROP, FOURTH, SHADOW)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """(folder, result of scaling) of three sweeps with bad images of all kinds."""
    folder = tmp_path_factory.mktemp("spoilt")
    return folder, scaled(folder, *(make() for make in SWEEPS))


def test_bad_images_are_found_and_no_others(spoilt):
    _, result = spoilt
    assert found(result, 0) == {
        **dict.fromkeys(BLANKS, BLANK),
        **dict.fromkeys(ICE, RING),
        **dict.fromkeys(DROP, SCALE),
    }
    assert found(result, 1) == dict.fromkeys(FOURTH, DISAGREEMENT)
    assert set(found(result, 2)) == SHADOW and set(found(result, 2).values()) == {REGION}
    for b in result.images.bad:
        if b.reason == RING:
            assert b.d_min - 0.1 < 3.67 < b.d_max + 0.1 and b.counts > 1.1
        if b.reason == REGION:
            assert b.x[1] > 0.6 * SIZE[0] and b.y[1] > 0.5 * SIZE[1] and b.counts < 0.9
        if b.reason == SCALE:
            assert b.counts == pytest.approx(0.3, abs=0.05)


def test_the_map_is_as_good_as_without_them(spoilt, tmp_path):
    folder, _ = spoilt
    sweeps = [make() for make in SWEEPS]
    kept = scaled(tmp_path, *sweeps, reject_images=False)
    before = agreement(tmp_path / "scaled.h5")
    assert {(b.experiment, b.first) for b in kept.images.bad} and not kept.images.left_out
    assert kept.n_in_bad_images == 0 and any("are kept (reject_images=none)" in w for w in kept.warnings)
    scaled(tmp_path, *(s[~np.isin(image_of(s, n_images=N), list(bad))] for s, bad in zip(sweeps, BAD)))
    best = agreement(tmp_path / "scaled.h5")
    after = agreement(folder / "scaled.h5")
    assert best > 0.999
    assert 1 - before > 3 * (1 - best) and 1 - after < 1.05 * (1 - best)


def test_they_are_out_of_the_scaled_file_and_in_every_report(spoilt):
    folder, result = spoilt
    with ObservationFile(folder / "scaled.h5") as file:
        columns = file.read("experiment", "xyz")
        used = [e.n_images_used for e in file.experiments]
    assert used == [N - len(bad) for bad in BAD]
    for experiment, bad in enumerate(BAD):
        mine = columns["experiment"] == experiment
        left = set(image_of({"xyz": columns["xyz"][mine]}, n_images=N))
        assert left == set(range(1, N + 1)) - bad
    record = scaling_record(result)
    assert record["images"]["left_out"] and record["images"]["rounds"] == result.images.rounds > 1
    assert {b["reason"] for b in record["images"]["bad"]} == {BLANK, SCALE, RING, REGION, DISAGREEMENT}
    assert record["n_in_bad_images"] == result.n_in_bad_images
    assert result.n_in_bad_images + result.n_outliers + len(columns["xyz"]) == result.n_observations
    assert "2:31:50" in suggested_cuts(result)[str(folder / "in.h5")]
    text = scaling_text(result)
    assert "sweep 2, images 31 to 50: a region of the detector" in text and "sweep 0, images 10 to 11: blank" in text
    (warning,) = [w for w in result.warnings if w.startswith("sweep 0 (id-0)")]
    assert "8 images do not agree with the others (blank 5, scale 1, ring 2): 10-11, 20, 40, 60-61, 71, 75" in warning


@pytest.mark.parametrize("scales, spread", [((100.0, 3.0), 0.3), ((30.0, 1000.0), 0.02)])
def test_good_images_stay(tmp_path, scales, spread):
    """Two doses, strong and weak, a signal of 30 and of 2 %."""
    result = scaled(tmp_path, *(sweep(i, scale=scale, spread=spread) for i, scale in enumerate(scales)))
    assert result.images.bad == [] and result.images.rounds == 1


def test_what_the_model_does_not_describe_costs_no_image(tmp_path):
    """Absorption by up to a factor of two, and no term for it: every image is as bad as the others."""

    def absorbed(x, y, t, s):
        return drift(x, y, t, s) * np.exp(-0.7 * (x - 0.5) * np.cos(6 * t) - 0.6 * (y - 0.5) * np.sin(5 * t))

    result = scaled(tmp_path, sweep(0, absorbed))
    assert result.images.bad == []
    assert result.refinement.errors.excess.max() > 0.1  # where the errors go


def test_too_many_bad_images_are_kept_with_a_warning(tmp_path):
    def scrambled(x, y, t, s):
        return np.where(number(t) % 5 < 2, np.exp(np.random.default_rng(7).normal(0, 0.5, len(x))), 1)

    result = scaled(tmp_path, sweep(0, scrambled))
    assert result.images.too_many and not result.images.left_out and result.n_in_bad_images == 0
    (text,) = (w for w in result.warnings if "images do not agree" in w)
    assert re.search(r"sweep 0 \(id-0\): 3\d images do not agree with the others", text)
    assert "more than max_rejected_fraction" in text and "all are kept" in text
    assert result.experiments[0].n_images_used == 90


def test_a_spoilt_image_is_left_out_and_suggested(tmp_path):
    rows = make_rows(np.random.default_rng(8), a=False, c=False, d=False)
    spoilt = (rows["experiment"] == 1) & (rows["xyz"][:, 2].astype(int) == 20)
    rows["counts"][spoilt] *= np.random.default_rng(0).uniform(0.8, 1.2, spoilt.sum())
    parameters = ScalingParameters(**SMALL, terms=("b",), max_observations=20_000)
    path = write(tmp_path / "in.h5", rows)
    result = scale_observations([path], parameters, tmp_path / "out.h5", PROVENANCE)
    assert result.images.runs() == [(1, 21, 21)]
    assert suggested_cuts(result) == {str(path): "1:21:21"}


def image_table(n_images, per_image, rng):
    """Coordinates, z, excess and expected counts of a sweep in which all is as expected."""
    n = n_images * per_image
    x = np.zeros((n, N_COORDINATES))
    x[:, T] = (np.repeat(np.arange(n_images), per_image) + 0.5) / n_images
    x[:, [X, Y]], x[:, S] = rng.random((n, 2)), rng.uniform(0.1, 0.5, n)
    z, expected = rng.normal(size=n), np.full(n, 9.0)
    return x, z, expected


def bad_of(n_images, x, z, expected, together=1):
    experiment = summary(n_images=n_images)
    layout = make_layout([experiment], GRID)
    return _Sweep(0, experiment, layout, x, z, z * np.sqrt(expected), expected, together).bad(signal=0.1)


@pytest.mark.parametrize("n_images, per_image", [(3600, 12), (3600, 100), (300, 700), (12, 4000), (5, 4000)])
def test_chance_makes_no_image_bad(n_images, per_image):
    """Nor a few reflections that nothing masked, all on one image; few images together tell nothing at all."""
    rng = np.random.default_rng(0)
    x, z, expected = image_table(n_images, per_image, rng)
    peaks = rng.integers(0, per_image, 10) + (n_images // 2) * per_image
    z[peaks] = 500.0
    for together in (1, 4):
        assert bad_of(n_images, x, z, expected, together) == []


@pytest.mark.parametrize(
    "reason, change",
    [
        (SCALE, lambda x, z: z - 1.5),
        (BLANK, lambda x, z: np.full(len(z), -3.0)),
        (RING, lambda x, z: z + 4 * (np.abs(x[:, S] - 0.3) < 0.02)),
        (REGION, lambda x, z: z - 2 * (x[:, X] < 0.25) * (x[:, Y] < 0.5)),
        (DISAGREEMENT, lambda x, z: 1.8 * z),
    ],
)
def test_what_the_residuals_say(reason, change):
    rng = np.random.default_rng(1)
    x, z, expected = image_table(60, 800, rng)
    mine = slice(30 * 800, 31 * 800)
    z[mine] = change(x[mine], z[mine])
    (bad,) = bad_of(60, x, z, expected)
    assert (bad.first, bad.last, bad.reason) == (31, 31, reason)
    assert reason in bad.words or reason in (REGION, DISAGREEMENT)


def test_neighbours_of_a_bad_image_get_another_chance():
    """A smooth term that follows a blank image makes others deviate, to the other side."""
    rng = np.random.default_rng(2)
    x, z, expected = image_table(60, 400, rng)
    image = np.repeat(np.arange(60), 400)
    z -= 3 * (image == 30)
    z += 2 * ((image == 29) | (image == 31))
    assert [b.first for b in bad_of(60, x, z, expected)] == [31]
    z -= 3 * (image == 50)  # far away, and to the same side: both
    assert [b.first for b in bad_of(60, x, z, expected)] == [31, 51]


def test_images_in_the_shadow_of_something(tmp_path):
    """Whole images, a quarter of the detector in shadow on 12 of 60: the map is as good as without these.

    So few observations tell only of several images together: good ones may go with them.
    """
    structure = random_structure("P 41", (16, 16, 14, 90, 90, 90), "CNOCS" * 2, u=(0.3, 0.45))
    background = Background(air=1.0, liquid=0.01, solvent=False)
    data = simulated(tmp_path, structure, LLM, REDUCTION.d_min, (120, 100, 0.8), background=background)
    experiment, rng = data.experiments[0], np.random.default_rng(1)
    shaded = set(range(20, 32))
    y, x = np.mgrid[:100, :120]
    for i in shaded:
        (image,) = read_image(experiment.imageset, i - 1)
        image = np.where((image > 0) & (x > 62) & (y > 45), rng.binomial(np.maximum(image, 0), 0.05), image)
        write_cbf(experiment.imageset.get_path(i - 1), [image.astype(np.int32)], experiment, i)
    data = load_input([str(tmp_path / "simulated.expt"), str(tmp_path / "simulated.refl")])
    truth = read_map(tmp_path / "truth.nxs")
    parameters = replace(PARAMETERS, options=(DriftOptions(angle=20.0),))

    def run(excluded=(), **options):
        integrate(data.experiments, REDUCTION, tmp_path / "n.h5", PROVENANCE, data.reflections, excluded=excluded)
        result = scale_observations([tmp_path / "n.h5"], replace(parameters, **options), tmp_path / "s.h5", PROVENANCE)
        merged = merge_observations([tmp_path / "s.h5"], MergeParameters(n_shells=4)).map
        return result, compare_with_truth(merged, truth).cc

    result, cc = run()
    assert shaded <= set(found(result, 0)) <= set(range(17, 35))
    assert [b.reason for b in result.images.bad].count(REGION) > len(result.images.bad) / 2
    best = run(excluded=[(0, i, i) for i in shaded])[1]
    before = run(reject_images=False)[1]
    assert cc > max(best, before) - 0.01  # the rejection of single outliers has saved this map already


def test_deviations_equal_loops(tmp_path):
    """What each observation deviates by from the posterior mean of all others of its voxel."""
    path = write_all(tmp_path / "a.h5", sweep(0)[::7])
    data, layout = read_sample(path, 0.3)
    model, errors = start_model(data, layout, PARAMETERS), first_error_model(data)
    prediction = model.predict_observations(data)
    rejected = np.random.default_rng(0).random(data.n) < 0.1
    z, excess = deviations(prediction, data, errors, rejected)
    weights = weigh(prediction, data, errors, np.zeros(data.n, dtype=bool))
    w, u, r = weights.weight, prediction.unit, data.net - prediction.isotropic
    prior = whole_prior(data, prediction, errors)
    for i in range(0, data.n, 50):
        others = (data.orbit == data.orbit[i]) & ~rejected
        others[i] = False
        precision = (w[others] * u[others] ** 2).sum() + prior[data.orbit[i]]
        mean = (w[others] * u[others] * r[others]).sum() / precision
        assert excess[i] == pytest.approx(r[i] - u[i] * mean)
        assert z[i] == pytest.approx(excess[i] / np.sqrt(1 / w[i] + u[i] ** 2 / precision))


def test_detectors_of_several_panels_are_compared_by_panel():
    rng = np.random.default_rng(3)
    x, z, expected = image_table(60, 800, rng)
    experiment = replace(summary(n_images=60), n_panels=8)
    layout = make_layout([experiment], GRID)
    x[:, MODULE] = rng.integers(0, layout.n_modules, len(x))
    z -= 3 * (np.repeat(np.arange(60), 800) == 9) * (x[:, MODULE] == 3)
    (bad,) = _Sweep(0, experiment, layout, x, z, z * 3, expected, 1).bad(signal=0.1)
    assert (bad.first, bad.reason, bad.x) == (10, REGION, None)


def test_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_all("a.h5", sweep(0, blanks_and_a_drop))
    cli.run(["a.h5", "model=b", "automatic=False", "nproc=1", "refinement.n_cycles=4", "refinement.n_folds=3"])
    record = json.loads((tmp_path / "diffuse_scaled.json").read_text())
    assert {b["first"] for b in record["images"]["bad"]} == BLANKS | DROP
    assert any("6 images do not agree" in w for w in record["warnings"])
    assert "image 75 is left out: scale: 0.3" in (tmp_path / "dials.diffuse_scale.log").read_text()
    assert (tmp_path / "diffuse_scaled.png").exists()
