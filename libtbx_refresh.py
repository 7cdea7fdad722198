"""Run by libtbx.configure and libtbx.refresh, with `self` the libtbx module of this checkout.

A DIALS from a system package has no numba beside it. Where a virtual environment does (the checkout's .venv, made by
`make env`, or the active one), its packages are put last on the path of the dispatchers, after those of DIALS.
dxtbx finds the formats of its plugins through entry points, which pip would write.
"""

import importlib.util
import os
import runpy
import subprocess
import sys


def register_formats(module):
    """Write the entry points of the dxtbx formats that setup.py lists."""
    try:
        from libtbx import pkg_utils  # asks for the version of pip as it is imported
    except (ImportError, subprocess.CalledProcessError):
        pkg_utils = None
    if pkg_utils is None or importlib.util.find_spec("setuptools") is None:
        print("WARNING: pip or setuptools is missing: install both and run libtbx.configure again, or simulated images")
        print("         of detectors with several panels cannot be imported")
        return
    setup = os.path.join(abs(next(module.dist_paths_active())), "setup.py")
    pkg_utils.define_entry_points({"dxtbx.format": runpy.run_path(setup)["DXTBX_FORMATS"]})


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
register_formats(self)  # noqa: F821
