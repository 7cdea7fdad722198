"""Which page belongs to which record: one row for each program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dials_diffuse.report import merge_page
from dials_diffuse.report.page import write_page
from dials_diffuse.report.section import Chapter, Material, chapter_of


@dataclass(frozen=True)
class PageKind:
    """The page of a program.

    Attributes
    ----------
    schema : of its record, without the version
    name : id of its chapter in a page of several
    title : called with the record
    sections : functions of a Material that return a Section or None
    """

    schema: str
    name: str
    title: Callable
    sections: Sequence


PAGES = (PageKind("dials.diffuse_merge", "merge", lambda record: "Merged map", merge_page.SECTIONS),)


def kind_of(record: dict) -> PageKind | None:
    """The row of a record's schema, None where there is no page for it."""
    name = str(record.get("schema", "")).partition("/")[0]
    return next((page for page in PAGES if page.schema == name), None)


def chapter(material: Material) -> Chapter:
    """All that the page of a program shows; its record has to be one of those in PAGES."""
    kind = kind_of(material.record)
    return chapter_of(kind.name, kind.title(material.record), kind.sections, material)


def write_report(path, material: Material, *others: Material) -> None:
    """Write the page of a program; with the materials of its steps behind it, one page of all.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    chapters = [chapter(item) for item in (material, *others)]
    title = chapters[0].title
    program = str(material.record["schema"]).partition("/")[0]
    write_page(path, f"{program}: {title}", chapters, material.record)
