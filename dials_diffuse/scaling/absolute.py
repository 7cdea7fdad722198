"""Absolute scale: electrons² per unit cell, from all that the cell scatters.

Diffuse and Bragg intensity together, averaged over directions, must be what the atoms of the cell scatter. The sum
rule of Krogh-Moe and Norman compares integrals of q² times both, a second estimate their values at high angles, where
interference has died away. Both take air and liquid around the crystal for the crystal's, so a third separates them by
the shapes of their curves; with a model, its structure factors give a fourth, which depends on nothing but the Bragg
reflections. How much they disagree is part of the uncertainty.

Source: Krogh-Moe 1956, Acta Cryst. 9, 951; Norman 1957, Acta Cryst. 10, 370; Meisburger, Case & Ando 2020, Nat. Commun.
11, 1271
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.scaling.estimates import Estimate, against_model, envelope, krogh_moe
from dials_diffuse.scaling.separation import Separation, separate
from dials_diffuse.scaling.totals import Bragg, Shells, mean_intensities, merge_bragg, only_noise
from dials_diffuse.structure.expectation import Expectation, make_expectation

logger = logging.getLogger("dials.diffuse.scaling")

METHODS = ("auto", "separation", "krogh_moe", "envelope", "model", "none")

#: what images without crystal show
BACKGROUNDS = ("air", "surroundings")

#: relative uncertainty of scales that take all that scatters for the crystal's when no background was subtracted
_NOT_SUBTRACTED = 0.3

#: a model whose amplitudes correlate less than this with those measured is not trusted with the scale
_LEAST_CC = 0.85

#: methods that take all that scatters for the crystal's
_TAKE_ALL = ("krogh_moe", "envelope")

#: share of all that scatters, beyond which it is odd that it is not the crystal's
_MOST_AROUND = 0.5

#: relative uncertainty of these where nothing says how much of it is not the crystal's
_UNCONFIRMED = 0.5


@dataclass(frozen=True)
class AbsoluteParameters:
    """How to find the absolute scale.

    Attributes
    ----------
    model : path of coordinates of what is in the cell, or None
    selection : of its atoms, in the words of cctbx; None: all
    sequence, copies : without a model: see :func:`dials_diffuse.structure.composition.contents_of_sequence`, or None
    bulk_solvent, hydrogens : with a model: see :func:`dials_diffuse.structure.contents.contents_of_structure`
    method : one of METHODS
    required : is it an error when the scale cannot be found?
    background : one of BACKGROUNDS, what images without crystal show

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
    selection: str | None = None
    background: str = "air"

    def __post_init__(self):
        choice("absolute_scale.method", self.method, METHODS)
        choice("absolute_scale.background", self.background, BACKGROUNDS)
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
                return make_expectation(
                    grid, self.model, self.sequence, self.copies, self.bulk_solvent, self.hydrogens, self.selection
                )
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
    parts : Separation, None where the curves are not those of a crystal
    left_out : method -> why it says nothing about the uncertainty of k
    """

    k: float
    esd: float
    relative: dict
    method: str
    estimates: list
    shells: Shells
    expectation: Expectation
    warnings: list
    parts: Separation | None = None
    left_out: dict = field(default_factory=dict)

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
    surroundings: bool = False,
) -> AbsoluteScale:
    """Find the scale.

    Parameters
    ----------
    grid : unit cell and space group
    profile : function of (m,) |s|, the isotropic part of the crystal's diffuse scattering
    s_range : where it is known, 1/Å
    bragg : in the same units
    expectation : what the cell should scatter
    method : one of METHODS; auto: that with the model's structure factors where there are any, else separation
    subtracted : was the background without crystal measured and subtracted?
    surroundings : did its images show the liquid and the loop around the crystal, too?

    Raises
    ------
    DiffuseError
        If there are too few reflections, the method needs a model that is not there, or the data are not those of a
        crystal with these contents; with the method auto, if the reflections are no more than noise.
    """
    if method == "model" and expectation.f_squared is None:
        raise DiffuseError(f"absolute_scale.method=model: {expectation.no_model}")
    unique = merge_bragg(grid, bragg)
    shells = mean_intensities(grid, unique, profile, s_range)
    estimates = [krogh_moe(shells, expectation), envelope(shells, expectation, subtracted)]
    parts, left_out, warnings = None, {}, []
    noise = only_noise(unique)
    if noise and method == "auto":
        raise DiffuseError(noise)
    if noise:
        warnings.append(noise)
    try:
        parts = separate(shells, expectation, subtracted, surroundings)
        estimates.append(Estimate("separation", parts.k, parts.esd, parts.details))
    except DiffuseError as error:
        if method == "separation":
            raise
        left_out["separation"] = str(error)
    if expectation.f_squared is None and expectation.no_model != Expectation.no_model:
        warnings.append(expectation.no_model)
    trusted = expectation.f_squared is not None
    if trusted:
        estimates.append(against_model(unique, expectation))
        cc = estimates[-1].details["cc"]
        trusted = cc >= _LEAST_CC
        if not trusted:
            left_out["model"] = f"its amplitudes correlate with the measured ones by only {cc:.2f}"
            warnings.append(
                f"the amplitudes of absolute_scale.model correlate with the measured ones by only {cc:.2f}: another "
                "setting, another crystal form, or poor Bragg intensities"
            )
    if method == "auto":
        method = "model" if trusted else "separation"
    chosen = next((e for e in estimates if e.method == method), None)
    if chosen is None:
        raise DiffuseError(left_out[method])
    if not (chosen.k > 0 and math.isfinite(chosen.k)):
        raise DiffuseError(
            f"absolute_scale.method={method}: the scale comes out as {chosen.k:g}; is the background larger than the "
            "signal? Choose another method, or none"
        )
    relative = {
        "own": chosen.esd / chosen.k,
        "contents": expectation.uncertainty,
        "methods": _disagreement(chosen, estimates, subtracted, parts, left_out),
        "background": 0.0 if subtracted or method not in _TAKE_ALL else _NOT_SUBTRACTED,
    }
    esd = chosen.k * math.sqrt(sum(x**2 for x in relative.values()))
    warnings += _warnings(shells, chosen, subtracted, parts)
    return AbsoluteScale(chosen.k, esd, relative, method, estimates, shells, expectation, warnings, parts, left_out)


def _disagreement(chosen: Estimate, estimates: list, subtracted: bool, parts: Separation | None, left_out: dict):
    """Relative: what the differences of the other estimates from the one chosen add to its uncertainty.

    Sum rule and envelope are wrong where a background was not subtracted, so they say nothing then about a scale from a
    model; a separated scale is compared with them less what it says is not the crystal's. Separation and model know
    their errors: of its difference from each other one, what exceeds two standard deviations counts. Of the others the
    rms difference counts half, each weighted as well as it knows itself.

    left_out : method -> why it is not compared, which is added here
    """
    others = [e for e in estimates if e.method != chosen.method and e.method not in left_out]
    logs, weights, excess = [], [], 0.0
    for e in others:
        if not (e.k > 0 and math.isfinite(e.k)):
            left_out[e.method] = "it comes out negative"
            continue
        difference = math.log(e.k / chosen.k)
        if e.method in _TAKE_ALL and chosen.method == "separation":
            difference -= math.log(1 - parts.share_around)
        if chosen.method == "separation" or {e.method, chosen.method} == {"separation", "model"}:
            own = math.hypot(e.esd / e.k, chosen.esd / chosen.k)
            excess = max(excess, abs(difference) - 2 * own)
            continue
        if "model" in (e.method, chosen.method) and not subtracted:
            left_out[e.method] = "no background was subtracted, and it takes all for the crystal's"
            continue
        logs.append(difference)
        weights.append(1 / max(e.esd / e.k, 0.01) ** 2)
    half = 0.5 * math.sqrt(np.dot(weights, np.square(logs)) / sum(weights)) if logs else 0.0
    if parts is None and chosen.method in _TAKE_ALL:
        half = max(half, _UNCONFIRMED)
    return math.hypot(half, excess)


def _warnings(shells: Shells, chosen: Estimate, subtracted: bool, parts: Separation | None) -> list:
    warnings = []
    if parts is not None and parts.conflict:
        warnings.append(parts.conflict)
    if parts is not None and parts.share_around > _MOST_AROUND and chosen.method != "model":
        warnings.append(
            f"{100 * parts.share_around:.0f} % of all that scatters seem to be air and liquid, not the crystal: was "
            "the drop so thick, or were many reflections measured only in part?"
        )
    if not subtracted:
        text = "no background images were subtracted: the intensities still contain air and what else is no crystal"
        if chosen.method in _TAKE_ALL:
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
    if chosen.method in _TAKE_ALL and shells.edges[-1] < 0.5:
        warnings.append(
            f"the data end at {1 / shells.edges[-1]:.2f} Å: absolute_scale.method={chosen.method} needs them to 2 Å"
        )
    return warnings
