"""Products of amplitudes, of which sums give Hermitian forms."""

from __future__ import annotations

from dials_diffuse.kernels.jit import njit


@njit
def hermitian_squares(real, imag, out):
    """|v_i|², then the real and the imaginary parts of conj(v_i) v_j of all pairs i < j, in the order of triu_indices.

    Parameters
    ----------
    real, imag : (n, d) float64, of v
    out : (n, d²) float64, written
    """
    n, d = real.shape
    pairs = d * (d - 1) // 2
    for m in range(n):
        k = d
        for i in range(d):
            a, b = real[m, i], imag[m, i]
            out[m, i] = a * a + b * b
            for j in range(i + 1, d):
                out[m, k + j - i - 1] = a * real[m, j] + b * imag[m, j]
                out[m, pairs + k + j - i - 1] = a * imag[m, j] - b * real[m, j]
            k += d - 1 - i
