"""The scale model: smooth functions that turn the intensity of a voxel into expected counts.

    E[counts - background] = norm · exp(A + D + M) · [ exp(B) · (P(s) + J(voxel)) + P₀(s) C(s, φ) ]

P is the isotropic part of the crystal's scattering where the pixels were, J the anisotropic part of a unique voxel. J
is P times a smooth function Q of the direction, with the symmetry of the crystal, and a part that differs from voxel
to voxel: without Q, a flexible A would make the scattering more isotropic than it is. A
depends on detector position and rotation (absorption), D and M on the detector, B on the rotation, C on |s| and
rotation; A, B, C for each sweep. P₀ is the profile that refinement starts from, it makes C a relative number.

Each of these functions is a term, see :mod:`dials_diffuse.scaling.terms.table`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.scaling.layout import Layout, Rows, S
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.terms.base import Acts, Extent, Term
from dials_diffuse.scaling.terms.crystal import Profile, SmoothPart
from dials_diffuse.scaling.terms.drift import Drift
from dials_diffuse.scaling.terms.table import CRYSTAL, TERMS


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
    """Terms and their coefficients.

    Attributes
    ----------
    blocks : Term, in the order of their parameters; first those of the crystal
    coefficients : (p,) float64
    reference : (p,) float64, those of P₀ in the place of P; elsewhere what the priors pull to, zero
    levels : (e,) float64, factor of exp(B) of each sweep, with an offset that keeps the isotropic part of the counts,
        see :mod:`dials_diffuse.scaling.levels`; None: 1
    """

    blocks: tuple
    coefficients: np.ndarray
    reference: np.ndarray
    levels: np.ndarray | None = None

    def block(self, key: str) -> Term | None:
        return next((b for b in self.blocks if b.key == key), None)

    @property
    def of_crystal(self) -> tuple:
        """The terms that belong to the crystal, which every model has."""
        return self.blocks[: len(CRYSTAL)]

    @property
    def of_experiment(self) -> tuple:
        """The other terms."""
        return self.blocks[len(CRYSTAL) :]

    @property
    def terms(self) -> tuple:
        """Keys of the terms but those of the crystal."""
        return tuple(b.key for b in self.of_experiment)

    @property
    def n_parameters(self) -> int:
        return len(self.coefficients)

    def profile(self, s: np.ndarray, reference: bool = False) -> np.ndarray:
        """(n,) float64, the isotropic profile P at |s|, or P₀."""
        return self.block(Profile.key).at_s(self.reference if reference else self.coefficients, s)

    def value(self, key: str, rows: Rows) -> np.ndarray:
        """(n,) float64, one term but those of the crystal, the drift with the levels; 0 where the model lacks it."""
        block = self.block(key)
        if block is None:
            return np.zeros(len(rows.experiment))
        result = block.value(self.coefficients, rows)
        if key == Drift.key and self.levels is not None:
            result += np.log(self.levels)[rows.experiment]
        return result

    def total(self, acts: Acts, rows: Rows) -> np.ndarray:
        """(n,) float64, the sum of the terms that act in one way, 0 where there are none."""
        result = np.zeros(len(rows.experiment))
        for block in self.blocks:
            if block.acts is acts:
                result += self.value(block.key, rows)
        return result

    def offset(self, rows: Rows) -> np.ndarray:
        """(n,) float64, what the crystal has no part in: P₀ C, and what goes with the levels of the sweeps."""
        s = rows.coordinates[:, S]
        result = np.zeros(len(s))
        if any(block.acts is Acts.OFFSET for block in self.blocks):
            result += self.total(Acts.OFFSET, rows) * self.profile(s, True)
        if self.levels is not None:
            scale = np.exp(self.total(Acts.SCALE, rows))
            result += scale * (1 / self.levels[rows.experiment] - 1) * self.profile(s)
        return result

    def smooth_anisotropic(self, data: Observations) -> np.ndarray:
        """(n,) float64, Q: the part of J that is a smooth function of the direction, relative to P."""
        return self.block(SmoothPart.key).value(self.coefficients, data.rows)

    def predict(self, rows: Rows, norm: np.ndarray, s_voxel: np.ndarray) -> Prediction:
        """What to expect of observations; norm, s_voxel : (n,) float64, see Observations."""
        return Prediction(
            gain=norm * np.exp(self.total(Acts.GAIN, rows)),
            scale=np.exp(self.total(Acts.SCALE, rows)),
            profile=self.profile(rows.coordinates[:, S]),
            profile_at_voxel=self.profile(s_voxel),
            offset=self.offset(rows),
        )

    def predict_observations(self, data: Observations) -> Prediction:
        prediction = self.predict(data.rows, data.norm, data.s_voxel)
        return replace(prediction, smooth=self.smooth_anisotropic(data))

    def moved(self, step: np.ndarray) -> ScaleModel:
        """The model with ``step`` (p,) added to its coefficients."""
        return replace(self, coefficients=self.coefficients + step)

    def with_terms(self, keys) -> ScaleModel:
        """The same coefficients without some of the terms."""
        kept = [*self.of_crystal, *(b for b in self.of_experiment if b.key in keys)]
        placed, start = [], 0
        for b in kept:
            placed.append(b.placed(start))
            start = placed[-1].all.stop
        coefficients, reference = (
            np.concatenate([x[b.all] for b in kept]) for x in (self.coefficients, self.reference)
        )
        return ScaleModel(tuple(placed), coefficients, reference)

    def with_term(self, full: ScaleModel, key: str) -> ScaleModel:
        """One more term, with the coefficients that it has in ``full``, a model that has all of them."""
        result = full.with_terms((*self.terms, key))
        for b in self.blocks:
            result.coefficients[result.block(b.key).all] = self.coefficients[b.all]
        return result


def start_model(data: Observations, layout: Layout, parameters: ScalingParameters) -> ScaleModel:
    """No scale factors, and the isotropic profile of the data as they are.

    Its unit is the mean rate of the data, counts per norm.

    Raises
    ------
    DiffuseError
        If the background is larger than the signal everywhere.
    """
    s = data.coordinates[:, S]
    s_range = float(s.min()), float(s.max())
    extent = Extent(layout, parameters.terms, parameters.options, s_range, data.patterns.shape[1])
    blocks = terms_at_start(extent)
    coefficients = np.zeros(blocks[-1].all.stop)
    coefficients[blocks[0].all] = blocks[0].first(s, data.net, data.norm)
    return ScaleModel(blocks, coefficients, coefficients.copy())


def terms_at_start(extent: Extent) -> tuple:
    """All terms that are wanted and fit the data, each at its place among the parameters."""
    wanted = [term for term in TERMS if term.name in extent.names and term.fits(extent)]
    # the order of the coefficients in stored models
    wanted.sort(key=lambda term: (not term.repeats, term.smoothing is not None))
    blocks, start = [], 0
    for term in (*CRYSTAL, *wanted):
        blocks.append(term.make(extent, start))
        start = blocks[-1].all.stop
    return tuple(blocks)
