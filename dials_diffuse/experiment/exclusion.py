"""Which images of an experiment are used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dials_diffuse.errors import DiffuseError


def check_excluded(experiments, excluded: Sequence[tuple]) -> None:
    """Raise DiffuseError where an excluded range names no image at all: it must be a mistake."""
    ranges = [e.scan.get_image_range() for e in experiments]
    for which, a, b in excluded:
        name = f"exclude_images={a}:{b}" if which is None else f"exclude_images={which}:{a}:{b}"
        if which is not None and which >= len(experiments):
            raise DiffuseError(f"{name}: there are only {len(experiments)} experiments, counted from 0")
        mine = ranges if which is None else [ranges[which]]
        if not any(a <= last and b >= first for first, last in mine):
            known = ", ".join(f"{first}:{last}" for first, last in mine)
            raise DiffuseError(f"{name}: no such images; the scans have images {known}")


def images_to_use(experiment, number: int, excluded: Sequence[tuple]) -> np.ndarray:
    """Positions (from the start of the scan) of valid images that are not excluded.

    excluded : ``(experiment number or None for all, first, last)`` image numbers, inclusive
    """
    first, last = experiment.scan.get_image_range()
    use = np.ones(last - first + 1, dtype=bool)
    valid = experiment.scan.get_valid_image_ranges(experiment.identifier) if experiment.identifier else []
    if valid:
        use[:] = False
        for a, b in valid:
            use[max(a, first) - first : max(b - first + 1, 0)] = True
    for which, a, b in excluded:
        if which is None or which == number:
            use[max(a, first) - first : max(b - first + 1, 0)] = False
    return np.flatnonzero(use)
