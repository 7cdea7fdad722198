"""Image sets that can read the images that are used; the others need not be there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.format.Format import Format
from dxtbx.format.image import ImageBool, ImageDouble
from dxtbx.format.Registry import get_format_class_for_file
from dxtbx.imageset import ImageSequence, ImageSetData, ImageSetFactory
from dxtbx.model.experiment_list import ExperimentList

from dials_diffuse.errors import DiffuseError, one_line
from dials_diffuse.experiment.expt_file import MAPS, make_experiments, read_content
from dials_diffuse.experiment.image_md5 import open_image
from dials_diffuse.experiment.moved_images import find_moved
from dials_diffuse.files.hdf5 import is_hdf5, why_not_opened
from dials_diffuse.files.protected import protect
from dials_diffuse.parallel import in_child


@dataclass(frozen=True)
class Models:
    """Experiments of one file, as they are written there: no image and no map has been opened.

    Attributes
    ----------
    path : of the .expt file
    experiments : dxtbx ExperimentList
    maps : for each experiment the files of its imageset's maps, {name out of MAPS: path}
    """

    path: str
    experiments: ExperimentList
    maps: list


def read_models(path, images_root: str | None = None) -> Models:
    """Read an .expt file without its images.

    The maps that the file names are left out, see :func:`read_content`; :class:`ImageOpener` reads nothing but arrays
    from them.

    images_root : where to look for images that have moved, see :func:`find_moved`

    Raises
    ------
    DiffuseError
        If the file cannot be read or holds no experiments.
    """
    path = str(path)
    if not Path(path).exists():
        raise DiffuseError(f"{path}: no such file; check the path")
    try:
        content, maps = read_content(path)
        find_moved(content["imageset"], os.path.dirname(os.path.abspath(path)), images_root)
        experiments = make_experiments(content, path)
    except Exception as error:  # dxtbx raises many types for malformed files
        raise DiffuseError(
            f"{path}: not a readable experiment file ({one_line(error)}); write it again with DIALS"
        ) from None
    if len(experiments) == 0:
        raise DiffuseError(f"{path}: contains no experiments; give the output of dials.integrate")
    for experiment, files in zip(experiments, maps):
        if experiment.imageset is None:
            raise DiffuseError(f"{path}: has no images; give the .expt that dials.integrate wrote")
        protect([path, *files.values()])
    return Models(path, experiments, maps)


class ImageOpener:
    """Opens the image sets of experiments; what several of them share is opened once."""

    def __init__(self):
        self._imagesets: dict = {}
        self._arrays: dict = {}

    def open(self, models: Models, i: int, positions: Sequence[int] | np.ndarray | None, number: int | None) -> None:
        """Give experiment ``i`` of a file an image set of exactly the images of its scan.

        Parameters
        ----------
        positions : images that must be there, counted from the start of the scan; None: all
        number : of the experiment in exclude_images=; None where that parameter does not apply

        Raises
        ------
        DiffuseError
            If one of these images or a map is missing, or if the first of them cannot be read.
        """
        experiment = models.experiments[i]
        placeholder, scan = experiment.imageset, experiment.scan
        paths = image_paths(experiment)
        positions = range(len(paths)) if positions is None else positions
        _check_present(models.path, experiment, [paths[p] for p in positions], positions, number)
        protect(paths)
        key = (placeholder, experiment.detector, experiment.goniometer, scan and scan.get_image_range())
        known = next((opened for other, opened in self._imagesets.items() if _same(key, other)), None)
        if known is None:
            known = _open(experiment, paths, paths[positions[0]])
            self._add_maps(known, models.maps[i], models.path)
            self._imagesets[key] = known
        experiment.imageset = known

    @staticmethod
    def leave_closed(experiment) -> None:
        """Give an experiment of which no image is used an image set of its scan; that of several may be longer."""
        imageset, scan = experiment.imageset, experiment.scan
        single = imageset.reader().is_single_file_reader()
        if single or not isinstance(imageset, ImageSequence) or len(imageset) == scan.get_num_images():
            return
        experiment.imageset = Format.get_imageset(
            image_paths(experiment),
            beam=experiment.beam,
            detector=experiment.detector,
            goniometer=experiment.goniometer,
            scan=scan,
            template=imageset.get_template(),
            as_sequence=True,
            check_format=False,
        )

    def _add_maps(self, imageset, names: dict, owner: str) -> None:
        """Set the maps of an imageset; its mask is joined to the one that the image format gives."""
        lookup = imageset.external_lookup
        for name, item in zip(MAPS, (lookup.mask, lookup.gain, lookup.pedestal, lookup.dx, lookup.dy)):
            if name not in names:
                continue
            path = names[name]
            if path not in self._arrays:
                self._arrays[path] = read_map_file(path, name, owner)
            arrays = self._arrays[path]
            if name == "mask" and not item.data.empty():
                arrays = tuple(a & item.data.tile(p).data() for p, a in enumerate(arrays))
            item.data = ImageBool(arrays) if name == "mask" else ImageDouble(arrays)
            item.filename = path
        if "dx" in names or "dy" in names:
            imageset.update_detector_px_mm_data()


def _same(key: tuple, other: tuple) -> bool:
    """Equality of models is slow, and two that are equal may still be different: only the same ones count."""
    return all(a is b for a, b in zip(key[:3], other[:3])) and key[3] == other[3]


def image_paths(experiment) -> list:
    """Image file of each position of the scan, or of the imageset where there is no scan; one and the same for a file
    of many images.

    Experiments on different parts of a sweep may share an imageset that is longer than their scans.
    """
    imageset, scan = experiment.imageset, experiment.scan
    paths = list(imageset.paths())
    if scan is None or not isinstance(imageset, ImageSequence):
        return paths
    first = scan.get_array_range()[0] - imageset.get_array_range()[0]
    return paths[first : first + scan.get_num_images()]


def _check_present(owner: str, experiment, paths: list, positions, number: int | None) -> None:
    missing = [(path, p) for path, p in zip(paths, positions) if not Path(path).is_file()]
    if not missing:
        return
    path, position = missing[0]
    count = len({p for p, _ in missing})
    fix = "restore the image" if number is not None else "restore the image, or import the others without it"
    if number is not None and not experiment.imageset.reader().is_single_file_reader():
        image = experiment.scan.get_image_range()[0] + position
        fix += f" or leave it out with exclude_images={number}:{image}:{image}"
    raise DiffuseError(f"{path}: image not found ({count} missing), {owner} refers to it; {fix}")


def _open(experiment, paths: list, sample: str):
    """A new imageset of an experiment's images, of the format that the image file ``sample`` has."""
    for path in (sample, paths[0]):  # dxtbx asks the first of stills for its format
        refuse_pickle(path)
    try:
        format_class = get_format_class_for_file(sample)
        if format_class is not None:
            return _imageset(experiment, paths, sample, format_class)
        reason = "its format is not known"
    except Exception as error:  # every format class raises its own types
        reason = " ".join(str(error).split()) or type(error).__name__
    if is_hdf5(sample):
        raise DiffuseError(f"{sample}: image cannot be read; {why_not_opened(sample)}") from None
    raise DiffuseError(
        f"{sample}: image cannot be read ({reason}); is it truncated? restore it or leave it out with exclude_images"
    ) from None


