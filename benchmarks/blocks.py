"""Measured blocks in the pages of docs/: the text between two marks is what a script wrote there last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

BEGIN, END = "<!-- measured: {} -->", "<!-- end -->"


def filled(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with these lines between the marks of a block; a page without the marks is returned as it is."""
    begin = BEGIN.format(name)
    block = "\n".join([begin, *lines, END])
    return re.sub(re.escape(begin) + ".*?" + re.escape(END), lambda _: block, page, flags=re.DOTALL)


def fill(path: Path, name: str, lines: Sequence[str]) -> None:
    """Write lines into a block of a page.

    Raises
    ------
    ValueError
        If the page has no such block.
    """
    page = path.read_text(encoding="utf-8")
    if BEGIN.format(name) not in page:
        raise ValueError(f"{path} has no block {name}")
    path.write_text(filled(page, name, lines), encoding="utf-8")
