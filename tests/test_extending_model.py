"""A model of somebody else: one file and one row, or another distribution, and all programs know it."""

from __future__ import annotations

import json

import pytest
from helpers.extending import Extended
from helpers.simulations import QUICK, SMALL
from helpers.structures import small_molecule

from dials_diffuse.files.nexus import read_map

SIZE = 0.25

TREMBLE = '''
"""Molecules that tremble along one axis, one phonon at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.checks import choice, positive
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.checks import fitted
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.refinable import sigma_parameter
from dials_diffuse.models.single_atoms import diameter
from dials_diffuse.structure.transform import lattice_transform


@dataclass(frozen=True)
class Tremble(DiffuseModel):
    """I = size² q_a² |F|² of each molecule, F with displacements, a the axis."""

    name = "tremble"
    about = "molecules that tremble"
    phil = """
tremble {
  size = 0.2
    .type = float(value_min=0)
    .help = "Displacement along the axis, rms, in Angstrom."
  axis = *x y z
    .type = choice
    .help = "Cartesian axis of the coordinate file."
}
"""

    size: float = 0.2
    axis: str = "x"
    table: str = "wk1995"

    def __post_init__(self):
        positive("tremble.size", self.size)
        choice("tremble.axis", self.axis, ("x", "y", "z"))

    def intensity(self, structure, grid):
        return self.size**2 * self.strength(structure, grid)

    def strength(self, structure, grid):
        structure, grid = fitted(structure, grid)
        amplitude = lattice_transform(structure.molecule(), grid, self.table)
        q = 2 * np.pi * grid.s(np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in grid.extent], indexing="ij"), -1))
        strength = structure.space_group.order_z() * q[..., "xyz".index(self.axis)] ** 2 * np.abs(amplitude) ** 2
        return laue_average(strength, grid)

    def correlation_length(self, structure):
        return diameter(structure)

    def parameters(self, structure):
        return (sigma_parameter(structure, self.size, "size"),)

    def prepare_centres(self, structure, grid, index):
        return PreparedTremble(self, structure, grid, index)

    def shared_displacements(self, structure):
        axis = np.eye(3)["xyz".index(self.axis)]
        return np.tile(self.size**2 * np.outer(axis, axis), (structure.n_atoms, 1, 1))


class PreparedTremble(Prepared):
    def __init__(self, model, structure, grid, index):
        self.origin, self.structure, self.parameters = model, structure, model.parameters(structure)
        self._strength = model.strength(structure, grid).reshape(-1)[grid.key(index)]

    def jacobian(self, values):
        (size,) = self._checked(values)
        return size**2 * self._strength, 2 * size * self._strength[:, None]

    def second(self, values, weights):
        return np.full((1, 1), 2 * float(weights @ self._strength))
'''

#: checks the derivatives by differences, and makes data of the model's map: with errors and a background
PREPARE_AND_MEASURE = """
from dataclasses import replace

import numpy as np

from dials_diffuse.files.nexus import read_map, read_provenance, write_map
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.table import all_models
from dials_diffuse.structure.atoms import load_structure

structure, computed = load_structure("model.pdb"), read_map("computed.nxs")
prepared = prepare(all_models()["tremble"](size=0.2, axis="z"), structure, computed.grid, computed.index, means=True)
assert prepared.means
(intensity, slopes), weights, step = prepared.jacobian([0.3]), np.cos(np.arange(len(computed.index))), 1e-4
more, less = prepared.jacobian([0.3 + step]), prepared.jacobian([0.3 - step])
np.testing.assert_allclose(slopes[:, 0], (more[0] - less[0]) / (2 * step), rtol=1e-6, atol=1e-6 * np.abs(slopes).max())
curvature = weights @ (more[1] - less[1]) / (2 * step)
np.testing.assert_allclose(prepared.second([0.3], weights)[0], curvature, rtol=1e-6)

rng, s = np.random.default_rng(0), computed.grid.s_magnitude(computed.index)
sigma = np.full(len(s), 0.02 * computed.intensity.std())
noisy = computed.intensity + 100 * np.exp(-s) + sigma * rng.normal(size=len(s))
data = replace(computed, intensity=noisy, sigma=sigma, multiplicity=np.ones(len(s), dtype=np.int32))
write_map("data.nxs", data, read_provenance("computed.nxs"))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy with the model, and beside it a structure."""
    copy = Extended(tmp_path_factory.mktemp("extended"))
    copy.add_file("models/tremble.py", TREMBLE)
    row = '    "tremble": "dials_diffuse.models.tremble:Tremble",'
    copy.add_row("models/table.py", '"lattice_dynamics":', row)
    atoms = small_molecule()
    atoms.hierarchy.write_pdb_file(str(copy.folder / "model.pdb"), crystal_symmetry=atoms.crystal_symmetry)
    return copy


