"""Run by libtbx.configure and libtbx.refresh, with `self` the libtbx module of this checkout.

A DIALS from a system package has no numba beside it. Where a virtual environment does (the checkout's .venv, made by
`make env`, or the active one), its packages are put last on the path of the dispatchers, after those of DIALS.
"""

import importlib.util
import os
import sys


def use_virtual_environment(module):
    """Append the packages of a virtual environment for this Python to the path of the dispatchers; write them again."""
    checkout = abs(next(module.dist_paths_active()))
    packages = os.path.join("lib", "python{}.{}".format(*sys.version_info), "site-packages")
    candidates = [os.path.join(checkout, ".venv"), os.environ.get("VIRTUAL_ENV", "")]
    found = [os.path.join(c, packages) for c in candidates if c and os.path.isdir(os.path.join(c, packages))]
    if found:
        print(f"Packages for the dispatchers from: {found[0]}")
        module.env.pythonpath.append(module.env.as_relocatable_path(found[0]))
        module.process_command_line_directories()
    elif importlib.util.find_spec("numba") is None:
        print("WARNING: numba is missing: run `make env` in dials_diffuse, or activate a virtual environment")
        print("         for this Python that has numba, and run libtbx.configure again")


use_virtual_environment(self)  # noqa: F821
