"""Parameters of a simulated experiment, validated where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from dials_diffuse.checks import fraction, not_negative, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.simulation.spots import SpotShape


@dataclass(frozen=True)
class Source:
    """flux : photons/s through the crystal; exposure : seconds per image, None: what the scan says, else 0.1.

    The default makes a well exposed data set: some three hundred diffuse counts in a pixel of the default set-up.
    """

    flux: float = 1e13
    exposure: float | None = None

    def __post_init__(self):
        positive("source.flux", self.flux)
        if self.exposure is not None:
            positive("source.exposure", self.exposure)


@dataclass(frozen=True)
class Background:
    """What scatters besides the atoms of the model.

    Attributes
    ----------
    air : mm of air in the beam that the detector sees
    liquid : mm of mother liquor and loop around the crystal
    liquid_variation : relative amplitude with which its thickness changes over the rotation
    solvent : bulk solvent inside the crystal, filling what the molecules leave
    compton : incoherent scattering of the atoms of the model
    """

    air: float = 10.0
    liquid: float = 0.05
    liquid_variation: float = 0.0
    solvent: bool = True
    compton: bool = True

    def __post_init__(self):
        not_negative("background.air", self.air)
        not_negative("background.liquid", self.liquid)
        fraction("background.liquid_variation", self.liquid_variation)


@dataclass(frozen=True)
class Scales:
    """Factors that scaling has to find again, see :mod:`dials_diffuse.simulation.scales`.

    Attributes
    ----------
    drift : relative loss of scattering power over a sweep
    absorption : rms of the logarithm of the factor that depends on direction and rotation
    module : rms of the relative response of detector modules
    """

    drift: float = 0.0
    absorption: float = 0.0
    module: float = 0.0

    def __post_init__(self):
        fraction("scale.drift", self.drift)
        fraction("scale.absorption", self.absorption)
        fraction("scale.module", self.module)


@dataclass(frozen=True)
class Defects:
    """What is wrong with the detector, and what stands before it.

    Attributes
    ----------
    hot_pixels, dead_pixels : how many
    beam_stop : radius of its shadow around the direct beam, mm on the detector
    arm : width of the shadow of its holder, mm on the detector
    """

    hot_pixels: int = 20
    dead_pixels: int = 20
    beam_stop: float = 4.0
    arm: float = 1.0

    def __post_init__(self):
        for name in ("hot_pixels", "dead_pixels"):
            not_negative(f"detector.{name}", getattr(self, name))
        not_negative("beam_stop.radius", self.beam_stop)
        not_negative("beam_stop.arm", self.arm)


@dataclass(frozen=True)
class SimulationParameters:
    """Everything but the model and the geometry.

    Attributes
    ----------
    thickness : mm of crystal in the beam, one number for each crystal, the last one for all that follow
    subdivide : voxels of the truth per reciprocal-lattice step, as for dials.diffuse_integrate
    k_sol, b_sol : bulk solvent of the Bragg reflections, electrons/Å³ and Å²
    tolerance : sampling error allowed in a pixel, in units of its Poisson noise
    sub_steps, sub_pixels : rotation steps per image and pixels along the edge of a pixel; None: as the tolerance needs
    anomalous : add f', f'' at the wavelength of the source to the form factors
    bragg, diffuse, noise : switches; without noise counts are the expected ones, rounded
    background_images : images without crystal for each sweep
    seed : of everything that is random
    """

    spots: SpotShape = field(default_factory=SpotShape)
    source: Source = field(default_factory=Source)
    background: Background = field(default_factory=Background)
    scales: Scales = field(default_factory=Scales)
    defects: Defects = field(default_factory=Defects)
    thickness: tuple = (0.2,)
    d_min: float | None = None
    subdivide: tuple = (3, 3, 3)
    k_sol: float = 0.35
    b_sol: float = 46.0
    tolerance: float = 0.02
    sub_steps: int | None = None
    sub_pixels: int | None = None
    anomalous: bool = False
    bragg: bool = True
    diffuse: bool = True
    noise: bool = True
    background_images: int = 0
    seed: int = 0

    def __post_init__(self):
        if not self.thickness:
            raise DiffuseError("crystal.thickness: at least one number is needed (mm)")
        for value in self.thickness:
            positive("crystal.thickness", value)
        not_negative("crystal.k_sol", self.k_sol)
        not_negative("crystal.b_sol", self.b_sol)
        positive("sampling.tolerance", self.tolerance)
        for name, value in (("sampling.oscillation", self.sub_steps), ("sampling.pixel", self.sub_pixels)):
            if value is not None:
                positive(name, value)
        not_negative("background.images", self.background_images)
        not_negative("seed", self.seed)

    def crystal_thickness(self, number: int) -> float:
        """mm; the last thickness given holds for all crystals that follow."""
        return self.thickness[min(number, len(self.thickness) - 1)]
