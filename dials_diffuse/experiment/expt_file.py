"""The content of an .expt file, before dxtbx makes models of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory
from dxtbx.serialize.filename import resolve_path

#: maps, one value for each pixel, that an .expt names by file (dials.import lookup.*)
MAPS = ("mask", "gain", "pedestal", "dx", "dy")

#: numbers of images are not beyond this
_MOST_IMAGES = 10_000_000


def read_content(path) -> tuple:
    """The dictionary of an .expt file without the maps, and for each experiment their files, {name out of MAPS: path}.

    dxtbx would unpickle the maps that the file names, and so run whatever such a file asks for; later versions of DIALS
    do so even where no image is to be opened. So their names are taken out beforehand, also of imagesets that are in
    files of their own.

    Raises
    ------
    Exception
        Of many types, if the file is malformed.
    """
    folder = _folder(path)
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    _check_scans(content.get("scan", []))
    imagesets = content.setdefault("imageset", [])
    places: dict = {}
    for entry in content["experiment"]:
        name = entry.get("imageset")
        if isinstance(name, str):
            if name not in places:
                places[name] = len(imagesets)
                imagesets.append(json.loads(Path(resolve_path(name, directory=folder)).read_text(encoding="utf-8")))
            entry["imageset"] = places[name]
    named = [_take_maps(item, folder) for item in imagesets]
    numbers = [entry.get("imageset") for entry in content["experiment"]]
    return content, [{} if number is None else named[number] for number in numbers]


def make_experiments(content: dict, path) -> ExperimentList:
    """The models of what :func:`read_content` read; no image is opened."""
    return ExperimentListFactory.from_dict(content, check_format=False, directory=_folder(path))


def _folder(path) -> str:
    return os.path.dirname(os.path.abspath(path))


def _check_scans(scans: list) -> None:
    """Raise ValueError for numbers of images with which dxtbx would end the process, or that it would change."""
    for scan in scans:
        limits = scan.get("image_range", (1, 1))
        if len(limits) != 2 or not all(isinstance(n, int) and abs(n) <= _MOST_IMAGES for n in limits):
            raise ValueError(f"image_range {limits}")


def _take_maps(item: dict, folder: str) -> dict:
    """Names of the maps in the dictionary of an imageset, which loses them."""
    found = {name: resolve_path(item.pop(name, None) or "", directory=folder) for name in MAPS}
    return {name: path for name, path in found.items() if path}
