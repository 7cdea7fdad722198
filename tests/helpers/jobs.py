"""Jobs of the reduction on images in memory."""

from __future__ import annotations

import numpy as np

from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.detector import detector_setup
from dials_diffuse.parallel import SERIAL
from dials_diffuse.reduction import voxel_sums
from dials_diffuse.reduction.prepare import prepare_job
from dials_diffuse.reduction.reduction_parameters import Masking, ReductionParameters
from helpers.synthetic import experiment_list

PLAIN = Masking(bragg=False, persistent=False, outlier_n_sigma=0)


def job_of(experiments, images=None, background_images=(), **parameters):
    """The job of the first experiment; ``parameters`` are those of ReductionParameters."""
    parameters = ReductionParameters(**parameters)
    grid = choose_grid(experiments, parameters.d_min, parameters.d_max, parameters.subdivide)
    images = np.arange(experiments[0].scan.get_num_images()) if images is None else images
    setup = detector_setup(experiments[0].detector, parameters.sampling.pixel)
    return prepare_job(0, experiments, images, grid, parameters, setup, background_experiments=background_images)


def job_for(experiment, **parameters):
    """The job of one experiment, where nothing is masked unless ``parameters`` say so."""
    return job_of(experiment_list(experiment), **{"masking": PLAIN, **parameters})


def poisson_images(detector, n_images, mean=5.0, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.poisson(mean, p.get_image_size()[::-1]).astype(np.int32) for p in detector] for _ in range(n_images)]


def rows_of(job, executor=SERIAL):
    blocks = voxel_sums.reduce_blocks(job, executor)
    return np.concatenate([rows for rows, _ in voxel_sums.observations(job, blocks)])
