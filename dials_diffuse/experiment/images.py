"""Raw images and their masks as numpy arrays, straight from the files."""

from __future__ import annotations

import numpy as np

from dials_diffuse.errors import DiffuseError


def read_image(imageset, i: int) -> list:
    """Raw values of image ``i`` (0-based within the imageset), one (ny, nx) array per panel, int32 or float64.

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
        raise DiffuseError(
            f"{path}: image {i + 1} of its sequence cannot be read ({reason}); is it truncated? restore it or leave it "
            f"out with exclude_images"
        ) from None
    panels = imageset.get_detector()
    if len(data) != len(panels):
        raise DiffuseError(f"{path}: {len(data)} panels, the experiment says {len(panels)}; import the images again")
    arrays = []
    for part, panel in zip(data, panels):
        array = part.as_numpy_array()
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
    return [part.as_numpy_array() for part in imageset.get_mask(i)]


def image_shift(own, other) -> int | None:
    """Position of an image in ``other`` less its position in ``own``; None if two imagesets share no image.

    Tells whether several crystals (experiments) lie on the same images, also on different parts of one sweep.
    """
    if own is other:
        return 0
    positions = {identity: i for i, identity in enumerate(_identities(own))}
    for j, identity in enumerate(_identities(other)):
        if identity in positions:
            return j - positions[identity]
    return None


def _identities(imageset) -> list:
    """What identifies each image: its file, and the number inside a file of many."""
    single_file = imageset.reader().is_single_file_reader()
    numbers = list(imageset.indices()) if single_file else [0] * len(imageset)
    paths = [imageset.get_path(i) for i in range(len(imageset))]
    return [(path, number) for path, number in zip(paths, numbers) if path]
