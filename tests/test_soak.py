"""The short form of ``make soak``: some damaged files for every reader, and signals at random moments."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import replace

import pytest
from helpers.checkout import ROOT

from dials_diffuse.errors import DiffuseError

sys.path.insert(0, str(ROOT / "benchmarks"))

from soak import fuzz, kills, limits, readers, samples, surroundings

CASES = 24
NAMES = (
    "map",
    "observations",
    "shown map",
    "shown observations",
    "experiments",
    "models",
    "reflections",
    "image",
    "mask",
    "gain",
    ".pdb",
    "coordinates .cif",
    "small",
    ".npy",
    "record",
    "state",
    "xia2",
    ".phil",
)


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory):
    return readers.make_readers(tmp_path_factory.mktemp("readers"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks, from Python 3.12 on
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(all_readers, name):
    """None crashes, hangs, ends in a traceback, or is taken for another one where checksums forbid it."""
    reader = next(r for r in all_readers if name in r.name)
    said: list = []
    outcomes = fuzz.fuzz(reader, CASES, first=1_000_000, report=said.append)
    assert sum(outcomes.values()) == CASES
    assert set(outcomes) <= {"refused", "read"}, "\n".join(said)
    assert name in ("state", "xia2") or outcomes["refused"]


def test_fuzzing_finds_faults(all_readers):
    """A reader that fails in each way is told from one that does not."""
    map_reader = next(r for r in all_readers if "map" in r.name)

    def fails(path):
        data = path.read_bytes()
        if data != map_reader.path.read_bytes():
            kind = data[5] % 3
            if kind == 0:
                raise KeyError("x")
            if kind == 1:
                os._exit(3)
        return len(data)

    spoilt = replace(map_reader, read=fails, in_place=None)
    outcomes = fuzz.fuzz(spoilt, 40, report=lambda text: None)
    assert outcomes["traceback"] or outcomes["crash"]
    assert sum(outcomes.values()) == 40 and outcomes["silently other"] + outcomes["traceback"] + outcomes["crash"] > 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("samples") / "samples"
    place.mkdir()
    return samples.make_samples(place)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_signals_full_disks_and_limits(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "whole")
    begun = time.monotonic()
    assert kills.wait(kills.start("integrate", 1, tmp_path / "whole"), kills.SECONDS) == 0
    length = time.monotonic() - begun
    for number, kind in enumerate(kills.SIGNALS):
        work = tmp_path / f"kill{number}"
        shutil.copytree(folder, work)
        for fault in kills.one_case("integrate", 1 + number % 2, kind, (0.2 + 0.2 * number) * length, work):
            assert fault in ("clean", "ended"), fault
    chosen = [c for c in surroundings.cases() if c[1] == "integrate"]
    for what, _, words, before in [c for c in chosen if c[0] in ("files of 5000 bytes", "6 open files", "ASCII only")]:
        work = tmp_path / what.replace(" ", "_")
        shutil.copytree(folder, work)
        module, given = samples.PROGRAMS["integrate"]

        def run(module=module, words=(*given, *words), before=before):
            before()
            module.run(list(words))

        code, errors, _ = limits.in_child(run, work)
        errors = "\n".join(line for line in errors.splitlines() if not line.startswith("Warning: "))
        assert limits.verdict(code, errors) in ("done", "refused"), (what, errors)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name, word",
    [
        ("merge", "statistics.n_shells=1000000000"),
        ("integrate", "grid.subdivide=1000000000,1000000000,1000000000"),
        ("simulate", "detector.size=1000000000,1000000000"),
        ("simulate", "scan.n_images=1000000000"),
        ("model", "grid.subdivide=1000000000,1000000000,1000000000"),
        ("model", "covariance.supercell=1000000000,1000000000,1000000000"),
        ("scale", "scale_model.a.degree=1000000000"),
    ],
)
def test_numbers_that_are_far_too_large(folder, tmp_path, name, word):
    """Refused in a line that names the parameter, before memory is taken; ``make soak`` tries every whole number."""
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    module, words = samples.PROGRAMS[name]
    code, errors, _ = limits.in_child(lambda: module.run(limits.with_word(words, word)), work, seconds=60)
    assert limits.verdict(code, errors) == "refused", errors
    assert word.split("=")[0].rsplit(".", 1)[1] in errors


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["map", "observations", "shown map"])
@pytest.mark.parametrize(
    "head", [b"\0\0" + bytes(14), b"\1\0" + bytes(6) + b"\xf0" + 7 * b"\xff"], ids=["free", "wraps"]
)
def test_texts_without_end(all_readers, tmp_path, name, head):
    """HDF5 would walk through these heaps for ever, and no signal would stop it."""
    reader = next(r for r in all_readers if name in r.name)
    content = reader.path.read_bytes()
    places = [m.start() for m in re.finditer(re.escape(b"GCOL\1\0\0\0"), content)]
    assert places
    for place in places:
        path = tmp_path / reader.path.name
        path.write_bytes(content[: place + 16] + head + content[place + 32 :])

        def read(path=path):
            with pytest.raises(DiffuseError, match="lengths of its texts are wrong") as error:
                reader.read(path)
            print(error.value, file=sys.stderr)

        code, said, _ = limits.in_child(read, tmp_path, seconds=60)
        assert code == 0 and path.name in said and len(said.splitlines()) == 1, said
