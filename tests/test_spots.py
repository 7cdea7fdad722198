"""Simulated Bragg spots: strength, position and shape against DIALS, exact geometry and plain numerical integration."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from cctbx import crystal, miller
from dials.array_family import flex
from dials_algorithms_integration_ext import Corrections
from helpers import oracle
from helpers.synthetic import GEOMETRIES, experiment_list, make_crystal, make_detector, make_experiment
from scipy.spatial.transform import Rotation
from scipy.stats import multivariate_normal

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.reflections import write_reflections
from dials_diffuse.experiment.spot_prediction import MIN_ZETA, predict_spots, spot_size
from dials_diffuse.kernels.spots import add_spots
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.simulation import spots as module
from dials_diffuse.simulation.spots import Spots, SpotShape, simulate_spots, spot_extent_model

SHAPE = SpotShape(mosaicity=0.1, divergence=0.02, bandwidth=2e-4, spot_size=0.3)
EXPERIMENTS = {
    **GEOMETRIES,
    "later images": {"first_image": 5},
}


def ones(hkl):
    return np.ones(len(hkl))


def fine(**keywords):
    """An experiment with images narrower than the spots, so that their centroids mean something."""
    return make_experiment(**{"n_images": 40, "width": 0.1, **keywords})


def shapes(experiment) -> list:
    return [panel.get_image_size()[::-1] for panel in experiment.detector]


def only(spots: Spots, rows) -> Spots:
    return Spots(*(getattr(spots, name)[rows] for name in Spots.__dataclass_fields__))


def well_inside(spots: Spots, experiment) -> np.ndarray:
    """Rows of the spots of which nothing is cut off."""
    limits = np.array(
        [[*experiment.detector[int(p)].get_image_size(), experiment.scan.get_num_images()] for p in spots.panel]
    )
    reach = 5.5 * np.sqrt(np.diagonal(spots.covariance, axis1=1, axis2=2))
    return np.flatnonzero(np.all((spots.centre > reach) & (spots.centre < limits - reach), axis=1))


def rendered(spots: Spots, experiment) -> list:
    """(images, ny, nx) for each panel."""
    images = [spots.render(k, shapes(experiment)) for k in range(experiment.scan.get_num_images())]
    return [np.array([image[p] for image in images]) for p in range(len(experiment.detector))]


def predictions(experiment, d_min: float, padding: float = 3.0) -> flex.reflection_table:
    return flex.reflection_table.from_predictions(experiment, dmin=d_min, padding=padding)


def zeta(experiment, s1) -> np.ndarray:
    normal = np.cross(s1, np.array(experiment.beam.get_s0()))
    return np.abs(normal @ np.array(experiment.goniometer.get_rotation_axis())) / np.linalg.norm(normal, axis=1)


# ---- rendering


def integrated_gaussian(shape, mean, covariance, z0, z1):
    """Every pixel's part of a Gaussian, by Gauss-Legendre quadrature of its density over pixel and image."""
    x, w = np.polynomial.legendre.leggauss(4)
    nodes, weights = (x + 1) / 2, w / 2
    cuts = np.linspace(z0, z1, 33)
    z = (cuts[:-1, None] + np.diff(cuts)[:, None] * nodes).ravel()
    wz = (np.diff(cuts)[:, None] * weights).ravel()

    def along(n):  # each pixel in three parts
        parts = (np.arange(3 * n)[:, None] + nodes).ravel() / 3
        return parts, np.tile(weights / 3, 3 * n)

    (y, wy), (x, wx) = along(shape[0]), along(shape[1])
    grid = np.stack(np.broadcast_arrays(x[None, None, :], y[None, :, None], z[:, None, None]), axis=-1)
    density = np.einsum("zyx,z->yx", multivariate_normal(mean, covariance).pdf(grid), wz)
    weighted = density * wy[:, None] * wx
    return weighted.reshape(shape[0], 12, shape[1], 12).sum(axis=(1, 3))


