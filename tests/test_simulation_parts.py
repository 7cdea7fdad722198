"""Pieces of the simulator against slow oracles, limits and identities: spline, background, scales, noise, defects."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.oracle import correction, miller_index
from helpers.structures import random_structure
from helpers.synthetic import GEOMETRIES, make_crystal, make_detector, make_experiment, rotation
from scipy import ndimage

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.build import BeamParameters, DetectorParameters, ScanParameters, build_detector
from dials_diffuse.experiment.pixel_factors import air_attenuation_coefficient
from dials_diffuse.kernels.spline import add_spline, spline_points
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.reduction.corrections import MICROSTERADIAN
from dials_diffuse.simulation.diffuse import DiffuseVolume, spline_through
from dials_diffuse.simulation.plan import plan_sweeps
from dials_diffuse.simulation.prepare_sweep import beam_stop_mask, module_numbers, prepare_sweep, random_pixels
from dials_diffuse.simulation.sampling import choose_sampling
from dials_diffuse.simulation.scales import module_responses, sweep_scales
from dials_diffuse.simulation.simulation_parameters import Background, Defects, Scales, SimulationParameters, Source
from dials_diffuse.simulation.spots import SpotShape
from dials_diffuse.simulation.streams import STREAMS, random_stream
from dials_diffuse.simulation.sweep import Sample, make_sample
from dials_diffuse.simulation.truth import IdealSums, image_sums, true_map
from dials_diffuse.structure import surroundings
from dials_diffuse.structure.factors import atom_form_factor, compton, incoherent

EMPTY = Background(air=0, liquid=0, solvent=False, compton=False)
PERFECT = Defects(0, 0, 0.0, 0.0)
CELL = (20.0, 24.0, 30.0, 90.0, 90.0, 90.0)


def linear_volume(gradient=(3.0, -2.0, 1.5), constant=200.0, subdivide=(2, 3, 4), d_min=0.9) -> DiffuseVolume:
    """A spline that is an exactly linear function of h, k, l: its averages are known without any sampling."""
    grid = MapGrid(CELL, " P 1", subdivide, d_min)
    axes = np.meshgrid(*grid.axes(), indexing="ij")
    # prefiltering is only exact inside; the coefficients of a linear function are its values
    values = constant + sum(g * a for g, a in zip(gradient, axes))
    return DiffuseVolume(values.astype(np.float32), np.array(subdivide), np.array(grid.extent), 1 / d_min)


def wavy_volume(d_min=1.5, subdivide=(4, 4, 4), period=1.0) -> DiffuseVolume:
    """Halos about the reciprocal-lattice points."""
    grid = MapGrid(CELL, " P 1", subdivide, d_min)
    h, k, l = np.meshgrid(*grid.axes(), indexing="ij")
    wave = np.cos(2 * np.pi * h / period) + np.cos(2 * np.pi * k / period) * np.cos(2 * np.pi * l / period)
    return spline_through(1000.0 + 300.0 * wave, grid, 1 / d_min)


def counts(sweep, image=0) -> np.ndarray:
    """Raw values of the first panel."""
    return sweep.measure(image, [e.total for e in sweep.expected(image)])[0]


def flat_sample(volume, isotropic=0.0) -> Sample:
    s = np.linspace(0, 4, 8000)
    return Sample(volume, math.prod(CELL[:3]), s, np.full(len(s), isotropic))


def make_sweep(experiment, volume, parameters=None, **changes):
    parameters = parameters or SimulationParameters(
        background=EMPTY, defects=PERFECT, sub_steps=2, sub_pixels=1, source=Source(flux=1e12)
    )
    return prepare_sweep(0, [experiment], flat_sample(volume), None, replace(parameters, **changes))


def experiment_for(name):
    return make_experiment(exposure=[0.5, 1.0, 2.0, 0.25], **GEOMETRIES[name])


def test_the_spline_is_that_of_scipy():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(9, 11, 13))
    coefficients = ndimage.spline_filter(values, order=3, mode="nearest").astype(np.float32)
    positions = rng.uniform([2, 2, 2], [6, 8, 10], size=(500, 3))
    result = np.empty(len(positions))
    spline_points(coefficients, positions, result)
    expected = ndimage.map_coordinates(coefficients.astype(float), positions.T, order=3, prefilter=False)
    assert result == pytest.approx(expected, abs=1e-6)


def test_the_spline_goes_through_its_nodes_and_its_edge():
    grid = MapGrid(CELL, " P 1", (2, 2, 2), 4.0)
    rng = np.random.default_rng(2)
    intensity = 100 + rng.normal(size=grid.shape)
    index = np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in grid.extent], indexing="ij"), axis=-1)
    intensity[~grid.inside(index)] = np.nan
    volume = spline_through(intensity, grid, 1 / 4.0)
    inner = grid.s_magnitude(index) < 0.7 / 4.0
    assert volume(index[inner] / 2) == pytest.approx(intensity[inner], rel=1e-5)
    assert np.isfinite(volume.coefficients).all()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_intensity_and_norm_of_random_pixels(name):
    """Pixel by pixel with dxtbx and DIALS: a linear function of h, k, l has no error of sampling."""
    check_random_pixels(experiment_for(name))


def check_random_pixels(experiment):
    volume = linear_volume()
    sweep = make_sweep(experiment, volume)
    rng = np.random.default_rng(3)
    air_mu = air_attenuation_coefficient(1 / np.linalg.norm(experiment.beam.get_s0()))
    for image in (0, 3):
        expected = sweep.expected(image)
        electrons = 1e12 * [0.5, 1.0, 2.0, 0.25][image] * 0.2e7 / math.prod(CELL[:3]) * 2.8179403e-5**2
        for p, e in enumerate(expected):
            for _ in range(6):
                y, x = (int(rng.integers(n)) for n in e.norm.shape)
                hkl = [miller_index(experiment, p, x + 0.5, y + 0.5, image, f)[0] for f in (0.25, 0.75)]
                truth = np.mean([200.0 + np.dot((3.0, -2.0, 1.5), h) for h in hkl])
                assert e.intensity[y, x] == pytest.approx(truth, rel=2e-5)
                factor = correction(experiment, p, x + 0.5, y + 0.5, image, air_mu)
                assert e.norm[y, x] == pytest.approx(electrons * factor * MICROSTERADIAN, rel=1e-5)
                assert e.total[y, x] == pytest.approx(e.norm[y, x] * truth, rel=1e-4)


@pytest.mark.parametrize("mistake", ["half pixel", "half step", "axis", "setting"])
def test_the_oracle_sees_small_mistakes(mistake, monkeypatch):
    experiment = experiment_for("everything")
    from dials_diffuse.experiment import detector
    from dials_diffuse.experiment.scan import ScanGeometry

    right_geometry = detector.panel_geometry

    if mistake == "half pixel":
        monkeypatch.setattr(
            detector, "panel_geometry", lambda panel, offset=(0.0, 0.0): right_geometry(panel, (0.0, 0.0))
        )
    else:
        right = ScanGeometry.matrix_at
        wrong = {
            "half step": lambda self, position: right(self, position + 0.25),
            "axis": lambda self, position: right(replace(self, axis=-self.axis), position),
            "setting": lambda self, position: right(replace(self, setting=self.setting.transpose(0, 2, 1)), position),
        }[mistake]
        monkeypatch.setattr(ScanGeometry, "matrix_at", wrong)
    with pytest.raises(AssertionError):
        check_random_pixels(experiment)


def test_sub_pixels_and_sub_steps_are_averaged():
    experiment = make_experiment(n_images=2, width=2.0)
    volume = wavy_volume()
    parameters = SimulationParameters(background=EMPTY, defects=PERFECT, sub_steps=4, sub_pixels=3)
    e = make_sweep(experiment, volume, parameters).expected(1)[0]
    thirds, quarters = (np.arange(3) + 0.5) / 3, (np.arange(4) + 0.5) / 4
    for y, x in ((3, 5), (40, 51)):
        inside = [(x + dx, y + dy) for dx in thirds for dy in thirds]
        hkl = [miller_index(experiment, 0, *position, 1, f)[0] for position in inside for f in quarters]
        assert e.intensity[y, x] == pytest.approx(volume(np.array(hkl)).mean(), rel=1e-5)


def test_the_sampling_is_as_fine_as_the_noise_needs():
    experiment = make_experiment(n_images=3, width=2.0)
    rng = np.random.default_rng(5)
    choices = []
    for flux in (1e9, 1e13):
        sweep = make_sweep(experiment, wavy_volume(), source=Source(flux=flux))
        choices.append(choose_sampling(sweep, experiment.detector, 0.02, rng))
    assert choices[1].sub_steps > choices[0].sub_steps >= 1
    for choice in choices[:1]:
        assert choice.error < 0.02
    flat = make_sweep(experiment, linear_volume((0, 0, 0)), source=Source(flux=1e13))
    choice = choose_sampling(flat, experiment.detector, 0.02, rng)
    assert (choice.sub_steps, choice.sub_pixels) == (1, 1)


def test_air_water_and_compton_have_their_limits():
    assert surroundings.air(0.0) == pytest.approx(0.79 * 14**2 + 0.21 * 16**2, rel=1e-3)  # all electrons in phase
    far = surroundings.air(np.array([2.5]))[0]
    single = 0.79 * 2 * 7 + 0.21 * 2 * 8
    assert single < far < 1.5 * single  # Compton, and what is left of single atoms
    s = np.linspace(0.05, 1.0, 1000)
    assert 3.0 < 1 / s[np.argmax(surroundings.water(s))] < 3.4
    assert surroundings.water(0.0) == pytest.approx(0.064 * 100, rel=0.01)  # isothermal compressibility
    for element, z in (("C", 6), ("H", 1), ("S", 16)):
        assert incoherent(element, 0.0) == pytest.approx(0.0, abs=0.01 * z)
        assert incoherent(element, np.array([6.0]))[0] == pytest.approx(z, rel=0.02)


def test_what_is_simulated_obeys_the_sum_rule():
    """Over all q, q² times what is more than single atoms is -2π² Z² / V, where atoms do not overlap.

    So it is for water, less its O-H bonds; for air, whose molecules are far from each other; and for Compton, which
    single atoms have. The bonds are pairs of atoms at one distance.
    """
    q = np.linspace(0, 60, 12001)
    s = q / (2 * np.pi)
    f = {element: atom_form_factor(element, s) for element in "HNO"}

    def integral(curve):
        return np.sum(q**2 * curve) * q[1]

    def single(**atoms):
        return sum(n * (f[e] ** 2 + incoherent(e, s)) for e, n in atoms.items())

    bonds = 4 * f["O"] * f["H"] * np.sinc(2 * s * 0.96) + 2 * f["H"] ** 2 * np.sinc(2 * s * 1.52)
    expected = -2 * np.pi**2 * 10**2 * 0.03343
    assert integral(surroundings.water(s) - single(O=1, H=2) - bonds) == pytest.approx(expected, rel=0.02)
    far = 0.79 * 2 * f["N"] ** 2 * np.sinc(2 * s * 1.098) + 0.21 * 2 * f["O"] ** 2 * np.sinc(2 * s * 1.207)
    assert abs(integral(surroundings.air(s) - single(N=2 * 0.79, O=2 * 0.21) - far)) < 1e-9
    structure = random_structure("P 1", (12, 13, 14, 80, 95, 107), "CNOCS", u=(0.3, 0.45))
    atoms = sum(incoherent(e, s) for e in structure.element)
    np.testing.assert_allclose(compton(structure, s), atoms)


def test_background_scales_with_what_makes_it():
    experiment = make_experiment(n_images=2)
    amounts = {"air": 12.0, "liquid": 0.3}
    images = {}
    for name, value in [*amounts.items(), ("none", None)]:
        parts = replace(EMPTY, **({name: value} if value else {}))
        sweep = make_sweep(experiment, None, background=parts)
        images[name] = sweep.expected(0)[0].other
    assert not images["none"].any()
    y, x = 10, 20
    _, s1 = miller_index(experiment, 0, x + 0.5, y + 0.5, 0)
    s = np.linalg.norm(s1 - np.array(experiment.beam.get_s0()))
    mu = air_attenuation_coefficient(1 / np.linalg.norm(experiment.beam.get_s0()))
    factor = correction(experiment, 0, x + 0.5, y + 0.5, 0, mu) * MICROSTERADIAN * 1e12 * 2.8179403e-5**2
    assert images["air"][y, x] == pytest.approx(factor * 12e7 * 2.504e-5 * surroundings.air(s), rel=1e-4)
    assert images["liquid"][y, x] == pytest.approx(factor * 0.3e7 * 0.03343 * surroundings.water(s), rel=1e-4)


def test_scale_factors():
    rng = np.random.default_rng(7)
    scales = sweep_scales(Scales(drift=0.2, absorption=0.1), Background(liquid_variation=0.3), rng)
    t = np.linspace(0, 1, 2001)
    b = scales.b(t)
    assert b[0] - b[-1] == pytest.approx(0.2, abs=0.06) and b.mean() == pytest.approx(1, abs=0.02)
    directions = rng.normal(size=(3, 200000))
    directions /= np.linalg.norm(directions, axis=0)
    s0 = np.array([0, 0, -1.0])
    logs = np.log(scales.a(directions, s0, np.eye(3)))
    incident = np.log(scales.a(s0[:, None] * -1, s0, np.eye(3)))[0]
    # the pattern of one path has rms 1 on the sphere; both paths share ln a evenly
    assert np.std(logs) == pytest.approx(0.1 / math.sqrt(2), rel=0.01)
    assert np.mean(logs) == pytest.approx(incident / 2, abs=1e-3)
    turn = rotation(20, 30, 40)  # crystal, beam and detector together: nothing changes
    assert scales.a(turn @ directions, turn @ s0, turn.T) == pytest.approx(scales.a(directions, s0, np.eye(3)))
    assert sweep_scales(Scales(), Background(), rng).a(directions, s0, np.eye(3)) == pytest.approx(1.0)
    liquid = [scales.liquid_factor(a) for a in np.arange(0, 360, 1.0)]
    assert np.mean(liquid) == pytest.approx(1.0) and max(liquid) == pytest.approx(1.3, abs=1e-3)


def test_scale_factors_act_on_what_they_should():
    experiment = make_experiment(n_images=4)
    parameters = SimulationParameters(
        background=Background(air=10.0, liquid=0.0, solvent=False, compton=False),
        defects=PERFECT,
        sub_steps=1,
        sub_pixels=1,
        scales=Scales(drift=0.3, absorption=0.2),
    )
    with_scales = make_sweep(experiment, wavy_volume(), parameters)
    without = make_sweep(experiment, wavy_volume(), parameters, scales=Scales())
    a, b = with_scales.expected(3)[0], without.expected(3)[0]
    assert a.other == pytest.approx(b.other)  # air does not go through the crystal
    scan = with_scales.scan
    factor = with_scales.scales.b(3.5 / 4) * with_scales.scales.a(
        with_scales.detector.panels[0].directions, scan.s0_at(3.5), scan.rotation_at(3.5).T
    )
    assert a.norm == pytest.approx(b.norm * factor)
    assert a.intensity == pytest.approx(b.intensity)


def test_modules_respond_differently():
    mask = np.ones((20, 23), dtype=bool)
    mask[9:11] = False
    mask[:, 11] = False
    numbers = module_numbers([mask, mask])
    assert [set(np.unique(n[mask])) for n in numbers] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    for n in numbers:
        assert len(np.unique(n[:9, :11])) == 1 and len(np.unique(n[11:, 12:])) == 1
    response = module_responses(numbers, 0.05, np.random.default_rng(1))
    assert len(np.unique(response[0][mask])) == 4
    assert np.abs(response[0] - 1).max() < 0.25


def test_beam_stop_and_arm():
    detector = make_detector(size=(101, 81), distance=100.0, pixel=0.5)
    experiment = make_experiment(detector=detector)
    sweep = make_sweep(experiment, None)
    lit = beam_stop_mask(sweep.detector.panels[0].directions, (0, 0, -1.0), detector, Defects(0, 0, 6.0, 2.0))
    y, x = np.mgrid[:81, :101]
    r = 0.5 * np.hypot(x + 0.5 - 50.5, y + 0.5 - 40.5)
    assert not lit[r < 5.9].any() and lit[(r > 6.1) & (np.abs(y - 40) > 3)].all()
    arms = [lit[40, :38].sum(), lit[40, 64:].sum()]  # to one side only
    assert sorted(a > 0 for a in arms) == [False, True]


def test_counts_are_poisson_and_the_same_for_the_same_seed():
    experiment = make_experiment(n_images=1, detector=make_detector(size=(40, 30)))
    sweep = make_sweep(experiment, linear_volume((0, 0, 0)), source=Source(flux=1e13))
    total = [e.total for e in sweep.expected(0)]
    images = [replace(sweep, number=n).measure(0, total)[0] for n in range(400)]
    assert np.array_equal(images[0], sweep.measure(0, total)[0])
    assert not np.array_equal(images[0], images[1])
    mean, variance = np.mean(images, axis=0), np.var(images, axis=0, ddof=1)
    z = (mean - total[0]) / np.sqrt(total[0] / 400)
    assert abs(z.mean()) < 5 / math.sqrt(z.size) and np.std(z) == pytest.approx(1, abs=0.1)
    assert np.mean(variance / total[0]) == pytest.approx(1, abs=0.02)


def test_defects_gaps_and_saturation():
    detector = build_detector(DetectorParameters(size="300K", distance=100.0, count_cutoff=1000), 1.0)
    experiment = make_experiment(n_images=1, detector=detector)
    defects = Defects(hot_pixels=7, dead_pixels=9, beam_stop=3.0, arm=1.0)
    sweep = make_sweep(experiment, linear_volume((0, 0, 0)), defects=defects, source=Source(flux=3e12))
    raw = counts(sweep)
    assert (raw[~sweep.active[0]] == -1).all() and (raw[sweep.active[0]] >= 0).all()
    assert (~sweep.active[0]).sum() == 2 * 17 * 487
    assert (raw[sweep.dead[:, 1], sweep.dead[:, 2]] == 0).all() and len(sweep.dead) == 9
    assert (raw[~sweep.lit[0] & sweep.active[0]] == 0).mean() > 0.99
    typical = np.median(raw[sweep.active[0] & sweep.lit[0]])
    assert (raw[sweep.hot[:, 1], sweep.hot[:, 2]] > 3 * typical).all()
    bright = make_sweep(experiment, linear_volume((0, 0, 0)), source=Source(flux=1e16))
    bright = counts(bright)
    assert bright.max() > sweep.detector.panels[0].reading.high  # an overflow, not trusted
    assert bright.max() < 1100


def test_random_pixels_are_distinct_and_active():
    rng = np.random.default_rng(3)
    active = [rng.random((9, 8)) > 0.4, rng.random((9, 8)) > 0.4]
    n = sum(int(a.sum()) for a in active)
    hot, dead = random_pixels(active, (n - 5, 5), rng)
    assert len({tuple(p) for p in [*hot, *dead]}) == n
    assert all(active[p][y, x] for p, y, x in [*hot, *dead])
    with pytest.raises(DiffuseError, match="hot_pixels"):
        random_pixels(active, (n, 1), rng)


def test_two_crystals_on_the_same_images_add_up():
    first = make_experiment(n_images=2)
    second = make_experiment(n_images=2, crystal=make_crystal(angles=(70, -10, 5)))
    volume = wavy_volume()
    parameters = SimulationParameters(
        background=EMPTY, defects=PERFECT, sub_steps=1, sub_pixels=1, thickness=(0.1, 0.3)
    )

    def expected(*experiments, first_crystal=0):
        sweep = prepare_sweep(0, list(experiments), flat_sample(volume), None, parameters, first_crystal)
        return sweep.expected(1)[0].total

    both = expected(first, second)
    assert both == pytest.approx(expected(first) + expected(second, first_crystal=1))
    assert not np.allclose(expected(first), expected(second))


def test_truth_is_the_mean_over_voxels():
    volume = wavy_volume(subdivide=(6, 6, 6))
    grid = MapGrid(CELL, " P 2 2", (3, 3, 3), 4.0)
    truth = true_map(volume, grid)
    steps = (np.arange(20) + 0.5) / 20 - 0.5
    offsets = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    for row in (0, 17, len(truth.index) - 1):
        mean = volume((truth.index[row] + offsets) / 3).mean()
        assert truth.intensity[row] == pytest.approx(mean, rel=3e-4)


def test_the_ideal_map_is_the_truth():
    """Without noise, and with voxels much larger than pixels and steps, the ideal map is the volume's mean."""
    experiment = make_experiment(n_images=60, width=1.5, crystal=make_crystal(space_group="P1"))
    volume = linear_volume((0.0, 0.0, 0.0), constant=150.0)
    background_parts = Background(air=20.0, liquid=0.1, solvent=False, compton=False)
    sweep = make_sweep(
        experiment, volume, background=background_parts, scales=Scales(drift=0.2, absorption=0.1), sub_steps=1
    )
    grid = MapGrid(CELL, " P 1", (1, 1, 1), 2.0)
    ideal = IdealSums(grid)
    for image in range(0, 60, 6):
        expected = sweep.expected(image)
        ideal.add(*image_sums(grid, sweep, image, [e.total for e in expected], expected))
    result = ideal.merge()
    assert len(result.index) > 200
    assert result.intensity == pytest.approx(150.0, rel=1e-5)


