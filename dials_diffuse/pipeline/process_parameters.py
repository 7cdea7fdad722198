"""What ``dials.diffuse_process`` is asked to do, and where it writes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from dials_diffuse.fitting.fit_parameters import FitParameters
from dials_diffuse.maps.laue_check import WARN
from dials_diffuse.merging.laue import MergeParameters
from dials_diffuse.reduction.reduction_parameters import ReductionParameters
from dials_diffuse.scaling.absolute import AbsoluteParameters
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

logger = logging.getLogger("dials.diffuse.process")


@dataclass(frozen=True)
class ProcessParameters:
    """What to do, step by step; what is None is decided from the data.

    Models that do not fit the images and a space group that is too high are for the verdict, unless the checks of the
    steps are told that they are errors.

    Attributes
    ----------
    reduction : ``subdivide`` of it counts only if ``subdivide`` here is given
    subdivide : voxels per reciprocal-lattice step; None: see :func:`choose_subdivision`
    scaling, absolute, bragg_scales, merging : as for the single steps
    reference : path of a map to compare the merged one with; None: no comparison
    requests, fitting : models to fit and how; with ``coordinates`` only
    told : what the models were made of, as text: a run with the same text is not repeated
    coordinates, selection : path of the structure, and which of its atoms to use; None: no fit, all atoms
    backgrounds : .expt files of images without crystal; None: look for such images beside the data
    excluded : images to leave out, see :func:`images_to_use`
    images_root : where to look for images that have moved
    """

    reduction: ReductionParameters = field(default_factory=lambda: ReductionParameters(geometry_check=WARN))
    subdivide: tuple | None = None
    scaling: ScalingParameters = field(default_factory=lambda: ScalingParameters(symmetry_check=WARN))
    absolute: AbsoluteParameters = field(default_factory=AbsoluteParameters)
    bragg_scales: bool = True
    merging: MergeParameters = field(default_factory=lambda: MergeParameters(symmetry_check=WARN))
    reference: str | None = None
    requests: tuple = ()
    fitting: FitParameters = field(default_factory=FitParameters)
    told: str = ""
    coordinates: str | None = None
    selection: str | None = None
    backgrounds: tuple | None = ()
    excluded: tuple = ()
    images_root: str | None = None


@dataclass(frozen=True)
class ProcessFiles:
    """Where files go: all into one folder, with a prefix before the names that the single programs have."""

    folder: str = "."
    prefix: str = ""

    def path(self, name: str) -> str:
        """Path of a file with one of these names."""
        return str(Path(self.folder) / f"{self.prefix}{name}")
