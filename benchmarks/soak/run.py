"""Try to break the package: ``make soak``, or ``make soak SOAK="--cases 100000 --kills 200"``.

Damaged files for every reader, signals at random moments, numbers that are far too large, full disks and other bad
surroundings. Prints a table in Markdown for each part, and before it what went wrong; exit code 1 if anything did.
docs/trust.md has the last figures, which ``--write`` puts there.
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

from blocks import fill  # noqa: E402

from soak.fuzz import OUTCOMES, fuzz_all  # noqa: E402
from soak.kills import kills  # noqa: E402
from soak.limits import limits  # noqa: E402
from soak.surroundings import surroundings  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "trust.md"
#: outcomes that are as they should be
GOOD = {*OUTCOMES[:2], "clean", "ended", "done", "no memory"}


def row(name: str, outcomes: Counter, seconds: float) -> tuple:
    """A line of the table, and the number of faults."""
    bad = sum(n for what, n in outcomes.items() if what not in GOOD)
    good = ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items()) if what in GOOD)
    wrong = ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items()) if what not in GOOD) or "0"
    return f"| {name} | {sum(outcomes.values())} | {good} | {wrong} | {seconds:.0f} |", bad


def damaged(options) -> list:
    """What to try, outcomes and seconds of each reader, and of all together."""
    rows = [(f"damaged {name}", *rest) for name, *rest in fuzz_all(options.cases, options.only, report=_say)]
    return [*rows, ("all of these", sum((found for _, found, _ in rows), Counter()), sum(row[2] for row in rows))]


def killed(options) -> list:
    """The same of each program and signal."""
    rows, start = [], time.monotonic()
    for name, nproc, word, outcomes in kills(options.kills, report=_say):
        rows.append((f"SIG{word} to {name}, {nproc} process{'es' * (nproc > 1)}", outcomes, time.monotonic() - start))
        start = time.monotonic()
    return [*rows, ("all of these", sum((found for _, found, _ in rows), Counter()), sum(row[2] for row in rows))]


def huge(options) -> list:
    return _by_program("a parameter of 10⁹", limits, options)


def poor(options) -> list:
    return _by_program("full disk, few files, bad names and folders", surroundings, options)


def _by_program(what: str, function, options) -> list:
    start = time.monotonic()
    found = Counter(line[2] for line in function(options.only, report=_say))
    return [(what, found, time.monotonic() - start)]


PARTS = {"fuzz": damaged, "kills": killed, "limits": huge, "surroundings": poor}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=16_000, help="damaged files, of all readers together")
    parser.add_argument("--kills", type=int, default=56)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--only", default="", help="readers, programs or parameters whose names have this")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/trust.md")
    options = parser.parse_args()
    faults = 0
    for part in options.parts.split(","):
        lines, bad = zip(*(row(*item) for item in PARTS[part](options)))
        faults += sum(bad)
        table = ["", "| tried | cases | as it should be | faults | s |", "|---|---|---|---|---|", *lines, ""]
        print("\n".join(table), flush=True)
        if options.write:
            fill(PAGE, f"soak {part}", table)
    return 1 if faults else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
