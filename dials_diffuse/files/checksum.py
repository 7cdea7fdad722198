"""Checksums: of all that HDF5's own do not cover, and of the binary sections of CBF images."""

from __future__ import annotations

import hashlib

import h5py
import numpy as np

#: root attribute with the checksum of attributes, texts, single values and the layout
CHECKSUM = "checksum"

#: values without Fletcher-32 are few; a data set that says otherwise is damaged
_LARGE = 1 << 20


def protected(values) -> dict:
    """Options of ``create_dataset`` for HDF5's Fletcher-32, which cannot be had for single values and texts."""
    array = np.asarray(values)
    return {"fletcher32": True} if array.ndim and array.size and array.dtype.kind in "fiub" else {}


def header_checksum(handle: h5py.File) -> str:
    """Checksum of names, types, shapes and attributes of all objects, and of values without Fletcher-32.

    With the Fletcher-32 of the other values nothing in a file can change unnoticed. The attribute with the checksum
    itself is left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, handle, "/", set())
    return digest.hexdigest()


def _add(digest, item, name: str, seen: set) -> None:
    address = h5py.h5o.get_info(item.id).addr
    if address in seen:  # hard links may form circles
        return
    seen.add(address)
    for key in sorted(item.attrs):
        if (name, key) != ("/", CHECKSUM):
            _add_values(digest, f"{name}@{key}", item.attrs[key])
    if isinstance(item, h5py.Dataset):
        _add_values(digest, name, (str(item.dtype), str(item.shape), str(item.chunks), str(item.fletcher32)))
        elsewhere = item.is_virtual or item.external
        if not (item.fletcher32 or elsewhere or item.shape is None or item.size > _LARGE):
            _add_values(digest, name, item[()])
        return
    for key in sorted(item):
        link = item.get(key, getlink=True)
        if isinstance(link, h5py.HardLink):
            _add(digest, item[key], f"{name.rstrip('/')}/{key}", seen)
        else:
            _add_values(digest, f"{name.rstrip('/')}/{key}", type(link).__name__)


def _add_values(digest, name: str, values) -> None:
    array = np.asarray(values)
    if array.dtype.kind in "OUS":
        texts = [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in array.ravel().tolist()]
        content, kind = "\0".join(texts).encode("utf-8", "replace"), "text"
    else:
        content, kind = np.ascontiguousarray(array).tobytes(), array.dtype.str
    for part in (name.encode("utf-8", "replace"), kind.encode(), str(array.shape).encode(), content):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
