"""Golden numbers of a small data set: the same on every computer within rounding, bit for bit however it is divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.builders import merge
from helpers.datasets import SIZE, import_images, write_experiments, write_images
from helpers.jobs import job_of, rows_of

from dials_diffuse.cli import integrate
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.observations import OBSERVATION_DTYPE, ObservationFile

#: sums over all observations of a column; integers are exact
GOLDEN = {
    "index": 831,
    "entering": 388,
    "pixels": 54336,
    "counts": 1141259,
    "norm": 125928.9690127781,
    "background": 0,
    "rate": 493073.70528562076,
    "rate_variance": 213310.76653487416,
    "counts_odd": 570617,
    "xyz": 69865.90200144053,
    "s": 125.5988176483661,
}

#: of the merged map: voxels, their multiplicities, Σ I and Σ I²
MERGED = (481, 773, 4423.080447454644, 40899.23200905042)


def images() -> list:
    """Eight images from integers alone: generators of random numbers may change with versions of numpy."""
    y, x = np.indices(SIZE[::-1])
    return [((31 * x + 17 * y + 13 * i + (x * y) % 7) % 23 + 10).astype(np.int32) for i in range(8)]


def observations(folder: Path, nproc: int) -> dict:
    path = folder / f"{nproc}.h5"
    words = ["data.expt", "d_min=4", "grid.subdivide=2,2,2", f"nproc={nproc}", "output.log=None", "output.json=None"]
    integrate.run([*words, f"output.observations={path}"])
    with ObservationFile(path) as file:
        return file.read(*OBSERVATION_DTYPE.names)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_experiments("data.expt", import_images(write_images(".", "data_", images()), "data"))
        return folder, {nproc: observations(folder, nproc) for nproc in (1, 2)}


def test_any_number_of_processes(data):
    _, found = data
    for name in OBSERVATION_DTYPE.names:
        np.testing.assert_array_equal(found[1][name], found[2][name], name)


@pytest.mark.parametrize("number", [1, 3, 8])
def test_any_number_of_images_at_a_time(data, number):
    """Sums of integers bit for bit, sums of floats within their rounding, as passes are joined in another order."""
    folder, _ = data
    experiments = load_input([str(folder / "data.expt")]).experiments
    usual, other = (
        rows_of(job_of(experiments, d_min=4.0, subdivide=(2, 2, 2), images_per_block=n)) for n in (None, number)
    )
    assert len(usual) == len(other) == MERGED[1]
    usual, other = (rows[np.lexsort((*rows["xyz"].T, rows["entering"], *rows["index"].T))] for rows in (usual, other))
    for name in OBSERVATION_DTYPE.names:
        if name in ("norm", "norm_odd", "rate", "rate_odd", "rate_variance"):
            np.testing.assert_allclose(other[name], usual[name], rtol=1e-14, atol=0, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], usual[name], name)


def test_sums_of_observations(data):
    _, found = data
    rows = found[1]
    for name, value in GOLDEN.items():
        total = np.sum(rows[name], dtype=np.float64)
        rounding = 1e-6 if rows[name].dtype == np.float32 else 1e-9
        assert total == (value if isinstance(value, int) else pytest.approx(value, rel=rounding)), name


def test_merged_map(data):
    """Bit for bit whatever the number of rows that are read together."""
    folder, _ = data
    whole = merge(folder / "1.h5", block=10**6).map
    for rows in (37, 700):
        part = merge(folder / "1.h5", block=rows).map
        for name in ("index", "intensity", "sigma", "multiplicity", "half_a", "half_b"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(part, name), f"{name}, {rows}")
    n, multiplicity, total, squares = MERGED
    assert (len(whole.intensity), int(whole.multiplicity.sum())) == (n, multiplicity)
    assert np.sum(whole.intensity) == pytest.approx(total, rel=1e-9)
    assert np.sum(whole.intensity**2) == pytest.approx(squares, rel=1e-9)
