"""Tables as text, for logs and pages: the columns say how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: stands for what is not known
UNKNOWN = "-"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    head : its heading
    width : characters in a log; negative for text that begins at the left
    how : format of its values, for example ``.3f``; empty for text
    get : takes a row, whatever that is, to its value; None and NaN are not known
    """

    head: str
    width: int
    how: str
    get: Callable

    def cell(self, row) -> str:
        """The value of a row as text."""
        value = self.get(row)
        return UNKNOWN if value is None or value != value else format(value, self.how)

    def pad(self, text: str) -> str:
        """The text of a cell or a heading, as wide as the column."""
        return text.ljust(-self.width) if self.width < 0 else text.rjust(self.width)


def cells(columns: Sequence[Column], rows: Iterable) -> list:
    """Rows of cells as text, for a page that has its own layout."""
    return [[column.cell(row) for column in columns] for row in rows]


def heads(columns: Sequence[Column]) -> list:
    """The headings of columns."""
    return [column.head for column in columns]


def text_table(columns: Sequence[Column], rows: Iterable, totals: Iterable = ()) -> str:
    """Table with headings as lines of text; ``totals`` are rows below a second rule."""

    def lines(texts) -> list:
        return ["".join(column.pad(text) for column, text in zip(columns, row)) for row in texts]

    (head,) = lines([heads(columns)])
    rule = "-" * len(head)
    end = lines(cells(columns, totals))
    return "\n".join([head, rule, *lines(cells(columns, rows)), *([rule, *end] if end else [])])
