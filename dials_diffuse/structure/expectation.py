"""What a cell should scatter, from coordinates, a sequence, or nothing but its size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.composition import average_contents, contents_of_sequence
from dials_diffuse.structure.contents import CellContents, contents_of_structure
from dials_diffuse.structure.factors import atom_form_factor, incoherent
from dials_diffuse.structure.setting import in_setting_of
from dials_diffuse.structure.solvent import bulk_solvent_structure_factors
from dials_diffuse.structure.surroundings import WATER_DENSITY
from dials_diffuse.structure.transform import check_cells

_POINTS = 1000

#: interference in proteins relative to Σ f², in steps of 0.02 1/Å from the first number: Debye's formula for the atoms,
#: hydrogens among them, of eleven proteins (PDB 1STN, 1HPV, 1TII, 1UBF, 2ERL, 3JD6, 4A7H, 1BRF, interleukin 2 and two
#: more; hen egg-white lysozyme, with which the scale is tested, is none of them)
_INTERFERENCE_FROM = 0.2
_INTERFERENCE = (
    (0.488, 0.548, 0.317, 0.147, 0.053, -0.070, -0.124, -0.155, -0.167, -0.165, -0.134, -0.085, -0.033, 0.017, 0.025)
    + (0.002, -0.064, -0.145, -0.186, -0.222, -0.239, -0.239, -0.226, -0.221, -0.212, -0.201, -0.173, -0.136, -0.091)
    + (-0.040, 0.018, 0.088, 0.167, 0.234, 0.284, 0.286, 0.274, 0.226, 0.178, 0.131, 0.087, 0.050, 0.013, -0.015)
    + (-0.048, -0.078, -0.100, -0.112, -0.121, -0.132, -0.134)
)

#: 1/Å: nearer to the beam molecules interfere of which nothing is known; of proteins the mean of many is known
_KNOWN_FROM = {True: 0.22, False: 0.4}


@dataclass(frozen=True)
class Expectation:
    """What the cell should scatter, averaged over directions; electrons² per unit cell.

    Attributes
    ----------
    s : (m,) float64 ascending, 1/Å
    elastic, compton, interference : (m,) Σ f², incoherent scattering, and interference of neighbouring atoms less that
        of the hole around each, whose q²-weighted integral is -2π² (Σ Z)² / V
    uncertainty : relative, of the contents of the cell
    source : where the contents are from, a sentence
    molecules, molecules_compton : (m,) Σf² and incoherent scattering of all but the bulk water
    correlation : (m,) interference of atoms in these molecules relative to Σf²
    known_from : 1/Å, from where on the correlation says all that there is
    volume : of the cell, Å³
    water_share : of the volume, that bulk water fills
    alternatives : (factor, probability) pairs, see :class:`dials_diffuse.structure.contents.CellContents`
    hkl, f_squared : (r, 3) int32 and (r,) float64, squared structure factors of a model, or None
    no_model : why there are none, for messages
    """

    s: np.ndarray
    elastic: np.ndarray
    compton: np.ndarray
    interference: np.ndarray
    molecules: np.ndarray
    molecules_compton: np.ndarray
    correlation: np.ndarray
    known_from: float
    volume: float
    water_share: float
    alternatives: tuple
    uncertainty: float
    source: str
    hkl: np.ndarray | None = None
    f_squared: np.ndarray | None = None
    no_model: str = "needs coordinates, give absolute_scale.model as well"

    def at(self, name: str, s) -> np.ndarray:
        """One of the curves at |s| of any shape."""
        return np.interp(s, self.s, getattr(self, name))


def make_expectation(
    grid: MapGrid,
    model: str | None = None,
    sequence: str | None = None,
    copies: int | None = None,
    bulk_solvent: bool = True,
    hydrogens: bool | None = None,
    selection: str | None = None,
) -> Expectation:
    """What the cell of a grid scatters on the average over directions, and a model's structure factors.

    Parameters
    ----------
    grid : of the data
    model : path of coordinates
    sequence, copies : see :func:`dials_diffuse.structure.composition.contents_of_sequence`; without a model
    bulk_solvent, hydrogens : see :func:`dials_diffuse.structure.contents.contents_of_structure`
    selection : of the model's atoms, see :func:`dials_diffuse.structure.atoms.load_structure`

    Raises
    ------
    DiffuseError
        If the model has another cell, or contents do not fit into it.
    """
    if model and sequence:
        raise DiffuseError(f"absolute_scale.model={model}, absolute_scale.sequence={sequence}: give one of them")
    if copies is not None and not sequence:
        raise DiffuseError(f"absolute_scale.copies={copies}: of what? Give absolute_scale.sequence as well")
    if selection and not model:
        raise DiffuseError(f"absolute_scale.selection={selection}: of what? Give absolute_scale.model as well")
    hkl = f_squared = None
    no_model = Expectation.no_model
    if model:
        structure, _ = in_setting_of(load_structure(model, selection), grid.unit_cell, grid.space_group)
        try:
            check_cells(structure, grid)
        except DiffuseError as error:
            raise DiffuseError(f"absolute_scale.model={model}: {error}") from None
        contents = contents_of_structure(structure, bulk_solvent, hydrogens)
        groups = [g.build_derived_laue_group() for g in (structure.space_group, grid.space_group)]
        if groups[0] == groups[1]:
            hkl, f = bulk_solvent_structure_factors(structure, grid.d_min, 0.35 if bulk_solvent else 0.0)
            f_squared = np.abs(f) ** 2
        else:
            own, theirs = structure.space_group.info().type().lookup_symbol(), grid.space_group_symbol
            no_model = (
                f"the space group of absolute_scale.model={model} is {own}, that of the data {theirs}, of "
                "another Laue group: its structure factors are not compared with the Bragg reflections. Give "
                f"space_group={own.replace(' ', '')} if that is the crystal's, or a model in the group of the data"
            )
    elif sequence:
        contents = contents_of_sequence(sequence, grid.unit_cell, grid.hall_symbol, copies)
    else:
        contents = average_contents(grid.unit_cell, grid.hall_symbol)
    return expectation_of(contents, grid.d_min, hkl, f_squared, no_model)


def expectation_of(contents: CellContents, d_min: float, hkl=None, f_squared=None, no_model=Expectation.no_model):
    """The curves of some contents to beyond ``d_min`` (Å).

    hkl, f_squared : structure factors of a model, or None; no_model : why there are none
    """
    s = np.linspace(0, 1.1 / d_min, _POINTS)
    interference = contents.interference(s)
    molecules = sum(n * atom_form_factor(e, s) ** 2 for e, n in contents.molecules.items())
    return Expectation(
        s=s,
        elastic=contents.sum_of_squares(s),
        compton=contents.compton(s),
        interference=interference,
        molecules=molecules,
        molecules_compton=sum(n * incoherent(e, s) for e, n in contents.molecules.items()),
        correlation=_in_proteins(s) if contents.protein else interference / molecules,
        known_from=_KNOWN_FROM[contents.protein],
        volume=contents.volume,
        water_share=contents.water / (contents.volume * WATER_DENSITY),
        alternatives=contents.alternatives,
        uncertainty=contents.uncertainty,
        source=contents.source,
        hkl=hkl,
        f_squared=f_squared,
        no_model=no_model,
    )


def _in_proteins(s: np.ndarray) -> np.ndarray:
    """Mean interference of the atoms of proteins relative to Σ f², constant where it is not tabulated.

    Source: docs/theory.md, Absolute scale
    """
    return np.interp(s, _INTERFERENCE_FROM + 0.02 * np.arange(len(_INTERFERENCE)), _INTERFERENCE)