@pytest.mark.parametrize(
    ("sigma", "correlation"),
    [
        ((0.3, 0.3, 0.3), (0.0, 0.0, 0.0)),
        ((0.3, 0.5, 2.0), (0.4, 0.0, 0.0)),
        ((0.6, 0.6, 0.4), (0.0, 0.8, -0.3)),
        ((2.0, 1.0, 0.5), (0.9, 0.9, 0.85)),
        ((1.5, 1.5, 0.2), (-0.9, 0.95, -0.95)),
        ((1.0, 0.4, 5.0), (-0.5, 0.6, 0.1)),
    ],
    ids=["tiny", "long", "moving", "streak", "anticorrelated", "many images"],
)
def test_pixels_of_a_spot_are_integrals_of_its_density(sigma, correlation):
    xy, xz, yz = correlation
    covariance = np.outer(sigma, sigma) * np.array([[1, xy, xz], [xy, 1, yz], [xz, yz, 1]])
    assert np.linalg.eigvalsh(covariance).min() > 0
    shape = (13, 15)
    for mean in ([7.2, 6.9, 0.1], [1.0, 12.6, 0.5], [7.5, 6.0, 1.3]):
        image = np.zeros(shape)
        add_spots(image, np.array([mean]), covariance[None], np.ones(1), 0.0, 1.0, 5.0)
        expected = integrated_gaussian(shape, mean, covariance, 0, 1)
        assert np.abs(image - expected).max() < 1e-3 * expected.max()


def test_images_add_up_and_nothing_is_lost():
    rng = np.random.default_rng(5)
    n = 30
    half = rng.normal(size=(n, 3, 3))
    covariance = half @ half.transpose(0, 2, 1) + 0.1 * np.eye(3)
    centre = rng.uniform(35, 45, (n, 3))
    weight = rng.uniform(1, 2, n)
    total, whole = np.zeros((80, 80)), np.zeros((80, 80))
    for k in range(80):
        add_spots(total, centre, covariance, weight, float(k), k + 1.0, 5.0)
    add_spots(whole, centre, covariance, weight, 0.0, 80.0, 5.0)
    assert total.sum() == pytest.approx(weight.sum(), rel=2e-6)
    assert np.abs(total - whole).max() < 0.01 * whole.max()
    y, x = np.mgrid[:80, :80] + 0.5
    mean = (weight[:, None] * centre).sum(axis=0) / weight.sum()
    assert (total * x).sum() / total.sum() == pytest.approx(mean[0], abs=1e-4)
    assert (total * y).sum() / total.sum() == pytest.approx(mean[1], abs=1e-4)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_images_together_hold_the_strength(name):
    experiment = fine(**EXPERIMENTS[name])
    spots = simulate_spots(experiment, ones, SHAPE, 2.0)
    inside = well_inside(spots, experiment)
    assert len(inside) > 3
    for i in inside:
        total = sum(panel.sum() for panel in rendered(only(spots, [i]), experiment))
        assert total == pytest.approx(spots.strength[i], rel=2e-6)


# ---- positions


def check_centroids(experiment, d_min=2.0):
    """Centroids of rendered spots are where DIALS predicts them, by 0.02 pixels and images."""
    spots = simulate_spots(experiment, ones, SHAPE, d_min)
    table = predictions(experiment, d_min)
    first = experiment.scan.get_array_range()[0]
    predicted = {
        (hkl, panel): np.array(xyz) - [0, 0, first]
        for hkl, panel, xyz in zip(table["miller_index"], table["panel"], table["xyzcal.px"])
    }
    compared = 0
    for i in well_inside(spots, experiment):
        key = (tuple(int(h) for h in spots.hkl[i]), int(spots.panel[i]))
        if key not in predicted:  # where two panels overlap DIALS takes the nearer one
            assert any(hkl == key[0] for hkl, _ in predicted)
            continue
        volume = rendered(only(spots, [i]), experiment)[key[1]]
        z, y, x = (np.arange(n) + 0.5 for n in volume.shape)
        found = np.array(
            [
                np.einsum("zyx,x", volume, x).sum(),
                np.einsum("zyx,y", volume, y).sum(),
                np.einsum("zyx,z", volume, z).sum(),
            ]
        )
        np.testing.assert_allclose(found / volume.sum(), predicted[key], atol=0.02, rtol=0)
        compared += 1
    assert compared > 3


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_spots_are_where_dials_predicts_them(name):
    check_centroids(fine(**EXPERIMENTS[name]))


