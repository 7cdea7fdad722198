"""Absolute scale: electrons² per unit cell, from all that the cell scatters.

Diffuse and Bragg intensity together, averaged over directions, must be what the atoms of the cell scatter. The sum
rule of Krogh-Moe and Norman compares integrals of q² times both, a second estimate their values at high angles, where
interference has died away; with a model, its structure factors give a third, which depends on nothing but the Bragg
reflections. How much they disagree is part of the uncertainty.

Source: Krogh-Moe 1956, Acta Cryst. 9, 951; Norman 1957, Acta Cryst. 10, 370; Meisburger, Case & Ando 2020, Nat. Commun.
11, 1271
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.voxels import rows_of
from dials_diffuse.scaling.totals import Bragg, Shells, UniqueBragg, mean_intensities, merge_bragg
from dials_diffuse.structure.expectation import Expectation, make_expectation

logger = logging.getLogger("dials.diffuse.scaling")

METHODS = ("auto", "krogh_moe", "envelope", "model", "none")

#: the sum rule is evaluated up to these fractions of q_max: how much k changes is an uncertainty
_Q_MAX = np.linspace(0.75, 1.0, 6)

#: the envelope is fitted beyond this share of s_max
_ENVELOPE_FROM = 0.6

#: standard deviations of prior knowledge in the fit of the envelope: how much of the computed interference is there,
#: 1 in rigid molecules; and what scatters besides the crystal, relative to it, with background images and without
_INTERFERENCE = 0.5
_BACKGROUND = (0.02, 0.5)

#: relative uncertainty of scales that take all that scatters for the crystal's when no background was subtracted
_NOT_SUBTRACTED = 0.3

#: a model whose amplitudes correlate less than this with those measured is not trusted with the scale
_LEAST_CC = 0.85

#: 1/Å: reflections beyond are compared with the model's, because bulk solvent does not matter much there
_MODEL_FROM = 0.28


@dataclass(frozen=True)
class AbsoluteParameters:
    """How to find the absolute scale.

    Attributes
    ----------
    model : path of coordinates of what is in the cell, or None
    sequence, copies : without a model: see :func:`dials_diffuse.structure.contents.contents_of_sequence`, or None
    bulk_solvent, hydrogens : with a model: see :func:`dials_diffuse.structure.contents.contents_of_structure`
    method : one of METHODS
    required : is it an error when the scale cannot be found?

    Raises
    ------
    DiffuseError
        If the method is unknown, or is "none" though a model or a sequence is given.
    """

    model: str | None = None
    sequence: str | None = None
    copies: int | None = None
    bulk_solvent: bool = True
    hydrogens: bool | None = None
    method: str = "auto"
    required: bool = False

    def __post_init__(self):
        choice("absolute_scale.method", self.method, METHODS)
        if self.method == "none" and (self.model or self.sequence):
            raise DiffuseError("absolute_scale.method=none: leave out absolute_scale.model and absolute_scale.sequence")

    def expectation_for(self, grid: MapGrid, n_bragg: int, paths) -> Expectation | None:
        """What the cell should scatter; None where no absolute scale is wanted or, without being required, possible.

        n_bragg : reflections in all files; paths : of the files, for messages

        Raises
        ------
        DiffuseError
            If there are no Bragg reflections though the scale was asked for, or the contents do not fit the cell.
        """
        if self.method == "none":
            return None
        if n_bragg:
            try:
                return make_expectation(grid, self.model, self.sequence, self.copies, self.bulk_solvent, self.hydrogens)
            except DiffuseError as error:
                if self.required:
                    raise
                logger.warning("Warning: intensities stay on an arbitrary scale: %s", error)
                return None
        if self.required:
            raise DiffuseError(
                f"{paths[0]}: holds no Bragg reflections, which the absolute scale needs; integrate again with the "
                "integrated.refl of dials.integrate, or set absolute_scale.method=none"
            )
        logger.info("No Bragg reflections in the files: intensities stay on an arbitrary scale")
        return None


@dataclass(frozen=True)
class Estimate:
    """Scale by one method; esd from what the method knows itself, details for the record."""

    method: str
    k: float
    esd: float
    details: dict


@dataclass(frozen=True)
class AbsoluteScale:
    """The absolute scale of a data set.

    Attributes
    ----------
    k : electrons² per unit cell for each unit of the scale model
    esd : its standard uncertainty
    relative : relative uncertainties that it is the root mean square sum of: the chosen method's own, that of the
        contents of the cell, the disagreement of methods, and of a background that was not subtracted
    method : the one that k is from
    estimates : list of Estimate
    shells : Shells
    expectation : Expectation
    warnings : sentences for the user
    """

    k: float
    esd: float
    relative: dict
    method: str
    estimates: list
    shells: Shells
    expectation: Expectation
    warnings: list

    def compton(self, s) -> np.ndarray:
        """Incoherent scattering at |s|, electrons² per cell, which the output is less by."""
        return self.expectation.at("compton", s)


def absolute_scale(
    grid: MapGrid,
    profile,
    s_range: tuple,
    bragg: Bragg,
    expectation: Expectation,
    method: str = "auto",
    subtracted: bool = True,
) -> AbsoluteScale:
    """Find the scale.

    Parameters
    ----------
    grid : unit cell and space group
    profile : function of (m,) |s|, the isotropic part of the crystal's diffuse scattering
    s_range : where it is known, 1/Å
    bragg : in the same units
    expectation : what the cell should scatter
    method : one of METHODS; auto: that with the model's structure factors where there are any, else the sum rule
    subtracted : was the background without crystal measured and subtracted?

    Raises
    ------
    DiffuseError
        If there are too few reflections, or the method needs a model that is not there.
    """
    if method == "model" and expectation.f_squared is None:
        raise DiffuseError(f"absolute_scale.method=model: {expectation.no_model}")
    unique = merge_bragg(grid, bragg)
    shells = mean_intensities(grid, unique, profile, s_range)
    estimates = [krogh_moe(shells, expectation), envelope(shells, expectation, subtracted)]
    warnings = []
    if expectation.f_squared is None and expectation.no_model != Expectation.no_model:
        warnings.append(expectation.no_model)
    if expectation.f_squared is not None:
        estimates.append(against_model(unique, expectation))
        cc = estimates[-1].details["cc"]
        if cc < _LEAST_CC:
            warnings.append(
                f"the amplitudes of absolute_scale.model correlate with the measured ones by only {cc:.2f}: another "
                "setting, another crystal form, or poor Bragg intensities"
            )
            if method == "auto":
                method = "krogh_moe"
    if method == "auto":
        method = estimates[-1].method if expectation.f_squared is not None else "krogh_moe"
    chosen = next(e for e in estimates if e.method == method)
    if not (chosen.k > 0 and math.isfinite(chosen.k)):
        raise DiffuseError(
            f"absolute_scale.method={method}: the scale comes out as {chosen.k:g}; is the background larger than the "
            "signal? Choose another method, or none"
        )
    relative = {
        "own": chosen.esd / chosen.k,
        "contents": expectation.uncertainty,
        "methods": _disagreement(chosen, estimates, subtracted),
        "background": 0.0 if subtracted or method == "model" else _NOT_SUBTRACTED,
    }
    esd = chosen.k * math.sqrt(sum(x**2 for x in relative.values()))
    warnings += _warnings(shells, chosen, subtracted)
    return AbsoluteScale(chosen.k, esd, relative, method, estimates, shells, expectation, warnings)


def _disagreement(chosen: Estimate, estimates: list, subtracted: bool) -> float:
    """Relative: half the rms difference of the others from the estimate chosen, each as far as it knows itself.

    The sum rule and the envelope are both wrong in the same way where a background was not subtracted, so they say
    nothing then about a scale from a model; nor does a model that does not fit.
    """
    others = [e for e in estimates if e.method != chosen.method and e.k > 0]
    others = [e for e in others if subtracted or "model" not in (e.method, chosen.method)]
    others = [e for e in others if e.details.get("cc", 1.0) >= _LEAST_CC]
    if not others:
        return 0.0
    weights = np.array([1 / max(e.esd / e.k, 0.01) ** 2 for e in others])
    differences = np.array([math.log(e.k / chosen.k) for e in others])
    return 0.5 * math.sqrt(weights @ differences**2 / weights.sum())


def _warnings(shells: Shells, chosen: Estimate, subtracted: bool) -> list:
    warnings = []
    if not subtracted:
        text = "no background images were subtracted: the intensities still contain air and what else is no crystal"
        if chosen.method != "model":
            text += ", and the absolute scale takes it for the crystal's; give background=, or absolute_scale.model="
        warnings.append(text)
    completeness = shells.n_measured.sum() / max(shells.n_possible.sum(), 1)
    if completeness < 0.5:
        warnings.append(
            f"only {100 * completeness:.0f} % of the unique Bragg reflections were measured, the others are taken to "
            "be like them for the absolute scale"
        )
    if chosen.details.get("esd_lost", 0.0) > 0.005 * chosen.k:
        warnings.append(
            "the strongest of the inner Bragg reflections seem to be missing (overloads?) and are guessed for the "
            "absolute scale; give absolute_scale.model=, or measure them with less exposure"
        )
    if chosen.method != "model" and shells.edges[-1] < 0.5:
        warnings.append(
            f"the data end at {1 / shells.edges[-1]:.2f} Å: for an absolute scale without a model 2 Å are needed"
        )
    return warnings


def krogh_moe(shells: Shells, expectation: Expectation) -> Estimate:
    """k from ``k ∫ q² I dq = ∫ q² (Σ f² + I_C + interference) dq``, the mean over upper ends near that of the data.

    What changes with the upper end is interference that is cut off. The interference contains the hole around each
    atom, whose integral up to infinity is -2π² (Σ Z)² / V.
    """
    volume = np.diff(shells.edges**3) / 3  # ∫ s² ds
    names = ("elastic", "compton", "interference")
    elastic, compton, interference = (shells.mean(lambda s, name=name: expectation.at(name, s)) for name in names)
    expected = elastic + compton + interference
    measured, should = (np.cumsum(volume * x) for x in (shells.total, expected))
    last = np.searchsorted(shells.edges[1:], _Q_MAX * shells.edges[-1] * (1 - 1e-9))
    k_of_q = should[last] / measured[last]
    variance = np.sum(volume**2 * shells.bragg_variance) / measured[-1] ** 2
    k = float(k_of_q.mean())
    truncation = float(np.std(k_of_q / k, ddof=1))
    lost = 0.5 * float(volume @ shells.bragg_lost / measured[-1])
    details = {
        "q_max": 2 * math.pi * shells.edges[1:][last],
        "k_of_q_max": k_of_q,
        "esd_counting": k * math.sqrt(variance),
        "esd_q_max": k * truncation,
        "esd_lost": k * lost,
        "interference_share": float(volume @ interference / should[-1]),
    }
    return Estimate("krogh_moe", k, k * math.hypot(math.sqrt(variance), truncation, lost), details)


def envelope(shells: Shells, expectation: Expectation, subtracted: bool) -> Estimate:
    """k with which the data at high angles follow Σ f² + Compton, fitted together with a smooth background.

    Least squares with ``k I = Σ f² + I_C + p · interference + b(s)``, the background b a straight line that is nowhere
    negative. How much interference there is, and how large the background may be, is known beforehand within limits:
    without that, k would be undetermined, since Σ f² is nearly a straight line there. Where no background was
    subtracted k is therefore no better known than the background.
    """
    s = shells.s
    use = s > _ENVELOPE_FROM * shells.edges[-1]
    s = s[use]
    gas = expectation.at("elastic", s) + expectation.at("compton", s)
    level = float(gas.mean())
    rising = (s - s[0]) / max(np.ptp(s), 1e-12)
    columns = [shells.total[use], -expectation.at("interference", s), -level * (1 - rising), -level * rising]
    # k near 1, so that the matrix is well conditioned
    unit = level / float(columns[0].mean())
    columns[0] = columns[0] * unit
    rows, target = np.stack(columns, axis=1) / gas[:, None], np.ones(len(gas))
    prior = np.diag([0.0, 1 / _INTERFERENCE, *(2 * [1 / _BACKGROUND[0 if subtracted else 1]])])[1:]
    noise = 0.02
    for _ in range(5):  # the scatter about the curve is what is not known of it
        matrix = np.concatenate([rows / noise, prior])
        values = np.concatenate([target / noise, prior @ [0, 1, 0, 0]])
        solution = lsq_linear(matrix, values, bounds=([0, 0, 0, 0], np.inf)).x
        noise = max(float(np.sqrt(np.mean((rows @ solution - target) ** 2))), 1e-4)
    # neighbouring shells err together: one independent value for each three
    esd = math.sqrt(3 * np.linalg.inv(matrix.T @ matrix)[0, 0])
    details = {
        "s_min": float(s[0]),
        "interference": float(solution[1]),
        "background": [float(x) * level for x in solution[2:]],
        "residual": noise,
    }
    return Estimate("envelope", float(solution[0] * unit), esd * unit, details)


def against_model(unique: UniqueBragg, expectation: Expectation) -> Estimate:
    """k from the squared structure factors of a model, and the difference of its overall B factor from the crystal's.

    ``ln(Σ |F|² / Σ I)`` in shells beyond the influence of bulk solvent is a line in s², which ends in ln k at s = 0.
    """
    row = rows_of(unique.hkl, np.asarray(expectation.hkl))
    use = (row >= 0) & unique.measured & (unique.s > _MODEL_FROM)
    if np.count_nonzero(use) < 200:
        use = (row >= 0) & unique.measured
    if np.count_nonzero(use) < 50:
        raise DiffuseError(
            f"absolute_scale.model: only {np.count_nonzero(use)} of its reflections were measured; check that the "
            "model is in the setting of the data"
        )
    calculated, s = expectation.f_squared[row][use], unique.s[use]
    intensity, orbit = unique.intensity[use], unique.orbit[use]
    n = int(np.clip(len(s) / 100, 3, 20))
    shell = np.argsort(np.argsort(s)) * n // len(s)
    sums = [np.bincount(shell, orbit * x, n) for x in (calculated, intensity, calculated * s**2)]
    good = sums[1] > 0
    if np.count_nonzero(good) < 3:
        raise DiffuseError(
            "the Bragg reflections hold no signal to compare absolute_scale.model with; give another method"
        )
    ratio, s2 = np.log(sums[0][good] / sums[1][good]), (sums[2] / sums[0])[good]
    # of how many reflections a shell's ratio is: their scatter about it
    error = np.bincount(shell, (orbit * (calculated - intensity * (sums[0] / sums[1])[shell])) ** 2, n)[good]
    error = np.sqrt(error) / sums[0][good]
    weight = 1 / np.maximum(error, 1e-6)
    design = np.stack([np.ones(len(s2)), s2], axis=1) * weight[:, None]
    covariance = np.linalg.inv(design.T @ design)
    solution = covariance @ (design.T @ (ratio * weight))
    residual = design @ solution - ratio * weight
    covariance *= max(float(residual @ residual) / max(len(s2) - 2, 1), 1.0)
    k = math.exp(solution[0])
    correlation = np.corrcoef(np.sqrt(calculated), np.sqrt(np.maximum(intensity, 0)))[0, 1]
    details = {
        "delta_b": 2 * float(solution[1]),
        "delta_b_esd": 2 * math.sqrt(covariance[1, 1]),
        "n": len(s),
        "cc": float(correlation),
        "s_min": float(s.min()),
    }
    return Estimate("model", k, k * math.sqrt(covariance[0, 0]), details)
