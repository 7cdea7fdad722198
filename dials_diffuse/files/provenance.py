"""Where an output comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """Where an output comes from: program, versions, full phil text, input files, experiment identifiers."""

    program: str
    dials_version: str
    phil: str
    inputs: tuple = ()
    identifiers: tuple = ()