@pytest.mark.parametrize("mistake", ["half a pixel", "half an image"])
def test_small_mistakes_are_noticed(monkeypatch, mistake):
    if mistake == "half a pixel":
        right = module.to_pixels
        monkeypatch.setattr(module, "to_pixels", lambda panel, mm: right(panel, mm) - [0, 0.5])
    else:
        right = module.scan_geometry

        def late(experiment):
            scan = right(experiment)
            start, width = scan.oscillation
            return replace(scan, oscillation=(start + width / 2, width))

        monkeypatch.setattr(module, "scan_geometry", late)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_centroids(fine())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_predicted_reflection_is_there_once(name):
    experiment = make_experiment(
        **{**EXPERIMENTS[name], "n_images": 20, "width": 2.0 * np.sign(EXPERIMENTS[name].get("width", 1))}
    )
    first = experiment.scan.get_array_range()[0]
    spots = simulate_spots(experiment, ones, SHAPE, 2.0)
    table = predictions(experiment, 2.0, 0.0)
    found = [(*hkl, panel) for hkl, panel in zip(spots.hkl.tolist(), spots.panel.tolist())]
    s1 = np.array(table["s1"])
    compared = 0
    for i in np.flatnonzero(zeta(experiment, s1) > 1.2 * MIN_ZETA):  # the axis may vary
        key = (*table["miller_index"][i], table["panel"][i])
        z = table["xyzcal.px"][i][2] - first
        same = [j for j, other in enumerate(found) if other == key and abs(spots.centre[j, 2] - z) < 0.1]
        assert len(same) == 1, (key, z)
        np.testing.assert_allclose(spots.s1[same[0]], s1[i], atol=1e-3)
        compared += 1
    assert compared > 50
    known = {(*hkl, round(z - first)) for hkl, (_, _, z) in zip(table["miller_index"], table["xyzcal.px"])}
    for i in well_inside(spots, experiment):
        assert any((*spots.hkl[i], round(spots.centre[i, 2]) + d) in known for d in (-1, 0, 1))


def test_more_than_a_turn():
    experiment = make_experiment(n_images=80, width=10.0)
    once = make_experiment(n_images=36, width=10.0)
    spots, single = (simulate_spots(e, ones, SHAPE, 3.0) for e in (experiment, once))
    in_turn = (spots.centre[:, 2] >= 36) & (spots.centre[:, 2] < 72)
    inside = (single.centre[:, 2] >= 0) & (single.centre[:, 2] < 36)
    assert sorted(map(tuple, spots.hkl[in_turn])) == sorted(map(tuple, single.hkl[inside]))


# ---- strength


@pytest.mark.parametrize("name", ["simple", "kappa", "scan_varying", "everything"])
def test_strength_is_the_integral_of_a_narrow_peak(name):
    """A Gaussian of reciprocal-space density around one point, summed over fine pixels and rotation steps.

    Miller indices and solid angles of pixels come from dxtbx.
    """
    two = name == "everything"
    detector = make_detector(size=(480, 400), pixel=0.05, n_panels=2 if two else 1, tilted=two)
    experiment = make_experiment(**{**EXPERIMENTS[name], "detector": detector})
    spots = simulate_spots(experiment, lambda hkl: np.full(len(hkl), 7.0), SHAPE, 2.0)
    inside = [i for i in well_inside(spots, experiment) if zeta(experiment, spots.s1[[i]])[0] > 0.2][:4]
    assert len(inside) >= 2
    sigma = 1.5e-3  # 1/Å
    volume = experiment.crystal.get_unit_cell().volume()
    for i in inside:
        panel = detector[int(spots.panel[i])]
        x0, y0, z0 = spots.centre[i]
        size = panel.get_pixel_size()
        lab = np.array(
            [
                panel.get_pixel_lab_coord((x + 0.5, y + 0.5))
                for x in range(int(x0) - 14, int(x0) + 15)
                for y in range(int(y0) - 14, int(y0) + 15)
            ]
        )
        r = np.linalg.norm(lab, axis=1)
        solid_angle = size[0] * size[1] * np.abs(lab @ np.array(panel.get_normal())) / r**3
        s0 = np.array(experiment.beam.get_s0())
        rate = zeta(experiment, spots.s1[[i]])[0] * np.linalg.norm(np.cross(spots.s1[i], s0)) / np.linalg.norm(s0)
        step = 0.1 * sigma / (rate * np.radians(1))
        total = 0.0
        for z in z0 + step * np.arange(-80, 81):
            image = min(max(int(np.floor(z)), 0), 3)
            frame, s0 = oracle.crystal_frame(experiment, image, z - image)
            s = lab / r[:, None] * np.linalg.norm(s0) - s0
            off = np.sum((s - frame @ spots.hkl[i]) ** 2, axis=1)
            total += np.sum(solid_angle * np.exp(-0.5 * off / sigma**2)) * step
        total *= 7.0 / volume / (2 * np.pi * sigma**2) ** 1.5
        assert spots.strength[i] == pytest.approx(total, rel=0.01)