def test_random_streams_are_independent():
    numbers = {}
    for what in STREAMS:
        for sweep in range(4):
            for image in range(4):
                numbers[what, sweep, image] = tuple(random_stream(0, what, sweep, image).integers(2**60, size=2))
    assert len(set(numbers.values())) == len(numbers)
    assert random_stream(2**32, "noise", 0, 3).integers(2**60) != random_stream(0, "noise", 1, 3).integers(2**60)


def test_noise_differs_between_images_and_sweeps():
    """The same expected counts, so only the seeds can make a difference."""
    sweep = make_sweep(make_experiment(n_images=3), linear_volume((0, 0, 0)), source=Source(flux=1e13))
    total = [e.total for e in sweep.expected(0)]
    images = [sweep.measure(i, total)[0] - total[0] for i in range(3)]
    images.append(replace(sweep, number=1).measure(0, total)[0] - total[0])
    correlation = np.corrcoef([image.ravel() for image in images]) - np.eye(4)
    assert np.abs(correlation).max() < 5 / math.sqrt(total[0].size)


def bragg_sweep(**changes):
    """A sweep with the spots of a P 1 crystal, of intensities that depend on their indices."""
    experiment = make_experiment(n_images=20, width=1.0, crystal=make_crystal(space_group="P1"))
    parameters = SimulationParameters(
        spots=SpotShape(mosaicity=0.1, spot_size=0.15),
        background=EMPTY,
        defects=PERFECT,
        thickness=(0.05,),
        source=Source(flux=1e11),
        **changes,
    )
    f_squared = lambda hkl: 100.0 + (hkl @ [1, 2, 3]) ** 2  # noqa: E731
    return prepare_sweep(0, [experiment], flat_sample(None), f_squared, parameters)


