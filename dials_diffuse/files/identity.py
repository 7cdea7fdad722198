"""The same crystal on the same images counts once, however its experiments and images are named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.observations import ObservationFile

#: relative distance of reciprocal-lattice vectors up to which two lattices are the same: 1 degree, or 2 % in the cell
SAME_LATTICE = 0.02


@dataclass(frozen=True)
class Exposed:
    """A crystal and its images.

    Attributes
    ----------
    name : for messages
    orientation : 9 numbers, A = U B row by row, in the frame of the goniometer head; None where it is not known
    images : whatever identifies images, such as files and checksums
    """

    name: str
    orientation: tuple | None
    images: frozenset


def refuse_twice(crystals: Iterable[Exposed]) -> None:
    """Raise DiffuseError if two of them are the same crystal on the same images.

    Different crystals may lie on the same images, as they do where a crystal is split; a lattice in another setting,
    or primitive instead of centred, is the same crystal.
    """
    seen: dict = {}
    for crystal in crystals:
        others = dict.fromkeys(other for image in crystal.images for other in seen.get(image, ()))
        for other in others:
            if same_lattice(crystal.orientation, other.orientation):
                raise DiffuseError(
                    f"{crystal.name}: the same crystal on the same images as {other.name}, it would count twice; give "
                    f"one of them, or integrate one without these images (exclude_images)"
                )
        for image in crystal.images:
            seen.setdefault(image, []).append(crystal)


def check_images(files: Sequence[ObservationFile]) -> None:
    """Raise DiffuseError if some observation files hold the same crystal on the same images; older files do not say."""
    refuse_twice(
        Exposed(f"{file.path} (experiment {i})", experiment.orientation, frozenset(experiment.images))
        for file in files
        for i, experiment in enumerate(file.experiments)
    )


def same_lattice(a: tuple | None, b: tuple | None) -> bool:
    """Are the points of one reciprocal lattice among those of the other? True where one is not known.

    a, b : 9 numbers each, the reciprocal basis vectors are the columns
    """
    if a is None or b is None:
        return True
    first, second = (np.array(x, dtype=float).reshape(3, 3) for x in (a, b))
    return _contains(first, second) or _contains(second, first)


def _contains(lattice: np.ndarray, vectors: np.ndarray) -> bool:
    indices = np.rint(np.linalg.solve(lattice, vectors))
    distance = np.linalg.norm(lattice @ indices - vectors, axis=0)
    return bool(np.all(distance < SAME_LATTICE * np.linalg.norm(vectors, axis=0)))
