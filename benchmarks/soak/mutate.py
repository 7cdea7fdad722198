"""Damage to files: as bytes, as text, as HDF5 or JSON of another structure."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np

NUMBERS = ("-1", "0", "1e308", "-1e308", "nan", "inf", "1e-320", "99999999999999999999", "-2147483648", "", "x", "1.5")
VALUES = (None, True, -1, 0, 1e308, float("nan"), 2**63, "", "text", [], {}, [[1], [2, 3]], -(2**31), [None] * 3)
_NUMBER = re.compile(rb"-?\d+\.?\d*(?:[eE][-+]?\d+)?")


def as_bytes(content: bytes, rng) -> bytes:
    """A copy with one kind of damage at a random place."""
    data = bytearray(content)
    n = len(data)
    kind, place = rng.integers(8), int(rng.integers(max(n, 1)))
    length = int(min(n - place, rng.integers(1, 1 + max(1, min(n // 4, 4096)))))
    if kind <= 1:
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(n))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        del data[place : place + length]
    elif kind == 4:
        data[place : place + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    elif kind == 5:
        data[place : place + length] = bytes(length)
    elif kind == 6:
        data[place:place] = data[place : place + length]
    else:
        other = int(rng.integers(n))
        data[place : place + length] = data[other : other + length]
    return bytes(data)


def as_text(content: bytes, rng) -> bytes:
    """A copy in which numbers, words or lines are others; or damaged as bytes."""
    kind = rng.integers(5)
    if kind == 0:
        return as_bytes(content, rng)
    if kind == 1:
        found = list(_NUMBER.finditer(content))
        if not found:
            return as_bytes(content, rng)
        match = found[int(rng.integers(len(found)))]
        return content[: match.start()] + str(rng.choice(NUMBERS)).encode() + content[match.end() :]
    lines = content.split(b"\n")
    i, j = (int(x) for x in rng.integers(len(lines), size=2))
    if kind == 2:
        del lines[i]
    elif kind == 3:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = lines[i][: int(rng.integers(len(lines[i]) + 1))]
    return b"\n".join(lines)


def as_json(content: bytes, rng) -> bytes:
    """A copy with another value somewhere in the tree; or damaged as text."""
    if rng.integers(4) == 0:
        return as_text(content, rng)
    tree = json.loads(content)
    places = []

    def walk(item):
        for key in item if isinstance(item, dict) else range(len(item)):
            places.append((item, key))
            if isinstance(item[key], (dict, list)):
                walk(item[key])

    walk(tree)
    item, key = places[int(rng.integers(len(places)))]
    if rng.integers(4) == 0:
        del item[key]
    else:
        item[key] = VALUES[int(rng.integers(len(VALUES)))]
    return json.dumps(tree).encode()


def hdf5(path, rng) -> None:
    """Change an HDF5 file in place, as another program could do it: its own checksum is taken away."""
    with h5py.File(path, "r+") as handle:
        handle.attrs.pop("checksum", None)
        names: list = []
        handle.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        item, kind = handle[name], rng.integers(9)
        if kind == 0:
            del handle[name]
        elif kind == 1 and len(item.attrs):
            key = sorted(item.attrs)[int(rng.integers(len(item.attrs)))]
            item.attrs[key] = [np.nan, "text", [1, 2, 3], -1, 2**40, [], "[1, {}]"][int(rng.integers(7))]
        elif kind == 2 and len(handle.attrs):
            key = sorted(handle.attrs)[int(rng.integers(len(handle.attrs)))]
            handle.attrs[key] = [np.nan, "text", [1, 2, 3], "[1]", "{}", '[{"identifier": 1}]'][int(rng.integers(6))]
        elif kind == 3:
            del handle[name]
            handle[name] = [h5py.SoftLink("/" + name), h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/")][
                int(rng.integers(3))
            ]
        elif kind == 4:
            del handle[name]
            handle.create_group(name)
        elif kind == 5 and isinstance(item, h5py.Dataset) and item.size and item.dtype.kind in "fi" and item.ndim:
            values = item[()]
            extreme = [-1, 0, np.iinfo(np.int32).min] + [np.nan, np.inf, 1e308] * (item.dtype.kind == "f")
            values.flat[int(rng.integers(values.size))] = extreme[int(rng.integers(len(extreme)))]
            item[()] = values
        else:
            shape = item.shape if isinstance(item, h5py.Dataset) and item.shape else (3,)
            del handle[name]
            other = [(0,), (5,), shape, (*shape, 2), shape[:1], ()][int(rng.integers(6))]
            dtype = ["f8", "i4", "f2", "u8", "S3", "c16", "?"][int(rng.integers(7))]
            handle.create_dataset(name, data=np.zeros(other, dtype))
