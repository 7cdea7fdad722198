"""Several rigid bodies, and bodies that rotate: TLS."""

from __future__ import annotations

import io
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.pair_sums import V, at, close, per_copy, some_voxels, vectors
from helpers.programs import model_of
from helpers.structures import GROUP_NAMES, GROUPS, random_structure
from mmtbx.tls import tools as tls_tools
from scitbx.array_family import flex

from dials_diffuse.cli.model import run
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.tensors import symmetric_tensor
from dials_diffuse.structure.tls import TlsGroup, load_tls
from dials_diffuse.structure.transform import direct_transform

ELEMENTS = "CNOCSCNO"
RESIDUES = np.array(["   1 ", "   1 ", "   1 ", "   2 ", "   2 ", "   7 ", "   7 ", "   8 "])
CHAINS = np.array(["A", "A", "A", "A", "A", "A", "B", "B"])
LABELS = {
    "residue": [0, 0, 0, 1, 1, 2, 3, 4],
    "segment": [0, 0, 0, 0, 0, 1, 2, 2],
    "chain": [0, 0, 0, 0, 0, 0, 1, 1],
    "selection": [0, 0, 0, 0, 0, 1, 1, 1],
}


def molecule(symbol="P 1 21 1", cell=(14.0, 13.0, 15.0, 90, 103, 90), **arguments):
    structure = random_structure(symbol, cell, elements=ELEMENTS, u=(0.15, 0.3), radius=3.5, **arguments)
    return replace(structure, residue=RESIDUES, chain=CHAINS)


def six(m) -> tuple:
    """Elements 11, 22, 33, 12, 13, 23 of a matrix."""
    return tuple(m[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]])


def group(selection="all", origin=(1.0, 2.0, 3.0), seed=0, size=1.0) -> TlsGroup:
    """A random body: translations of 0.2 Å, librations of about 2 degrees, and screws."""
    root = np.random.default_rng(seed).normal(size=(6, 6)) / math.sqrt(6)
    scale = size * np.repeat([0.2, 2.0], 3)
    joint = (root @ root.T) * np.outer(scale, scale)
    six = [
        tuple(m[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)))
        for m in (joint[:3, :3], joint[3:, 3:])
    ]
    return TlsGroup(six[0], six[1], tuple(joint[3:, :3].reshape(-1)), origin, selection)


def cctbx_tls(one: TlsGroup):
    return tls_tools.tlso(t=one.T, l=one.L, s=one.S, origin=one.origin)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("body", list(LABELS))
def test_parts_of_the_molecule(body, soft):
    """Each part of each copy by itself, with V turned by the operator."""
    structure = molecule(anisotropic=True)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 1.8)
    labels = np.array(LABELS[body])
    together = labels[:, None] == labels

    def covariance(copy, rotation):
        values = together[:, :, None, None] * (rotation @ symmetric_tensor(V) @ rotation.T)
        if soft:
            values[np.arange(8), np.arange(8)] = copy.u_cart
        return values

    selections = ("resseq 1:2", "not resseq 1:2") if body == "selection" else ()
    model = RigidBody(V=V, body=body, selections=selections, soft=soft)
    index = some_voxels(grid)
    expected = per_copy(structure, vectors(structure, grid, index), covariance)
    close(at(model.intensity(structure, grid), grid, index), expected, 1e-3)
    if not soft:
        close(model.intensity_at(structure, vectors(structure, grid, index)), expected, 1e-9)
    whole = RigidBody(V=V).correlation_length(structure)
    assert 5 <= model.correlation_length(structure) < whole


# ---------------------------------------------------------------------------------------------------------------- TLS


def test_displacements_by_tls_are_those_of_cctbx():
    structure = molecule()
    one = group()
    motion = RigidBody(body="tls", tls=(one,)).motion(structure)
    sites = flex.vec3_double(structure.site_cart.tolist())
    expected = tls_tools.uaniso_from_tls_one_group(cctbx_tls(one), sites, False)
    np.testing.assert_allclose(motion.shared, [symmetric_tensor(u) for u in expected], atol=1e-9)


