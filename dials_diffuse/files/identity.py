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
    """Raise DiffuseError if some observation files hold the same crystal on the same images.

    Files of older versions do not have the checksums of their images, nor do images that hold hardly a count: there it
    is the observations themselves that tell.
    """
    unknown = sum(not experiment.images for file in files for experiment in file.experiments)
    refuse_twice(
        Exposed(f"{file.path} (experiment {i})", experiment.orientation, frozenset(experiment.images or contents[i]))
        for file in files
        for contents in [_contents(file) if unknown > 1 else [()] * len(file.experiments)]
        for i, experiment in enumerate(file.experiments)
    )


def _contents(file: ObservationFile) -> list:
    """For each experiment a set of one number that its counts make, whatever the order of the rows; empty without rows.

    Only experiments whose images are not known are looked at.
    """
    asked = np.array([not experiment.images for experiment in file.experiments])
    totals, n_rows = np.zeros(len(asked), dtype=np.uint64), np.zeros(len(asked), dtype=np.int64)
    for _, block in file.chunks("index", "experiment", "entering", "counts", "norm"):
        use = asked[block["experiment"]]
        number = block["experiment"][use]
        n_rows += np.bincount(number, minlength=len(asked))
        columns = [*block["index"].T, block["entering"], block["counts"].view(np.uint64), block["norm"].view(np.uint64)]
        np.add.at(totals, number, _mixed([column[use].astype(np.uint64) for column in columns]))
    return [{("observations", int(total))} if n else () for total, n in zip(totals, n_rows)]


def _mixed(columns: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) uint64, a number for each row that has nothing to do with that of a row that differs a little."""
    result = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        result = (result ^ column) * np.uint64(0x9E3779B97F4A7C15)  # arrays of integers wrap around
        result ^= result >> np.uint64(29)
    return result


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
