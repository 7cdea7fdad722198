"""What each pixel of each image of a sweep is expected to count, and what it does count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dials_diffuse.experiment.detector import DetectorSetup, s_magnitude
from dials_diffuse.experiment.pixel_factors import air_transmission, polarization, sensor_efficiency, solid_angle
from dials_diffuse.experiment.scan import ScanGeometry
from dials_diffuse.kernels.spline import add_spline
from dials_diffuse.simulation.diffuse import DiffuseVolume
from dials_diffuse.simulation.scales import SweepScales
from dials_diffuse.simulation.simulation_parameters import SimulationParameters
from dials_diffuse.simulation.spots import Spots
from dials_diffuse.simulation.streams import random_stream
from dials_diffuse.structure import surroundings
from dials_diffuse.structure.solvent import solvent_molecules

ANGSTROM_PER_MM = 1e7

#: Å², the square of the classical radius of the electron
R_E_SQUARED = 2.8179403e-5**2

#: counts of hot pixels, in units of the median count of their image
HOT = (5.0, 50.0)

_PROFILE_POINTS = 8000

#: far beyond what any detector counts, and what numpy still draws Poisson numbers of
_MOST_COUNTS = 1e15


def overflow(panel) -> int:
    """What a pixel reads that counted too much: the first value that is not trusted, if 32 bits hold it."""
    return int(min(np.floor(panel.reading.high) + 1, np.iinfo(np.int32).max))


@dataclass(frozen=True)
class Sample:
    """What all crystals have in common.

    Attributes
    ----------
    volume : the diffuse intensity, None = none
    cell_volume : Å³
    s, isotropic : (m,) |s| in 1/Å and what scatters besides the diffuse intensity, electrons² per unit cell
    """

    volume: DiffuseVolume | None
    cell_volume: float
    s: np.ndarray
    isotropic: np.ndarray


def make_sample(structure, volume: DiffuseVolume | None, parameters: SimulationParameters, compton) -> Sample:
    """Sample of a structure; ``compton(s)`` is its incoherent scattering in electrons² per unit cell."""
    s = np.linspace(0, 4.0, _PROFILE_POINTS)
    isotropic = np.zeros(len(s))
    if parameters.background.solvent:
        isotropic += solvent_molecules(structure) * surroundings.water(s)
    if parameters.background.compton:
        isotropic += compton(s)
    return Sample(volume, structure.cell.volume(), s, isotropic)


@dataclass(frozen=True)
class CrystalInBeam:
    """One crystal of a sweep: its orientation, Bragg spots (None = none) and thickness in mm."""

    scan: ScanGeometry
    spots: Spots | None
    thickness: float


@dataclass(frozen=True)
class Expected:
    """Expected counts of one panel: ``norm · I + bragg + other``, each (ny, nx) float64.

    norm : counts per electron² per unit cell of diffuse intensity
    intensity : the diffuse intensity I, averaged over the pixel and the rotation, electrons² per unit cell
    """

    norm: np.ndarray
    intensity: np.ndarray
    bragg: np.ndarray
    other: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.norm * self.intensity + self.bragg + self.other


@dataclass(frozen=True)
class Sweep:
    """One sweep of images, ready to be simulated: what every worker receives.

    Attributes
    ----------
    number : of the sweep, counted from 0; part of the seed of its noise
    detector : pixel geometry, with the sub-pixels that are averaged
    lit : (ny, nx) bool per panel, False in the shadow of the beam stop
    active : (ny, nx) bool per panel, False in the gaps between modules
    response : (ny, nx) float64 per panel, relative response of the modules
    hot, dead : (n, 3) int, panel, y and x of pixels; heat : (n,) counts of the hot ones in units of HOT
    crystals : those in the beam, none for background images
    scan : of the images; that of the first crystal where there is one
    """

    number: int
    detector: DetectorSetup
    lit: list
    active: list
    response: list
    hot: np.ndarray
    heat: np.ndarray
    dead: np.ndarray
    sample: Sample
    crystals: list
    scan: ScanGeometry
    scales: SweepScales
    parameters: SimulationParameters
    sub_steps: int = 1

    @property
    def shapes(self) -> list:
        return [panel.shape for panel in self.detector.panels]

    @cached_property
    def usable(self) -> list:
        """(ny, nx) bool per panel, pixels with a diffuse intensity: neither in a shadow nor a gap, and inside d_min."""
        if self.sample.volume is None:
            return [lit & active for lit, active in zip(self.lit, self.active)]
        s0 = self.scan.s0_at(self.scan.n_images / 2)
        margin = 1e-9 + (self.scan.beam_varies * 1e-3)
        return [
            lit & active & (s_magnitude(panel.directions, s0) <= self.sample.volume.s_max * (1 + margin))
            for lit, active, panel in zip(self.lit, self.active, self.detector.panels)
        ]

    def sampled(self, sub_steps: int, detector: DetectorSetup) -> Sweep:
        """This sweep with other sub-steps and sub-pixels."""
        return replace(self, sub_steps=sub_steps, detector=detector)

    def photons(self, image: int, length: float, density: float) -> float:
        """Photons per electron² and steradian in an image, from ``length`` mm with ``density`` scatterers per Å³."""
        incident = self.parameters.source.flux * float(self.scan.exposure[image])
        return incident * length * ANGSTROM_PER_MM * density * R_E_SQUARED

    def expected(self, image: int, wanted: list | None = None) -> list:
        """Expected of every panel in an image, counted from the start of the scan.

        wanted : (ny, nx) bool per panel, pixels whose diffuse intensity is needed; None: the lit ones
        """
        position = image + 0.5
        s0 = self.scan.s0_at(position)
        fraction = position / self.scan.n_images
        if wanted is None:
            wanted = self.usable
        intensities = self._intensity(image, wanted)
        spots = self._bragg(image, fraction)
        liquid = 0.0
        if self.crystals:
            liquid = self.scales.liquid_factor(self.scan.angle(position)) * self.photons(
                image, self.parameters.background.liquid, surroundings.WATER_DENSITY
            )
        air = self.photons(image, self.parameters.background.air, surroundings.AIR_DENSITY)
        crystal = self.scales.b(fraction) * sum(self.per_electron(image, c) for c in self.crystals)
        to_head = self.scan.rotation_at(position).T
        static = self._static if not self.scan.beam_varies else None
        result = []
        for p, panel in enumerate(self.detector.panels):
            factors, isotropic, water, air_profile = static[p] if static else self._panel_factors(p, s0)
            omega = self._solid_angles[p]
            response = factors * self.response[p] * self.lit[p]
            absorbed = response * self.scales.a(panel.directions, s0, to_head)
            other = absorbed * omega * (crystal * isotropic + liquid * water) + response * omega * air * air_profile
            result.append(Expected(absorbed * omega * crystal, intensities[p], absorbed * spots[p], other))
        return result

    def measure(self, image: int, totals: list) -> list:
        """Raw values of every panel, (ny, nx) int32, from expected counts: noise, defects, gaps, gain, saturation."""
        rng = random_stream(self.parameters.seed, "noise", self.number, image)
        typical = float(np.median(np.concatenate([t[a] for t, a in zip(totals, self.active)])))
        result = []
        for p, (total, panel) in enumerate(zip(totals, self.detector.panels)):
            mine = self.hot[:, 0] == p
            total = total.copy()
            total[self.hot[mine, 1], self.hot[mine, 2]] += self.heat[mine] * max(typical, 1.0)
            total = np.minimum(total, _MOST_COUNTS)
            counts = rng.poisson(total) if self.parameters.noise else np.rint(total)
            gone = self.dead[self.dead[:, 0] == p]
            counts[gone[:, 1], gone[:, 2]] = 0
            raw = np.rint(counts * panel.reading.gain + panel.reading.pedestal)
            raw = np.minimum(raw, overflow(panel))
            raw[~self.active[p]] = min(-1, np.ceil(panel.reading.low) - 1)
            result.append(raw.astype(np.int32))
        return result

    def spot_photons(self, crystal: CrystalInBeam) -> np.ndarray:
        """(n,) expected photons of each Bragg spot of a crystal, all images together."""
        spots = crystal.spots
        z = spots.centre[:, 2]
        image = np.clip(z.astype(int), 0, self.scan.n_images - 1)
        result = np.empty(len(z))
        for i in np.unique(image):
            mine = np.flatnonzero(image == i)
            s0 = self.scan.s0_at(i + 0.5)
            to_head = self.scan.rotation_at(i + 0.5).T
            scale = self.per_electron(i, crystal) * self.scales.b((i + 0.5) / self.scan.n_images)
            for p, panel in enumerate(self.detector.panels):
                here = mine[spots.panel[mine] == p]
                if not len(here):
                    continue
                ny, nx = panel.shape
                y = np.clip(spots.centre[here, 1].astype(int), 0, ny - 1)
                x = np.clip(spots.centre[here, 0].astype(int), 0, nx - 1)
                factors = self._static[p][0][y, x] * self.response[p][y, x]
                result[here] = scale * factors * self.scales.a(panel.directions[:, y, x], s0, to_head)
        return result * spots.strength

    def per_electron(self, image: int, crystal: CrystalInBeam) -> float:
        """Photons per electron² and steradian that a crystal's unit cells scatter in one image."""
        return self.photons(image, crystal.thickness, 1 / self.sample.cell_volume)

    def _intensity(self, image: int, wanted: list) -> list:
        """Mean diffuse intensity of all crystals, weighted by thickness; (ny, nx) per panel, electrons²."""
        result = [np.zeros(shape) for shape in self.shapes]
        volume = self.sample.volume
        if volume is None:
            return result
        total = sum(c.thickness for c in self.crystals)
        for crystal in self.crystals:
            for step in range(self.sub_steps):
                position = image + (step + 0.5) / self.sub_steps
                matrix, origin = crystal.scan.to_lattice(position, volume.subdivide)
                origin = origin - volume.extent
                weight = crystal.thickness / total / self.sub_steps / len(self.detector.sub_pixels)
                for _, directions in self.detector.sub_pixels:
                    for p, panel_directions in enumerate(directions):
                        add_spline(volume.coefficients, panel_directions, matrix, origin, weight, wanted[p], result[p])
        return result

    def _bragg(self, image: int, fraction: float) -> list:
        """Bragg scattering of all crystals, photons before the corrections; (ny, nx) per panel."""
        result = [np.zeros(shape) for shape in self.shapes]
        for crystal in self.crystals:
            if crystal.spots is not None:
                scale = self.per_electron(image, crystal) * float(self.scales.b(fraction))
                for total, panel in zip(result, crystal.spots.render(image, self.shapes)):
                    total += scale * panel
        return result

    @cached_property
    def _solid_angles(self) -> list:
        return [solid_angle(panel) for panel in self.detector.panels]

    @cached_property
    def _static(self) -> list:
        s0 = self.scan.s0_at(self.scan.n_images / 2)
        return [self._panel_factors(p, s0) for p in range(len(self.detector.panels))]

    def _panel_factors(self, p: int, s0: np.ndarray) -> tuple:
        """What a pixel counts of a photon, and the isotropic intensities of crystal, water and air, (ny, nx) each."""
        panel = self.detector.panels[p]
        factors = polarization(panel.directions, s0, self.scan.polarization_normal, self.scan.polarization_fraction)
        factors = factors * sensor_efficiency(panel) * air_transmission(panel, 1 / np.linalg.norm(s0))
        s = s_magnitude(panel.directions, s0)
        profiles = [self.sample.isotropic, surroundings.water(self.sample.s), surroundings.air(self.sample.s)]
        return (factors, *(np.interp(s, self.sample.s, profile) for profile in profiles))
