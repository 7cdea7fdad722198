"""dials.diffuse_report: what a program found, as a page for a browser."""

from __future__ import annotations

import logging
from pathlib import Path

from libtbx.phil import parse

from dials_diffuse.cli.program import run_program
from dials_diffuse.errors import CommandLineError
from dials_diffuse.files.atomic import check_writable
from dials_diffuse.report.material import load_materials
from dials_diffuse.report.pages import write_report

logger = logging.getLogger("dials.diffuse.report")

HELP = """
Make the page that belongs to an output of this package: plots against resolution, images and detector, and a browser
for the planes of maps. A page is one file, which any browser opens; it needs no network. The programs write their pages
themselves. This one makes them again, or of files that came without one, or joins several.

Examples:

  dials.diffuse_report diffuse_merged.nxs

  dials.diffuse_report dials.diffuse_process.json

  dials.diffuse_report truth.nxs diffuse_merged.nxs output.html=both.html
"""

phil_scope = parse(
    """
output {
  html = None
    .type = path
    .help = "One page for all files. Default: one for each, with the name of the file and the suffix .html."
  log = dials.diffuse_report.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def main(params, files, provenance, warnings) -> None:
    """Make the pages of ``files``."""
    pages: dict = {}
    for path in files:
        name = params.output.html or Path(path).with_suffix(".html").name
        if name in pages and params.output.html is None:
            raise CommandLineError(f"{path}: its page would be {name}, as that of another file; choose output.html")
        pages.setdefault(name, []).append(path)
    for name in pages:
        check_writable(name, "output.html")
    for name, paths in pages.items():
        write_report(name, *(material for path in paths for material in load_materials(path)))


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_report; ``args`` default to the command line."""
    run_program("dials.diffuse_report", HELP, phil, main, args)


if __name__ == "__main__":
    run()
