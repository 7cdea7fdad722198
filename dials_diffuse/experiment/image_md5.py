"""Are CBF images what their detector wrote? Their headers may have the MD5 of each binary section."""

from __future__ import annotations

import base64
import bz2
import gzip
import hashlib
import logging
import re
from collections.abc import Iterable

import numpy as np

from dials_diffuse.errors import DiffuseError

logger = logging.getLogger("dials.diffuse.experiment")

_BEGIN, _START = b"--CIF-BINARY-FORMAT-SECTION--", b"\x0c\x1a\x04\xd5"
_FIELD = re.compile(rb"^(X-Binary-Size|Content-MD5):[ \t]*(\S+)", re.MULTILINE)
_ODD = 6.0  # standard deviations of the flux from that of the neighbours


def open_image(path):
    """An image file as bytes; unpacked if it is compressed as a whole, as dxtbx does by its name.

    dxtbx's own function keeps what it has read before, and would not see that a file has changed.
    """
    name = str(path)
    opener = gzip.open if name.endswith(".gz") else bz2.open if name.endswith(".bz2") else open
    return opener(path, "rb")


def agrees(path) -> bool | None:
    """Has every binary section of an image the MD5 that its header says? None where no header says one.

    A file that is no CBF has no such header; one that is compressed as a whole is unpacked first.
    """
    try:
        with open_image(path) as handle:
            data = handle.read(len(_BEGIN) + 4096)
            if b"CBF" not in data[:64]:
                return None
            data += handle.read()
    except (OSError, EOFError, ValueError):  # reading the image will say so
        return None
    found = []
    begin = data.find(_BEGIN)
    while begin >= 0:
        start = data.find(_START, begin)
        fields = {name: value for name, value in _FIELD.findall(data[begin:start])} if start >= 0 else {}
        size = fields.get(b"X-Binary-Size", b"")
        if not size.isdigit():
            break
        end = start + len(_START) + int(size)
        if b"Content-MD5" in fields:
            digest = hashlib.md5(data[start + len(_START) : end], usedforsecurity=False).digest()
            found.append(base64.b64encode(digest) == fields[b"Content-MD5"])
        begin = data.find(_BEGIN, end)
        if data[begin : begin + len(_BEGIN) + 2] == _BEGIN + b"--":  # the end of this section
            begin = data.find(_BEGIN, begin + len(_BEGIN) + 2)
    return all(found) if found else None


def check_images(number: int, imageset, first: int, positions: Iterable[int], known_to_tell: bool = False) -> bool:
    """Raise DiffuseError if some of these images were damaged after they were written.

    Where none of two or more agrees, whoever wrote them put something else into the headers: then nothing is known.

    Parameters
    ----------
    number : of the experiment, for the message
    first : number of the first image of the scan
    positions : of images, counted from the start of the scan
    known_to_tell : do the headers have the MD5 of the data, by what other images say?

    Returns
    -------
    bool, do the headers tell?
    """
    if imageset.reader().is_single_file_reader():
        return False
    known = {int(p): agrees(imageset.get_path(int(p))) for p in positions}
    known = {p: good for p, good in known.items() if good is not None}
    bad = [p for p, good in known.items() if not good]
    if not bad:
        return bool(known)
    if len(bad) == len(known) > 1 and not known_to_tell:
        logger.info("The MD5 in the headers of %s is not that of the data, and not used", imageset.get_path(bad[0]))
        return False
    image = first + bad[0]
    more = f" and {len(bad) - 1} more images" if len(bad) > 1 else ""
    raise DiffuseError(
        f"{imageset.get_path(bad[0])}{more}: damaged, the data are not those of the MD5 in the header; copy the image "
        f"once more or leave it out with exclude_images={number}:{image}:{image}"
    )


def odd_images(flux: dict) -> list:
    """Positions whose flux is not like that of the images around.

    flux : {position: relative to the sweep}
    """
    positions = sorted(flux)
    values = np.array([flux[p] for p in positions])
    if len(values) < 5:
        return []
    neighbours = np.nanmedian([values[:-2], values[1:-1], values[2:]], axis=0)
    change = values[1:-1] - neighbours
    spread = max(1.4826 * np.nanmedian(np.abs(np.diff(values))), 1e-4 * np.nanmax(np.abs(values)))
    return [p for p, c in zip(positions[1:-1], change) if not abs(c) < _ODD * spread]