def test_bragg_photons():
    """Flux, thickness, strength and scale factors of spots far from all others: summed pixels against one product."""
    sweep = bragg_sweep(scales=Scales(drift=0.3, absorption=0.2))
    crystal = sweep.crystals[0]
    spots, photons = crystal.spots, sweep.spot_photons(crystal)
    images = [sweep.expected(i)[0] for i in range(20)]
    bragg = np.array([e.bragg for e in images])
    assert all(not e.intensity.any() and not e.other.any() for e in images)
    electrons = 1e11 * 0.05e7 / math.prod(CELL[:3]) * 2.8179403e-5**2
    reach = 5 * np.sqrt(np.diagonal(spots.covariance, axis1=1, axis2=2))
    experiment = make_experiment(n_images=20, width=1.0)
    mu = air_attenuation_coefficient(1 / np.linalg.norm(sweep.scan.s0_at(0)))
    checked = 0
    for i in np.argsort(-spots.strength):
        low, high = np.floor(spots.centre[i] - reach[i]).astype(int), np.ceil(spots.centre[i] + reach[i]).astype(int)
        near = np.all((spots.centre + reach > low) & (spots.centre - reach < high), axis=1)
        if near.sum() > 1 or np.any(low < 0) or np.any(high > (60, 50, 20)) or checked == 5:
            continue
        x, y, z = spots.centre[i]
        directions = sweep.detector.panels[0].directions[:, int(y), int(x)]
        absorbed = sweep.scales.a(directions, sweep.scan.s0_at(z), sweep.scan.rotation_at(z).T)
        factors = correction(experiment, 0, x, y, int(z), mu) / microsteradians(experiment, x, y)
        expected = electrons * spots.strength[i] * absorbed * sweep.scales.b(z / 20) * factors
        # the factors vary over a spot and an image, which is all that the two may differ by
        summed = bragg[low[2] : high[2], low[1] : high[1], low[0] : high[0]].sum()
        assert summed == pytest.approx(expected, rel=0.02)
        assert photons[i] == pytest.approx(expected, rel=0.02)
        checked += 1
    assert checked == 5


