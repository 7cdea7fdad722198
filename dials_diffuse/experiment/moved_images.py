"""Images that are no longer where an .expt file says: looked for below a folder, and where the file itself has gone."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

logger = logging.getLogger("dials.diffuse.experiment")

#: folders above that of the .expt file, and parts of an old path, that are tried
_LEVELS, _PARTS = 4, 5


def find_moved(imagesets: list, folder: str, root: str | None = None) -> None:
    """Change the paths of images, in the dictionaries of an .expt file, that are not where they were.

    A path is looked for with as many of its last parts as can be found: below ``root``, then below the folder of the
    .expt file and those above it, so that images are found that moved together with the file. What cannot be found
    stays as it is.

    Parameters
    ----------
    imagesets : dictionaries of an .expt file, changed in place
    folder : of the .expt file
    root : where to look first; None: nowhere else
    """
    bases = [Path(root)] if root else []
    here = Path(folder)
    bases += [here, *list(here.parents)[: _LEVELS - 1]]
    for item in imagesets:
        if isinstance(item.get("template"), str):
            item["template"] = _moved(item["template"], folder, bases)
        if isinstance(item.get("images"), list):
            item["images"] = [_moved(path, folder, bases) for path in item["images"]]


def _moved(name: str, folder: str, bases: list) -> str:
    old = Path(os.path.join(folder, os.path.expandvars(name)))
    if _there(old):
        return name
    parts = old.parts[1:] if old.is_absolute() else old.parts
    for base in bases:
        for n in range(min(_PARTS, len(parts)), 0, -1):
            found = base.joinpath(*parts[-n:])
            if found != old and _there(found):
                logger.warning("Warning: %s: images not found there, those of %s are used", name, found)
                return str(found)
    return name


def _there(path: Path) -> bool:
    """Is there a file of this name, or one that fits a template with # for digits?"""
    if "#" not in path.name:
        return path.is_file()
    if not path.parent.is_dir():
        return False
    pattern = re.compile(re.sub("#+", lambda m: f"[0-9]{{{len(m[0])}}}", re.escape(path.name).replace(r"\#", "#")))
    with os.scandir(path.parent) as entries:
        return any(pattern.fullmatch(entry.name) for entry in entries)
