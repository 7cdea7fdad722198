"""What a fit is asked for besides the models; every value is checked where it is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from dials_diffuse.checks import choice, not_negative, positive
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.fitting.data import Selection
from dials_diffuse.fitting.linear import check_terms
from dials_diffuse.fitting.pairs.pair_minimisers import MINIMISERS
from dials_diffuse.fitting.robust import LOSSES
from dials_diffuse.models.compute import VOXELS

WEIGHTS = ("sigma", "shell")
INDEXING = ("auto", "given")


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Attributes
    ----------
    scale : hold the factor between the model and the data; None: fit it
    background : number of splines of the smooth isotropic background, 0 for none; None: see
        :func:`linear.background_terms`
    weights : ``sigma``: 1/sigma²; ``shell``: divided by the reduced chi² that the best of the models reaches in a shell
        of resolution, so that a shell in which no model fits does not rule the others
    loss : ``squares``, or one of ``robust.LOSSES`` that outliers cannot rule. The model with the lowest weighted sum of
        squares decides which voxels are outliers.
    n_shells : of equal volume, for these weights and for the statistics
    starts : number of starting points; all but the first are random
    seed : of these
    profile : compute the profile likelihood of sigma and gamma
    strengths : of priors (:class:`models.prior.Prior`), 0 for none; of several the one is taken that predicts best
        voxels that are kept out, in folds

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    scale: float | None = None
    background: int | None = None
    weights: str = "sigma"
    loss: str = "squares"
    n_shells: int = 10
    starts: int = 2
    seed: int = 0
    profile: bool = True
    strengths: tuple = (1.0, 0.1, 0.01, 0.001, 0.0001)

    def __post_init__(self):
        if not self.strengths:
            raise CommandLineError("prior.strength=None: at least one number is needed, 0 for no prior")
        for strength in self.strengths:
            not_negative("prior.strength", strength)
        if self.scale is not None:
            positive("scale", self.scale)
        if self.background is not None:
            check_terms(self.background)
        choice("weights", self.weights, WEIGHTS)
        choice("loss", self.loss, LOSSES)
        if self.starts < 1 or self.n_shells < 1:
            raise DiffuseError(f"starts={self.starts}, n_shells={self.n_shells}: positive whole numbers are needed")
        not_negative("seed", self.seed)


@dataclass(frozen=True)
class PairParameters:
    """How to fit the covariance of every pair of groups, see :func:`fit_pairs.fit_all_pairs`.

    Attributes
    ----------
    strengths : how firmly the covariances are held near those of the fitted kernel; of several the one is taken that
        agrees best with the free voxels; 0 for no prior
    minimiser : one of ``pair_minimisers.MINIMISERS``
    starts : starting points with the strength that is taken, all but the first random; None: ``FitOptions.starts`` for
        up to ``pair_minimisers.MOST_ELEMENTS`` covariances, else one, as each takes long
    max_iterations : steps of a minimisation with one strength

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    strengths: tuple = (1.0, 0.1, 0.01, 0.001)
    minimiser: str = "auto"
    starts: int | None = None
    max_iterations: int = 200

    def __post_init__(self):
        if not self.strengths:
            raise CommandLineError("pairs.strength=None: at least one number is needed, 0 for no prior")
        for strength in self.strengths:
            not_negative("pairs.strength", strength)
        choice("pairs.minimiser", self.minimiser, MINIMISERS)
        for name, number in (("starts", self.starts), ("max_iterations", self.max_iterations)):
            if number is not None and number < 1:
                raise DiffuseError(f"pairs.{name}={number}: a positive whole number is needed")


@dataclass(frozen=True)
class FitParameters:
    """What :func:`run.fit_map` is asked for besides the models.

    Attributes
    ----------
    selection : which voxels take part
    options : how to fit
    pairs : how to fit covariances of all pairs of groups
    indexing : ``auto``: where the lattice has more symmetry than the crystal, in the setting in which the first model
        fits the map; ``given``: in that of the map
    voxels : one of ``models.compute.VOXELS``: what the data are compared with, ``mean`` over a voxel or value at its
        ``centre``; ``auto``: what the map holds
    wavelength : Å, of X-rays, for f', f''; None: without

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    selection: Selection = field(default_factory=Selection)
    options: FitOptions = field(default_factory=FitOptions)
    pairs: PairParameters = field(default_factory=PairParameters)
    indexing: str = "auto"
    voxels: str = "auto"
    wavelength: float | None = None

    def __post_init__(self):
        choice("indexing", self.indexing, INDEXING)
        choice("voxels", self.voxels, VOXELS)
        if self.wavelength is not None:
            positive("wavelength", self.wavelength)
