"""A model's intensity as a map: one value for each symmetry-unique voxel, compared with data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.maps.units import ELECTRON_DIFFRACTION, ELECTRONS
from dials_diffuse.memory import check_memory
from dials_diffuse.merging.compare import Comparison, compare_maps
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.checks import check_symmetry, lacking_symmetry
from dials_diffuse.models.dispersive import dispersive_parts
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.map_setting import in_map_setting
from dials_diffuse.models.prepared import Fixed, Prepared, intensity_of, over_lacking_symmetry, prepare
from dials_diffuse.models.voxel_means import averaged
from dials_diffuse.parallel import SERIAL, Executor
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.transform import check_cells

logger = logging.getLogger("dials.diffuse.model")

#: what is computed of a voxel; auto: what the data hold, the centre without data
VOXELS = ("auto", "mean", "centre")


@dataclass(frozen=True, eq=False)
class ComputedModel:
    """What :func:`compute_model` returns.

    Attributes
    ----------
    model : with the number of orders that was computed
    map : DiffuseMap, in electrons² per unit cell
    comparison : with the data; None without
    """

    model: DiffuseModel
    map: DiffuseMap
    comparison: Comparison | None


def compute_model(
    structure: Structure,
    grid: MapGrid,
    model: DiffuseModel,
    data: DiffuseMap | None = None,
    voxels: str = "auto",
    wavelength: float | None = None,
    choose_orders: bool = False,
    n_shells: int = 10,
    executor: Executor = SERIAL,
) -> ComputedModel:
    """Compute the diffuse scattering of a model on a grid, and compare it with data.

    Parameters
    ----------
    structure : asymmetric unit; it is brought into the setting of the grid
    grid : of the same crystal within 1 %; that of the data, perhaps with a larger d_min
    model : a model with its parameters
    data : a merged map; Friedel mates are one voxel if they are one there
    voxels : one of VOXELS
    wavelength : Å; form factors with f', f'' at it; None: without
    choose_orders : compute as many orders as the model needs at d_min, instead of the model's own number
    n_shells : resolution shells of the comparison
    executor : computes blocks of points of models that are sums over pairs at each point (``in_blocks``)

    Returns
    -------
    ComputedModel

    Raises
    ------
    DiffuseError
        As :func:`model_map` does.

    Examples
    --------
    Two atoms that move together scatter most where they scatter in phase:

    >>> import numpy as np
    >>> from dials_diffuse.maps.grid import MapGrid
    >>> from dials_diffuse.models.rigid_body.rigid_body import RigidBody
    >>> from dials_diffuse.structure.atoms import make_structure
    >>> structure = make_structure((10, 10, 10, 90, 90, 90), "P 1", ["O", "O"], np.array([[0, 0, 0], [0.2, 0, 0]]))
    >>> grid = MapGrid(structure.unit_cell, structure.hall_symbol, subdivide=(2, 2, 2), d_min=2.0)
    >>> found = compute_model(structure, grid, RigidBody(sigma=0.3))
    >>> s = found.map.grid.s(found.map.index)
    >>> phase = 2 * np.pi * s @ (structure.site_cart[1] - structure.site_cart[0])
    >>> in_phase, out_of_phase = np.cos(phase) > 0.9, np.cos(phase) < -0.9
    >>> bool(found.map.intensity[in_phase].mean() > 10 * found.map.intensity[out_of_phase].mean())
    True
    """
    choice("voxels", voxels, VOXELS)
    structure, (model,) = in_map_setting(structure, [model], grid)
    model = with_orders(model, structure, grid.d_min, choose_orders)
    logger.info(
        "Model: %s", ", ".join(f"{key}={value}" for key, value in model.record().items() if value not in (None, ()))
    )
    means = voxels == "mean" or (voxels == "auto" and data is not None and not data.at_centres)
    if means:
        logger.info("Intensities are averaged over the voxels, which takes longer than voxels=centre")
    result = model_map(model, structure, grid, data is None or data.friedel, wavelength, means, executor)
    if data is None:
        return ComputedModel(model, result, None)
    s = grid.s_magnitude(result.index)
    lowest = s[s > 0].min(initial=1 / grid.d_min) * (1 - 1e-9)  # the origin is in no shell
    return ComputedModel(model, result, compare_maps(data, result, 1 / lowest, grid.d_min, n_shells))


def with_orders(model: DiffuseModel, structure: Structure, d_min: float, choose: bool) -> DiffuseModel:
    """The model, if ``choose`` with the orders that it needs at d_min (Å); what they leave out is warned of."""
    if choose:
        model = model.with_orders_for(structure, {}, d_min)
    if lack := model.lack_of_orders(d_min):
        logger.warning("Warning: %s", lack)
    return model


def model_map(
    model: DiffuseModel,
    structure: Structure,
    grid: MapGrid,
    friedel: bool = True,
    wavelength: float | None = None,
    means: bool = False,
    executor: Executor = SERIAL,
) -> DiffuseMap:
    """Compute a model on the voxels of a grid that are unique under the grid's own symmetry.

    Where the grid has symmetry that the structure lacks, the intensity is averaged over it, as merged data are.

    Parameters
    ----------
    structure : asymmetric unit
    grid : of the same cell within 1 %
    friedel : are Friedel mates one voxel? The intensity is their mean in either case
    wavelength : Å; form factors with f', f'' at it, see :func:`structure.factors.dispersion`
    means : average over the voxels' volumes, as measured maps are: by Simpson's rule on the lattice of half voxels, for
        8 times the time and memory; the halos of liquid-like motions in a crystal as the fit averages them. Not of
        lattice dynamics but those of contacts, and of ensembles of blocks of cells, which have no intensity between the
        voxels.
    executor : see :func:`compute_model`

    Returns
    -------
    DiffuseMap, in electrons² per unit cell (``table=electron``: Å²), without errors; ``at_centres`` says what was done

    Raises
    ------
    DiffuseError
        If structure and grid do not fit together, the computer has too little memory, or the displacements are so
        large that the intensity is not finite.
    """
    check_cells(structure, grid)
    check_symmetry(structure, grid)
    if means and not model.has_means:
        logger.warning("Warning: this model has no means over voxels, it is computed at their centres")
        means = False
    _check_memory(model, structure, grid, means)
    lacking = lacking_symmetry(structure, grid)
    if lacking:
        logger.warning("Warning: %s", lacking)
    index = np.concatenate(list(possible_voxels(grid, friedel)))
    parts = dispersive_parts(model, structure, wavelength)
    if means:
        intensity = np.asarray(sum(_means(part, structure, grid, index, executor) for part in parts))
    else:
        volume = np.asarray(sum(intensity_of(part, structure, grid, executor) for part in parts))
        volume = laue_average(volume, grid) if lacking else volume
        intensity = volume.reshape(-1)[grid.key(index)]
    if not np.all(np.isfinite(intensity)):
        raise DiffuseError(
            f"the model's intensity is no finite number at {np.count_nonzero(~np.isfinite(intensity))} of {len(index)} "
            "voxels; choose smaller displacements, or a larger d_min"
        )
    return DiffuseMap(
        grid=grid,
        friedel=friedel,
        index=index,
        intensity=intensity,
        sigma=np.zeros(len(index)),
        multiplicity=np.zeros(len(index), dtype=np.int32),
        units=ELECTRON_DIFFRACTION if model.table == "electron" else ELECTRONS,
        at_centres=not means,
    )


def _means(
    model: DiffuseModel, structure: Structure, grid: MapGrid, index: np.ndarray, executor: Executor
) -> np.ndarray:
    """(n,) float64, the intensity averaged over voxels."""
    if model.halos:
        prepared = prepare(model, structure, grid, index, means=True)
        return prepared.intensity([parameter.value for parameter in prepared.parameters])

    def means(structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
        return averaged(partial(Fixed, model, executor=executor), structure, grid, index)

    return over_lacking_symmetry(means, structure, grid, index).intensity(())


def _check_memory(model: DiffuseModel, structure: Structure, grid: MapGrid, means: bool) -> None:
    sampled = grid
    if means and not model.halos:
        sampled = replace(grid, subdivide=tuple(2 * n for n in grid.subdivide))
    needed = model.memory_estimate(structure, sampled)
    shape = "x".join(map(str, grid.shape))
    check_memory(
        needed,
        f"grid.subdivide={','.join(map(str, grid.subdivide))}, d_min={grid.d_min:g}: {shape} voxels",
        "choose a smaller grid.subdivide or a larger d_min"
        + model.if_memory_is_short
        + (", or voxels=centre" if means else ""),
    )
    logger.info("Grid of %s voxels to d_min = %.2f Å, memory about %.2f GB", shape, grid.d_min, needed / 1e9)
