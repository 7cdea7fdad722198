"""One place that decides how kernels are compiled. numba is imported when the first of them is called, not before."""

from __future__ import annotations

import threading
from functools import cached_property, update_wrapper
from pkgutil import resolve_name

_lock = threading.RLock()

#: kernels that numba does not know yet
_waiting: list = []


class Kernel:
    """A function that numba compiles when it is called.

    dispatcher : of numba; None until the first kernel of all is called
    """

    def __init__(self, function):
        self.function, self.dispatcher = function, None
        update_wrapper(self, function)

    def __call__(self, *args):
        if self.dispatcher is None:
            load_numba()
        return self.dispatcher(*args)

    def __reduce__(self) -> tuple:
        return resolve_name, (f"{self.__module__}:{self.__qualname__}",)  # by its name, as functions are pickled


def njit(function) -> Kernel:
    """``numba.njit`` with an on-disk cache where a writable place for it exists, without one elsewhere.

    No fastmath: kernels test for NaN.
    """
    kernel = Kernel(function)
    _waiting.append(kernel)
    return kernel


class Intrinsic:
    """A function that writes instructions for numba where kernels call it; see ``numba.extending.intrinsic``."""

    def __init__(self, function):
        self.function = function

    @cached_property
    def dispatcher(self):
        from numba.extending import intrinsic as of_numba

        return of_numba(self.function)


def intrinsic(function) -> Intrinsic:
    """``numba.extending.intrinsic``, imported when the first kernel is called."""
    return Intrinsic(function)


def load_numba() -> None:
    """Hand all kernels to numba. Worth a call before processes are forked, which would each import it."""
    with _lock:
        import numba

        kernels = list(_waiting)
        for kernel in kernels:
            kernel.dispatcher = _dispatcher(numba, kernel.function)
        for kernel in kernels:  # kernels that call each other are compiled together
            names = kernel.function.__globals__
            names.update({k: v.dispatcher for k, v in names.items() if isinstance(v, (Kernel, Intrinsic))})
        del _waiting[: len(kernels)]


def _dispatcher(numba, function):
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # read-only installation and no writable cache folder
        return numba.njit(nogil=True)(function)
