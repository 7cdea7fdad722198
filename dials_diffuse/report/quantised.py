"""Numbers of voxels in few bits, for the slice browser: coarse where they are large, fine where they are small."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np

#: codes below this one are no values: no voxel of the asymmetric unit, and a voxel that was not measured
ABSENT, UNMEASURED, FIRST = 0, 1, 2


@dataclass(frozen=True)
class Scale:
    """How codes stand for values: ``width * sinh(step * (code - zero))``, and the other way round.

    Attributes
    ----------
    width : up to about this value codes are evenly spaced, beyond it their spacing grows with the value
    step : of the codes, as a part of the width
    zero : code of the value 0
    bits : 8 or 16, of a code
    """

    width: float
    step: float
    zero: int
    bits: int

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Codes of values, uint8 or uint16 as the bits say; NaN is UNMEASURED."""
        known = np.isfinite(values)
        steps = np.rint(np.arcsinh(np.where(known, values, 0) / self.width) / self.step) + self.zero
        steps = np.clip(steps, FIRST, 2**self.bits - 1)
        return np.where(known, steps, UNMEASURED).astype(np.uint8 if self.bits == 8 else np.uint16)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Values of codes, float64; NaN for those that are none."""
        values = self.width * np.sinh(self.step * (codes.astype(float) - self.zero))
        return np.where(codes >= FIRST, values, np.nan)


@dataclass(frozen=True)
class Spread:
    """What scales depend on, of finite values.

    Attributes
    ----------
    signed : is one of them negative?
    largest, rms : of their absolute values
    whole : are they whole numbers?
    """

    signed: bool
    largest: float
    rms: float
    whole: bool

    def scale(self, levels: int) -> Scale:
        """A scale whose codes of each sign that occurs are at most ``levels``, at least 1.

        Whole numbers that have few enough values keep them.
        """
        bits = 8 if 2 * levels + FIRST < 256 else 16
        zero = FIRST + levels if self.signed else FIRST
        if self.largest == 0:
            return Scale(1.0, 1.0, zero, bits)
        if self.whole and self.largest <= levels:
            return Scale(1e8, 1e-8, zero, bits)  # sinh of so little is the number itself
        return Scale(self.rms, float(np.arcsinh(self.largest / self.rms)) / levels, zero, bits)


def spread_of(values: np.ndarray) -> Spread:
    """values : (n,), NaN where there is none."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Spread(False, 0.0, 0.0, False)
    low, high = float(known.min()), float(known.max())
    whole = bool(np.all(known == np.rint(known)))
    return Spread(low < 0, max(-low, high), float(np.sqrt(known @ known / known.size)), whole)


def entropy(codes: np.ndarray) -> float:
    """Bytes that codes take when they are packed well, each for itself."""
    parts = (codes,) if codes.dtype == np.uint8 else (codes >> 8, codes & 255)
    total = 0.0
    for part in parts:
        number = np.bincount(part.ravel())
        number = number[number > 0]
        total += float(-(number * np.log2(number / number.sum())).sum()) / 8
    return total


def packed(codes: np.ndarray) -> str:
    """Codes as text for a page: zlib, base64. Of two bytes the upper ones come first, all of them."""
    parts = [codes] if codes.dtype == np.uint8 else [codes >> 8, codes & 255]
    raw = b"".join(np.ascontiguousarray(part, dtype=np.uint8).tobytes() for part in parts)
    # runs of one code are long, but other repetitions are chance
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return base64.b64encode(packer.compress(raw) + packer.flush()).decode("ascii")
