"""Which page belongs to which record: one row for each program."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name

from dials_diffuse.report.page import write_page
from dials_diffuse.report.section import Chapter, Material

logger = logging.getLogger("dials.diffuse.report")


@dataclass(frozen=True)
class PageKind:
    """The page of a program.

    Attributes
    ----------
    schema : of its record, without the version
    name : id of its chapter in a page of several
    title : of its chapter
    of : module of the report and name in it, of functions of a Material that return a Section, None, or several in a
        list; it is imported when a page is written, so that no program imports the pages of the others
    """

    schema: str
    name: str
    title: str
    of: str

    @property
    def sections(self) -> Sequence:
        return resolve_name(f"{__package__}.{self.of}")


PROCESS = PageKind("dials.diffuse_process", "process", "Verdict", "process:SECTIONS")

PAGES = (
    PageKind("dials.diffuse_integrate", "integrate", "Integration", "integrate_page:SECTIONS"),
    PageKind("dials.diffuse_scale", "scale", "Scaling", "scale_page:SECTIONS"),
    PageKind("dials.diffuse_merge", "merge", "Merged map", "merge_page:SECTIONS"),
    PageKind("dials.diffuse_fit", "fit", "Fit", "fit_page:SECTIONS"),
    PageKind("dials.diffuse_model", "model", "Map of a model", "model_page:SECTIONS"),
    PageKind("dials.diffuse_simulate", "simulate", "Simulation", "model_page:SIMULATION"),
    PROCESS,
)

#: of files without a record, by their kind
FILE_PAGES = {
    "map": PageKind("dials_diffuse.map", "map", "Map", "file_page:MAP"),
    "observations": PageKind("dials_diffuse.observations", "observations", "Observations", "file_page:OBSERVATIONS"),
}


def kind_of(record: dict) -> PageKind | None:
    """The row of a record's schema, None where there is no page for it."""
    name = str(record.get("schema", "")).partition("/")[0]
    return next((page for page in (*PAGES, *FILE_PAGES.values()) if page.schema == name), None)


def chapter(material: Material) -> Chapter:
    """All that the page of a program shows; its record has to be one of those in PAGES.

    Sections that have nothing to say about this record are left out.
    """
    kind = kind_of(material.record)
    made: list = []
    for function in kind.sections:
        found = function(material)
        made += found if isinstance(found, list) else [found]
    sections = tuple(section for section in made if section is not None and not section.empty)
    return Chapter(kind.name, kind.title, sections, tuple(material.record.get("warnings", ())))


def write_report(path, material: Material, *others: Material) -> None:
    """Write the page of a program; with the materials of other programs behind it, one page of all.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    record = material.record
    name = record.get("best") or record.get("verdict") or kind_of(record).title
    program = record.get("program") or str(record["schema"]).partition("/")[0]
    logger.info("Saving the report to %s", path)
    write_page(path, f"{program}: {name}", _with_distinct_ids(material, *others), record)


def _with_distinct_ids(*materials: Material) -> list:
    """The chapters; of two with one name the second has a number."""
    chapters: list = []
    for found in map(chapter, materials):
        same = sum(other.id.rstrip("0123456789") == found.id for other in chapters)
        chapters.append(replace(found, id=f"{found.id}{same + 1}") if same else found)
    return chapters
