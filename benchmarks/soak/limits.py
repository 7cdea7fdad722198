"""Numbers that are far too large: every program refuses them in one line, before it takes the memory of the machine."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from soak.samples import PROGRAMS, in_folder, make_samples

HUGE = 10**9
SECONDS = 60
MEMORY = 8 << 30  # bytes of address space


def integers(name: str) -> list:
    """Parameters of a program that are whole numbers, with a value far too large for each."""
    found = []
    for definition in PROGRAMS[name][0].phil_scope.all_definitions():
        kind = definition.object.type.phil_type
        if kind in ("int", "ints") and definition.path.split(".")[0] not in ("dask", "executor"):
            found.append(f"{definition.path}={','.join([str(HUGE)] * (3 if kind == 'ints' else 1))}")
    return found


def with_word(words: list, word: str) -> list:
    """Words of a command line; a parameter of a model asks for this model."""
    scope = word.split(".")[0]
    if scope not in ("covariance", "ensemble", "lattice_dynamics", "llm"):
        return [*words, word]
    return [*(w for w in words if not w.startswith("model=")), f"model={scope}", word]


def in_child(function, folder: Path, seconds: int = SECONDS, memory: int = MEMORY) -> tuple:
    """Run ``function()`` in a forked process in a folder: (exit status or "crash" or "too slow", stderr, seconds)."""
    start = time.monotonic()
    reading, writing = os.pipe()  # a limit on the size of files would count for a file
    os.set_blocking(reading, False)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            function()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        code, errors = _wait(child, pipe, start + seconds)
    return code, errors.decode("utf-8", "replace").strip(), time.monotonic() - start


def _wait(child: int, pipe, end: float) -> tuple:
    """Exit status of a process and what it said."""
    said = b""
    while True:
        said += pipe.read() or b""
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            said += pipe.read() or b""
            code = os.waitstatus_to_exitcode(status)
            return ("crash" if code < 0 else code), said
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "too slow", said
        time.sleep(0.02)


def verdict(code, errors: str) -> str:
    """One of: done, refused, no memory, and the faults traceback, several lines, crash, too slow."""
    if code in ("crash", "too slow"):
        return code
    if "Traceback" in errors:
        return "traceback"
    if code == 0:
        return "done"
    lines = [line for line in errors.splitlines() if line.startswith("dials.diffuse_")]
    if len(lines) != 1 or (code == 1 and len(errors.splitlines()) != 1):
        return "several lines"
    return "no memory" if "not enough memory" in errors else "refused"


def limits(only: str = "", report=print) -> list:
    """(program, parameter, verdict, seconds, message) for every whole number of every program."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        samples = Path(name) / "samples"
        samples.mkdir()
        make_samples(samples)
        for program, (module, words) in PROGRAMS.items():
            if program == "process":  # the parameters of the others
                continue
            for word in integers(program):
                if only not in f"{program} {word}":
                    continue
                work = Path(name) / "work"
                shutil.copytree(samples, work)
                with in_folder(name):
                    code, errors, seconds = in_child(lambda: module.run(with_word(words, word)), work)  # noqa: B023
                shutil.rmtree(work)
                rows.append((program, word, verdict(code, errors), seconds, errors[-300:]))
                report("  ".join(map(str, rows[-1])))
    return rows