def refuse_pickle(path: str) -> None:
    """Call this before dxtbx looks for the format of a file: it unpickles what begins as a pickled dictionary.

    Raises
    ------
    DiffuseError
        If the file begins so.
    """
    try:
        with open_image(path) as handle:
            begin = handle.read(2)
    except (OSError, EOFError, ValueError):  # reading the image will say so
        return
    if begin[:1] == b"\x80" or begin in (b"(d", b"}q"):
        raise DiffuseError(
            f"{path}: a pickle in place of an image, which could run anything when it is read; write the images in "
            "another format, as CBF"
        )


def _imageset(experiment, paths: list, sample: str, format_class):
    placeholder, scan = experiment.imageset, experiment.scan
    options = placeholder.params() or {}
    beam, detector, goniometer = experiment.beam, experiment.detector, experiment.goniometer
    if not isinstance(placeholder, ImageSequence):
        indices = list(placeholder.indices()) if placeholder.reader().is_single_file_reader() else None
        result = ImageSetFactory.make_imageset(paths, None, True, indices, options)
        for i in range(len(result)):
            result.set_beam(beam, i)
            result.set_detector(detector, i)
            result.set_goniometer(goniometer, i)
        return result
    if placeholder.reader().is_single_file_reader():
        return format_class.get_imageset(
            [sample],
            beam=beam,
            detector=detector,
            goniometer=goniometer,
            scan=scan,
            format_kwargs=options,
            as_sequence=True,
            single_file_indices=list(range(*scan.get_array_range())),
        )
    # as Format.get_imageset does it, which however asks the first image, and that may be one that is not used
    format_class._current_filename_ = format_class._current_instance_ = None
    instance = format_class.get_instance(sample, **options)
    data = ImageSetData(
        reader=format_class.get_reader()(paths, **options),
        masker=instance.get_masker(goniometer=goniometer),
        vendor=instance.get_vendortype(),
        params=options,
        format=format_class,
        template=placeholder.get_template(),
    )
    result = ImageSequence(data, beam=beam, detector=detector, goniometer=goniometer, scan=scan)
    mask = instance.get_static_mask()
    if mask is not None:
        result.external_lookup.mask.data = ImageBool(mask)
    return result


