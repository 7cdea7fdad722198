"""What peaks on the images tell of the models."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, DOUBTFUL, WRONG, UNKNOWN = "good", "doubtful", "wrong", "unknown"


@dataclass(frozen=True)
class PeakCheck:
    """Peaks of some images against the spots that are predicted on them.

    Attributes
    ----------
    n_images, n_peaks : that were looked at; without peaks that spots of other crystals on the same images explain
    share, esd : of the peaks that are where spots are predicted, chance taken off
    chance : share of places beside the peaks where spots are predicted
    offset : pixels, rms distance from the predicted place that peaks have in common (a linear function of the place)
    shift : (2,) pixels along the fast and slow axes, of the pattern; scale : of it, relative; turn : about the beam,
        degrees
    spot_sigma : width sigma_b of the spots, pixels
    verdict : one of GOOD, DOUBTFUL, WRONG, UNKNOWN
    words : a sentence on what is wrong; empty if nothing is
    """

    n_images: int
    n_peaks: int
    share: float
    esd: float
    chance: float
    offset: float
    shift: tuple
    scale: float
    turn: float
    spot_sigma: float
    verdict: str
    words: str
