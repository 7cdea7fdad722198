"""Small data sets on disk, as DIALS would have written them: mini-CBF images, .expt and .refl."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.format.FormatCBFMini import FormatCBFMini
from dxtbx.model import Beam, Goniometer, ScanFactory
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory

from helpers.synthetic import GaussianProfile, make_crystal, make_detector

SIZE = (90, 80)  # fast, slow
WIDTH = 1.0  # degrees
PHOTONS = 1000.0


def write_images(folder, prefix: str, images, first: int = 1, start: float = 0.0) -> list:
    """Write arrays (ny, nx) as ``prefix00001.cbf`` and so on, one WIDTH after the other; returns the names."""
    detector = make_detector(size=SIZE, pixel=0.3, parallax=False)
    detector[0].set_mu(0)
    detector[0].set_thickness(0)
    beam, goniometer = Beam((0, 0, 1), 1.0), Goniometer((1, 0, 0))
    names = []
    for i, image in enumerate(images):
        number = first + i
        scan = ScanFactory.make_scan((number, number), 0.1, (start + i * WIDTH, WIDTH), {number: 0})
        names.append(str(Path(folder) / f"{prefix}{number:05d}.cbf"))
        values = flumpy.from_numpy(np.ascontiguousarray(image, dtype=np.int32))
        FormatCBFMini.as_file(detector, beam, goniometer, scan, values, names[-1])
    return names


def noise(seed: int, n_images: int = 8, mean=20.0) -> list:
    """Images of Poisson noise, (ny, nx) int32; mean : number or (ny, nx)"""
    rng = np.random.default_rng(seed)
    return [rng.poisson(mean, SIZE[::-1]).astype(np.int32) for _ in range(n_images)]


def import_images(names, identifier: str, angles=(10, 20, 30), profile=(0.05, 0.1)):
    """The experiment of some image files, with a crystal (None: without) and a profile model (None: without)."""
    experiment = ExperimentListFactory.from_filenames(names)[0]
    experiment.crystal = make_crystal(angles=angles) if angles else None
    experiment.profile = GaussianProfile(None, 3, *profile, deg=True) if profile else None
    experiment.identifier = identifier
    return experiment


def make_sweep(folder, name: str, seed: int, n_images: int = 8, first: int = 1, **options):
    """A sweep of noise with images ``name_00001.cbf`` ..., as an experiment with the identifier ``name``."""
    images = write_images(folder, f"{name}_", noise(seed, n_images), first)
    return import_images(images, name, **options)


def reflections_of(experiment, number: int = 0, photons: float = PHOTONS) -> flex.reflection_table:
    """Predicted reflections with id ``number``, boxes of two pixels and images around them, and equal intensities."""
    table = flex.reflection_table.from_predictions(experiment, dmin=3)
    table["id"] = flex.int(len(table), number)
    table["xyzobs.px.value"] = table["xyzcal.px"]
    x, y, z = (np.array(v) for v in table["xyzcal.px"].parts())
    first, last = experiment.scan.get_array_range()
    limits = ((0, SIZE[0]), (0, SIZE[1]), (first, last))
    boxes = []
    for v, (low, high) in zip((x, y, z), limits):
        boxes += [np.clip(np.floor(v - 2), low, high), np.clip(np.ceil(v + 2), low, high)]
    table["bbox"] = flex.int6(*(flumpy.from_numpy(b.astype(np.int32)) for b in boxes))
    table["intensity.sum.value"] = flex.double(len(table), photons)
    table["intensity.sum.variance"] = flex.double(len(table), photons)
    table["partiality"] = flex.double(len(table), 1.0)
    table.set_flags(flex.bool(len(table), True), table.flags.integrated_sum)
    return table


def write_experiments(path, *experiments) -> None:
    result = ExperimentList()
    for experiment in experiments:
        result.append(experiment)
    result.as_file(str(path))


def scan_dict(first: int, last: int) -> dict:
    """The scan of some images of a sweep, as it is in an .expt file."""
    n = last - first + 1
    epochs = dict.fromkeys(range(first, last + 1), 0)
    return ScanFactory.make_scan((first, last), [0.1] * n, ((first - 1) * WIDTH, WIDTH), epochs).to_dict()


def write_table(path, tables, identifiers: dict) -> None:
    """Write reflections in one file, with the map of ids to identifiers that is given."""
    joint = flex.reflection_table()
    for table in tables:
        joint.extend(table)
    for number, identifier in identifiers.items():
        joint.experiment_identifiers()[number] = identifier
    joint.as_file(str(path))


def write_map(path, values) -> str:
    """Pickle a map for dials.import lookup.*, as DIALS does; (ny, nx) bool or float64, returns its name."""
    import pickle

    with open(path, "wb") as handle:
        pickle.dump(flumpy.from_numpy(np.ascontiguousarray(values)), handle)
    return str(path)


def write_nexus(path, images) -> str:
    """Write arrays (ny, nx) as one NXmx file, in the geometry of write_images; returns its name."""
    nx, ny = SIZE
    with h5py.File(path, "w") as handle:

        def group(name: str, kind: str):
            result = handle.require_group(name)
            result.attrs["NX_class"] = np.bytes_(kind)
            return result

        def number(where, name: str, value, **attributes):
            where[name] = value
            for key, attribute in attributes.items():
                where[name].attrs[key] = np.bytes_(attribute) if isinstance(attribute, str) else attribute

        entry = group("entry", "NXentry")
        entry["definition"] = np.bytes_("NXmx")
        group("entry/data", "NXdata").create_dataset("data", data=np.array(images, dtype=np.int32), chunks=(1, ny, nx))
        beam = group("entry/instrument/beam", "NXbeam")
        group("entry/instrument", "NXinstrument")
        number(beam, "incident_wavelength", 1.0, units="angstrom")
        sample = group("entry/sample", "NXsample")
        sample["depends_on"] = np.bytes_("/entry/sample/transformations/omega")
        turn = {"units": "deg", "vector": [-1.0, 0.0, 0.0], "transformation_type": "rotation", "depends_on": "."}
        number(
            group("entry/sample/transformations", "NXtransformations"), "omega", np.arange(len(images)) * WIDTH, **turn
        )
        detector = group("entry/instrument/detector", "NXdetector")
        for name, text in (("sensor_material", "Si"), ("description", "Test"), ("type", "pixel")):
            detector[name] = np.bytes_(text)
        for name, value in (("sensor_thickness", 0.45), ("x_pixel_size", 0.3), ("y_pixel_size", 0.3)):
            number(detector, name, value, units="mm")
        detector["saturation_value"] = 1_000_000
        detector["depends_on"] = np.bytes_("/entry/instrument/detector/transformations/z")
        shift = {"units": "mm", "vector": [0.0, 0.0, 1.0], "transformation_type": "translation", "depends_on": "."}
        number(group("entry/instrument/detector/transformations", "NXtransformations"), "z", 60.0, **shift)
        module = group("entry/instrument/detector/module", "NXdetector_module")
        module["data_origin"], module["data_size"] = [0, 0], [ny, nx]
        at = {"transformation_type": "translation", "units": "mm", "depends_on": detector["depends_on"][()].decode()}
        number(module, "module_offset", 0.0, vector=[1.0, 0.0, 0.0], offset=[nx * 0.15, ny * 0.15, 0.0], **at)
        at["depends_on"] = "/entry/instrument/detector/module/module_offset"
        for name, vector in (("fast_pixel_direction", [-1.0, 0.0, 0.0]), ("slow_pixel_direction", [0.0, -1.0, 0.0])):
            number(module, name, 0.3, vector=vector, offset=[0.0, 0.0, 0.0], **at)
    return str(path)
