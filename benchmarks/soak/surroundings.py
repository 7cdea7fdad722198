"""Disks that are full, limits on files and memory, and names and folders that make trouble."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

from dials_diffuse.files.unfinished import PREFIX
from soak.limits import in_child, verdict
from soak.samples import PROGRAMS, in_folder, make_samples

OLD = b"what an earlier run wrote"


def _limited(what: int, value: int):
    def limit():
        if what == resource.RLIMIT_FSIZE:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(what, (value, resource.getrlimit(what)[1]))

    return limit


def _leave():
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    os.rmdir(gone)


def cases() -> list:
    """(what, program, words besides those of the samples, done in the process before)."""
    rows = []
    for name in PROGRAMS:
        for size in (0, 500, 2000, 5000, 20_000, 60_000, 150_000):
            rows.append((f"files of {size} bytes", name, [], _limited(resource.RLIMIT_FSIZE, size)))
        for number in (3, 6, 10, 16, 24, 40):
            rows.append((f"{number} open files", name, [], _limited(resource.RLIMIT_NOFILE, number)))
        rows.append(("folder removed", name, [], _leave))
        log = "output.log"
        rows.append(("name of 300 characters", name, [f"{log}={'x' * 300}"], None))
        rows.append(("name of 255 characters", name, [f"{log}={'x' * 251}.log"], None))
        rows.append(("name that is not UTF-8", name, [f"{log}=a\udcffb.log"], None))
        rows.append(("ASCII only", name, [], lambda: os.environ.update(PYTHONIOENCODING="ascii", LC_ALL="C")))
    return rows


def surroundings(only: str = "", report=print) -> list:
    """(what, program, verdict, seconds, message) of each case."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        samples = Path(name) / "samples"
        samples.mkdir()
        make_samples(samples)
        for what, program, words, before in cases():
            if only not in f"{program} {what}":
                continue
            module, given = PROGRAMS[program]
            work = Path(name) / "work"
            shutil.copytree(samples, work)
            known = {path.name for path in work.iterdir()}

            def run(module=module, words=(*given, *words), before=before):
                if before is not None:
                    before()
                module.run(list(words))

            with in_folder(name):
                code, errors, seconds = in_child(run, work)
            errors = "\n".join(line for line in errors.splitlines() if not line.startswith("Warning: "))
            found = verdict(code, errors)
            new = {path.name for path in work.iterdir()} - known
            if any(path.startswith(PREFIX) for path in new):
                found = "leftovers"
            shutil.rmtree(work)
            rows.append((what, program, found, seconds, errors[-1500:]))
            report(f"{program}, {what}: {found}, {seconds:.1f} s  {errors[-400:]}")
    return rows
