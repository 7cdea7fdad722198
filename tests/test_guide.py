"""The blocks of commands of the user guide work: all are run, page by page, on one tiny simulated crystal."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList
from helpers.checkout import ROOT
from helpers.guide import code_blocks, run_block

from dials_diffuse.cli import process, simulate

#: begin of a block -> why it is only parsed (test_docs.py)
NOT_RUN = {
    "dials.split_experiments": "it needs a batch system; test_distributed.py has one",
    'dials.import "simulated_1_*.cbf"': "minutes of DIALS; test_demo.py and test_simulate_dials.py run them",
    "jq ": "a program of its own",
    "mkdir -p modules build": "an installation; test_registration.py makes one",
    "sudo apt install": "an installation; .ci/run makes one",
}

#: so that commands take seconds: parameters that are put before their own
FASTER = {
    "integrate": ["nproc=1", "d_max=7"],
    "process": ["nproc=1", "integrate.d_min=2", "scale.model=b", "fit.profile=False", "fit.starts=1"],
    "scale": ["model=b"],
    "fit": ["starts=1", "profile=False", "pairs.strength=1", "prior.strength=0.1"],
    "simulate": ["d_min=2.5", "nproc=1", "grid.subdivide=2,2,2"],
}

#: the same for images whose geometry no .expt file gives
GEOMETRY = ["detector.size=90,90", "detector.pixel_size=0.8", "detector.distance=40", "scan.width=3"]

CELL = (11.0, 11.0, 14.0)
ATOMS = (("N", "N"), ("CA", "C"), ("C", "C"), ("O", "O"), ("CB", "C"), ("SG", "S"))

#: the first of blocks that are alike on several pages is run, those of the index are those of the README
BLOCKS: dict = {}
for _page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
    for _block in code_blocks(_page):
        if re.search(r"\bdials\.\w+", _block):
            BLOCKS.setdefault(_block, _page.name)
RUN = {block: page for block, page in BLOCKS.items() if not block.startswith(tuple(NOT_RUN))}


def arguments_of(name: str, arguments: list) -> list:
    geometry = GEOMETRY + ["scan.n_images=3"] if name == "simulate" and not arguments[-1].endswith(".expt") else []
    return [*FASTER.get(name, ()), *geometry, *arguments]


def write_model(path: Path) -> None:
    """Three residues in P 41."""
    rng = np.random.default_rng(1)
    lines = ["CRYST1{:9.3f}{:9.3f}{:9.3f}  90.00  90.00  90.00 P 41".format(*CELL)]
    for residue in range(3):
        centre = np.array([3.0, 2.8, 3.0]) + residue * np.array([0.0, 0.0, 3.5])
        for name, element in ATOMS:
            x, y, z = centre + rng.uniform(-1.3, 1.3, 3)
            lines.append(
                f"ATOM  {len(lines):5d}  {name:<3s} CYS A{residue + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00"
                f"{rng.uniform(8, 15):6.2f}          {element:>2s}"
            )
    path.write_text("\n".join([*lines, "END\n"]))


def make_images(folder: Path, seed: int) -> None:
    """What DIALS leaves behind: images, ``scaled.expt`` and ``scaled.refl``."""
    folder.mkdir(exist_ok=True)
    model = os.path.relpath(folder.parent / "model.pdb", folder) if seed > 1 else "model.pdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        simulate.run(
            [model, "model=llm", "llm.sigma=0.4", "llm.gamma=3", *GEOMETRY, "scan.n_images=30", "d_min=1.8", "nproc=1"]
            + [f"seed={seed}", "output.experiments=scaled.expt", "output.reflections=scaled.refl"]
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with the files that the pages speak of; the commands of README.md have run there."""
    folder = tmp_path_factory.mktemp("guide")
    write_model(folder / "model.pdb")
    with gzip.open(folder / "model.pdb.gz", "wb") as packed:
        packed.write((folder / "model.pdb").read_bytes())
    make_images(folder, 1)
    make_images(folder / "second", 2)
    shutil.copy(folder / "scaled.expt", folder / "geometry.expt")
    tables = []
    for name, crystal, source in (("a", "crystal_1", folder), ("b", "crystal_2", folder / "second")):
        (folder / crystal).mkdir()
        experiments = ExperimentList.from_file(str(source / "scaled.expt"), check_format=False)
        experiments[0].identifier = crystal
        table = flex.reflection_table.from_file(str(source / "scaled.refl"))
        table.experiment_identifiers()[0] = crystal
        for target in (folder / name, folder / crystal / "integrated"):
            experiments.as_file(str(target.with_suffix(".expt")))
            table.as_file(str(target.with_suffix(".refl")))
        del table.experiment_identifiers()[0]
        table["id"] = flex.int(len(table), len(tables))
        table.experiment_identifiers()[len(tables)] = crystal
        tables.append(table)
    joint = tables[0]
    joint.extend(tables[1])
    joint.as_file(str(folder / "joint.refl"))
    runs = folder / "xia2-run" / "DataFiles"
    runs.mkdir(parents=True)
    for suffix in (".expt", ".refl"):
        shutil.copy(folder / f"a{suffix}", folder / f"integrated{suffix}")
        shutil.copy(folder / f"a{suffix}", runs / f"AUTOMATIC_DEFAULT_scaled{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        process.run(arguments_of("process", ["scaled.expt", "scaled.refl", "pdb=model.pdb"]))
    return folder


def test_every_block_is_run_or_has_a_reason():
    assert len(RUN) >= 25 and len(set(RUN.values())) >= 10
    for begin in NOT_RUN:
        assert any(block.startswith(begin) for block in BLOCKS), begin


def test_a_block_that_fails_is_noticed(tmp_path):
    """The shell stops at the first command that fails, and knows loops, folders and patterns."""
    calls = []
    (tmp_path / "one.json").write_text("{}")

    def seen(name, arguments):
        calls.append((name, arguments))
        return ["-h"] if "-h" in arguments else ["absent.nxs"]

    script = (
        "for i in one.*; do dials.diffuse_show -h $i; done\ndials.diffuse_show 'a b'  # no file\ndials.diffuse_show -h"
    )
    assert run_block(script, tmp_path, seen) == 1
    assert calls == [("show", ["-h", "one.json"]), ("show", ["a b"])]


@pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")  # of pandas 1.5
@pytest.mark.parametrize("page", sorted(set(RUN.values())))
def test_the_commands_of_a_page(page, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "work", copy_function=os.link)
    for block in (block for block, where in RUN.items() if where == page):
        assert run_block(block, folder, arguments_of) == 0, block