def test_strength_has_the_lorentz_factor_of_dials():
    experiment = make_experiment(polarization=0.5, kappa=True)
    spots = simulate_spots(experiment, ones, SHAPE, 2.0)
    dials = Corrections(experiment.beam, experiment.goniometer, experiment.detector)
    s0 = np.array(experiment.beam.get_s0())
    for s1, strength in zip(spots.s1, spots.strength):
        cosine = s1 @ s0 / (s0 @ s0)
        lorentz = dials.lp(tuple(s1)) * (1 + cosine**2) / 2
        volume = experiment.crystal.get_unit_cell().volume()
        assert strength == pytest.approx(1 / (volume * np.radians(1.0) * lorentz), rel=1e-5)


def test_intensities_of_the_asymmetric_unit_go_to_all_mates():
    experiment = make_experiment(crystal=make_crystal((20, 20, 30), "P41212"), n_images=10)
    group = experiment.crystal.get_space_group()
    unique = miller.build_set(crystal.symmetry((20, 20, 30, 90, 90, 90), space_group=group), False, d_min=1.8).indices()
    hkl = np.array(list(unique))
    values = np.random.default_rng(2).uniform(1, 9, len(hkl))
    values[::7] = 0
    stored = {tuple(h): v for h, v in zip(hkl, values)}

    def look_up(indices):
        return np.array([stored.get(tuple(h), 0.0) for h in map_to_asu(indices, group)[0]])

    one = simulate_spots(experiment, (hkl, values, group), SHAPE, 2.0)
    other = simulate_spots(experiment, look_up, SHAPE, 2.0)
    order, other_order = (np.lexsort((*s.hkl.T, s.centre[:, 2])) for s in (one, other))
    np.testing.assert_array_equal(one.hkl[order], other.hkl[other_order])
    np.testing.assert_allclose(one.strength[order], other.strength[other_order], rtol=1e-12)
    assert not any(group.is_sys_absent(tuple(int(i) for i in h)) for h in one.hkl)
    assert one.strength.min() > 0


# ---- shape


def perturbed_positions(experiment, spots: Spots, i: int, shape: SpotShape, n: int, rng) -> np.ndarray:
    """(n, 3) x, y, z where a reflection of randomly perturbed crystals and beams appears, solved exactly."""
    goniometer, scan = experiment.goniometer, experiment.scan
    panel = experiment.detector[int(spots.panel[i])]
    setting, fixed = (
        np.array(m).reshape(3, 3) for m in (goniometer.get_setting_rotation(), goniometer.get_fixed_rotation())
    )
    axis = np.array(goniometer.get_rotation_axis_datum())
    a = np.array(experiment.crystal.get_A()).reshape(3, 3)
    mosaic = Rotation.from_rotvec(np.radians(shape.mosaicity) * rng.normal(size=(n, 3)))
    s_fixed = mosaic.apply(a @ spots.hkl[i]) @ fixed.T
    s0 = np.array(experiment.beam.get_s0())
    tilt = np.radians(shape.divergence) * rng.normal(size=(n, 3))
    tilt -= np.outer(tilt @ s0, s0) / (s0 @ s0)  # a turn about the beam is none
    s0 = Rotation.from_rotvec(tilt).apply(s0) * (1 + shape.bandwidth * rng.normal(size=(n, 1)))
    start, width = scan.get_oscillation()
    phi = np.full(n, np.radians(start + width * spots.centre[i, 2]))
    for _ in range(6):
        s = Rotation.from_rotvec(phi[:, None] * axis).apply(s_fixed) @ setting.T
        error = np.sum((s0 + s) ** 2, axis=1) - np.sum(s0**2, axis=1)
        phi -= error / (2 * np.sum((s0 + s) * np.cross(setting @ axis, s), axis=1))
    s = Rotation.from_rotvec(phi[:, None] * axis).apply(s_fixed) @ setting.T
    np.testing.assert_allclose(np.linalg.norm(s0 + s, axis=1), np.linalg.norm(s0, axis=1), rtol=1e-12)
    xy = np.array([panel.get_ray_intersection_px(tuple(s1)) for s1 in s0 + s])
    xy += shape.spot_size * rng.normal(size=(n, 2)) / panel.get_pixel_size()
    return np.column_stack([xy, (np.degrees(phi) - start) / width])


