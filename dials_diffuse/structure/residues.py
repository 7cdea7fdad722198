"""Residues of proteins: their atoms, how frequent they are, and sequences of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from iotbx import bioinformatics

from dials_diffuse.errors import DiffuseError

#: atoms of an amino acid residue: C, H, N, O, S, Se
RESIDUES = {
    "G": (2, 3, 1, 1, 0, 0),
    "A": (3, 5, 1, 1, 0, 0),
    "S": (3, 5, 1, 2, 0, 0),
    "P": (5, 7, 1, 1, 0, 0),
    "V": (5, 9, 1, 1, 0, 0),
    "T": (4, 7, 1, 2, 0, 0),
    "C": (3, 5, 1, 1, 1, 0),
    "L": (6, 11, 1, 1, 0, 0),
    "I": (6, 11, 1, 1, 0, 0),
    "N": (4, 6, 2, 2, 0, 0),
    "D": (4, 5, 1, 3, 0, 0),
    "Q": (5, 8, 2, 2, 0, 0),
    "K": (6, 12, 2, 1, 0, 0),
    "E": (5, 7, 1, 3, 0, 0),
    "M": (5, 9, 1, 1, 1, 0),
    "H": (6, 7, 3, 1, 0, 0),
    "F": (9, 9, 1, 1, 0, 0),
    "R": (6, 12, 4, 1, 0, 0),
    "Y": (9, 9, 1, 2, 0, 0),
    "W": (11, 10, 2, 1, 0, 0),
    "U": (3, 5, 1, 1, 0, 1),
}
RESIDUE_ELEMENTS = ("C", "H", "N", "O", "S", "Se")

#: per cent of each residue in UniProtKB/Swiss-Prot (release statistics of 2023)
_AVERAGE = dict(
    zip(
        "ARNDCQEGHILKMFPSTWYV",
        (8.25, 5.53, 4.06, 5.46, 1.38, 3.93, 6.72, 7.07, 2.27, 5.91)
        + (9.65, 5.80, 2.41, 3.86, 4.74, 6.65, 5.36, 1.10, 2.92, 6.86),
    )
)


def average_residue() -> dict:
    """Atoms of the average residue of proteins, element -> number."""
    total = sum(_AVERAGE.values())
    table = np.sum([share / total * np.array(RESIDUES[x]) for x, share in _AVERAGE.items()], axis=0)
    return {e: float(n) for e, n in zip(RESIDUE_ELEMENTS, table) if n}


def letters_of(sequence: str) -> str:
    """One-letter codes of a sequence file, or of the letters themselves; all chains together.

    Raises
    ------
    DiffuseError
        If the file cannot be read, or the letters are no amino acids.
    """
    path = Path(sequence)
    if path.is_file():
        try:
            chains, _ = bioinformatics.any_sequence_format(str(path))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise DiffuseError(f"absolute_scale.sequence={sequence}: cannot be read ({error})") from None
        if not chains:
            raise DiffuseError(f"absolute_scale.sequence={sequence}: no sequence in this file; give FASTA")
        letters = "".join(chain.sequence for chain in chains)
    elif "." in sequence or "/" in sequence:
        raise DiffuseError(f"absolute_scale.sequence={sequence}: no such file; give a FASTA file, or the letters")
    else:
        letters = sequence
    letters = "".join(letters.split()).rstrip("*").upper()
    unknown = sorted(set(letters) - set(RESIDUES))
    if unknown or not letters:
        what = f"{', '.join(unknown)}: no amino acid" if unknown else "no letters"
        raise DiffuseError(f"absolute_scale.sequence={sequence[:40]}: {what}; give one-letter codes of a protein")
    if bioinformatics.composition_from_sequence(letters)[1] and len(letters) > 10:
        raise DiffuseError(
            f"absolute_scale.sequence={sequence[:40]}: this is a nucleic acid; give coordinates (absolute_scale.model)"
        )
    return letters
