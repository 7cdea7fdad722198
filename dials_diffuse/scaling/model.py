"""The scale model: smooth functions that turn the intensity of a voxel into expected counts.

    E[counts - background] = norm · exp(A + D + M) · [ exp(B) · (P(s) + J(voxel)) + P₀(s) C(s, φ) ]

P is the isotropic part of the crystal's scattering where the pixels were, J the anisotropic part of a unique voxel. J
is P times a smooth function Q of the direction, with the symmetry of the crystal, and a part that differs from voxel
to voxel: without Q, a flexible A would make the scattering more isotropic than it is. A
depends on detector position and rotation (absorption), D and M on the detector, B on the rotation, C on |s| and
rotation; A, B, C for each sweep. P₀ is the profile that refinement starts from, it makes C a relative number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.scaling import evaluate_block, evaluate_patterns
from dials_diffuse.scaling.layout import DIFFRACTED, MODULE, Layout, S, T, X, Y
from dials_diffuse.scaling.patterns import absorption, degrees_of
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

#: distance of nodes of the isotropic profile in |s|, 1/Å, and how many there may be
PROFILE_STEP = 0.004
PROFILE_NODES = (12, 250)

#: nodes in |s| of the smooth anisotropic part
_PATTERN_NODES = 6

#: more parameters than this take too long; terms of many sweeps get fewer nodes then
MAX_PARAMETERS = 1600
MAX_PARAMETERS_B = 800
MAX_PARAMETERS_C = 800
_LEAST_NODES_C = 6


@dataclass(frozen=True)
class Block:
    """Parameters of one term: a tensor product of axes, the same for every sweep or one set for each.

    Attributes
    ----------
    name : a term of ``parameters.TERMS``; "h" for absorption as spherical harmonics, "m" for the modules, "p" for the
        isotropic profile, "q" for the smooth anisotropic part, one set of coefficients for each pattern
    axes : (k, 2) int64, column of the coordinates and number of basis functions
    limits : (k, 2) float64, lower end and step
    start, size : first parameter, and number of parameters of one set
    n_sets : number of sweeps, or 1
    """

    name: str
    axes: np.ndarray
    limits: np.ndarray
    start: int
    size: int
    n_sets: int

    @property
    def all(self) -> slice:
        return slice(self.start, self.start + self.size * self.n_sets)

    def offset(self, experiment: np.ndarray) -> np.ndarray:
        """(n,) int64, first parameter for observations of these experiments."""
        return self.start + (self.size * experiment if self.n_sets > 1 else np.zeros_like(experiment))

    @property
    def degree(self) -> int:
        """Highest degree of the harmonics of "h"."""
        return math.isqrt(self.size + 1) - 1

    @property
    def width(self) -> int:
        """Basis functions that are not zero at one point."""
        if self.name == "h":
            return self.size
        return math.prod(1 if step == 0 else 3 for step in self.limits[:, 1])

    def penalty(self) -> np.ndarray:
        """(size, size) sum of squared second differences along each axis; of squares for numbered categories.

        For harmonics the mean square of the Laplacian on the sphere.
        """
        if self.name == "h":
            degree = degrees_of(self.degree)
            return np.diag((degree * (degree + 1.0)) ** 2)
        result = np.zeros((self.size, self.size))
        for k, (n, step) in enumerate(zip(self.axes[:, 1], self.limits[:, 1])):
            d = np.eye(n) if step == 0 else np.diff(np.eye(n), 2, axis=0)
            factors = [np.eye(m) for m in self.axes[:, 1]]
            factors[k] = d.T @ d
            product = factors[0]
            for f in factors[1:]:
                product = np.kron(product, f)
            result += product
        return result


@dataclass(frozen=True)
class Prediction:
    """What the model says of n observations; (n,) float64 each.

    Attributes
    ----------
    gain : norm · exp(A + D + M)
    scale : exp(B)
    profile, profile_at_voxel : P at the pixels and at the centre of the voxel
    offset : P₀ C
    smooth : Q of the voxel; None for rows whose unique voxel was not asked for
    """

    gain: np.ndarray
    scale: np.ndarray
    profile: np.ndarray
    profile_at_voxel: np.ndarray
    offset: np.ndarray
    smooth: np.ndarray | None = None

    def rows(self, wanted: slice) -> Prediction:
        """Of some of the observations."""
        return Prediction(*(x if x is None else x[wanted] for x in vars(self).values()))

    @property
    def unit(self) -> np.ndarray:
        """Counts per unit of J."""
        return self.gain * self.scale

    @property
    def isotropic(self) -> np.ndarray:
        """Expected net counts without J."""
        return self.gain * (self.scale * self.profile + self.offset)

    @property
    def expected(self) -> np.ndarray:
        """Expected net counts with the smooth part of J."""
        return self.isotropic + self.unit * self.profile * self.smooth


@dataclass(frozen=True)
class ScaleModel:
    """Blocks and their coefficients.

    Attributes
    ----------
    blocks : in the order of their parameters
    coefficients : (p,) float64
    reference : (p,) float64, those of P₀ in the place of P, zero elsewhere
    levels : (e,) float64, factor of exp(B) of each sweep, with an offset that keeps the isotropic part of the counts,
        see :mod:`dials_diffuse.scaling.levels`; None: 1
    """

    blocks: tuple
    coefficients: np.ndarray
    reference: np.ndarray
    levels: np.ndarray | None = None

    def block(self, name: str) -> Block | None:
        return next((b for b in self.blocks if b.name == name), None)

    @property
    def terms(self) -> tuple:
        return tuple(b.name for b in self.blocks if b.name not in "pq")

    @property
    def n_parameters(self) -> int:
        return len(self.coefficients)

    def profile(self, s: np.ndarray, reference: bool = False) -> np.ndarray:
        """(n,) float64, the isotropic profile P at |s|, or P₀."""
        block, result = self.block("p"), np.empty(len(s))
        axes = np.array([[0, block.size]])
        coefficients = self.reference if reference else self.coefficients
        evaluate_block(
            np.asarray(s, dtype=float)[:, None],
            block.offset(np.zeros(len(s), np.int64)),
            axes,
            block.limits,
            coefficients,
            result,
        )
        return result

    def value(self, name: str, coordinates, experiment, harmonics=None) -> np.ndarray:
        """(n,) float64, one term but P and Q at some coordinates; 0 where the model lacks it.

        harmonics : those of the coordinates where they are known
        """
        result = np.zeros(len(experiment))
        block = self.block(name)
        if block is not None and name == "h":
            own = self.coefficients[block.all].reshape(-1, block.size)
            if harmonics is None:
                return absorption(coordinates[:, DIFFRACTED:], own, experiment, block.degree)
            result = np.einsum("nk,nk->n", harmonics, own[experiment])
        elif block is not None and len(result):
            evaluate_block(coordinates, block.offset(experiment), block.axes, block.limits, self.coefficients, result)
        if name == "b" and self.levels is not None:
            result += np.log(self.levels)[experiment]
        return result

    def offset(self, coordinates, experiment) -> np.ndarray:
        """(n,) float64, what the crystal has no part in: P₀ C, and what goes with the levels of the sweeps."""
        result, s = np.zeros(len(experiment)), coordinates[:, S]
        if self.block("c"):
            result += self.value("c", coordinates, experiment) * self.profile(s, True)
        if self.levels is not None:
            scale = np.exp(self.value("b", coordinates, experiment))
            result += scale * (1 / self.levels[experiment] - 1) * self.profile(s)
        return result

    def smooth_anisotropic(self, data: Observations) -> np.ndarray:
        """(n,) float64, Q: the part of J that is a smooth function of the direction, relative to P."""
        result, b = np.zeros(data.n), self.block("q")
        evaluate_patterns(
            data.coordinates, b.start, b.axes, b.limits, self.coefficients, data.patterns, data.orbit, result
        )
        return result

    def predict(self, coordinates, experiment, norm, s_voxel, harmonics=None) -> Prediction:
        """What to expect; arguments as in :class:`dials_diffuse.scaling.sample.Observations`."""

        def value(name):
            return self.value(name, coordinates, experiment, harmonics)

        s = coordinates[:, S]
        return Prediction(
            gain=norm * np.exp(value("a") + value("h") + value("d") + value("m")),
            scale=np.exp(value("b")),
            profile=self.profile(s),
            profile_at_voxel=self.profile(s_voxel),
            offset=self.offset(coordinates, experiment),
        )

    def predict_observations(self, data: Observations) -> Prediction:
        rows = data.coordinates, data.experiment, data.norm, data.s_voxel, data.harmonics
        return replace(self.predict(*rows), smooth=self.smooth_anisotropic(data))

    def moved(self, step: np.ndarray) -> ScaleModel:
        """The model with ``step`` (p,) added to its coefficients."""
        return replace(self, coefficients=self.coefficients + step)

    def with_terms(self, terms) -> ScaleModel:
        """The same coefficients without some of the terms."""
        kept, coefficients, reference, start = [], [], [], 0
        for b in self.blocks:
            if b.name in "pq" or b.name in terms:
                kept.append(replace(b, start=start))
                coefficients.append(self.coefficients[b.all])
                reference.append(self.reference[b.all])
                start += b.size * b.n_sets
        return ScaleModel(tuple(kept), np.concatenate(coefficients), np.concatenate(reference))

    def with_term(self, full: ScaleModel, name: str) -> ScaleModel:
        """One more term, with the coefficients that it has in ``full``, a model that has all of them."""
        result = full.with_terms((*self.terms, name))
        for b in self.blocks:
            result.coefficients[result.block(b.name).all] = self.coefficients[b.all]
        return result


def start_model(data: Observations, layout: Layout, parameters: ScalingParameters) -> ScaleModel:
    """No scale factors, and the isotropic profile of the data as they are.

    Its unit is the mean rate of the data, counts per norm.
    """
    terms = set(parameters.terms)
    if "d" in terms:
        terms |= {"m"} if layout.n_modules > 1 else set()
    if "a" in terms and parameters.form_a == "harmonics" and layout.orientation is not None:
        terms = terms - {"a"} | {"h"}
    if "a" in terms:  # can do what d can
        terms -= {"d"}
    if layout.n_panels > 1:  # where panels lie relative to each other is not in the observation files
        terms -= {"a", "d"}
    s = data.coordinates[:, S]
    low, high = float(s.min()), float(s.max())
    n_experiments = len(layout.start)
    turn = float(np.abs(layout.width).max())
    n_profile = int(np.clip((high - low) / PROFILE_STEP, *PROFILE_NODES)) + 2
    shapes = {"p": ((S, n_profile),), "q": ((S, _PATTERN_NODES),)}
    angle_a, nodes_a = parameters.angle_a, parameters.nodes_a
    while True:
        along = {name: max(3, math.ceil(turn / angle) + 2) for name, angle in _angles(parameters, angle_a).items()}
        size_a = along["a"] * nodes_a**2 * n_experiments
        if "a" not in terms or size_a <= MAX_PARAMETERS or (nodes_a == 3 and along["a"] == 3):
            break
        if along["a"] > nodes_a:
            angle_a *= 1.25
        else:
            nodes_a -= 1
    along["b"] = max(3, min(along["b"], MAX_PARAMETERS_B // n_experiments))
    along["c"] = max(3, min(along["c"], MAX_PARAMETERS_C // (n_experiments * _LEAST_NODES_C)))
    shapes["b"] = ((T, along["b"]),)
    shapes["h"] = ((DIFFRACTED, (parameters.degree_a + 1) ** 2 - 1),)
    # c must be able to follow the rings of water: what it cannot follow, b is pulled away for
    most_c = MAX_PARAMETERS_C // (n_experiments * along["c"])
    shapes["c"] = ((T, along["c"]), (S, max(_LEAST_NODES_C, min(parameters.nodes_c, most_c))))
    shapes["a"] = ((T, along["a"]), (X, nodes_a), (Y, nodes_a))
    shapes["d"] = ((X, parameters.nodes_d), (Y, parameters.nodes_d))
    shapes["m"] = ((MODULE, layout.n_modules),)
    ends = {T: (0.0, 1.0), X: (0.0, 1.0), Y: (0.0, 1.0), S: (low, high)}
    blocks, start = [], 0
    for name, axes in shapes.items():
        if name not in "pq" and name not in terms:
            continue
        limits = []
        for column, n in axes:
            if column in (MODULE, DIFFRACTED):
                limits.append((0.0, 0.0))
            else:
                limits.append((ends[column][0], (ends[column][1] - ends[column][0]) / (n - 2)))
        size = math.prod(n for _, n in axes)
        n_sets = n_experiments if name in "abch" else data.patterns.shape[1] if name == "q" else 1
        blocks.append(Block(name, np.array(axes, dtype=np.int64), np.array(limits), start, size, n_sets))
        start += size * n_sets
    model = ScaleModel(tuple(blocks), np.zeros(start), np.zeros(start))
    profile = _first_profile(data, model.block("p"))
    coefficients = np.zeros(start)
    coefficients[model.block("p").all] = profile
    return replace(model, coefficients=coefficients, reference=coefficients.copy())


def _angles(parameters: ScalingParameters, angle_a: float) -> dict:
    return {"b": parameters.angle_b, "a": angle_a, "c": parameters.angle_c}


def _first_profile(data: Observations, block: Block) -> np.ndarray:
    """(n,) coefficients: mean rate around each node; empty stretches are bridged."""
    (low, step), n = block.limits[0], block.size
    node = np.clip(np.rint((data.coordinates[:, S] - low) / step + 0.5).astype(int), 0, n - 1)
    net, norm = (np.bincount(node, x, minlength=n) for x in (data.net, data.norm))
    filled = np.flatnonzero((norm > 0) & (net > 0))
    if not len(filled):
        raise DiffuseError(
            "the background is larger than the signal at all resolutions; check background= and the beam"
        )
    return np.interp(np.arange(n), filled, net[filled] / norm[filled])
