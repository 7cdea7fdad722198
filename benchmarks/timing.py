"""Alternating repeats of several functions on one core, compared by their medians."""

from __future__ import annotations

import statistics
import time


def alternate(functions: dict, repeats: int = 5, warm: bool = True) -> dict:
    """Median CPU seconds of each function; they run in turn, so that a change of the machine's speed hits all alike.

    warm : run each once before, to compile and to warm the caches
    """
    times = {name: [] for name in functions}
    for function in functions.values() if warm else ():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}
