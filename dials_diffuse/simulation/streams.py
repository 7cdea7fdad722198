"""Independent streams of random numbers, one for each thing that is random."""

from __future__ import annotations

import numpy as np

#: what is random; the order is part of the seed, so new ones go to the end
STREAMS = ("detector", "scales", "sampling", "orientation", "noise")


def random_stream(seed: int, what: str, sweep: int = 0, image: int = 0) -> np.random.Generator:
    """Random numbers for one of ``STREAMS``, independent of all others and of other sweeps and images."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(what), sweep, image)))
