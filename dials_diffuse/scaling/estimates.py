"""Estimates of the absolute scale that know of no background: sum rule, envelope, and a model's structure factors.

Source: Krogh-Moe 1956, Acta Cryst. 9, 951; Norman 1957, Acta Cryst. 10, 370
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.voxels import rows_of
from dials_diffuse.scaling.totals import Shells, UniqueBragg
from dials_diffuse.structure.expectation import Expectation

#: the sum rule is evaluated up to these fractions of q_max: how much k changes is an uncertainty
_Q_MAX = np.linspace(0.75, 1.0, 6)

#: the envelope is fitted beyond this share of s_max
_ENVELOPE_FROM = 0.6

#: standard deviations of prior knowledge in the fit of the envelope: how much of the computed interference is there,
#: 1 in rigid molecules; and what scatters besides the crystal, relative to it, with background images and without
_INTERFERENCE = 0.5
_BACKGROUND = (0.02, 0.5)

#: 1/Å: reflections beyond are compared with the model's, because bulk solvent does not matter much there
_MODEL_FROM = 0.28


@dataclass(frozen=True)
class Estimate:
    """Scale by one method; esd from what the method knows itself, details for the record."""

    method: str
    k: float
    esd: float
    details: dict


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
