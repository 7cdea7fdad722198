"""One word for a map, and the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dials_diffuse.merging.statistics import mates_in_words
from dials_diffuse.pipeline.significance import Significance
from dials_diffuse.reduction.mask_check import MaskCheck, masks_in_words
from dials_diffuse.reduction.outliers import outliers_in_words

#: from best to worst
WORDS = ("good", "weak", "none", "doubtful")

#: half sets of a good map agree so well, away from Bragg positions, and to this resolution or to that of the map
_GOOD_CC, _GOOD_D_MIN = 0.5, 4.0

#: shares below or above which something is said to limit a map: voxels measured, correlation of half sets, pixels in
#: Bragg masks, counts that are not the crystal's, relative e.s.d. of scale factors, pixels under peaks that are not
#: predicted
_COMPLETE, _NOISE, _MASKED, _AROUND, _SCALE, _OTHERS = 0.9, 0.5, 0.3, 0.5, 0.03, 0.01


@dataclass(frozen=True)
class Verdict:
    """What to think of a map.

    Attributes
    ----------
    word : good: anisotropic signal with good statistics; weak: signal, but little or to low resolution; none: no
        significant signal; doubtful: something contradicts the models, and the map may not be what it seems
    reasons : sentences, the first is the most important
    limits : what limits the map, in a word or two each
    """

    word: str
    reasons: tuple
    limits: tuple


def judge(signal: Significance, integration: Mapping, scaling: Mapping, merged: Mapping) -> Verdict:
    """Judge a map by its half sets and by the records of the steps that made it.

    Parameters
    ----------
    integration, scaling, merged : records of the steps, see docs/files.md
    """
    overall = merged["statistics"]["overall"]
    doubts = [
        *_peaks(integration),
        *_symmetry(merged["symmetry"]),
        *_pixels(integration),
        *mates_in_words(overall),
        *_sweeps(scaling),
        *_images(scaling["images"]),
    ]
    if signal.z < -5:
        doubts.append(f"half sets contradict each other: correlation {signal.cc_half:.2f}")
    limits = _limits(signal, integration, scaling, merged)
    said = _signal_in_words(signal)
    if doubts:
        return Verdict("doubtful", (*doubts, said), limits)
    if not signal.significant:
        return Verdict("none", (said,), limits)
    far = signal.d_min <= max(_GOOD_D_MIN, 1.02 * merged["d_min"])
    good = signal.cc_half >= _GOOD_CC and far
    return Verdict("good" if good else "weak", (said,), limits)


def _signal_in_words(signal: Significance) -> str:
    if not math.isfinite(signal.cc_half):
        return f"only {signal.n} voxels are in both half sets: nothing can be said about the signal"
    found = f"half sets of {signal.n} voxels away from Bragg positions correlate by {signal.cc_half:.3f}"
    chance = f"by chance {signal.control:.3f} ± {signal.control_esd:.3f}"
    if not signal.significant:
        return f"no anisotropic signal: {found}, {chance}"
    return f"anisotropic signal to {signal.d_min:.2f} Å: {found}, {chance}"


def _peaks(integration: Mapping) -> list:
    """What peaks on the images, counts in the masks and the reflections tell of the models."""
    doubts = []
    for e in integration["experiments"]:
        checks = [e[name] for name in ("peaks", "predictions") if e[name]]
        doubts += [f"experiment {e['experiment']}: {check['words']}" for check in checks if check["words"]]
        masks = e["masks"]
        if masks and masks["difference"] is not None:
            doubts += masks_in_words(e["experiment"], MaskCheck(**masks))
    return doubts


def _pixels(integration: Mapping) -> list:
    return [
        text for e in integration["experiments"] for text in outliers_in_words(e["experiment"], e["outlier"], e["used"])
    ]


def _symmetry(symmetry: Mapping | None) -> list:
    if not symmetry or not symmetry["too_high"]:
        return []
    failing = [o["operator"] for o in symmetry["operators"] if o["declared"] and o["verdict"] == "fails"]
    likely = symmetry["recommended"]
    return [
        f"the space group is too high: {', '.join(failing)} {'does' if len(failing) == 1 else 'do'} not hold"
        + (f"; the likeliest Laue group is {likely['laue_group']}" if likely else "")
    ]


def _sweeps(scaling: Mapping) -> list:
    return [
        f"crystal {item['crystal']} agrees better with the others when it is reindexed by {item['operator']}"
        for item in scaling["indexed_otherwise"]
        if not item["applied"]
    ]


def _images(images: Mapping) -> list:
    if not images["too_many"]:
        return []
    n = sum(item["last"] - item["first"] + 1 for item in images["bad"])
    return [
        f"{n} images do not agree with the others, too many to leave them out; the first: {images['bad'][0]['words']}"
    ]


def _limits(signal: Significance, integration: Mapping, scaling: Mapping, merged: Mapping) -> tuple:
    limits = []
    if not signal.cc_half >= _NOISE:
        limits.append("counts")
        if _share_around(scaling["absolute_scale"]) > _AROUND:
            limits.append("background (most counts are not the crystal's)")
    if (merged["statistics"]["overall"]["completeness"] or 0) < _COMPLETE:
        limits.append("completeness")
    masked = [e["bragg"] / max(e["bragg"] + e["used"], 1) for e in integration["experiments"]]
    if masked and max(masked) > _MASKED:
        limits.append("Bragg peaks")
    if any(ring["excess"] is not None for e in integration["experiments"] for ring in e["ice_rings"]):
        limits.append("ice")
    if any((e["unpredicted_peaks"] or {"pixels": 0})["pixels"] > _OTHERS for e in integration["experiments"]):
        limits.append("other crystals")
    if merged["symmetry"] and merged["symmetry"]["too_high"]:
        limits.append("wrong symmetry")
    if (scaling["scale_error"]["rms"] or 0) > _SCALE:
        limits.append("scale factors (few symmetry mates for drift and absorption)")
    smooth = signal.cc_smooth
    if math.isfinite(smooth) and math.isfinite(signal.cc_half) and smooth - max(signal.cc_half, 0) > 0.3:
        limits.append("errors that are smooth in direction (absorption, background)")
    return tuple(limits)


def _share_around(absolute: Mapping | None) -> float:
    """What liquid and air scatter, of all; 0 where it is not known."""
    estimates = absolute["estimates"] if absolute else []
    return max((e["details"]["share_around"] for e in estimates if e["method"] == "separation"), default=0.0)
