"""Liquid-like motions: displacements whose correlation falls off with distance."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.common import (
    ATOM_LENGTH,
    NEGLIGIBLE_CORRELATION,
    diameter,
    displaced,
    displacement_tensor,
    fitted,
    laue_average,
    positive,
    positive_tensor,
    radial,
    squares,
    warn_of_small_displacements,
)
from dials_diffuse.models.convolution import KERNELS, Correlation, box_size, convolutions
from dials_diffuse.structure.atoms import Structure
from dials_diffuse.structure.factors import sum_of_squares
from dials_diffuse.structure.transform import lattice_transform, memory_estimate, s_squared

logger = logging.getLogger("dials.diffuse.models")

ADPS = ("individual", "overall")
CONFINEMENTS = ("crystal", "molecule")

#: structure factors are computed to q = 2 pi / d_min plus this many 1/gamma, but by no more than _LARGEST_MARGIN beyond
#: 1/d_min (1/Å); the squares of those further out are replaced by their mean, the sum of the atoms' f²
_MARGIN = 6.0
_LARGEST_MARGIN = 0.4

#: points at which the share of the reflections left out is computed
_TAIL_NODES = 400

#: |s| up to which the tables of form factors hold, 1/Å
_FORM_FACTOR_LIMIT = 12.0


@dataclass(frozen=True)
class LiquidLikeMotions:
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
    orders : number of terms of the sum over l, see :meth:`missing_orders`
    incoherent : add what makes each atom's own term |f|² (1 - exp(-qᵀUq)) whatever V and the number of orders
    local_form_factor : divide the mean decay of |F|² with resolution out before the convolution, multiply it in after
    confined_to : ``crystal``; ``molecule``: nothing is correlated between symmetry copies. The latter needs a grid with
        subdivide >= 2 everywhere: pairs of atoms further apart than (subdivide - 1) cells are left with what
        correlation they have at that distance
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If not exactly one of sigma and V, or of gamma and G, is given, or a value is out of range.

    Notes
    -----
    A V or G that the point group does not leave alone is used as it is, and the map averaged over the Laue group.

    Source: THEORY.md §3; Clarage et al. 1992, Proteins 12, 145; Wall, Clarage & Phillips 1997, Structure 5, 1599
    """

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
    table: str = "wk1995"

    def __post_init__(self):
        for name, choices in (("adp", ADPS), ("kernel", KERNELS), ("confined_to", CONFINEMENTS)):
            if getattr(self, name) not in choices:
                raise DiffuseError(f"llm.{name}={getattr(self, name)}: choose from {', '.join(choices)}")
        if self.orders is None or self.orders < 1 or self.orders != int(self.orders):
            raise DiffuseError(f"llm.orders={self.orders}: a positive whole number is needed")
        _ = self.tensor, self.correlation
        if self.kernel == "lorentzian" and not 0 < self.core < self.correlation.mean_length:
            raise DiffuseError(
                f"llm.core={self.core}: must be positive and below the correlation length, "
                f"{self.correlation.mean_length:.3g} Å"
            )

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
        x = (2 * math.pi / d_min) ** 2 * np.linalg.eigvalsh(self.tensor)[-1]
        return 1 - (_exponential(x, self.orders) - 1) / math.expm1(x)

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        if self.confined_to == "molecule" and min(grid.subdivide) < 2:
            raise DiffuseError(
                f"llm.confined_to=molecule with grid.subdivide={','.join(map(str, grid.subdivide))}: "
                "a molecule's transform needs a subdivision of at least 2 along every axis"
            )
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
            own *= _exponential(x, self.orders)
            total -= own
        return laue_average(total, grid)

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        structure, grid = fitted(structure, grid)
        source, fine = self._source(grid)
        return max(memory_estimate(fine), 40 * math.prod(box_size(source, grid)) + 64 * grid.n_voxels)

    def correlation_length(self, structure: Structure) -> float:
        reach = max(ATOM_LENGTH, self.correlation.reach(NEGLIGIBLE_CORRELATION))
        return min(reach, diameter(structure)) if self.confined_to == "molecule" else reach

    def _source(self, grid: MapGrid) -> tuple:
        """The lattice on which |F|² is convolved, and the grid that has F on it."""
        smallest = np.linalg.eigvalsh(self.correlation.matrix)[0]
        d_min = 1 / (1 / grid.d_min + min(_MARGIN / (2 * math.pi * smallest), _LARGEST_MARGIN))
        n = grid.subdivide if self.confined_to == "molecule" else (1, 1, 1)
        lengths = [x * y for x, y in zip(n, grid.unit_cell)]
        cell = (*lengths, *grid.unit_cell[3:])
        return MapGrid(cell, "P 1", (1, 1, 1), d_min), MapGrid(grid.unit_cell, "P 1", n, d_min)

    def _coherent(self, structure: Structure, grid: MapGrid, x, s2) -> np.ndarray:
        """Sum over l of x^l/l! (1/V) sum over h of |F|² Gamma_l; NaN where a mate has the value.

        x, s2 : float64 of ``grid.shape``, qᵀVq and |s|²
        """
        source, fine = self._source(grid)
        if self.confined_to == "molecule":
            bodies, body = structure.space_group.order_z(), structure.molecule()
        else:
            bodies, body = 1, structure.expand()
        amplitude = lattice_transform(body, fine, self.table)
        strength = np.nan_to_num(bodies * (amplitude.real**2 + amplitude.imag**2))
        del amplitude

        def mean(q):
            s = np.minimum(q / (2 * np.pi), _FORM_FACTOR_LIMIT)
            return sum_of_squares(structure, s, self.table, displaced=True)

        if self.local_form_factor:
            strength /= radial(lambda s: mean(2 * np.pi * s), s_squared(source))
        operators = self._operators(grid)
        q_max = 2 * np.pi / source.d_min
        nodes = np.linspace(0, 2 * np.pi / grid.d_min, _TAIL_NODES)
        tails = [
            self.correlation.tail(nodes, q_max, np.ones_like if self.local_form_factor else mean, order)
            for order in range(1, self.orders + 1)
        ]
        total = np.full(grid.shape, np.nan)
        for where, values in convolutions(strength, source, grid, self.correlation, self.orders, operators):
            part, q = x[where], 2 * np.pi * np.sqrt(s2[where])
            total[where] = sum(
                part**order / math.factorial(order) * (value + np.interp(q, nodes, tail))
                for order, (value, tail) in enumerate(zip(values, tails), start=1)
            )
        if self.local_form_factor:
            total *= radial(lambda s: mean(2 * np.pi * s), s2)
        return total

    def _operators(self, grid: MapGrid) -> np.ndarray:
        """(m, 3, 3) int64, the Laue group if it leaves V and G alone, otherwise the identity and the inversion."""
        operators = laue_operators(grid.space_group, friedel=True)
        b = grid.reciprocal_matrix
        turns = [b @ r.T @ np.linalg.inv(b) for r in operators]
        for tensor in (self.tensor, self.correlation.matrix):
            if any(np.abs(t @ tensor @ t.T - tensor).max() > 1e-6 * np.abs(tensor).max() for t in turns):
                identity = np.eye(3, dtype=np.int64)
                return np.stack([identity, -identity])
        return operators


def _exponential(x, orders: int):
    """Sum over l = 0 ... orders of x^l / l!."""
    return sum(x**order / math.factorial(order) for order in range(orders + 1))
