"""Parameters of rigid bodies in the programs, and what is made of them."""

from __future__ import annotations

from dials_diffuse.errors import CommandLineError
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.tls import TlsGroup, load_tls

PHIL = """
rigid_body {
  sigma = None
    .type = floats(size_min=1, value_min=0)
    .help = "Displacement of the body along one direction, rms, in Angstrom: one number, or one for each body."
            "Default: 0.3, unless V is given."
  V = None
    .type = floats(size_min=6)
    .help = "Covariance of the displacement instead: 11,22,33,12,13,23 in square Angstrom, once or for each body."
  body = *asu cell residue segment chain selection tls
    .type = choice
    .help = "What moves as one: each symmetry copy by itself, or the content of the cell, or parts of each copy"
            "(segment: a stretch of a chain without gaps in the residue numbers), or TLS groups, which also rotate."
  selection = None
    .type = str
    .multiple = True
    .help = "For body=selection: the atoms of a body, in the syntax of cctbx; once for each body."
  tls {
    file = None
      .type = path
      .help = "PDB file with TLS groups in its header. Default: that of the structure, unless L is given."
    T = 0,0,0,0,0,0
      .type = floats(size=6)
      .help = "Of all atoms as one body: <tt>, 11,22,33,12,13,23 in square Angstrom,"
    L = None
      .type = floats(size=6)
      .help = "<ww> in square degrees,"
    S = 0,0,0,0,0,0,0,0,0
      .type = floats(size=9)
      .help = "<wt>, row by row, in Angstrom degrees,"
    origin = None
      .type = floats(size=3)
      .help = "and the point through which the axes of rotation go. Default: the mean of the atoms' positions."
  }
  soft = False
    .type = bool
    .help = "Atoms also move by themselves, as their B factors say, and share the body's motion."
  solvent = False
    .type = bool
    .help = "Bodies displace solvent when they move, so that their contrast is less. Not of TLS groups."
  k_sol = 0.35
    .type = float(value_min=0)
    .help = "Density of that solvent, in electrons per cubic Angstrom."
  b_sol = 46
    .type = float(value_min=0)
    .help = "Smoothness of its edge, in square Angstrom."
}
"""


def displacements_of(scope) -> dict:
    """One sigma or V as such, several as a tuple with one for each body."""
    sigma, six = scope.sigma, scope.V
    if sigma is not None:
        sigma = sigma[0] if len(sigma) == 1 else tuple(sigma)
    if six is not None:
        if len(six) % 6:
            raise CommandLineError(
                f"rigid_body.V: {len(six)} numbers; six are needed (11,22,33,12,13,23), or six for each body"
            )
        six = tuple(tuple(six[k : k + 6]) for k in range(0, len(six), 6))
        six = six[0] if len(six) == 1 else six
    return {"sigma": sigma, "V": six}


def tls_groups_of(scope, coordinates, selection: str | None = None) -> tuple:
    tls = scope.tls
    if scope.body != "tls":
        given = [key for key in ("file", "L", "origin") if getattr(tls, key) is not None] + _motions(tls)
        if given:
            raise CommandLineError(
                f"rigid_body.tls.{given[0]} is given, but rigid_body.body={scope.body}; say body=tls"
            )
        return ()
    path = coordinates if tls.file is None else tls.file
    if tls.L is None:
        if path is None:
            raise CommandLineError("rigid_body.body=tls: give rigid_body.tls.file, a PDB file, or rigid_body.tls.L")
        for key in _motions(tls) or (["origin"] if tls.origin is not None else []):
            raise CommandLineError(f"rigid_body.tls.{key} is given without rigid_body.tls.L; give both, or a file only")
        return load_tls(path)
    if tls.file is not None:
        raise CommandLineError("rigid_body.tls.file and rigid_body.tls.L are given; leave one of them out")
    origin = tls.origin
    if origin is None:
        if path is None:
            raise CommandLineError("rigid_body.tls.L needs rigid_body.tls.origin")
        origin = load_structure(path, selection).site_cart.mean(axis=0)
    return (TlsGroup(tuple(tls.T), tuple(tls.L), tuple(tls.S), tuple(float(x) for x in origin)),)


def _motions(tls) -> list:
    """Which of T and S are not 0."""
    return [key for key in ("T", "S") if any(getattr(tls, key))]
