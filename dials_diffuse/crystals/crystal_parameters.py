"""Parameters of the choice of crystals, validated where they are made, and their phil."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dials_diffuse.checks import at_least, choice, fraction, positive
from dials_diffuse.errors import DiffuseError

KEEP = ("auto", "all")
REINDEX = ("auto", "none")


@dataclass(frozen=True)
class CrystalParameters:
    """Which crystals to keep, and in which setting.

    Attributes
    ----------
    reindex : one of REINDEX; "auto": bring all crystals into the same setting of the lattice; "none": as they are
    keep : one of KEEP; "auto": the crystals of one cluster; "all": every one
    cell_cluster, cluster : numbers of that of the unit cells, and among these of that of the maps; 1 is the largest,
        None the same if there is no other as large
    cell_tolerance : relative difference of lengths, and a hundredth of that of angles in degrees, that cells of a
        cluster have on the average
    min_correlation : crystals whose maps certainly correlate less than this share of what is usual among those that
        agree do not belong together

    Raises
    ------
    DiffuseError
        If a value is out of range; the message names the phil parameter.
    """

    reindex: str = "auto"
    keep: str = "auto"
    cell_cluster: int | None = None
    cluster: int | None = None
    cell_tolerance: float = 0.02
    min_correlation: float = 0.5

    phil: ClassVar[str] = """
reindex = *auto none
  .type = choice
  .help = "auto: where the lattice has more symmetry than the crystal, bring all crystals into the same setting, the"
          "one that most of them are in. none: leave them as they are indexed."
crystals {
  keep = *auto all
    .type = choice
    .help = "auto: leave out crystals whose unit cell, or whose map, disagrees with those of the largest cluster."
            "all: keep every one."
  cell_cluster = Auto
    .type = int(value_min=1)
    .help = "Keep the crystals of another cluster of unit cells: 1 is the largest. Log and output.json tell which."
  cluster = Auto
    .type = int(value_min=1)
    .help = "Keep another cluster of maps among these crystals: 1 is the largest."
  cell_tolerance = 0.02
    .type = float(value_min=0)
    .help = "Cells of a cluster differ less than this on the average: relative in lengths, times 100 degrees in angles."
  min_correlation = 0.5
    .type = float(value_min=0, value_max=1)
    .help = "Crystals belong together if the correlation of their anisotropic parts, corrected for noise, is not"
            "significantly less than this share of what is usual among those that agree."
}
"""

    def __post_init__(self):
        choice("reindex", self.reindex, REINDEX)
        choice("crystals.keep", self.keep, KEEP)
        numbers = {"crystals.cell_cluster": self.cell_cluster, "crystals.cluster": self.cluster}
        for name, number in numbers.items():
            if number is not None:
                at_least(name, number, 1)
                if self.keep == "all":
                    raise DiffuseError(f"{name}={number}: a cluster and crystals.keep=all exclude each other")
        positive("crystals.cell_tolerance", self.cell_tolerance)
        fraction("crystals.min_correlation", self.min_correlation)

    @classmethod
    def from_phil(cls, params) -> CrystalParameters:
        """From the extracted phil scope.

        Raises
        ------
        DiffuseError
            If a value is out of range.
        """
        scope = params.crystals
        return cls(
            reindex="none" if params.reindex is None else params.reindex,  # phil takes the word for None
            keep=scope.keep,
            cell_cluster=scope.cell_cluster if isinstance(scope.cell_cluster, int) else None,
            cluster=scope.cluster if isinstance(scope.cluster, int) else None,
            cell_tolerance=scope.cell_tolerance,
            min_correlation=scope.min_correlation,
        )
