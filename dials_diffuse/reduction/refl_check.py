"""Do the reflections belong to the models? Their predicted positions against what the models predict now.

An .expt that was refined or reindexed after its .refl was written predicts the same indices elsewhere.

Source: docs/theory.md, Do the images belong to the models?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from dials_diffuse.experiment.peaks import beam_plane
from dials_diffuse.experiment.spot_prediction import PredictedSpots

#: reflections that are compared, and the fewest that tell something
_MOST, _FEWEST = 20_000, 20

#: pixels and images by which predictions may have moved, at least; widths of spots that they may
_LEAST, _WIDTHS = 1.0, 1.0

#: part of the reflections that must be predicted with their own indices
_SAME = 0.5

#: part of them that is predicted with any indices, where these are those of another setting: their own are far away
_REINDEXED, _FAR = 0.8, 5.0

#: puts reflections of other indices and panels out of reach
_APART = 1e6


@dataclass(frozen=True)
class ReflectionCheck:
    """Predictions of a reflection table against those of the models.

    Attributes
    ----------
    n : reflections that were compared
    same : share of them whose indices are predicted on their panel, within the distance below
    anywhere : share for which any spot is predicted so near
    distance, images : medians of the distance of those whose indices are predicted; pixels and images
    limit : of the distance, pixels
    words : a sentence on what is wrong; empty if nothing is
    """

    n: int
    same: float
    anywhere: float
    distance: float
    images: float
    limit: float
    words: str


def check_reflections(spots: PredictedSpots, reflections, experiment, d_min: float) -> ReflectionCheck | None:
    """Compare the predicted positions in a table with predictions of the same indices.

    Parameters
    ----------
    spots : of the models
    reflections : dials reflection table of the experiment, or None
    experiment : dxtbx Experiment, for its scan, cell and detector
    d_min : Å, no further

    Returns
    -------
    ReflectionCheck; None where the table has no predictions, or too few
    """
    if reflections is None or any(name not in reflections for name in ("miller_index", "xyzcal.px", "panel")):
        return None
    hkl = np.rint(np.array(reflections["miller_index"].as_vec3_double()).reshape(-1, 3))
    place = np.array(reflections["xyzcal.px"]).reshape(-1, 3)
    first, last = experiment.scan.get_array_range()
    place[:, 2] -= first
    use = (
        np.any(hkl != 0, axis=1) & np.any(place[:, :2] != 0, axis=1) & (place[:, 2] >= 0) & (place[:, 2] < last - first)
    )
    use &= np.array(experiment.crystal.get_unit_cell().d(reflections["miller_index"])) > 1.01 * d_min
    rows = np.flatnonzero(use)
    if len(rows) < _FEWEST:
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_MOST, len(rows))).astype(int))]
    panel = np.array(reflections["panel"], dtype=float)[rows]
    pixels = beam_plane(experiment.detector, experiment.beam.get_s0()).pixels
    limit = max(_LEAST, _WIDTHS * float(np.median(spots.sigma_b)) * pixels)
    reach = max(_LEAST, _WIDTHS * float(np.median(spots.sigma_z)))
    # a spot of the same indices on the same panel: the nearest image decides between passes
    known = cKDTree(np.column_stack([_APART * spots.hkl, _APART * spots.panel, spots.centre[:, 2]]))
    away, nearest = known.query(np.column_stack([_APART * hkl[rows], _APART * panel, place[rows, 2]]))
    found = away < _APART / 2
    offset = place[rows] - spots.centre[nearest]
    distance, images = np.linalg.norm(offset[:, :2], axis=1), np.abs(offset[:, 2])
    same = float(np.mean(found & (distance <= limit) & (images <= reach)))
    # a spot of any indices
    scale = np.array([_APART, 1 / limit, 1 / limit, 1 / reach])
    tree = cKDTree(np.column_stack([spots.panel, spots.centre]) * scale)
    anywhere = float(np.mean(tree.query(np.column_stack([panel, place[rows]]) * scale, p=np.inf)[0] <= 1))
    pixels_off = float(np.median(distance[found])) if found.any() else np.nan
    images_off = float(np.median(images[found])) if found.any() else np.nan
    words = ""
    if same < _SAME and anywhere > _REINDEXED and not pixels_off < _FAR * limit:
        words = (
            f"the models predict {100 * anywhere:.0f} % of the reflections of the .refl where it has them, but "
            f"{100 * same:.0f} % with their indices: was one of the files reindexed?"
        )
    elif same < _SAME:
        words = (
            f"the models predict the reflections of the .refl {pixels_off:.1f} pixels and {images_off:.1f} images "
            f"(medians) from where it has them: were the models refined or changed since, or are they others?"
        )
    return ReflectionCheck(len(rows), same, anywhere, pixels_off, images_off, limit, words)
