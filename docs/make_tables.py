"""Write the tables of docs/files.md from the declarations that readers check files against.

``python docs/make_tables.py`` replaces what is between the marks; ``--check`` only says whether anything would change.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dials_diffuse.files import nexus, observations, provenance
from dials_diffuse.files.columns import markdown

PAGE = Path(__file__).with_name("files.md")

TABLES = {
    "observations": observations.OBSERVATION_COLUMNS,
    "bragg": observations.BRAGG_COLUMNS + (observations.BRAGG_SCALE,),
    "grid": observations.GRID_ATTRIBUTES,
    "experiments": observations.EXPERIMENT_ITEMS,
    "process": provenance.ITEMS,
    "unique": nexus.UNIQUE_COLUMNS,
    "sample": nexus.SAMPLE_ITEMS,
    "map-grid": nexus.GRID_ITEMS,
}


def filled(text: str) -> str:
    """The page with tables as they are now; KeyError where a mark has no table."""

    def table(match) -> str:
        return f"<!-- table {match[1]} -->\n{markdown(TABLES[match[1]])}\n<!-- end -->"

    return re.sub(r"<!-- table ([\w-]+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    new = filled(text)
    if "--check" in sys.argv[1:]:
        return 0 if new == text else 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