def test_random_motions_of_a_body_have_this_intensity():
    """<|F|²> - |<F>|² over random translations and small rotations, within five standard errors."""
    structure = random_structure(unit_cell=(14.0, 13.0, 15.0, 90, 90, 90), elements="CNOCS", radius=3.5)
    one = group(size=1.5)
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 2.5)
    index = some_voxels(grid, 8)
    q = 2 * np.pi * vectors(structure, grid, index)
    draws = np.random.default_rng(1).multivariate_normal(np.zeros(6), one.covariance, 100_000)
    arm = structure.site_cart - np.array(one.origin)
    moved = draws[:, None, :3] + np.cross(draws[:, None, 3:], arm[None])
    still = random_structure(unit_cell=structure.unit_cell, elements="CNOCS", radius=3.5, u=(0.0, 0.0))
    f = np.array([direct(still, i, q) for i in range(5)])
    amplitude = np.einsum("nk,dnk->dk", f, np.exp(1j * np.einsum("dnx,kx->dnk", moved, q)))
    squares = np.abs(amplitude - amplitude.mean(axis=0)) ** 2
    error = squares.std(axis=0) / math.sqrt(len(draws))
    values = at(RigidBody(body="tls", tls=(one,)).intensity(structure, grid), grid, index)
    assert np.all(np.abs(values - squares.mean(axis=0)) < 5 * error + 1e-4 * values.mean())
    assert np.all(error < 0.02 * values.mean())


def direct(structure, i, q):
    return direct_transform(structure.take([i]), q @ structure.orthogonalization / (2 * np.pi))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_tls_groups_are_a_pair_sum(symbol, cell, soft):
    """V_ij = T + A_i L A_jᵀ + A_i S + Sᵀ A_jᵀ inside a group, 0 between groups, turned with each copy."""
    structure = molecule(symbol, cell)
    groups = (group("resseq 1:2"), group("chain B", (0.0, 1.0, 2.0), seed=1))
    members = [np.array(LABELS["segment"]) == 0, CHAINS == "B"]
    blocks = np.zeros((8, 8, 3, 3))
    for one, mine in zip(groups, members):
        t, l = symmetric_tensor(one.T), np.radians(np.radians(symmetric_tensor(one.L)))
        s = np.radians(np.reshape(one.S, (3, 3)))
        for i in np.flatnonzero(mine):
            for j in np.flatnonzero(mine):
                a, b = (
                    np.array([[0, z, -y], [-z, 0, x], [y, -x, 0]])
                    for x, y, z in (structure.site_cart[k] - np.array(one.origin) for k in (i, j))
                )
                blocks[i, j] = t + a @ l @ b.T + a @ s + s.T @ b.T

    def covariance(copy, rotation):
        values = rotation @ blocks @ rotation.T
        if soft:
            values[np.arange(8), np.arange(8)] = copy.u_cart
        return values

    grid = MapGrid(cell, structure.hall_symbol, (2, 2, 2), 1.8)
    index = some_voxels(grid)
    expected = per_copy(structure, vectors(structure, grid, index), covariance)
    model = RigidBody(body="tls", tls=groups, soft=soft)
    close(at(model.intensity(structure, grid), grid, index), expected, 1e-4)
    s = vectors(structure, grid, index[:15])
    close(model.intensity_at(structure, s), expected[:15], 1e-5)


def test_tls_without_rotation_is_a_translation():
    structure = molecule()
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.0)
    still = TlsGroup(T=V, L=(0.0,) * 6)
    expected = RigidBody(V=V).intensity(structure, grid)
    known = np.isfinite(expected)
    close(RigidBody(body="tls", tls=(still,)).intensity(structure, grid)[known], expected[known], 1e-3)


def test_moving_the_origin_and_the_matrices_with_it_changes_nothing():
    """u = t + w x (r - a) = t' + w x (r - b) with t' = t + w x (b - a)."""
    structure = molecule()
    one = group()
    step = np.array([2.0, -1.0, 3.0])
    x, y, z = step
    move = np.eye(6)
    move[:3, 3:] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
    joint = move @ one.covariance @ move.T
    degrees = np.degrees(joint[3:, :3]), np.degrees(np.degrees(joint[3:, 3:]))
    six = [
        tuple(m[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))) for m in (joint[:3, :3], degrees[1])
    ]
    other = TlsGroup(six[0], six[1], tuple(degrees[0].reshape(-1)), tuple(np.array(one.origin) + step))
    i, j = np.divmod(np.arange(64), 8)
    motions = [RigidBody(body="tls", tls=(g,)).motion(structure) for g in (one, other)]
    np.testing.assert_allclose(motions[0].between(i, j), motions[1].between(i, j), atol=1e-12)


def write_pdb_with_tls(path, structure, groups):
    header = io.StringIO()
    tls_tools.remark_3_tls([cctbx_tls(g) for g in groups], [g.selection for g in groups], out=header)
    text = structure.hierarchy.as_pdb_string(crystal_symmetry=structure.crystal_symmetry)
    program = "REMARK   3   PROGRAM     : PHENIX (phenix.refine: 1.8)\n"
    Path(path).write_text("REMARK   3\nREMARK   3 REFINEMENT.\n" + program + header.getvalue() + text)