def microsteradians(experiment, x, y) -> float:
    """Solid angle of a pixel."""
    panel = experiment.detector[0]
    lab = np.array(panel.get_pixel_lab_coord((x, y)))
    return 1e6 * math.prod(panel.get_pixel_size()) * abs(lab @ panel.get_normal()) / np.linalg.norm(lab) ** 3


def test_the_beam_stop_stops_everything():
    sweep = bragg_sweep()
    dark = replace(sweep, lit=[np.zeros_like(sweep.lit[0])])
    assert sweep.expected(5)[0].total.any() and not dark.expected(5)[0].total.any()


def test_solvent_compton_and_liquid_have_scales_of_their_own():
    """Solvent and Compton drift with the crystal, the liquid does not, but has its own variation."""
    structure = random_structure("P 21 21 21", CELL, seed=1)
    experiment = make_experiment(n_images=4)

    def other(image, **parts):
        parameters = SimulationParameters(
            background=replace(EMPTY, **parts), defects=PERFECT, scales=Scales(drift=0.4), diffuse=False
        )
        sample = make_sample(structure, None, parameters, lambda s: compton(structure, s))
        sweep = prepare_sweep(0, [experiment], sample, None, parameters)
        return sweep, sweep.expected(image)[0].other

    y, x = 12, 33
    _, s1 = miller_index(experiment, 0, x + 0.5, y + 0.5, 0)
    s = np.array([np.linalg.norm(s1 - np.array(experiment.beam.get_s0()))])
    mu = air_attenuation_coefficient(1 / np.linalg.norm(experiment.beam.get_s0()))
    photons = correction(experiment, 0, x + 0.5, y + 0.5, 0, mu) * MICROSTERADIAN * 1e13 * 2.8179403e-5**2
    per_cell = photons * 0.2e7 / math.prod(CELL[:3])
    mass = {"C": 12.011, "N": 14.007, "O": 15.999, "S": 32.06}
    daltons = 4 * sum(mass[str(e)] * o for e, o in zip(structure.element, structure.occupancy))
    water = 0.03343 * (math.prod(CELL[:3]) - 1.21 * daltons)
    for image in (0, 3):
        sweep, solvent = other(image, solvent=True)
        b = sweep.scales.b((image + 0.5) / 4)
        assert solvent[y, x] == pytest.approx(b * per_cell * water * surroundings.water(s)[0], rel=1e-3)
        _, recoil = other(image, compton=True)
        assert recoil[y, x] == pytest.approx(b * per_cell * compton(structure, s)[0], rel=1e-3)
        sweep, liquid = other(image, liquid=0.3, liquid_variation=0.5)
        thickness = 0.3e7 * sweep.scales.liquid_factor(sweep.scan.angle(image + 0.5))
        assert liquid[y, x] == pytest.approx(photons * thickness * 0.03343 * surroundings.water(s)[0], rel=1e-3)


