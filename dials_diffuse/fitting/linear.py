"""The scale and the smooth isotropic background of a fit, eliminated exactly at each set of the other parameters."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline
from scipy.sparse import csr_matrix

from dials_diffuse.errors import DiffuseError

_DEGREE = 3
#: 1/Å between the knots of the background: the rings of water and of bulk solvent are 0.05 wide
_SPACING = 0.02
#: voxels for each spline, at least, on the average
_PER_TERM = 20


def background_terms(s: np.ndarray) -> int:
    """Number of B-splines that can follow the rings of water; s : (n,) float64, 1/Å, |s| of the voxels."""
    wanted = round(float(np.ptp(s)) / _SPACING) + _DEGREE
    return max(min(wanted, len(s) // _PER_TERM), _DEGREE + 1)


def check_terms(n_terms: int) -> int:
    """The number of splines; DiffuseError if there are too few for a cubic one."""
    if n_terms != 0 and n_terms <= _DEGREE:
        raise DiffuseError(f"background.n_terms={n_terms}: a cubic spline has at least {_DEGREE + 1}; or give 0")
    return n_terms


class Background:
    """b(|s|), a cubic spline with equidistant knots over the range of the data.

    Parameters
    ----------
    s : (n,) float64, 1/Å
    n_terms : number m of B-splines, at least 4; 0 for no background; None: see :func:`background_terms`

    Attributes
    ----------
    matrix : (n, m) sparse, the splines at the points

    Raises
    ------
    DiffuseError
        If there are too few splines for a cubic one.
    """

    def __init__(self, s: np.ndarray, n_terms: int | None):
        self.n_terms = background_terms(s) if n_terms is None else check_terms(n_terms)
        self.matrix = csr_matrix((len(s), 0))
        if self.n_terms:
            inner = np.linspace(s.min(), s.max(), self.n_terms - _DEGREE + 1)
            knots = np.concatenate([[inner[0]] * _DEGREE, inner, [inner[-1]] * _DEGREE])
            self.matrix = BSpline.design_matrix(np.clip(s, inner[0], inner[-1]), knots, _DEGREE)

    def at(self, rows: np.ndarray) -> Background:
        """The splines at some of the points."""
        part = copy.copy(self)
        part.matrix = self.matrix[rows]
        return part

    def values(self, coefficients: np.ndarray) -> np.ndarray:
        """(n,) float64, b at the points; coefficients : (m,) float64"""
        return self.matrix @ coefficients


@dataclass(frozen=True)
class Linear:
    """Best scale and background for one intensity of the model.

    Attributes
    ----------
    scale : k
    background : (m,) float64, coefficients of the splines
    residual : (n,) float64, I_obs - k I_calc - b, of the voxels that were fitted
    objective : sum of weight times residual²
    """

    scale: float
    background: np.ndarray
    residual: np.ndarray
    objective: float


class Projection:
    """Minimum over k and b of O = sum w (y - k I - b)², with derivatives by what I depends on.

    Everything is multiplied by √w and projected on the complement of the splines. There b is gone, and the rest is a
    problem in k and the parameters alone, of which k is eliminated in the second step (variable projection: Golub &
    Pereyra 1973). The Hessian of the minimum is the Schur complement of that of all parameters.

    Parameters
    ----------
    y, weights : (n,) float64
    background : Background at the same voxels
    scale : hold k at this value; None: fit it
    """

    def __init__(self, y: np.ndarray, weights: np.ndarray, background: Background, scale: float | None = None):
        self.scale = scale
        self._root = np.sqrt(weights)
        self._y = y * self._root
        self._splines = None
        if background.n_terms:
            # columns that touch no voxel (a gap in the range) would make the normal matrix singular
            splines = background.matrix.multiply(self._root[:, None]).tocsr()
            self._splines, self._transposed = splines, splines.T.tocsr()
            self._inverse = np.linalg.pinv((self._transposed @ splines).toarray(), rcond=1e-12, hermitian=True)
        self._y_left = self._complement(self._y)
        self.n_linear = background.n_terms + (scale is None)

    def solve(self, intensity: np.ndarray) -> Linear:
        """Best k and b. A model without anisotropic intensity has k = 0."""
        weighted = intensity * self._root
        left = self._complement(weighted)
        k = self._best_scale(left)
        rest = self._y_left - k * left
        coefficients = np.zeros(0)
        if self._splines is not None:
            coefficients = self._inverse @ (self._transposed @ (self._y - k * weighted))
        return Linear(k, coefficients, rest / self._root, float(rest @ rest))

    def objective(self, intensity: np.ndarray) -> float:
        left = self._complement(intensity * self._root)
        rest = self._y_left - self._best_scale(left) * left
        return float(rest @ rest)

    def normal(self, intensity: np.ndarray, jacobian: np.ndarray) -> tuple:
        """Gradient, (p,), and Gauss-Newton matrix, (p, p), of the minimum, both halved.

        The matrix is that of Kaufman (1975): derivatives orthogonal to I and the splines.
        """
        gradient, matrix, cross, square, _ = self._derivatives(intensity, jacobian)
        return gradient, _schur(matrix, cross, square)

    def hessian(self, intensity: np.ndarray, jacobian: np.ndarray, second) -> np.ndarray:
        """(p + 1, p + 1) or, with a fixed scale, (p, p): half the Hessian by parameters and scale, b eliminated.

        second : function of weights, (n,) -> (p, p), sum over voxels of weights times second derivatives of I
        """
        _, matrix, cross, square, rest = self._derivatives(intensity, jacobian)
        k = self._best_scale(self._complement(intensity * self._root))
        weighted = rest * self._root
        matrix = matrix - k * second(weighted)
        if square is None:
            return matrix
        # the slope of k by a parameter changes the residual itself: minus sum w r dI
        cross = cross - jacobian.T @ weighted
        return np.block([[matrix, cross[:, None]], [cross[None], np.full((1, 1), square)]])

    def columns(self, intensity: np.ndarray, jacobian: np.ndarray) -> tuple:
        """Derivatives of the fitted values by parameters and scale, what is left of the data, and what both are times.

        Returns
        -------
        (n, p + 1) or, with a fixed scale, (n, p), and (n,) float64, both times the root of the weights, b eliminated;
        (n,) float64, that root
        """
        left = self._complement(intensity * self._root)
        slopes, k = self._complement(jacobian * self._root[:, None]), self._best_scale(left)
        columns = k * slopes if self.scale is not None else np.column_stack([k * slopes, left])
        return columns, self._y_left - k * left, self._root

    def _derivatives(self, intensity, jacobian) -> tuple:
        left = self._complement(intensity * self._root)
        slopes = self._complement(jacobian * self._root[:, None])
        k = self._best_scale(left)
        rest = self._y_left - k * left
        gradient = -k * (slopes.T @ rest)
        matrix = k * k * (slopes.T @ slopes)
        if self.scale is not None:
            return gradient, matrix, None, None, rest
        return gradient, matrix, k * (slopes.T @ left), float(left @ left), rest

    def _best_scale(self, left: np.ndarray) -> float:
        if self.scale is not None:
            return self.scale
        square = float(left @ left)
        return float(left @ self._y_left) / square if square > 0 else 0.0

    def _complement(self, x: np.ndarray) -> np.ndarray:
        if self._splines is None:
            return x
        return x - self._splines @ (self._inverse @ (self._transposed @ x))


def _schur(matrix: np.ndarray, cross, square) -> np.ndarray:
    if square is None or square == 0:
        return matrix
    return matrix - np.outer(cross, cross) / square


def reduced(hessian: np.ndarray, n: int) -> np.ndarray:
    """(n, n) Schur complement of the rest, the Hessian of the minimum over it."""
    if len(hessian) == n:
        return hessian
    return _schur(hessian[:n, :n], hessian[:n, n], hessian[n, n])