@pytest.mark.parametrize(
    "shape",
    [
        SpotShape(0.1, 0, 0, 1e-3),
        SpotShape(1e-4, 0.1, 0, 1e-3),
        SpotShape(1e-4, 0, 2e-3, 1e-3),
        SpotShape(0.05, 0.03, 5e-4, 0.2),
    ],
    ids=["mosaicity", "divergence", "bandwidth", "all"],
)
@pytest.mark.parametrize("name", ["simple", "kappa", "tilted two-panel"])
def test_covariance_is_that_of_perturbed_experiments(name, shape):
    rng = np.random.default_rng(11)
    experiment = make_experiment(**EXPERIMENTS[name])
    spots = simulate_spots(experiment, ones, shape, 2.0)
    good = np.flatnonzero(zeta(experiment, spots.s1) > 0.3)[:3]
    n = 4000
    for i in good:
        positions = perturbed_positions(experiment, spots, i, shape, n, rng)
        expected = np.cov(positions.T)
        scale = np.sqrt(np.diagonal(expected))
        normed = np.abs(spots.covariance[i] - expected) / np.outer(scale, scale)
        assert normed.max() < 5 * np.sqrt(2 / n), normed  # five standard errors of a variance
        # to first order the mean does not move
        np.testing.assert_allclose(positions.mean(axis=0), spots.centre[i], atol=np.max(5 * scale / np.sqrt(n)), rtol=0)


def test_profile_model_covers_the_spots():
    """Most of every spot lies within three sigma of the profile model, and the model is not much wider than needed."""
    experiment = fine()
    model = spot_extent_model(SHAPE, experiment)
    spots = simulate_spots(experiment, ones, SHAPE, 2.0)
    z = zeta(experiment, spots.s1)
    good = z > 0.5
    rocking = np.sqrt(spots.covariance[:, 2, 2])[good] * 0.1 * z[good]
    assert np.all(rocking <= model.sigma_m() * 1.001)
    assert rocking.max() > 0.99 * model.sigma_m()
    experiment.profile = model
    size = spot_size(experiment)
    assert np.degrees(size.sigma_m[0]) == pytest.approx(model.sigma_m())
    assert len(predict_spots(experiment, size, 2.0)) > 10
    shares = []
    for i in set(np.flatnonzero(good)) & set(well_inside(spots, experiment)):
        image = sum(panel[0] for panel in rendered_together(only(spots, [i]), experiment))
        panel = experiment.detector[0]
        s1 = spots.s1[i] / np.linalg.norm(spots.s1[i])
        lab = np.array([[panel.get_pixel_lab_coord((x + 0.5, y + 0.5)) for x in range(60)] for y in range(50)])
        angle = np.degrees(np.arccos(np.clip(lab @ s1 / np.linalg.norm(lab, axis=2), -1, 1)))
        shares.append((image[angle < 3 * model.sigma_b() + np.degrees(0.2 / 60)].sum()) / image.sum())
    assert len(shares) > 3
    assert min(shares) > 0.97


def rendered_together(spots: Spots, experiment) -> list:
    return [panel.sum(axis=0)[None] for panel in rendered(spots, experiment)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("mosaicity", 0), ("mosaicity", None), ("spot_size", -1), ("divergence", -0.1), ("bandwidth", float("nan"))],
)
def test_bad_shapes_are_refused(name, value):
    with pytest.raises(DiffuseError, match=rf"spots\.{name}={value}"):
        SpotShape(**{name: value})


def test_impossible_resolution_is_refused():
    with pytest.raises(DiffuseError, match=r"d_min=0\.4: .*half the wavelength"):
        simulate_spots(make_experiment(), ones, SHAPE, 0.4)