@pytest.fixture(scope="module")
def computed(extended):
    """The map of dials.diffuse_model."""
    done = extended.program(
        "model",
        "model.pdb",
        "model=tremble",
        "tremble.axis=z",
        f"tremble.size={SIZE}",
        "grid.subdivide=2,2,2",
        "d_min=2.2",
        "output.map=computed.nxs",
    )
    assert "Model: name=tremble, size=0.25, axis=z" in done.stdout
    return read_map(extended.folder / "computed.nxs")


def content(extended, name):
    return json.loads((extended.folder / name).read_text())


def test_the_map_of_a_new_model(extended, computed):
    assert computed.intensity.max() > 100
    record = content(extended, "diffuse_model.json")["model"]
    assert record == {"name": "tremble", "size": SIZE, "axis": "z", "table": "wk1995"}
    failed = extended.program("model", "model.pdb", "tremble.size=0.3", ok=False)
    assert "tremble.size is given, but model=llm; say model=tremble, or leave it out" in failed.stderr


def test_a_new_model_is_simulated(extended):
    extended.program("simulate", "model.pdb", *SMALL, *QUICK, "model=tremble", f"tremble.size={SIZE}", "tremble.axis=z")
    assert content(extended, "diffuse_simulate.json")["model"]["name"] == "tremble"
    truth = read_map(extended.folder / "truth.nxs")
    assert truth.intensity.max() > 100


def test_a_new_model_is_fitted(extended, computed):
    """With derivatives that differences confirm; what it says that atoms share is compared with their U."""
    extended.run("-c", PREPARE_AND_MEASURE)
    extended.program(
        "fit", "data.nxs", "model.pdb", "model=tremble/z,tremble/x,tremble/z+uncorrelated", "scale=absolute"
    )
    found = content(extended, "diffuse_fit.json")
    models = {model["model"]: model for model in found["models"]}
    assert found["best"].startswith("tremble/z") and len(models) == 3
    assert models["tremble/z"]["statistics"]["free"]["cc_anisotropic"] > 0.99
    assert models["tremble/x"]["statistics"]["free"]["cc_anisotropic"] < 0.9
    estimate = models["tremble/z"]["parameters"]["size"]
    assert abs(estimate["value"] - SIZE) < 4 * estimate["esd"] < 0.01
    (compared,) = models["tremble/z"]["displacements"]
    assert compared["model"] == "tremble"
    assert compared["u_model"] == pytest.approx(estimate["value"] ** 2 / 3)
    structure = small_molecule()
    assert compared["u_structure"] == pytest.approx(structure.u_iso.mean(), abs=1e-4)


#: the parameter model= of the programs, and one of the new model, with their help
SHOW = """
from dials_diffuse.cli import fit, model, simulate

for program in (model, simulate, fit):
    for name in ("model", "tremble.axis"):
        shown = program.phil_scope.get(name).as_str(attributes_level=2)
        assert "tremble" in shown or "Cartesian axis of the coordinate file" in shown, shown
"""


def test_a_new_model_is_in_the_help(extended):
    extended.run("-c", SHOW)


# ------------------------------------------------------------------------------------------------ another distribution


@pytest.fixture
def distribution(tmp_path):
    """Adds a distribution with a module and entry points beside a copy of the package."""
    copy = Extended(tmp_path)
    atoms = small_molecule()
    atoms.hierarchy.write_pdb_file(str(tmp_path / "model.pdb"), crystal_symmetry=atoms.crystal_symmetry)

    def add(name, module, **points):
        (tmp_path / f"{name}.py").write_text(module)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {place}" for point, place in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[dials_diffuse.models]", *lines, ""]))

    return copy, add


MODEL = ("model.pdb", "grid.subdivide=1,1,1", "d_min=3")


def test_a_model_of_another_distribution(distribution):
    copy, add = distribution
    add("trembling_crystals", TREMBLE, tremble="trembling_crystals:Tremble")
    copy.program("model", *MODEL, "model=tremble", "tremble.axis=y")
    assert content(copy, "diffuse_model.json")["model"]["axis"] == "y"


def test_faulty_models_of_other_distributions_are_left_out(distribution):
    """With a warning that names the distribution; everything else works."""
    copy, add = distribution
    add("absent", "", missing="absent:Missing")
    add("crashing", "raise RuntimeError('out of order')", crash="crashing:Crash")
    add("impostor", TREMBLE, llm="impostor:Tremble", shiver="impostor:Tremble", number="impostor:np")
    add("unclosed", TREMBLE.replace("tremble {", "tremble {{"), tremble="unclosed:Tremble")
    done = copy.program("model", *MODEL, "model=rigid_body")
    assert content(copy, "diffuse_model.json")["model"]["name"] == "rigid_body"
    said = done.stdout + done.stderr
    for text in (
        "the model missing of absent is left out: ",
        "the model crash of crashing is left out: out of order",
        "the model llm of impostor is left out: there is a model of this name already",
        "the model shiver of impostor is left out: impostor:Tremble calls itself tremble",
        "the model number of impostor is left out: impostor:np is not derived from DiffuseModel",
        "the model tremble of unclosed is left out: ",
    ):
        assert text in said
    failed = copy.program("model", *MODEL, "model=tremble", ok=False)
    assert failed.returncode == 2
