"""Where on the detector and on which images an observation file has its pixels, and how they compare with others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dials_diffuse.files.observations import CHUNK, ObservationFile

#: bins along the longer edge of a panel, and shells of |s| of equal width
_BINS, _SHELLS = 48, 200

#: rows that are read: of larger files evenly spaced blocks
_ROWS = 20_000_000

_COLUMNS = ("experiment", "panel", "xyz", "s", "pixels", "counts", "background", "norm")


def overview(path) -> dict:
    """Pixels by place on the detector and by image, and their rate against that of all pixels at the same |s|.

    Parameters
    ----------
    path : of an observation file

    Returns
    -------
    dict : ``share`` of the rows that were looked at; ``panels`` [{panel, bin (pixels along an edge), pixels, ratio}],
        matrices with one row for each step along the slow axis, ``ratio`` NaN where there is no pixel; ``sweeps``
        [{first (number of the image), images (in a step), pixels, ratio}], one number for each step

    Raises
    ------
    DiffuseError
        If the file cannot be read.
    """
    with ObservationFile(path) as data:
        blocks = list(_blocks(data.n_rows))
        highest = 1.001 / data.grid.d_min
        profile = np.zeros((_SHELLS, 2))
        for start, stop in blocks:
            rows = data.read("s", "counts", "background", "norm", start=start, stop=stop)
            shell = _shell(rows["s"], highest)
            for k, values in enumerate((rows["counts"] - rows["background"], rows["norm"])):
                profile[:, k] += np.bincount(shell, values, _SHELLS)
        level = np.divide(profile[:, 0], profile[:, 1], out=np.zeros(_SHELLS), where=profile[:, 1] > 0)
        panels = [_Sums(*_panel_bins(e.image_size)) for e in data.experiments[:1] for _ in range(e.n_panels)]
        sweeps = [_Sums(*_image_bins(e.image_range)) for e in data.experiments]
        for start, stop in blocks:
            rows = data.read(*_COLUMNS, start=start, stop=stop)
            expected = np.maximum(level, 0)[_shell(rows["s"], highest)] * rows["norm"]
            values = np.stack([rows["pixels"], rows["counts"] - rows["background"], expected], axis=1)
            for number, sums in enumerate(panels):
                mine = rows["panel"] == number
                x, y = (rows["xyz"][mine, k] / sums.step for k in (0, 1))
                sums.add((y, x), values[mine])
            for number, (sums, experiment) in enumerate(zip(sweeps, data.experiments)):
                mine = rows["experiment"] == number
                start_angle, width = experiment.oscillation
                sums.add((((rows["xyz"][mine, 2] - start_angle) / width) / sums.step,), values[mine])
        share = sum(stop - start for start, stop in blocks) / max(data.n_rows, 1)
        return {
            "share": share,
            "panels": [{"panel": i, "bin": sums.step, **sums.record()} for i, sums in enumerate(panels)],
            "sweeps": [
                {"first": e.image_range[0], "images": sums.step, **sums.record()}
                for e, sums in zip(data.experiments, sweeps)
            ],
        }


def _blocks(n_rows: int) -> Iterator[tuple]:
    """(first, last) rows of the blocks that are read."""
    size = 16 * CHUNK
    every = max(1, -(-n_rows // _ROWS))
    for start in range(0, n_rows, size * every):
        yield start, min(start + size, n_rows)


def _shell(s: np.ndarray, highest: float) -> np.ndarray:
    return np.clip((s / highest * _SHELLS).astype(int), 0, _SHELLS - 1)


def _panel_bins(size) -> tuple:
    fast, slow = (max(int(n), 1) for n in size)
    step = max(1, -(-max(fast, slow) // _BINS))
    return step, (-(-slow // step), -(-fast // step))


def _image_bins(image_range) -> tuple:
    n = image_range[1] - image_range[0] + 1
    step = max(1, -(-n // 400))
    return step, (-(-n // step),)


class _Sums:
    """Sums over bins of pixels, of what was measured, and of what is expected."""

    def __init__(self, step: int, shape: tuple):
        self.step, self.shape = step, shape
        self.total = np.zeros((int(np.prod(shape)), 3))

    def add(self, positions, values: np.ndarray) -> None:
        """positions : one array of bins, which need not be whole, for each axis; values : (n, 3)"""
        bins = [np.clip(np.floor(p).astype(int), 0, n - 1) for p, n in zip(positions, self.shape)]
        place = np.ravel_multi_index(bins, self.shape)
        for k in range(3):
            self.total[:, k] += np.bincount(place, values[:, k], len(self.total))

    def record(self) -> dict:
        pixels, measured, expected = self.total.T
        ratio = np.divide(measured, expected, out=np.full(len(pixels), np.nan), where=expected > 0)
        return {"pixels": np.round(pixels, 1).reshape(self.shape), "ratio": np.round(ratio, 4).reshape(self.shape)}
