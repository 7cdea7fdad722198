"""Signals at random moments: what is written stays whole, nobody is left, and the next run cleans up."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from dials_diffuse.files.unfinished import PREFIX, remove_leftovers
from soak.samples import PROGRAMS, in_folder, make_samples

#: name, signal, to the whole group as a terminal does it
SIGNALS = (
    ("KILL", signal.SIGKILL, False),
    ("TERM", signal.SIGTERM, False),
    ("HUP", signal.SIGHUP, False),
    ("INT", signal.SIGINT, True),
)
RUNS = (("integrate", 1), ("integrate", 2), ("simulate", 2), ("merge", 1), ("fit", 1), ("scale", 1), ("process", 2))
OLD = b"what an earlier run wrote"

#: outputs of which all or none are new; those of process appear step by step
OUTPUTS = {
    "integrate": ("diffuse_integrated.h5", "diffuse_integrated.json"),
    "merge": ("diffuse_merged.nxs", "diffuse_merged.json", "diffuse_merged.png"),
    "fit": ("diffuse_fit.nxs", "diffuse_fit.json", "diffuse_fit.png", "diffuse_fit.html"),
    "scale": ("diffuse_scaled.h5", "diffuse_scaled.json", "diffuse_scaled.png"),
}
SECONDS = 120

#: what can come of a case; "ended" before the signal, "clean" are not faults
FAULTS = ("mixed", "orphans", "leftovers", "several lines", "traceback", "crash", "too slow", "wrong code")


def start(name: str, nproc: int, folder: Path) -> int:
    """The number of a process that runs a program in a folder, in a group of its own."""
    module, words = PROGRAMS[name]
    words = [word for word in words if not word.startswith("nproc")]
    words += [f"nproc={nproc}"] if name in ("integrate", "simulate", "scale", "process") else []
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in ((1, "../stdout"), (2, "../stderr")):
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        module.run(words)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except KeyboardInterrupt:  # before or after the program's own part
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """Exit code, negative for a signal; None if it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def group_alive(group: int) -> bool:
    """Is a process of the group left? Zombies that nobody waits for do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def one_case(name: str, nproc: int, kind: tuple, delay: float, work: Path) -> list:
    """Faults of a run that gets a signal after some seconds; ["ended"] if it was over by then."""
    word, number, to_group = kind
    for output in OUTPUTS.get(name, ()):
        (work / output).write_bytes(OLD)
    child = start(name, nproc, work)
    code = wait(child, delay)
    if code is not None:
        return ["ended"] if code == 0 else [f"crash {code}"]
    (os.killpg if to_group else os.kill)(child, number)
    code = wait(child, SECONDS)
    if code is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return ["too slow"]
    faults = []
    end = time.monotonic() + 10
    while group_alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    if group_alive(child):
        faults.append("orphans")
        os.killpg(child, signal.SIGKILL)
    errors = (work.parent / "stderr").read_text(errors="replace").strip()
    # 0: it ended while the signal was on its way; -number: the program had not begun
    expected = {"KILL": (0, -9), "INT": (1, 0, -number)}.get(word, (128 + number, 0, -number))
    if code not in expected:
        faults.append("crash" if code < 0 else f"wrong code {code}")
    if "Traceback" in errors:
        faults.append("traceback")
    elif len(errors.splitlines()) > 1:
        faults.append("several lines")
    new = {(work / output).read_bytes() != OLD for output in OUTPUTS.get(name, ())}
    if len(new) > 1:
        faults.append("mixed")
    left = [path.name for path in work.iterdir() if path.name.startswith(PREFIX)]
    if left and word != "KILL":
        faults.append("leftovers")
    remove_leftovers(work)  # as the next run does
    if any(path.name.startswith(PREFIX) for path in work.iterdir()):
        faults.append("leftovers")
    return [f"{fault}: {errors[-500:]}" for fault in faults] or ["clean"]


def kills(n: int, report=print, seed: int = 0) -> list:
    """(program, processes, signal, outcomes) of at least ``n`` cases in all.

    Runs that ended before their signal do not count; there are as many again at most.
    """
    rng = np.random.default_rng(seed)
    rows = []
    each = math.ceil(n / len(RUNS) / len(SIGNALS))
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        samples.mkdir()
        make_samples(samples)
        for name, nproc in RUNS:
            begun = time.monotonic()
            work = Path(folder) / "work"
            shutil.copytree(samples, work)
            with in_folder(folder):
                code = wait(start(name, nproc, work), 3 * SECONDS)
            if code != 0:
                raise RuntimeError(f"{name} does not run: {(Path(folder) / 'stderr').read_text()}")
            length = time.monotonic() - begun
            shutil.rmtree(work)
            for kind in SIGNALS:
                outcomes = Counter()
                for _ in range(2 * each):
                    if sum(outcomes.values()) - outcomes["ended"] >= each:
                        break
                    shutil.copytree(samples, work)
                    delay = float(rng.uniform(0, length))
                    with in_folder(folder):
                        found = one_case(name, nproc, kind, delay, work)
                    shutil.rmtree(work)
                    if found == ["ended"]:  # under another load than when its length was measured
                        length = min(length, delay)
                    outcomes[found[0].split(":")[0]] += 1
                    for fault in found:
                        if fault not in ("clean", "ended"):
                            report(f"{name}, {nproc} processes, {kind[0]}: {fault}")
                rows.append((name, nproc, kind[0], outcomes))
                report(f"{name}, {nproc} processes, {kind[0]}: {dict(outcomes)}")
    return rows
