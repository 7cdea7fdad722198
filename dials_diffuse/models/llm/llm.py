"""Liquid-like motions: displacements whose correlation falls off with distance."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from dials_diffuse.checks import choice, not_negative, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.even_table import from_table
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.base import DiffuseModel, TensorWord, Words
from dials_diffuse.models.checks import (
    displacement_tensor,
    fitted,
    positive_tensor,
    warn_of_small_displacements,
)
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.llm import series
from dials_diffuse.models.llm.convolution import KERNELS, TAIL_NODES, Correlation, box_size, convolutions
from dials_diffuse.models.llm.lattice_sum import summed_intensity
from dials_diffuse.models.llm.llm_phil import PHIL
from dials_diffuse.models.llm.prepared_llm import PreparedLiquidLikeMotions
from dials_diffuse.models.prepared import Prepared, over_laue_group
from dials_diffuse.models.refinable import (
    SOME_GAMMA,
    SOME_SIGMA,
    correlation_parameters,
    displacement,
    gamma_parameter,
    tensor_components,
    updated,
)
from dials_diffuse.models.single_atoms import (
    ATOM_LENGTH,
    NEGLIGIBLE_CORRELATION,
    diameter,
    displaced,
    radial,
    special_remainder,
    squares,
)
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import sum_of_squares
from dials_diffuse.structure.solvent import solvent_structure_factors
from dials_diffuse.structure.transform import lattice_transform, memory_estimate, s_squared

logger = logging.getLogger("dials.diffuse.models")

ADPS = ("individual", "overall")
CONFINEMENTS = ("crystal", "molecule")

#: structure factors are computed to q = 2 pi / d_min plus this many 1/gamma, but no less than _SMALLEST_MARGIN and no
#: more than _LARGEST_MARGIN beyond 1/d_min (1/Å); the squares of those further out are replaced by their mean, the sum
#: of the atoms' f²
_MARGIN = 6.0
_SMALLEST_MARGIN = 0.12
_LARGEST_MARGIN = 0.4

#: the Patterson function of a molecule reaches so far beyond the distances of its atoms, Å
_ATOMS_REACH = 4.0
#: the transform of a correlation that is taken to 0 is at least as wide as for this fraction of its reach
_ENDED = 6.0

#: |s| up to which the tables of form factors hold, 1/Å
_FORM_FACTOR_LIMIT = 12.0


@dataclass(frozen=True)
class LiquidLikeMotions(DiffuseModel):
    """Displacements with the covariance V c(r) between atoms at a distance r, c(0) = 1.

    I = sum over l >= 1 of (qᵀVq)^l / l! (1/V_cell) sum over h of |F(h)|² Gamma_l(q - q_h),
    Gamma_l the transform of c(r)^l.

    Attributes
    ----------
    sigma : Å, rms of the correlated displacement along one direction; or
    V : six numbers 11, 22, 33, 12, 13, 23 in Å², Cartesian frame of the coordinate file
    gamma : Å, correlation length; or
    G : six numbers in Å, a symmetric matrix: the correlation depends on |G^-1 r|
    adp : ``individual``: F with the atoms' own displacements U, of which V is the correlated part; ``overall``: all
        atoms have V instead, F without displacements and a factor exp(-qᵀVq)
    kernel : ``exponential`` c = exp(-|G^-1 r|), ``gaussian`` c = exp(-|G^-1 r|²/2)
        or ``lorentzian`` c ~ exp(-|G^-1 r|)/|G^-1 r|, see :func:`lorentzian.lorentzian`
    core : Å, the Lorentzian kernel stops rising within this distance; below the geometric mean of G's eigenvalues
    orders : number of terms of the sum over l, see :meth:`missing_orders` and :meth:`enough_orders`
    incoherent : add what makes each atom's own term |f|² (1 - exp(-qᵀUq)) whatever V and the number of orders
    local_form_factor : divide the mean decay of |F|² with resolution out before the convolution, multiply it in after
    confined_to : ``crystal``; ``molecule``: nothing is correlated between symmetry copies
    k_sol : electrons/Å³ of flat solvent between the molecules that moves along with them, 0: none; only in the crystal
        and with individual displacements
    b_sol : Å², B factor of the solvent
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If not exactly one of sigma and V, or of gamma and G, is given, or a value is out of range.

    Notes
    -----
    A V or G that the point group does not leave alone is used as it is, and the map averaged over the Laue group.

    Source: docs/theory.md, llm; Clarage et al. 1992, Proteins 12, 145; Wall, Clarage & Phillips 1997, Structure 5, 1599
    """

    name = "llm"
    about = "liquid-like motions"
    phil = PHIL
    words = Words({"V": TensorWord("sigma", 2, SOME_SIGMA), "G": TensorWord("gamma", 1, SOME_GAMMA)})
    on_points = True

    sigma: float | None = None
    V: tuple | None = None
    gamma: float | None = None
    G: tuple | None = None
    adp: str = "individual"
    kernel: str = "exponential"
    core: float = 1.5
    orders: int = 3
    incoherent: bool = True
    local_form_factor: bool = False
    confined_to: str = "crystal"
    k_sol: float = 0.0
    b_sol: float = 46.0
    table: str = "wk1995"

    def __post_init__(self):
        for name, choices in (("adp", ADPS), ("kernel", KERNELS), ("confined_to", CONFINEMENTS)):
            choice(f"llm.{name}", getattr(self, name), choices)
        if self.orders is None or not 1 <= self.orders <= series.MOST_ORDERS or self.orders != int(self.orders):
            raise DiffuseError(f"llm.orders={self.orders}: a whole number from 1 to {series.MOST_ORDERS} is needed")
        for name in ("k_sol", "b_sol"):
            not_negative(f"llm.{name}", getattr(self, name))
        if self.k_sol and (self.confined_to, self.adp) != ("crystal", "individual"):
            raise DiffuseError(
                f"llm.k_sol={self.k_sol:g}: solvent needs llm.confined_to=crystal and llm.adp=individual; leave it out"
            )
        if self.k_sol and self.table == "electron":
            raise DiffuseError(
                f"llm.k_sol={self.k_sol:g}: a density of electrons, not for table=electron; leave it out"
            )
        _ = self.tensor, self.correlation
        if self.kernel == "lorentzian" and not 0 < self.core < self.correlation.mean_length:
            raise DiffuseError(
                f"llm.core={self.core}: must be positive and below the correlation length, "
                f"{self.correlation.mean_length:.3g} Å"
            )

    @classmethod
    def from_scope(cls, scope, coordinates=None, selection: str | None = None) -> LiquidLikeMotions:
        values = cls.with_defaults(cls.values_of(scope))
        if cls.leaves_orders_open(scope):
            del values["orders"]
        return cls(**values)

    @classmethod
    def leaves_orders_open(cls, scope) -> bool:
        return not isinstance(scope.orders, int)

    @property
    def halos(self) -> bool:
        return self.confined_to == "crystal"

    def imaginary_part(self, table) -> LiquidLikeMotions:
        return replace(self, table=table, k_sol=0.0)  # solvent scatters with the real parts

    def shared_displacements(self, structure: Structure) -> np.ndarray:
        return np.broadcast_to(self.tensor, (structure.n_atoms, 3, 3))

    @cached_property
    def tensor(self) -> np.ndarray:
        """(3, 3) float64, Å², V."""
        return displacement_tensor("llm", self.sigma, self.V)

    @cached_property
    def correlation(self) -> Correlation:
        if (self.gamma is None) == (self.G is None):
            raise DiffuseError("llm: give exactly one of llm.gamma (Å) and llm.G (six numbers, Å)")
        if self.G is None:
            return Correlation(self.kernel, positive("llm.gamma", self.gamma) * np.eye(3), self.core)
        return Correlation(self.kernel, positive_tensor("llm.G", self.G, strict=True), self.core)

    def missing_orders(self, d_min: float) -> float:
        """Fraction of exp(qᵀVq) - 1 that the orders left out would add at d_min (Å), at most.

        So much is missing from pairs of atoms that move together; less from more distant ones, and nothing from the
        term of a single atom when ``incoherent`` is set.
        """
        return float(series.missing(self._largest_square(d_min), self.orders))

    def enough_orders(self, d_min: float) -> int:
        """The fewest orders that leave out at most ``series.NEGLIGIBLE`` at d_min (Å), or ``series.MOST_ORDERS``."""
        return series.enough(self._largest_square(d_min))

    def with_orders_for(self, structure: Structure, values: Mapping, d_min: float) -> LiquidLikeMotions:
        fitted = self.with_values(structure, values) if values else self
        return replace(self, orders=fitted.enough_orders(d_min))

    def lack_of_orders(self, d_min: float) -> str:
        return series.lack(self._largest_square(d_min), self.orders, d_min)

    def _largest_square(self, d_min: float) -> float:
        return (2 * math.pi / d_min) ** 2 * float(np.linalg.eigvalsh(self.tensor)[-1])

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        missing = self.missing_orders(grid.d_min)
        logger.info("llm: orders=%d leaves out at most %.2g %% at %.2f Å", self.orders, 100 * missing, grid.d_min)
        overall = self.adp == "overall"
        if overall:
            structure = structure.without_displacements()
        else:
            warn_of_small_displacements(structure, self.tensor, "llm")
        x = (2 * np.pi) ** 2 * s_squared(grid, self.tensor)
        s2 = s_squared(grid)
        total = self._coherent(structure, grid, x, s2)
        if overall:
            total *= np.exp(-x)
        if self.incoherent:
            total += squares(structure, s2, self.table)
            if overall:
                own = squares(structure, s2, self.table) * np.exp(-x)
            else:
                own = displaced(structure.expand(), grid, s2, self.table)
            own *= series.exponential(x, self.orders)
            total -= own
        return laue_average(total, grid)

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """Diffuse intensity at any points, by summation over all reflections: slow, but exact as the map is."""
        return summed_intensity(self, structure, np.asarray(s, dtype=float).reshape(-1, 3))

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        structure, grid = fitted(structure, grid)
        work = self.work_grid(structure, grid)
        source, fine = self._source(structure, work)
        return max(memory_estimate(fine), 40 * math.prod(box_size(source, work)) + 64 * work.n_voxels)

    def correlation_length(self, structure: Structure) -> float:
        reach = max(ATOM_LENGTH, self.correlation.reach(NEGLIGIBLE_CORRELATION))
        return min(reach, diameter(structure)) if self.confined_to == "molecule" else reach

    def parameters(self, structure: Structure) -> tuple:
        first, second = self.components(structure)
        share = 0.5 if self.adp == "individual" else 1.0
        found = displacement(structure, first, self.sigma, self.V, share)
        if second is None:
            lowest = 1.1 * self.core if self.kernel == "lorentzian" else 0.0
            return (*found, gamma_parameter(self.gamma, lowest))
        return (*found, *correlation_parameters(second, self.G))

    def components(self, structure: Structure) -> tuple:
        """Free elements of V and of G, each None if there is sigma or gamma instead.

        In the crystal they have its symmetry; those of a molecule turn with it.
        """
        symmetric = self.confined_to == "crystal"
        free = tensor_components(structure, symmetric)
        return None if self.V is None else free, None if self.G is None else free

    def with_values(self, structure: Structure, values: Mapping) -> LiquidLikeMotions:
        merged = updated("llm", self.parameters(structure), values)
        changed: dict = {name: merged[name] for name in ("sigma", "gamma") if name in merged}
        for name, components in zip("VG", self.components(structure)):
            if components is not None:
                changed[name] = components.six([merged[name + e] for e in components.names])
        return replace(self, **changed)

    def prepare(self, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False) -> Prepared:
        prepared = partial(PreparedLiquidLikeMotions, self, means=means)
        if self.confined_to == "crystal":
            return prepared(structure, grid, index)
        return over_laue_group(prepared, structure, grid, index)  # a molecule has no symmetry

    def work_grid(self, structure: Structure, grid: MapGrid) -> MapGrid:
        """The grid, or for a molecule one with a whole multiple of its subdivision.

        That is so fine that the Patterson function of a molecule repeats only at distances at which c(r), taken to 0
        beyond the molecule's largest diameter, is 0.
        """
        if self.confined_to == "crystal":
            return grid
        correlation = self._reaching(structure)
        needed = correlation.inner + correlation.outer
        across = np.linalg.norm(grid.reciprocal_matrix, axis=0)  # 1 / distance of the lattice planes
        return replace(grid, subdivide=tuple(n * math.ceil(needed * a / n) for a, n in zip(across, grid.subdivide)))

    def _reaching(self, structure: Structure) -> Correlation:
        """The correlation, as far as there are pairs of atoms."""
        if self.confined_to == "crystal":
            return self.correlation
        return replace(self.correlation, inner=diameter(structure) + _ATOMS_REACH)

    def _source(self, structure: Structure, grid: MapGrid) -> tuple:
        """The lattice on which |F|² is convolved, and the grid that has F on it; grid: from :meth:`work_grid`."""
        smallest = min(np.linalg.eigvalsh(self.correlation.matrix)[0], self._reaching(structure).inner / _ENDED)
        margin = min(max(_MARGIN / (2 * math.pi * smallest), _SMALLEST_MARGIN), _LARGEST_MARGIN)
        d_min = 1 / (1 / grid.d_min + margin)
        n = grid.subdivide if self.confined_to == "molecule" else (1, 1, 1)
        lengths = [x * y for x, y in zip(n, grid.unit_cell)]
        cell = (*lengths, *grid.unit_cell[3:])
        return MapGrid(cell, "P 1", (1, 1, 1), d_min), MapGrid(grid.unit_cell, "P 1", n, d_min)

    def strength(self, structure: Structure, grid: MapGrid) -> tuple:
        """What the kernels are convolved with.

        Parameters
        ----------
        structure : without displacements for ``adp=overall``
        grid : from :meth:`work_grid`

        Returns
        -------
        correlation : Correlation of the kernels
        strength : float64 of ``source.shape``, |F|², divided by its mean decay for ``local_form_factor``
        source : the lattice it is given on
        mean : function of q, (m,) in 1/Å, for the mean of the strength further out
        """
        source, fine = self._source(structure, grid)
        if self.confined_to == "molecule":
            bodies, body = structure.space_group.order_z(), structure.molecule()
        else:
            bodies, body = 1, structure.expand()
        amplitude = lattice_transform(body, fine, self.table)
        if self.k_sol:
            amplitude += solvent_structure_factors(structure, fine, self.k_sol, self.b_sol)
        strength = bodies * (amplitude.real**2 + amplitude.imag**2)
        if self.confined_to == "molecule":
            strength += special_remainder(structure, fine, s_squared(fine), self.table)
        strength = np.nan_to_num(strength)
        if not self.local_form_factor:
            return self._reaching(structure), strength, source, lambda q: self.decay(structure, q / (2 * np.pi))
        strength /= radial(lambda s: self.decay(structure, s), s_squared(source))
        return self._reaching(structure), strength, source, np.ones_like

    def decay(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """Mean of |F|² at |s|, (m,) in 1/Å, far from the origin: the sum over the atoms' own terms."""
        return sum_of_squares(structure, np.minimum(s, _FORM_FACTOR_LIMIT), self.table, displaced=True)

    def _coherent(self, structure: Structure, grid: MapGrid, x, s2) -> np.ndarray:
        """Sum over l of x^l/l! (1/V) sum over h of |F|² Gamma_l; NaN where a mate has the value.

        x, s2 : float64 of ``grid.shape``, qᵀVq and |s|²
        """
        work = self.work_grid(structure, grid)
        correlation, strength, source, mean = self.strength(structure, work)
        nodes = np.linspace(0, 2 * np.pi / grid.d_min, TAIL_NODES)
        orders = range(1, self.orders + 1)
        tails = [correlation.tail(nodes, 2 * np.pi / source.d_min, mean, order) for order in orders]
        total = np.full(grid.shape, np.nan)
        steps = [n // m for n, m in zip(work.subdivide, grid.subdivide)]
        wanted = tuple(slice(m % step, None, step) for m, step in zip(work.extent, steps))
        for where, values in convolutions(strength, source, work, correlation, self.orders, self.operators(grid)):
            if max(steps) > 1:  # the only shift there is: every voxel of the finer grid
                where, values = (slice(None),) * 3, (value[wanted] for value in values)
            part, q = x[where], 2 * np.pi * np.sqrt(s2[where])
            total[where] = sum(
                term * (value + from_table(q, nodes[-1], tail))
                for term, value, tail in zip(series.terms(part, self.orders), values, tails)
            )
        if self.local_form_factor:
            total *= radial(lambda s: self.decay(structure, s), s2)
        return total

    def operators(self, grid: MapGrid) -> np.ndarray:
        """(m, 3, 3) int64, the Laue group if it leaves V and G alone, otherwise the identity and the inversion."""
        operators = laue_operators(grid.space_group, friedel=True)
        b = grid.reciprocal_matrix
        turns = [b @ r.T @ np.linalg.inv(b) for r in operators]
        for tensor in (self.tensor, self.correlation.matrix):
            if any(np.abs(t @ tensor @ t.T - tensor).max() > 1e-6 * np.abs(tensor).max() for t in turns):
                identity = np.eye(3, dtype=np.int64)
                return np.stack([identity, -identity])
        return operators
