"""Stiffnesses of contacts from a map: what comes back, what of it the data say, the prior, sums, the programs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.programs import model_of
from helpers.structures import random_structure

from dials_diffuse.cli.fit import run
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.nexus import write_map
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import Candidate, fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.minimise import minimise
from dials_diffuse.fitting.penalty import PenalisedProjection, PenalisedWork, folds_of
from dials_diffuse.fitting.request import FitRequest
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.lattice_dynamics.phonons import BLOCKS, Phonons
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.prior import Prior, joined
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.report.fit_phonons import phonons
from dials_diffuse.report.section import Material

MODEL = LatticeDynamics(0.2, "contacts", stiffness="full", contact_cutoff=7.0, mesh=(4, 4, 4), solvent=False)


@pytest.fixture(scope="module")
def structure():
    found = random_structure("P 1", (9.0, 9.5, 10.0, 80.0, 95.0, 107.0), "CNOCSCNO", u=(0.15, 0.3), radius=4.0)
    return replace(found, residue=np.repeat(["   1", "   2", "   3", "   4"], 2))


@pytest.fixture(scope="module")
def ready(structure):
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 1.5)
    index = np.concatenate(list(possible_voxels(grid, friedel=True)))
    index = index[np.any(index % 3, axis=1)]
    index = index[np.sort(np.random.default_rng(0).permutation(len(index))[:4000])]
    return grid, prepare(MODEL, structure, grid, index, means=True), index


def measured(ready, truth, noise, seed=1):
    """FitData with the intensity of some stiffnesses, and noise relative to its spread."""
    grid, prepared, index = ready
    intensity = prepared.intensity(truth)
    sigma = np.full(len(index), noise * np.std(intensity))
    values = intensity + sigma * np.random.default_rng(seed).normal(size=len(index))
    return DiffuseMap(grid, True, index, values, sigma, np.full(len(index), 4))


def fitted(ready, truth, noise, structure, model=MODEL, seed=1, **options):
    data = select(measured(ready, truth, noise, seed), Selection(bragg=True))
    again = prepare(model, structure, data.grid, data.index, means=True)
    options = FitOptions(**{"scale": 1.0, "background": 0, "starts": 1, "profile": False, **options})
    return fit_models(data, [Candidate("contacts", again, np.zeros(len(again.parameters)))], options)[0]


def test_stiffnesses_come_back(ready, structure):
    """Little noise, a weak prior: truth within the errors; U of the atoms, absolute, too."""
    p = len(ready[1].parameters)
    truth = 0.35 * np.random.default_rng(0).normal(size=p)
    fit = fitted(ready, truth, 0.01, structure, strengths=(1e-6,))
    assert fit.converged and fit.means
    deviation = np.array([(e.value - t) / e.esd for e, t in zip(fit.estimates, truth)])
    assert np.mean(np.abs(deviation) < 2) > 0.9 and 0.6 < np.std(deviation) < 1.4
    assert fit.prior.n_effective > 0.9 * p
    known = Phonons(replace(MODEL, log_stiffness=tuple(truth)), structure, np.zeros((p, p)))
    for found, true in zip(fit.details[0]["contacts"], known.contacts()):
        a, b, esd = (np.array(x)[:3, :3] for x in (found["stiffness"], true["stiffness"], found["esd"]))
        assert np.abs((a - b) / esd).max() < 4
    assert fit.details[0]["displacements"]["mean"] == pytest.approx(known.displacements()["mean"], rel=0.03)


def test_shares_say_what_changes_with_the_truth(ready, structure):
    """The truth moves a little along each of some parameters; the fit moves by the share."""
    p = len(ready[1].parameters)
    options = {"strengths": (0.5,), "noise": 0.5}
    before = fitted(ready, np.zeros(p), structure=structure, **options)
    assert 0.1 * p < before.prior.n_effective < 0.9 * p
    start = np.array([e.value for e in before.estimates])
    order = np.argsort(before.prior.share)
    for i in order[[0, p // 2, -1]]:
        step = 0.02 * np.eye(p)[i]
        after = fitted(ready, step, structure=structure, **options)
        moved = after.estimates[i].value - start[i]
        assert moved / 0.02 == pytest.approx(before.prior.share[i], abs=0.05)


def test_voxels_that_are_kept_out_choose_the_strength(ready, structure):
    """Near the prior: strong; far from it with little noise: weak."""
    p = len(ready[1].parameters)
    far = fitted(ready, 0.5 * np.random.default_rng(0).normal(size=p), 0.02, structure, strengths=(1.0, 0.01, 1e-4))
    near = fitted(ready, np.zeros(p), 3.0, structure, strengths=(1.0, 0.01, 1e-4))
    assert far.prior.strength < near.prior.strength == 1.0
    assert len(far.prior.trials) == 3 and far.prior.trials[0][0] == 1.0
    assert far.criteria["n_parameters"] == round(far.prior.n_effective)
    assert any("strongest prior" in text for text in near.warnings)


def test_folds_predict_what_fits_without_them_would(ready, structure):
    """One step from the minimum of all against fits of all folds but one; a strong and a weak prior."""
    p = len(ready[1].parameters)
    truth = 0.3 * np.random.default_rng(5).normal(size=p)
    data = select(measured(ready, truth, 0.3), Selection(bragg=True, free_fraction=0.0))
    again = prepare(MODEL, structure, data.grid, data.index, means=True)
    fold = folds_of(data.block, 0)
    assert len(np.unique(fold)) == 10 and all(len(set(fold[data.block == b])) == 1 for b in np.unique(data.block))
    for scale, strength in ((1.0, 1.0), (None, 0.01)):
        rows = np.sqrt(strength) * again.prior.rows(scale is not None)
        weights = 1 / data.sigma**2
        whole = Projection(data.intensity, weights, Background(data.s, 0), scale)
        work = PenalisedWork(again)
        best = minimise(work, PenalisedProjection(whole, rows, 100.0), np.zeros(p)).values
        change = PenalisedProjection(whole, rows, 100.0).held_out(*work.jacobian(best), fold)
        own = fold == 3
        without = Projection(data.intensity, np.where(own, 1e-12 * weights, weights), Background(data.s, 0), scale)
        other = minimise(work, PenalisedProjection(without, rows, 100.0), best).values

        def fitted_values(projection, values):
            intensity = again.intensity(values)
            return projection.solve(intensity).scale * intensity

        exact = fitted_values(without, other) - fitted_values(whole, best)
        residual = data.intensity - fitted_values(whole, best)
        assert np.corrcoef(change[own], exact[own])[0, 1] > 0.97
        assert change[own] @ residual[own] < 0  # what a fit had learned from these voxels is gone


def test_steps_hold_each_other(ready, structure):
    """More numbers fit better; one number has no prior."""
    p = len(ready[1].parameters)
    truth = 0.5 * np.random.default_rng(3).normal(size=p)
    found = [
        fitted(ready, truth, 0.02, structure, replace(MODEL, stiffness=kind), strengths=(1e-5,))
        for kind in ("overall", "by_contact", "apart", "full")
    ]
    chi2 = [fit.statistics["chi2"] for fit in found]
    assert chi2[0] > chi2[1] > chi2[2] > chi2[3] and chi2[3] < 1.2
    assert found[0].prior is None and all(fit.prior is not None for fit in found[1:])


def test_penalised_derivatives(ready, structure):
    """Gradient, and Hessian at a minimum, of chi² with a prior, by differences."""
    grid, prepared, index = ready
    rng = np.random.default_rng(0)
    p = len(prepared.parameters)
    values = 0.3 * rng.normal(size=p)
    data = measured(ready, 0.3 * rng.normal(size=p), 0.1)
    s = grid.s_magnitude(index)
    projection = Projection(data.intensity, 1 / data.sigma**2, Background(s, 5), None)
    rows = rng.normal(size=(p, p))
    work, penalised = PenalisedWork(prepared), PenalisedProjection(projection, rows, 3.0)

    def objective(x):
        return penalised.objective(work.intensity(x))

    plain = projection.objective(prepared.intensity(values)) + 3.0 * np.sum((rows @ values) ** 2)
    assert objective(values) == pytest.approx(plain, rel=1e-12)
    gradient, matrix = penalised.normal(*work.jacobian(values))
    for i in (0, p // 2, p - 1):
        step = 1e-4 * np.eye(p)[i]
        assert 2 * gradient[i] == pytest.approx((objective(values + step) - objective(values - step)) / 2e-4, rel=1e-5)
    assert np.linalg.eigvalsh(matrix)[0] > 0


class _Lines:
    """Intensities that are linear in the parameters."""

    parameters, tensors = (), []

    def __init__(self, slopes):
        self.slopes = slopes

    def intensity(self, values):
        return self.slopes @ values

    def jacobian(self, values):
        return self.slopes @ values, self.slopes

    def second(self, values, weights):
        return np.zeros((len(values),) * 2)


@pytest.mark.parametrize("weight", [1.0, 11.0, 300.0])
def test_errors_hold_what_a_strong_prior_pulls(weight):
    """Random truths of spread 0.3 (a prior of 1/0.09 = 11 would be right), some of them hardly in the data."""
    rng = np.random.default_rng(0)
    n, p, draws = 300, 40, 200
    slopes = rng.normal(size=(n, p)) * np.geomspace(3.0, 0.01, p)
    work = PenalisedWork(_Lines(slopes))
    relative, spreads = [], []
    for _ in range(draws):
        truth = 0.3 * rng.normal(size=p)
        projection = Projection(slopes @ truth + rng.normal(size=n), np.ones(n), Background(np.ones(n), 0), 1.0)
        penalised = PenalisedProjection(projection, np.eye(p), weight)
        gradient, matrix = penalised.normal(*work.jacobian(np.zeros(p)))
        values = -np.linalg.solve(matrix, gradient)
        covariance = np.linalg.inv(penalised.hessian(*work.jacobian(values), lambda w: np.zeros((p, p))))
        more, spread = penalised.left_open(values, covariance, 1.0)
        spreads.append(spread)
        relative.append((values - truth) / np.sqrt(np.diag(covariance + more)))
    assert np.median(spreads) == pytest.approx(0.3, rel=0.1)
    assert np.mean(np.abs(relative) < 2) > 0.93
    if weight > 1:
        assert np.std(relative) == pytest.approx(1.0, abs=0.12)


def test_priors_leave_the_common_level_to_a_known_scale():
    prior = Prior(np.array([6.0, 3.0, 3.0, 1.0]), np.array([[1.0, 1.0, 1.0, 0.0]]))
    values = np.array([0.3, -0.2, 0.5, 0.7])
    assert np.sum((prior.rows(False) @ values) ** 2) == pytest.approx(values**2 @ prior.metric)
    level = (prior.metric * [1, 1, 1, 0]) @ values / 12
    left = values - level * prior.level[0]
    assert np.sum((prior.rows(True) @ values) ** 2) == pytest.approx(left**2 @ prior.metric)
    both = joined([None, prior, None], [2, 4, 1])
    assert both.metric.tolist() == [0, 0, 6, 3, 3, 1, 0] and both.level.tolist() == [[0, 0, 1, 1, 1, 0, 0]]
    assert joined([None, None], [1, 2]) is None and both.n_held == 4


@pytest.mark.parametrize(
    "other, true, start",
    [
        (RigidBody(0.15), [0.15], [0.1]),
        (Covariance(sigma=0.2, gamma=3.0), [0.2, 3.0], [0.15, 2.0]),
        (Covariance(sigma=0.2, gamma=3.0, groups="residue"), [0.2, 3.0], [0.15, 2.0]),
    ],
    ids=["bodies", "covariance", "residues"],
)
def test_sums(ready, structure, other, true, start):
    """Beside bodies or atoms that move by themselves: both come back, the prior holds the stiffnesses only."""
    grid, _, index = ready
    model = replace(MODEL, stiffness="by_contact")
    contacts, internal = (prepare(m, structure, grid, index, means=True) for m in (model, other))
    p, free = len(contacts.parameters), len(true)
    truth = 0.4 * np.random.default_rng(0).normal(size=p)
    intensity = contacts.intensity(truth) + internal.intensity(true)
    sigma = np.full(len(index), 0.02 * np.std(intensity))
    noise = np.random.default_rng(1).normal(size=len(index))
    data = select(
        DiffuseMap(grid, True, index, intensity + sigma * noise, sigma, np.full(len(index), 4)), Selection(bragg=True)
    )
    parts = [prepare(m, structure, data.grid, data.index, True) for m in (model, other)]
    both = PreparedSum(parts, ["lattice_dynamics", other.name], structure)
    assert both.means and both.prior.metric[p:].tolist() == [0] * free and both.prior.n_held == p
    options = FitOptions(scale=1.0, background=0, starts=1, profile=False, strengths=(1e-6,))
    (fit,) = fit_models(data, [Candidate("both", both, np.array([*np.zeros(p), *start]))], options)
    assert fit.converged
    assert max(abs(e.value - t) / e.esd for e, t in zip(fit.estimates, [*truth, *true])) < 4
    np.testing.assert_allclose(fit.prior.share[p:], 1.0, atol=1e-6)
    assert set(fit.details[1]) == ({"groups", "correlations"} if other.name == "covariance" else set())


def test_details(ready, structure):
    """Sound, dispersion, correlations: against the matrices themselves; errors by differences."""
    p = len(ready[1].parameters)
    values = 0.3 * np.random.default_rng(0).normal(size=p)
    model = replace(MODEL, log_stiffness=tuple(values))
    covariance = np.zeros((p, p))
    covariance[3, 3] = 1e-4
    record = Phonons(model, structure, covariance, np.linspace(0, 1, p)).record()
    assert json.dumps(record)
    step = 1e-3 * np.eye(p)[3]
    shifted = (replace(model, log_stiffness=tuple(x)) for x in (values + step, values - step))
    up, down = (Phonons(other, structure, covariance).record() for other in shifted)
    for a, b, c in zip(up["contacts"], down["contacts"], record["contacts"]):
        slope = np.abs(np.array(a["stiffness"]) - b["stiffness"]) / 2e-3
        np.testing.assert_allclose(c["esd"], 1e-2 * slope, atol=1e-6 * np.abs(c["stiffness"]).max())
        assert set(c["share"]) == {name for name, *_ in BLOCKS} and 0 <= c["share"]["TT"] <= 1
        assert -1 < c["correlation"] < 1 and np.linalg.eigvalsh(c["stiffness"])[0] > 0
    for a, b, c in zip(up["dispersion"], down["dispersion"], record["dispersion"]):
        slope = np.abs(np.array(a["frequency"]) - b["frequency"]) / 2e-3
        np.testing.assert_allclose(c["esd"], 1e-2 * slope, rtol=1e-3, atol=1e-6)
        assert np.all(np.diff(c["frequency"], axis=1) >= 0)
        ratio = np.array(c["frequency"])[1, :3] / np.array(c["frequency"])[0, :3]
        np.testing.assert_allclose(ratio, 5.0, rtol=0.05)  # sound: as the length of the wave
    slope = (up["displacements"]["mean"] - down["displacements"]["mean"]) / 2e-3
    assert record["displacements"]["esd"] == pytest.approx(1e-2 * abs(slope), rel=1e-3)
    shared = model.shared_displacements(structure)
    assert record["displacements"]["mean"] == pytest.approx(np.trace(shared, axis1=1, axis2=2).mean() / 3, rel=1e-8)


def test_words_and_refusals():
    arguments = ["model=lattice_dynamics", "lattice_dynamics.springs=contacts", "lattice_dynamics.stiffness=apart"]
    more = ["lattice_dynamics.contacts.cutoff=4", "lattice_dynamics.contacts.log_stiffness=0.1,-0.2"]
    model = model_of(*arguments, *more)
    assert model == LatticeDynamics(0.3, "contacts", stiffness="apart", contact_cutoff=4.0, log_stiffness=(0.1, -0.2))
    with pytest.raises(DiffuseError, match="springs=gaussian are all of one stiffness"):
        LatticeDynamics(0.3, stiffness="full")
    with pytest.raises(DiffuseError, match="stiffness=rubber: choose from overall, by_contact, apart, full"):
        LatticeDynamics(0.3, "contacts", stiffness="rubber")
    with pytest.raises(CommandLineError, match=r"prior.strength=None"):
        FitOptions(strengths=())
    assert FitRequest.of(model).name == "lattice_dynamics"


def test_wrong_numbers_of_stiffnesses_and_lonely_bodies_are_refused(structure):
    with pytest.raises(DiffuseError, match=r"log_stiffness: has 2 values; stiffness=by_contact of \d+ contacts needs"):
        replace(MODEL, stiffness="by_contact", log_stiffness=(0.1, 0.2)).intensity_at(structure, [[0.1, 0.2, 0.3]])
    with pytest.raises(DiffuseError, match=r"contacts.cutoff=0.5: no two bodies are that near"):
        replace(MODEL, contact_cutoff=0.5).intensity_at(structure, [[0.1, 0.2, 0.3]])


def test_program(tmp_path, monkeypatch, structure):
    """Words of model=, the log's table, the JSON file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pdb").write_text(structure.hierarchy.as_pdb_string(structure.crystal_symmetry))
    truth = replace(MODEL, stiffness="by_contact", log_stiffness=())
    n = len(truth.parameters(structure))
    truth = replace(truth, log_stiffness=tuple(0.4 * np.random.default_rng(0).normal(size=n)))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 1.8)
    computed = model_map(truth, structure, grid, means=True)
    assert not computed.at_centres
    sigma = np.full(len(computed.index), 0.05 * np.std(computed.intensity))
    values = computed.intensity + sigma * np.random.default_rng(1).normal(size=len(sigma))
    data = replace(computed, intensity=values, sigma=sigma, multiplicity=np.full(len(sigma), 4))
    write_map("map.nxs", data, PROVENANCE)
    scope = [f"lattice_dynamics.{x}" for x in ("sigma=0.2", "contacts.cutoff=7", "mesh=4,4,4", "solvent=False")]
    words = "lattice_dynamics/contacts,lattice_dynamics/contacts/by_contact"
    run(["map.nxs", "model.pdb", f"model={words}", "scale=absolute", "prior.strength=0.01,0.0001", "starts=1", *scope])
    record = json.loads((tmp_path / "diffuse_fit.json").read_text())
    overall, each = record["models"]
    assert "prior" not in overall and overall["voxels"] == each["voxels"] == "mean"
    assert record["best"] == each["model"] and set(each["prior"]["share"]) == set(each["parameters"])
    contacts = each["details"][0]["contacts"]
    assert len(contacts) == n and contacts[0]["residues"][0]
    for i, value in enumerate(truth.log_stiffness):
        found = each["parameters"][f"log_{i + 1}"]
        assert abs(found["value"] - value) < 4 * found["esd"] + 0.03
    log = (tmp_path / "dials.diffuse_fit.log").read_text()
    assert "t kT/Å²" in log and "Sound along a*" in log and "parameters come from the data" in log
    assert all(0 < trial["held_out"] <= trial["work"] + 1e-6 for trial in each["prior"]["trials"])
    with np.load("diffuse_fit_phonons.npz", allow_pickle=False) as arrays:
        assert arrays["models"].tolist() == [model["model"] for model in record["models"]]
        np.testing.assert_array_equal(arrays["1_stiffness"], [contact["stiffness"] for contact in contacts])
        assert arrays["1_frequency"].shape == arrays["1_frequency_esd"].shape == (3, len(arrays["1_wave"]), 6)
        assert arrays["1_parameters"].tolist() == list(each["parameters"]) and arrays["1_covariance"].shape == (n, n)
        np.testing.assert_array_equal(arrays["1_u"], each["details"][0]["displacements"]["u"])
    _, second = phonons(Material(record))
    dispersion, displacements = second.plots
    band, curve = dispersion.traces
    frequency = np.array(each["details"][0]["dispersion"][0]["frequency"])
    assert curve["y"][: len(frequency)] == frequency[:, 0].tolist()  # the lowest branch along a*
    assert band["y"][0] > curve["y"][0] > band["y"][2 * len(frequency) - 1]  # its band is around it
    assert displacements.traces[1]["y"] == each["details"][0]["displacements"]["u"]
    (table,) = second.tables
    assert len(table.rows) == n and all(len(row) == len(table.heads) for row in table.rows)
    assert contacts[0]["residues"][0][0] in table.rows[0][-2]
    assert "Phonons of lattice_dynamics/contacts/by_contact" in (tmp_path / "diffuse_fit.html").read_text()