def test_no_spots_at_all(tmp_path):
    experiment = make_experiment()
    spots = simulate_spots(experiment, lambda hkl: np.zeros(len(hkl)), SHAPE, 2.0)
    assert len(spots) == 0
    assert spots.render(0, shapes(experiment))[0].sum() == 0
    write_reflections(tmp_path / "none.refl", experiment_list(experiment), [spots], [np.zeros(0)])
    assert len(flex.reflection_table.from_file(str(tmp_path / "none.refl"))) == 0


def test_spots_travel_to_workers():
    experiment = make_experiment()
    spots = simulate_spots(experiment, ones, SHAPE, 2.0)
    again = pickle.loads(pickle.dumps(spots))
    np.testing.assert_array_equal(again.render(1, shapes(experiment))[0], spots.render(1, shapes(experiment))[0])
    assert spots.render(1, shapes(experiment))[0].sum() > 0


# ---- reflection files


def test_reflection_files(tmp_path):
    a = fine(first_image=7, identifier="a")
    b = fine(kappa=True, scan_varying=True, detector=make_detector(n_panels=2, tilted=True), identifier="b")
    background = fine(identifier="empty")
    background.crystal = None
    experiments = experiment_list(a, background, b)
    spots = [simulate_spots(a, ones, SHAPE, 2.0), None, simulate_spots(b, ones, SHAPE, 2.0)]
    photons = [None if s is None else 1e4 * s.strength / s.strength.max() for s in spots]
    path = tmp_path / "truth.refl"
    write_reflections(path, experiments, spots, photons)
    assert [p.name for p in tmp_path.iterdir()] == ["truth.refl"]
    table = flex.reflection_table.from_file(str(path))
    table.assert_experiment_identifiers_are_consistent(experiments)
    assert dict(table.experiment_identifiers()) == {0: "a", 1: "empty", 2: "b"}
    assert set(table["id"]) == {0, 2}
    assert table.get_flags(table.flags.indexed).count(False) == 0
    assert table.get_flags(table.flags.integrated_sum).count(False) == 0
    box = np.array(list(table["bbox"]))
    px = np.array(table["xyzcal.px"])
    assert np.all((box[:, ::2] <= px) & (px <= box[:, 1::2]))
    for number, experiment in ((0, a), (2, b)):
        mine = table.select(table["id"] == number)
        assert np.all(np.array(mine["bbox"].parts()[5]) <= experiment.scan.get_array_range()[1])
        assert np.all(np.array(mine["bbox"].parts()[4]) >= experiment.scan.get_array_range()[0])
        reference = predictions(experiment, 2.0, 0.0)
        rows = {(h, p): i for i, (h, p) in enumerate(zip(reference["miller_index"], reference["panel"]))}
        pairs = [(i, rows[key]) for i, key in enumerate(zip(mine["miller_index"], mine["panel"])) if key in rows]
        assert len(pairs) > 5
        left, right = zip(*pairs)
        columns = {"xyzcal.px": 0.02, "xyzcal.mm": 0.01, "s1": 1e-3}
        for column, tolerance in columns.items():
            found, expected = np.array(mine[column])[list(left)], np.array(reference[column])[list(right)]
            np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
        for unit in ("px", "mm"):
            np.testing.assert_array_equal(np.array(mine[f"xyzobs.{unit}.value"]), np.array(mine[f"xyzcal.{unit}"]))
    assert max(table["intensity.sum.value"]) == pytest.approx(1e4)


def test_spot_size_can_be_measured_on_the_reflections(tmp_path):
    experiment = make_experiment(n_images=200, width=0.1, profile=None)
    spots = simulate_spots(experiment, ones, SHAPE, 2.0)
    path = tmp_path / "truth.refl"
    write_reflections(path, experiment_list(experiment), [spots], [1e4 * spots.strength / spots.strength.max()])
    size = spot_size(experiment, flex.reflection_table.from_file(str(path)))
    model = spot_extent_model(SHAPE, experiment)
    # boxes are whole pixels and images
    assert model.sigma_m() < np.degrees(size.sigma_m[0]) < model.sigma_m() + 0.1 / 3
    assert 0.9 * model.sigma_b() < np.degrees(size.sigma_b[0]) < model.sigma_b() + np.degrees(0.4 / 60) / 3
