"""Images with a spot drawn wherever the models of an experiment predict one, and models that are wrong."""

from __future__ import annotations

import numpy as np
from dxtbx.model import Crystal

from dials_diffuse.experiment.spot_prediction import predict_spots, spot_size
from dials_diffuse.reduction.reduction_parameters import Masking
from helpers.synthetic import make_crystal, make_detector, make_experiment, rotation

N_IMAGES = 16
SIZE, PIXEL, DISTANCE = (240, 200), 0.4, 70.0
D_MIN = 2.4
MASKS = Masking(persistent=False)


def drawn(experiment, photons=60.0, level=3.0, seed=0, others=()) -> list:
    """Images with a spot of a few pixels at each prediction of one or more experiments, on Poisson noise."""
    rng = np.random.default_rng(seed)
    shapes = [p.get_image_size()[::-1] for p in experiment.detector]
    images = [[np.full(s, level) for s in shapes] for _ in range(experiment.scan.get_num_images())]
    for e in (experiment, *others):
        spots = predict_spots(e, spot_size(e), D_MIN, 1.0)
        for p, (x, y, z) in zip(spots.panel, spots.centre):
            ny, nx = shapes[p]
            if not (2 <= x < nx - 2 and 2 <= y < ny - 2 and 0 <= z < len(images)):
                continue
            yy, xx = np.mgrid[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3]
            shape = np.exp(-((xx + 0.5 - x) ** 2 + (yy + 0.5 - y) ** 2) / (2 * 0.6**2))
            images[int(z)][p][yy, xx] += photons * shape
    return [[rng.poisson(panel).astype(np.int32) for panel in image] for image in images]


def true_experiment(images=None, **options):
    detector = make_detector(size=SIZE, distance=DISTANCE, pixel=PIXEL)
    options = {"crystal": make_crystal((34, 41, 53), "P222"), "detector": detector, "profile": (0.2, 0.2), **options}
    return make_experiment(images=images, n_images=N_IMAGES, **options)


def moved_beam(x, y):
    """The detector with the beam elsewhere."""
    detector = make_detector(size=SIZE, distance=DISTANCE, pixel=PIXEL)
    panel = detector[0]
    origin = np.array(panel.get_origin()) - PIXEL * (
        x * np.array(panel.get_fast_axis()) + y * np.array(panel.get_slow_axis())
    )
    panel.set_frame(panel.get_fast_axis(), panel.get_slow_axis(), tuple(origin))
    return {"detector": detector}


def turned(*angles):
    true = make_crystal((34, 41, 53), "P222")
    axes = [rotation(*angles) @ v for v in np.array(true.get_real_space_vectors())]
    return {"crystal": Crystal(*(tuple(v) for v in axes), space_group_symbol="P222")}
