"""Every difference between DIALS 3.12 and the newest DIALS, in one place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def dials_version() -> str:
    """Version line of the DIALS in use, for example ``DIALS 3.12``."""
    from dials.util.version import dials_version as version

    return version()


def available_cores() -> int:
    """Cores this process may use: affinity, cgroup quota and batch-system limits all count.

    ``dials.util.mp.available_cores`` became ``dials.util.system.CPU_COUNT`` in later versions and neither reads all of
    these, so they are read here.
    """
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for variable in ("NSLOTS", "SLURM_CPUS_PER_TASK"):
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            counts.append(int(value))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            counts.append(max(1, int(limit) // int(period)))
    return min(counts)


def is_xray(beam) -> bool:
    """Is this an X-ray beam? DIALS 3.12 knows no other; later versions name the probe."""
    return not hasattr(beam, "get_probe") or str(beam.get_probe()).endswith("xray")


def trusted_bounds(panel) -> tuple[float, float]:
    """Lowest and highest raw value that dxtbx trusts, both inclusive.

    DIALS 3.12 excludes both limits, later versions include them: a tiny panel with the same limits is asked.
    """
    from dxtbx.model import Panel
    from scitbx.array_family import flex

    low, high = panel.get_trusted_range()
    probe = Panel()
    probe.set_image_size((2, 1))
    probe.set_trusted_range((low, high))
    values = flex.double([low, high])
    values.reshape(flex.grid(1, 2))
    low_trusted, high_trusted = probe.get_trusted_range_mask(values)
    return (
        float(low if low_trusted else np.nextafter(low, np.inf)),
        float(high if high_trusted else np.nextafter(high, -np.inf)),
    )


def photon_counter_range(count_cutoff: int) -> tuple:
    """Trusted range of a detector that trusts 0 to ``count_cutoff``, as dxtbx sets it for a mini-CBF header.

    The lower limit is -1 in DIALS 3.12, which excludes it (and the cutoff), and 0 in later versions.
    """
    from dxtbx.model import Panel

    probe = Panel()
    probe.set_trusted_range((0, count_cutoff))
    return (0 if trusted_bounds(probe)[0] == 0 else -1, count_cutoff)


def scan_times(scan) -> tuple:
    """Exposure times and epochs of the images, seconds; zeros where the scan has none, as only later versions allow."""
    times = []
    for name, get in (("exposure_time", scan.get_exposure_times), ("epochs", scan.get_epochs)):
        known = not hasattr(scan, "has_property") or scan.has_property(name)
        times.append(list(get()) if known else [0.0] * scan.get_num_images())
    return tuple(times)
