"""What a program that is killed or hung up leaves: no workers, no unfinished files after the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.checkout import environment

from dials_diffuse.files.unfinished import remove_leftovers, unfinished_prefix

PROGRAM = """
import os, sys, time
from libtbx.phil import parse
from dials_diffuse.cli.program import run_program
from dials_diffuse.files.atomic import Staging, atomic_path
from dials_diffuse.files.record import write_json
from dials_diffuse.parallel import Forked

def nap(shared, item):
    os.write(1, b"worker %d\\n" % os.getpid())  # in one piece: two workers write at the same time
    time.sleep(60)

def main(params, files, provenance, warnings):
    if "quick" in sys.argv:
        write_json("result.json", {})
        return
    with Staging() as staging, atomic_path("result.json") as temporary:
        staging.path("image_1").write_text("half")
        temporary.write_text("half")
        for _ in Forked(2).map(nap, None, range(4)):
            pass

phil = parse("output {\\n log = None\\n .type = path\\n json = result.json\\n .type = path\\n}")
run_program("dials.test", "", phil, main, ["input.txt"])
"""


def command(*words) -> list:
    return [sys.executable, "-c", PROGRAM, *words]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM], ids=["KILL", "HUP", "TERM"])
def test_workers_end_and_nothing_is_left(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("1")
    run = subprocess.Popen(command(), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = set()
    while len(workers) < 2:
        line = run.stdout.readline()
        assert line, run.communicate()
        if line.startswith("worker"):
            workers.add(int(line.split()[1]))
    assert len([p for p in Path().iterdir() if p.name.startswith(".unfinished-")]) == 2
    sent = time.monotonic()
    if number == signal.SIGKILL:
        run.kill()
    else:
        for worker in workers:  # they sleep, and the program waits for them: batch systems send signals to all
            os.kill(worker, signal.SIGTERM)
        run.send_signal(number)
    while any(map(alive, workers)):
        assert time.monotonic() - sent < 20, "workers stay"
        time.sleep(0.05)
    _, errors = run.communicate(timeout=60)
    left = {p.name for p in Path().iterdir()}
    if number == signal.SIGKILL:
        assert len(left) == 3
        done = subprocess.run(command("quick"), env=environment(), capture_output=True, text=True, check=True)
        assert done.stdout.count("which a run that was killed left unfinished") == 2
        assert {p.name for p in Path().iterdir()} == {"input.txt", "result.json"}
    else:
        assert run.returncode == 128 + number, errors
        assert errors.strip() == "dials.test: terminated, unfinished outputs are removed; no output written"
        assert left == {"input.txt"}


def test_what_is_alive_or_of_another_computer_stays(tmp_path, caplog):
    mine, other = tmp_path / f"{unfinished_prefix()}abc.h5", tmp_path / ".unfinished-00000000-1-abc.h5"
    users = tmp_path / ".unfinished-thesis"
    for path in (mine, other, users):
        path.write_text("x")
    with caplog.at_level("INFO"):
        remove_leftovers(tmp_path)
    assert mine.exists() and other.exists() and users.exists()
    assert "another computer" in caplog.text and str(other) in caplog.text
    remove_leftovers(tmp_path / "absent")


def test_hung_up_in_the_background_goes_on(tmp_path, monkeypatch):
    """As nohup starts programs."""
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("1")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        write = "write_json("
        script = PROGRAM.replace(write, f"os.kill(os.getpid(), {int(signal.SIGHUP)}); {write}")
        subprocess.run([sys.executable, "-c", script, "quick"], env=environment(), check=True, capture_output=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Path("result.json").exists()
