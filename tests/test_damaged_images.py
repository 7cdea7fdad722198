"""Images that changed after the detector wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import import_images, noise, write_experiments, write_images
from helpers.programs import fails

from dials_diffuse.cli import integrate as program
from dials_diffuse.experiment.image_md5 import agrees, check_images, odd_images

QUIET = ["corrections.flux=False", "output.log=None", "output.html=None"]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Names of twelve images in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_images(".", "one_", noise(0, 12))


def experiment_of(names):
    """Their experiment, also as one.expt; dxtbx keeps what it reads, so make it after changing images."""
    experiment = import_images(names, "one")
    write_experiments("one.expt", experiment)
    return experiment


def flip(path, shift: int = 300, bit: int = 0) -> None:
    """Change a bit of the binary section."""
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"\x0c\x1a\x04\xd5") + shift] ^= 1 << bit
    Path(path).write_bytes(content)


def test_one_bit(images):
    assert all(agrees(name) for name in images)
    flip("one_00003.cbf")
    assert agrees("one_00003.cbf") is False and agrees("one_00004.cbf")
    assert agrees(__file__) is None and agrees("absent.cbf") is None


def test_a_damaged_image_of_the_sample(images, capsys):
    """The first image is one of those that are compared with their headers."""
    flip("one_00001.cbf")
    experiment_of(images)
    words = ["one_00001.cbf", "damaged", "MD5", "exclude_images=0:1:1"]
    fails(program.run, ["one.expt", *QUIET], capsys, words=words)
    program.run(["one.expt", "exclude_images=0:1:1", *QUIET])


def test_a_damaged_image_that_looks_odd(images, capsys):
    """Damage of a difference moves all pixels that follow."""
    sample = {1, 12} | {i for i in range(1, 13) if (i - 1) % 4 == 0}
    odd = next(i for i in range(4, 10) if i not in sample)
    flip(f"one_{odd:05d}.cbf", bit=5)
    experiment_of(images)
    words = [f"one_{odd:05d}.cbf", "damaged", f"exclude_images=0:{odd}:{odd}"]
    fails(program.run, ["one.expt", "output.log=None"], capsys, words=words)


def test_headers_that_say_something_else(images):
    """Some writers put a constant there: nothing can be told, and nothing is refused."""
    for i in range(1, 13):
        path = Path(f"one_{i:05d}.cbf")
        content = path.read_bytes()
        start = content.index(b"Content-MD5: ") + 13
        path.write_bytes(content[:start] + b"1B2M2Y8AsgTpgAmY7PhCfg==" + content[start + 24 :])
    assert agrees("one_00001.cbf") is False
    sweep = experiment_of(images)
    assert check_images(0, sweep.imageset, 1, range(12)) is False
    program.run(["one.expt", *QUIET])


def test_odd_images():
    rng = np.random.default_rng(0)
    drift = 1 + 0.3 * np.sin(np.arange(200) / 20)
    flux = dict(enumerate(drift * rng.normal(1, 0.005, 200)))
    assert odd_images(flux) == []
    assert odd_images({**flux, 50: flux[50] * 1.1, 120: float("nan")}) == [50, 120]
    assert odd_images(dict.fromkeys(range(9), 1.0)) == [] and odd_images({0: 1.0, 1: 5.0}) == []
