"""dials.diffuse_show: what is in a file."""

from __future__ import annotations

import json
import sys

from libtbx.phil import parse

from dials_diffuse.cli.program import run_program
from dials_diffuse.files.record import finite
from dials_diffuse.report.contents import contents_text, file_contents

HELP = """
Say what is in files: their kind, the crystal, the grid, statistics, where they come from, and how to go on. Maps
(diffuse_merged.nxs), observations (diffuse_integrated.h5, diffuse_scaled.h5) and the .json of all programs.

Examples:

  dials.diffuse_show diffuse_merged.nxs

  dials.diffuse_show diffuse_integrated.h5 diffuse_scaled.h5

  dials.diffuse_show --json diffuse_merged.nxs
"""

phil_scope = parse(
    """
json = False
  .type = bool
  .help = "Print JSON: an object, or a list of them for several files. The same as --json."
"""
)


def main(params, files, provenance, warnings) -> None:
    """Print what is in ``files``."""
    contents = [file_contents(path) for path in files]
    if params.json:
        content = finite(contents if len(contents) > 1 else contents[0])
        print(json.dumps(content, indent=2, allow_nan=False))
        return
    print("\n\n".join(contents_text(content) for content in contents))


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_show; ``args`` default to the command line."""
    args = sys.argv[1:] if args is None else args
    args = ["json=True" if arg == "--json" else arg for arg in args]
    run_program("dials.diffuse_show", HELP, phil, main, args, quiet=True)


if __name__ == "__main__":
    run()
