"""Helices and strands that a coordinate file names."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import iotbx.pdb
from libtbx.utils import Sorry


@dataclass(frozen=True)
class Stretch:
    """Residues of a chain that form one piece of secondary structure.

    kind : ``helix`` or ``strand``; chain : its identifier; first, last : numbers of residues, with insertion code
    """

    kind: str
    chain: str
    first: str
    last: str

    def record(self) -> dict:
        """For JSON."""
        return asdict(self)


def secondary_structure(path) -> tuple:
    """Helices and strands in the records of a PDB or mmCIF file, in their order; empty where it has none.

    Records that cannot be understood are left out: they are for pictures only.
    """
    try:
        found = iotbx.pdb.input(file_name=str(path)).extract_secondary_structure()
    except (AssertionError, AttributeError, KeyError, RuntimeError, Sorry, TypeError, ValueError):
        return ()
    if found is None:
        return ()
    pieces = [("helix", helix) for helix in found.helices]
    pieces += [("strand", strand) for sheet in found.sheets for strand in sheet.strands]
    return tuple(
        Stretch(
            kind,
            piece.start_chain_id.strip(),
            f"{piece.start_resseq}{piece.start_icode}".strip(),
            f"{piece.end_resseq}{piece.end_icode}".strip(),
        )
        for kind, piece in pieces
    )
