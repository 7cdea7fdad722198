"""Images of tiny crystals with a known truth, to be reduced and compared with it."""

from __future__ import annotations

from dataclasses import replace

from dials_diffuse.experiment.build import BeamParameters, DetectorParameters, ScanParameters
from dials_diffuse.experiment.load import load_input
from dials_diffuse.merging.compare import Comparison, compare_maps
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.reduction.corrections import Corrections
from dials_diffuse.reduction.reduction_parameters import Masking, ReductionParameters
from dials_diffuse.simulation.plan import plan_sweeps
from dials_diffuse.simulation.simulate import Outputs, simulate
from dials_diffuse.simulation.simulation_parameters import Background, Defects, SimulationParameters, Source
from dials_diffuse.simulation.spots import SpotShape
from helpers.builders import PROVENANCE

R_E = 2.8179403e-5  # Å, classical radius of the electron
FLUX, THICKNESS = 1e12, 0.2  # photons/s, mm

#: halos as wide as a voxel: narrower ones would vanish where Bragg spots are masked
LLM = LiquidLikeMotions(sigma=0.4, gamma=3.0)

#: of the comparisons. Nearer to the beam a bin of |s| is as wide as the background is steep.
D_MAX, N_BINS, N_SHELLS = 8.0, 40, 4

#: The flux is constant. What an image of so small a cell counts changes with the few maxima it meets, and to divide
#: that out would take 6 to 11 % of the slope away. Bragg spots are a thousand times brighter than what is between them,
#: and need masks of 4 sigma.
REDUCTION = ReductionParameters(
    subdivide=(2, 2, 2),
    d_min=2.5,
    corrections=Corrections(flux=False),
    masking=Masking(n_sigma=4.0),
)

SIMULATION = SimulationParameters(
    spots=SpotShape(mosaicity=0.05, spot_size=0.1),
    source=Source(FLUX),
    background=Background(air=1.0, liquid=0.01, solvent=False),
    defects=Defects(hot_pixels=0, dead_pixels=0),
    thickness=(THICKNESS,),
    d_min=REDUCTION.d_min,
    subdivide=REDUCTION.subdivide,
    sub_steps=4,
    sub_pixels=2,
)


def compare_with_truth(data, truth) -> Comparison:
    return compare_maps(data, truth, d_max=D_MAX, n_bins=N_BINS, n_shells=N_SHELLS)


def simulated(folder, structure, model, d_min, detector, thickness=0.45, **changes):
    """Simulate 60 images of 3 degrees in a folder; size and pixel of the detector, and thickness of its sensor, mm."""
    *size, pixel = detector
    parameters = SimulationParameters(
        spots=SpotShape(mosaicity=0.05, spot_size=0.1),
        source=Source(FLUX),
        background=Background(air=0.0, liquid=0.0, solvent=False, compton=True),
        defects=Defects(hot_pixels=0, dead_pixels=0, beam_stop=2.0, arm=0.0),
        thickness=(THICKNESS,),
        d_min=d_min,
        subdivide=(2, 2, 2),
        sub_steps=4,
        sub_pixels=2,
        k_sol=0.0,
    )
    parameters = replace(parameters, **changes)
    scan = ScanParameters(width=3.0, n_images=60)
    sweeps = plan_sweeps(
        structure,
        DetectorParameters(tuple(size), distance=60.0, pixel_size=pixel, thickness=thickness),
        BeamParameters(),
        scan,
        seed=3,
    )
    paths = {n: str(folder / f"simulated.{n}") for n in ("expt", "refl")}
    outputs = Outputs(
        prefix=str(folder / "simulated"),
        background=str(folder / "background"),
        experiments=paths["expt"],
        reflections=paths["refl"],
        truth=str(folder / "truth.nxs") if parameters.diffuse else None,
    )
    simulate(structure, model, sweeps, parameters, outputs, PROVENANCE)
    return load_input([paths["expt"], paths["refl"]])
