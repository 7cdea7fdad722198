"""Simulated images come back from dxtbx, dials.import and CBFlib as they were written, with their models."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pycbf
import pytest
from dxtbx.format import Registry
from dxtbx.format.FormatCBFMini import FormatCBFMini
from dxtbx.format.FormatCBFMiniPilatus import FormatCBFMiniPilatus
from dxtbx.model import Detector, Goniometer, ParallaxCorrectedPxMmStrategy, Scan, SimplePxMmStrategy
from dxtbx.model.experiment_list import ExperimentList
from dxtbx.model.goniometer import GoniometerFactory
from helpers.checkout import ROOT
from helpers.synthetic import make_crystal, make_detector, make_experiment, rotation
from scitbx.array_family import flex

from dials_diffuse.compat import photon_counter_range, trusted_bounds
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.build import (
    BeamParameters,
    DetectorParameters,
    ScanParameters,
    build_crystal,
    build_experiment,
    experiments_from_file,
    random_orientation,
)
from dials_diffuse.experiment.cbf import attach_images, image_path, is_plain, write_cbf, write_experiments
from dials_diffuse.experiment.format_cbf import MARK, FormatCBFMiniDiffuse
from dials_diffuse.experiment.images import read_image, static_mask
from dials_diffuse.experiment.modules import module_mask

MODELS = ("beam", "detector", "goniometer", "scan")
#: where the byte-offset compression changes its width, and the largest steps there are
STEPS = [-1, 0, 1, 127, 128, -128, -129, 32767, 32768, -32768, -32769, 2**20, 0, 2**31 - 1, -(2**31) + 1, 2**31 - 1, 0]


@pytest.fixture(autouse=True, scope="module")
def format_is_registered():
    known = Registry.get_format_class_index()
    assert FormatCBFMiniDiffuse.__name__ in known, "this checkout was installed before it had a format: run `make env`"
    assert Registry.get_format_class_for(FormatCBFMiniDiffuse.__name__) is FormatCBFMiniDiffuse


def small(**scan):
    """A plain experiment of a few pixels."""
    return build_experiment(
        DetectorParameters((60, 50), distance=77.7, beam_centre=(21.3, 33.1)),
        BeamParameters(0.9763),
        ScanParameters(**{"start": 10.3, "width": 0.1, "n_images": 3, **scan}),
    )


def two_panels(**options):
    """Two tilted panels, a tilted beam, and an axis with fixed and setting rotations."""
    experiment = make_experiment(detector=make_detector(n_panels=2, tilted=True), kappa=True, n_images=3, **options)
    experiment.imageset = None
    return experiment


def counts(experiment, seed=0):
    """Poisson counts on every panel."""
    rng = np.random.default_rng(seed)
    return [rng.poisson(20, panel.get_image_size()[::-1]).astype(np.int32) for panel in experiment.detector]


def write_sweep(template, experiment, seed=0):
    """Write all images of an experiment; return their panels, by image."""
    first, last = experiment.scan.get_image_range()
    images = [counts(experiment, [seed, number]) for number in range(first, last + 1)]
    for number, panels in enumerate(images, first):
        write_cbf(image_path(template, number), panels, experiment, number)
    return images


def reader_of(path):
    """The format instance that dxtbx chooses."""
    return Registry.get_format_class_for_file(str(path))(str(path))


def raw(reader):
    data = reader.get_raw_data()
    return [part.as_numpy_array() for part in (data if isinstance(data, tuple) else (data,))]


def assert_close(a, b):
    """Two trees of dictionaries have the same keys and values, numbers to rounding."""
    assert type(a) is type(b) or not isinstance(a, dict)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_close(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-12, abs=1e-10)
    else:
        assert a == b


def static(model):
    return {key: value for key, value in model.to_dict().items() if not key.endswith("_at_scan_points")}


def assert_same_models(found, expected, names=MODELS):
    for name in names:
        assert_close(static(getattr(found, name)), static(getattr(expected, name)))
    for a, b in zip(found.detector, expected.detector):
        strategies = a.get_px_mm_strategy(), b.get_px_mm_strategy()
        assert strategies[0].name() == strategies[1].name()
        if strategies[0].name() != "SimplePxMmStrategy":
            assert_close(*((s.mu(), s.t0()) for s in strategies))
        assert trusted_bounds(a) == trusted_bounds(b)


@dataclass
class Read:
    """Models of one image."""

    beam: object
    detector: object
    goniometer: object
    scan: object


def models_of(path):
    reader = reader_of(path)
    return Read(reader.get_beam(), reader.get_detector(), reader.get_goniometer(), reader.get_scan())


# ---- what dials.import makes of whole sweeps


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """Sweeps of all kinds in one folder: {prefix: (experiment, images)}, and what dials.import makes of them."""
    folder = tmp_path_factory.mktemp("sweeps")
    crystal = build_crystal((40, 50, 60, 90, 100, 90), "P 1 21 1", random_orientation(np.random.default_rng(2)))
    scan = ScanParameters(start=-3.7, width=0.25, n_images=3, exposure=0.04, first_image=12)
    experiments = {
        "pilatus": build_experiment(
            DetectorParameters(distance=234.56, beam_centre=(471.23, 530.71)), BeamParameters(0.9795), scan, crystal
        ),
        "small_1": small(),
        "small_2": small(start=100.0, width=0.3, n_images=2),
        "background": small(start=0.0),
        "panels": two_panels(scan_varying=True),
    }
    written = {name: write_sweep(folder / f"{name}_#####.cbf", e) for name, e in experiments.items()}
    command = [sys.executable, "-m", "dials.command_line.dials_import", "output.experiments=all.expt"]
    command += [str(path) for path in sorted(folder.glob("*.cbf"))]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert result.returncode == 0, result.stdout + result.stderr
    imported = {}
    for experiment in ExperimentList.from_file(str(folder / "all.expt")):
        imported[os.path.basename(experiment.imageset.get_template()).rpartition("_")[0]] = experiment
    return experiments, written, imported


NAMES = ["pilatus", "small_1", "small_2", "background", "panels"]


@pytest.mark.parametrize("name", NAMES)
def test_dials_import_finds_the_models(sweeps, name):
    experiments, _, imported = sweeps
    assert sorted(imported) == sorted(experiments) == sorted(NAMES)
    assert_same_models(imported[name], experiments[name])
    assert imported[name].beam.num_scan_points == imported[name].goniometer.num_scan_points == 0


@pytest.mark.parametrize("name", NAMES)
def test_dials_import_finds_the_pixels(sweeps, name):
    _, written, imported = sweeps
    imageset = imported[name].imageset
    assert len(imageset) == len(written[name])
    for i, panels in enumerate(written[name]):
        for found, expected in zip(read_image(imageset, i), panels):
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, expected)


def test_an_ordinary_pilatus_file_has_its_gaps(sweeps):
    experiments, _, imported = sweeps
    imageset = imported["pilatus"].imageset
    assert imageset.get_format_class() is FormatCBFMiniPilatus
    assert np.array_equal(static_mask(imageset)[0], module_mask(experiments["pilatus"].detector)[0])


# ---- the same, one image at a time


@pytest.mark.parametrize("make", [small, two_panels])
def test_pixels_come_back(tmp_path, make):
    experiment = make()
    panels = counts(experiment)
    for i, panel in enumerate(panels):
        panel.ravel()[i : i + len(STEPS)] = STEPS
        panel[:, -1] = -1
    path = tmp_path / "a_0002.cbf"
    write_cbf(path, panels, experiment, 2)
    found = raw(reader_of(path))
    assert len(found) == len(panels)
    for a, b in zip(found, panels):
        np.testing.assert_array_equal(a, b)


def test_cbflib_reads_the_pixels_and_finds_the_checksum_right(tmp_path):
    experiment = small()
    panels = counts(experiment)
    panels[0].ravel()[: len(STEPS)] = STEPS
    path = tmp_path / "a_0001.cbf"
    write_cbf(path, panels, experiment, 1)
    np.testing.assert_array_equal(cbflib_pixels(path, (50, 60)), panels[0])

    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"\x0c\x1a\x04\xd5") + 500] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Exception, match="CBF"):
        cbflib_pixels(path, (50, 60))


def cbflib_pixels(path, shape):
    handle = pycbf.cbf_handle_struct()
    handle.read_widefile(str(path).encode(), pycbf.MSG_DIGESTNOW)
    handle.find_category(b"array_data")
    handle.find_column(b"data")
    return np.frombuffer(handle.get_integerarray_as_string(), dtype=np.int32).reshape(shape)


def test_narrow_panels_lie_below_each_other(tmp_path):
    experiment = two_panels()
    experiment.detector[0].set_image_size((30, 20))
    panels = counts(experiment)
    path = tmp_path / "a_0001.cbf"
    write_cbf(path, panels, experiment, 1)
    stacked = cbflib_pixels(path, (70, 60))
    np.testing.assert_array_equal(stacked[:20, :30], panels[0])
    assert (stacked[:20, 30:] == -1).all()
    np.testing.assert_array_equal(stacked[20:], panels[1])
    for a, b in zip(raw(reader_of(path)), panels):
        np.testing.assert_array_equal(a, b)


def _mu(experiment):
    experiment.detector[0].set_mu(1.0)
    strategy = type(experiment.detector[0].get_px_mm_strategy())
    experiment.detector[0].set_px_mm_strategy(strategy(1.0, 0.45))


def _frame(experiment, turn):
    panel = experiment.detector[0]
    vectors = np.array([panel.get_fast_axis(), panel.get_slow_axis(), panel.get_origin()]) @ turn.T
    panel.set_frame(*(tuple(v) for v in vectors))


def _goniometer(*arguments):
    return lambda e: setattr(e, "goniometer", Goniometer(*arguments))


def _multi_axis(experiment):
    axes = flex.vec3_double([(1, 0, 0), (0.5, 0.5, 0.7), (1, 0, 0)])
    names = flex.std_string(("PHI", "KAPPA", "OMEGA"))
    experiment.goniometer = GoniometerFactory.multi_axis(axes, flex.double((10, 20, 0)), names, 2)


TURN = tuple(rotation(3, 4, 5).ravel())
NOT_PLAIN = {
    "polarization fraction": lambda e: e.beam.set_polarization_fraction(0.9),
    "polarization normal": lambda e: e.beam.set_polarization_normal((0.6, 0.8, 0)),
    "beam direction": lambda e: e.beam.set_direction((1e-5, 0, 1)),
    "divergence": lambda e: e.beam.set_divergence(0.1),
    "reversed axis": _goniometer((-1, 0, 0)),
    "vertical axis": _goniometer((0, 1, 0)),
    "fixed rotation": _goniometer((1, 0, 0), TURN),
    "setting rotation": _goniometer((1, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1), TURN),
    "several axes": _multi_axis,
    "tilt": lambda e: _frame(e, rotation(0, 1e-5, 0)),
    "turned in its plane": lambda e: _frame(e, rotation(0, 0, 180)),
    "gain": lambda e: e.detector[0].set_gain(1.3),
    "pedestal": lambda e: e.detector[0].set_pedestal(5),
    "trusted range": lambda e: e.detector[0].set_trusted_range((-7, 1000)),
    "fractional cutoff": lambda e: e.detector[0].set_trusted_range((photon_counter_range(9)[0], 999.5)),
    "no parallax": lambda e: e.detector[0].set_px_mm_strategy(SimplePxMmStrategy()),
    "attenuation": _mu,
    "material": lambda e: e.detector[0].set_material("Ge"),
    "name": lambda e: e.detector[0].set_name("# Detector PILATUS, EIGER = 1:2:3"),
    "mask": lambda e: e.detector[0].add_mask(1, 2, 3, 4),
}
PLAIN = {
    "nothing": lambda e: None,
    "flux": lambda e: e.beam.set_flux(1.25e11),
    "transmission": lambda e: e.beam.set_transmission(0.3),
    "cutoff": lambda e: e.detector[0].set_trusted_range(photon_counter_range(54321)),
    "exposures": lambda e: e.scan.set_exposure_times(flex.double([0.1, 0.25, 1 / 3])),
    "epochs": lambda e: e.scan.set_epochs(flex.double([1.7e9, 1.7e9 + 0.125, 1.7e9 + 7.75])),
    "scan-varying crystal": lambda e: setattr(e, "crystal", make_crystal()),
}


@pytest.mark.parametrize("size", [(60, 50), (487, 407)], ids=["small", "modules"])
@pytest.mark.parametrize("change", [*PLAIN, *NOT_PLAIN])
def test_any_geometry_comes_back(tmp_path, change, size):
    """What the plain header can say is told to it, the rest goes into our own lines; dxtbx reads the same models."""
    experiment = build_experiment(
        DetectorParameters(size, distance=150.3, beam_centre=(20.3, 31.7)),
        BeamParameters(1.07),
        ScanParameters(n_images=3),
    )
    {**PLAIN, **NOT_PLAIN}[change](experiment)
    assert is_plain(experiment) == (change in PLAIN)
    path = tmp_path / "a_00002.cbf"
    panels = counts(experiment)
    write_cbf(path, panels, experiment, 2)
    expected = Read(experiment.beam, experiment.detector, experiment.goniometer, experiment.scan[1:2])
    found = models_of(path)
    assert_same_models(found, expected)
    np.testing.assert_array_equal(raw(reader_of(path))[0], panels[0])
    kind = type(reader_of(path))
    if change in NOT_PLAIN:
        assert kind is FormatCBFMiniDiffuse
    else:
        assert kind is (FormatCBFMiniPilatus if size == (487, 407) else FormatCBFMini)


def test_modules_without_a_mask_come_back_without_one(tmp_path):
    experiment = build_experiment(DetectorParameters((487, 407)), scan=ScanParameters(n_images=1))
    panels = [{**panel, "mask": []} for panel in experiment.detector.to_dict()["panels"]]
    experiment.detector = Detector.from_dict({**experiment.detector.to_dict(), "panels": panels})
    path = tmp_path / "a_1.cbf"
    write_cbf(path, counts(experiment), experiment, 1)
    found = models_of(path)
    assert_same_models(found, experiment)
    assert found.detector[0].get_untrusted_rectangle_mask().count(False) == 0


@pytest.mark.skipif(not hasattr(Scan, "has_property"), reason="scans of this DIALS always have times")
def test_scan_without_times_is_written_with_none(tmp_path):
    experiment = small()
    content = experiment.scan.to_dict()
    content["properties"] = {"oscillation": content["properties"]["oscillation"]}
    experiment.scan = Scan.from_dict(content)
    path = tmp_path / "a_2.cbf"
    write_cbf(path, counts(experiment), experiment, 2)
    scan = models_of(path).scan
    assert scan.get_oscillation() == pytest.approx((10.4, 0.1))
    assert (scan.get_exposure_times()[0], scan.get_epochs()[0]) == (0, 0)


def test_many_panels_make_a_long_header(tmp_path):
    """More lines than one, broken in the middle of names with blanks; more than the 4 kB that dxtbx reads at a time."""
    experiment = small()
    one = experiment.detector.to_dict()
    panels = [{**one["panels"][0], "name": f"panel  {i} " * 9, "image_size": (7, 1 + i)} for i in range(60)]
    hierarchy = {**one["hierarchy"], "children": [{"panel": i} for i in range(60)]}
    experiment.detector = Detector.from_dict({"panels": panels, "hierarchy": hierarchy})
    path = tmp_path / "a_1.cbf"
    images = counts(experiment)
    write_cbf(path, images, experiment, 1)
    header = path.read_bytes().split(b"--CIF-BINARY")[0].decode().splitlines()
    assert sum(line.startswith(MARK) for line in header) > 3
    assert max(map(len, header)) < 2048  # limit of CIF 1.1
    reader = reader_of(path)
    assert_close(static(reader.get_detector()), static(experiment.detector))
    for a, b in zip(raw(reader), images):
        np.testing.assert_array_equal(a, b)


# ---- whose files are whose


def test_files_of_others_are_left_alone(tmp_path):
    experiment = small()
    path = tmp_path / "a_00001.cbf"
    write_cbf(path, counts(experiment), experiment, 1, comment=f"not ours: x {MARK} {{}}")
    assert not FormatCBFMiniDiffuse.understand(str(path))
    assert type(reader_of(path)) is FormatCBFMini
    text = path.read_bytes().split(b"\n;")[1]
    assert text.count(b"# Comment not ours x # dials_diffuse models {}") == 1


def test_a_program_without_our_format_refuses_rather_than_assumes(tmp_path):
    experiment = two_panels()
    path = tmp_path / "a_00001.cbf"
    write_cbf(path, counts(experiment), experiment, 1)
    assert FormatCBFMini.understand(str(path)) and not FormatCBFMiniPilatus.understand(str(path))
    with pytest.raises(KeyError, match="Detector_distance"):
        FormatCBFMini(str(path))


def test_importing_the_format_takes_nothing_of_the_package_with_it():
    """dxtbx imports it for every CBF file there is."""
    program = (
        "import sys, dxtbx.format.FormatCBFMini; before = set(sys.modules); import dials_diffuse.experiment.format_cbf;"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    own = ["dials_diffuse", "dials_diffuse.errors", "dials_diffuse.experiment", "dials_diffuse.experiment.format_cbf"]
    assert result.stdout.split() == own


def test_requirements_of_the_installed_package_are_found_as_old_versions_of_dxtbx_look_for_them():
    """They load a format only if all requirements of its package are there, else no mini-CBF file is read any more."""
    resources = pytest.importorskip("pkg_resources")
    assert resources.require("dials_diffuse")


def _replace_first(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"schema"', b'"schema', ["header cannot be read", "JSONDecodeError"]),
        (b"models/1", b"models/9", ["not of the schema dials_diffuse.models/1"]),
        (b'"detector"', b'"detektor"', ["detector"]),
        (b'"fast_axis":[', b'"fast_axis":["x",', ["header cannot be read"]),
        (b'{"schema"', b'[{"schema"', ["header cannot be read"]),
        (b'"image_size":[60,50]', b'"image_size":[60,51]', ["60 x 100 pixels", "60 x 101"]),
    ],
)
def test_damaged_models_are_refused_with_the_name_of_the_file(tmp_path, old, new, words):
    experiment = two_panels()
    path = tmp_path / "a_00001.cbf"
    write_cbf(path, counts(experiment), experiment, 1)
    _replace_first(path, old, new)
    with pytest.raises(DiffuseError) as error:
        reader_of(path)
    assert all(word in str(error.value) for word in [str(path), "write the image again", *words]), error.value


# ---- experiments with images


def test_experiments_keep_their_models_beside_their_images(tmp_path):
    """Scan-varying models cannot be in an image: the .expt file has them, and reads the pixels that were written."""
    experiments = [two_panels(scan_varying=True), small(), two_panels(scan_varying=True)]
    experiments[1].crystal = make_crystal(space_group="P21")
    experiments[2].identifier = "second crystal on the same images"
    templates = [tmp_path / "a_1_###.cbf", tmp_path / "a_2_#####.cbf", tmp_path / "a_1_###.cbf"]
    written = [write_sweep(template, e) for template, e in zip(templates[:2], experiments)]
    attached = attach_images(experiments, templates)
    for e, true in zip(attached, experiments):
        for name in MODELS:
            in_image = getattr(e.imageset, f"get_{name}")()
            assert getattr(true, name) == in_image and in_image == getattr(true, name), name  # == is one-sided
    write_experiments(tmp_path / "truth.expt", attached)

    found = ExperimentList.from_file(str(tmp_path / "truth.expt"), check_format=True)
    assert [e.identifier for e in found] == [e.identifier for e in experiments]
    for e, true in zip(found, experiments):
        for name in (*MODELS, "crystal"):
            assert getattr(true, name) == getattr(e, name) and getattr(e, name) == getattr(true, name), name
    for e in (found[0], found[2]):
        assert e.crystal.num_scan_points == e.beam.num_scan_points == e.goniometer.num_scan_points == 4
        assert e.crystal.get_A_at_scan_point(2) == pytest.approx(experiments[0].crystal.get_A_at_scan_point(2))
    assert found[0].imageset is found[2].imageset
    for e, images in zip(found, written):
        for i, panels in enumerate(images):
            for a, b in zip(read_image(e.imageset, i), panels):
                np.testing.assert_array_equal(a, b)


def test_geometry_is_read_from_a_file_whose_images_are_gone(tmp_path):
    experiment = two_panels(scan_varying=True)
    template = tmp_path / "a_###.cbf"
    write_sweep(template, experiment)
    write_experiments(tmp_path / "truth.expt", attach_images([experiment], [template]))
    for path in tmp_path.glob("*.cbf"):
        path.unlink()
    (found,) = experiments_from_file(tmp_path / "truth.expt")
    assert found.imageset is None
    assert found.crystal == experiment.crystal
    assert_same_models(found, experiment)


def test_images_that_are_missing_or_do_not_fit_are_refused(tmp_path):
    experiment = small()
    template = tmp_path / "a_###.cbf"
    write_sweep(template, experiment)
    with pytest.raises(DiffuseError, match="2 templates for 1"):
        attach_images([experiment], [template, template])
    with pytest.raises(DiffuseError, match="different scans"):
        attach_images([experiment, small(n_images=2)], [template, template])
    (tmp_path / "a_002.cbf").unlink()
    with pytest.raises(DiffuseError, match=r"a_002\.cbf: no such image"):
        attach_images([experiment], [template])


# ---- what cannot be written


@pytest.mark.parametrize(
    ("template", "number", "expected"),
    [
        ("a_####.cbf", 12, "a_0012.cbf"),
        ("##.cbf", 7, "07.cbf"),
        ("x/a_1_#.cbf", 9, "x/a_1_9.cbf"),
        ("a_##.cbf", 100, None),
        ("a.cbf", 1, None),
        ("a_#_##.cbf", 1, None),
        ("a_##.cbf", -1, None),
    ],
)
def test_names_of_images(template, number, expected):
    if expected is None:
        with pytest.raises(DiffuseError, match="template="):
            image_path(template, number)
    else:
        assert str(image_path(template, number)) == expected


@pytest.mark.parametrize(
    ("name", "number", "change", "words"),
    [
        ("a_2.cbf", 1, lambda p: p, ["a_2.cbf", "image 1", "number"]),
        ("a.cbf", 1, lambda p: p, ["a.cbf"]),
        ("a_4.cbf", 4, lambda p: p, ["image 4", "1 to 3"]),
        ("a_1.cbf", 1, lambda p: p[:1], ["int32 (50, 60)", "detector"]),
        ("a_1.cbf", 1, lambda p: [p[0], p[1].T], ["(60, 50)"]),
        ("a_1.cbf", 1, lambda p: [p[0], p[1].astype(float)], ["float64"]),
        ("missing/a_1.cbf", 1, lambda p: p, ["missing"]),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name, number, change, words):
    experiment = two_panels()
    with pytest.raises(DiffuseError) as error:
        write_cbf(tmp_path / name, change(counts(experiment)), experiment, number)
    assert all(word in str(error.value) for word in words), error.value
    assert list(tmp_path.iterdir()) == []


def test_a_parallax_that_no_file_of_dxtbx_can_say_is_refused(tmp_path):
    experiment = small()
    experiment.detector[0].set_px_mm_strategy(ParallaxCorrectedPxMmStrategy(1.0, 0.45))
    with pytest.raises(DiffuseError, match="ParallaxCorrectedPxMmStrategy"):
        write_cbf(tmp_path / "a_1.cbf", counts(experiment), experiment, 1)


def test_arrays_of_any_layout_are_written_and_left_as_they_are(tmp_path):
    experiment = small()
    panel = counts(experiment)[0]
    for number, array in enumerate((np.asfortranarray(panel), panel[::-1][::-1], panel.copy()), 1):
        array.flags.writeable = False
        before = array.copy()
        path = tmp_path / f"a_{number}.cbf"
        write_cbf(path, [array], experiment, number)
        np.testing.assert_array_equal(raw(reader_of(path))[0], panel)
        np.testing.assert_array_equal(array, before)
