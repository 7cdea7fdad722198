"""Damaged files for every reader: each is refused in one line, or read."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from soak.readers import REFUSALS, Reader, make_readers

BATCH = 200  # cases of one child process
SECONDS = 30  # of the processor, for one case
MEMORY = 6 << 30  # bytes of address space of a child

#: what can come of a case; all but the first two are faults
OUTCOMES = ("refused", "read", "silently other", "several lines", "traceback", "crash", "too slow")


class _TooSlow(BaseException):
    """A case that takes longer than SECONDS."""


def _text(value) -> str:
    with np.printoptions(threshold=200):
        return repr(value)


def one_case(reader: Reader, number: int, folder: Path, expected: str, content: bytes) -> tuple:
    """Outcome and message of the case with this number."""
    rng = np.random.default_rng([len(reader.name), *reader.name.encode(), number])
    path = folder / reader.path.name
    in_place = reader.in_place is not None and number % 2 == 1
    path.write_bytes(content if in_place else reader.mutate(content, rng))
    if in_place:
        reader.in_place(path, rng)
    try:
        found = _text(reader.read(path))
    except REFUSALS as error:
        return ("several lines" if "\n" in str(error) else "refused"), str(error)
    except MemoryError:  # programs say so in one line
        return "refused", "not enough memory"
    except _TooSlow:
        return "too slow", ""
    except Exception:
        return "traceback", traceback.format_exc()
    if not reader.silent and not in_place and found != expected:
        return "silently other", ""
    return "read", ""


def _child(reader: Reader, numbers, pipe: int, expected: str, content: bytes) -> None:
    """Cases one by one; each is announced before and reported after, so that the parent knows what crashed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def too_slow(*_):
        raise _TooSlow

    signal.signal(signal.SIGPROF, too_slow)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with tempfile.TemporaryDirectory() as folder, os.fdopen(pipe, "w") as out:
        os.chdir(folder)
        for number in numbers:
            print(json.dumps(["begin", number, folder]), file=out, flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # a loop in C hears no signal
            outcome, message = one_case(reader, number, Path(folder), expected, content)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps(["end", outcome, message[-3000:]]), file=out, flush=True)


def fuzz(reader: Reader, n: int, first: int = 0, report=print) -> Counter:
    """Outcomes of ``n`` cases; faults are reported with their numbers, by which they can be made again."""
    warnings.simplefilter("ignore")
    content, outcomes = reader.path.read_bytes(), Counter()
    expected = _text(reader.read(reader.path))
    number, last = first, first + n
    while number < last:
        numbers = range(number, min(number + BATCH, last))
        end, begin = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(end)
            with contextlib.suppress(BaseException):
                _child(reader, numbers, begin, expected, content)
                os._exit(0)
            os._exit(1)
        os.close(begin)
        folder = ""
        with os.fdopen(end) as lines:
            for line in lines:
                kind, what, text = json.loads(line)
                if kind == "begin":
                    number, folder = what, text
                    continue
                outcomes[what] += 1
                number += 1
                if what not in OUTCOMES[:2]:
                    report(f"{reader.name}, case {number - 1}: {what}\n{text}")
        _, status = os.waitpid(child, 0)
        if status:
            outcomes["crash"] += 1
            report(f"{reader.name}, case {number}: the process ended with status {status}")
            number += 1
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def fuzz_all(n: int, only: str = "", report=print) -> list:
    """(name, outcomes, seconds) of each reader, about ``n`` cases in all; after Ctrl-C those that are complete."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        readers = make_readers(Path(folder))
        each = n / sum(reader.share for reader in readers)
        for reader in readers:
            if only in reader.name:
                start = time.monotonic()
                outcomes = fuzz(reader, math.ceil(each * reader.share), report=report)
                rows.append((reader.name, outcomes, time.monotonic() - start))
                report(f"{reader.name}: {dict(outcomes)}, {rows[-1][2]:.0f} s")
    return rows
