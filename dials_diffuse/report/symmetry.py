"""The symmetry of the data as text: a table of rotations, one of Laue groups, and what follows."""

from __future__ import annotations

from operator import attrgetter

from dials_diffuse.maps.laue_group import LaueTest
from dials_diffuse.report.tables import Column, text_table

_OPERATORS = tuple(
    Column(head, width, how, attrgetter(name))
    for name, head, width, how in (
        ("operator", "rotation", -18, ""),
        ("n_pairs", "pairs", 9, "d"),
        ("cc", "CC", 8, ".3f"),
        ("cc_expected", "expected", 10, ".3f"),
        ("ratio", "ratio", 8, ".3f"),
        ("esd", "e.s.d.", 8, ".3f"),
        ("likelihood", "likelihood", 12, ".3f"),
        ("verdict", "verdict", 14, ""),
    )
)
_GROUPS = tuple(
    Column(head, width, how, attrgetter(name))
    for name, head, width, how in (
        ("laue_group", "Laue group", -28, ""),
        ("n_operators", "rotations", 10, "d"),
        ("likelihood", "likelihood", 12, ".3f"),
        ("verdict", "verdict", 14, ""),
    )
)

#: Laue groups that are shown, the likeliest
_SHOWN = 6


def symmetry_text(test: LaueTest) -> str:
    """Text for the log."""
    if not test.operators:
        lines = ["The lattice has no rotations that could be tested"]
    else:
        lines = [
            "Symmetry of what varies from voxel to voxel, Friedel mates averaged; expected: CC if the rotation holds",
            f"({test.n_observations} observations to {test.d_min:.2f} Å)",
            "",
            text_table(_OPERATORS, test.operators),
            "",
        ]
        if test.recommended is None:
            lines.append(
                f"The Laue group is not decided: passages of the same voxel share a signal of {test.significance:.1f} "
                "standard errors"
            )
        else:
            lines += [text_table(_GROUPS, test.groups[:_SHOWN]), ""]
            lines.append(f"Likeliest Laue group: {test.recommended.laue_group}; given: {test.declared.laue_group}")
    if test.untested:
        lines.append(f"Not tested, because voxels do not fall on voxels: {' and '.join(test.untested)}")
    return "\n".join(lines)