_ARRAYS = {
    ("scitbx_array_family_flex_ext", "grid"): flex.grid,
    ("scitbx_array_family_flex_ext", "bool"): flex.bool,
    ("scitbx_array_family_flex_ext", "double"): flex.double,
    ("scitbx_array_family_flex_ext", "float"): flex.float,
    ("scitbx_array_family_flex_ext", "int"): flex.int,
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles flex arrays, and refuses everything else that a pickle could call."""

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):  # how bytes are written by old protocols
            return _encode
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
        return _ARRAYS[module, name]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return text.encode("latin1")


def read_map_file(path: str, name: str, owner: str) -> tuple:
    """The map in a file, one flex array for each panel; flex.bool for masks, else flex.double.

    Raises
    ------
    DiffuseError
        If the file is missing or holds anything else than arrays.
    """
    try:
        arrays = in_child(_arrays_of, path, name == "mask")
        if isinstance(arrays, str):
            raise ValueError(arrays)
        return tuple(flumpy.from_numpy(array) for array in arrays)
    except FileNotFoundError:
        raise DiffuseError(
            f"{path}: file not found, {owner} refers to it as the {name} of its images; restore it or import the "
            f"images without lookup.{name}"
        ) from None
    except Exception as error:  # a pickle can fail in any way
        raise DiffuseError(
            f"{path}: cannot be read as the {name} that {owner} refers to ({one_line(error)}); write it again"
        ) from None


def _arrays_of(path: str, mask: bool) -> list | str:
    """The arrays in a pickle, (ny, nx) bool or float64; or what is wrong. flex crashes on some damaged pickles."""
    with open(path, "rb") as handle:
        try:
            content = _ArraysOnly(handle, encoding="bytes").load()
            arrays = content if isinstance(content, (tuple, list)) else (content,)
            if not arrays or any(not hasattr(a, "all") or len(a.all()) != 2 for a in arrays):
                raise ValueError("no two-dimensional arrays")
            if mask and not all(isinstance(a, flex.bool) for a in arrays):
                raise ValueError("not an array of bool")
            return [np.array(a.as_numpy_array(), dtype=bool if mask else float) for a in arrays]
        except Exception as error:  # a pickle can fail in any way
            return one_line(error)
