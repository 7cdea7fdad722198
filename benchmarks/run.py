"""Speed as ratios within one run: ``make bench``, or ``python benchmarks/run.py [integrate] [merge] [models] ...``.

Absolute numbers depend on the machine and its load, so every figure stands beside a reference measured in the same
minutes, alternating with it.
"""

from __future__ import annotations

import sys

import bench_absolute
import bench_closed_loop
import bench_cluster
import bench_delta_pdf
import bench_few_mates
import bench_fit
import bench_integrate
import bench_merge
import bench_models
import bench_process
import bench_scale

BENCHMARKS = {
    "integrate": bench_integrate.main,
    "merge": bench_merge.main,
    "models": bench_models.main,
    "fit": bench_fit.main,
    "scale": bench_scale.main,
    "few_mates": bench_few_mates.main,
    "closed_loop": bench_closed_loop.main,
    "cluster": bench_cluster.main,
    "process": bench_process.main,
    "absolute": bench_absolute.main,
    "delta_pdf": bench_delta_pdf.main,
}

if __name__ == "__main__":
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"no benchmark {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        print(f"\n== {name}")
        BENCHMARKS[name]()