def test_gain_and_pedestal():
    detector = make_detector()
    detector[0].set_gain(2.5)
    detector[0].set_pedestal(40.0)
    sweep = make_sweep(make_experiment(n_images=1, detector=detector), linear_volume((0, 0, 0)), noise=False)
    expected = [e.total for e in sweep.expected(0)]
    assert sweep.measure(0, expected)[0] == pytest.approx(2.5 * np.rint(expected[0]) + 40, abs=0.51)


def test_overflows_and_gaps_are_never_trusted():
    detector = make_detector()
    detector[0].set_trusted_range((-5, 2.0**33))
    sweep = make_sweep(make_experiment(n_images=1, detector=detector), linear_volume((0, 0, 0)), noise=False)
    sweep.active[0][:, 7] = False
    raw = sweep.measure(0, [np.full(sweep.shapes[0], 1e14)])[0]
    low = sweep.detector.panels[0].reading.low
    assert (raw[:, 7] < low).all() and (np.delete(raw, 7, axis=1) == 2**31 - 1).all()


def test_everything_in_the_shadow():
    with pytest.raises(DiffuseError, match="beam_stop"):
        make_sweep(make_experiment(), wavy_volume(), sub_steps=None, defects=Defects(0, 0, 1000.0, 0.0))


def test_crystals_have_different_orientations():
    structure = random_structure("P 1", CELL, seed=1)
    models = DetectorParameters(size=(60, 50)), BeamParameters(), ScanParameters(n_images=2)

    def orientations(seed):
        sweeps = plan_sweeps(structure, *models, n_crystals=3, seed=seed)
        return np.array([sweep[0].crystal.get_U() for sweep in sweeps])

    first = orientations(1)
    assert np.array_equal(first, orientations(1))
    every = np.concatenate([first, orientations(2)])
    assert min(np.abs(a - b).max() for i, a in enumerate(every) for b in every[:i]) > 0.05


