"""What an image is, whatever its file is called: checksums of a few whole images of a sweep."""

from __future__ import annotations

import hashlib

import numpy as np

from dials_diffuse.experiment.images import identities, read_raw

#: images of a sweep at least that are looked at, besides the first and the last one
MIN_CHOSEN = 3

#: pixels that must differ from the most frequent value: images that saw nothing are all the same
MIN_PIXELS = 100


def image_files(imageset, positions) -> frozenset:
    """File, and number in a file of many, of the images at some positions of the imageset."""
    known = identities(imageset)
    return frozenset(known[p] for p in positions) if known else frozenset()


def image_checksums(imageset, scan, positions: np.ndarray) -> tuple:
    """Checksums of the raw values of some whole images; two sweeps with one in common are the same images.

    The images are chosen by their rotation angles, not by their places in the sweep, so that of two sweeps that overlap
    by half the same ones are chosen. Images that hold hardly a count are left out.

    Parameters
    ----------
    scan : dxtbx Scan
    positions : (n,) int, the images that are used, counted from the start of the scan
    """
    checksums = [_checksum(read_raw(imageset, int(p))) for p in chosen_positions(scan.get_oscillation(), positions)]
    return tuple(c for c in checksums if c)


def chosen_positions(oscillation: tuple, positions: np.ndarray) -> np.ndarray:
    """First and last position, and those whose angle is a multiple of 2^k images, with the highest k for MIN_CHOSEN.

    oscillation : start and width in degrees
    """
    start, width = oscillation
    steps = np.rint(start / width).astype(int) + positions
    k = 0
    while np.count_nonzero(steps % 2 ** (k + 1) == 0) >= MIN_CHOSEN:
        k += 1
    return np.unique(np.concatenate([positions[[0, -1]], positions[steps % 2**k == 0]]))


def _checksum(panels: list) -> str:
    """Checksum of the values of all panels; empty where hardly any pixel tells the image from another."""
    if sum(_telling_pixels(panel) for panel in panels) < MIN_PIXELS:
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for panel in panels:
        digest.update(str(panel.shape).encode())
        digest.update(panel)
    return digest.hexdigest()


def _telling_pixels(values: np.ndarray) -> float:
    """About how many pixels differ from the median; a sample is counted."""
    step = max(1, values.size // 100_000)
    sample = values.ravel()[::step]
    return step * float(np.count_nonzero(sample != np.median(sample)))
