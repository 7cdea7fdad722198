"""Do data have the space group that they were given? One that is too high spoils the map without a sign."""

from __future__ import annotations

import logging

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.laue_group import LaueTest, find_laue_group
from dials_diffuse.maps.mates import LowAngles

logger = logging.getLogger("dials.diffuse.symmetry")

#: what to do about a space group that is too high
ERROR, WARN, NONE = CHECKS = ("error", "warn", "none")

#: phil of the programs that average over the Laue group
PHIL = """
symmetry {
  check = *error warn none
    .type = choice
    .help = "Compare voxels with their images under all rotations of the lattice. A space group with rotations that the"
            "data do not have is an error, or with warn, a warning; with none, nothing is compared."
}
"""


def check_of_phil(value: str | None) -> str:
    """One of CHECKS from the extracted phil choice, which takes the word none for None."""
    return NONE if value is None else value


def check_laue_group(low: LowAngles, check: str, path) -> tuple:
    """Test the Laue group of a grid on observations.

    Parameters
    ----------
    low : what was collected
    check : one of CHECKS
    path : the file that messages name

    Returns
    -------
    (LaueTest, None where nothing was to be compared; list of sentences for the user)

    Raises
    ------
    DiffuseError
        If the space group of the grid is too high, and ``check`` is ``error``.
    """
    choice("symmetry.check", check, CHECKS)
    if check == NONE:
        return None, []
    test = find_laue_group(low.rows(), low.grid)
    if test.failing:
        text = too_high_in_words(test, low.grid, path)
        if check == ERROR:
            raise DiffuseError(f"{text}, or symmetry.check=warn to go on as it is")
        return test, [text]
    if test.is_more:
        return test, [more_in_words(test, low.grid)]
    return test, []


def too_high_in_words(test: LaueTest, grid: MapGrid, path) -> str:
    """What does not hold, and which group does."""
    worst = sorted(test.failing, key=lambda o: o.ratio)
    shown = [f"{o.operator} correlates by {o.cc:.2f} where {o.cc_expected:.2f} is expected" for o in worst[:3]]
    more = f", and {len(worst) - 3} more" if len(worst) > 3 else ""
    return (
        f"{path}: space group {grid.space_group_symbol} is too high for the diffuse scattering: "
        f"{', '.join(shown)}{more}; {test.largest_inside.space_group} is the highest part of it that holds: "
        f"give {_typed(test.largest_inside)}"
    )


def more_in_words(test: LaueTest, grid: MapGrid) -> str:
    """Which larger group holds too."""
    extra = [o.operator for o in test.operators if not o.declared and o.verdict == "holds"]
    times = test.recommended.n_operators / test.declared.n_operators
    return (
        f"the diffuse scattering has more symmetry than space group {grid.space_group_symbol}: also "
        f"{' and '.join(extra[:3])} (Laue group {test.recommended.laue_group}); {_typed(test.recommended)} would "
        f"average {times:g} times more, unless the crystal is twinned"
    )


def _typed(group) -> str:
    symbol = group.space_group.replace(" ", "")
    return f'space_group="{symbol}"' if "(" in symbol else f"space_group={symbol}"