def test_tls_groups_of_a_file(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    structure = molecule()
    groups = (group("chain A"), group("chain B", (0.0, 1.0, 2.0), seed=1))
    write_pdb_with_tls("model.pdb", structure, groups)
    found = load_tls("model.pdb")
    assert not caplog.records
    for one, other in zip(found, groups):
        for name in ("T", "L", "S", "origin"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3)
    run(["model.pdb", "model=rigid_body", "rigid_body.body=tls", "d_min=3", "output.png=None"])
    result = read_map("diffuse_model.nxs")
    expected = model_map(RigidBody(body="tls", tls=groups), load_structure("model.pdb"), result.grid)
    close(result.intensity, expected.intensity, 1e-2)  # the header has four decimals
    wrong = replace(groups[0], S=(0.0,) * 9, T=(0.1,) * 3 + (0.0,) * 3)
    object.__setattr__(wrong, "T", (0.1, 0.1, -0.05, 0.0, 0.0, 0.0))
    write_pdb_with_tls("wrong.pdb", structure, (wrong,))
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        nearest = load_tls("wrong.pdb")[0]
    assert "is no covariance" in caplog.text and nearest.T[2] == pytest.approx(0, abs=0.02)


def test_bodies_from_phil(tmp_path):
    scope = "rigid_body.selection=chain A", "rigid_body.selection=chain B"
    model = model_of("model=rigid_body", "rigid_body.body=selection", *scope)
    assert model == RigidBody(sigma=0.3, body="selection", selections=("chain A", "chain B"))
    tls = "model=rigid_body", "rigid_body.body=tls"
    model = model_of(*tls, "rigid_body.tls.L=1,2,3,0,0,0", "rigid_body.tls.origin=1,2,3")
    assert model.tls == (TlsGroup((0.0,) * 6, (1.0, 2.0, 3.0, 0.0, 0.0, 0.0), (0.0,) * 9, (1.0, 2.0, 3.0)),)
    structure = molecule()
    structure.hierarchy.write_pdb_file(str(tmp_path / "m.pdb"), crystal_symmetry=structure.crystal_symmetry)
    model = model_of(*tls, "rigid_body.tls.L=1,2,3,0,0,0", coordinates=tmp_path / "m.pdb")
    assert model.tls[0].origin == pytest.approx(structure.site_cart.mean(axis=0), abs=1e-3)
    with pytest.raises(DiffuseError, match="has no TLS groups"):
        model_of(*tls, coordinates=tmp_path / "m.pdb")
    with pytest.raises(CommandLineError, match="say body=tls"):
        model_of("model=rigid_body", "rigid_body.tls.L=1,2,3,0,0,0")
    with pytest.raises(CommandLineError, match="leave one of them out"):
        model_of(*tls, "rigid_body.tls.L=1,2,3,0,0,0", "rigid_body.tls.file=x.pdb")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: RigidBody(body="tls"), "body=tls and TLS groups need each other"),
        (lambda: RigidBody(sigma=0.1, tls=(group(),)), "body=tls and TLS groups need each other"),
        (lambda: RigidBody(sigma=0.1, body="tls", tls=(group(),)), "leave out rigid_body.sigma"),
        (lambda: RigidBody(body="tls", tls=(group(),), selections=("all",)), "leave out rigid_body.sigma"),
        (lambda: TlsGroup((0.1,) * 3, (0.0,) * 6), "tls.T=.*6 numbers"),
        (lambda: TlsGroup((0.1, 0.1, -0.1, 0, 0, 0), (0.0,) * 6), "no covariance"),
        (lambda: TlsGroup((0.0,) * 6, (1.0, 1.0, 1.0, 0, 0, 0), (1.0,) * 9), "no covariance"),
        (lambda: RigidBody(body="tls", tls=(group("chain X"),)).motion(molecule()), "'chain X' holds no atoms"),
        (lambda: RigidBody(body="tls", tls=(group(), group("chain A"))).motion(molecule()), "'chain A' shares atoms"),
    ],
)
def test_bad_bodies_are_refused(make, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        make()


def test_atoms_in_no_group():
    """They stand still, or move by themselves if atoms are soft."""
    structure = molecule()
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 3.0)
    alone = RigidBody(body="tls", tls=(group("chain B"),))
    part = structure.take(CHAINS == "B")
    expected = RigidBody(body="tls", tls=(group(),)).intensity(part, grid)
    known = np.isfinite(expected)
    close(alone.intensity(structure, grid)[known], expected[known], 1e-6)
    soft = replace(alone, soft=True).intensity(structure, grid) - replace(alone, soft=True).intensity(part, grid)
    others = Uncorrelated().intensity(structure.take(CHAINS != "B"), grid)
    close(soft[known], others[known], 1e-5)
