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
        if external.n_tiles() != len(detector):
            raise DiffuseError(
                f"{imageset.external_lookup.mask.filename or 'the mask of the imageset'}: {external.n_tiles()} panels, "
                f"the detector has {len(detector)}; apply a mask made for this detector"
            )
        for i, mask in enumerate(masks):
            mask &= external.tile(i).data().as_numpy_array()
    return masks


def image_mask(imageset, i: int) -> list | None:
    """Masks that change from image to image (goniometer shadows), True = usable; None when there are none."""
    if not imageset.has_dynamic_mask():
        return None
    return [part.as_numpy_array() for part in imageset.get_mask(i)]


def image_files(imageset) -> tuple:
    """What identifies the images, so that several crystals (experiments) on the same images can be recognised."""
    return tuple(imageset.paths()), tuple(imageset.indices())
