"""Where an output comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

from dials_diffuse.compat import dials_version
from dials_diffuse.files.columns import Column

#: what files say of it
ITEMS = (
    Column("program", "U", "its name"),
    Column("dials_version", "U", "for example `DIALS 3.12`"),
    Column("phil", "U", "all parameters"),
    Column("inputs", "U", "files that were read", None),
    Column("identifiers", "U", "of the experiments that went in", None),
    Column("command_line", "U", "what was typed", optional=True),
    Column("modified", "U", "parameters that differ from their defaults", optional=True),
)


@dataclass(frozen=True)
class Provenance:
    """Where an output comes from: what ran, on what, and how. The defaults are for scripts and notebooks.

    Attributes
    ----------
    program : its name
    dials_version : for example ``DIALS 3.12``
    phil : all parameters, as text
    inputs : paths of the input files
    identifiers : of the experiments that went in
    command_line : what was typed; empty where a script called the library
    modified : the parameters that differ from their defaults, as text; None: not known
    """

    program: str = "script"
    dials_version: str = field(default_factory=dials_version)
    phil: str = ""
    inputs: tuple = ()
    identifiers: tuple = ()
    command_line: str = ""
    modified: str | None = None
