"""Try to break the package: ``make soak``, or ``make soak SOAK="--cases 100000 --kills 200"``.

Damaged files for every reader, signals at random moments, numbers that are far too large, full disks and other bad
surroundings. Prints a table in Markdown, and everything that went wrong before it; exit code 1 if anything did.
docs/trust.md has the last figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tests"), str(HERE.parents[1])]
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from soak.fuzz import OUTCOMES, fuzz_all  # noqa: E402
from soak.kills import kills  # noqa: E402
from soak.limits import limits  # noqa: E402
from soak.surroundings import surroundings  # noqa: E402

#: outcomes that are as they should be
GOOD = {*OUTCOMES[:2], "clean", "ended", "done", "no memory"}


def row(name: str, outcomes: Counter, seconds: float) -> tuple:
    """A line of the table, and the number of faults."""
    bad = sum(n for what, n in outcomes.items() if what not in GOOD)
    good = ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items()) if what in GOOD)
    wrong = ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items()) if what not in GOOD) or "0"
    return f"| {name} | {sum(outcomes.values())} | {good} | {wrong} | {seconds:.0f} |", bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=16_000, help="damaged files, of all readers together")
    parser.add_argument("--kills", type=int, default=56)
    parser.add_argument("--parts", default="fuzz,kills,limits,surroundings")
    parser.add_argument("--only", default="", help="readers, programs or parameters whose names have this")
    options = parser.parse_args()
    parts = options.parts.split(",")
    rows = []
    if "fuzz" in parts:
        each = max(1, options.cases // 16)
        rows += [(f"damaged {name}", *rest) for name, *rest in fuzz_all(each, options.only, report=_say)]
    if "kills" in parts:
        start = time.monotonic()
        for name, nproc, word, outcomes in kills(options.kills, report=_say):
            rows.append(
                (f"SIG{word} to {name}, {nproc} process{'es' * (nproc > 1)}", outcomes, time.monotonic() - start)
            )
            start = time.monotonic()
    for part, function in (("limits", limits), ("surroundings", surroundings)):
        if part in parts:
            start = time.monotonic()
            found = Counter(line[2] for line in function(options.only, report=_say))
            name = "a parameter of 10⁹" if part == "limits" else "full disk, few files, bad names and folders"
            rows.append((name, found, time.monotonic() - start))
    lines, faults = zip(*(row(*item) for item in rows))
    print("\n| tried | cases | as it should be | faults | s |\n|---|---|---|---|---|")
    print("\n".join(lines), flush=True)
    return 1 if sum(faults) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
