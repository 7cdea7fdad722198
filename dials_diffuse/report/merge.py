"""A merged map: the table of its statistics, and the record for programs."""

from __future__ import annotations

from dataclasses import asdict
from operator import itemgetter

from dials_diffuse.files.record import grid_record
from dials_diffuse.maps.laue_group import symmetry_record
from dials_diffuse.merging.laue import MergeResult
from dials_diffuse.merging.statistics import ShellTable, shells_away_from_bragg
from dials_diffuse.report.tables import Column, cells, heads, text_table

#: (name in a record, heading, width, format) of what is told of a shell
SHELL_COLUMNS = (
    ("d_max", "d_max", 8, ".2f"),
    ("d_min", "d_min", 8, ".2f"),
    ("n", "n", 9, ".0f"),
    ("completeness", "compl.", 8, ".3f"),
    ("multiplicity", "mult.", 8, ".1f"),
    ("mean", "<I>", 11, ".4g"),
    ("mean_sigma", "<sigma>", 10, ".3g"),
    ("rms_anisotropic", "rms(aniso)", 11, ".4g"),
    ("cc_half", "CC1/2", 7, ".3f"),
    ("cc_friedel", "CC(F+-)", 9, ".3f"),
    ("r_sym", "Rsym", 7, ".3f"),
    ("chi2_sym", "chi2", 9, ".4g"),
)

_COLUMNS = tuple(Column(head, width, how, itemgetter(name)) for name, head, width, how in SHELL_COLUMNS)


def format_statistics(table: ShellTable) -> str:
    """The statistics as text for logs, one line a shell and one for all."""
    return text_table(_COLUMNS, table.rows(), [table.overall])


def merge_record(result: MergeResult) -> dict:
    """Content of ``output.json``, schema ``dials.diffuse_merge/1``; with a reference ``comparison`` is added to it."""
    grid = result.map.grid
    shells = result.statistics.rows()
    return {
        **grid_record(grid),
        "d_min": grid.d_min,
        "symmetry": symmetry_record(result.symmetry),
        "brightness": [asdict(b) for b in result.brightness],
        "bragg_holes": asdict(result.holes) if result.holes else None,
        "n_observations": result.n_observations,
        "n_off_grid": result.n_off_grid,
        "n_refused": result.n_refused,
        "units": result.map.units,
        "statistics": {
            "overall": result.statistics.overall,
            "shells": shells,
            "away_from_bragg": shells_away_from_bragg(result.map, shells),
        },
    }


def shell_table(shells: list) -> tuple:
    """Shells of a record as a table for a page: headings, and rows of cells as text."""
    return heads(_COLUMNS), cells(_COLUMNS, shells)
