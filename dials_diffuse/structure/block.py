"""Blocks of whole unit cells, atom by atom."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dials_diffuse.memory import check_memory
from dials_diffuse.structure.crystal import ARRAYS, Structure

_BYTES_PER_ATOM = 1000  # texts, positions, tensors


def crystal_block(structure: Structure, labels: np.ndarray, supercell: tuple) -> tuple:
    """The content of a block of cells, and the group of each of its atoms.

    Parameters
    ----------
    structure : asymmetric unit
    labels : (n,) int64, group of each atom
    supercell : cells along a, b, c

    Returns
    -------
    block : Structure in P 1 in the unit cell of the crystal, beyond which its atoms lie; ``copy`` numbers the molecules
        through all cells. Cells come one after another, those along c the fastest, the copies in each as from
        :meth:`Structure.expand`.
    labels : (m,) int64, the groups of one molecule after those of another; a group of which no atom is left, since all
        lie on special positions and belong to an earlier copy, has no number
    """
    content = structure.expand()
    numbered = replace(structure, name=np.arange(structure.n_atoms).astype(str)).expand()
    mine = labels[numbered.name.astype(int)]
    cells = math.prod(supercell)
    check_memory(
        _BYTES_PER_ATOM * content.n_atoms * cells,
        f"supercell={','.join(map(str, supercell))}: the atoms of {cells:.3g} cells",
        "choose a smaller one",
    )
    order, groups = structure.space_group.order_z(), labels.max() + 1
    cell = np.repeat(np.arange(cells), content.n_atoms)
    arrays = {key: np.concatenate([getattr(content, key)] * cells) for key in ARRAYS}
    arrays["site_frac"] = arrays["site_frac"] + np.array(list(np.ndindex(*supercell)))[cell]
    arrays["copy"] = arrays["copy"] + order * cell
    _, numbers = np.unique(arrays["copy"] * groups + np.tile(mine, cells), return_inverse=True)
    return replace(content, **arrays), numbers.reshape(-1)
