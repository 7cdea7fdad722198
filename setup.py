"""Entry points. The console scripts are derived from the shims in command_line/, so that pip and libtbx share one list
of names; libtbx_refresh.py takes the dxtbx formats from here."""

from pathlib import Path

from setuptools import setup

MARK = "# LIBTBX_SET_DISPATCHER_NAME "

#: "name of the class:name of its parent = where it is"
DXTBX_FORMATS = [
    "FormatCBFMiniDiffuse:FormatCBFMini = dials_diffuse.experiment.format_cbf:FormatCBFMiniDiffuse",
]

#: what zocalo.wrap finds
ZOCALO_WRAPPERS = ["dials.diffuse_process = dials_diffuse.pipeline.zocalo_wrapper:DiffuseProcessWrapper"]


def console_scripts(folder="command_line"):
    """Entry points such as `dials.diffuse_x = dials_diffuse.cli.x:run`, one per shim `diffuse_x.py` in the folder."""
    scripts = []
    for shim in sorted(Path(__file__).parent.joinpath(folder).glob("diffuse_*.py")):
        first_line = shim.read_text(encoding="utf-8").splitlines()[0]
        if not first_line.startswith(MARK):
            raise SystemExit(f"{shim}: the first line must be '{MARK}dials.{shim.stem}'")
        scripts.append(f"{first_line[len(MARK) :].strip()} = dials_diffuse.cli.{shim.stem[len('diffuse_') :]}:run")
    if not scripts:
        raise SystemExit(f"no diffuse_*.py shims in {folder}/: is this a complete copy of the source?")
    return scripts


if __name__ == "__main__":
    setup(
        entry_points={
            "console_scripts": console_scripts(),
            "dxtbx.format": DXTBX_FORMATS,
            "zocalo.wrappers": ZOCALO_WRAPPERS,
        },
        license="BSD-3-Clause",
    )
