"""Structure -> images -> map -> compared with the truth: tiny crystals, the true models, no program of DIALS.

A cell of 12 to 20 Å on a few thousand pixels has all that a real experiment has, but voxels of 0.03 1/Å: much larger
than a pixel (0.013 1/Å) and a rotation step (3 degrees, 0.02 1/Å at the edge), so that the mean over a voxel is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from dxtbx.model import Goniometer
from dxtbx.model.experiment_list import ExperimentListFactory
from helpers.builders import PROVENANCE
from helpers.loops import D_MAX, FLUX, LLM, N_BINS, N_SHELLS, R_E, REDUCTION, SIMULATION, THICKNESS, compare_with_truth
from helpers.structures import random_structure
from helpers.synthetic import make_detector, make_experiment, rotation
from scipy.spatial.transform import Rotation

from dials_diffuse.experiment.build import (
    BeamParameters,
    DetectorParameters,
    ScanParameters,
    build_crystal,
    random_orientation,
)
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.shells import correlation, equal_count_residual
from dials_diffuse.merging.compare import Comparison, common_voxels
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import BackgroundSmoothing, Masking
from dials_diffuse.simulation.plan import plan_sweeps
from dials_diffuse.simulation.simulate import Outputs, simulate
from dials_diffuse.simulation.simulation_parameters import Background, Source


@dataclass(frozen=True)
class Loop:
    """A simulated experiment in a folder; ``scale``: photons per microsteradian and second, per electron² per cell."""

    folder: object
    scale: float

    @property
    def truth(self):
        return read_map(self.folder / "truth.nxs")

    def reduce(self, reduction=REDUCTION, change=lambda experiment: None, background=()) -> tuple:
        """Integrate and merge with the true models, after ``change`` was applied to them; outliers and map."""
        files = [str(path) for path in self.folder.glob("simulated.*")]
        data = load_input(sorted(files))
        for experiment in data.experiments:
            change(experiment)
        path = self.folder / "integrated.h5"
        result = integrate(data.experiments, reduction, path, PROVENANCE, data.reflections, background)
        return result.experiments[0].outlier, merge_observations([path], MergeParameters(n_shells=N_SHELLS)).map

    def compare(self, *args, **options) -> Comparison:
        """The map against the truth, slopes relative to the right one."""
        return self.agreement(self.reduce(*args, **options)[1])

    def agreement(self, data) -> Comparison:
        result = compare_with_truth(data, self.truth)
        shells = [{**row, "slope": row["slope"] / self.scale} for row in result.shells]
        return replace(result, slope=result.slope / self.scale, shells=shells)

    def ceiling(self) -> Comparison:
        """The same for the map that knows scales, background and orientation."""
        return compare_with_truth(read_map(self.folder / "ideal.nxs"), self.truth)


def make_loop(folder, structure, model, experiment=None, parameters=SIMULATION) -> Loop:
    """Simulate 60 images of 3 degrees on a flat detector, or the given experiment."""
    if experiment is None:
        detector = DetectorParameters(size=(120, 100), pixel_size=0.8, distance=60.0)
        scan = ScanParameters(width=3.0, n_images=60)
        sweeps = plan_sweeps(structure, detector, BeamParameters(), scan, seed=3)
    else:
        experiment.imageset = None
        sweeps = [[experiment]]
    outputs = Outputs(
        prefix=str(folder / "simulated"),
        background=str(folder / "background"),
        experiments=str(folder / "simulated.expt"),
        reflections=str(folder / "simulated.refl") if parameters.bragg else None,
        truth=str(folder / "truth.nxs"),
        ideal=str(folder / "ideal.nxs"),
    )
    simulate(structure, model, sweeps, parameters, outputs, PROVENANCE)
    cells = parameters.source.flux * THICKNESS * 1e7 / structure.cell.volume()
    return Loop(folder, cells * R_E**2 * 1e-6)


def assert_closed(loop: Loop, result: Comparison):
    """The map is as good as any map of these images can be, and on the absolute scale.

    A voxel counts some 10^5 photons, and the diffuse intensity varies by tens of percent: noise takes less than 0.001
    from the correlation. Pixels that reach over the border of a voxel take more, in the ceiling as well as in the map.
    That the map does not know the background may cost it 0.01.
    """
    ceiling = loop.ceiling()
    assert ceiling.cc > 0.99
    assert result.cc > ceiling.cc - 0.01
    assert result.n > 0.9 * np.count_nonzero(loop.truth.grid.s_magnitude(loop.truth.index) > 1 / D_MAX)
    assert result.slope == pytest.approx(1, abs=0.03)
    assert result.slope_variation < 0.03
    assert min(row["cc"] for row in result.shells) > 0.97


ANISOTROPIC_V = (0.25, 0.12, 0.06, 0.04, 0.02, -0.03)
ANISOTROPIC_G = (5.0, 3.0, 2.0, 0.5, 0.0, -0.3)

CASES = {
    "P1, anisotropic body": ("P 1", (12, 13, 14, 80, 95, 107), RigidBody(V=ANISOTROPIC_V)),
    "P1, soft body": ("P 1", (12, 13, 14, 80, 95, 107), RigidBody(V=ANISOTROPIC_V, soft=True)),
    "P1121, anisotropic LLM": (
        "P 1 1 21",
        (14, 16, 18, 90, 90, 103),
        LiquidLikeMotions(V=ANISOTROPIC_V, G=ANISOTROPIC_G),
    ),
    "I121": ("I 1 2 1", (18, 14, 16, 90, 98, 90), LLM),
    "P41": ("P 41", (16, 16, 14, 90, 90, 90), LLM),
    "P31": ("P 31", (16, 16, 14, 90, 90, 120), LLM),
    "R3:H": ("R 3 :H", (20, 20, 16, 90, 90, 120), LLM),
    "P23": ("P 2 3", (18, 18, 18, 90, 90, 90), LLM),
    "P213, anisotropic body": ("P 21 3", (18, 18, 18, 90, 90, 90), RigidBody(V=ANISOTROPIC_V)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loop_closes(case, tmp_path):
    group, cell, model = CASES[case]
    structure = random_structure(group, cell, "CNOCS" * 2, u=(0.3, 0.45))
    loop = make_loop(tmp_path, structure, model)
    assert_closed(loop, loop.compare())


def two_panels():
    """Two tilted panels that do not hide each other."""
    detector = make_detector(size=(60, 120), distance=60.0, pixel=0.8, n_panels=2, tilted=True)
    for panel, shift in zip(detector, (-10.4, 10.4)):
        panel.set_frame(panel.get_fast_axis(), panel.get_slow_axis(), tuple(np.add(panel.get_origin(), (shift, 0, 0))))
    return detector


def test_the_loop_closes_with_tilted_panels_a_kappa_goniometer_and_varying_models(tmp_path):
    structure = random_structure("P 1", (12, 13, 14, 80, 95, 107), "CNOCS" * 2, u=(0.3, 0.45))
    crystal = build_crystal(structure.cell, structure.space_group, random_orientation(np.random.default_rng(5)))
    experiment = make_experiment(
        n_images=60, width=3.0, detector=two_panels(), crystal=crystal, scan_varying=True, kappa=True
    )
    parameters = replace(SIMULATION, source=Source(FLUX / 10))  # for 1 s per image instead of 0.1
    loop = make_loop(tmp_path, structure, RigidBody(V=ANISOTROPIC_V), experiment, parameters)
    assert_closed(loop, loop.compare())


def test_the_isotropic_part_is_absolute_too(tmp_path):
    """Where air is all that is beside the diffuse scattering, and is subtracted, the map is the truth."""
    structure = random_structure("P 41", (16, 16, 14, 90, 90, 90), "CNOCS" * 2, u=(0.3, 0.45))
    air = Background(air=10.0, liquid=0.0, solvent=False, compton=False)
    loop = make_loop(tmp_path, structure, LLM, parameters=replace(SIMULATION, background=air, background_images=12))
    empty = ExperimentListFactory.from_filenames([str(p) for p in sorted(tmp_path.glob("background_1_*.cbf"))])
    # with such large pixels the scattering of air changes within a few of them
    reduction = replace(REDUCTION, background=BackgroundSmoothing(block=1, angle=180.0))

    def ratio(background):
        data, truth = loop.reduce(reduction, background=background)[1], loop.truth
        in_data, in_truth = common_voxels(data, truth)
        far = truth.grid.s_magnitude(truth.index[in_truth]) > 1 / D_MAX
        return (data.intensity[in_data] / loop.scale / truth.intensity[in_truth])[far]

    right = ratio(empty)
    assert np.median(right) == pytest.approx(1, abs=0.005)
    # of a voxel of 10^5 counts, noise and what its border takes from its neighbours are well below one per cent each
    assert np.percentile(right, [5, 95]) == pytest.approx(1, abs=0.01)
    assert np.percentile(ratio(()), 5) > 1.1


# Mistakes in the geometry that processing believes in. Half a pixel and half a rotation step are too small for what
# follows: exact indices of single pixels show them, see test_the_oracle_sees_small_mistakes in
# test_simulation_parts.py for the simulator and test_geometry.py for the map.


def wrong_axis_sense(experiment):
    goniometer = experiment.goniometer
    goniometer.set_rotation_axis_datum(tuple(-np.array(goniometer.get_rotation_axis_datum())))


def mirrored_hand(experiment):
    mirror = np.diag([-1.0, 1.0, 1.0])
    for panel in experiment.detector:
        frame = panel.get_fast_axis(), panel.get_slow_axis(), panel.get_origin()
        panel.set_frame(*(tuple(mirror @ np.array(vector)) for vector in frame))


def transposed_setting_rotation(experiment):
    setting = np.array(experiment.goniometer.get_setting_rotation()).reshape(3, 3)
    experiment.goniometer.set_setting_rotation(tuple(setting.T.ravel()))


def one_degree_off(experiment):
    turn = Rotation.from_rotvec(np.radians(1.0) * np.array([0.6, 0.64, 0.48])).as_matrix()
    experiment.crystal.set_U(tuple((turn @ np.array(experiment.crystal.get_U()).reshape(3, 3)).ravel()))


def half_a_pixel_off(experiment):
    for panel in experiment.detector:
        fast, slow, origin = (np.array(v) for v in (panel.get_fast_axis(), panel.get_slow_axis(), panel.get_origin()))
        panel.set_frame(tuple(fast), tuple(slow), tuple(origin + 0.5 * panel.get_pixel_size()[0] * (fast + slow)))


def half_a_step_off(experiment):
    start, width = experiment.scan.get_oscillation()
    experiment.scan.set_oscillation((start + width / 2, width))


FINE = replace(
    REDUCTION,
    subdivide=(3, 3, 3),
    d_min=2.2,
    masking=Masking(n_sigma=4.0, outlier_n_sigma=0.0),
    geometry_check="none",  # what wrong models do is asked
)
GUARDED = replace(FINE, masking=Masking(n_sigma=4.0))


def fine_loop(folder, bragg=True, n_images=40) -> Loop:
    """A cell of 10^4 Å³ on pixels that resolve a misorientation by a degree; setting and fixed rotation."""
    structure = random_structure("P 1", (20, 22, 24, 80, 95, 107), "CNOCS" * 4, u=(0.3, 0.4), radius=6.0)
    experiment = make_experiment(
        n_images=n_images,
        detector=make_detector(size=(250, 220), distance=60.0, pixel=0.25),
        crystal=build_crystal(structure.cell, structure.space_group, random_orientation(np.random.default_rng(5))),
    )
    fixed, setting = rotation(20, 40, -30), rotation(10, -25, 15)
    experiment.goniometer = Goniometer((1, 0, 0), tuple(fixed.ravel()), tuple(setting.ravel()))
    parameters = replace(
        SIMULATION,
        source=Source(FLUX),
        bragg=bragg,
        subdivide=FINE.subdivide,
        d_min=FINE.d_min,
        sub_steps=2,
        sub_pixels=1,
    )
    return make_loop(folder, structure, LiquidLikeMotions(sigma=0.4, gamma=6.0), experiment, parameters)


@pytest.fixture(scope="module")
def with_spots(tmp_path_factory):
    loop = fine_loop(tmp_path_factory.mktemp("spots"))
    right = loop.compare(FINE)
    assert right.cc > loop.ceiling().cc - 0.01 > 0.97
    return loop, right.cc


def at_lattice_points(loop, masking) -> tuple:
    """Bias at lattice points with its e.s.d., over the rms of the truth, and the correlations there and elsewhere.

    The bias is the mean of map - truth at the lattice points less that elsewhere, of the anisotropic parts.
    """
    data, truth = loop.reduce(replace(FINE, masking=masking))[1], loop.truth
    a, b = common_voxels(data, truth)
    s = truth.grid.s_magnitude(truth.index[b])
    a, b, s = (v[s > 1 / D_MAX] for v in (a, b, s))
    x, y = (equal_count_residual(v, s, N_BINS) for v in (data.intensity[a], truth.intensity[b]))
    difference = x * (y @ y) / (x @ y) - y
    at = np.all(truth.index[b] % 3 == 0, axis=1)
    rms = np.sqrt(np.mean(y**2))
    bias = (difference[at].mean() - difference[~at].mean()) / rms
    return (bias, difference[at].std() / np.sqrt(at.sum()) / rms), *(correlation(x[k], y[k]) for k in (at, ~at))


def test_masks_that_follow_the_peaks_let_nothing_through(tmp_path):
    """What leaks is the bias beyond that of a mask which lets hardly anything through: below 2 % of the rms.

    Such a mask has a bias, too, as the ideal map has: what pixels and images carry over the borders of voxels is taken
    from the tops of halos. The fixed mask of 3 sigma leaks more, and costs correlation.
    """
    loop = fine_loop(tmp_path, n_images=60)
    (strict, _), *_ = at_lattice_points(loop, Masking(leak=0.02, outlier_n_sigma=0.0))
    (bias, esd), at, away = at_lattice_points(loop, Masking(outlier_n_sigma=0.0))
    (fixed, _), fixed_at, fixed_away = at_lattice_points(loop, Masking(n_sigma=3.0, outlier_n_sigma=0.0))
    assert esd < 0.01
    assert abs(bias - strict) < 0.02 < 0.04 < fixed - strict
    assert strict < 0 and abs(bias) < 0.5 * fixed
    assert at > fixed_at + 0.01 and away > fixed_away - 0.001


@pytest.mark.parametrize(
    "mistake", [wrong_axis_sense, mirrored_hand, transposed_setting_rotation, one_degree_off], ids=lambda m: m.__name__
)
def test_a_wrong_geometry_makes_the_correlation_collapse(with_spots, mistake):
    """A degree does it because the masks miss the Bragg spots, see the next two tests."""
    loop, right = with_spots
    assert loop.compare(FINE, mistake).cc < 0.5 * right


def test_the_outlier_guard_hides_a_degree_and_says_so(with_spots):
    """Bragg spots outside their masks are outliers: the map stays good, and the number of the outliers tells."""
    loop, right = with_spots
    outliers, data = loop.reduce(GUARDED, one_degree_off)
    assert loop.agreement(data).cc > 0.95 * right
    assert outliers > 5 * loop.reduce(GUARDED)[0]


def test_a_correlation_hardly_sees_small_mistakes(tmp_path):
    """Nor a degree where no Bragg spots are, since halos are as wide: not only by its correlation is a map judged."""
    loop = fine_loop(tmp_path, bragg=False)
    no_mask = replace(FINE, masking=replace(FINE.masking, bragg=False))
    right = loop.compare(no_mask).cc
    for mistake in (half_a_step_off, half_a_pixel_off, one_degree_off):
        assert loop.compare(no_mask, mistake).cc > 0.95 * right
