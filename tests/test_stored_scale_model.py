"""The scale model of a coarse run serves a fine grid: the same factors, nothing refined again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.two_crystals import EXPERIMENTS, GRID, SIZE, SMALL, TURN, make_rows, true_a, true_b, write

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.files.record import read_json, write_json
from dials_diffuse.scaling.record import scaling_record
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters


def rows_of(seed, grid=GRID):
    return make_rows(np.random.default_rng(seed), copies=1, grid=grid, c=False, d=False)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """Folder with in.h5, out.h5 and out.json, and the result."""
    folder = tmp_path_factory.mktemp("coarse")
    path = write(folder / "in.h5", rows_of(3))
    parameters = ScalingParameters(**{**SMALL, "terms": ("a", "b")})
    result = scale_observations([path], parameters, folder / "out.h5", PROVENANCE, 1)
    write_json(folder / "out.json", {"schema": "dials.diffuse_scale/1", **scaling_record(result)})
    return folder, result


def applied(folder, rows, tmp_path, grid=GRID, **options):
    path = write(tmp_path / "fine.h5", rows, grid=grid)
    parameters = ScalingParameters(model_from=str(folder / "out.json"), **options)
    return scale_observations([path], parameters, tmp_path / "fine_scaled.h5", PROVENANCE, 1)


def columns(path):
    with ObservationFile(path) as file:
        return file.read("index", "experiment", "norm", "background", "background_variance", "xyz", "counts")


def test_the_same_observations_get_the_same_factors(coarse, tmp_path):
    folder, result = coarse
    again = applied(folder, rows_of(3), tmp_path)
    first, second = columns(folder / "out.h5"), columns(tmp_path / "fine_scaled.h5")
    keys = [np.column_stack([c["index"], c["experiment"], c["counts"]]) for c in (first, second)]
    _, a, b = np.intersect1d(*(k.view([("", k.dtype)] * k.shape[1]).ravel() for k in keys), return_indices=True)
    assert len(a) > 0.999 * len(first["norm"])
    np.testing.assert_allclose(second["norm"][b], first["norm"][a], rtol=1e-9)
    np.testing.assert_allclose(second["background"][b], first["background"][a], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(second["background_variance"][b], first["background_variance"][a], rtol=1e-4)
    assert again.refinement.model.terms == result.refinement.model.terms
    # the record of what was applied is that of what was refined: a third run could take it from here
    model, other = (scaling_record(r)["model"] for r in (result, again))
    for key in model:
        np.testing.assert_equal(np.array(other[key], dtype=object), np.array(model[key], dtype=object))
    # errors belong to the grid and are found anew; here from the same data
    np.testing.assert_allclose(again.refinement.errors.spread, result.refinement.errors.spread, rtol=0.05)


def test_a_fine_grid_gets_the_factors_of_the_coarse_one(coarse, tmp_path):
    folder, _ = coarse
    fine = replace(GRID, subdivide=(2, 2, 2))
    rows = rows_of(5, fine)
    rows = rows[np.random.default_rng(0).random(len(rows)) < 0.15]  # too few mates to refine anything
    applied(folder, rows, tmp_path, fine)
    found = columns(tmp_path / "fine_scaled.h5")
    with ObservationFile(tmp_path / "fine_scaled.h5") as file:
        assert file.grid == fine and file.scaled
    known = {
        tuple(index) + (e,): norm for index, e, norm in zip(rows["index"].tolist(), rows["experiment"], rows["norm"])
    }
    before = np.array([known[tuple(i) + (e,)] for i, e in zip(found["index"].tolist(), found["experiment"])])
    x, y, t = (found["xyz"] / [*SIZE, TURN]).T
    true = true_a(found["experiment"], t, x, y) * true_b(found["experiment"], t)
    ratio = found["norm"] / before / true
    assert np.std(ratio) / np.mean(ratio) < 0.02 < 0.3 < np.std(true) / np.mean(true)


def test_other_sweeps_and_other_files_are_refused(coarse, tmp_path):
    folder, _ = coarse
    rows = rows_of(3)
    mine = rows[rows["experiment"] == 0]
    path = write(tmp_path / "one.h5", mine, EXPERIMENTS[:1])

    def refused(file, message, text=None):
        if text is not None:
            file.write_text(json.dumps(text), encoding="utf-8")
        with pytest.raises(DiffuseError, match=message):
            scale_observations([path], ScalingParameters(model_from=str(file)), tmp_path / "b.h5", PROVENANCE)
        assert not (tmp_path / "b.h5").exists()

    refused(folder / "out.json", "of 2 sweeps .id-0, id-1., and these are 1 .id-0.; scale the same sweeps")
    refused(tmp_path / "none.json", "cannot be read")
    refused(tmp_path / "c.json", "holds no scale model; give the JSON file", {"schema": "dials.diffuse_merge/1"})
    record = read_json(folder / "out.json")
    record["sweeps"] = record["sweeps"][:1]
    refused(tmp_path / "d.json", "damaged .*run dials.diffuse_scale again", record)
    both = read_json(folder / "out.json")
    both["model"]["s_range"] = [0.2, 0.25]
    (tmp_path / "e.json").write_text(json.dumps(both), encoding="utf-8")
    path = folder / "in.h5"
    refused(tmp_path / "e.json", "damaged|integrate both grids with the same d_min")
