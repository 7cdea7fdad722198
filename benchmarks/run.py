"""Speed as ratios within one run: ``make bench``, or ``python benchmarks/run.py [--whole] [NAME...]``.

Absolute numbers depend on the machine and its load, so every figure stands beside a reference measured in the same
minutes. Each benchmark runs in a process of its own. What they print, and what they took, goes to
``benchmarks/results.json``, and the tables of docs/performance.md are made of it; of those that are not run they stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

from blocks import filled
from usage import measure

#: name -> call of the usual, small benchmark, and of the whole one; None: left out of the small run
BENCHMARKS = {
    "integrate": ("bench_integrate.main()", "bench_integrate.main(True)"),
    "latency": ("bench_latency.main()", "bench_latency.main()"),
    "scale": ("bench_scale.main((250_000, 1_000_000))", "bench_scale.main()"),
    "merge": ("bench_merge.main()", "bench_merge.main()"),
    "end_to_end": ("bench_end_to_end.main(None, 40)", "bench_end_to_end.main()"),
    "models": ("bench_models.main(20_000, 4.0)", "bench_models.main()"),
    "engines": ("bench_engines.main(1)", "bench_engines.main()"),
    "fit": ("bench_fit.main('speed')", "bench_fit.main()"),
    "few_mates": ("bench_few_mates.main(('P1_1_0_low',))", "bench_few_mates.main()"),
    "closed_loop": (None, "bench_closed_loop.main()"),
    "cluster": (None, "bench_cluster.main()"),
    "process": (None, "bench_process.main()"),
    "absolute": (None, "bench_absolute.main()"),
    "report": (None, "bench_report.main()"),
    "delta_pdf": (None, "bench_delta_pdf.main()"),
    "bragg_masks": (None, "bench_bragg_masks.main()"),
    "leak": (None, "bench_leak.main()"),
    "unpredicted": (None, "bench_unpredicted.main()"),
}
HERE = Path(__file__).parent
TABLES = HERE.parent / "docs" / "performance.md"


def run(name: str, call: str) -> dict:
    """What a benchmark printed, what it told in lines that begin with RESULT, and what it took."""
    print(f"\n== {name}", flush=True)
    module = call.split(".")[0]
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import {module}; {call}"
    used = measure([sys.executable, "-u", "-c", code], Path.cwd(), echo=True)
    lines = used.output.splitlines()
    results = [json.loads(line[7:]) for line in lines if line.startswith("RESULT ")]
    text = [line.rstrip() for line in lines if not line.startswith("RESULT ")]
    print(f"took {used.cpu:.1f} CPU s, {used.wall:.1f} s, {used.peak / 1e9:.2f} GB", flush=True)
    return {"took": used.figures, "results": results, "text": text}


def with_tables(page: str, found: dict) -> str:
    """The page with what was printed between the marks of each benchmark that ran."""
    for name, result in found.items():
        page = filled(page, name, ["```text", *(line for line in result["text"] if line), "```"])
    return page


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--whole", action="store_true", help="larger, and with those that take long: hours")
    parser.add_argument("--json", default=str(HERE / "results.json"), help="where the results go")
    parser.add_argument("--no-tables", action="store_true", help="leave docs/performance.md as it is")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    found, failed = {}, []
    for name in options.names or BENCHMARKS:
        small, whole = BENCHMARKS[name]
        call = whole if options.whole or (options.names and small is None) else small
        if call is None:
            print(f"\n== {name}: NOT run, it takes long; --whole, or its name")
            continue
        try:
            found[name] = run(name, call) | {"whole": call == whole}
        except SystemExit as error:
            print(f"FAILED: {error}")
            failed.append(name)
            continue
        path = Path(options.json)
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        machine = platform.processor() or platform.machine()
        record = {"machine": machine, "benchmarks": {**before.get("benchmarks", {}), **found}}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if not options.no_tables:  # after each: what is done stays if the next one fails
            TABLES.write_text(with_tables(TABLES.read_text(encoding="utf-8"), found), encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
