"""Every reader of the package with a small valid file: what the fuzzing damages and reads."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import iotbx.cif
import iotbx.cif.model
import numpy as np
from dxtbx import flumpy
from helpers.builders import PROVENANCE, all_voxels, example_map, observation_rows, small_grid
from helpers.datasets import import_images, noise, reflections_of, write_experiments, write_images, write_table
from helpers.structures import small_molecule

from dials_diffuse.cli.program import run_program
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.build import experiments_from_file
from dials_diffuse.experiment.image_md5 import agrees
from dials_diffuse.experiment.images import read_raw
from dials_diffuse.experiment.imagesets import read_map_file
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map, read_provenance, read_volume, write_map
from dials_diffuse.files.observations import (
    BRAGG_DTYPE,
    OBSERVATION_DTYPE,
    ExperimentSummary,
    ObservationFile,
    write_observations,
)
from dials_diffuse.files.record import read_json, write_record
from dials_diffuse.models.covariance.covariance_phil import read_array
from dials_diffuse.pipeline.sources import find_sources
from dials_diffuse.pipeline.state import Done, Fingerprint, State
from dials_diffuse.report.contents import file_contents
from dials_diffuse.structure.atoms import load_structure
from soak import mutate


@dataclass(frozen=True)
class Reader:
    """A reader and its valid file.

    Attributes
    ----------
    name : for the table
    path : of the valid file; damaged copies have its name in another folder
    read : called with the path of a copy; its result, as text, says what was read
    mutate : content of the file, random generator -> damaged content
    in_place : called with the path of a copy, damages it; takes turns with ``mutate``
    silent : may a damaged file be read as something else? False where checksums forbid it
    share : of the cases, relative to the others; less for those that take long
    """

    name: str
    path: Path
    read: Callable
    mutate: Callable
    in_place: Callable | None = None
    silent: bool = True
    share: float = 1.0


def _map(path):
    data = read_map(path)
    return data, read_provenance(path), read_volume(path), read_volume(path, "multiplicity")


def _observations(path):
    with ObservationFile(path) as file:
        rows = [block for _, block in file.chunks(*OBSERVATION_DTYPE.names, size=500)]
        return rows, file.read_bragg(), file.experiments, file.provenance, file.grid, file.units, file.scaled


def _image(path, first: str, good: bytes):
    """As the second of a sweep that was good when it was opened.

    dxtbx keeps the format and the content of the file that it opened last, by its name: the first is opened in between.
    """
    from dxtbx.format.FormatCBFMini import FormatCBFMini

    content = path.read_bytes()
    path.write_bytes(good)
    imageset = FormatCBFMini.get_imageset([first, str(path)])
    path.write_bytes(content)
    FormatCBFMini.open_file(first).close()
    read_raw(imageset, 0)
    if agrees(path) is False:
        raise DiffuseError(f"{path}: damaged")
    return read_raw(imageset, 1)


def _pixels(path, name: str):
    return read_map_file(str(path), name, "x")[0].all()


def _state(path):
    state = State(Path(path))
    return state.finished("Merging", Fingerprint("1", {"a": "b"}, {"c": None}))


def _program(path):
    """The parameters in a file, as programs read them."""
    from dials_diffuse.cli.merge import phil_scope

    seen: list = []
    words = [str(path), __file__, "output.log=None", "output.map=map.nxs"]
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            run_program("soak", "", phil_scope, lambda *a: seen.append(str(a[2].phil)), words)
        except SystemExit as stop:
            raise DiffuseError(said.getvalue().strip() or f"exit {stop.code}") from None
    return seen


def make_readers(folder: Path) -> list:
    """All readers; their valid files are written into ``folder``."""
    rng = np.random.default_rng(0)
    write_map(folder / "map.nxs", example_map(), PROVENANCE)
    grid = small_grid("P 1", (8, 8, 12, 90, 90, 90))
    experiment = ExperimentSummary("id-1", (1, 10), (0.0, 0.1), 10, 1.0, 1, (100, 100), tuple(range(9)))
    bragg = np.zeros(20, BRAGG_DTYPE)
    observations = folder / "observations.h5"
    with write_observations(observations, grid, [experiment], PROVENANCE) as writer:
        writer.append(observation_rows(grid, all_voxels(grid), np.ones(len(all_voxels(grid))), rng))
        writer.append_bragg(bragg, np.ones(20))
    names = write_images(folder, "image_", noise(0, 4))
    image = Path(names[1]).read_bytes()
    sweep = import_images(names, "sweep")
    write_experiments(folder / "plain.expt", sweep)
    sweep.imageset.external_lookup.mask.filename = str(folder / "pixels.mask")
    write_experiments(folder / "sweep.expt", sweep)
    write_table(folder / "sweep.refl", [reflections_of(sweep)], {0: "sweep"})
    (folder / "pixels.mask").write_bytes(pickle.dumps((flumpy.from_numpy(np.ones((80, 90), bool)),), 2))
    (folder / "gain.pickle").write_bytes(pickle.dumps((flumpy.from_numpy(np.ones((9, 8))),), 2))
    molecule = small_molecule()
    molecule.hierarchy.write_pdb_file(str(folder / "model.pdb"), crystal_symmetry=molecule.crystal_symmetry)
    with open(folder / "model.cif", "w") as file:
        block = iotbx.cif.model.cif()
        block["model"] = molecule.hierarchy.as_cif_block(crystal_symmetry=molecule.crystal_symmetry)
        print(block, file=file)
    with open(folder / "small.cif", "w") as file:
        molecule.xray_structure.as_cif_simple(out=file)
    np.save(folder / "array.npy", np.arange(30.0).reshape(5, 6))
    write_record(folder / "record.json", "dials.test/1", PROVENANCE, [], ["a warning"], statistics={"a": [1, 2.5]})
    done = Done(Fingerprint("1", {"a": "b"}, {"c": None}), {"d": [1, 2]}, ["w"], {"seconds": 1.0}, {}, [])
    State(folder / "state.json").keep("Merging", done)
    (folder / "xia2").mkdir()
    cell = {"_scaler": {"_scalr_likely_spacegroups": ["P 21"], "_scalr_cell": [1, 2, 3, 90, 90, 90]}}
    (folder / "xia2" / "xia2.json").write_text(json.dumps(cell))
    (folder / "some.phil").write_text(
        "statistics {\n  n_shells = 12\n  d_max = 30.5\n}\nspace_group = 'P 41'\nseed = 3\n"
    )
    byte, text, tree = mutate.as_bytes, mutate.as_text, mutate.as_json
    return [
        Reader("experiments .expt", folder / "sweep.expt", lambda p: len(load_input([str(p)]).experiments), tree),
        Reader("models of .expt", folder / "sweep.expt", lambda p: len(experiments_from_file(p)), tree),
        Reader(
            "reflections .refl",
            folder / "sweep.refl",
            lambda p: len(load_input([str(folder / "plain.expt"), str(p)]).reflections),
            byte,
        ),
        Reader("image .cbf", folder / "image_00002.cbf", lambda p: _image(p, names[0], image), byte),
        Reader("mask, pickled", folder / "pixels.mask", lambda p: _pixels(p, "mask"), byte, share=0.3),
        Reader("gain, pickled", folder / "gain.pickle", lambda p: _pixels(p, "gain"), byte, share=0.3),
        Reader("coordinates .pdb", folder / "model.pdb", lambda p: load_structure(p).n_atoms, text),
        Reader("coordinates .cif", folder / "model.cif", lambda p: load_structure(p).n_atoms, text),
        Reader("small molecule .cif", folder / "small.cif", lambda p: load_structure(p).n_atoms, text),
        Reader("array .npy", folder / "array.npy", lambda p: read_array("modes", str(p)).shape, byte),
        Reader("record .json", folder / "record.json", read_json, tree),
        Reader("state of a run", folder / "state.json", _state, tree),
        Reader("xia2.json", folder / "xia2" / "xia2.json", _xia2, tree),
        Reader("parameters .phil", folder / "some.phil", _program, text),
        Reader("map .nxs", folder / "map.nxs", _map, byte, mutate.hdf5, silent=False, share=0.3),
        Reader("observations .h5", observations, _observations, byte, mutate.hdf5, silent=False, share=0.3),
        Reader("shown map .nxs", folder / "map.nxs", file_contents, byte, mutate.hdf5, share=0.3),
        Reader("shown observations .h5", observations, file_contents, byte, mutate.hdf5, share=0.3),
    ]


def _xia2(path):
    """In a folder of xia2 that has experiments."""
    folder = Path(path).parent
    (folder / "scaled.expt").touch()
    return find_sources([str(folder)]).xia2


#: what a reader may raise
REFUSALS = (DiffuseError,)
