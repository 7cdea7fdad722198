"""Raw images, what turns them into photons, and their masks as numpy arrays."""

from __future__ import annotations

import os

import numpy as np
from dxtbx import flumpy

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.detector import panel_reading
from dials_diffuse.files.hdf5 import is_hdf5, why_not_opened
from dials_diffuse.kernels.image import Reading


def image_readings(imageset) -> list[Reading]:
    """How the values that :func:`read_image` gives become photons, for each panel.

    As in dxtbx's ``get_corrected_data``: a map of the imageset (``dials.import lookup.gain=``, ``lookup.pedestal=``)
    takes the place of the panels' values. Where there are maps, :func:`read_image` has applied them.
    """
    if _has_maps(imageset):
        return [Reading(-np.inf, np.inf, 0.0, 1.0)] * len(imageset.get_detector())
    return [panel_reading(panel) for panel in imageset.get_detector()]


def _has_maps(imageset) -> bool:
    lookup = imageset.external_lookup
    return not (lookup.gain.data.empty() and lookup.pedestal.data.empty())


def read_image(imageset, i: int) -> list:
    """Values of image ``i`` (0-based within the imageset), one (ny, nx) array per panel.

    Raw ones, int32 or float64; photons, float64, where the imageset has maps of gain or pedestal, and NaN where the raw
    value is outside the trusted range or the gain not positive. :func:`image_readings` says what to do with either.

    Raises
    ------
    DiffuseError
        If the file is missing, truncated or has another shape than the detector.
    """
    arrays = read_raw(imageset, i)
    if not _has_maps(imageset):
        return arrays
    pedestal = _panel_maps(imageset.get_pedestal(i), imageset, "pedestal")
    gain = _panel_maps(imageset.get_gain(i), imageset, "gain")
    readings = [panel_reading(panel) for panel in imageset.get_detector()]
    return [_photons(*values) for values in zip(arrays, readings, pedestal, gain)]


def _panel_maps(maps, imageset, name: str) -> list:
    """What dxtbx has for a pedestal or gain, from a map or from the panels, (ny, nx) float64 for each panel.

    Numbers without dimension where it has nothing.
    """
    panels = imageset.get_detector()
    if not maps:
        return [np.array(1.0 if name == "gain" else 0.0)] * len(panels)
    arrays = [part.as_numpy_array() for part in maps]
    expected = [panel.get_image_size()[::-1] for panel in panels]
    if [a.shape for a in arrays] != expected:
        file = getattr(imageset.external_lookup, name).filename or f"the {name} of the imageset"
        raise DiffuseError(
            f"{file}: made for panels of {[a.shape for a in arrays]} pixels, the detector has {expected}; make a new "
            f"one"
        )
    return arrays


def _photons(raw: np.ndarray, reading: Reading, pedestal: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """(ny, nx) float64 photons, NaN where the raw value cannot be trusted; of ``reading`` only the limits count."""
    usable = reading.trusted(raw) & (gain > 0) & np.isfinite(pedestal)
    return np.where(usable, (raw - pedestal) / np.where(gain > 0, gain, 1.0), np.nan)


def read_raw(imageset, i: int) -> list:
    """Raw values of image ``i`` (0-based within the imageset), one (ny, nx) array per panel, int32 or float64.

    The memory is that of dxtbx, which may keep the image: the values are not to be changed.

    Raises
    ------
    DiffuseError
        If the file is missing, truncated or has another shape than the detector.
    """
    path = imageset.get_path(i)
    try:
        data = imageset.get_raw_data(i)
    except Exception as error:  # every format class raises its own types
        reason = " ".join(str(error).split()) or type(error).__name__
        closed = why_not_opened(path) if is_hdf5(path) else ""
        raise DiffuseError(
            f"{path}: image {i + 1} of its sequence cannot be read"
            + (
                f"; {closed}"
                if closed
                else f" ({reason}); is it truncated? restore it or leave it out with exclude_images"
            )
        ) from None
    panels = imageset.get_detector()
    if len(data) != len(panels):
        raise DiffuseError(f"{path}: {len(data)} panels, the experiment says {len(panels)}; import the images again")
    arrays = []
    for part, panel in zip(data, panels):
        array = flumpy.to_numpy(part)
        nx, ny = panel.get_image_size()
        if array.shape != (ny, nx):
            raise DiffuseError(
                f"{path}: panel is {array.shape[1]} x {array.shape[0]} pixels, the experiment says {nx} x {ny}; "
                f"import the images again"
            )
        kind = np.int32 if array.dtype.kind in "iu" else np.float64
        arrays.append(np.ascontiguousarray(array, dtype=kind))
    imageset.clear_cache()
    return arrays


def static_mask(imageset) -> list:
    """(ny, nx) bool per panel, True = usable: untrusted rectangles, panel masks, and the mask of the imageset.

    The last holds what ``dials.generate_mask`` + ``dials.apply_mask`` or the image format itself put there.
    """
    detector = imageset.get_detector()
    masks = [panel.get_untrusted_rectangle_mask().as_numpy_array() for panel in detector]
    external = imageset.external_lookup.mask.data
    if not external.empty():
        tiles = [external.tile(i).data().as_numpy_array() for i in range(external.n_tiles())]
        if [t.shape for t in tiles] != [m.shape for m in masks]:
            raise DiffuseError(
                f"{imageset.external_lookup.mask.filename or 'the mask of the imageset'}: made for panels of "
                f"{[t.shape for t in tiles]} pixels, the detector has {[m.shape for m in masks]}; make a new one"
            )
        for mask, tile in zip(masks, tiles):
            mask &= tile
    return masks


def image_mask(imageset, i: int) -> list | None:
    """Masks that change from image to image (goniometer shadows), True = usable; None when there are none."""
    if not imageset.has_dynamic_mask():
        return None
    return [flumpy.to_numpy(part) for part in imageset.get_mask(i)]


def image_shift(own, other) -> int | None:
    """Position of an image in ``other`` less its position in ``own``; None if two imagesets share no image.

    Tells whether several crystals (experiments) lie on the same images, also on different parts of one sweep.
    """
    if own is other:
        return 0
    positions = {identity: i for i, identity in enumerate(identities(own))}
    for j, identity in enumerate(identities(other)):
        if identity in positions:
            return j - positions[identity]
    return None


def identities(imageset) -> list:
    """What identifies each image: its file, however it is called, and the number inside a file of many."""
    single_file = imageset.reader().is_single_file_reader()
    numbers = list(imageset.indices()) if single_file else [0] * len(imageset)
    paths = [imageset.get_path(i) for i in range(len(imageset))]
    return [(os.path.realpath(path), number) for path, number in zip(paths, numbers) if path]
