"""Do stiffnesses of contacts come back from images? Simulated phonons through DIALS and all programs to a fit.

    bench_contacts_images.py [FOLDER]      FOLDER keeps the files; steps whose files are there are not repeated

Triclinic lysozyme, whose contacts have stiffnesses that differ at random (0.35 rms in log stiffness), 180 fine-sliced
images on a small detector. The images go through DIALS, dials.diffuse_integrate, scale (absolute by the model), merge
and fit. The free correlation stands beside that of the true model with the same voxels (ceiling), stiffnesses and U
beside the truth, all also for a fit to the map without noise.

Needs the coordinates 6o2h.pdb: in $DIALS_DIFFUSE_DATA/pdb, or in ../shared/data/pdb beside the checkout.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_closed_loop import call
from bench_contacts import SPREAD, coordinates

from dials_diffuse.files.nexus import read_map
from dials_diffuse.fitting.agreement import anisotropic_parts
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.maps.shells import correlation
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.lattice_dynamics.phonons import Phonons
from dials_diffuse.models.prepared import prepare
from dials_diffuse.structure.atoms import load_structure

#: Å, of the images and of the fits
D_MAX, D_MIN = 12.0, 3.2
#: Å, rms displacement by the phonons; more than all atoms of the file have would be unphysical
SIGMA = 0.2
CELL = "27.424,32.134,34.513,88.66,108.46,111.88"
FIT = (
    f"d_max={D_MAX} d_min={D_MIN} scale=absolute indexing=given starts=1 profile=False output.html=None "
    "output.png=None model=lattice_dynamics/contacts,lattice_dynamics/contacts/by_contact prior.strength=0.1,0.01 "
    f"lattice_dynamics.sigma={SIGMA}"
)


def truth() -> tuple:
    """Structure, and the model that the images are made with."""
    structure = load_structure(coordinates("6o2h.pdb"), "not element H")
    model = LatticeDynamics(SIGMA, "contacts", stiffness="by_contact")
    n = len(model.parameters(structure))
    values = SPREAD * np.random.default_rng(0).normal(size=n)
    return structure, values - values.mean()


def commands(values) -> list:
    """(file that is there afterwards, command) of all steps."""
    pdb = coordinates("6o2h.pdb")
    motion = (
        "model=lattice_dynamics lattice_dynamics.springs=contacts lattice_dynamics.stiffness=by_contact "
        f"lattice_dynamics.sigma={SIGMA} lattice_dynamics.contacts.log_stiffness="
        + ",".join(f"{x:.6f}" for x in values)
    )
    select = "selection='not element H'"
    return [
        (
            "ceiling.nxs",
            f"dials.diffuse_simulate {pdb} {select} {motion} detector.size=300K detector.distance=129 scan.width=0.5 "
            f"scan.n_images=180 source.flux=3e12 d_min={D_MIN} sampling.pixel=1 sampling.oscillation=3 "
            "output.ideal=ceiling.nxs nproc=1 seed=2",
        ),
        ("imported.expt", "dials.import simulated_1_*.cbf"),
        ("strong.refl", "dials.find_spots imported.expt nproc=1"),
        ("indexed.expt", f"dials.index imported.expt strong.refl space_group=P1 unit_cell={CELL}"),
        ("refined.expt", "dials.refine indexed.expt indexed.refl"),
        ("integrated.expt", f"dials.integrate refined.expt refined.refl nproc=1 prediction.d_min={D_MIN}"),
        ("diffuse_integrated.h5", f"dials.diffuse_integrate integrated.expt integrated.refl nproc=1 d_min={D_MIN}"),
        ("diffuse_scaled.h5", f"dials.diffuse_scale diffuse_integrated.h5 nproc=1 absolute_scale.model={pdb}"),
        ("diffuse_merged.nxs", "dials.diffuse_merge diffuse_scaled.h5"),
        *(
            (
                f"{name}.json",
                f"dials.diffuse_fit {map_} {pdb} {select} {FIT} output.json={name}.json output.map={name}.nxs",
            )
            for name, map_ in (("fit", "diffuse_merged.nxs"), ("fit_ceiling", "ceiling.nxs"))
        ),
    ]


def ceiling(folder: Path, structure, model) -> float:
    """Correlation of the free voxels of the merged map with the true model: what the best fit could have."""
    data = select(read_map(folder / "diffuse_merged.nxs"), Selection(d_max=D_MAX, d_min=D_MIN), structure.space_group)
    true = prepare(model, structure, data.grid, data.index, means=True)
    x, y = anisotropic_parts(data, true.intensity(np.array(model.log_stiffness)))
    return correlation(x[data.free], y[data.free])


def main(folder: Path) -> None:
    """All steps, then the table."""
    structure, values = truth()
    for name, command in commands(values):
        if not (folder / name).exists():
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            call(command, folder)
            seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            print(f"{command.split()[0]}: {seconds:.0f} s of CPU", flush=True)
    model = LatticeDynamics(SIGMA, "contacts", stiffness="by_contact", log_stiffness=tuple(values))
    true_u = Phonons(model, structure, np.zeros((len(values),) * 2)).displacements()["mean"]
    print(f"free correlation of the map with the true model: {ceiling(folder, structure, model):.4f}")
    print(f"{'':12}{'model':40} free CC  overall stiffness / true  mean U found / true")
    for name in ("fit", "fit_ceiling"):
        for found in json.loads((folder / f"{name}.json").read_text())["models"]:
            free = found["statistics"]["free"]["cc_anisotropic"]
            overall = np.exp(np.mean([p["value"] for p in found["parameters"].values()]))  # the true logs have mean 0
            u = found["details"][0]["displacements"]["mean"]
            print(f"{name:12}{found['model']:40} {free:7.4f} {overall:12.3f}  {u:.4f} / {true_u:.4f}")
            if len(found["parameters"]) > 1:
                for (key, p), true in zip(found["parameters"].items(), values):
                    print(f"{'':14}{key:10} {p['value']:7.3f} ± {p['esd']:.3f}, true {true:7.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.makedirs(sys.argv[1], exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