def test_the_last_layer_of_the_ideal_map_is_complete():
    """Voxels at the resolution limit reach beyond it: pixels there have diffuse scattering, too."""
    d_min = 4.0
    experiment = make_experiment(n_images=60, width=1.5, crystal=make_crystal(space_group="P1"))
    grid = MapGrid(CELL, " P 1", (2, 2, 2), d_min)
    volume = replace(linear_volume((0.0, 0.0, 0.0), constant=150.0), s_max=1 / d_min + grid.diagonal)
    sweep = make_sweep(experiment, volume, sub_steps=1)
    ideal = IdealSums(grid)
    for image in range(0, 60, 6):
        expected = sweep.expected(image)
        ideal.add(*image_sums(grid, sweep, image, [e.total for e in expected], expected))
    result = ideal.merge()
    assert result.grid.s_magnitude(result.index).max() > 0.97 / d_min
    assert result.intensity == pytest.approx(150.0, rel=1e-5)


def test_intensities_are_never_negative():
    """A spline rings beside a sharp peak; without background such pixels would have negative expected counts."""
    grid = MapGrid(CELL, " P 1", (4, 4, 4), 1.5)
    intensity = np.zeros(grid.shape)
    intensity[tuple(grid.extent)] = 1000.0
    volume = spline_through(intensity, grid, 1 / 1.5)
    hkl = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    raw = np.empty(len(hkl))
    spline_points(volume.coefficients, hkl * 4 + np.array(grid.extent), raw)
    assert raw.min() < -10
    np.testing.assert_array_equal(volume(hkl), np.maximum(raw, 0))
    seen = np.zeros((1, len(hkl)))
    add_spline(volume.coefficients, hkl.T[:, None], 4 * np.eye(3), -np.array(grid.extent, float), 2.0, seen == 0, seen)
    np.testing.assert_allclose(seen[0], 2 * np.maximum(raw, 0), atol=1e-9)
